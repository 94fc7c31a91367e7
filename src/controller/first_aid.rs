//! Fence and hold, at once and on every replica: both are idempotent, and nothing is waited for.
//!
//! What is done is what the planner says on what the caches show; only the rest of the plan waits
//! for the holder of the Lease.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures::future::join_all;
use lifeboat_domain::cluster;
use lifeboat_domain::cluster::plan::Action;
use lifeboat_domain::cluster::plan::Step;
use lifeboat_domain::ids::InstanceId;
use tokio::task::JoinSet;

use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::controller::Deps;
use crate::controller::act;
use crate::controller::act::Hand;
use crate::controller::act::Outcome;
use crate::controller::memory::Memory;
use crate::controller::observe;

/// How often first aid is tried by one replica; the holder of the Lease goes on after that.
const TRIES: usize = 4;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Which interruptions this replica has given first aid, so that the watch does not give it again.
#[derive(Debug, Default)]
pub struct Aided {
    instances: Mutex<BTreeSet<InstanceId>>,
}

impl Aided {
    /// Notes it, and answers whether it is new.
    pub fn note(&self, instance: &InstanceId) -> bool {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.insert(instance.clone())
    }

    fn keep(&self, open: &BTreeSet<InstanceId>) {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        instances.retain(|instance| open.contains(instance));
    }
}

/// Gives first aid for every record that others made, as an agent does, which has no rights on
/// nodes. Here the record comes before the fence.
pub async fn follow(deps: Arc<Deps>) {
    let mut records = deps.wakes.records().hear();
    let mut aids = JoinSet::new();
    loop {
        tokio::join!(deps.caches.nodes.synced(), deps.caches.pods.synced());
        let open = deps.caches.interruptions.select(|row| {
            let urgent = !row.is_closed() && row.signals.deadline().is_some();
            urgent.then(|| row.clone())
        });
        let instances = open.iter().map(|row| row.instance.clone()).collect();
        deps.aided.keep(&instances);
        for row in open {
            if deps.aided.note(&row.instance) {
                let deps = deps.clone();
                aids.spawn(async move { give(&deps, &row).await });
            }
        }
        while aids.try_join_next().is_some() {}
        records.rung().await;
    }
}

/// Fences and holds, as the planner says, trying a few times.
pub async fn give(deps: &Deps, row: &InterruptionRow) {
    for attempt in 1..=TRIES {
        let mut memory = Memory::default();
        observe::remember(deps, &mut memory, row);
        let facts = observe::facts(deps, &memory, row);
        let plan = cluster::plan(&facts, &deps.settings.policy, deps.clock.now());
        let steps: Vec<&Step> = plan.steps.iter().filter(|step| is_first_aid(step)).collect();
        let hand = Hand { deps, cluster: &deps.first_aid, memory: &memory, row };
        let outcomes = join_all(steps.iter().map(|step| act::take(hand, step))).await;
        let again = outcomes.contains(&Outcome::Failed) && attempt < TRIES;
        if !again {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_first_aid(step: &Step) -> bool {
    matches!(step.action, Action::Fence { .. } | Action::Hold { .. })
}

//! Fence and hold, at once and on every replica: both are idempotent, and nothing is waited for.
//!
//! What is done is what the planner says on what the caches show; only the rest of the plan waits
//! for the holder of the Lease.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use futures::future::join_all;
use lifeboat_domain::cluster;
use lifeboat_domain::cluster::plan::Action;
use lifeboat_domain::cluster::plan::Step;
use lifeboat_domain::ids::InstanceId;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::controller::Deps;
use crate::controller::act;
use crate::controller::act::Hand;
use crate::controller::act::Outcome;
use crate::controller::memory::Memory;
use crate::controller::observe;
use crate::controller::wakes;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// How often first aid is tried by one replica; the holder of the Lease goes on after that.
const TRIES: usize = 4;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// How long the watch may take to show what first aid did: nobody does it again meanwhile.
const SHOWN: Duration = Duration::from_secs(1);
/// Connections that are kept warm.
const WARM: usize = 8;
/// How often each is used: sooner than the client (90 s) or a load balancer in between gives it up.
const WARM_EVERY: Duration = Duration::from_secs(20);
/// How long a record may come after its first aid.
const RECORDED_WITHIN: Duration = Duration::from_mins(10);
/// How often what is over is forgotten.
const FORGET_EVERY: Duration = Duration::from_mins(1);

/// Which interruptions this replica has given first aid, so that the watch does not give it again.
#[derive(Debug, Default)]
pub struct Aided {
    instances: Mutex<BTreeMap<InstanceId, Aid>>,
}

#[derive(Clone, Copy, Debug)]
enum Aid {
    UnderWay,
    Given(Instant),
}

impl Aided {
    /// Notes that it is under way, and answers whether it is new.
    pub fn note(&self, instance: &InstanceId) -> bool {
        let mut instances = self.instances();
        if instances.contains_key(instance) {
            return false;
        }
        instances.insert(instance.clone(), Aid::UnderWay);
        true
    }

    /// Whether fence and hold are left to first aid, which is under way or not shown yet.
    pub fn covers(&self, instance: &InstanceId) -> bool {
        match self.instances().get(instance) {
            Some(Aid::UnderWay) => true,
            Some(Aid::Given(at)) => at.elapsed() < SHOWN,
            None => false,
        }
    }

    fn given(&self, instance: &InstanceId) {
        self.instances().insert(instance.clone(), Aid::Given(Instant::now()));
    }

    fn count(&self) -> usize {
        self.instances().len()
    }

    fn knows(&self, instance: &InstanceId) -> bool {
        self.instances().contains_key(instance)
    }

    /// Forgets what is neither open nor given lately: the record may still be on its way.
    fn keep(&self, open: &BTreeSet<InstanceId>) {
        self.instances().retain(|instance, aid| match aid {
            Aid::UnderWay => true,
            Aid::Given(at) => open.contains(instance) || at.elapsed() < RECORDED_WITHIN,
        });
    }

    fn instances(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Aid>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives first aid for every record that others made, as an agent does, which has no rights on
/// nodes. Here the record comes before the fence.
pub async fn follow(deps: Arc<Deps>) {
    let mut records = deps.wakes.records().hear();
    let mut aids = JoinSet::new();
    let mut forgot = Instant::now();
    loop {
        tokio::join!(deps.caches.nodes.synced(), deps.caches.pods.synced());
        let new = deps.caches.interruptions.select(|row| {
            let new = is_urgent(row) && !deps.aided.knows(&row.instance);
            new.then(|| row.clone())
        });
        for row in new {
            if deps.aided.note(&row.instance) {
                let deps = deps.clone();
                aids.spawn(async move { give(&deps, &row).await });
            }
        }
        while aids.try_join_next().is_some() {}
        if forgot.elapsed() >= FORGET_EVERY {
            let urgent = |row: &InterruptionRow| is_urgent(row).then(|| row.instance.clone());
            deps.aided.keep(&deps.caches.interruptions.select(urgent).into_iter().collect());
            forgot = Instant::now();
        }
        wakes::gather(deps.aided.count()).await;
        records.rung().await;
    }
}

/// Keeps connections open that the next fence finds warm: a new one costs a handshake, which in a
/// storm the API server has to do beside everything else.
pub async fn keep_warm(deps: Arc<Deps>) {
    loop {
        let asked = join_all((0..WARM).map(|_| deps.first_aid.ask_version()));
        for error in asked.await.into_iter().filter_map(Result::err) {
            metrics::error("cluster", error.label());
            tracing::debug!(error = %Chain(&error), "connection of first aid not warm");
        }
        tokio::time::sleep(WARM_EVERY).await;
    }
}

/// Fences and holds, as the planner says, trying a few times. Whoever calls has noted it as aided.
pub async fn give(deps: &Deps, row: &InterruptionRow) {
    for attempt in 1..=TRIES {
        let steps = steps(deps, row);
        let nothing = Memory::default();
        let hand = Hand { deps, cluster: &deps.first_aid, memory: &nothing, row };
        let outcomes = join_all(steps.iter().map(|step| act::take(hand, step))).await;
        if !outcomes.contains(&Outcome::Failed) || attempt == TRIES {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    deps.aided.given(&row.instance);
    deps.wakes.wake(&row.instance);
}

/// Whether a step is one that first aid takes.
pub fn is_first_aid(step: &Step) -> bool {
    matches!(step.action, Action::Fence { .. } | Action::Hold { .. })
}

/// Nothing but the steps outlives this: in a storm, thousands wait for their turn.
fn steps(deps: &Deps, row: &InterruptionRow) -> Vec<Step> {
    let mut memory = Memory::default();
    observe::remember(deps, &mut memory, row);
    let facts = observe::facts(deps, &memory, row);
    let plan = cluster::plan(&facts, &deps.settings.policy, deps.clock.now());
    plan.steps.into_iter().filter(is_first_aid).collect()
}

fn is_urgent(row: &InterruptionRow) -> bool {
    !row.is_closed() && row.signals.deadline().is_some()
}

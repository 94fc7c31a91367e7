//! Protected pods that end without an interruption of their node, by anyone: the proof that lets
//! their successors through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::cluster::facts::Fate;
use lifeboat_domain::cluster::facts::Node;
use lifeboat_domain::cluster::facts::PodEndFacts;
use lifeboat_domain::cluster::plan;
use lifeboat_domain::cluster::plan::Action;
use lifeboat_domain::cluster::plan::Next;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::deadline::later;

use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::nodes;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::pods::PodRow;
use crate::controller::Deps;
use crate::controller::act;
use crate::controller::memory::Memory;
use crate::controller::observe;
use crate::crd::workload_checkpoint::Ended;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// Many changes within this time are looked at once.
const GATHER: Duration = Duration::from_millis(200);
/// How often ending pods are looked at, whatever the planner expects.
const PATROL: Duration = Duration::from_secs(10);

/// Looks at ending pods for ever.
pub async fn run(deps: Arc<Deps>) {
    let mut bell = deps.wakes.ends().hear();
    tokio::join!(
        deps.caches.pods.synced(),
        deps.caches.nodes.synced(),
        deps.caches.interruptions.synced(),
        deps.caches.checkpoints.synced(),
    );
    loop {
        let mut due = later(deps.clock.now(), PATROL);
        for (pod, gone) in ending(&deps) {
            due = due.min(look_at(&deps, &pod, gone).await);
        }
        tokio::select! {
            biased;
            () = bell.rung() => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(elapsed(deps.clock.now(), due)) => (),
        }
    }
}

/// Protected pods with a job key that are ending or gone, with when they went, and whose node is
/// not being taken.
fn ending(deps: &Deps) -> Vec<(PodRow, Option<Timestamp>)> {
    let here = deps.caches.pods.select(|pod| {
        let ends = pod.deletion.is_some() || pod.ended().is_some();
        (pod.is_protected() && ends).then(|| (pod.clone(), None))
    });
    let gone = deps.caches.departed_lately(deps.clock.now());
    let gone = gone.into_iter().map(|departed| (departed.pod, Some(departed.at)));
    let mut all: BTreeMap<String, (PodRow, Option<Timestamp>)> = BTreeMap::new();
    for (pod, at) in gone.chain(here) {
        if pod.node.is_some() && !is_interrupted(deps, &pod) {
            all.insert(pod.uid.clone(), (pod, at));
        }
    }
    all.into_values().collect()
}

fn is_interrupted(deps: &Deps, pod: &PodRow) -> bool {
    let records = pod.node.iter().flat_map(|node| deps.caches.interruptions.group(node));
    records.into_iter().any(|row| !row.is_closed() && row.signals.deadline().is_some())
}

async fn look_at(deps: &Deps, pod: &PodRow, gone: Option<Timestamp>) -> Timestamp {
    let now = deps.clock.now();
    let wait = later(now, PATROL);
    let mut memory = Memory::default();
    if let Some(at) = gone {
        memory.gone.insert(pod.uid.clone(), at);
    }
    let Some(workload) = observe::workload_of(deps, &memory, pod, None) else { return wait };
    let Some(node) = node_of(deps, pod).await else { return wait };
    let facts = PodEndFacts { observed_at: now, node, fate: Fate::Unknown, workload };
    let plan = plan::pod_end(&facts, now);
    for step in &plan.steps {
        if let Action::Ended { pod, job_key, proof } = &step.action {
            let ended = Ended { epoch: None, proof: act::proof_to_wire(*proof), at: now };
            let written = act::prove(&deps.cluster, pod, job_key.as_str(), &ended).await;
            metrics::action(
                "ended",
                if written.is_ok() { "done" } else { "failed" },
                step.reason.label(),
            );
            match written {
                Ok(()) => tracing::info!(%step, "step taken"),
                Err(error) => {
                    metrics::error("cluster", error.label());
                    tracing::warn!(%step, error = %Chain(&error), "proof not written");
                }
            }
        }
    }
    match plan.next {
        Next::At(at) => at.min(wait),
        Next::OnChange | Next::Never => wait,
    }
}

/// The pod's node; the caches hold only those that our selector takes, so others are asked for.
async fn node_of(deps: &Deps, pod: &PodRow) -> Option<Node> {
    let name = pod.node.as_ref()?;
    let row: Option<NodeRow> = match deps.caches.nodes.row(name) {
        Some(row) => Some(row),
        None => nodes::read(&deps.cluster, name, REQUEST_MAX).await.ok()?,
    };
    let now = deps.clock.now();
    Some(row.map_or(Node::Gone { at: now }, |row| observe::node_state(&row, now)))
}

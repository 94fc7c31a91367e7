//! What is left over is cleared: closed records, and marks of ours whose interruption is no more. And
//! what has turned meanwhile is told.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::policy::OperatingMode;

use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::checkpoints;
use crate::adapters::cluster::interruptions;
use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::adapters::cluster::nodes;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::nodes::Ours;
use crate::adapters::cluster::pods;
use crate::controller::Deps;
use crate::controller::at_risk;
use crate::controller::observe;
use crate::crd::marks as our;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// How often it is swept; the first time at once.
const EVERY: Duration = Duration::from_secs(30);
/// How long a closed record stays in the cluster.
const KEPT: Duration = Duration::from_hours(24);
/// How many closed records stay in the cluster.
const KEPT_MAX: usize = 5_000;
/// How long a mark may stand before its record is shown: first aid sets it beside the record.
const RECORD_WITHIN: Duration = Duration::from_mins(2);

/// Sweeps for ever.
pub async fn run(deps: Arc<Deps>) {
    tokio::join!(
        deps.caches.interruptions.synced(),
        deps.caches.checkpoints.synced(),
        deps.caches.pods.synced(),
        deps.caches.nodes.synced(),
        deps.caches.namespaces.synced(),
    );
    let mut stale = Stale::default();
    let mut told = at_risk::Told::default();
    loop {
        at_risk::tell(&deps, &mut told).await;
        forget_records(&deps).await;
        trim_indexes(&deps).await;
        if deps.settings.policy.mode == OperatingMode::Protect {
            release_pods(&deps, &mut stale).await;
            release_nodes(&deps).await;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Holds without a record, with when they were first seen so.
#[derive(Default)]
struct Stale(std::collections::BTreeMap<String, Timestamp>);

/// Takes off holds that were set for an interruption which is over, whatever crashed meanwhile.
async fn release_pods(deps: &Deps, stale: &mut Stale) {
    let now = deps.clock.now();
    let held = deps.caches.pods.select(|pod| {
        let instance: InstanceId = pod.annotation(our::HELD)?.parse().ok()?;
        Some((pod.clone(), instance))
    });
    let mut seen = Stale::default();
    for (pod, instance) in held {
        let over = if let Some(row) = deps.caches.interruptions.row(&instance) {
            row.is_closed()
        } else {
            let since = *stale.0.get(&pod.uid).unwrap_or(&now);
            seen.0.insert(pod.uid.clone(), since);
            elapsed(since, now) >= RECORD_WITHIN
        };
        if over && observe::paused(deps, None) != lifeboat_domain::cluster::facts::Pause::On {
            report("unhold", pods::unhold(&deps.cluster, &pod, instance.as_str()).await);
        }
    }
    *stale = seen;
}

/// Takes advice off nodes whose record is gone; a record that is there takes it back itself.
async fn release_nodes(deps: &Deps) {
    let now = deps.clock.now();
    let at_risk = deps.caches.nodes.select(|node| expired(node, now).then(|| node.clone()));
    for node in at_risk {
        let instance: Option<InstanceId> = node.instance.as_ref().and_then(|id| id.parse().ok());
        let recorded = instance.and_then(|id| deps.caches.interruptions.row(&id)).is_some();
        if !recorded {
            for ours in [Ours::SoftTaint, Ours::Block] {
                let taken = nodes::take_back_one(&deps.cluster, &node, ours).await;
                report("take-back", taken.map(|_| ()));
            }
        }
    }
}

fn expired(node: &NodeRow, now: Timestamp) -> bool {
    let expiry = node.taint(our::AT_RISK).map(|value| value.parse::<i64>().unwrap_or_default());
    expiry.is_some_and(|expiry| expiry < now.as_second())
}

async fn forget_records(deps: &Deps) {
    let now = deps.clock.now();
    let mut closed: Vec<(Timestamp, InterruptionRow)> =
        deps.caches.interruptions.select(|row| row.status.closed_at.map(|at| (at, row.clone())));
    closed.sort_by_key(|(at, _)| *at);
    let beyond = closed.len().saturating_sub(KEPT_MAX);
    let due = closed.into_iter().enumerate();
    for (place, (at, row)) in due {
        if place < beyond || elapsed(at, now) > KEPT {
            report("forget", interruptions::delete(&deps.cluster, &row).await);
        }
    }
}

/// Takes the oldest pods out of the indexes, before their schema takes no more.
async fn trim_indexes(deps: &Deps) {
    let full = deps.caches.checkpoints.select(|row| Some((row.clone(), row.status.surplus()?)));
    for (row, surplus) in full {
        report("trim", checkpoints::trim(&deps.cluster, &row, surplus).await);
    }
}

fn report(what: &'static str, answer: Result<(), ClusterError>) {
    match answer {
        Ok(()) => tracing::info!(what, "swept"),
        Err(error) => {
            metrics::error("cluster", error.label());
            tracing::warn!(what, error = %Chain(&error), "not swept");
        }
    }
}

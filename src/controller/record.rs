//! What the holder of the Lease writes into the record: on edges only, and only what differs.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::cluster::facts::ClusterFacts;
use lifeboat_domain::cluster::facts::Workload as WorkloadFacts;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::progress::Phase;
use lifeboat_domain::progress::phase_of;
use serde_json::json;
use tokio::time::Instant;

use crate::adapters::cluster::MANAGER;
use crate::adapters::cluster::interruptions;
use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::controller::Deps;
use crate::controller::memory::Memory;
use crate::controller::observe::noticed_at;
use crate::crd::node_interruption::Condition;
use crate::crd::node_interruption::NodeInterruptionStatus;
use crate::crd::node_interruption::Replacement;
use crate::crd::node_interruption::Workload;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// How long after one write of the whole the next may come.
pub const GATHER: Duration = Duration::from_secs(1);
/// How long an agent has to note its pods in the record before we do.
const AGENT_NOTES: Duration = Duration::from_secs(5);

/// Writes what has changed: the whole, and our part of each pod.
pub async fn write(deps: &Deps, memory: &mut Memory, row: &InterruptionRow, facts: &ClusterFacts) {
    let phase = phase_of(facts, &deps.settings.policy, deps.clock.now());
    let status = status(memory, row, facts, phase);
    // Phases may follow one another within a moment: the last of them is told.
    let lately = memory.written.at.is_some_and(|at| at.elapsed() < GATHER);
    if lately {
        memory.written.owed = memory.written.whole != Some(json!(status).to_string());
    } else {
        write_whole(deps, memory, row, &status).await;
    }
    for workload in facts.workloads.values() {
        write_workload(deps, memory, row, workload).await;
    }
}

/// Writes the last word; answers whether it is durable.
pub async fn write_closed(
    deps: &Deps,
    memory: &mut Memory,
    row: &InterruptionRow,
    status: &NodeInterruptionStatus,
) -> bool {
    write_whole(deps, memory, row, status).await
}

/// What is said of the whole interruption. All of it each time: what is left out is taken away.
pub fn status(
    memory: &Memory,
    row: &InterruptionRow,
    facts: &ClusterFacts,
    phase: Phase,
) -> NodeInterruptionStatus {
    let claims: Vec<_> = memory.claims.values().filter_map(|asked| asked.record.clone()).collect();
    let none = if claims.is_empty() { memory.no_claim.map(str::to_owned) } else { None };
    let replacement =
        (!claims.is_empty() || none.is_some()).then_some(Replacement { claims, none });
    let saved: Vec<_> = facts.workloads.values().filter_map(WorkloadFacts::saved).collect();
    let bytes: u64 = saved.iter().map(|stored| stored.bytes).sum();
    NodeInterruptionStatus {
        phase: Some(phase.label().to_owned()),
        deadline: facts.signals.deadline().map(Deadline::at),
        conditions: conditions(memory, row, facts),
        workloads: std::collections::BTreeMap::new(),
        fence: memory.fence.clone(),
        holds: memory.holds.clone(),
        replacement,
        closed_at: row.status.closed_at,
        slack: slack(facts).map(|seconds| format!("{seconds}s")),
        bytes: (bytes > 0).then_some(bytes),
    }
}

/// Seconds that were left when the last pod was durable; none while one is not.
pub fn slack(facts: &ClusterFacts) -> Option<i64> {
    let deadline = facts.signals.deadline()?.at();
    let ours = facts.workloads.values().filter(|workload| workload.mode.is_saved_by_us());
    let saved: Option<Vec<Timestamp>> =
        ours.map(|workload| workload.saved().map(|stored| stored.at)).collect();
    let last = saved?.into_iter().max()?;
    Some(deadline.duration_since(last).as_secs())
}

async fn write_whole(
    deps: &Deps,
    memory: &mut Memory,
    row: &InterruptionRow,
    status: &NodeInterruptionStatus,
) -> bool {
    let value = json!(status);
    let text = value.to_string();
    if memory.written.whole.as_ref() == Some(&text) {
        return true;
    }
    match interruptions::apply_status(&deps.cluster, &row.instance, MANAGER, value).await {
        Ok(()) => {
            memory.written.whole = Some(text);
            memory.written.at = Some(Instant::now());
            memory.written.owed = false;
            true
        }
        Err(error) => {
            metrics::error("cluster", error.label());
            tracing::warn!(error = %Chain(&error), "record not written");
            false
        }
    }
}

async fn write_workload(
    deps: &Deps,
    memory: &mut Memory,
    row: &InterruptionRow,
    facts: &WorkloadFacts,
) {
    let facts_at = deps.clock.now();
    let uid = facts.pod.pod.uid.to_string();
    let mut drain = memory.drains.get(&uid).cloned();
    if let Some(drain) = &mut drain {
        drain.gone_at = memory.gone.get(&uid).copied();
    }
    let part = Workload {
        namespace: facts.pod.pod.namespace.to_string(),
        pod: facts.pod.pod.name.to_string(),
        job_key: facts.job_key.as_ref().map(ToString::to_string),
        mode: Some(facts.mode.label().to_owned()),
        save: None,
        insurance: None,
        slices: None,
        release: None,
        drain,
    };
    // Further refusals of a budget, and when the pod went, are told with the next edge.
    let mut edge = part.clone();
    if let Some(drain) = &mut edge.drain {
        drain.refusals = drain.refusals.min(1);
        drain.gone_at = None;
    }
    let edge = json!(edge).to_string();
    let noted = row.status.workloads.contains_key(&uid);
    // The agent notes its pods itself; we do it for one that is silent.
    let agents = noted || elapsed(noticed_at(row, facts_at), facts_at) < AGENT_NOTES;
    let silent = part.drain.is_none() && agents;
    if silent || memory.written.workloads.get(&uid) == Some(&edge) {
        return;
    }
    let instance = &row.instance;
    match interruptions::apply_workload(&deps.cluster, instance, "controller", (&uid, &part)).await
    {
        Ok(()) => drop(memory.written.workloads.insert(uid, edge)),
        Err(error) => {
            metrics::error("cluster", error.label());
            tracing::warn!(pod = %facts.pod.pod, error = %Chain(&error), "record of a pod not written");
        }
    }
}

fn conditions(memory: &Memory, row: &InterruptionRow, facts: &ClusterFacts) -> Vec<Condition> {
    let all = |is: fn(&WorkloadFacts) -> bool| facts.workloads.values().all(is);
    let saved = all(|one| !one.mode.is_saved_by_us() || one.saved().is_some());
    let gone = all(|one| one.pod.is_over());
    let mut conditions = vec![
        yes_or_no("Fenced", memory.fence.is_some()),
        yes_or_no("Saved", saved),
        yes_or_no("Drained", gone),
    ];
    if let Some(withheld) = &memory.withheld {
        let mut one = yes_or_no("Withheld", true);
        "ObserveOrPaused".clone_into(&mut one.reason);
        one.message.clone_from(withheld);
        conditions.push(one);
    }
    for one in &mut conditions {
        let before = row.status.conditions.iter().find(|known| known.r#type == one.r#type);
        let same = before.filter(|known| known.status == one.status);
        one.last_transition_time =
            same.map_or(facts.observed_at, |known| known.last_transition_time);
    }
    conditions
}

fn yes_or_no(name: &str, is: bool) -> Condition {
    Condition {
        r#type: name.to_owned(),
        status: if is { "True" } else { "False" }.to_owned(),
        reason: if is { name.to_owned() } else { format!("Not{name}") },
        message: String::new(),
        last_transition_time: Timestamp::UNIX_EPOCH,
    }
}

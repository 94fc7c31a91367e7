//! What is true of one interruption now: from the caches, the record and the task's memory. What
//! must be asked for is asked for beforehand, by [`look`].

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::cluster::facts::Bucket;
use lifeboat_domain::cluster::facts::ClusterFacts;
use lifeboat_domain::cluster::facts::DisruptionTarget;
use lifeboat_domain::cluster::facts::Eviction;
use lifeboat_domain::cluster::facts::Fate;
use lifeboat_domain::cluster::facts::Fence;
use lifeboat_domain::cluster::facts::Gate;
use lifeboat_domain::cluster::facts::HoldMark;
use lifeboat_domain::cluster::facts::Mark;
use lifeboat_domain::cluster::facts::Node;
use lifeboat_domain::cluster::facts::NodeState;
use lifeboat_domain::cluster::facts::Pause;
use lifeboat_domain::cluster::facts::PodFacts;
use lifeboat_domain::cluster::facts::Presence;
use lifeboat_domain::cluster::facts::Ready;
use lifeboat_domain::cluster::facts::Record;
use lifeboat_domain::cluster::facts::SoftTaint;
use lifeboat_domain::cluster::facts::Workload;
use lifeboat_domain::deadline::earlier;
use lifeboat_domain::deadline::later;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::ids::JobKey;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::policy::KarpenterMode;
use lifeboat_domain::signal::InstanceState;
use lifeboat_domain::signal::Kind;
use lifeboat_domain::signal::Signals;
use lifeboat_domain::workload::Containers;
use lifeboat_domain::workload::Ender;
use lifeboat_domain::workload::Ending;
use lifeboat_domain::workload::Mode;
use lifeboat_domain::workload::Proof;
use lifeboat_domain::workload::Report;
use lifeboat_domain::workload::Wishes;
use serde_json::json;
use tokio::time::Instant;

use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::adapters::cluster::marks;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::pods::PodRow;
use crate::controller::Deps;
use crate::controller::bucket::Sought;
use crate::controller::memory::Memory;
use crate::controller::replace;
use crate::crd::convert;
use crate::crd::marks as our;

/// How often the bucket is looked at for a silent agent.
const BUCKET_PAUSE: Duration = Duration::from_secs(5);
/// How long after its last word a save counts as under way: the agent speaks every 15 s.
const SAVE_UNHEARD: Duration = Duration::from_mins(1);
/// A pod that went this long before the notice had nothing to do with it.
const BEFORE_NOTICE: Duration = Duration::from_secs(5);

/// Brings the task's memory up to what the caches and the record show.
pub fn remember(deps: &Deps, memory: &mut Memory, row: &InterruptionRow) {
    let now = deps.clock.now();
    memory.recall(row);
    if let Some(node) = node_of(deps, row) {
        memory.node_gone = None;
        remember_fence(memory, &node, now);
    } else if deps.caches.nodes.is_synced() {
        memory.node_gone.get_or_insert(now);
    }
    remember_pods(deps, memory, row);
    if deps.settings.policy.karpenter == KarpenterMode::Beside {
        replace::remember(deps, memory, row);
    }
}

/// Asks for what no watch shows: volumes, limits, overlays, claims that may be gone, the bucket.
pub async fn look(deps: &Deps, memory: &mut Memory, row: &InterruptionRow) {
    if deps.settings.policy.karpenter == KarpenterMode::Beside {
        replace::look(deps, memory, row).await;
    }
    look_into_bucket(deps, memory, row).await;
}

/// The facts of one moment. The fleet is counted later, under the ledger's lock.
pub fn facts(deps: &Deps, memory: &Memory, row: &InterruptionRow) -> ClusterFacts {
    let now = deps.clock.now();
    let node = node_of(deps, row);
    let workloads = workloads(deps, memory, row);
    ClusterFacts {
        observed_at: now,
        instance: row.instance.clone(),
        signals: row.signals.clone(),
        paused: paused(deps, node.as_ref()),
        fate: fate(memory, row, node.as_ref()),
        replacement: replace::facts(deps, memory, row, node.as_ref()),
        node: node_facts(deps, memory, node.as_ref(), now),
        others: others(deps, row),
        workloads,
        record: record(row),
    }
}

/// The node that a record is about, if it is still there: a name may be taken again.
pub fn node_of(deps: &Deps, row: &InterruptionRow) -> Option<NodeRow> {
    let nodes = deps.caches.nodes.group(row.instance.as_str());
    nodes.into_iter().find(|node| node.name == row.node)
}

/// Whether the node, or all of Lifeboat, is paused.
pub fn paused(deps: &Deps, node: Option<&NodeRow>) -> Pause {
    let own = deps.caches.namespaces.row(&deps.settings.namespace);
    let node = node.and_then(|node| node.annotation(our::PAUSED)).is_some_and(is_on);
    if node || own.is_some_and(|own| own.paused) {
        return Pause::On;
    }
    if deps.caches.namespaces.is_synced() { Pause::Off } else { Pause::Unknown }
}

/// What is known of a pod that is in the caches.
pub fn pod_facts(deps: &Deps, memory: &Memory, pod: &PodRow) -> Option<PodFacts> {
    let present = deps.caches.pods.row(&pod.uid).is_some();
    let presence = if present {
        Presence::Present
    } else if let Some(at) = memory.gone.get(&pod.uid) {
        Presence::Gone { at: *at }
    } else {
        Presence::Unknown
    };
    Some(PodFacts {
        pod: pod_ref(&pod.namespace, &pod.name, &pod.uid)?,
        own_grace: pod.grace,
        presence,
        containers: containers(pod, deps.clock.now()),
        ending: ending(memory, pod),
        eviction: eviction(memory, &pod.uid),
        target: match pod.disruption_target {
            Some(true) => DisruptionTarget::Set,
            Some(false) | None => DisruptionTarget::Absent,
        },
    })
}

/// A protected pod that is, or was, in the caches.
pub fn workload_of(
    deps: &Deps,
    memory: &Memory,
    pod: &PodRow,
    record: Option<&InterruptionRow>,
) -> Option<Workload> {
    let (wishes, _) = Wishes::read(&pod.annotations.to_map());
    let noted = record.and_then(|row| row.status.workloads.get(&pod.uid));
    let noted_key = || noted?.job_key.as_deref()?.parse().ok();
    let job_key: Option<JobKey> = wishes.job_key.clone().or_else(noted_key);
    Some(Workload {
        pod: pod_facts(deps, memory, pod)?,
        mode: wishes.mode,
        hold: hold(pod, record.map(|row| row.instance.as_str())),
        paused: namespace_paused(deps, &pod.namespace),
        gate: gate(deps, &pod.namespace, job_key.as_ref(), &pod.uid),
        report: match noted {
            Some(noted) => convert::report_from_wire(noted),
            None => last_word(deps, &pod.namespace, job_key.as_ref(), &pod.uid),
        },
        job_key,
        bucket: memory.bucket.get(&pod.uid).map_or(Bucket::Unknown, |(_, holds)| *holds),
        requirements: replace::requirements(memory, pod),
    })
}

fn remember_fence(memory: &mut Memory, node: &NodeRow, now: Timestamp) {
    if memory.fence.is_some() || !node.has_taint(our::INTERRUPTED) {
        return;
    }
    let fence = node.fence();
    memory.fence = Some(crate::crd::node_interruption::Fence {
        at: fence.and_then(|fence| fence.at).unwrap_or(now),
        kind: node.taint(our::INTERRUPTED).unwrap_or_default().to_owned(),
        cordoned_before: fence.is_some_and(|fence| fence.cordoned_before),
    });
}

fn remember_pods(deps: &Deps, memory: &mut Memory, row: &InterruptionRow) {
    let now = deps.clock.now();
    let since = earlier(noticed_at(row, now), BEFORE_NOTICE);
    for pod in deps.caches.pods.group(&row.node) {
        // What was over before the notice had nothing to lose.
        let over = pod.ended().is_some_and(|(at, _)| at.is_none_or(|at| at < since));
        let known = memory.pods.contains_key(&pod.uid);
        if pod.is_protected() && (known || !over) {
            if pod.is_held_for(row.instance.as_str()) {
                memory.holds.entry(pod.uid.clone()).or_insert(now);
            }
            memory.gone.remove(&pod.uid);
            memory.pods.insert(pod.uid.clone(), pod);
        }
    }
    for departed in deps.caches.departed(&row.node, since) {
        memory.gone.entry(departed.pod.uid.clone()).or_insert(departed.at);
        memory.pods.entry(departed.pod.uid.clone()).or_insert(departed.pod);
    }
    if !deps.caches.pods.is_synced() {
        return;
    }
    let noted = row.status.workloads.keys();
    let known: BTreeSet<String> = memory.pods.keys().chain(noted).cloned().collect();
    for uid in known {
        if deps.caches.pods.row(&uid).is_none() {
            memory.gone.entry(uid).or_insert(now);
        }
    }
}

async fn look_into_bucket(deps: &Deps, memory: &mut Memory, row: &InterruptionRow) {
    let now = deps.clock.now();
    let late = row.signals.deadline().is_some_and(|deadline| deadline.has_passed(now));
    let silent_node = memory.node_gone.is_some();
    for workload in workloads(deps, memory, row).into_values() {
        let settled = workload.report.checkpoint.is_settled();
        let wanted = workload.mode.is_saved_by_us() && !settled;
        let due = late || silent_node || workload.pod.is_over();
        let uid = workload.pod.pod.uid.to_string();
        let fresh = memory.bucket.get(&uid).is_some_and(|(at, holds)| {
            matches!(holds, Bucket::Manifest(_)) || at.elapsed() < BUCKET_PAUSE
        });
        let (true, Some(job_key)) = (wanted && due && !fresh, workload.job_key) else { continue };
        let sought = Sought {
            namespace: workload.pod.pod.namespace.as_str(),
            job_key: job_key.as_str(),
            pod_uid: &uid,
            since: noticed_at(row, now),
        };
        let holds = deps.bucket.look(&sought).await;
        memory.bucket.insert(uid, (Instant::now(), holds));
    }
}

fn workloads(deps: &Deps, memory: &Memory, row: &InterruptionRow) -> BTreeMap<PodUid, Workload> {
    let seen = memory.pods.values().filter_map(|pod| workload_of(deps, memory, pod, Some(row)));
    let noted = row.status.workloads.iter();
    let noted = noted.filter(|(uid, _)| !memory.pods.contains_key(*uid));
    let noted = noted.filter_map(|(uid, _)| noted_workload(deps, memory, row, uid));
    seen.chain(noted).map(|workload| (workload.pod.pod.uid.clone(), workload)).collect()
}

/// A pod that we know only from the record: it was gone before we looked.
fn noted_workload(
    deps: &Deps,
    memory: &Memory,
    row: &InterruptionRow,
    uid: &str,
) -> Option<Workload> {
    let noted = row.status.workloads.get(uid)?;
    let mode: Option<Mode> =
        noted.mode.as_ref().and_then(|mode| serde_json::from_value(json!(mode)).ok());
    let mode = mode.unwrap_or(Mode::Unknown);
    let job_key: Option<JobKey> = noted.job_key.as_deref().and_then(|key| key.parse().ok());
    let gone = memory.gone.get(uid).map_or(Presence::Unknown, |at| Presence::Gone { at: *at });
    let pod = PodFacts {
        pod: pod_ref(&noted.namespace, &noted.pod, uid)?,
        own_grace: Duration::from_secs(30),
        presence: gone,
        containers: Containers::Unknown,
        ending: Ending::Unknown,
        eviction: eviction(memory, uid),
        target: DisruptionTarget::Unknown,
    };
    Some(Workload {
        pod,
        mode,
        hold: HoldMark::Unknown,
        paused: namespace_paused(deps, &noted.namespace),
        gate: gate(deps, &noted.namespace, job_key.as_ref(), uid),
        job_key,
        report: convert::report_from_wire(noted),
        bucket: memory.bucket.get(uid).map_or(Bucket::Unknown, |(_, holds)| *holds),
        requirements: lifeboat_domain::replacement::PodRequirements::default(),
    })
}

fn node_facts(deps: &Deps, memory: &Memory, node: Option<&NodeRow>, now: Timestamp) -> Node {
    let Some(node) = node else {
        return match memory.node_gone {
            Some(at) => Node::Gone { at },
            None if deps.caches.nodes.is_synced() => Node::Gone { at: now },
            None => Node::Unknown,
        };
    };
    node_state(node, now)
}

/// What a node shows.
pub fn node_state(node: &NodeRow, now: Timestamp) -> Node {
    let Ok(name) = node.name.parse() else { return Node::Unknown };
    Node::Present(NodeState {
        name,
        zone: node.zone.as_deref().and_then(|zone| zone.parse().ok()),
        instance_type: node.labels.get(marks::INSTANCE_TYPE).and_then(|name| name.parse().ok()),
        ready: match node.ready {
            Some((true, _)) => Ready::Yes,
            Some((false, since)) => Ready::No { since: since.unwrap_or(now) },
            None => Ready::Unknown,
        },
        fence: if node.has_taint(our::INTERRUPTED) && node.unschedulable == Some(true) {
            Fence::Fenced
        } else {
            Fence::Open
        },
        soft_taint: soft_taint(node),
        disruption_block: block(node),
    })
}

fn soft_taint(node: &NodeRow) -> SoftTaint {
    let Some(value) = node.taint(our::AT_RISK) else { return SoftTaint::Absent };
    let expiry = value.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    // One that nobody can read has expired.
    SoftTaint::Until { expiry: expiry.unwrap_or(Timestamp::UNIX_EPOCH) }
}

fn block(node: &NodeRow) -> Mark {
    match (node.annotation(our::DO_NOT_DISRUPT), node.annotation(our::BLOCKED)) {
        (None, _) => Mark::Absent,
        (Some(_), Some(_)) => Mark::Ours,
        (Some(_), None) => Mark::Others,
    }
}

fn fate(memory: &Memory, row: &InterruptionRow, node: Option<&NodeRow>) -> Fate {
    if let Some(told) = told_fate(&row.signals) {
        return told;
    }
    // Karpenter lets a claim go only when its instance is terminated.
    if let Some(at) = memory.dying_gone {
        return Fate::Gone { at };
    }
    if memory.dying.as_ref().is_some_and(|claim| claim.is("InstanceTerminating")) {
        return Fate::Going;
    }
    match node.and_then(|node| node.ready) {
        Some((true, _)) => Fate::Running,
        Some((false, _)) | None => Fate::Unknown,
    }
}

fn told_fate(signals: &Signals) -> Option<Fate> {
    let states = signals.iter().filter_map(|signal| match signal.kind {
        Kind::StateChange { state } => Some((state, signal.time)),
        Kind::SpotInterruption { .. }
        | Kind::RebalanceRecommendation
        | Kind::ScheduledChange
        | Kind::CapacityReservation
        | Kind::PodEnding
        | Kind::Unknown => None,
    });
    let mut told = None;
    for (state, at) in states {
        match state {
            InstanceState::Terminated | InstanceState::Stopped => return Some(Fate::Gone { at }),
            InstanceState::ShuttingDown | InstanceState::Stopping => told = Some(Fate::Going),
            InstanceState::Pending | InstanceState::Running | InstanceState::Unknown => (),
        }
    }
    told
}

fn others(deps: &Deps, row: &InterruptionRow) -> BTreeMap<PodUid, PodFacts> {
    if deps.settings.policy.karpenter == KarpenterMode::Beside {
        return BTreeMap::new();
    }
    let nobody = Memory::default();
    let pods = deps.caches.pods.group(&row.node).into_iter();
    let drained = pods.filter(|pod| {
        let kind = pod.controller.as_ref().map(|(kind, _)| kind.as_str());
        !pod.is_protected() && !matches!(kind, Some("DaemonSet" | "Node"))
    });
    let facts = drained.filter_map(|pod| pod_facts(deps, &nobody, &pod));
    facts.map(|facts| (facts.pod.uid.clone(), facts)).collect()
}

fn record(row: &InterruptionRow) -> Record {
    let phase =
        row.status.phase.as_ref().and_then(|phase| serde_json::from_value(json!(phase)).ok());
    match row.status.closed_at {
        Some(at) => {
            Record::Closed { at, phase: phase.unwrap_or(lifeboat_domain::progress::Phase::Unknown) }
        }
        None => Record::Open,
    }
}

fn containers(pod: &PodRow, now: Timestamp) -> Containers {
    match pod.ended() {
        Some((at, code)) => Containers::Ended { at: at.unwrap_or(now), code: Some(code) },
        None if pod.phase.is_empty() || pod.phase == "Unknown" => Containers::Unknown,
        None => Containers::Running,
    }
}

fn ending(memory: &Memory, pod: &PodRow) -> Ending {
    let Some((ends_at, _)) = pod.deletion else { return Ending::No };
    let ours = matches!(memory.evictions.get(&pod.uid), Some(Eviction::Accepted { .. }));
    Ending::By { ends_at, who: if ours { Ender::Us } else { Ender::Others } }
}

fn eviction(memory: &Memory, uid: &str) -> Eviction {
    memory.evictions.get(uid).copied().unwrap_or(Eviction::Untried)
}

fn hold(pod: &PodRow, instance: Option<&str>) -> HoldMark {
    if pod.do_not_disrupt.is_none() {
        return HoldMark::Absent;
    }
    match pod.annotation(our::HELD) {
        Some(held) if Some(held) == instance => HoldMark::ForInterruption,
        // A mark that names no instance was set when the pod was admitted.
        Some(held) if held.parse::<InstanceId>().is_err() => HoldMark::AtAdmission,
        Some(_) | None => HoldMark::Others,
    }
}

/// Whether the namespace of a pod is paused.
pub fn namespace_paused(deps: &Deps, namespace: &str) -> Pause {
    match deps.caches.namespaces.row(&namespace.to_owned()) {
        Some(row) if row.paused => Pause::On,
        Some(_) => Pause::Off,
        None => Pause::Unknown,
    }
}

/// What the agent said in the index of a pod that nothing interrupts. A save that it does not speak
/// of any more may have been given up.
fn last_word(deps: &Deps, namespace: &str, job_key: Option<&JobKey>, uid: &str) -> Report {
    let key = job_key.map(|job_key| (namespace.to_owned(), job_key.to_string()));
    let index = key.and_then(|key| deps.caches.checkpoints.row(&key));
    let Some(save) = index.and_then(|index| index.status.saves.get(uid).cloned()) else {
        return Report::unknown();
    };
    let checkpoint = convert::save_from_wire(&save);
    let now = deps.clock.now();
    let fresh = save.told_at.is_some_and(|at| now < later(at, SAVE_UNHEARD));
    if !checkpoint.is_settled() && !fresh {
        return Report::unknown();
    }
    Report { checkpoint, ..Report::unknown() }
}

fn gate(deps: &Deps, namespace: &str, job_key: Option<&JobKey>, uid: &str) -> Gate {
    let Some(job_key) = job_key else { return Gate::Closed };
    let key = (namespace.to_owned(), job_key.to_string());
    let index = deps.caches.checkpoints.row(&key);
    match index.and_then(|index| index.status.ended.get(uid).cloned()) {
        Some(ended) => Gate::Open { proof: proof(ended.proof) },
        None if deps.caches.checkpoints.is_synced() => Gate::Closed,
        None => Gate::Unknown,
    }
}

fn proof(proof: crate::crd::workload_checkpoint::Proof) -> Proof {
    serde_json::from_value(json!(proof)).unwrap_or(Proof::Unknown)
}

/// T0, or when the first thing was heard, or now for a record that we cannot read.
pub fn noticed_at(row: &InterruptionRow, now: Timestamp) -> Timestamp {
    let heard = || row.signals.iter().map(|signal| signal.time).min();
    row.signals.noticed_at().or_else(heard).or(row.created_at).unwrap_or(now)
}

fn pod_ref(namespace: &str, name: &str, uid: &str) -> Option<PodRef> {
    Some(PodRef {
        namespace: namespace.parse().ok()?,
        name: name.parse().ok()?,
        uid: uid.parse().ok()?,
    })
}

fn is_on(value: &str) -> bool {
    crate::adapters::cluster::namespaces::is_on(value)
}

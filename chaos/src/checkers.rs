//! What must hold in every run, whatever went wrong: S1 to S16 and L1 to L3.
//!
//! Each checker reads the chronicle and the world as they stand at the end of a run, and says what
//! was broken. Each has a test that shows it failing on a planted fault.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use serde_json::Value;

use crate::chronicle::Commit;
use crate::chronicle::Event;
use crate::chronicle::OURS;
use crate::chronicle::What;
use crate::world::State;
use crate::world::cluster::object;
use crate::world::cluster::resource::INTERRUPTION;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::POD;

mod store;
#[cfg(test)]
mod tests;

/// From this much time left on, a durable pod no longer waits for those that share its GPU.
const SHARERS_UNTIL: Duration = Duration::from_secs(35);
/// When every interruption has reached an end phase, counted from its deadline.
const CLOSED_WITHIN: Duration = Duration::from_mins(1);
/// Writes of ours that each thing heard of an instance may cost, a notice or advice: the record, what
/// each source heard, the fence, a phase for each of five edges, a claim made, freed and given up.
const WRITES_EACH: usize = 12;
/// And each of its pods on top: held, asked, durable, evicted, gone from the GPU, the index of what is
/// saved, and the proof that it ended. The design had meant five.
const WRITES_POD: usize = 7;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which, as `S1`.
    pub rule: &'static str,
    /// How.
    pub how: String,
}

/// What a run leaves behind.
pub struct Run<'a> {
    /// What happened, in order.
    pub events: &'a [Event],
    /// The world at the end.
    pub state: &'a State,
    /// When it ended.
    pub end: Timestamp,
    /// When the last fault was over, if there were any.
    pub quiet_since: Option<Timestamp>,
}

/// Everything that was broken.
pub fn check(run: &Run<'_>) -> Vec<Broken> {
    let rules = [
        saved_before_ended,
        sharers_together,
        store::manifests_are_whole,
        one_interruption_per_instance,
        messages_deleted_when_recorded,
        deadlines_never_later,
        nothing_after_the_deadline,
        released_only_when_empty,
        only_pods_of_the_node,
        one_live_claim,
        nothing_of_others_lost,
        no_hold_outlives,
        store::one_commit_per_epoch,
        advice_kills_nothing,
        store::keys_are_kept_apart,
        few_writes,
        saved_jobs_are_not_complete,
        every_interruption_ends,
        saved_without_the_control_plane,
        every_restore_is_answered,
    ];
    rules.iter().flat_map(|rule| rule(run)).collect()
}

/// What was broken in the bucket alone: it needs no chronicle.
pub fn bucket(state: &State) -> Vec<Broken> {
    let (events, end) = (&[], Timestamp::MIN);
    let run = Run { events, state, end, quiet_since: None };
    [store::manifests_are_whole, store::keys_are_kept_apart]
        .iter()
        .flat_map(|rule| rule(&run))
        .collect()
}

impl fmt::Display for Broken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.rule, self.how)
    }
}

fn broken(rule: &'static str, how: impl Into<String>) -> Broken {
    Broken { rule, how: how.into() }
}

/// S1: no pod in mode sdk, http or directory is ended by us before its manifest is durable, unless
/// that is recorded.
fn saved_before_ended(run: &Run<'_>) -> Vec<Broken> {
    let mut found = Vec::new();
    for (index, pod, uid) in ended_by_us(run) {
        let early = &run.events[..index];
        let durable = early.iter().any(|event| is_save_of(event, uid));
        let needs = needs_a_manifest(run, uid);
        if needs
            && !durable
            && !save_failed(run, uid)
            && reason(run, uid).as_deref() != Some("OutOfTime")
        {
            found.push(broken("S1", format!("{pod} was ended before its manifest was durable")));
        }
    }
    found
}

/// S1, second half: sharers are all durable before one of them goes, until 35 s are left.
fn sharers_together(run: &Run<'_>) -> Vec<Broken> {
    let mut found = Vec::new();
    for (index, pod, uid) in ended_by_us(run).filter(|(_, _, uid)| needs_a_manifest(run, uid)) {
        let at = run.events[index].at;
        let deadline = deadline_of(run, uid);
        if deadline.is_some_and(|deadline| left(deadline, at) <= SHARERS_UNTIL) {
            continue;
        }
        for other in sharers_of(run, uid).into_iter().filter(|other| needs_a_manifest(run, other)) {
            let early = &run.events[..index];
            let over =
                early.iter().any(|event| is_save_of(event, &other) || is_end_of(event, &other));
            if !over && !save_failed(run, &other) {
                found.push(broken(
                    "S1",
                    format!("{pod} was ended before its GPU's other pods were durable"),
                ));
            }
        }
    }
    found
}

/// S3: one interruption per instance.
fn one_interruption_per_instance(run: &Run<'_>) -> Vec<Broken> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for event in run.events {
        if let What::Recorded { instance, .. } = &event.what
            && !seen.insert(instance)
        {
            found.push(broken("S3", format!("{instance} was recorded twice")));
        }
    }
    found
}

/// S4: a message is deleted only when recorded, or known not to be ours; what cannot be read is
/// never deleted.
fn messages_deleted_when_recorded(run: &Run<'_>) -> Vec<Broken> {
    let mut found = Vec::new();
    for (index, event) in run.events.iter().enumerate() {
        let What::Message { queue, fate: "deleted", body } = &event.what else { continue };
        if queue.contains("karpenter") {
            continue;
        }
        let Ok(body) = serde_json::from_str::<Value>(body) else {
            found.push(broken("S4", "a message that cannot be read was deleted"));
            continue;
        };
        let instance = object::text(&body, "/detail/instance-id");
        let instances = &run.state.instances;
        let ours = instances.get(instance).is_some()
            && object::text(&body, "/account") == instances.account()
            && object::text(&body, "/region") == instances.region();
        let warning = object::text(&body, "/detail-type").contains("Interruption Warning");
        let recorded = run.events[..index].iter().any(
            |event| matches!(&event.what, What::Recorded { instance: known, .. } if known == instance),
        );
        if ours && warning && !recorded {
            found.push(broken("S4", format!("the notice for {instance} was deleted unrecorded")));
        }
    }
    found
}

/// S5: a deadline never moves later.
fn deadlines_never_later(run: &Run<'_>) -> Vec<Broken> {
    let later = run.events.iter().filter_map(|event| match &event.what {
        What::Deadline { node, until, before: Some(before) } if until > before => {
            Some(broken("S5", format!("the deadline of {node} moved later")))
        }
        _ => None,
    });
    later.collect()
}

/// S6: no Ask, Evict or Delete starts after the deadline.
fn nothing_after_the_deadline(run: &Run<'_>) -> Vec<Broken> {
    let late = ended_by_us(run).filter_map(|(index, pod, uid)| {
        let deadline = deadline_of(run, uid)?;
        let at = run.events[index].at;
        (at > deadline).then(|| broken("S6", format!("{pod} was ended after the deadline")))
    });
    late.collect()
}

/// S7: `Released` is never claimed for a slice on which the world still has a process of the pod.
fn released_only_when_empty(run: &Run<'_>) -> Vec<Broken> {
    let wrong = run.events.iter().filter_map(|event| match &event.what {
        What::Released { pod, still_there, .. } if *still_there > 0 => {
            Some(broken("S7", format!("{pod} was called released, {still_there} processes remain")))
        }
        _ => None,
    });
    wrong.collect()
}

/// S8: no pod of another node or incarnation is touched.
fn only_pods_of_the_node(run: &Run<'_>) -> Vec<Broken> {
    let wrong = ended_by_us(run).filter_map(|(index, pod, uid)| {
        let node = node_of(run, uid)?;
        let recorded = run.events[..index].iter().any(
            |event| matches!(&event.what, What::Recorded { node: known, .. } if *known == node),
        );
        (!recorded)
            .then(|| broken("S8", format!("{pod} was ended, its node {node} was not interrupted")))
    });
    wrong.collect()
}

/// S9: at most one live replacement claim per interruption.
fn one_live_claim(run: &Run<'_>) -> Vec<Broken> {
    let mut alive: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut found = Vec::new();
    for event in run.events {
        let What::Claim { claim, came, by } = &event.what else { continue };
        let instance = claim.rsplit_once('-').map_or(claim.as_str(), |(instance, _)| instance);
        let claims = alive.entry(instance).or_default();
        if *came && by.starts_with(OURS) {
            claims.insert(claim);
            if claims.len() > 1 {
                found.push(broken("S9", format!("{instance} has two live claims")));
            }
        } else if !came {
            claims.remove(claim.as_str());
        }
    }
    found
}

/// S10: nobody else's taint, cordon or hold is lost.
fn nothing_of_others_lost(run: &Run<'_>) -> Vec<Broken> {
    let lost = run.events.iter().filter_map(|event| match &event.what {
        What::Lost { object, what } => Some(broken("S10", format!("{object} lost {what}"))),
        _ => None,
    });
    lost.collect()
}

/// S11: no hold set for an interruption outlives it.
fn no_hold_outlives(run: &Run<'_>) -> Vec<Broken> {
    let open: BTreeSet<&str> = records(run)
        .filter(|record| object::text(record, "/status/closedAt").is_empty())
        .map(|record| object::text(record, "/spec/node"))
        .collect();
    let outlived = run.state.cluster.list(POD).filter(|pod| {
        let ours = object::annotation(pod, "lifeboat.dev/held");
        !ours.is_empty()
            && ours != "admission"
            && !open.contains(object::text(pod, "/spec/nodeName"))
    });
    outlived.map(|pod| broken("S11", format!("{} is still held", object::name(pod)))).collect()
}

/// S13: advice alone kills nothing, and what it set is taken back.
fn advice_kills_nothing(run: &Run<'_>) -> Vec<Broken> {
    let mut found = Vec::new();
    let advised: BTreeSet<&str> = records(run)
        .filter(|record| object::text(record, "/status/phase") == "Withdrawn")
        .map(|record| object::text(record, "/spec/node"))
        .collect();
    for node in run.state.cluster.list(NODE) {
        let ours = object::items(node, "/spec/taints")
            .iter()
            .any(|taint| object::text(taint, "/key").starts_with("lifeboat.dev/at-risk"));
        if ours && advised.contains(object::name(node)) {
            found.push(broken("S13", format!("{} is still marked at risk", object::name(node))));
        }
    }
    for (_, pod, uid) in ended_by_us(run) {
        if node_of(run, uid).is_some_and(|node| advised.contains(node.as_str())) {
            found.push(broken("S13", format!("{pod} was ended on advice alone")));
        }
    }
    found
}

/// S15: few writes, from the first record on. Not counted under faults: each answer that is lost
/// costs a write more.
fn few_writes(run: &Run<'_>) -> Vec<Broken> {
    if run.quiet_since.is_some() {
        return Vec::new();
    }
    let heard: usize = records(run).map(|record| heard_of(record).len()).sum();
    let pods: usize = records(run).map(|record| workloads(record).count()).sum();
    let first = run.events.iter().find(|event| matches!(event.what, What::Recorded { .. }));
    let Some(first) = first.map(|event| event.at) else { return Vec::new() };
    let writes = run.state.cluster.audit.writes().iter().filter(|write| {
        let plural = write.target.resource.plural;
        let ours = write.caller.agent.starts_with(OURS);
        ours && write.at >= first && plural != "leases" && plural != "events"
    });
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for write in writes {
        let what =
            format!("{} {} {}", write.caller.agent, write.verb, write.target.resource.plural);
        *counted.entry(what).or_default() += 1;
    }
    let writes: usize = counted.values().sum();
    // A program that comes back writes again what it cannot know that it wrote.
    let crashes = run
        .events
        .iter()
        .filter(|event| matches!(&event.what, What::Act(act) if act.starts_with("* crash")));
    // A pod that is deleted after its budget refused costs two more: the condition that its Job's
    // failure policy counts on, which an eviction brings by itself, and the record of the refusals.
    let overruled = ended_by_us(run).filter(|(index, ..)| {
        matches!(&run.events[*index].what, What::Ending { verb: "delete", .. })
    });
    // Where capacity is refused, the next claim is made, and recorded.
    let first = |claim: &str| claim.ends_with("-1");
    let again = run.events.iter().filter(|event| match &event.what {
        What::Claim { claim, came: true, by } => by.starts_with(OURS) && !first(claim),
        _ => false,
    });
    let each = WRITES_EACH * (heard + crashes.count()) + WRITES_POD * pods;
    if writes <= each + 2 * (overruled.count() + again.count()) {
        return Vec::new();
    }
    let counted: Vec<String> =
        counted.into_iter().map(|(what, count)| format!("{count} {what}")).collect();
    let for_what = format!("for {heard} things heard and {pods} pods");
    vec![broken("S15", format!("{writes} writes {for_what}: {}", counted.join(", ")))]
}

/// The kinds of signal that a record holds.
fn heard_of(record: &Value) -> BTreeSet<&str> {
    let signals = record.pointer("/spec/signals").and_then(Value::as_object);
    signals.into_iter().flatten().map(|(_, signal)| object::text(signal, "/kind")).collect()
}

/// S16: a saved workload's Job is not complete, and nothing restarts it on the dying node.
fn saved_jobs_are_not_complete(run: &Run<'_>) -> Vec<Broken> {
    let mut found = Vec::new();
    let mut fenced = BTreeSet::new();
    let mut finished = BTreeSet::new();
    let mut saved = BTreeSet::new();
    for event in run.events {
        match &event.what {
            What::Taint { node, taint: "fence", came: true, .. } => {
                fenced.insert(node.as_str());
            }
            What::Taint { node, taint: "fence", came: false, .. } => {
                fenced.remove(node.as_str());
            }
            What::Bound { pod, node }
                if fenced.contains(node.as_str()) && !pod.starts_with(OURS) =>
            {
                found.push(broken(
                    "S16",
                    format!("{pod} was bound to {node}, which is interrupted"),
                ));
            }
            What::Committed(Commit { kind: Kind::Finished, pod, .. }) => {
                finished.insert(job_of(pod));
            }
            What::Committed(Commit { kind: Kind::Save, pod, .. }) => {
                saved.insert(job_of(pod));
            }
            What::Job { job, condition: "Complete" }
                if saved.contains(job.as_str()) && !finished.contains(job.as_str()) =>
            {
                found.push(broken("S16", format!("job {job} is complete, and never finished")));
            }
            _ => (),
        }
    }
    found
}

/// L1: every interruption reaches an end phase.
fn every_interruption_ends(run: &Run<'_>) -> Vec<Broken> {
    let open = records(run).filter(|record| object::text(record, "/status/closedAt").is_empty());
    let overdue = open.filter_map(|record| {
        let deadline = object::time(record, "/status/deadline")?;
        let due = run.quiet_since.map_or(deadline, |quiet| deadline.max(quiet));
        let due = due.saturating_add(CLOSED_WITHIN).unwrap_or(Timestamp::MAX);
        let phase = object::text(record, "/status/phase");
        (run.end > due).then(|| broken("L1", format!("{} is still {phase}", object::name(record))))
    });
    overdue.collect()
}

/// L2: with the API server and the queue away from before the notice, every workload that parked is
/// durable all the same.
fn saved_without_the_control_plane(run: &Run<'_>) -> Vec<Broken> {
    let act = |what: &str| {
        let is = |event: &Event| matches!(&event.what, What::Act(act) if act.starts_with(what));
        run.events.iter().position(is)
    };
    let away = [act("* fault kube away"), act("* fault sqs away")];
    let (Some(announced), [Some(kube), Some(queue)]) = (act("* announce"), away) else {
        return Vec::new();
    };
    if kube > announced || queue > announced {
        return Vec::new();
    }
    let saved: BTreeSet<&str> = run
        .events
        .iter()
        .filter_map(|event| match &event.what {
            What::Committed(commit) if commit.kind == Kind::Save => Some(commit.pod.as_str()),
            _ => None,
        })
        .collect();
    let parked = run.events.iter().filter_map(|event| match &event.what {
        What::Said(line) if line.contains(" parked at step") => Some(first_word(line)),
        _ => None,
    });
    let lost: BTreeSet<&str> = parked.filter(|pod| !saved.contains(pod)).collect();
    lost.into_iter().map(|pod| broken("L2", format!("{pod} parked, and is not durable"))).collect()
}

/// L3: every restore that waits is let through, or refused by name.
fn every_restore_is_answered(run: &Run<'_>) -> Vec<Broken> {
    let mut waiting: BTreeMap<&str, Timestamp> = BTreeMap::new();
    for event in run.events {
        match &event.what {
            What::Said(line) if line.contains(" waits to resume") => {
                waiting.insert(first_word(line), event.at);
            }
            What::Said(line)
                if [" resumed at", " starts anew", "failed"]
                    .iter()
                    .any(|answer| line.contains(answer)) =>
            {
                waiting.remove(first_word(line));
            }
            What::Exited { pod, .. } | What::Gone { pod, .. } => {
                waiting.remove(pod.as_str());
            }
            _ => (),
        }
    }
    // The latest proof is the deadline in the manifest, and 30 s.
    let longest = Duration::from_secs(120 + 30) + CLOSED_WITHIN;
    let stuck = waiting
        .into_iter()
        .filter(|(_, since)| since.saturating_add(longest).is_ok_and(|due| run.end > due));
    stuck.map(|(pod, _)| broken("L3", format!("{pod} still waits to resume"))).collect()
}

/// Pods that we ended: place in the chronicle, name, UID.
fn ended_by_us<'a>(run: &Run<'a>) -> impl Iterator<Item = (usize, &'a str, &'a str)> {
    run.events.iter().enumerate().filter_map(|(index, event)| match &event.what {
        What::Ending { pod, uid, by, .. } if by.starts_with(OURS) => {
            Some((index, pod.as_str(), uid.as_str()))
        }
        _ => None,
    })
}

fn is_save_of(event: &Event, uid: &str) -> bool {
    matches!(&event.what, What::Committed(commit) if commit.uid == uid && commit.kind != Kind::Claim)
}

fn is_end_of(event: &Event, uid: &str) -> bool {
    match &event.what {
        What::Exited { uid: ended, .. } | What::Gone { uid: ended, .. } => ended == uid,
        _ => false,
    }
}

fn records<'a>(run: &Run<'a>) -> impl Iterator<Item = &'a Value> {
    run.state.cluster.list(INTERRUPTION).map(AsRef::as_ref)
}

fn workloads(record: &Value) -> impl Iterator<Item = (&String, &Value)> {
    record.pointer("/status/workloads").and_then(Value::as_object).into_iter().flatten()
}

/// What the records say of a pod, with the record.
fn recorded<'a>(run: &Run<'a>, uid: &str) -> Option<(&'a Value, &'a Value)> {
    records(run).find_map(|record| {
        let (_, workload) = workloads(record).find(|(known, _)| *known == uid)?;
        Some((record, workload))
    })
}

fn reason(run: &Run<'_>, uid: &str) -> Option<String> {
    let (_, workload) = recorded(run, uid)?;
    Some(object::text(workload, "/drain/reason").to_owned())
}

/// Whether the record says that the pod could not be saved: then it is ended like a saved one, and
/// counted as lost.
fn save_failed(run: &Run<'_>, uid: &str) -> bool {
    let failed = |workload: &Value| object::text(workload, "/save/state") == "Failed";
    recorded(run, uid).is_some_and(|(_, workload)| failed(workload))
        || reason(run, uid).as_deref() == Some("SaveFailed")
}

fn needs_a_manifest(run: &Run<'_>, uid: &str) -> bool {
    recorded(run, uid).is_some_and(|(_, workload)| {
        matches!(object::text(workload, "/mode"), "sdk" | "http" | "directory")
    })
}

fn node_of(run: &Run<'_>, uid: &str) -> Option<String> {
    recorded(run, uid).map(|(record, _)| object::text(record, "/spec/node").to_owned())
}

fn deadline_of(run: &Run<'_>, uid: &str) -> Option<Timestamp> {
    object::time(recorded(run, uid)?.0, "/status/deadline")
}

/// Other protected pods whose slice lies on the same GPU, as the record says.
fn sharers_of(run: &Run<'_>, uid: &str) -> Vec<String> {
    let Some((record, workload)) = recorded(run, uid) else { return Vec::new() };
    let gpu = gpu_of(object::text(workload, "/release/slice"));
    if gpu.is_empty() {
        return Vec::new();
    }
    workloads(record)
        .filter(|(other, workload)| {
            *other != uid && gpu_of(object::text(workload, "/release/slice")) == gpu
        })
        .map(|(other, _)| other.clone())
        .collect()
}

fn gpu_of(slice: &str) -> &str {
    slice.split("::").next().unwrap_or(slice)
}

fn left(deadline: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(at)).unwrap_or_default()
}

fn first_word(line: &str) -> &str {
    line.split(' ').next().unwrap_or(line)
}

/// The Job of a pod: its name without the part that the Job controller added.
fn job_of(pod: &str) -> &str {
    pod.rsplit_once('-').map_or(pod, |(job, _)| job)
}

/// All manifests in the bucket, by their keys.
fn manifests(state: &State) -> Vec<(String, Result<Manifest, String>)> {
    let keys = state.bucket.keys("");
    let manifests = keys.into_iter().filter(|key| key.ends_with("/MANIFEST.json"));
    manifests
        .map(|key| {
            let bytes = state.bucket.read(&key).unwrap_or_default();
            let manifest = Manifest::parse(&bytes).map_err(|error| error.to_string());
            (key, manifest)
        })
        .collect()
}

//! Every request that Lifeboat itself sends, sent by Lifeboat's own code.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat::adapters::cluster::Cluster;
use lifeboat::adapters::cluster::MANAGER;
use lifeboat::adapters::cluster::REQUEST_MAX;
use lifeboat::adapters::cluster::Slots;
use lifeboat::adapters::cluster::checkpoints;
use lifeboat::adapters::cluster::claims;
use lifeboat::adapters::cluster::claims::ClaimRow;
use lifeboat::adapters::cluster::claims::NewClaim;
use lifeboat::adapters::cluster::events;
use lifeboat::adapters::cluster::events::About;
use lifeboat::adapters::cluster::events::Note;
use lifeboat::adapters::cluster::events::Tone;
use lifeboat::adapters::cluster::interruptions;
use lifeboat::adapters::cluster::interruptions::Subject;
use lifeboat::adapters::cluster::lease;
use lifeboat::adapters::cluster::lease::Seat;
use lifeboat::adapters::cluster::nodes;
use lifeboat::adapters::cluster::nodes::NodeRow;
use lifeboat::adapters::cluster::nodes::Ours;
use lifeboat::adapters::cluster::objects::Object;
use lifeboat::adapters::cluster::overlays;
use lifeboat::adapters::cluster::pods;
use lifeboat::adapters::cluster::pods::PodRow;
use lifeboat::adapters::cluster::pools;
use lifeboat::adapters::cluster::rows::Row;
use lifeboat::adapters::cluster::rows::Rows;
use lifeboat::adapters::cluster::rows::Selector;
use lifeboat::adapters::cluster::volumes;
use lifeboat::commands::pause;
use lifeboat::crd::node_interruption::Workload;
use lifeboat::crd::workload_checkpoint::Ended;
use lifeboat::crd::workload_checkpoint::Newest;
use lifeboat::crd::workload_checkpoint::Proof;
use lifeboat::error::Class;
use lifeboat::error::Classify;
use lifeboat_domain::signal::Action;
use lifeboat_domain::signal::Kind;
use lifeboat_domain::signal::Signal;
use lifeboat_domain::signal::Source;
use serde_json::Value;
use serde_json::json;
use tokio::task::JoinSet;

use crate::rules::rules;
use crate::rules::witness::NODES;
use crate::rules::witness::Witness;
use crate::rules::witness::node;

rules![
    a_node_is_fenced_and_the_fence_taken_back,
    a_node_without_taints_is_fenced,
    a_fence_keeps_what_others_set_meanwhile,
    a_cordon_of_others_stays,
    a_node_at_risk_is_marked_and_blocked,
    a_node_that_is_gone_is_no_error,
    a_pod_is_held_and_let_go,
    a_hold_of_others_stays,
    a_pod_is_evicted_with_its_grace,
    a_budget_is_told_from_other_refusals,
    a_pod_is_marked_and_deleted,
    a_pod_of_another_uid_is_gone,
    a_signal_is_recorded_once,
    a_signal_is_recorded_by_both_sides,
    the_status_is_written_by_both_sides,
    a_record_is_deleted_once,
    an_index_is_made_by_its_first_word,
    a_claim_is_made_once_and_deleted_once,
    a_claim_is_given_its_hour_once,
    the_lease_is_held_by_one,
    events_are_said_once,
    what_is_read_is_there_or_not,
    rows_follow_what_happens,
    rows_of_one_node_follow_what_happens,
    a_pause_is_set_and_taken_away,
];

fn cluster(witness: &Witness) -> Cluster {
    Cluster::first_aid(witness.client(), &Slots::new(64, 16))
}

fn noon() -> Timestamp {
    "2026-11-22T12:00:00.123456789Z".parse().unwrap()
}

/// What a call came to, in a word.
fn word<T: std::fmt::Debug, E: Classify>(answer: &Result<T, E>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(error) => {
            let class = match error.class() {
                Class::Transient => "transient",
                Class::Superseded => "superseded",
                Class::Permanent => "permanent",
            };
            format!("{} ({class})", error.label())
        }
    }
}

async fn node_row(witness: &Witness) -> NodeRow {
    let name = witness.own("gpu-1");
    nodes::read(&cluster(witness), &name, REQUEST_MAX).await.unwrap().unwrap()
}

async fn note_node(witness: &mut Witness) {
    let read = witness.read(&witness.node()).await;
    witness.note("taints", &read.body["spec"]["taints"]);
    witness.note("cordoned", &read.body["spec"]["unschedulable"]);
    witness.note("annotations", &read.body["metadata"]["annotations"]);
}

async fn with_own_node(witness: &Witness, annotations: Value) {
    let mut body = node(&witness.own("gpu-1"));
    body["metadata"]["annotations"] = annotations;
    body["spec"] = json!({
        "providerID": "aws:///us-east-2a/i-1",
        "taints": [{ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" }],
    });
    witness.create(NODES, &body).await;
}

async fn a_node_is_fenced_and_the_fence_taken_back(witness: &mut Witness) {
    with_own_node(witness, json!({ "a/b": "c" })).await;
    let cluster = cluster(witness);
    let row = node_row(witness).await;
    let told = nodes::fence(&cluster, &row, "interruption", noon()).await;
    witness.note("fenced", word(&told));
    note_node(witness).await;
    let fenced = node_row(witness).await;
    witness.note("as a row", format!("{:?}", fenced.fence()));
    let told = nodes::fence(&cluster, &row, "interruption", noon()).await;
    witness.note("fenced again, as it was known", word(&told));
    let told = nodes::fence(&cluster, &fenced, "interruption", noon()).await;
    witness.note("fenced again", word(&told));
    let told = nodes::take_back(&cluster, &fenced).await;
    witness.note("taken back", word(&told));
    note_node(witness).await;
}

async fn a_node_without_taints_is_fenced(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let bare = json!([{ "op": "remove", "path": "/spec/taints" }]);
    witness.json_patch(&witness.node(), &bare).await;
    let cluster = cluster(witness);
    let row = node_row(witness).await;
    let told = nodes::fence(&cluster, &row, "interruption", noon()).await;
    witness.note("fenced", word(&told));
    note_node(witness).await;
    let told = nodes::take_back_one(&cluster, &node_row(witness).await, Ours::Fence).await;
    witness.note("taken back", word(&told));
    note_node(witness).await;
}

async fn a_fence_keeps_what_others_set_meanwhile(witness: &mut Witness) {
    with_own_node(witness, Value::Null).await;
    let row = node_row(witness).await;
    let theirs = json!([
        { "key": "dedicated", "value": "gpu", "effect": "NoSchedule" },
        { "key": "karpenter.sh/disrupted", "effect": "NoSchedule" },
    ]);
    let patch = json!({
        "spec": { "taints": theirs }, "metadata": { "annotations": { "x": "y" } },
    });
    witness.merge_patch(&witness.node(), &patch).await;
    let told = nodes::fence(&cluster(witness), &row, "interruption", noon()).await;
    witness.note("fenced", word(&told));
    note_node(witness).await;
}

async fn a_cordon_of_others_stays(witness: &mut Witness) {
    with_own_node(witness, Value::Null).await;
    let cordon = json!({ "spec": { "unschedulable": true } });
    witness.merge_patch(&witness.node(), &cordon).await;
    let cluster = cluster(witness);
    let told = nodes::fence(&cluster, &node_row(witness).await, "interruption", noon()).await;
    witness.note("fenced", word(&told));
    note_node(witness).await;
    let told = nodes::take_back(&cluster, &node_row(witness).await).await;
    witness.note("taken back", word(&told));
    note_node(witness).await;
}

async fn a_node_at_risk_is_marked_and_blocked(witness: &mut Witness) {
    with_own_node(witness, Value::Null).await;
    let cluster = cluster(witness);
    let told = nodes::mark_at_risk(&cluster, &node_row(witness).await, noon()).await;
    witness.note("marked", word(&told));
    let told = nodes::mark_at_risk(&cluster, &node_row(witness).await, noon()).await;
    witness.note("marked again", word(&told));
    let told = nodes::block_disruption(&cluster, &node_row(witness).await).await;
    witness.note("blocked", word(&told));
    let told = nodes::block_disruption(&cluster, &node_row(witness).await).await;
    witness.note("blocked again", word(&told));
    note_node(witness).await;
    let told = nodes::take_back(&cluster, &node_row(witness).await).await;
    witness.note("taken back", word(&told));
    note_node(witness).await;
}

async fn a_node_that_is_gone_is_no_error(witness: &mut Witness) {
    with_own_node(witness, Value::Null).await;
    let row = node_row(witness).await;
    witness.delete(&witness.node(), json!({})).await;
    let told = nodes::fence(&cluster(witness), &row, "interruption", noon()).await;
    witness.note("gone", word(&told));
    with_own_node(witness, json!({ "x": "y" })).await;
    let told = nodes::fence(&cluster(witness), &row, "interruption", noon()).await;
    witness.note("another of its name", word(&told));
}

async fn pod_row(witness: &Witness, name: &str) -> PodRow {
    let body = witness.read(&witness.pod(name)).await.body;
    let object: Object<pods::Pods> = serde_json::from_value(body).unwrap();
    PodRow::read(&object).unwrap().1
}

async fn note_pod(witness: &mut Witness, name: &str) {
    let read = witness.read(&witness.pod(name)).await;
    let metadata = &read.body["metadata"];
    witness.note("annotations", &metadata["annotations"]);
    let going = metadata["deletionTimestamp"].is_string();
    let grace = &metadata["deletionGracePeriodSeconds"];
    witness.note("pod", format!("{} going {going}, grace {grace}", read.short()));
    let conditions = read.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for condition in conditions.iter().filter(|one| one["type"] == "DisruptionTarget") {
        witness.note("marked", format!("{} {}", condition["status"], condition["reason"]));
    }
}

async fn a_pod_is_held_and_let_go(witness: &mut Witness) {
    witness.running("a").await;
    let cluster = cluster(witness);
    let bare = pod_row(witness, "a").await;
    let told = pods::hold(&cluster, &bare, "i-1").await;
    witness.note("held", word(&told));
    note_pod(witness, "a").await;
    let told = pods::hold(&cluster, &bare, "i-1").await;
    witness.note("held again, as it was known", word(&told));
    let row = pod_row(witness, "a").await;
    let told = pods::unhold(&cluster, &row, "i-2").await;
    witness.note("let go for another", word(&told));
    note_pod(witness, "a").await;
    let told = pods::unhold(&cluster, &row, "i-1").await;
    witness.note("let go", word(&told));
    note_pod(witness, "a").await;
    let told = pods::unhold(&cluster, &row, "i-1").await;
    witness.note("let go again", word(&told));
    let told = pods::hold(&cluster, &pod_row(witness, "a").await, "i-1").await;
    witness.note("held after that", word(&told));
    note_pod(witness, "a").await;
}

async fn a_hold_of_others_stays(witness: &mut Witness) {
    witness.running("a").await;
    let bare = pod_row(witness, "a").await;
    let theirs =
        json!({ "metadata": { "annotations": { "karpenter.sh/do-not-disrupt": "true" } } });
    witness.merge_patch(&witness.pod("a"), &theirs).await;
    let told = pods::hold(&cluster(witness), &bare, "i-1").await;
    witness.note("held", word(&told));
    let told = pods::unhold(&cluster(witness), &bare, "i-1").await;
    witness.note("let go", word(&told));
    note_pod(witness, "a").await;
}

const BOUND: Duration = Duration::from_secs(2);

async fn a_pod_is_evicted_with_its_grace(witness: &mut Witness) {
    witness.running("a").await;
    let cluster = cluster(witness);
    let row = pod_row(witness, "a").await;
    let told = pods::evict(&cluster, &row, Duration::from_millis(14_200), BOUND).await;
    witness.note("evicted", word(&told));
    note_pod(witness, "a").await;
    let told = pods::evict(&cluster, &row, Duration::from_secs(5), BOUND).await;
    witness.note("evicted again", word(&told));
    note_pod(witness, "a").await;
    witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 0 })).await;
    let told = pods::evict(&cluster, &row, Duration::from_secs(5), BOUND).await;
    witness.note("gone", word(&told));
}

async fn a_budget_is_told_from_other_refusals(witness: &mut Witness) {
    let budgets = witness.here_of("policy/v1", "poddisruptionbudgets");
    let budget = |name: &str| {
        json!({
            "metadata": { "name": name },
            "spec": { "maxUnavailable": 0, "selector": { "matchLabels": { "app": "a" } } },
        })
    };
    witness.create(&budgets, &budget("keep")).await;
    witness.running("a").await;
    let cluster = cluster(witness);
    let row = pod_row(witness, "a").await;
    let told = pods::evict(&cluster, &row, Duration::from_secs(15), BOUND).await;
    witness.note("not looked at yet", word(&told));
    let status = json!({ "status": {
        "observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1,
        "desiredHealthy": 1, "expectedPods": 1,
    } });
    witness.merge_patch(&format!("{budgets}/keep/status"), &status).await;
    let told = pods::evict(&cluster, &row, Duration::from_secs(15), BOUND).await;
    witness.note("full", word(&told));
    witness.create(&budgets, &budget("keep-too")).await;
    let told = pods::evict(&cluster, &row, Duration::from_secs(15), BOUND).await;
    witness.note("two of them", word(&told));
}

async fn a_pod_is_marked_and_deleted(witness: &mut Witness) {
    witness.running("a").await;
    let cluster = cluster(witness);
    let row = pod_row(witness, "a").await;
    let told = pods::mark_disruption_target(&cluster, &row, noon()).await;
    witness.note("marked", word(&told));
    let told = pods::delete(&cluster, &row, Duration::from_secs(15), BOUND).await;
    witness.note("deleted", word(&told));
    note_pod(witness, "a").await;
    witness.create(&witness.here("pods"), &crate::rules::witness::pod("b")).await;
    let row = pod_row(witness, "b").await;
    witness.note("conditions known", format!("{:?}", row.disruption_target));
    let told = pods::mark_disruption_target(&cluster, &row, noon()).await;
    witness.note("marked without any before", word(&told));
    let told = pods::mark_disruption_target(&cluster, &pod_row(witness, "b").await, noon()).await;
    witness.note("marked again", word(&told));
    note_pod(witness, "b").await;
}

async fn a_pod_of_another_uid_is_gone(witness: &mut Witness) {
    witness.running("a").await;
    let cluster = cluster(witness);
    let row = PodRow {
        uid: "00000000-0000-4000-8000-000000000000".to_owned(),
        ..pod_row(witness, "a").await
    };
    let told = pods::hold(&cluster, &row, "i-1").await;
    witness.note("held", word(&told));
    let told = pods::mark_disruption_target(&cluster, &row, noon()).await;
    witness.note("marked", word(&told));
    let told = pods::evict(&cluster, &row, Duration::from_secs(15), BOUND).await;
    witness.note("evicted", word(&told));
    let told = pods::delete(&cluster, &row, Duration::from_secs(15), BOUND).await;
    witness.note("deleted", word(&told));
    let told = pods::read(&cluster, &row, BOUND).await;
    witness.note("read", told.is_ok_and(|row| row.is_none()));
    note_pod(witness, "a").await;
}

fn signal(source: Source, second: i64) -> Signal {
    let time = Timestamp::from_second(1_795_348_800 + second).unwrap();
    Signal {
        source,
        kind: Kind::SpotInterruption { action: Action::Terminate },
        time,
        named: None,
        heard_at: time,
        heard_by: format!("controller-{second}"),
        detail: None,
    }
}

/// An instance id of this rule's own.
fn subject(witness: &Witness) -> Subject {
    let hash = blake3::hash(witness.namespace().as_bytes()).to_hex();
    Subject {
        instance: format!("i-{}", &hash[..17]).parse().unwrap(),
        node: "gpu-1".to_owned(),
        zone: "us-east-2a".to_owned(),
        instance_type: Some("g5.12xlarge".to_owned()),
    }
}

fn record_path(witness: &Witness) -> String {
    format!("/apis/lifeboat.dev/v1alpha1/nodeinterruptions/{}", subject(witness).instance)
}

async fn note_record(witness: &mut Witness) {
    let read = witness.read(&record_path(witness)).await;
    let signals = read.body["spec"]["signals"].as_object().cloned().unwrap_or_default();
    for (key, signal) in signals {
        witness.note(&key, &signal["heardBy"]);
    }
    let entries = read.body["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let mut owners: Vec<String> =
        entries.iter().map(|entry| entry["manager"].to_string()).collect();
    owners.sort();
    witness.note("owners", owners.join(" "));
}

async fn a_signal_is_recorded_once(witness: &mut Witness) {
    let (cluster, subject) = (cluster(witness), subject(witness));
    for second in [0, 1] {
        let signal = signal(Source::Queue, second);
        let told = interruptions::record(&cluster, &subject, &signal, "controller").await;
        witness.note("told", word(&told));
        note_record(witness).await;
    }
}

async fn a_signal_is_recorded_by_both_sides(witness: &mut Witness) {
    let (cluster, subject) = (cluster(witness), subject(witness));
    let told = interruptions::record(&cluster, &subject, &signal(Source::Imds, 0), "agent").await;
    witness.note("agent", word(&told));
    let told =
        interruptions::record(&cluster, &subject, &signal(Source::Queue, 1), "controller").await;
    witness.note("controller", word(&told));
    let told =
        interruptions::record(&cluster, &subject, &signal(Source::Imds, 2), "controller").await;
    witness.note("the agent's word from the controller", word(&told));
    let unknown = Subject { zone: String::new(), instance_type: None, ..subject };
    let told = interruptions::record(&cluster, &unknown, &signal(Source::Queue, 3), "agent").await;
    witness.note("a zone that was not known", word(&told));
    note_record(witness).await;
}

async fn the_status_is_written_by_both_sides(witness: &mut Witness) {
    let (cluster, subject) = (cluster(witness), subject(witness));
    let instance = &subject.instance;
    let part = |part: Value| -> Workload {
        let mut whole = json!({ "namespace": "ml", "pod": "train-0" });
        whole.as_object_mut().unwrap().extend(part.as_object().cloned().unwrap());
        serde_json::from_value(whole).unwrap()
    };
    let save =
        |state: &str| part(json!({ "jobKey": "train", "mode": "sdk", "save": { "state": state } }));
    let told =
        interruptions::apply_workload(&cluster, instance, "agent", ("u1", &save("Asked"))).await;
    witness.note("no record yet", word(&told));
    drop(interruptions::record(&cluster, &subject, &signal(Source::Queue, 0), "controller").await);
    let drain = part(json!({ "drain": {
        "decided": "2026-11-22T12:00:00Z", "by": "Evict", "reason": "Durable", "grace": 15,
    } }));
    let words = [
        ("agent", "u1", save("Saving")),
        ("agent", "u2", save("Asked")),
        ("controller", "u1", drain),
        ("agent", "u1", save("Durable")),
    ];
    for (by, uid, workload) in words {
        let told = interruptions::apply_workload(&cluster, instance, by, (uid, &workload)).await;
        witness.note(by, word(&told));
    }
    for status in [
        json!({ "phase": "Draining", "fence": { "at": "2026-11-22T12:00:00Z", "kind": "interruption" },
            "holds": { "u1": "2026-11-22T12:00:00Z" } }),
        json!({ "phase": "Released", "closedAt": "2026-11-22T12:01:00Z" }),
    ] {
        let told = interruptions::apply_status(&cluster, instance, MANAGER, status).await;
        witness.note("whole", word(&told));
    }
    let read = witness.read(&record_path(witness)).await;
    witness.note("status", &read.body["status"]);
    note_record(witness).await;
}

async fn a_record_is_deleted_once(witness: &mut Witness) {
    let (cluster, subject) = (cluster(witness), subject(witness));
    drop(interruptions::record(&cluster, &subject, &signal(Source::Queue, 0), "controller").await);
    let row = interruptions::read(&cluster, &subject.instance, BOUND).await.unwrap().unwrap();
    for _ in 0..2 {
        witness.note("deleted", word(&interruptions::delete(&cluster, &row).await));
    }
    drop(interruptions::record(&cluster, &subject, &signal(Source::Queue, 0), "controller").await);
    witness.note("another of its name", word(&interruptions::delete(&cluster, &row).await));
    let read = interruptions::read(&cluster, &subject.instance, BOUND).await;
    witness.note("stays", read.is_ok_and(|row| row.is_some()));
}

async fn an_index_is_made_by_its_first_word(witness: &mut Witness) {
    let cluster = cluster(witness);
    let namespace = witness.namespace().to_owned();
    let index = (namespace.as_str(), "Train/0");
    let ended = Ended { epoch: Some(3), proof: Proof::Released, at: noon() };
    let told = checkpoints::record_ended(&cluster, index, "u1", &ended).await;
    witness.note("ended", word(&told));
    let newest = Newest {
        epoch: 3,
        step: Some(8412),
        bytes: 1 << 40,
        durable_at: noon(),
        pod_uid: "u1".to_owned(),
        node: "gpu-1".to_owned(),
        stall_milliseconds: None,
    };
    let told = checkpoints::record_newest(&cluster, index, "lifeboat-agent", (&newest, None)).await;
    witness.note("newest", word(&told));
    let save =
        serde_json::from_value(json!({ "state": "Saving", "toldAt": "2026-11-22T12:00:00Z" }));
    let save = ("u2", &save.unwrap());
    let told = checkpoints::record_save(&cluster, index, "lifeboat-agent-u2", save).await;
    witness.note("save", word(&told));
    let told = checkpoints::record_ended(&cluster, index, "u2", &ended).await;
    witness.note("ended too", word(&told));
    let finished = (&newest, Some(true));
    let told = checkpoints::record_newest(&cluster, index, "lifeboat-agent", finished).await;
    witness.note("finished", word(&told));
    let told = checkpoints::read(&cluster, index.0, index.1, BOUND).await.unwrap().unwrap();
    witness.note("read", format!("{:?}", told.status));
}

fn new_claim(witness: &Witness) -> NewClaim {
    let spec = crate::rules::witness::claim("c")["spec"].clone();
    let labels = BTreeMap::from([("karpenter.sh/nodepool".to_owned(), "gpu".to_owned())]);
    NewClaim { name: witness.own("i-1-1"), replaces: "i-1".to_owned(), labels, spec }
}

async fn claim_row(witness: &Witness) -> ClaimRow {
    let name = witness.own("i-1-1");
    claims::read(&cluster(witness), &name, BOUND).await.unwrap().unwrap()
}

async fn a_claim_is_made_once_and_deleted_once(witness: &mut Witness) {
    let (cluster, claim) = (cluster(witness), new_claim(witness));
    for _ in 0..2 {
        witness.note("made", word(&claims::create(&cluster, &claim).await));
    }
    let row = claim_row(witness).await;
    witness.note("replaces", format!("{:?}", row.replaces));
    witness.note("kept", row.is_kept());
    witness.note("let go", word(&claims::unblock(&cluster, &row).await));
    witness.note("kept", claim_row(witness).await.is_kept());
    for _ in 0..2 {
        witness.note("deleted", word(&claims::delete(&cluster, &row).await));
    }
    witness.note("let go when gone", word(&claims::unblock(&cluster, &row).await));
    let told = claims::read(&cluster, &row.name, BOUND).await;
    witness.note("gone", told.is_ok_and(|row| row.is_none()));
}

async fn a_claim_is_given_its_hour_once(witness: &mut Witness) {
    let (cluster, claim) = (cluster(witness), new_claim(witness));
    drop(claims::create(&cluster, &claim).await);
    let row = claim_row(witness).await;
    let later = noon() + jiff::SignedDuration::from_secs(60);
    let told = claims::set_termination_time(&cluster, &row, noon()).await;
    witness.note("set", word(&told));
    let told = claims::set_termination_time(&cluster, &row, later).await;
    witness.note("set again, as it was known", word(&told));
    let path = format!("{}/{}", crate::rules::witness::CLAIMS, row.name);
    let read = witness.read(&path).await;
    witness.note("annotations", &read.body["metadata"]["annotations"]);
    let bare = json!({ "metadata": { "annotations": null } });
    witness.merge_patch(&path, &bare).await;
    let told = claims::set_termination_time(&cluster, &claim_row(witness).await, later).await;
    witness.note("on one without any", word(&told));
    let read = witness.read(&path).await;
    witness.note("annotations", &read.body["metadata"]["annotations"]);
}

async fn the_lease_is_held_by_one(witness: &mut Witness) {
    let cluster = cluster(witness);
    let seat = |identity: &str| Seat {
        namespace: witness.namespace().to_owned(),
        name: "lifeboat-controller".to_owned(),
        identity: identity.to_owned(),
        duration: Duration::from_secs(15),
    };
    let (first, second) = (seat("a"), seat("b"));
    let none = lease::read(&cluster, &first, BOUND).await;
    witness.note("nobody's", none.is_ok_and(|held| held.is_none()));
    let held = lease::take(&cluster, &first, None, noon()).await.unwrap();
    witness.note("taken", format!("{} {}", held.holder, held.transitions));
    let told = lease::take(&cluster, &second, None, noon()).await;
    witness.note("made by another", word(&told.map(drop)));
    let renewed = lease::take(&cluster, &first, Some(&held), noon()).await.unwrap();
    witness.note("the same write", renewed.is_same_write(&held));
    let later = noon() + jiff::SignedDuration::from_secs(2);
    let renewed_again = lease::take(&cluster, &first, Some(&renewed), later).await.unwrap();
    witness.note("the same write", renewed_again.is_same_write(&renewed));
    let told = lease::take(&cluster, &second, Some(&held), noon()).await;
    witness.note("taken over an old word", word(&told.map(drop)));
    let read = lease::read(&cluster, &second, BOUND).await.unwrap().unwrap();
    let told = lease::take(&cluster, &second, Some(&read), later).await.unwrap();
    witness.note("taken over", format!("{} {}", told.holder, told.transitions));
    let told = lease::release(&cluster, &second, &told, later).await;
    witness.note("given back", word(&told));
    let read = lease::read(&cluster, &second, BOUND).await.unwrap().unwrap();
    witness.note("nobody's again", format!("{:?} {}", read.holder, read.transitions));
}

async fn events_are_said_once(witness: &mut Witness) {
    let cluster = cluster(witness);
    let about = |kind: &'static str, api_version: &'static str, namespace: &str| About {
        kind,
        api_version,
        namespace: namespace.to_owned(),
        name: witness.own("it"),
        uid: "u1".to_owned(),
    };
    let subjects = [
        about("Node", "v1", ""),
        about("Pod", "v1", witness.namespace()),
        about("NodeInterruption", "lifeboat.dev/v1alpha1", ""),
    ];
    for about in subjects {
        let kind = about.kind;
        let message = "saved with 82 s to spare".to_owned();
        let note = Note { about, warning: Tone::Warning, reason: "Saved", message };
        for _ in 0..2 {
            let told = events::create(&cluster, &note, noon()).await;
            witness.note(kind, word(&told));
        }
    }
}

async fn what_is_read_is_there_or_not(witness: &mut Witness) {
    let cluster = cluster(witness);
    let told = pools::read(&cluster, "nobodys", BOUND).await;
    witness.note("pool", word(&told.map(|pool| pool.is_some())));
    let told = overlays::list(&cluster, BOUND).await;
    witness.note("overlays", word(&told.map(|list| list.len())));
    let told = volumes::zones_of(&cluster, witness.namespace(), "nobodys", BOUND).await;
    witness.note("volume", word(&told));
    let told = nodes::read(&cluster, "nobodys", BOUND).await;
    witness.note("node", word(&told.map(|row| row.is_some())));
}

async fn rows_follow_what_happens(witness: &mut Witness) {
    witness.running("a").await;
    let seen = Followed::begin(witness, Selector::All).await;
    witness.running("b").await;
    until(|| seen.names().contains('b')).await;
    witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 0 })).await;
    until(|| !seen.names().contains('a')).await;
    seen.tell(witness);
}

async fn rows_of_one_node_follow_what_happens(witness: &mut Witness) {
    witness.running("a").await;
    let mut other = crate::rules::witness::pod("c");
    other["spec"]["nodeName"] = json!("gpu-2");
    witness.create(&witness.here("pods"), &other).await;
    let fields = format!("spec.nodeName=gpu-1,metadata.namespace={}", witness.namespace());
    let seen = Followed::begin(witness, Selector::Fields(fields)).await;
    witness.running("b").await;
    until(|| seen.names().contains('b')).await;
    seen.tell(witness);
}

/// The rows of a witness' own pods, followed until this is dropped.
pub(super) struct Followed {
    rows: Rows<PodRow>,
    namespace: String,
    first: String,
    _task: JoinSet<()>,
}

impl Followed {
    /// Begins, and returns when all is listed.
    pub(super) async fn begin(witness: &Witness, selector: Selector) -> Self {
        let (rows, cluster) = (Rows::default(), cluster(witness));
        let follows = rows.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            follows.follow((pods::api(&cluster), selector), "contract", |_| ()).await;
        });
        rows.synced().await;
        let namespace = witness.namespace().to_owned();
        let mut followed = Self { rows, namespace, first: String::new(), _task: task };
        followed.first = followed.names();
        followed
    }

    /// The names of the pods now.
    pub(super) fn names(&self) -> String {
        let mine = |row: &PodRow| (row.namespace == self.namespace).then(|| row.name.clone());
        let mut names = self.rows.select(mine);
        names.sort();
        format!("{names:?}")
    }

    /// Notes the names at first and now.
    pub(super) fn tell(&self, witness: &mut Witness) {
        witness.note("rows", self.first.clone());
        witness.note("rows", self.names());
    }
}

/// Returns once something is so, or after ten seconds.
pub(super) async fn until(mut look: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if look() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn a_pause_is_set_and_taken_away(witness: &mut Witness) {
    with_own_node(witness, Value::Null).await;
    let client = witness.client();
    let targets = [
        pause::Target::Node(witness.own("gpu-1")),
        pause::Target::Namespace(witness.namespace().to_owned()),
        pause::Target::Node("nobodys".to_owned()),
    ];
    for target in targets {
        for wish in [pause::Wish::Pause, pause::Wish::Resume] {
            let told = pause::set(&client, &target, wish).await;
            witness.note("said", told.unwrap_or_else(|error| error.to_string()).trim());
        }
    }
    note_node(witness).await;
}

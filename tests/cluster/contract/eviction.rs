//! Eviction: with grace, of one UID, under budgets.

use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::Answer;
use crate::rules::witness::Witness;
use crate::rules::witness::pod;

rules![
    an_eviction_is_answered_with_201,
    an_eviction_gives_its_own_grace,
    an_eviction_marks_its_pod,
    an_eviction_of_another_uid_is_refused,
    an_eviction_of_what_is_not_there_is_not_found,
    an_eviction_needs_a_body_of_its_kind,
    a_pod_that_is_going_is_evicted_again,
    a_second_eviction_shortens_the_grace,
    a_pending_pod_is_evicted_whatever_the_budget,
    an_ended_pod_is_evicted_whatever_the_budget,
    a_budget_that_allows_nothing_answers_429,
    a_budget_that_is_not_looked_at_yet_answers_429,
    a_budget_is_spent_by_an_eviction,
    a_budget_of_others_does_not_count,
    two_budgets_answer_500,
    an_unready_pod_asks_a_budget_that_is_met_for_nothing,
    an_unready_pod_may_always_go_where_that_is_said,
    a_pod_that_is_going_asks_no_budget,
    an_eviction_may_name_the_version,
];

fn note_pod(witness: &mut Witness, what: &str, answer: &Answer) {
    let metadata = &answer.body["metadata"];
    let going = metadata["deletionTimestamp"].is_string();
    let grace = &metadata["deletionGracePeriodSeconds"];
    witness.note(what, format!("{} going {going}, grace {grace}", answer.short()));
}

async fn an_eviction_is_answered_with_201(witness: &mut Witness) {
    witness.running("a").await;
    let told = witness.evict("a", json!({})).await;
    witness.note("told", told.code);
    witness.note("body", told.body);
    let read = witness.read(&witness.pod("a")).await;
    note_pod(witness, "then", &read);
}

async fn an_eviction_gives_its_own_grace(witness: &mut Witness) {
    for (name, grace) in [("a", 15), ("b", 600), ("c", 0)] {
        witness.running(name).await;
        let told = witness.evict(name, json!({ "gracePeriodSeconds": grace })).await;
        witness.note("told", told.short());
        let read = witness.read(&witness.pod(name)).await;
        note_pod(witness, "then", &read);
    }
    witness.running("d").await;
    let body = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "d" },
        "delete_options": { "gracePeriodSeconds": 15 },
    });
    witness.create(&witness.here("pods/d/eviction"), &body).await;
    let read = witness.read(&witness.pod("d")).await;
    note_pod(witness, "under another key", &read);
}

async fn an_eviction_marks_its_pod(witness: &mut Witness) {
    witness.running("a").await;
    witness.evict("a", json!({})).await;
    let read = witness.read(&witness.pod("a")).await;
    let conditions = read.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for condition in conditions {
        let part = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        let told =
            format!("{} {} {} {}", part("type"), part("status"), part("reason"), part("message"));
        witness.note("condition", told.trim_end());
    }
    witness.note("generation", &read.body["metadata"]["generation"]);
    let entries = read.body["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let mut owners = Vec::new();
    for entry in entries {
        let part = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        owners.push(format!("{} {} {}", part("manager"), part("operation"), part("subresource")));
    }
    owners.sort();
    witness.note("owners", owners.join(", "));
    witness.running("b").await;
    witness.delete(&witness.pod("b"), json!({})).await;
    witness.evict("b", json!({})).await;
    let read = witness.read(&witness.pod("b")).await;
    let count = read.body["status"]["conditions"].as_array().map_or(0, Vec::len);
    witness.note("conditions of one that was going", count);
}

const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

async fn an_eviction_of_another_uid_is_refused(witness: &mut Witness) {
    let made = witness.running("a").await;
    let options = |uid: &str| json!({ "preconditions": { "uid": uid } });
    let told = witness.evict("a", options(NOBODY)).await;
    witness.note("another", told);
    let read = witness.read(&witness.pod("a")).await;
    note_pod(witness, "then", &read);
    let count = read.body["status"]["conditions"].as_array().map_or(0, Vec::len);
    witness.note("conditions", count);
    let told = witness.evict("a", options(made.uid())).await;
    witness.note("its own", told.short());
}

async fn an_eviction_of_what_is_not_there_is_not_found(witness: &mut Witness) {
    let told = witness.evict("a", json!({})).await;
    witness.note("told", told);
}

async fn an_eviction_needs_a_body_of_its_kind(witness: &mut Witness) {
    witness.running("a").await;
    let path = witness.here("pods/a/eviction");
    let bodies = [
        (
            "another name",
            json!({
                "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "b" },
            }),
        ),
        (
            "an old version",
            json!({
                "apiVersion": "policy/v1beta9", "kind": "Eviction", "metadata": { "name": "a" },
            }),
        ),
        (
            "another kind",
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" },
            }),
        ),
    ];
    for (what, body) in bodies {
        let told = witness.create(&path, &body).await;
        witness.note(what, told.code);
    }
    let body = json!({ "metadata": { "name": "a" } });
    let told = witness.create(&path, &body).await;
    witness.note("no kind", told.short());
}

async fn a_pod_that_is_going_is_evicted_again(witness: &mut Witness) {
    witness.running("a").await;
    witness.evict("a", json!({})).await;
    let first = witness.read(&witness.pod("a")).await;
    let told = witness.evict("a", json!({})).await;
    witness.note("told", told.short());
    let second = witness.read(&witness.pod("a")).await;
    witness.note("same version", first.version() == second.version());
}

async fn a_second_eviction_shortens_the_grace(witness: &mut Witness) {
    witness.running("a").await;
    for grace in [40, 15, 30] {
        witness.evict("a", json!({ "gracePeriodSeconds": grace })).await;
        let read = witness.read(&witness.pod("a")).await;
        note_pod(witness, "then", &read);
    }
    witness.running("b").await;
    witness.evict("b", json!({ "gracePeriodSeconds": 40 })).await;
    let told = witness.delete(&witness.pod("b"), json!({ "gracePeriodSeconds": 5 })).await;
    note_pod(witness, "deleted", &told);
}

async fn with_budget(witness: &Witness, name: &str, app: &str, status: &Value) -> Answer {
    let budgets = witness.here_of("policy/v1", "poddisruptionbudgets");
    let budget = json!({
        "metadata": { "name": name },
        "spec": { "maxUnavailable": 0, "selector": { "matchLabels": { "app": app } } },
    });
    witness.create(&budgets, &budget).await;
    let mut whole = json!({
        "observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1,
        "expectedPods": 1,
    });
    for (key, value) in status.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    let patch = json!({ "status": whole });
    witness.merge_patch(&format!("{budgets}/{name}/status"), &patch).await
}

async fn a_pending_pod_is_evicted_whatever_the_budget(witness: &mut Witness) {
    with_budget(witness, "keep", "a", &json!({})).await;
    witness.create(&witness.here("pods"), &pod("a")).await;
    let told = witness.evict("a", json!({ "gracePeriodSeconds": 15 })).await;
    witness.note("told", told.short());
    let read = witness.read(&witness.pod("a")).await;
    note_pod(witness, "then", &read);
}

async fn an_ended_pod_is_evicted_whatever_the_budget(witness: &mut Witness) {
    for phase in ["Succeeded", "Failed"] {
        let name = phase.to_lowercase();
        with_budget(witness, &name, &name, &json!({})).await;
        witness.running(&name).await;
        let status = json!({ "status": { "phase": phase } });
        witness.merge_patch(&witness.here(&format!("pods/{name}/status")), &status).await;
        let told = witness.evict(&name, json!({ "gracePeriodSeconds": 15 })).await;
        witness.note(phase, told.short());
        let read = witness.read(&witness.pod(&name)).await;
        note_pod(witness, "then", &read);
    }
}

async fn a_budget_that_allows_nothing_answers_429(witness: &mut Witness) {
    with_budget(witness, "keep", "a", &json!({})).await;
    witness.running("a").await;
    let told = witness.evict("a", json!({ "gracePeriodSeconds": 15 })).await;
    witness.note("told", &told);
    witness.note("details", &told.body["details"]);
    let after = told.headers.get("retry-after").and_then(|value| value.to_str().ok());
    witness.note("retry after", after.unwrap_or("nothing"));
    let read = witness.read(&witness.pod("a")).await;
    note_pod(witness, "then", &read);
    let count = read.body["status"]["conditions"].as_array().map_or(0, Vec::len);
    witness.note("conditions", count);
    let told = witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 15 })).await;
    note_pod(witness, "deleted past it", &told);
}

async fn a_budget_that_is_not_looked_at_yet_answers_429(witness: &mut Witness) {
    let stale = json!({ "observedGeneration": 0, "disruptionsAllowed": 1 });
    with_budget(witness, "keep", "a", &stale).await;
    witness.running("a").await;
    let told = witness.evict("a", json!({})).await;
    witness.note("told", &told);
    witness.note("details", &told.body["details"]);
    let after = told.headers.get("retry-after").and_then(|value| value.to_str().ok());
    witness.note("retry after", after.unwrap_or("nothing"));
}

async fn a_budget_is_spent_by_an_eviction(witness: &mut Witness) {
    let one = json!({ "disruptionsAllowed": 1, "currentHealthy": 2 });
    with_budget(witness, "keep", "a", &one).await;
    witness.running("a").await;
    let mut second = pod("b");
    second["metadata"]["labels"]["app"] = json!("a");
    witness.create(&witness.here("pods"), &second).await;
    let ready = json!({ "type": "Ready", "status": "True" });
    let status = json!({ "status": { "phase": "Running", "conditions": [ready] } });
    witness.merge_patch(&witness.here("pods/b/status"), &status).await;
    let told = witness.evict("a", json!({})).await;
    witness.note("first", told.short());
    let path = witness.here_of("policy/v1", "poddisruptionbudgets/keep");
    let budget = witness.read(&path).await;
    witness.note("left", &budget.body["status"]["disruptionsAllowed"]);
    let disrupted = budget.body["status"]["disruptedPods"].as_object();
    let names: Vec<&String> = disrupted.into_iter().flat_map(serde_json::Map::keys).collect();
    witness.note("disrupted", format!("{names:?}"));
    let told = witness.evict("b", json!({})).await;
    witness.note("second", told.short());
    let told = witness.evict("a", json!({})).await;
    witness.note("first again", told.short());
}

async fn a_budget_of_others_does_not_count(witness: &mut Witness) {
    with_budget(witness, "keep", "others", &json!({})).await;
    witness.running("a").await;
    let told = witness.evict("a", json!({})).await;
    witness.note("told", told.short());
}

async fn two_budgets_answer_500(witness: &mut Witness) {
    for name in ["keep", "keep-too"] {
        with_budget(witness, name, "a", &json!({ "disruptionsAllowed": 1 })).await;
    }
    witness.running("a").await;
    let told = witness.evict("a", json!({})).await;
    witness.note("told", told);
    let read = witness.read(&witness.pod("a")).await;
    note_pod(witness, "then", &read);
}

async fn unready(witness: &Witness, name: &str) {
    witness.create(&witness.here("pods"), &pod(name)).await;
    let ready = json!({ "type": "Ready", "status": "False" });
    let status = json!({ "status": { "phase": "Running", "conditions": [ready] } });
    witness.merge_patch(&witness.here(&format!("pods/{name}/status")), &status).await;
}

async fn an_unready_pod_asks_a_budget_that_is_met_for_nothing(witness: &mut Witness) {
    let cases = [
        ("met", json!({ "currentHealthy": 1, "desiredHealthy": 1 })),
        ("missed", json!({ "currentHealthy": 0, "desiredHealthy": 1 })),
        ("wanting-none", json!({ "currentHealthy": 0, "desiredHealthy": 0 })),
    ];
    for (name, status) in cases {
        with_budget(witness, name, name, &status).await;
        unready(witness, name).await;
        let told = witness.evict(name, json!({})).await;
        witness.note(name, told.short());
    }
}

async fn an_unready_pod_may_always_go_where_that_is_said(witness: &mut Witness) {
    with_budget(witness, "keep", "a", &json!({ "currentHealthy": 0 })).await;
    let path = witness.here_of("policy/v1", "poddisruptionbudgets/keep");
    let always = json!({ "spec": { "unhealthyPodEvictionPolicy": "AlwaysAllow" } });
    witness.merge_patch(&path, &always).await;
    let looked = json!({ "status": { "observedGeneration": 2 } });
    witness.merge_patch(&format!("{path}/status"), &looked).await;
    unready(witness, "a").await;
    let told = witness.evict("a", json!({})).await;
    witness.note("told", told.short());
}

async fn a_pod_that_is_going_asks_no_budget(witness: &mut Witness) {
    with_budget(witness, "keep", "a", &json!({})).await;
    witness.running("a").await;
    witness.delete(&witness.pod("a"), json!({})).await;
    let told = witness.evict("a", json!({ "gracePeriodSeconds": 15 })).await;
    witness.note("told", told.short());
    let read = witness.read(&witness.pod("a")).await;
    note_pod(witness, "then", &read);
}

async fn an_eviction_may_name_the_version(witness: &mut Witness) {
    let made = witness.running("a").await;
    let label = json!({ "metadata": { "labels": { "x": "y" } } });
    let newer = witness.merge_patch(&witness.pod("a"), &label).await;
    let options = |version: &str| json!({ "preconditions": { "resourceVersion": version } });
    let told = witness.evict("a", options(made.version())).await;
    witness.note("an old one", told.short());
    let told = witness.evict("a", options(newer.version())).await;
    witness.note("the newest", told.short());
}

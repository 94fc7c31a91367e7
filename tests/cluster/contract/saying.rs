//! What the server says of itself and for us: kinds, health, access, events.

use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::Answer;
use crate::rules::witness::Witness;

rules![
    the_server_tells_its_version_and_health,
    the_server_tells_its_kinds,
    an_access_review_is_answered,
    a_verb_that_a_path_has_not_is_not_allowed,
    an_event_is_made_where_its_subject_is,
    an_event_about_a_node_is_made_in_default,
    an_event_of_its_own_group_needs_more,
    a_refusal_is_a_status,
];

async fn the_server_tells_its_version_and_health(witness: &mut Witness) {
    let told = witness.read("/version").await;
    witness.note("major", &told.body["major"]);
    witness.note("minor", &told.body["minor"]);
    for path in ["/readyz", "/livez", "/healthz"] {
        let told = witness.read(path).await;
        witness.note(path, format!("{} {}", told.code, told.body));
    }
}

async fn the_server_tells_its_kinds(witness: &mut Witness) {
    let told = witness.read("/apis").await;
    let groups = told.body["groups"].as_array().cloned().unwrap_or_default();
    for name in ["lifeboat.dev", "karpenter.sh", "policy", "coordination.k8s.io", "batch"] {
        let group = groups.iter().find(|group| group["name"] == name);
        let preferred = group.map(|group| group["preferredVersion"]["groupVersion"].to_string());
        witness.note(name, preferred.unwrap_or_default());
    }
    let told = witness.read("/apis/lifeboat.dev").await;
    witness.note("one group", &told.body["kind"]);
    let told = witness.read("/apis/lifeboat.dev/v1alpha1").await;
    witness.note("kinds", &told.body["kind"]);
    let mut kinds = told.body["resources"].as_array().cloned().unwrap_or_default();
    kinds.sort_by_key(|kind| kind["name"].to_string());
    for kind in kinds {
        let told = format!("{} {} {}", kind["kind"], kind["namespaced"], kind["singularName"]);
        witness.note(kind["name"].as_str().unwrap_or_default(), told);
    }
    let told = witness.read("/api").await;
    witness.note("core", &told.body["versions"]);
}

async fn an_access_review_is_answered(witness: &mut Witness) {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": { "verb": "patch", "resource": "nodes" } },
    });
    let told =
        witness.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await;
    witness.note("told", told.code);
    witness.note("allowed", &told.body["status"]["allowed"]);
}

async fn a_verb_that_a_path_has_not_is_not_allowed(witness: &mut Witness) {
    let told = witness.create(&witness.node(), &json!({})).await;
    witness.note("create at a name", told.short());
    let told = witness.replace("/api/v1/nodes", &json!({})).await;
    witness.note("replace a collection", told.short());
    let told = witness.merge_patch(&witness.here("pods"), &json!({})).await;
    witness.note("patch a collection", told.short());
}

fn event(witness: &Witness, name: &str, about: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "name": witness.own(name) }, "involvedObject": about,
        "type": "Normal", "reason": "Interrupted", "message": "so it is",
        "source": { "component": "lifeboat-controller" },
        "reportingComponent": "lifeboat-controller", "reportingInstance": "",
        "firstTimestamp": "2026-11-22T12:00:00.123456789Z",
        "lastTimestamp": "2026-11-22T12:00:00Z", "count": 1,
    })
}

fn note(witness: &mut Witness, what: &str, answer: &Answer) {
    witness.note(what, answer.short());
}

async fn an_event_is_made_where_its_subject_is(witness: &mut Witness) {
    let about = json!({
        "apiVersion": "v1", "kind": "Pod", "namespace": witness.namespace(), "name": "a",
        "uid": "u1",
    });
    let here = witness.here("events");
    let body = event(witness, "e-1", &about);
    let told = witness.create(&here, &body).await;
    note(witness, "here", &told);
    witness.note("first", &told.body["firstTimestamp"]);
    let told = witness.create(&here, &body).await;
    note(witness, "again", &told);
    let told = witness.create("/api/v1/namespaces/default/events", &body).await;
    note(witness, "elsewhere", &told);
    let path = witness.here("events?fieldSelector=involvedObject.name%3Da");
    let list = witness.read(&path).await;
    witness.note("found", list.body["items"].as_array().map_or(0, Vec::len));
    let own = json!({ "metadata": { "generateName": "e-" }, "reason": "Interrupted",
        "involvedObject": { "kind": "Pod", "name": "b", "namespace": witness.namespace() } });
    let told = witness.create(&here, &own).await;
    note(witness, "with less", &told);
}

async fn an_event_about_a_node_is_made_in_default(witness: &mut Witness) {
    let about = json!({
        "apiVersion": "v1", "kind": "Node", "namespace": "", "name": witness.own("gpu-1"),
        "uid": "u1",
    });
    let body = event(witness, "e-1", &about);
    let told = witness.create("/api/v1/namespaces/default/events", &body).await;
    note(witness, "default", &told);
    let body = event(witness, "e-2", &about);
    let told = witness.create(&witness.here("events"), &body).await;
    note(witness, "elsewhere", &told);
}

async fn an_event_of_its_own_group_needs_more(witness: &mut Witness) {
    let path = witness.here_of("events.k8s.io/v1", "events");
    let whole = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": { "name": "e-1" },
        "eventTime": "2026-11-22T12:00:00.123456Z", "action": "Fence", "reason": "Interrupted",
        "type": "Normal", "note": "so it is", "reportingController": "lifeboat.dev/controller",
        "reportingInstance": "controller-0",
        "regarding": { "kind": "Pod", "namespace": witness.namespace(), "name": "a" },
    });
    for without in ["eventTime", "action", "reason", "type", "reportingInstance"] {
        let mut body = whole.clone();
        body.as_object_mut().unwrap().remove(without);
        let told = witness.create(&path, &body).await;
        witness.note(without, told.code);
    }
    let told = witness.create(&path, &whole).await;
    note(witness, "whole", &told);
}

async fn a_refusal_is_a_status(witness: &mut Witness) {
    let told = witness.read(&witness.node()).await;
    witness.note("not found", &told.body);
    let made = witness.with_node(json!({})).await;
    let told = witness.create("/api/v1/nodes", &super::witness::node(&witness.own("gpu-1"))).await;
    witness.note("there already", &told.body);
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    witness.merge_patch(&witness.node(), &label).await;
    let told = witness.replace(&witness.node(), &made.body).await;
    witness.note("stale", &told.body);
}

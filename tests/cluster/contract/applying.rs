//! Server-side apply: who owns what, who is refused, and what goes when it is no longer said.

use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::Answer;
use crate::rules::witness::Witness;
use crate::rules::witness::interruption;
use crate::rules::witness::node;

rules![
    what_is_not_there_is_made_by_applying_it,
    what_is_applied_through_the_status_door_must_be_there,
    what_a_manager_no_longer_says_is_taken_away,
    what_two_say_stays_when_one_stops,
    another_value_is_a_conflict_unless_forced,
    the_same_value_is_no_conflict,
    what_was_set_by_others_means_is_owned_too,
    what_was_taken_by_force_is_not_taken_away,
    an_atomic_list_is_taken_over_whole,
    a_keyed_list_is_shared,
    items_of_a_keyed_list_go_with_their_manager,
    entries_of_a_map_have_owners_of_their_own,
    a_map_that_is_said_empty_is_kept,
    applying_the_same_again_makes_no_version,
    applying_less_than_is_required_is_refused,
    the_status_of_a_record_is_shared_by_its_writers,
    an_update_moves_what_it_changes,
    applying_needs_a_manager_and_a_kind,
    a_version_guards_an_apply,
    fields_of_the_other_door_are_left_aside,
];

fn note_owners(witness: &mut Witness, answer: &Answer) {
    let entries = answer.body["metadata"]["managedFields"].as_array().cloned();
    let mut owners: Vec<String> = Vec::new();
    let applied = |entry: &Value| entry["operation"] == "Apply";
    for entry in entries.unwrap_or_default().into_iter().filter(applied) {
        let part = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        owners.push(format!("{} {}", part("manager"), part("subresource")).trim_end().to_owned());
    }
    owners.sort();
    witness.note("owners", owners.join(", "));
}

async fn what_is_not_there_is_made_by_applying_it(witness: &mut Witness) {
    let body = interruption(&witness.own("i-1"));
    let path = witness.interruption();
    let made = witness.apply(&path, "agent", &body).await;
    witness.note("made", &made);
    witness.note("generation", &made.body["metadata"]["generation"]);
    note_owners(witness, &made);
    let again = witness.apply(&path, "agent", &body).await;
    witness.note("again", &again);
    witness.note("same version", made.version() == again.version());
    let mut nameless = body;
    nameless["metadata"] = json!({});
    let told = witness.apply(&path, "agent", &nameless).await;
    witness.note("without a name", told.short());
}

async fn what_is_applied_through_the_status_door_must_be_there(witness: &mut Witness) {
    let mut body = interruption(&witness.own("i-1"));
    body.as_object_mut().unwrap().remove("spec");
    body["status"] = json!({ "phase": "Saving" });
    let path = format!("{}/status", witness.interruption());
    let refused = witness.apply(&path, "agent", &body).await;
    witness.note("nothing there", refused);
}

fn labels(name: &str, labels: &Value) -> Value {
    let mut body = node(name);
    body["metadata"]["labels"] = labels.clone();
    body
}

async fn what_a_manager_no_longer_says_is_taken_away(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    witness.apply(&path, "a", &labels(&name, &json!({ "x": "1", "y": "2" }))).await;
    let done = witness.apply(&path, "a", &labels(&name, &json!({ "x": "1" }))).await;
    witness.note("labels", &done.body["metadata"]["labels"]);
    let done = witness.apply(&path, "a", &node(&name)).await;
    witness.note("labels", &done.body["metadata"]["labels"]);
    note_owners(witness, &done);
}

async fn what_two_say_stays_when_one_stops(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    for manager in ["a", "b"] {
        let done = witness.apply(&path, manager, &labels(&name, &json!({ "x": "1" }))).await;
        witness.note("applied", done);
    }
    for manager in ["a", "b"] {
        let done = witness.apply(&path, manager, &node(&name)).await;
        witness.note("labels", &done.body["metadata"]["labels"]);
    }
}

async fn another_value_is_a_conflict_unless_forced(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    witness.apply(&path, "a", &labels(&name, &json!({ "x": "1", "y": "1" }))).await;
    let blue = labels(&name, &json!({ "x": "2" }));
    let refused = witness.apply(&path, "b", &blue).await;
    witness.note("one", refused);
    let refused = witness.apply(&path, "b", &labels(&name, &json!({ "x": "2", "y": "2" }))).await;
    witness.note("two", refused);
    let done = witness.force(&path, "b", &blue).await;
    witness.note("forced", &done);
    witness.note("labels", &done.body["metadata"]["labels"]);
}

async fn the_same_value_is_no_conflict(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    let body = labels(&name, &json!({ "x": "1" }));
    witness.apply(&path, "a", &body).await;
    let done = witness.apply(&path, "b", &body).await;
    witness.note("second", &done);
    note_owners(witness, &done);
    let refused = witness.apply(&path, "a", &labels(&name, &json!({ "x": "2" }))).await;
    witness.note("moved while shared", refused);
}

async fn what_was_set_by_others_means_is_owned_too(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    witness.merge_patch(&path, &json!({ "metadata": { "labels": { "x": "1" } } })).await;
    let refused = witness.apply(&path, "a", &labels(&name, &json!({ "x": "2" }))).await;
    witness.note("refused", refused.short());
    let shared = witness.apply(&path, "a", &labels(&name, &json!({ "x": "1" }))).await;
    witness.note("shared", shared);
    let done = witness.apply(&path, "a", &node(&name)).await;
    witness.note("labels", &done.body["metadata"]["labels"]);
}

async fn what_was_taken_by_force_is_not_taken_away(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    witness.apply(&path, "a", &labels(&name, &json!({ "x": "1" }))).await;
    witness.force(&path, "b", &labels(&name, &json!({ "x": "2" }))).await;
    let done = witness.apply(&path, "a", &node(&name)).await;
    witness.note("labels", &done.body["metadata"]["labels"]);
    note_owners(witness, &done);
}

async fn an_atomic_list_is_taken_over_whole(witness: &mut Witness) {
    let theirs = json!({ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" });
    witness.with_node(json!({ "taints": [theirs] })).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    let mut body = node(&name);
    body["spec"] = json!({ "taints": [{ "key": "ours", "effect": "NoSchedule" }] });
    let refused = witness.apply(&path, "a", &body).await;
    witness.note("refused", refused);
    let done = witness.force(&path, "a", &body).await;
    witness.note("taints", &done.body["spec"]["taints"]);
    let done = witness.apply(&path, "a", &node(&name)).await;
    witness.note("taints", &done.body["spec"]["taints"]);
}

fn conditions(name: &str, kinds: &[(&str, &str)]) -> Value {
    let mut body = interruption(name);
    body.as_object_mut().unwrap().remove("spec");
    let list = kinds.iter().map(|(kind, status)| {
        json!({
            "type": kind, "status": status, "reason": "Because", "message": "",
            "lastTransitionTime": "2026-11-22T12:00:00Z",
        })
    });
    body["status"] = json!({ "conditions": list.collect::<Vec<_>>() });
    body
}

fn kinds(answer: &Answer) -> String {
    let list = answer.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let told = list.iter().map(|one| format!("{}={}", one["type"], one["status"]));
    told.collect::<Vec<_>>().join(" ").replace('"', "")
}

async fn a_keyed_list_is_shared(witness: &mut Witness) {
    witness.with_interruption().await;
    let (name, path) = (witness.own("i-1"), format!("{}/status", witness.interruption()));
    witness.apply(&path, "a", &conditions(&name, &[("A", "True")])).await;
    let done = witness.apply(&path, "b", &conditions(&name, &[("B", "True")])).await;
    witness.note("conditions", kinds(&done));
    let refused = witness.apply(&path, "b", &conditions(&name, &[("A", "False")])).await;
    witness.note("another's", refused);
    let twice = conditions(&name, &[("C", "True"), ("C", "False")]);
    let refused = witness.apply(&path, "b", &twice).await;
    witness.note("one key twice", refused.code);
    let mut keyless = conditions(&name, &[("C", "True")]);
    keyless["status"]["conditions"][0].as_object_mut().unwrap().remove("type");
    let refused = witness.apply(&path, "b", &keyless).await;
    witness.note("no key", refused.code);
}

async fn items_of_a_keyed_list_go_with_their_manager(witness: &mut Witness) {
    witness.with_interruption().await;
    let (name, path) = (witness.own("i-1"), format!("{}/status", witness.interruption()));
    let both = conditions(&name, &[("A", "True"), ("B", "True")]);
    witness.apply(&path, "a", &both).await;
    witness.apply(&path, "b", &conditions(&name, &[("C", "True")])).await;
    let done = witness.apply(&path, "a", &conditions(&name, &[("B", "False")])).await;
    witness.note("conditions", kinds(&done));
    let done = witness.apply(&path, "a", &conditions(&name, &[])).await;
    witness.note("conditions", kinds(&done));
    let mut silent = interruption(&name);
    silent.as_object_mut().unwrap().remove("spec");
    let done = witness.apply(&path, "b", &silent).await;
    witness.note("status", &done.body["status"]);
}

fn signal(heard_by: &str) -> Value {
    let time = "2026-11-22T12:00:00Z";
    json!({
        "source": "queue", "kind": "interruption", "time": time, "heardAt": time,
        "heardBy": heard_by,
    })
}

async fn entries_of_a_map_have_owners_of_their_own(witness: &mut Witness) {
    let path = witness.interruption();
    let says = |name: &str, key: &str, heard_by: &str| {
        let mut body = interruption(name);
        body["spec"]["signals"] = json!({ key: signal(heard_by) });
        body
    };
    let name = witness.own("i-1");
    let made = witness.apply(&path, "a", &says(&name, "queue-interruption", "me")).await;
    witness.note("first", &made);
    let done = witness.apply(&path, "b", &says(&name, "imds-interruption", "you")).await;
    witness.note("second", &done);
    let entries = done.body["spec"]["signals"].as_object().map_or(0, serde_json::Map::len);
    witness.note("entries", entries);
    let told = witness.apply(&path, "c", &says(&name, "queue-interruption", "me")).await;
    witness.note("the same by another", told.short());
    let told = witness.apply(&path, "c", &says(&name, "queue-interruption", "her")).await;
    witness.note("another by another", told.short());
    let told = witness.force(&path, "c", &says(&name, "queue-interruption", "her")).await;
    witness.note("forced", told.short());
    let mut less = interruption(&name);
    less["spec"].as_object_mut().unwrap().remove("signals");
    let told = witness.apply(&path, "a", &less).await;
    witness.note("said no longer, held by another", told.short());
    let told = witness.apply(&path, "b", &less).await;
    witness.note("said no longer", told.short());
}

async fn a_map_that_is_said_empty_is_kept(witness: &mut Witness) {
    let (name, path) = (witness.own("i-1"), witness.interruption());
    let made = witness.apply(&path, "a", &interruption(&name)).await;
    witness.note("signals", &made.body["spec"]["signals"]);
    let mut body = interruption(&name);
    body["spec"]["signals"] = json!({ "queue-interruption": signal("me") });
    let done = witness.apply(&path, "b", &body).await;
    witness.note("added", &done);
    let done = witness.apply(&path, "a", &interruption(&name)).await;
    witness.note("said empty again", &done);
    let entries = done.body["spec"]["signals"].as_object().map_or(0, serde_json::Map::len);
    witness.note("entries", entries);
}

async fn applying_the_same_again_makes_no_version(witness: &mut Witness) {
    witness.with_interruption().await;
    let (name, path) = (witness.own("i-1"), format!("{}/status", witness.interruption()));
    let body = conditions(&name, &[("A", "True")]);
    let first = witness.apply(&path, "a", &body).await;
    let second = witness.apply(&path, "a", &body).await;
    witness.note("same version", first.version() == second.version());
    let third = witness.force(&path, "b", &body).await;
    witness.note("by another, same version", second.version() == third.version());
    let fourth = witness.force(&path, "b", &body).await;
    witness.note("again, same version", third.version() == fourth.version());
}

async fn applying_less_than_is_required_is_refused(witness: &mut Witness) {
    let (name, path) = (witness.own("i-1"), witness.interruption());
    let mut body = interruption(&name);
    body["spec"].as_object_mut().unwrap().remove("zone");
    let refused = witness.apply(&path, "a", &body).await;
    witness.note("new", refused.short());
    witness.apply(&path, "a", &interruption(&name)).await;
    let told = witness.apply(&path, "a", &body).await;
    witness.note("said no longer", told.short());
    let told = witness.apply(&path, "b", &body).await;
    witness.note("said by another", told.short());
}

async fn the_status_of_a_record_is_shared_by_its_writers(witness: &mut Witness) {
    witness.with_interruption().await;
    let (name, path) = (witness.own("i-1"), format!("{}/status", witness.interruption()));
    let say = |workloads: Value| {
        let mut body = interruption(&name);
        body.as_object_mut().unwrap().remove("spec");
        body["status"] = json!({ "workloads": workloads });
        body
    };
    let part = |part: &str, value: Value| json!({ "namespace": "ml", "pod": "train", part: value });
    let save = |step: u32| part("save", json!({ "state": "Saving", "step": step }));
    let drain = json!({
        "decided": "2026-11-22T12:00:00Z", "by": "Evict", "reason": "Durable", "grace": 15,
    });
    let done = witness.force(&path, "agent", &say(json!({ "u1": save(3), "u2": save(4) }))).await;
    witness.note("workloads", &done.body["status"]["workloads"]);
    let done =
        witness.force(&path, "controller", &say(json!({ "u1": part("drain", drain) }))).await;
    witness.note("workloads", &done.body["status"]["workloads"]);
    let done = witness.force(&path, "agent", &say(json!({ "u1": save(5) }))).await;
    witness.note("workloads", &done.body["status"]["workloads"]);
    note_owners(witness, &done);
    let done = witness.force(&path, "controller", &say(json!({}))).await;
    witness.note("workloads", &done.body["status"]["workloads"]);
    let done = witness.force(&path, "agent", &say(json!({}))).await;
    witness.note("workloads", &done.body["status"]["workloads"]);
}

async fn an_update_moves_what_it_changes(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    let both = labels(&name, &json!({ "x": "1", "y": "1" }));
    witness.apply(&path, "a", &both).await;
    witness.merge_patch(&path, &json!({ "metadata": { "labels": { "x": "2" } } })).await;
    let refused = witness.apply(&path, "a", &both).await;
    witness.note("what another changed", refused);
    let done = witness.apply(&path, "a", &labels(&name, &json!({ "y": "1" }))).await;
    witness.note("labels", &done.body["metadata"]["labels"]);
    witness.merge_patch(&path, &json!({ "metadata": { "labels": { "y": null } } })).await;
    let done = witness.apply(&path, "a", &labels(&name, &json!({ "y": "1" }))).await;
    witness.note("what another took away", &done.body["metadata"]["labels"]);
}

async fn applying_needs_a_manager_and_a_kind(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    let apply = "application/apply-patch+yaml";
    let nobody = http::Method::PATCH;
    let told = witness.send(nobody, &path, Some((apply, &node(&name)))).await;
    witness.note("no manager", told.short());
    let mut body = node(&name);
    body.as_object_mut().unwrap().remove("kind");
    let told = witness.apply(&path, "a", &body).await;
    witness.note("no kind", told.short());
    let told = witness.apply(&path, "a", &node("other")).await;
    witness.note("another name", told.short());
    let mut body = node(&name);
    body["metadata"]["managedFields"] = json!([{ "manager": "a", "operation": "Apply" }]);
    let told = witness.apply(&path, "a", &body).await;
    witness.note("owners in the body", told.short());
}

async fn a_version_guards_an_apply(witness: &mut Witness) {
    let made = witness.with_node(json!({})).await;
    let (name, path) = (witness.own("gpu-1"), witness.node());
    let mut body = labels(&name, &json!({ "x": "1" }));
    body["metadata"]["resourceVersion"] = json!(made.version());
    let done = witness.apply(&path, "a", &body).await;
    witness.note("the newest", done.short());
    body["metadata"]["labels"] = json!({ "x": "2" });
    let refused = witness.apply(&path, "a", &body).await;
    witness.note("an old one", refused.short());
    let mut body = labels(&name, &json!({ "x": "3" }));
    body["metadata"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
    let refused = witness.apply(&path, "a", &body).await;
    witness.note("another uid", refused.short());
}

async fn fields_of_the_other_door_are_left_aside(witness: &mut Witness) {
    let name = witness.own("i-1");
    let path = witness.interruption();
    let mut body = interruption(&name);
    body["status"] = json!({ "phase": "Saving" });
    let made = witness.apply(&path, "a", &body).await;
    witness.note("status through the main door", &made.body["status"]);
    note_owners(witness, &made);
    body["spec"]["instanceType"] = json!("g5.xlarge");
    body["metadata"]["labels"] = json!({ "x": "1" });
    let done = witness.apply(&format!("{path}/status"), "a", &body).await;
    witness.note("status", &done.body["status"]);
    witness.note("type through the door of status", &done.body["spec"]["instanceType"]);
    witness.note("labels", &done.body["metadata"]["labels"]);
    note_owners(witness, &done);
}

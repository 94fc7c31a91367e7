//! Our own definitions: what their schemas and their rules in CEL let in.

use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::INTERRUPTIONS;
use crate::rules::witness::Witness;
use crate::rules::witness::interruption;

rules![
    a_signal_that_was_recorded_stands,
    node_and_zone_of_a_record_stand,
    the_job_key_of_an_index_stands,
    what_a_schema_does_not_know_is_dropped,
    what_breaks_a_schema_is_refused,
    a_word_that_no_release_knows_is_taken,
    a_record_has_room_for_sixteen_signals,
    what_is_required_is_required_in_every_entry,
    null_is_dropped_where_it_may_not_be,
    a_status_is_checked_through_its_door_alone,
    a_record_is_found_by_its_node,
    a_definition_is_served_with_its_conditions,
];

fn signal(time: &str) -> Value {
    json!({
        "source": "queue", "kind": "interruption", "time": time, "heardAt": time, "heardBy": "me",
    })
}

const NOON: &str = "2026-11-22T12:00:00Z";

async fn a_signal_that_was_recorded_stands(witness: &mut Witness) {
    witness.with_interruption().await;
    let path = witness.interruption();
    let says = |key: &str, time: &str| json!({ "spec": { "signals": { key: signal(time) } } });
    let told = witness.merge_patch(&path, &says("queue-interruption", NOON)).await;
    witness.note("first", told.short());
    let told = witness.merge_patch(&path, &says("imds-interruption", NOON)).await;
    witness.note("another", told.short());
    let told = witness.merge_patch(&path, &says("imds-interruption", NOON)).await;
    witness.note("the same again", told.short());
    let told = witness.merge_patch(&path, &says("imds-interruption", "2026-11-22T12:00:09Z")).await;
    witness.note("another time", told);
    let more = json!({ "spec": { "signals": { "imds-interruption": { "detail": "more" } } } });
    let told = witness.merge_patch(&path, &more).await;
    witness.note("one field more", told.short());
    let one = json!({ "spec": { "signals": { "imds-interruption": null } } });
    let told = witness.merge_patch(&path, &one).await;
    witness.note("one taken away", told.short());
    let told = witness.merge_patch(&path, &json!({ "spec": { "signals": null } })).await;
    witness.note("all taken away", told.short());
    let told = witness.merge_patch(&path, &json!({ "spec": { "signals": {} } })).await;
    witness.note("nothing said", told.short());
    let emptied = json!([{ "op": "replace", "path": "/spec/signals", "value": {} }]);
    let told = witness.json_patch(&path, &emptied).await;
    witness.note("emptied", told.short());
}

async fn node_and_zone_of_a_record_stand(witness: &mut Witness) {
    witness.with_interruption().await;
    let path = witness.interruption();
    let told = witness.merge_patch(&path, &json!({ "spec": { "node": "gpu-2" } })).await;
    witness.note("node", told);
    let told = witness.merge_patch(&path, &json!({ "spec": { "zone": "us-east-2b" } })).await;
    witness.note("zone", told);
    let told = witness.merge_patch(&path, &json!({ "spec": { "zone": null } })).await;
    witness.note("no zone", told.short());
    let told = witness.merge_patch(&path, &json!({ "spec": { "instanceType": "a" } })).await;
    witness.note("type", told.short());
    let told = witness.merge_patch(&path, &json!({ "spec": { "instanceType": "b" } })).await;
    witness.note("another type", told.short());
}

async fn the_job_key_of_an_index_stands(witness: &mut Witness) {
    let indexes = witness.here_of("lifeboat.dev/v1alpha1", "workloadcheckpoints");
    let index = |key: &str| {
        json!({
            "apiVersion": "lifeboat.dev/v1alpha1", "kind": "WorkloadCheckpoint",
            "metadata": { "name": "train" }, "spec": { "jobKey": key },
        })
    };
    let told = witness.create(&indexes, &index("")).await;
    witness.note("empty", told.short());
    let told = witness.create(&indexes, &index(&"x".repeat(254))).await;
    witness.note("long", told.short());
    let told = witness.create(&indexes, &index("train/0")).await;
    witness.note("made", told.short());
    let path = format!("{indexes}/train");
    let told = witness.merge_patch(&path, &json!({ "spec": { "jobKey": "other" } })).await;
    witness.note("another", told);
    let told = witness.force(&path, "a", &index("other")).await;
    witness.note("another, forced", told.short());
    let told = witness.force(&path, "a", &index("train/0")).await;
    witness.note("the same, forced", told.short());
}

async fn what_a_schema_does_not_know_is_dropped(witness: &mut Witness) {
    let mut body = interruption(&witness.own("i-1"));
    body["spec"]["mood"] = json!("good");
    body["mood"] = json!("good");
    let mut told = signal(NOON);
    told["mood"] = json!("good");
    body["spec"]["signals"] = json!({ "queue-interruption": told });
    let made = witness.create(INTERRUPTIONS, &body).await;
    witness.note("made", &made);
    witness.note("spec", &made.body["spec"]);
    witness.note("beside it", &made.body["mood"]);
    let status = json!({ "status": { "phase": "Saving", "mood": "good", "fence": {
        "at": NOON, "kind": "interruption", "cordonedBefore": false, "mood": "good",
    } } });
    let done = witness.merge_patch(&format!("{}/status", witness.interruption()), &status).await;
    witness.note("status", &done.body["status"]);
}

async fn what_breaks_a_schema_is_refused(witness: &mut Witness) {
    witness.with_interruption().await;
    let path = format!("{}/status", witness.interruption());
    let statuses = [
        ("a number for a text", json!({ "phase": 3 })),
        ("no time", json!({ "deadline": "soon" })),
        ("a day", json!({ "deadline": "2026-11-22" })),
        ("half a second", json!({ "deadline": "2026-11-22T12:00:00.5Z" })),
        ("another zone", json!({ "deadline": "2026-11-22T12:00:00+01:00" })),
        ("too long", json!({ "phase": "x".repeat(64) })),
        ("just long enough", json!({ "phase": "x".repeat(63) })),
        ("less than nothing", json!({ "bytes": -1 })),
        ("a whole number as a fraction", json!({ "bytes": 2.0 })),
        ("a text for a number", json!({ "bytes": "17" })),
        ("a list for a map", json!({ "workloads": [] })),
        ("a map for a list", json!({ "conditions": {} })),
        ("holds", json!({ "holds": { "u1": NOON } })),
        ("a hold without a time", json!({ "holds": { "u1": "now" } })),
    ];
    for (what, status) in statuses {
        let told = witness.merge_patch(&path, &json!({ "status": status })).await;
        witness.note(what, told.short());
    }
    let told = witness.merge_patch(&path, &json!({ "status": { "bytes": 1.5 } })).await;
    witness.note("a fraction", told.code);
}

async fn a_word_that_no_release_knows_is_taken(witness: &mut Witness) {
    witness.with_interruption().await;
    let path = format!("{}/status", witness.interruption());
    let workload = json!({ "namespace": "ml", "pod": "train", "save": { "state": "Dreaming" } });
    let status = json!({ "status": { "phase": "Sinking", "workloads": { "u1": workload } } });
    let told = witness.merge_patch(&path, &status).await;
    witness.note("state", &told.body["status"]["workloads"]["u1"]["save"]);
    let mut told = signal(NOON);
    told["kind"] = json!("solar-flare");
    let spec = json!({ "spec": { "signals": { "queue-solar-flare": told } } });
    let told = witness.merge_patch(&witness.interruption(), &spec).await;
    witness.note("signal", told.short());
}

async fn a_record_has_room_for_sixteen_signals(witness: &mut Witness) {
    witness.with_interruption().await;
    let many = |count: u32| {
        let entries = (0..count).map(|index| (format!("queue-{index}"), signal(NOON)));
        json!({ "spec": { "signals": entries.collect::<serde_json::Map<_, _>>() } })
    };
    let told = witness.merge_patch(&witness.interruption(), &many(17)).await;
    witness.note("seventeen", told.short());
    let told = witness.merge_patch(&witness.interruption(), &many(16)).await;
    witness.note("sixteen", told.short());
}

async fn what_is_required_is_required_in_every_entry(witness: &mut Witness) {
    witness.with_interruption().await;
    let path = format!("{}/status", witness.interruption());
    let statuses = [
        ("workload", json!({ "workloads": { "u1": { "pod": "train" } } })),
        ("fence", json!({ "fence": { "kind": "interruption" } })),
        ("condition", json!({ "conditions": [{ "type": "A", "status": "True" }] })),
        ("claim", json!({ "replacement": { "claims": [{ "name": "c" }] } })),
    ];
    for (what, status) in statuses {
        let told = witness.merge_patch(&path, &json!({ "status": status })).await;
        witness.note(what, told.short());
    }
    for part in ["node", "zone", "signals"] {
        let mut body = interruption(&witness.own("i-2"));
        body["spec"].as_object_mut().unwrap().remove(part);
        let told = witness.create(INTERRUPTIONS, &body).await;
        witness.note(part, told.short());
        witness.delete(&format!("{INTERRUPTIONS}/{}", witness.own("i-2")), json!({})).await;
    }
    let mut body = interruption(&witness.own("i-2"));
    body.as_object_mut().unwrap().remove("spec");
    let told = witness.create(INTERRUPTIONS, &body).await;
    witness.note("spec", told.short());
}

async fn null_is_dropped_where_it_may_not_be(witness: &mut Witness) {
    let mut body = interruption(&witness.own("i-1"));
    body["spec"]["instanceType"] = Value::Null;
    let told = witness.create(INTERRUPTIONS, &body).await;
    witness.note("optional", told.short());
    witness.note("spec", &told.body["spec"]);
    let mut body = interruption(&witness.own("i-2"));
    body["spec"]["zone"] = Value::Null;
    let told = witness.create(INTERRUPTIONS, &body).await;
    witness.note("required", told.short());
}

async fn a_status_is_checked_through_its_door_alone(witness: &mut Witness) {
    let mut body = interruption(&witness.own("i-1"));
    body["status"] = json!({ "phase": 3 });
    let told = witness.create(INTERRUPTIONS, &body).await;
    witness.note("made", told.short());
    witness.with_interruption().await;
    let patch = json!({ "status": { "phase": 3 } });
    let told = witness.merge_patch(&witness.interruption(), &patch).await;
    witness.note("through the main door", told.short());
    let patch = json!({ "spec": { "node": "gpu-2" }, "status": { "phase": "Saving" } });
    let told = witness.merge_patch(&format!("{}/status", witness.interruption()), &patch).await;
    witness.note("a rule through the door of status", told.short());
}

async fn a_record_is_found_by_its_node(witness: &mut Witness) {
    let mine = witness.own("gpu-1");
    for (name, node) in [("i-1", mine.as_str()), ("i-2", "other")] {
        let mut body = interruption(&witness.own(name));
        body["spec"]["node"] = json!(node);
        witness.create(INTERRUPTIONS, &body).await;
    }
    let path = format!("{INTERRUPTIONS}?fieldSelector=spec.node%3D{mine}");
    let list = witness.read(&path).await;
    let names = list.body["items"].as_array().into_iter().flatten();
    let names: Vec<String> = names.map(|one| one["metadata"]["name"].to_string()).collect();
    witness.note("found", names.join(" "));
    let told = witness.read(&format!("{INTERRUPTIONS}?fieldSelector=spec.zone%3Da")).await;
    witness.note("another field", told.short());
}

async fn a_definition_is_served_with_its_conditions(witness: &mut Witness) {
    let kinds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let read = witness.read(&format!("{kinds}/nothing.lifeboat.dev")).await;
    witness.note("nothing", read);
    let list = witness.read("/apis/lifeboat.dev/v1alpha1").await;
    let names = list.body["resources"].as_array().into_iter().flatten();
    let mut names: Vec<String> = names.map(|one| one["name"].to_string()).collect();
    names.sort();
    witness.note("kinds", names.join(" "));
}

//! What is replaced, over which version, and what may not change.

use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::Answer;
use crate::rules::witness::NODES;
use crate::rules::witness::Witness;
use crate::rules::witness::interruption;
use crate::rules::witness::node;
use crate::rules::witness::pod;

rules![
    a_stale_replacement_is_refused,
    a_replacement_without_a_version_is_taken_by_some_kinds,
    a_replacement_needs_what_it_replaces_but_for_leases,
    a_replacement_has_the_name_of_its_path,
    a_replacement_of_another_uid_is_refused,
    what_changes_nothing_makes_no_version,
    every_change_makes_a_version,
    a_generation_moves_with_the_spec_alone,
    the_servers_own_metadata_stays,
    a_pods_spec_stands,
    a_pods_tolerations_only_grow,
    a_claims_spec_stands,
    a_jobs_template_stands,
    a_nodes_provider_stands,
    a_node_takes_no_two_taints_of_one_key_and_effect,
    a_lease_is_taken_by_one_of_two,
    a_lease_says_who_and_when,
    status_and_the_rest_have_doors_of_their_own,
    a_pods_status_is_written_through_its_door,
];

async fn a_stale_replacement_is_refused(witness: &mut Witness) {
    let old = witness.with_node(json!({})).await;
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    witness.merge_patch(&witness.node(), &label).await;
    let mut body = old.body.clone();
    body["metadata"]["labels"] = json!({ "c": "d" });
    let refused = witness.replace(&witness.node(), &body).await;
    witness.note("node", refused);
    let old = witness.with_interruption().await;
    witness.merge_patch(&witness.interruption(), &label).await;
    let refused = witness.replace(&witness.interruption(), &old.body).await;
    witness.note("record", refused);
    let refused = witness.replace(&format!("{}/status", witness.interruption()), &old.body).await;
    witness.note("status of a record", refused);
    let versioned = json!({ "metadata": { "resourceVersion": old.version() } });
    let refused = witness.merge_patch(&witness.interruption(), &versioned).await;
    witness.note("merge patch", refused);
}

async fn a_replacement_without_a_version_is_taken_by_some_kinds(witness: &mut Witness) {
    let without = |answer: &Answer| {
        let mut body = answer.body.clone();
        body["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        body
    };
    let made = witness.with_node(json!({})).await;
    let done = witness.replace(&witness.node(), &without(&made)).await;
    witness.note("node", done);
    let made = witness.running("a").await;
    let done = witness.replace(&witness.pod("a"), &without(&made)).await;
    witness.note("pod", done);
    let made = witness.with_interruption().await;
    let refused = witness.replace(&witness.interruption(), &without(&made)).await;
    witness.note("record", refused);
    let leases = witness.here_of("coordination.k8s.io/v1", "leases");
    let made = witness.create(&leases, &json!({ "metadata": { "name": "lb" } })).await;
    let refused = witness.replace(&format!("{leases}/lb"), &without(&made)).await;
    witness.note("lease", refused);
}

async fn a_replacement_needs_what_it_replaces_but_for_leases(witness: &mut Witness) {
    let refused = witness.replace(&witness.node(), &node(&witness.own("gpu-1"))).await;
    witness.note("node", refused);
    let body = interruption(&witness.own("i-1"));
    let refused = witness.replace(&witness.interruption(), &body).await;
    witness.note("record", refused);
    let refused = witness.replace(&witness.pod("a"), &pod("a")).await;
    witness.note("pod", refused);
    let lease = witness.here_of("coordination.k8s.io/v1", "leases/lb");
    let stale = json!({ "metadata": { "name": "lb", "resourceVersion": "1" } });
    let told = witness.replace(&lease, &stale).await;
    witness.note("lease with a version", told);
    let told = witness.replace(&lease, &json!({ "metadata": { "name": "lb" } })).await;
    witness.note("lease without a version", told);
}

async fn a_replacement_has_the_name_of_its_path(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let refused = witness.replace(&witness.node(), &node("other")).await;
    witness.note("node", refused);
    witness.with_interruption().await;
    let refused = witness.replace(&witness.interruption(), &interruption("other")).await;
    witness.note("record", refused);
}

async fn a_replacement_of_another_uid_is_refused(witness: &mut Witness) {
    let made = witness.with_node(json!({})).await;
    let mut body = made.body.clone();
    body["metadata"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
    let refused = witness.replace(&witness.node(), &body).await;
    witness.note("node", refused.short());
}

async fn what_changes_nothing_makes_no_version(witness: &mut Witness) {
    let made = witness.with_node(json!({})).await;
    let path = witness.node();
    let taints = made.body["spec"]["taints"].clone();
    let done = [
        ("replacement", witness.replace(&path, &made.body).await),
        ("merge patch", witness.merge_patch(&path, &json!({})).await),
        ("strategic patch", witness.strategic_patch(&path, &json!({})).await),
        ("no operation", witness.json_patch(&path, &json!([])).await),
        ("same taints", witness.merge_patch(&path, &json!({ "spec": { "taints": taints } })).await),
    ];
    for (what, done) in done {
        witness.note(what, done.code);
        witness.note("same version", done.version() == made.version());
    }
    let made = witness.with_interruption().await;
    let done = witness.merge_patch(&witness.interruption(), &json!({})).await;
    witness.note("record", done.version() == made.version());
}

async fn every_change_makes_a_version(witness: &mut Witness) {
    let number = |answer: &Answer| answer.version().parse::<u64>().unwrap_or_default();
    let made = witness.with_node(json!({})).await;
    let label = |value: &str| json!({ "metadata": { "labels": { "a": value } } });
    let first = witness.merge_patch(&witness.node(), &label("1")).await;
    let other = witness.with_interruption().await;
    let second = witness.merge_patch(&witness.node(), &label("2")).await;
    let versions = [made, first, other, second].map(|answer| number(&answer));
    witness.note("versions rise over all kinds", versions.is_sorted_by(|left, right| left < right));
}

async fn a_generation_moves_with_the_spec_alone(witness: &mut Witness) {
    witness.with_interruption().await;
    let path = witness.interruption();
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    let done = witness.merge_patch(&path, &label).await;
    witness.note("label", &done.body["metadata"]["generation"]);
    let status = json!({ "status": { "phase": "Saving" } });
    let done = witness.merge_patch(&format!("{path}/status"), &status).await;
    witness.note("status", &done.body["metadata"]["generation"]);
    let spec = json!({ "spec": { "instanceType": "g5.xlarge" } });
    let done = witness.merge_patch(&path, &spec).await;
    witness.note("spec", &done.body["metadata"]["generation"]);
    let made = witness.running("a").await;
    witness.note("pod", &made.body["metadata"]["generation"]);
}

async fn the_servers_own_metadata_stays(witness: &mut Witness) {
    let made = witness.with_node(json!({})).await;
    let path = witness.node();
    for (field, value) in [
        ("uid", json!("00000000-0000-4000-8000-000000000000")),
        ("creationTimestamp", json!("2001-01-01T00:00:00Z")),
        ("deletionTimestamp", json!("2001-01-01T00:00:00Z")),
        ("name", json!("other")),
        ("generation", json!(17)),
    ] {
        let told = witness.merge_patch(&path, &json!({ "metadata": { field: value } })).await;
        witness.note(field, told.short());
    }
    let after = witness.read(&path).await;
    witness.note("version moved", after.version() != made.version());
    let cleared = json!({ "metadata": { "uid": null, "creationTimestamp": null } });
    let told = witness.merge_patch(&path, &cleared).await;
    witness.note("taken away", told.short());
    witness.note("uid stays", told.uid() == made.uid());
}

async fn a_pods_spec_stands(witness: &mut Witness) {
    witness.running("a").await;
    for (field, value) in [
        ("nodeName", json!("gpu-2")),
        ("terminationGracePeriodSeconds", json!(5)),
        ("restartPolicy", json!("Never")),
        ("activeDeadlineSeconds", json!(600)),
        ("priority", json!(5)),
    ] {
        let told =
            witness.merge_patch(&witness.pod("a"), &json!({ "spec": { field: value } })).await;
        witness.note(field, told.short());
    }
    let image = json!([{ "op": "replace", "path": "/spec/containers/0/image", "value": "other" }]);
    let told = witness.json_patch(&witness.pod("a"), &image).await;
    witness.note("image", told.short());
}

async fn a_pods_tolerations_only_grow(witness: &mut Witness) {
    let made = witness.running("a").await;
    let mut tolerations = made.body["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    let shorter = json!({ "spec": { "tolerations": [] } });
    let told = witness.merge_patch(&witness.pod("a"), &shorter).await;
    witness.note("taken away", told.short());
    tolerations.push(json!({ "key": "gpu", "operator": "Exists", "effect": "NoSchedule" }));
    let longer = json!({ "spec": { "tolerations": tolerations } });
    let told = witness.merge_patch(&witness.pod("a"), &longer).await;
    witness.note("added", told.short());
}

async fn a_claims_spec_stands(witness: &mut Witness) {
    witness.with_claim().await;
    let later = json!({ "spec": { "expireAfter": "1h" } });
    let told = witness.merge_patch(&witness.claim(), &later).await;
    witness.note("spec", told.short());
    let annotation =
        json!({ "metadata": { "annotations": { "karpenter.sh/do-not-disrupt": "true" } } });
    let told = witness.merge_patch(&witness.claim(), &annotation).await;
    witness.note("annotation", told);
}

async fn a_jobs_template_stands(witness: &mut Witness) {
    let body = json!({
        "metadata": { "name": "train" },
        "spec": { "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "main", "image": "train" }],
        } } },
    });
    witness.create(&witness.here_of("batch/v1", "jobs"), &body).await;
    let path = witness.here_of("batch/v1", "jobs/train");
    let patches = [
        ("grace", json!({ "template": { "spec": { "terminationGracePeriodSeconds": 5 } } })),
        ("completions", json!({ "completions": 3 })),
        ("parallelism", json!({ "parallelism": 3 })),
        ("suspend", json!({ "suspend": true })),
    ];
    for (what, spec) in patches {
        let told = witness.merge_patch(&path, &json!({ "spec": spec })).await;
        witness.note(what, told.short());
    }
}

async fn a_nodes_provider_stands(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let provider = |id: &str| json!({ "spec": { "providerID": id } });
    let told = witness.merge_patch(&witness.node(), &provider("aws:///us-east-2a/i-1")).await;
    witness.note("first", told.short());
    let told = witness.merge_patch(&witness.node(), &provider("aws:///us-east-2a/i-2")).await;
    witness.note("second", told.short());
}

async fn a_node_takes_no_two_taints_of_one_key_and_effect(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let taint = |key: &str, value: &str, effect: &str| json!({ "key": key, "value": value, "effect": effect });
    let lists = [
        ("twice", json!([taint("a", "x", "NoSchedule"), taint("a", "y", "NoSchedule")])),
        ("two effects", json!([taint("a", "x", "NoSchedule"), taint("a", "x", "NoExecute")])),
        ("no effect", json!([{ "key": "a" }])),
        ("strange effect", json!([taint("a", "", "Sometimes")])),
        ("no key", json!([{ "effect": "NoSchedule" }])),
        ("long value", json!([taint("a", &"x".repeat(64), "NoSchedule")])),
        ("strange value", json!([taint("a", "not so!", "NoSchedule")])),
        ("a number", json!([taint("lifeboat.dev/at-risk", "1790000000", "PreferNoSchedule")])),
    ];
    for (what, list) in lists {
        let told =
            witness.merge_patch(&witness.node(), &json!({ "spec": { "taints": list } })).await;
        witness.note(what, told.short());
    }
}

async fn a_lease_is_taken_by_one_of_two(witness: &mut Witness) {
    let leases = witness.here_of("coordination.k8s.io/v1", "leases");
    let body = |who: &str, version: &str| {
        let mut body = json!({
            "metadata": { "name": "lb" },
            "spec": { "holderIdentity": who, "leaseDurationSeconds": 15, "leaseTransitions": 0 },
        });
        if !version.is_empty() {
            body["metadata"]["resourceVersion"] = json!(version);
        }
        body
    };
    let made = witness.create(&leases, &body("a", "")).await;
    witness.note("made", &made);
    let second = witness.create(&leases, &body("b", "")).await;
    witness.note("made by another", second);
    let path = format!("{leases}/lb");
    let taken = witness.replace(&path, &body("b", made.version())).await;
    witness.note("taken", &taken);
    let late = witness.replace(&path, &body("c", made.version())).await;
    witness.note("taken by another", late);
    let released = witness.replace(&path, &body("", taken.version())).await;
    witness.note("given back", released.short());
}

async fn a_lease_says_who_and_when(witness: &mut Witness) {
    let leases = witness.here_of("coordination.k8s.io/v1", "leases");
    let spec = json!({
        "holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 0,
        "renewTime": "2026-11-22T12:00:00.123456Z", "acquireTime": "2026-11-22T12:00:00.000000Z",
    });
    let body = json!({ "metadata": { "name": "lb" }, "spec": spec });
    let made = witness.create(&leases, &body).await;
    witness.note("spec", &made.body["spec"]);
    let broken = [
        ("seconds alone", json!({ "renewTime": "2026-11-22T12:00:00Z" })),
        ("no time", json!({ "renewTime": "soon" })),
        ("no duration", json!({ "leaseDurationSeconds": 0 })),
        ("fewer transitions", json!({ "leaseTransitions": -1 })),
        ("no number", json!({ "leaseDurationSeconds": "15" })),
    ];
    for (what, spec) in broken {
        let told = witness.merge_patch(&format!("{leases}/lb"), &json!({ "spec": spec })).await;
        witness.note(what, told.code);
    }
}

async fn status_and_the_rest_have_doors_of_their_own(witness: &mut Witness) {
    witness.with_interruption().await;
    let path = witness.interruption();
    let both = json!({
        "metadata": { "labels": { "a": "b" } }, "spec": { "instanceType": "g5.xlarge" },
        "status": { "phase": "Saving" },
    });
    let main = witness.merge_patch(&path, &both).await;
    witness.note("labels", &main.body["metadata"]["labels"]);
    witness.note("spec", &main.body["spec"]["instanceType"]);
    witness.note("status", &main.body["status"]);
    let both = json!({
        "metadata": { "labels": { "c": "d" }, "annotations": { "e": "f" } },
        "spec": { "instanceType": "g5.2xlarge" }, "status": { "phase": "Saving" },
    });
    let status = witness.merge_patch(&format!("{path}/status"), &both).await;
    witness.note("labels", &status.body["metadata"]["labels"]);
    witness.note("annotations", &status.body["metadata"]["annotations"]);
    witness.note("spec", &status.body["spec"]["instanceType"]);
    witness.note("status", &status.body["status"]);
    let read = witness.read(&format!("{path}/status")).await;
    witness.note("read through its door", &read.body["status"]);
    let missing = format!("{}/status", witness.claim());
    let told = witness.merge_patch(&missing, &json!({ "status": {} })).await;
    witness.note("of what is not there", told);
}

async fn a_pods_status_is_written_through_its_door(witness: &mut Witness) {
    let made = witness.running("a").await;
    let conditions = |body: &Value| {
        let list = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let kinds = list.iter().map(|one| one["type"].as_str().unwrap_or_default().to_owned());
        kinds.collect::<Vec<_>>().join(" ")
    };
    witness.note("phase", &made.body["status"]["phase"]);
    witness.note("conditions", conditions(&made.body));
    let patch = json!({
        "metadata": { "annotations": { "a": "b" }, "labels": { "c": "d" } },
        "status": { "phase": "Failed" },
    });
    let main = witness.merge_patch(&witness.pod("a"), &patch).await;
    witness.note("phase through the main door", &main.body["status"]["phase"]);
    witness.note("annotations", &main.body["metadata"]["annotations"]);
    let door = witness.here("pods/a/status");
    let patch = json!({
        "metadata": { "annotations": { "e": "f" } }, "spec": { "activeDeadlineSeconds": 5 },
        "status": { "phase": "Failed" },
    });
    let status = witness.merge_patch(&door, &patch).await;
    witness.note("phase through its own", &status.body["status"]["phase"]);
    witness.note("annotations", &status.body["metadata"]["annotations"]);
    witness.note("deadline", &status.body["spec"]["activeDeadlineSeconds"]);
    let made = witness.create(NODES, &node(&witness.own("gpu-1"))).await;
    let patch = json!({ "spec": { "unschedulable": true }, "status": { "phase": "Running" } });
    let status = witness.merge_patch(&format!("{}/status", witness.node()), &patch).await;
    witness.note("node", status.short());
    witness.note("cordon through the door of status", &status.body["spec"]["unschedulable"]);
    witness.note("generation", &made.body["metadata"]["generation"]);
}

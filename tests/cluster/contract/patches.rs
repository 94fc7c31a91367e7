//! The four kinds of patch, and what each does to lists and to what is not there.

use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::NODES;
use crate::rules::witness::Witness;
use crate::rules::witness::node;

rules![
    a_test_that_fails_is_422_and_changes_nothing,
    a_test_for_null_holds_where_nothing_is,
    a_test_below_what_is_not_there_fails,
    a_test_compares_whole_lists_and_maps,
    a_test_may_name_uid_and_version,
    an_operation_on_what_is_not_there_is_422,
    adding_replaces_what_is_there,
    a_json_patch_is_a_list_of_known_operations,
    a_json_patch_may_end_in_what_is_not_allowed,
    a_merge_patch_removes_by_null,
    a_merge_patch_replaces_lists_whole,
    a_strategic_patch_replaces_taints_and_merges_conditions,
    a_strategic_patch_has_directives,
    a_definition_has_no_strategic_patch,
    a_patch_needs_a_kind_that_is_known,
    a_patch_needs_what_it_patches,
    a_patch_over_an_old_version_is_refused,
    an_annotation_is_added_to_none,
];

async fn a_test_that_fails_is_422_and_changes_nothing(witness: &mut Witness) {
    let taint = json!({ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" });
    let made = witness.with_node(json!({ "taints": [taint] })).await;
    let patch = |test: Value| {
        json!([
            { "op": "test", "path": "/spec/taints", "value": test },
            { "op": "add", "path": "/spec/unschedulable", "value": true },
        ])
    };
    let refused = witness.json_patch(&witness.node(), &patch(Value::Null)).await;
    witness.note("another value", refused);
    let after = witness.read(&witness.node()).await;
    witness.note("same version", after.version() == made.version());
    let done =
        witness.json_patch(&witness.node(), &patch(made.body["spec"]["taints"].clone())).await;
    witness.note("the value", &done);
    witness.note("cordoned", &done.body["spec"]["unschedulable"]);
}

async fn a_test_for_null_holds_where_nothing_is(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let taints = json!([{ "op": "remove", "path": "/spec/taints" }]);
    witness.json_patch(&witness.node(), &taints).await;
    let patch = json!([
        { "op": "test", "path": "/spec/taints", "value": null },
        { "op": "add", "path": "/spec/taints", "value": [{ "key": "a", "effect": "NoSchedule" }] },
        { "op": "test", "path": "/spec/unschedulable", "value": null },
        { "op": "add", "path": "/spec/unschedulable", "value": true },
    ]);
    let done = witness.json_patch(&witness.node(), &patch).await;
    witness.note("node", &done);
    witness.note("taints", &done.body["spec"]["taints"]);
    witness.note("cordoned", &done.body["spec"]["unschedulable"]);
    let again = witness.json_patch(&witness.node(), &patch).await;
    witness.note("again", again.short());
}

async fn a_test_below_what_is_not_there_fails(witness: &mut Witness) {
    witness.with_interruption().await;
    let test = |path: &str, value: Value| json!([{ "op": "test", "path": path, "value": value }]);
    let tests = [
        ("null below nothing", test("/metadata/annotations/a", Value::Null)),
        ("a value below nothing", test("/metadata/annotations/a", json!("b"))),
        ("a value of nothing", test("/metadata/annotations", json!({}))),
        ("null of something", test("/spec/node", Value::Null)),
        ("no value", json!([{ "op": "test", "path": "/metadata/annotations" }])),
        ("an item past the end", test("/metadata/managedFields/17", Value::Null)),
    ];
    for (what, patch) in tests {
        let told = witness.json_patch(&witness.interruption(), &patch).await;
        witness.note(what, told.short());
    }
}

async fn a_test_compares_whole_lists_and_maps(witness: &mut Witness) {
    let taints = json!([
        { "key": "a", "value": "1", "effect": "NoSchedule" },
        { "key": "b", "effect": "NoExecute" },
    ]);
    let mut body = node(&witness.own("gpu-1"));
    body["metadata"]["annotations"] = json!({ "a": "1", "b": "2" });
    witness.create(NODES, &body).await;
    let list = json!({ "spec": { "taints": taints } });
    witness.merge_patch(&witness.node(), &list).await;
    let test = |path: &str, value: Value| json!([{ "op": "test", "path": path, "value": value }]);
    let (first, second) = (taints[0].clone(), taints[1].clone());
    let tests = [
        ("the list", test("/spec/taints", json!([first, second]))),
        ("another order", test("/spec/taints", json!([second, first]))),
        ("a part", test("/spec/taints", json!([first]))),
        ("an item", test("/spec/taints/1/effect", json!("NoExecute"))),
        ("a map", test("/metadata/annotations", json!({ "b": "2", "a": "1" }))),
        ("a part of a map", test("/metadata/annotations", json!({ "a": "1" }))),
    ];
    for (what, patch) in tests {
        let told = witness.json_patch(&witness.node(), &patch).await;
        witness.note(what, told.short());
    }
}

async fn a_test_may_name_uid_and_version(witness: &mut Witness) {
    let made = witness.running("a").await;
    let annotate = |path: &str, value: &str| {
        json!([
            { "op": "test", "path": path, "value": value },
            { "op": "add", "path": "/metadata/annotations", "value": { "a": path } },
        ])
    };
    let (uid, version) = ("/metadata/uid", "/metadata/resourceVersion");
    let tests = [
        ("another uid", annotate(uid, "other")),
        ("its uid", annotate(uid, made.uid())),
        ("an old version", annotate(version, made.version())),
    ];
    for (what, patch) in tests {
        let told = witness.json_patch(&witness.pod("a"), &patch).await;
        witness.note(what, told.short());
    }
}

async fn an_operation_on_what_is_not_there_is_422(witness: &mut Witness) {
    witness.with_interruption().await;
    let patches = [
        (
            "add below nothing",
            json!({ "op": "add", "path": "/metadata/annotations/a", "value": "b" }),
        ),
        ("remove nothing", json!({ "op": "remove", "path": "/metadata/annotations" })),
        ("remove below nothing", json!({ "op": "remove", "path": "/metadata/annotations/a" })),
        (
            "replace nothing",
            json!({ "op": "replace", "path": "/metadata/annotations", "value": {} }),
        ),
        (
            "add to the end of nothing",
            json!({ "op": "add", "path": "/metadata/finalizers/-", "value": "a/b" }),
        ),
        (
            "copy nothing",
            json!({ "op": "copy", "from": "/spec/nothing", "path": "/metadata/labels" }),
        ),
        (
            "move nothing",
            json!({ "op": "move", "from": "/spec/nothing", "path": "/metadata/labels" }),
        ),
    ];
    for (what, operation) in patches {
        let told = witness.json_patch(&witness.interruption(), &json!([operation])).await;
        witness.note(what, told.short());
    }
}

async fn adding_replaces_what_is_there(witness: &mut Witness) {
    witness.with_node(json!({ "unschedulable": true })).await;
    let patch = json!([
        { "op": "add", "path": "/spec/unschedulable", "value": false },
        { "op": "add", "path": "/metadata/annotations", "value": { "lifeboat.dev/cordoned": "true" } },
        { "op": "add", "path": "/metadata/annotations/lifeboat.dev~1cordoned", "value": "false" },
    ]);
    let done = witness.json_patch(&witness.node(), &patch).await;
    witness.note("cordoned", &done.body["spec"]["unschedulable"]);
    witness.note("annotations", &done.body["metadata"]["annotations"]);
    let removed = json!([
        { "op": "remove", "path": "/metadata/annotations/lifeboat.dev~1cordoned" },
    ]);
    let done = witness.json_patch(&witness.node(), &removed).await;
    witness.note("annotations", &done.body["metadata"]["annotations"]);
    let read = witness.read(&witness.node()).await;
    witness.note("annotations, read", &read.body["metadata"]["annotations"]);
    witness.note("cordoned, read", &read.body["spec"]["unschedulable"]);
}

async fn a_json_patch_is_a_list_of_known_operations(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let patches = [
        ("a map", json!({ "op": "add" })),
        ("a strange operation", json!([{ "op": "burn", "path": "/spec" }])),
        ("no value", json!([{ "op": "add", "path": "/spec/unschedulable" }])),
        ("no path", json!([{ "op": "add", "value": 1 }])),
    ];
    for (what, patch) in patches {
        let told = witness.json_patch(&witness.node(), &patch).await;
        witness.note(what, told.short());
    }
}

async fn a_json_patch_may_end_in_what_is_not_allowed(witness: &mut Witness) {
    witness.with_interruption().await;
    let patches = [
        ("another type", json!([{ "op": "replace", "path": "/spec/node", "value": 3 }])),
        ("nothing left", json!([{ "op": "remove", "path": "/spec" }])),
        ("a rule", json!([{ "op": "replace", "path": "/spec/node", "value": "gpu-2" }])),
    ];
    for (what, patch) in patches {
        let told = witness.json_patch(&witness.interruption(), &patch).await;
        witness.note(what, told.code);
    }
}

async fn a_merge_patch_removes_by_null(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let patch = json!({ "metadata": { "labels": { "a": "b", "c": null } } });
    let done = witness.merge_patch(&witness.node(), &patch).await;
    witness.note("labels", &done.body["metadata"]["labels"]);
    let patch = json!({ "metadata": { "labels": { "a": null } } });
    let done = witness.merge_patch(&witness.node(), &patch).await;
    witness.note("labels", &done.body["metadata"]["labels"]);
    let patch = json!({ "metadata": { "annotations": { "lifeboat.dev/paused": null } } });
    let done = witness.merge_patch(&witness.node(), &patch).await;
    witness.note("what was never there", done);
}

async fn a_merge_patch_replaces_lists_whole(witness: &mut Witness) {
    let theirs = json!({ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" });
    witness.with_node(json!({ "taints": [theirs] })).await;
    let ours = json!({ "spec": { "taints": [{ "key": "ours", "effect": "NoSchedule" }] } });
    let done = witness.merge_patch(&witness.node(), &ours).await;
    witness.note("taints", &done.body["spec"]["taints"]);
}

async fn a_strategic_patch_replaces_taints_and_merges_conditions(witness: &mut Witness) {
    let theirs = json!({ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" });
    witness.with_node(json!({ "taints": [theirs] })).await;
    let ours = json!({ "spec": { "taints": [{ "key": "ours", "effect": "NoSchedule" }] } });
    let done = witness.strategic_patch(&witness.node(), &ours).await;
    witness.note("taints", &done.body["spec"]["taints"]);
    let status = format!("{}/status", witness.node());
    for kind in ["Ready", "Disk"] {
        let condition = json!({ "type": kind, "status": "True" });
        let patch = json!({ "status": { "conditions": [condition] } });
        witness.strategic_patch(&status, &patch).await;
    }
    let read = witness.read(&witness.node()).await;
    let kinds = read.body["status"]["conditions"].as_array().into_iter().flatten();
    let mut kinds: Vec<String> = kinds.map(|one| one["type"].to_string()).collect();
    kinds.sort();
    witness.note("conditions", kinds.join(" "));
}

async fn a_strategic_patch_has_directives(witness: &mut Witness) {
    let mut body = node(&witness.own("gpu-1"));
    body["metadata"]["finalizers"] = json!(["a.dev/one", "a.dev/two"]);
    body["metadata"]["labels"] = json!({ "a": "1", "b": "2" });
    witness.create(NODES, &body).await;
    let patches = [
        json!({ "metadata": { "finalizers": ["a.dev/three"] } }),
        json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["a.dev/one"] } }),
        json!({ "metadata": { "labels": { "$patch": "replace", "c": "3" } } }),
    ];
    for patch in patches {
        let done = witness.strategic_patch(&witness.node(), &patch).await;
        witness.note("finalizers", &done.body["metadata"]["finalizers"]);
        witness.note("labels", &done.body["metadata"]["labels"]);
    }
    let status = format!("{}/status", witness.node());
    let conditions = |list: Value| json!({ "status": { "conditions": list } });
    let both = json!([{ "type": "A", "status": "True" }, { "type": "B", "status": "True" }]);
    witness.strategic_patch(&status, &conditions(both)).await;
    let without = json!([{ "type": "A", "$patch": "delete" }]);
    let done = witness.strategic_patch(&status, &conditions(without)).await;
    let list = done.body["status"]["conditions"].as_array().map_or(0, Vec::len);
    witness.note("conditions", list);
    witness.merge_patch(&witness.node(), &json!({ "metadata": { "finalizers": null } })).await;
}

async fn a_definition_has_no_strategic_patch(witness: &mut Witness) {
    witness.with_interruption().await;
    let patch = json!({ "spec": { "instanceType": "g5.xlarge" } });
    let refused = witness.strategic_patch(&witness.interruption(), &patch).await;
    witness.note("record", refused.short());
}

async fn a_patch_needs_a_kind_that_is_known(witness: &mut Witness) {
    witness.with_node(json!({})).await;
    let refused = witness.patch(&witness.node(), "application/json", &json!({})).await;
    witness.note("json", refused.short());
}

async fn a_patch_needs_what_it_patches(witness: &mut Witness) {
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    let test = json!([{ "op": "test", "path": "/metadata/name", "value": "a" }]);
    let told = witness.merge_patch(&witness.node(), &label).await;
    witness.note("node, merged", told);
    let told = witness.json_patch(&witness.node(), &test).await;
    witness.note("node, guarded", told);
    let told = witness.json_patch(&witness.pod("a"), &test).await;
    witness.note("pod, guarded", told);
    let told = witness.json_patch(&witness.here("pods/a/status"), &test).await;
    witness.note("status of a pod", told);
    let told = witness.merge_patch(&witness.claim(), &label).await;
    witness.note("claim, merged", told);
}

async fn a_patch_over_an_old_version_is_refused(witness: &mut Witness) {
    let made = witness.with_node(json!({})).await;
    let label = |version: &str| json!({ "metadata": { "labels": { "a": version }, "resourceVersion": version } });
    let done = witness.merge_patch(&witness.node(), &label(made.version())).await;
    witness.note("over the newest", done.short());
    let refused = witness.merge_patch(&witness.node(), &label(made.version())).await;
    witness.note("over an old one", refused);
    let mut body = label(made.version());
    body["metadata"]["labels"] = json!({ "other": "value" });
    let refused = witness.strategic_patch(&witness.node(), &body).await;
    witness.note("strategic", refused.short());
}

async fn an_annotation_is_added_to_none(witness: &mut Witness) {
    witness.with_interruption().await;
    let patch = json!([
        { "op": "test", "path": "/metadata/annotations", "value": null },
        { "op": "add", "path": "/metadata/annotations", "value": { "a": "b" } },
    ]);
    let done = witness.json_patch(&witness.interruption(), &patch).await;
    witness.note("first", &done.body["metadata"]["annotations"]);
    let refused = witness.json_patch(&witness.interruption(), &patch).await;
    witness.note("second", refused.short());
}

//! What is made, under which name, and what the server fills in.

use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::CLAIMS;
use crate::rules::witness::INTERRUPTIONS;
use crate::rules::witness::NODES;
use crate::rules::witness::Witness;
use crate::rules::witness::claim;
use crate::rules::witness::interruption;
use crate::rules::witness::node;
use crate::rules::witness::pod;

rules![
    a_name_is_taken_once,
    a_namespace_must_be_there,
    a_generated_name_has_its_prefix_and_five_letters,
    an_object_without_a_name_is_refused,
    a_name_has_rules,
    no_version_is_given_to_what_is_new,
    body_and_path_name_the_same_namespace,
    body_and_path_name_the_same_kind,
    what_only_the_server_writes_is_the_servers,
    a_generation_is_counted_for_some_kinds,
    status_is_not_made_with_the_object_but_for_nodes,
    a_pod_gets_its_defaults,
    a_pod_has_a_class_of_service,
    a_pod_has_the_priority_of_its_class,
    a_pod_needs_a_container,
    a_job_gets_its_defaults,
    a_new_node_is_tainted_until_it_is_ready,
    a_node_gets_no_labels_from_the_server,
    a_claim_needs_its_class_and_known_operators,
    who_made_it_owns_its_fields,
];

async fn a_name_is_taken_once(witness: &mut Witness) {
    let pods = witness.here("pods");
    let leases = witness.here_of("coordination.k8s.io/v1", "leases");
    let lease = json!({ "metadata": { "name": "lb" } });
    let places = [
        (NODES.to_owned(), node(&witness.own("gpu-1"))),
        (pods, pod("a")),
        (leases, lease),
        (INTERRUPTIONS.to_owned(), interruption(&witness.own("i-1"))),
        (CLAIMS.to_owned(), claim(&witness.own("c-1"))),
    ];
    for (path, body) in places {
        let first = witness.create(&path, &body).await;
        witness.note("first", first);
        let second = witness.create(&path, &body).await;
        witness.note("second", second);
    }
}

async fn a_namespace_must_be_there(witness: &mut Witness) {
    let nowhere = |path: &str| path.replace("HERE", "nowhere");
    let lease = json!({ "metadata": { "name": "lb" } });
    let path = nowhere("/apis/coordination.k8s.io/v1/namespaces/HERE/leases");
    let refused = witness.create(&path, &lease).await;
    witness.note("lease", refused);
    let refused = witness.create(&nowhere("/api/v1/namespaces/HERE/pods"), &pod("a")).await;
    witness.note("pod", refused);
    let index = json!({
        "apiVersion": "lifeboat.dev/v1alpha1", "kind": "WorkloadCheckpoint",
        "metadata": { "name": "train" }, "spec": { "jobKey": "train" },
    });
    let path = nowhere("/apis/lifeboat.dev/v1alpha1/namespaces/HERE/workloadcheckpoints");
    let refused = witness.create(&path, &index).await;
    witness.note("index", refused);
    let applied = witness.apply(&format!("{path}/train"), "a", &index).await;
    witness.note("index, applied", applied);
}

async fn a_generated_name_has_its_prefix_and_five_letters(witness: &mut Witness) {
    let body = json!({ "metadata": { "generateName": "lb-" } });
    let path = witness.here_of("coordination.k8s.io/v1", "leases");
    let made = witness.create(&path, &body).await;
    let name = made.body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    witness.note("made", &made);
    witness.note("prefix", name.starts_with("lb-"));
    witness.note("letters", name.len());
    witness.note("prefix that stays", &made.body["metadata"]["generateName"]);
}

async fn an_object_without_a_name_is_refused(witness: &mut Witness) {
    let path = witness.here_of("coordination.k8s.io/v1", "leases");
    let refused = witness.create(&path, &json!({ "metadata": {} })).await;
    witness.note("lease", refused);
    let mut nameless = interruption("");
    nameless["metadata"] = json!({});
    let refused = witness.create(INTERRUPTIONS, &nameless).await;
    witness.note("record", refused.short());
}

async fn a_name_has_rules(witness: &mut Witness) {
    for name in ["Upper", "under_score", "-dash", "slash/ed"] {
        let refused = witness.create(NODES, &node(name)).await;
        witness.note("node", refused.short());
        let refused = witness.create(INTERRUPTIONS, &interruption(name)).await;
        witness.note("record", refused.short());
    }
}

async fn no_version_is_given_to_what_is_new(witness: &mut Witness) {
    let mut body = node(&witness.own("gpu-1"));
    body["metadata"]["resourceVersion"] = json!("1");
    let refused = witness.create(NODES, &body).await;
    witness.note("node", refused);
    let mut body = interruption(&witness.own("i-1"));
    body["metadata"]["resourceVersion"] = json!("1");
    let refused = witness.create(INTERRUPTIONS, &body).await;
    witness.note("record", refused);
}

async fn body_and_path_name_the_same_namespace(witness: &mut Witness) {
    let mut body = pod("a");
    body["metadata"]["namespace"] = json!("default");
    let refused = witness.create(&witness.here("pods"), &body).await;
    witness.note("pod", refused);
}

async fn body_and_path_name_the_same_kind(witness: &mut Witness) {
    let mut body = node(&witness.own("gpu-1"));
    body["kind"] = json!("Pod");
    let refused = witness.create(NODES, &body).await;
    witness.note("kind", refused.short());
    let mut body = interruption(&witness.own("i-1"));
    body["apiVersion"] = json!("lifeboat.dev/v1");
    let refused = witness.create(INTERRUPTIONS, &body).await;
    witness.note("version", refused.short());
    let body = json!({ "metadata": { "name": witness.own("gpu-2") } });
    let made = witness.create(NODES, &body).await;
    witness.note("neither said, built in", made);
    let mut body = interruption(&witness.own("i-2"));
    body.as_object_mut().unwrap().remove("kind");
    let refused = witness.create(INTERRUPTIONS, &body).await;
    witness.note("no kind said, of a definition", refused.short());
}

async fn what_only_the_server_writes_is_the_servers(witness: &mut Witness) {
    let mut body = node(&witness.own("gpu-1"));
    body["metadata"]["uid"] = json!("mine");
    body["metadata"]["creationTimestamp"] = json!("2001-01-01T00:00:00Z");
    body["metadata"]["deletionTimestamp"] = json!("2001-01-01T00:00:00Z");
    body["metadata"]["generation"] = json!(7);
    let made = witness.create(NODES, &body).await;
    let metadata = &made.body["metadata"];
    witness.note("made", &made);
    witness.note("uid", made.uid());
    witness.note("age kept", metadata["creationTimestamp"] == "2001-01-01T00:00:00Z");
    witness.note("deletion", &metadata["deletionTimestamp"]);
    let seconds = metadata["creationTimestamp"].as_str().unwrap_or_default().len();
    witness.note("letters of a time", seconds);
}

async fn a_generation_is_counted_for_some_kinds(witness: &mut Witness) {
    let made = witness.with_node(json!({})).await;
    witness.note("node", &made.body["metadata"]["generation"]);
    let made = witness.create(&witness.here("pods"), &pod("a")).await;
    witness.note("pod", &made.body["metadata"]["generation"]);
    let made = witness.with_interruption().await;
    witness.note("record", &made.body["metadata"]["generation"]);
    let made = witness.with_claim().await;
    witness.note("claim", &made.body["metadata"]["generation"]);
    let budget = json!({
        "metadata": { "name": "keep" },
        "spec": { "maxUnavailable": 0, "selector": { "matchLabels": { "app": "a" } } },
    });
    let path = witness.here_of("policy/v1", "poddisruptionbudgets");
    let made = witness.create(&path, &budget).await;
    witness.note("budget", &made.body["metadata"]["generation"]);
    let path = witness.here_of("coordination.k8s.io/v1", "leases");
    let made = witness.create(&path, &json!({ "metadata": { "name": "lb" } })).await;
    witness.note("lease", &made.body["metadata"]["generation"]);
}

async fn status_is_not_made_with_the_object_but_for_nodes(witness: &mut Witness) {
    let mut body = node(&witness.own("gpu-1"));
    body["status"] = json!({ "allocatable": { "nvidia.com/gpu": "4" } });
    let made = witness.create(NODES, &body).await;
    witness.note("node", &made.body["status"]["allocatable"]);
    let mut body = pod("a");
    body["status"] = json!({ "phase": "Running", "podIP": "10.0.0.1" });
    let made = witness.create(&witness.here("pods"), &body).await;
    witness.note("pod", &made.body["status"]["phase"]);
    witness.note("address of a pod", &made.body["status"]["podIP"]);
    let mut body = interruption(&witness.own("i-1"));
    body["status"] = json!({ "phase": "Saving" });
    let made = witness.create(INTERRUPTIONS, &body).await;
    witness.note("record", &made.body["status"]);
    let mut body = claim(&witness.own("c-1"));
    body["status"] = json!({ "nodeName": "gpu-1" });
    let made = witness.create(CLAIMS, &body).await;
    witness.note("claim", &made.body["status"]);
}

async fn a_pod_gets_its_defaults(witness: &mut Witness) {
    let body = json!({
        "metadata": { "name": "a" },
        "spec": { "containers": [{ "name": "main", "image": "train" }] },
    });
    let made = witness.create(&witness.here("pods"), &body).await;
    witness.note("made", &made);
    for field in [
        "terminationGracePeriodSeconds",
        "restartPolicy",
        "schedulerName",
        "serviceAccountName",
        "priority",
        "nodeName",
        "tolerations",
    ] {
        witness.note(field, &made.body["spec"][field]);
    }
    witness.note("phase", &made.body["status"]["phase"]);
    witness.note("annotations", &made.body["metadata"]["annotations"]);
    witness.note("labels", &made.body["metadata"]["labels"]);
    let mut body = pod("b");
    body["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
    let made = witness.create(&witness.here("pods"), &body).await;
    witness.note("tolerations of all", &made.body["spec"]["tolerations"]);
    let key = "node.kubernetes.io/not-ready";
    let mut body = pod("c");
    body["spec"]["tolerations"] =
        json!([{ "key": key, "operator": "Exists", "effect": "NoExecute" }]);
    let made = witness.create(&witness.here("pods"), &body).await;
    witness.note("tolerations of one", &made.body["spec"]["tolerations"]);
}

async fn a_pod_has_a_class_of_service(witness: &mut Witness) {
    let one = json!({ "cpu": "1", "memory": "1Gi" });
    let two = json!({ "cpu": "2", "memory": "1Gi" });
    let gpu = json!({ "nvidia.com/gpu": "1" });
    let asked = [
        json!({}),
        json!({ "limits": one }),
        json!({ "requests": one, "limits": one }),
        json!({ "requests": one, "limits": two }),
        json!({ "limits": gpu }),
    ];
    for (index, resources) in asked.into_iter().enumerate() {
        let mut body = pod(&format!("p{index}"));
        body["spec"]["containers"][0]["resources"] = resources.clone();
        let made = witness.create(&witness.here("pods"), &body).await;
        let told = (&made.body["status"]["qosClass"], &made.body["spec"]["containers"][0]);
        witness.note("class", told.0);
        witness.note("resources", &told.1["resources"]);
    }
}

async fn a_pod_has_the_priority_of_its_class(witness: &mut Witness) {
    let high = witness.own("high");
    let class = json!({ "metadata": { "name": high }, "value": 1000 });
    let made = witness.create("/apis/scheduling.k8s.io/v1/priorityclasses", &class).await;
    witness.note("class", made);
    let classes = [high, "system-node-critical".to_owned(), "system-cluster-critical".to_owned()];
    for (index, class) in classes.iter().enumerate() {
        let mut body = pod(&format!("p{index}"));
        body["spec"]["priorityClassName"] = json!(class);
        let made = witness.create(&witness.here("pods"), &body).await;
        witness.note("priority", &made.body["spec"]["priority"]);
    }
    let mut body = pod("strange");
    body["spec"]["priorityClassName"] = json!("nobodys");
    let refused = witness.create(&witness.here("pods"), &body).await;
    witness.note("no such class", refused);
}

async fn a_pod_needs_a_container(witness: &mut Witness) {
    for containers in [Value::Null, json!([])] {
        let mut body = pod("a");
        body["spec"]["containers"] = containers;
        let refused = witness.create(&witness.here("pods"), &body).await;
        witness.note("none", refused);
    }
}

async fn a_job_gets_its_defaults(witness: &mut Witness) {
    let body = json!({
        "metadata": { "name": "train" },
        "spec": { "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "main", "image": "train" }],
        } } },
    });
    let made = witness.create(&witness.here_of("batch/v1", "jobs"), &body).await;
    witness.note("made", &made);
    let spec = &made.body["spec"];
    for field in ["parallelism", "completions", "backoffLimit", "suspend", "podReplacementPolicy"] {
        witness.note(field, &spec[field]);
    }
    let labels = &spec["template"]["metadata"]["labels"];
    witness.note("labels", labels);
    witness.note("selector", &spec["selector"]);
    let policy = json!({ "rules": [{
        "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }],
    }] });
    let mut body = body;
    body["metadata"]["name"] = json!("failing");
    body["spec"]["podFailurePolicy"] = policy;
    let made = witness.create(&witness.here_of("batch/v1", "jobs"), &body).await;
    witness.note("with a failure policy", &made.body["spec"]["podReplacementPolicy"]);
    body["metadata"]["name"] = json!("always");
    body["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
    let refused = witness.create(&witness.here_of("batch/v1", "jobs"), &body).await;
    witness.note("restarts always", refused.short());
}

async fn a_new_node_is_tainted_until_it_is_ready(witness: &mut Witness) {
    let made = witness.with_node(json!({})).await;
    witness.note("taints", &made.body["spec"]["taints"]);
    let mut body = node(&witness.own("gpu-2"));
    body["spec"]["taints"] =
        json!([{ "key": "dedicated", "value": "gpu", "effect": "NoSchedule" }]);
    let made = witness.create(NODES, &body).await;
    witness.note("beside its own", &made.body["spec"]["taints"]);
}

async fn a_node_gets_no_labels_from_the_server(witness: &mut Witness) {
    let made = witness.with_node(json!({})).await;
    witness.note("labels", &made.body["metadata"]["labels"]);
    witness.note("annotations", &made.body["metadata"]["annotations"]);
}

async fn a_claim_needs_its_class_and_known_operators(witness: &mut Witness) {
    let name = witness.own("c-1");
    let broken = |path: &str, value: Value| {
        let mut body = claim(&name);
        *body.pointer_mut(path).unwrap() = value;
        body
    };
    let requirement = |operator: &str, values: Value| json!([{ "key": "karpenter.sh/capacity-type", "operator": operator, "values": values }]);
    let bodies = [
        ("no class", broken("/spec/nodeClassRef", Value::Null)),
        ("no name of the class", broken("/spec/nodeClassRef/name", json!(""))),
        ("no requirements", broken("/spec/requirements", Value::Null)),
        ("operator", broken("/spec/requirements", requirement("Like", json!(["spot"])))),
        ("no values", broken("/spec/requirements", requirement("In", json!([])))),
    ];
    for (what, body) in bodies {
        let refused = witness.create(CLAIMS, &body).await;
        witness.note(what, refused.code);
    }
    let body = broken("/spec/requirements", json!([]));
    let made = witness.create(CLAIMS, &body).await;
    witness.note("an empty list", made);
}

async fn who_made_it_owns_its_fields(witness: &mut Witness) {
    let mut body = node(&witness.own("gpu-1"));
    body["metadata"]["labels"] = json!({ "team": "red" });
    body["metadata"]["annotations"] = json!({ "a/b": "c" });
    body["spec"] = json!({ "providerID": "aws:///us-east-2a/i-1" });
    let made = witness.create(NODES, &body).await;
    let entries = made.body["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    for entry in entries {
        witness.note("manager", &entry["manager"]);
        witness.note("operation", &entry["operation"]);
        let fields = &entry["fieldsV1"];
        witness.note("label", &fields["f:metadata"]["f:labels"]["f:team"]);
        witness.note("annotation", &fields["f:metadata"]["f:annotations"]["f:a/b"]);
        witness.note("provider", &fields["f:spec"]["f:providerID"]);
    }
}

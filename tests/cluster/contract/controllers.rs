//! What Kubernetes' own controllers do to nodes, budgets, jobs, and to what is owned.

use serde_json::Value;
use serde_json::json;

use crate::rules::rules;
use crate::rules::witness::Answer;
use crate::rules::witness::NODES;
use crate::rules::witness::Witness;
use crate::rules::witness::node;

rules![
    a_cordon_is_told_by_a_taint_too,
    a_node_that_is_ready_loses_its_first_taint,
    a_node_that_is_not_ready_is_tainted,
    a_budget_says_what_it_can_spare,
    a_budget_of_portions_covers_no_job,
    what_is_owned_goes_with_its_owner,
    what_two_own_stays_with_the_other,
    a_job_makes_its_pods,
    a_job_is_complete_with_its_last_pod,
    a_job_fails_beyond_its_limit,
    an_evicted_pod_of_a_job_is_replaced_and_not_counted,
];

fn taints(answer: &Answer) -> String {
    let list = answer.body["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let mut told: Vec<String> =
        list.iter().map(|taint| format!("{}:{}", taint["key"], taint["effect"])).collect();
    told.sort();
    told.join(" ").replace('"', "")
}

async fn with_ready_node(witness: &Witness, ready: &str) -> Answer {
    witness.create(NODES, &node(&witness.own("gpu-1"))).await;
    let made = witness.read(&witness.node()).await;
    let now = &made.body["metadata"]["creationTimestamp"];
    let condition = json!({
        "type": "Ready", "status": ready, "reason": "KubeletReady", "message": "",
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    });
    let patch = json!({ "status": { "conditions": [condition] } });
    witness.strategic_patch(&format!("{}/status", witness.node()), &patch).await
}

async fn a_cordon_is_told_by_a_taint_too(witness: &mut Witness) {
    with_ready_node(witness, "True").await;
    witness.until(&witness.node(), |node| taints(node).is_empty()).await;
    let cordon = |on: bool| json!({ "spec": { "unschedulable": on } });
    witness.merge_patch(&witness.node(), &cordon(true)).await;
    let told = witness.until(&witness.node(), |node| !taints(node).is_empty()).await;
    witness.note("cordoned", taints(&told));
    witness.merge_patch(&witness.node(), &cordon(false)).await;
    let told = witness.until(&witness.node(), |node| taints(node).is_empty()).await;
    witness.note("let go", taints(&told));
}

async fn a_node_that_is_ready_loses_its_first_taint(witness: &mut Witness) {
    let made = with_ready_node(witness, "True").await;
    witness.note("made", made.short());
    let told = witness.until(&witness.node(), |node| taints(node).is_empty()).await;
    witness.note("taints", taints(&told));
}

async fn a_node_that_is_not_ready_is_tainted(witness: &mut Witness) {
    with_ready_node(witness, "True").await;
    witness.until(&witness.node(), |node| taints(node).is_empty()).await;
    with_ready_node(witness, "False").await;
    let is_told = |node: &Answer| taints(node).contains("not-ready:NoSchedule");
    let told = witness.until(&witness.node(), is_told).await;
    witness.note("told by a taint", is_told(&told));
}

fn labelled(witness: &Witness, name: &str) -> Value {
    let mut body = crate::rules::witness::pod(name);
    body["metadata"]["labels"]["app"] = json!("a");
    body["spec"]["nodeName"] = json!(witness.own("gpu-1"));
    body
}

async fn running(witness: &Witness, name: &str) {
    witness.create(&witness.here("pods"), &labelled(witness, name)).await;
    let ready = json!({ "type": "Ready", "status": "True" });
    let status = json!({ "status": { "phase": "Running", "conditions": [ready] } });
    witness.merge_patch(&witness.here(&format!("pods/{name}/status")), &status).await;
}

fn spared(answer: &Answer) -> String {
    let status = &answer.body["status"];
    let parts = ["expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed"];
    parts.map(|part| status[part].to_string()).join(" ")
}

async fn with_budget(witness: &Witness, spec: &Value) -> String {
    let path = witness.here_of("policy/v1", "poddisruptionbudgets");
    let mut budget = json!({
        "metadata": { "name": "keep" }, "spec": { "selector": { "matchLabels": { "app": "a" } } },
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        budget["spec"][key] = value.clone();
    }
    witness.create(&path, &budget).await;
    format!("{path}/keep")
}

async fn a_budget_says_what_it_can_spare(witness: &mut Witness) {
    with_ready_node(witness, "True").await;
    for name in ["a", "b"] {
        running(witness, name).await;
    }
    let budget = with_budget(witness, &json!({ "minAvailable": 1 })).await;
    let told = witness.until(&budget, |told| spared(told) == "2 1 2 1").await;
    witness.note("expected, wanted, healthy, spared", spared(&told));
    witness.note("looked at", &told.body["status"]["observedGeneration"]);
    let told = witness.evict("a", json!({})).await;
    witness.note("evicted", told.short());
    let told = witness.until(&budget, |told| spared(told) == "2 1 1 0").await;
    witness.note("while one is going", spared(&told));
    let told = witness.evict("b", json!({})).await;
    witness.note("the other", told.short());
    witness.delete(&witness.pod("a"), json!({ "gracePeriodSeconds": 0 })).await;
    let told = witness.until(&budget, |told| spared(told) == "1 1 1 0").await;
    witness.note("when it is gone", spared(&told));
}

fn job(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": { "labels": { "app": "a" } },
                "spec": {
                    "restartPolicy": "Never", "automountServiceAccountToken": false,
                    "containers": [{ "name": "main", "image": "train" }],
                },
            },
        },
    })
}

fn items(answer: &Answer) -> Vec<Value> {
    answer.body["items"].as_array().cloned().unwrap_or_default()
}

/// Makes a job, and gives its first pod.
async fn with_job(witness: &Witness, body: &Value) -> Value {
    witness.create(&witness.here_of("batch/v1", "jobs"), body).await;
    let pods = witness.until(&witness.here("pods"), |list| !items(list).is_empty()).await;
    items(&pods).first().cloned().unwrap_or_default()
}

async fn set_phase(witness: &Witness, pod: &Value, phase: &str) {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let ready =
        json!({ "type": "Ready", "status": if phase == "Running" { "True" } else { "False" } });
    let code = i32::from(phase == "Failed");
    let mut status = json!({ "status": { "phase": phase, "conditions": [ready] } });
    if phase != "Running" {
        let ended = json!({ "exitCode": code, "finishedAt": pod["metadata"]["creationTimestamp"] });
        status["status"]["containerStatuses"] = json!([{
            "name": "main", "image": "train", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": ended },
        }]);
    }
    witness.strategic_patch(&witness.here(&format!("pods/{name}/status")), &status).await;
}

async fn a_budget_of_portions_covers_no_job(witness: &mut Witness) {
    let pod = with_job(witness, &job("train")).await;
    set_phase(witness, &pod, "Running").await;
    let budget = with_budget(witness, &json!({ "maxUnavailable": 1 })).await;
    let looked = |told: &Answer| told.body["status"]["conditions"].is_array();
    let told = witness.until(&budget, looked).await;
    witness.note("spared", &told.body["status"]["disruptionsAllowed"]);
    let conditions = told.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for one in conditions {
        witness.note("condition", format!("{} {} {}", one["type"], one["status"], one["reason"]));
    }
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let told = witness.evict(&name, json!({})).await;
    witness.note("evicted", told.code);
}

fn lease(name: &str, owners: &[&Answer]) -> Value {
    let owners = owners.iter().map(|owner| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "name": owner.body["metadata"]["name"], "uid": owner.uid(),
        })
    });
    json!({ "metadata": { "name": name, "ownerReferences": owners.collect::<Vec<_>>() } })
}

async fn what_is_owned_goes_with_its_owner(witness: &mut Witness) {
    let leases = witness.here_of("coordination.k8s.io/v1", "leases");
    let above = witness.create(&leases, &lease("owner", &[])).await;
    let owned = witness.create(&leases, &lease("owned", &[&above])).await;
    witness.note("owned", owned.short());
    witness.create(&leases, &lease("below", &[&owned])).await;
    let background = json!({ "propagationPolicy": "Background" });
    witness.delete(&format!("{leases}/owner"), background).await;
    for name in ["owned", "below"] {
        let told = witness.until(&format!("{leases}/{name}"), |told| told.code == 404).await;
        witness.note(name, told.code);
    }
}

async fn what_two_own_stays_with_the_other(witness: &mut Witness) {
    let leases = witness.here_of("coordination.k8s.io/v1", "leases");
    let first = witness.create(&leases, &lease("first", &[])).await;
    let second = witness.create(&leases, &lease("second", &[])).await;
    witness.create(&leases, &lease("owned", &[&first, &second])).await;
    witness.create(&leases, &lease("other", &[&first])).await;
    let background = json!({ "propagationPolicy": "Background" });
    witness.delete(&format!("{leases}/first"), background.clone()).await;
    witness.until(&format!("{leases}/other"), |told| told.code == 404).await;
    let told = witness.read(&format!("{leases}/owned")).await;
    witness.note("with one left", told.code);
    witness.delete(&format!("{leases}/second"), background).await;
    let told = witness.until(&format!("{leases}/owned"), |told| told.code == 404).await;
    witness.note("with none left", told.code);
}

async fn a_job_makes_its_pods(witness: &mut Witness) {
    let pod = with_job(witness, &job("train")).await;
    let metadata = &pod["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    witness.note("name", format!("{} {}", name.starts_with("train-"), name.len()));
    witness.note("prefix", &metadata["generateName"]);
    witness.note("labels", &metadata["labels"]);
    witness.note("finalizers", &metadata["finalizers"]);
    let owner = &metadata["ownerReferences"][0];
    for part in ["apiVersion", "kind", "name", "controller", "blockOwnerDeletion"] {
        witness.note(part, &owner[part]);
    }
    let path = witness.here_of("batch/v1", "jobs/train");
    let told = witness.until(&path, |job| job.body["status"]["active"] == 1).await;
    witness.note("active", &told.body["status"]["active"]);
    let gone = json!({ "propagationPolicy": "Background" });
    witness.delete(&path, gone).await;
    let pods = witness.here("pods");
    let told = witness.until(&pods, |list| items(list).is_empty()).await;
    witness.note("pods without their job", items(&told).len());
}

fn conditions(answer: &Answer) -> String {
    let list = answer.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let told =
        list.iter().map(|one| format!("{} {} {}", one["type"], one["status"], one["reason"]));
    let mut told: Vec<String> = told.collect();
    told.sort();
    told.join(", ").replace('"', "")
}

async fn a_job_is_complete_with_its_last_pod(witness: &mut Witness) {
    let pod = with_job(witness, &job("train")).await;
    set_phase(witness, &pod, "Running").await;
    set_phase(witness, &pod, "Succeeded").await;
    let path = witness.here_of("batch/v1", "jobs/train");
    let told = witness.until(&path, |job| conditions(job).contains("Complete True")).await;
    witness.note("conditions", conditions(&told));
    witness.note("succeeded", &told.body["status"]["succeeded"]);
    witness.note("active", &told.body["status"]["active"]);
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let told = witness.read(&witness.pod(&name)).await;
    witness.note("its pod", format!("{} {}", told.code, told.body["metadata"]["finalizers"]));
}

async fn a_job_fails_beyond_its_limit(witness: &mut Witness) {
    let pod = with_job(witness, &job("train")).await;
    set_phase(witness, &pod, "Running").await;
    set_phase(witness, &pod, "Failed").await;
    let path = witness.here_of("batch/v1", "jobs/train");
    let told = witness.until(&path, |job| conditions(job).contains("Failed True")).await;
    witness.note("conditions", conditions(&told));
    witness.note("failed", &told.body["status"]["failed"]);
}

async fn an_evicted_pod_of_a_job_is_replaced_and_not_counted(witness: &mut Witness) {
    let mut body = job("train");
    body["spec"]["podFailurePolicy"] = json!({ "rules": [{
        "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }],
    }] });
    let pod = with_job(witness, &body).await;
    set_phase(witness, &pod, "Running").await;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let told = witness.evict(&name, json!({ "gracePeriodSeconds": 15 })).await;
    witness.note("evicted", told.short());
    set_phase(witness, &pod, "Failed").await;
    let another =
        |list: &Answer| items(list).iter().any(|pod| pod["metadata"]["name"] != name.as_str());
    let told = witness.until(&witness.here("pods"), another).await;
    witness.note("another pod", another(&told));
    let path = witness.here_of("batch/v1", "jobs/train");
    let told = witness.read(&path).await;
    witness.note("failed", &told.body["status"]["failed"]);
    witness.note("conditions", conditions(&told));
    let told = witness.until(&witness.pod(&name), |told| told.code == 404).await;
    witness.note("the evicted one", told.code);
}

//! What the API server fills in when an object is created.

use serde_json::Value;
use serde_json::json;

use crate::world::cluster::Cluster;
use crate::world::cluster::object::items;
use crate::world::cluster::object::keyed;
use crate::world::cluster::object::name;
use crate::world::cluster::object::number;
use crate::world::cluster::object::set;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::DEFINITION;
use crate::world::cluster::resource::JOB;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::POD;
use crate::world::cluster::resource::PRIORITY_CLASS;
use crate::world::cluster::resource::Resource;

/// Taints a node that is made through the API until it is ready.
///
/// Source: Kubernetes, admission plugin `TaintNodesByCondition`.
pub fn taint(resource: Resource, object: &mut Value) {
    const KEY: &str = "node.kubernetes.io/not-ready";
    let mut taints = items(object, "/spec/taints").to_vec();
    if resource == NODE && !taints.iter().any(|taint| text(taint, "/key") == KEY) {
        taints.push(json!({ "key": KEY, "effect": "NoSchedule" }));
        set(object, "/spec/taints", Value::Array(taints));
    }
}

/// Names a node by its host, as its kubelet does.
pub fn host(object: &mut Value) {
    let name = name(object).to_owned();
    or_else(object, "/metadata/labels/kubernetes.io~1hostname", json!(name));
}

/// Fills in an object's defaults.
///
/// # Errors
/// 403 where a pod names a priority class that isn't there.
pub fn default(cluster: &Cluster, resource: Resource, object: &mut Value) -> Result<(), Refusal> {
    match resource {
        POD => pod(cluster, object),
        JOB => {
            job(object);
            Ok(())
        }
        DEFINITION => {
            definition(object);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn pod(cluster: &Cluster, pod: &mut Value) -> Result<(), Refusal> {
    or_else(pod, "/spec/terminationGracePeriodSeconds", json!(30));
    or_else(pod, "/spec/restartPolicy", json!("Always"));
    or_else(pod, "/spec/schedulerName", json!("default-scheduler"));
    or_else(pod, "/spec/serviceAccountName", json!("default"));
    or_else(pod, "/spec/containers", json!([]));
    or_else(pod, "/status/phase", json!("Pending"));
    let class = quality(pod);
    or_else(pod, "/status/qosClass", json!(class));
    let class = text(pod, "/spec/priorityClassName").to_owned();
    let priority = match class.as_str() {
        "" => 0,
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        named => {
            let found = cluster.find(PRIORITY_CLASS, named);
            let missing = || {
                let pod = name(pod);
                let why = format!("no PriorityClass with name {named} was found");
                let message = format!("pods \"{pod}\" is forbidden: {why}");
                Refusal::new(403, "Forbidden", message).about(POD, POD.plural, pod)
            };
            number(found.ok_or_else(missing)?, "/value").unwrap_or_default()
        }
    };
    or_else(pod, "/spec/priority", json!(priority));
    let mut tolerations = items(pod, "/spec/tolerations").to_vec();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let known = |toleration: &Value| {
            let own = text(toleration, "/key");
            own == key || (own.is_empty() && text(toleration, "/operator") == "Exists")
        };
        if !tolerations.iter().any(known) {
            let (operator, effect) = ("Exists", "NoExecute");
            tolerations.push(json!({
                "key": key, "operator": operator, "effect": effect, "tolerationSeconds": 300,
            }));
        }
    }
    set(pod, "/spec/tolerations", Value::Array(tolerations));
    Ok(())
}

/// Fills in what a container asks for where it only says its limits, and gives the pod's class.
fn quality(pod: &mut Value) -> &'static str {
    let containers = pod.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    let (mut any, mut whole) = (false, true);
    for container in containers.into_iter().flatten() {
        let limits = container.pointer("/resources/limits").cloned().unwrap_or_default();
        for (name, limit) in limits.as_object().into_iter().flatten() {
            or_else(container, &keyed("/resources/requests", name), limit.clone());
        }
        for name in ["cpu", "memory"] {
            let asked = &container["resources"]["requests"][name];
            any |= !asked.is_null();
            whole &= !asked.is_null() && *asked == limits[name];
        }
    }
    match (any, whole) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn job(job: &mut Value) {
    or_else(job, "/spec/parallelism", json!(1));
    or_else(job, "/spec/completions", json!(1));
    or_else(job, "/spec/backoffLimit", json!(6));
    or_else(job, "/spec/suspend", json!(false));
    let replacement = if job.pointer("/spec/podFailurePolicy").is_some() {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    or_else(job, "/spec/podReplacementPolicy", json!(replacement));
    let (own_uid, own_name) = (uid(job).to_owned(), name(job).to_owned());
    let labels = [
        ("batch.kubernetes.io/controller-uid", &own_uid),
        ("controller-uid", &own_uid),
        ("batch.kubernetes.io/job-name", &own_name),
        ("job-name", &own_name),
    ];
    for (key, value) in labels {
        set(job, &keyed("/spec/template/metadata/labels", key), json!(value));
    }
    let selector = json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": own_uid } });
    or_else(job, "/spec/selector", selector);
}

/// A definition is served at once: the kinds that there are, are built in.
fn definition(definition: &mut Value) {
    let names = definition.pointer("/spec/names").cloned().unwrap_or_default();
    let conditions = ["NamesAccepted", "Established"].map(|kind| {
        json!({ "type": kind, "status": "True", "reason": "InitialNamesAccepted", "message": "" })
    });
    let stored: Vec<Value> =
        items(definition, "/spec/versions").iter().map(|version| version["name"].clone()).collect();
    let status =
        json!({ "conditions": conditions, "acceptedNames": names, "storedVersions": stored });
    set(definition, "/status", status);
}

fn or_else(object: &mut Value, path: &str, value: Value) {
    if object.pointer(path).is_none_or(Value::is_null) {
        set(object, path, value);
    }
}

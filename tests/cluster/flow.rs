//! Whose requests come first: the chart's `flowcontrol.yaml` on a server that a tenant floods.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use kube::client::Body;
use lifeboat_chaos::control_plane::ControlPlane;
use lifeboat_chaos::control_plane::Settings;
use lifeboat_chaos::control_plane::identity::Identity;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;

use crate::plane::binaries;

const FILE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/lifeboat/files/flowcontrol.yaml");
const LEVEL: &str = "x-kubernetes-pf-prioritylevel-uid";
const QUEUED: &str = "apiserver_flowcontrol_current_inqueue_requests";
const REJECTED: &str = "apiserver_flowcontrol_rejected_requests_total";
const WAIT: &str = "apiserver_flowcontrol_request_wait_duration_seconds";
const SEATS: u32 = 40;
/// Requests of the tenant at a time: more than the whole server has seats for.
const FLOOD: usize = 200;
const FENCES: usize = 20;

#[tokio::test]
async fn a_flood_of_low_priority_work_does_not_delay_the_fence() {
    let Some(binaries) = binaries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { seats: Some(SEATS), ..Settings::new(&binaries, folder.path()) };
    let plane = ControlPlane::start(settings).await.unwrap();
    let admin = plane.client();
    let levels = apply(&admin).await;
    let us = member(&plane, "lifeboat-system", "lifeboat-controller").await;
    let agent = member(&plane, "lifeboat-system", "lifeboat-agent").await;
    let tenant = member(&plane, "tenant", "noisy").await;
    fill(&admin).await;
    put(&admin, "/api/v1/nodes/gpu-1", json!({"kind": "Node", "apiVersion": "v1"})).await;
    let fence = json!({"spec": {"unschedulable": true}});

    let alone = fences(&us, &fence).await;
    assert_eq!(alone.level, levels["lifeboat-first-aid"]);
    let (list, _) = send(&agent, "GET", "/api/v1/nodes", None).await;
    assert_eq!(list.level, levels["lifeboat-agents"]);

    let flood: Vec<_> = (0..FLOOD).map(|_| tokio::spawn(flood(tenant.clone()))).collect();
    until_full(&admin).await;
    let beside = fences(&us, &fence).await;
    let full = metrics(&admin).await;
    flood.iter().for_each(tokio::task::JoinHandle::abort);

    assert_eq!(beside.level, levels["lifeboat-first-aid"]);
    assert!(sum(&full, REJECTED, "lifeboat-first-aid") < 1.0, "a fence was turned away");
    let (ours, theirs) = (wait(&full, "lifeboat-first-aid"), wait(&full, "workload-low"));
    assert!(ours * 10.0 < theirs, "we waited {ours} s for a seat, and the tenant {theirs} s");
    eprintln!(
        "a fence took {:?} at the median alone and {:?} beside the flood of {FLOOD}; for a seat it \
         waited {ours:.4} s, and a request of the tenant {theirs:.4} s",
        alone.median, beside.median
    );
}

struct Fences {
    level: String,
    median: Duration,
}

/// Every one of them is answered, and all by the same level.
async fn fences(us: &kube::Client, fence: &Value) -> Fences {
    let mut took = Vec::new();
    let mut level = String::new();
    for _ in 0..FENCES {
        let began = Instant::now();
        let (answer, body) = send(us, "PATCH", "/api/v1/nodes/gpu-1", Some(fence)).await;
        assert_eq!(answer.status, 200, "{body}");
        took.push(began.elapsed());
        level = answer.level;
    }
    took.sort();
    Fences { level, median: took[FENCES / 2] }
}

/// What a careless operator of a tenant does: everything, again and again.
async fn flood(tenant: kube::Client) {
    loop {
        drop(send(&tenant, "GET", "/api/v1/namespaces/tenant/configmaps", None).await);
    }
}

/// Waits until requests of the tenant stand in a queue.
async fn until_full(admin: &kube::Client) {
    let full = async {
        while sum(&metrics(admin).await, QUEUED, "workload-low") < 1.0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(3), full).await.expect("the server was not filled");
}

/// Three megabytes for each list of the tenant.
async fn fill(admin: &kube::Client) {
    for number in 0..30 {
        let path = format!("/api/v1/namespaces/tenant/configmaps/big-{number}");
        let big =
            json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"x": "y".repeat(100_000)}});
        put(admin, &path, big).await;
    }
}

/// A client of a service account that may do everything: what holds it back is its level alone.
async fn member(plane: &ControlPlane, namespace: &str, name: &str) -> kube::Client {
    let client = plane.client_of(&Identity::account(namespace, name)).await.unwrap();
    let path = format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}");
    let binding = json!({
        "kind": "ClusterRoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}],
    });
    put(&plane.client(), &path, binding).await;
    client
}

/// Applies the file as it is shipped; the UIDs of its levels.
async fn apply(admin: &kube::Client) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(FILE).unwrap();
    let mut levels = BTreeMap::new();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let object = Value::deserialize(document).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let (plural, level) = match object["kind"].as_str().unwrap() {
            "FlowSchema" => ("flowschemas", false),
            _ => ("prioritylevelconfigurations", true),
        };
        let path = format!("/apis/flowcontrol.apiserver.k8s.io/v1/{plural}/{name}");
        let made = put(admin, &path, object).await;
        if level {
            levels.insert(name, made["metadata"]["uid"].as_str().unwrap().to_owned());
        }
    }
    // The server takes them over by a watch of its own.
    tokio::time::sleep(Duration::from_secs(2)).await;
    levels
}

async fn put(admin: &kube::Client, path: &str, mut object: Value) -> Value {
    object["metadata"]["name"] = json!(path.rsplit('/').next());
    let path = format!("{path}?fieldManager=test&force=true");
    let (answer, body) = send(admin, "APPLY", &path, Some(&object)).await;
    assert!(answer.status < 300, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

struct Answer {
    status: u16,
    level: String,
}

async fn send(
    client: &kube::Client,
    verb: &str,
    path: &str,
    body: Option<&Value>,
) -> (Answer, String) {
    let (method, content) = match verb {
        "APPLY" => ("PATCH", "application/apply-patch+yaml"),
        verb => (verb, "application/merge-patch+json"),
    };
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string().into_bytes()));
    let request = Request::builder().method(method).uri(path).header("content-type", content);
    let answer = client.send(request.body(body).unwrap()).await.unwrap();
    let level = answer.headers().get(LEVEL).map(|uid| uid.to_str().unwrap().to_owned());
    let told = Answer { status: answer.status().as_u16(), level: level.unwrap_or_default() };
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (told, String::from_utf8_lossy(&body).into_owned())
}

async fn metrics(admin: &kube::Client) -> String {
    send(admin, "GET", "/metrics", None).await.1
}

/// How many seconds a request of a level waits for a seat, on average.
fn wait(metrics: &str, level: &str) -> f64 {
    let (all, count) = (format!("{WAIT}_sum"), format!("{WAIT}_count"));
    sum(metrics, &all, level) / sum(metrics, &count, level).max(1.0)
}

/// The sum of a metric over all series of a priority level.
fn sum(metrics: &str, name: &str, level: &str) -> f64 {
    let label = format!("priority_level=\"{level}\"");
    let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains(&label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

//! What an agent's token is good for in other hands, with the chart's roles and its policy: for what
//! that agent says of its own node, and for nothing else.

use kube::Client;
use lifeboat::adapters::cluster::Cluster;
use lifeboat::adapters::cluster::Slots;
use lifeboat::adapters::cluster::checkpoints;
use lifeboat::adapters::cluster::interruptions;
use lifeboat::adapters::cluster::interruptions::Subject;
use lifeboat::clock::Clock;
use lifeboat::crd::node_interruption::Workload;
use lifeboat::crd::workload_checkpoint::Newest;
use lifeboat_chaos::company::LABEL;
use lifeboat_chaos::company::objects::Objects;
use lifeboat_chaos::control_plane::FAKE_NODE;
use lifeboat_chaos::control_plane::identity::Identity;
use lifeboat_domain::signal::Action;
use lifeboat_domain::signal::Kind;
use lifeboat_domain::signal::Signal;
use lifeboat_domain::signal::Source;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::chart::NAMESPACE;
use crate::chart::try_out;
use crate::theater;
use crate::theater::Turn;
use crate::theater::eventually;

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/lifeboat/files");
const ACCOUNT: &str = "lifeboat-agent";
const OWN: &str = "stolen-1";
const OTHER: &str = "stolen-2";
/// The instances of the two nodes.
const OWN_INSTANCE: &str = "i-0000000000000aaa1";
const OTHER_INSTANCE: &str = "i-0000000000000aaa2";

#[test]
fn an_agents_token_says_nothing_of_another_node() {
    theater::on_stage(async |turn| {
        let agent = agent_on_own_node(&turn).await;
        let admin = Cluster::routine(turn.plane().client(), &Slots::new(8, 0));
        let queue = signal(Source::Queue);
        interruptions::record(&admin, &subject(OTHER_INSTANCE, OTHER), &queue, "controller")
            .await
            .unwrap();
        until_policed(&agent).await;

        let thief = Cluster::routine(agent.clone(), &Slots::new(8, 0));
        let imds = signal(Source::Imds);
        refused("spoken for", record(&thief, "i-0000000000000aaa3", OTHER, &imds).await);
        refused("added to", record(&thief, OTHER_INSTANCE, OTHER, &imds).await);
        refused("heard by others", record(&thief, OWN_INSTANCE, OWN, &queue).await);
        refused("reported", report(&thief, OTHER_INSTANCE, &workload()).await);
        let status = json!({"phase": "Released", "closedAt": Clock::system().now()});
        record(&thief, OWN_INSTANCE, OWN, &imds).await.unwrap();
        refused("closed", close(&thief, OWN_INSTANCE, status).await);
        refused("drained", drain(&agent).await);
        refused("indexed", newest(&thief, OTHER).await);
        refused("proven", proven(&agent).await);
        let unbound = turn.plane().client_of(&Identity::account(NAMESPACE, ACCOUNT)).await.unwrap();
        let unbound = Cluster::routine(unbound, &Slots::new(8, 0));
        refused("unbound", record(&unbound, "i-0000000000000aaa4", OWN, &imds).await);
    });
}

#[test]
fn an_agents_token_says_all_that_an_agent_says_of_its_own_node() {
    theater::on_stage(async |turn| {
        let agent = agent_on_own_node(&turn).await;
        until_policed(&agent).await;
        let honest = Cluster::routine(agent, &Slots::new(8, 0));
        record(&honest, OWN_INSTANCE, OWN, &signal(Source::Imds)).await.unwrap();
        // Beside what the controller has written of the same pod.
        let admin = Cluster::routine(turn.plane().client(), &Slots::new(8, 0));
        let part = json!({"phase": "Draining", "workloads": {"uid-1": drained()}});
        close(&admin, OWN_INSTANCE, part).await.unwrap();
        report(&honest, OWN_INSTANCE, &workload()).await.unwrap();
        newest(&honest, OWN).await.unwrap();
        // A successor on this node, after one on another.
        newest(&admin, OTHER).await.unwrap();
        newest(&honest, OWN).await.unwrap();
    });
}

#[test]
fn an_agents_token_touches_no_node_pod_or_claim() {
    theater::on_stage(async |turn| {
        let agent = agent_on_own_node(&turn).await;
        let pod = format!("/api/v1/namespaces/{NAMESPACE}/pods/agent");
        for (method, path) in [
            ("GET", "/api/v1/nodes/stolen-1".to_owned()),
            ("PATCH", "/api/v1/nodes/stolen-1".to_owned()),
            ("PATCH", "/api/v1/nodes/stolen-2".to_owned()),
            ("DELETE", "/api/v1/nodes/stolen-2".to_owned()),
            ("PATCH", pod.clone()),
            ("DELETE", pod.clone()),
            ("POST", format!("{pod}/eviction")),
            ("POST", "/apis/karpenter.sh/v1/nodeclaims".to_owned()),
            ("DELETE", format!("/apis/lifeboat.dev/v1alpha1/nodeinterruptions/{OWN_INSTANCE}")),
            ("GET", format!("/api/v1/namespaces/{NAMESPACE}/secrets")),
        ] {
            let request = http::Request::builder().method(method).uri(&path);
            let request = request.header("content-type", "application/merge-patch+json");
            let answer = agent.request_text(request.body(b"{}".to_vec()).unwrap()).await;
            let code = match answer {
                Err(kube::Error::Api(status)) => status.code,
                other => panic!("{method} {path}: {other:?}"),
            };
            assert_eq!(code, 403, "{method} {path}");
        }
    });
}

/// The client of an agent's pod on the first of two nodes, with the chart's roles and policy.
async fn agent_on_own_node(turn: &Turn) -> Client {
    let admin = turn.plane().client();
    let objects = Objects::new(admin.clone());
    turn.plane().kubeconfig_of(&Identity::account(NAMESPACE, ACCOUNT)).await.unwrap();
    for file in ["rbac.yaml", "admission.yaml"] {
        let text = std::fs::read_to_string(format!("{FILES}/{file}")).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            try_out(&admin, &Value::deserialize(document).unwrap(), "").await.unwrap();
        }
    }
    let (annotation, value) = FAKE_NODE;
    for node in [OWN, OTHER] {
        let metadata = json!({
            "name": node, "annotations": {annotation: value}, "labels": {LABEL: "stolen"},
        });
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
        objects.create(node).await.unwrap();
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": "agent", "labels": {LABEL: "stolen"}},
        "spec": {
            "serviceAccountName": ACCOUNT, "nodeName": OWN,
            "containers": [{"name": "agent", "image": "none"}],
        },
    });
    objects.create(pod).await.unwrap();
    turn.plane().client_of(&Identity::pod(NAMESPACE, "agent")).await.unwrap()
}

/// Waits until the server has taken the policy over, which it does by a watch of its own.
async fn until_policed(agent: &Client) {
    let forged = json!({
        "apiVersion": "lifeboat.dev/v1alpha1", "kind": "NodeInterruption",
        "metadata": {"name": "i-0000000000000aaa0"},
        "spec": {"node": OTHER, "zone": "us-east-2a", "signals": {}},
    });
    eventually("the policy in force", async || {
        let answer = try_out(agent, &forged, "&dryRun=All").await;
        answer.is_err_and(|error| error.contains("lifeboat-agent' denied")).then_some(())
    })
    .await;
}

#[track_caller]
fn refused<T, E: std::fmt::Debug>(what: &str, answer: Result<T, E>) {
    let error = format!("{:?}", answer.err().unwrap_or_else(|| panic!("{what}: accepted")));
    assert!(error.contains("ValidatingAdmissionPolicy"), "{what}: {error}");
}

async fn record(
    cluster: &Cluster,
    instance: &str,
    node: &str,
    signal: &Signal,
) -> Result<(), impl std::fmt::Debug> {
    interruptions::record(cluster, &subject(instance, node), signal, "agent").await
}

async fn report(
    cluster: &Cluster,
    instance: &str,
    workload: &Workload,
) -> Result<(), impl std::fmt::Debug> {
    let instance = instance.parse().unwrap();
    interruptions::apply_workload(cluster, &instance, "agent", ("uid-1", workload)).await
}

async fn close(
    cluster: &Cluster,
    instance: &str,
    status: Value,
) -> Result<(), impl std::fmt::Debug> {
    let instance = instance.parse().unwrap();
    interruptions::apply_status(cluster, &instance, "lifeboat-controller", status).await
}

async fn drain(agent: &Client) -> Result<(), String> {
    let status = json!({"workloads": {"uid-1": drained()}});
    let object = json!({
        "apiVersion": "lifeboat.dev/v1alpha1", "kind": "NodeInterruption",
        "metadata": {"name": OWN_INSTANCE}, "status": status,
    });
    apply_status(agent, &object, "nodeinterruptions").await
}

/// The newest manifest of a job, as an agent writes it.
async fn newest(cluster: &Cluster, node: &str) -> Result<(), impl std::fmt::Debug> {
    let newest = Newest {
        epoch: 1,
        step: Some(7),
        bytes: 1,
        durable_at: Clock::system().now(),
        pod_uid: "uid-1".to_owned(),
        node: node.to_owned(),
        stall_milliseconds: None,
    };
    checkpoints::record_newest(cluster, ("default", "job"), "lifeboat-agent", (&newest, None)).await
}

/// The proof that lets a successor through.
async fn proven(agent: &Client) -> Result<(), String> {
    let ended = json!({"uid-1": {"proof": "Released", "at": Clock::system().now()}});
    let name = lifeboat::crd::workload_checkpoint::name_of("job");
    let object = json!({
        "apiVersion": "lifeboat.dev/v1alpha1", "kind": "WorkloadCheckpoint",
        "metadata": {"namespace": "default", "name": name}, "status": {"ended": ended},
    });
    apply_status(agent, &object, "namespaces/default/workloadcheckpoints").await
}

async fn apply_status(agent: &Client, object: &Value, below: &str) -> Result<(), String> {
    let name = object["metadata"]["name"].as_str().unwrap();
    let path = format!("/apis/lifeboat.dev/v1alpha1/{below}/{name}/status");
    let request = http::Request::patch(format!("{path}?fieldManager=thief&force=true"))
        .header("content-type", "application/apply-patch+yaml")
        .body(object.to_string().into_bytes());
    let answer = agent.request_text(request.unwrap()).await;
    answer.map(drop).map_err(|error| error.to_string())
}

fn subject(instance: &str, node: &str) -> Subject {
    Subject {
        instance: instance.parse().unwrap(),
        node: node.to_owned(),
        zone: "us-east-2a".to_owned(),
        instance_type: None,
    }
}

fn signal(source: Source) -> Signal {
    Signal {
        source,
        kind: Kind::SpotInterruption { action: Action::Terminate },
        time: Clock::system().now(),
        named: None,
        heard_at: Clock::system().now(),
        heard_by: "agent/stolen-1".to_owned(),
        detail: None,
    }
}

fn workload() -> Workload {
    serde_json::from_value(json!({
        "namespace": "default", "pod": "train-0", "save": {"state": "Durable", "epoch": 1},
    }))
    .unwrap()
}

fn drained() -> Value {
    json!({
        "namespace": "default", "pod": "train-0",
        "drain": {"decided": Clock::system().now(), "by": "Evict", "reason": "Durable", "grace": 5},
    })
}

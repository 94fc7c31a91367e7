//! Coming and going: the startup taint of new nodes, and what is left when Lifeboat is taken away
//! in the midst of interruptions.

use lifeboat::commands::cleanup;

use super::*;

const STARTUP: &str = "lifeboat.dev/agent-not-ready";

fn taint(stage: &Stage, node: &str) {
    stage.world.update(|state| {
        let mut object = Value::clone(state.cluster.find(NODE, node).unwrap());
        object["spec"]["taints"] = json!([
            {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"},
            {"key": STARTUP, "effect": "NoSchedule"},
        ]);
        state.cluster.put(NODE, object);
    });
}

fn taints(stage: &Stage, node: &str) -> Vec<String> {
    let object = stage.world.read(|state| Value::clone(state.cluster.find(NODE, node).unwrap()));
    let taints = object["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.iter().map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
}

fn agent(stage: &Stage, namespace: &str, ready: &str) {
    stage.world.update(|state| {
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "lifeboat-agent",
            "uid": "agents", "controller": true,
        });
        state.cluster.put(
            POD,
            json!({
                "metadata": {
                    "name": "lifeboat-agent-1", "namespace": namespace, "ownerReferences": [owner],
                },
                "spec": {"nodeName": "gpu-1", "containers": [{"name": "agent", "image": "l"}]},
                "status": {
                    "phase": "Running", "conditions": [{"type": "Ready", "status": ready}],
                },
            }),
        );
    });
}

#[tokio::test(start_paused = true)]
async fn a_node_is_opened_when_its_agent_is_ready_and_no_sooner() {
    let mut stage = Stage::bare(&[]);
    taint(&stage, "gpu-1");
    stage.start(0);
    stage.after(30).await;
    assert_eq!(taints(&stage, "gpu-1"), ["dedicated", STARTUP]);
    agent(&stage, "lifeboat-system", "False");
    stage.after(30).await;
    assert_eq!(taints(&stage, "gpu-1"), ["dedicated", STARTUP]);
    agent(&stage, "lifeboat-system", "True");
    stage.after(1).await;
    assert_eq!(taints(&stage, "gpu-1"), ["dedicated"]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_by_name_in_another_namespace_opens_nothing() {
    let mut stage = Stage::bare(&[]);
    taint(&stage, "gpu-1");
    let namespace = json!({"metadata": {"name": "team"}});
    stage.world.update(|state| {
        state.cluster.put(lifeboat_chaos::world::cluster::resource::NAMESPACE, namespace)
    });
    agent(&stage, "team", "True");
    stage.start(0);
    stage.after(30).await;
    assert_eq!(taints(&stage, "gpu-1"), ["dedicated", STARTUP]);
}

#[tokio::test(start_paused = true)]
async fn observe_opens_nothing() {
    let mut stage = Stage::bare(&[("mode", "observe")]);
    taint(&stage, "gpu-1");
    agent(&stage, "lifeboat-system", "True");
    stage.start(0);
    stage.after(30).await;
    assert_eq!(taints(&stage, "gpu-1"), ["dedicated", STARTUP]);
}

/// What of nodes and pods is anybody's wish: annotations, labels, and all of the spec.
fn wishes(stage: &Stage) -> BTreeMap<String, Value> {
    let objects = stage.world.read(|state| {
        let nodes = state.cluster.list(NODE).map(|object| Value::clone(object));
        nodes.chain(state.cluster.list(POD).map(|object| Value::clone(object))).collect::<Vec<_>>()
    });
    let entries = objects.iter().map(|object| {
        let metadata = &object["metadata"];
        let said = metadata["annotations"].as_object().filter(|map| !map.is_empty());
        let mut spec = object["spec"].clone();
        if spec["taints"].as_array().is_some_and(Vec::is_empty) {
            spec.as_object_mut().unwrap().remove("taints");
        }
        (uid(object).to_owned(), json!([said, metadata["labels"], spec]))
    });
    entries.collect()
}

#[tokio::test(start_paused = true)]
async fn after_a_cleanup_half_way_nodes_and_pods_are_as_they_were() {
    let recommendation = EventKind::RebalanceRecommendation;
    let mut marked = 0;
    for (kind, milliseconds) in [
        (SPOT, 20),
        (SPOT, 300),
        (SPOT, 2_000),
        (SPOT, 30_000),
        (recommendation, 2_000),
        (recommendation, 60_000),
    ] {
        let mut stage = Stage::bare(&[]);
        stage.pod_with("ours", "gpu-1", &json!({}));
        stage.pod_with("signaled", "gpu-1", &json!({"lifeboat.dev/checkpoint": "http"}));
        stage.pod_with("theirs", "gpu-1", &json!({"karpenter.sh/do-not-disrupt": "true"}));
        stage.start(0);
        stage.after(1).await;
        let before = wishes(&stage);
        stage.tell(INSTANCE, kind);
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        stage.controllers.clear();
        let half_way = wishes(&stage);
        marked += usize::from(before.iter().any(|(uid, was)| half_way.get(uid) != Some(was)));

        let client = serve::kube_client(&wire(&stage.world, "cleanup"), "lifeboat-system");
        let report = cleanup::run(&client, cleanup::Wish::TakeBack).await.unwrap();
        assert_eq!((report.failed, report.users.len()), (0, 0), "{:?}", report.lines);
        let after = wishes(&stage);
        for (uid, now) in &after {
            // A node that was bought meanwhile is going again.
            let Some(was) = before.get(uid) else { continue };
            assert_eq!(now, was, "{kind:?} after {milliseconds} ms");
        }
        let ours = stage.world.read(|state| {
            let claims = state.cluster.list(NODE_CLAIM);
            let left = claims.filter(|claim| !is_deleting(claim));
            left.filter(|claim| !label(claim, "lifeboat.dev/replaces").is_empty()).count()
        });
        assert_eq!(ours, 0, "claims are left {kind:?} after {milliseconds} ms");
        let again = cleanup::run(&client, cleanup::Wish::TakeBack).await.unwrap();
        assert_eq!(again.lines, [""; 0], "{kind:?} after {milliseconds} ms");
    }
    assert!(marked >= 4, "{marked} of the moments had anything to take back");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_back_while_pods_use_the_volume() {
    let mut stage = Stage::usual().await;
    stage.tell(INSTANCE, SPOT);
    stage.after(2).await;
    stage.controllers.clear();
    stage.world.update(|state| {
        let target = Target::in_namespace(POD, "default", "train-0");
        let mut pod = Value::clone(state.cluster.get(&target).unwrap());
        pod["spec"]["volumes"] = json!([{"name": "lifeboat", "csi": {"driver": "lifeboat.dev"}}]);
        state.cluster.put(POD, pod);
    });
    let client = serve::kube_client(&wire(&stage.world, "cleanup"), "lifeboat-system");
    let before = wishes(&stage);
    let refused = cleanup::run(&client, cleanup::Wish::TakeBack).await.unwrap_err();
    let expected = "1 pod still uses the volume of Lifeboat's, and would never end without its \
                    agent: `default/train-0`. End it first";
    assert_eq!(refused.to_string(), expected);
    assert_eq!(wishes(&stage), before);
    let named = cleanup::run(&client, cleanup::Wish::Name).await.unwrap();
    assert_eq!(named.users, ["default/train-0"]);
    assert!(!named.lines.is_empty());
}

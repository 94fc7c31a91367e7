//! What `helm uninstall` runs first, with the rights that the chart gives it and no others.

use std::path::Path;
use std::process::Command;
use std::process::Output;

use lifeboat_chaos::company::LABEL;
use lifeboat_chaos::company::objects::Kind;
use lifeboat_chaos::company::objects::NODE;
use lifeboat_chaos::company::objects::Objects;
use lifeboat_chaos::company::objects::POD;
use lifeboat_chaos::control_plane::FAKE_NODE;
use lifeboat_chaos::control_plane::identity::Identity;
use lifeboat_chaos::crew;
use lifeboat_chaos::world::cluster::object::name;
use serde_json::Value;
use serde_json::json;

use crate::chart;
use crate::chart::NAMESPACE;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

const DEPLOYMENT: Kind = Kind("apps/v1", "Deployment");
const ACCOUNT: &str = "lifeboat-cleanup";
const CONTROLLER: &str = "lifeboat-controller";

#[test]
fn uninstalling_refuses_while_pods_use_the_volume_and_leaves_nothing_after() {
    on_stage(async |turn: Turn| {
        let Some(helm) = chart::helm() else { return };
        let objects = Objects::new(turn.plane().client());
        let account = Identity::account(NAMESPACE, ACCOUNT);
        let kubeconfig = turn.plane().kubeconfig_of(&account).await.unwrap();
        grant(&objects, &helm).await;
        objects.create(deployment()).await.unwrap();
        let node = marked_node();
        objects.create(node.clone()).await.unwrap();
        objects.create(user()).await.unwrap();
        objects.create(held()).await.unwrap();
        eventually("the controller's pods", async || {
            (controllers(&objects).await == 2).then_some(())
        })
        .await;

        let refused = cleanup(&kubeconfig).await;
        assert_eq!(refused.status.code(), Some(69));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("1 pod still uses") && said.contains("`default/user`"), "{said}");
        assert_eq!(controllers(&objects).await, 2, "ended, and then refused");

        objects.force_out(POD, ("default", "user")).await;
        let done = cleanup(&kubeconfig).await;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        assert_eq!(controllers(&objects).await, 0);
        let after = objects.find(NODE, ("", "leaving-1")).await.unwrap();
        let marked = after.to_string().contains("lifeboat.dev/");
        assert!(!marked && after["spec"]["unschedulable"].is_null(), "{after}");
        let keys = after["spec"]["taints"].as_array().cloned().unwrap_or_default();
        assert!(keys.iter().any(|taint| taint["key"] == "dedicated"), "{after}");
        let after = objects.find(POD, ("default", "held")).await.unwrap();
        assert!(after["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"].is_null());
        objects.delete(DEPLOYMENT, (NAMESPACE, CONTROLLER)).await.unwrap();
    });
}

/// What the chart gives the hook, but for what marks it as one.
async fn grant(objects: &Objects, helm: &Path) {
    let kinds = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    let mut granted = 0;
    for object in chart::objects(helm, &[]) {
        let kind = object["kind"].as_str().unwrap();
        if name(&object) == ACCOUNT && kinds.contains(&kind) {
            objects.create(object).await.unwrap();
            granted += 1;
        }
    }
    assert_eq!(granted, kinds.len());
}

/// As the hook's container does.
async fn cleanup(kubeconfig: &Path) -> Output {
    let program = crew::built().unwrap().join("lifeboat");
    let mut command = Command::new(program);
    command.args(["cleanup", "--end-controller"]);
    command.env("KUBECONFIG", kubeconfig).env("LIFEBOAT_NAMESPACE", NAMESPACE);
    tokio::process::Command::from(command).output().await.unwrap()
}

async fn controllers(objects: &Objects) -> usize {
    let pods = objects.list(POD, "app=controller").await;
    pods.iter().filter(|pod| name(pod).starts_with(CONTROLLER)).count()
}

/// The controller, on no node: its pods need not run to be ended.
fn deployment() -> Value {
    let labels = json!({"app": "controller"});
    let spec = json!({
        "nodeSelector": {"nowhere": "true"},
        "containers": [{"name": "controller", "image": "lifeboat"}],
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": CONTROLLER, "namespace": NAMESPACE},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    })
}

fn marked_node() -> Value {
    let (annotation, value) = FAKE_NODE;
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": "leaving-1",
            "labels": {LABEL: "leaving"},
            "annotations": {annotation: value, "lifeboat.dev/cordoned": "false"},
        },
        "spec": {
            "unschedulable": true,
            "taints": [
                {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"},
                {"key": "lifeboat.dev/interrupted", "value": "x", "effect": "NoSchedule"},
                {"key": "lifeboat.dev/agent-not-ready", "effect": "NoSchedule"},
            ],
        },
    })
}

fn pod(name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "default",
            "labels": {LABEL: "leaving"}, "annotations": annotations,
        },
        "spec": {
            "nodeSelector": {"nowhere": "true"},
            "containers": [{"name": "train", "image": "train"}],
        },
    })
}

fn user() -> Value {
    let mut user = pod("user", &json!({"lifeboat.dev/checkpoint": "sdk"}));
    user["spec"]["volumes"] = json!([{"name": "lifeboat", "csi": {"driver": "lifeboat.dev"}}]);
    user
}

fn held() -> Value {
    pod("held", &json!({"karpenter.sh/do-not-disrupt": "true", "lifeboat.dev/held": "admission"}))
}

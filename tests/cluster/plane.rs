//! The tier itself: it starts, it serves nodes and pods, and it leaves nothing running.

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use kube::api::PostParams;
use lifeboat_chaos::control_plane;
use lifeboat_chaos::control_plane::ControlPlane;
use lifeboat_chaos::control_plane::Settings;
use serde_json::json;

/// The folder of the programs; `None`, said aloud, where they were not built.
pub(crate) fn binaries() -> Option<std::path::PathBuf> {
    let found = control_plane::binaries();
    if found.is_none() {
        eprintln!("skipped: the control plane is not built (`make cluster-test` does it)");
    }
    found
}

#[tokio::test]
async fn a_node_of_kwok_becomes_ready() {
    let Some(binaries) = binaries() else { return };
    let folder = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(Settings::new(&binaries, folder.path())).await.unwrap();
    let nodes: Api<Node> = Api::all(plane.client());
    let node = serde_json::from_value(json!({
        "metadata": {"name": "gpu-1", "annotations": {"kwok.x-k8s.io/node": "fake"}},
    }));
    nodes.create(&PostParams::default(), &node.unwrap()).await.unwrap();
    let ready = async {
        while !is_ready(&nodes.get("gpu-1").await.unwrap()) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), ready).await.unwrap();
    let all = nodes.list(&ListParams::default()).await.unwrap();
    assert_eq!(all.items.len(), 1);
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
}

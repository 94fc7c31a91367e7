//! What Karpenter knows nodes by: a pool, a claim for each node as it is once it runs, and the
//! stand-in cloud's file of the instance.

use std::fs;
use std::path::Path;

use anyhow::Context;
use http::Request;
use http::header::CONTENT_TYPE;
use lifeboat::clock::Clock;
use serde_json::Value;
use serde_json::json;

use crate::bench::fleet;
use crate::bench::fleet::Fleet;

const POOL: &str = "spot";
const CLAIMS: &str = "/apis/karpenter.sh/v1/nodeclaims";

/// Makes all of it for nodes that are there. Karpenter must not run yet: it would take a claim
/// without its status for one to launch.
pub(super) async fn make(
    client: &kube::Client,
    fleet: &Fleet,
    folder: &Path,
) -> anyhow::Result<()> {
    let class = json!({
        "apiVersion": "karpenter.kwok.sh/v1alpha1", "kind": "KWOKNodeClass",
        "metadata": { "name": "default" },
    });
    fleet::post(client, "/apis/karpenter.kwok.sh/v1alpha1/kwoknodeclasses", &class).await?;
    fleet::post(client, "/apis/karpenter.sh/v1/nodepools", &pool()).await?;
    let instances = folder.join("cloud/instances");
    fs::create_dir_all(&instances)?;
    let all = (0..fleet.nodes).map(|number| claim(client, fleet, number));
    fleet::each(all).await?;
    for number in 0..fleet.nodes {
        let kept = json!({
            "Claim": fleet.node(number), "Node": node(fleet, number),
            "Registers": Clock::system().now().to_string(), "Registered": true,
        });
        fs::write(instances.join(format!("{}.json", fleet.instance(number))), kept.to_string())?;
    }
    Ok(())
}

/// A pool that disrupts nothing by itself.
fn pool() -> Value {
    json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": { "name": POOL },
        "spec": {
            "template": { "spec": {
                "nodeClassRef": class(),
                "requirements": requirements(),
            }},
            "disruption": {
                "consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "Never",
                "budgets": [{ "nodes": "0" }],
            },
        },
    })
}

async fn claim(client: &kube::Client, fleet: &Fleet, number: usize) -> anyhow::Result<()> {
    let (name, node) = (fleet.node(number), node(fleet, number));
    let object = json!({
        "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim",
        "metadata": {
            "name": name, "labels": node["metadata"]["labels"],
            "finalizers": ["karpenter.sh/termination"],
        },
        "spec": {
            "nodeClassRef": class(), "requirements": requirements(), "expireAfter": "Never",
            "resources": { "requests": { "cpu": "1" } },
        },
    });
    let request = Request::post(CLAIMS).header(CONTENT_TYPE, "application/json");
    let made: Value = client.request(request.body(object.to_string().into_bytes())?).await?;
    let now = Clock::system().now();
    let conditions = ["Launched", "Registered", "Initialized", "Ready"].map(|kind| {
        json!({
            "type": kind, "status": "True", "reason": kind, "message": "",
            "lastTransitionTime": format!("{now:.0}"), "observedGeneration": 1,
        })
    });
    let status = json!({ "status": {
        "providerID": node["spec"]["providerID"], "nodeName": name, "conditions": conditions,
        "capacity": node["status"]["capacity"], "allocatable": node["status"]["allocatable"],
    }});
    merge(client, &format!("{CLAIMS}/{name}/status"), &status).await?;
    let owned = json!({ "metadata": {
        "labels": node["metadata"]["labels"], "finalizers": ["karpenter.sh/termination"],
        "ownerReferences": [{
            "apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "name": name,
            "uid": made["metadata"]["uid"], "blockOwnerDeletion": true,
        }],
    }});
    merge(client, &format!("/api/v1/nodes/{name}"), &owned).await
}

/// A node of the fleet with the labels that Karpenter gives it.
fn node(fleet: &Fleet, number: usize) -> Value {
    let mut node = fleet.node_object(number);
    for name in ["registered", "initialized"] {
        node["metadata"]["labels"][format!("karpenter.sh/{name}")] = json!("true");
    }
    node["metadata"]["labels"]["karpenter.sh/nodepool"] = json!(POOL);
    node
}

fn class() -> Value {
    json!({ "group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default" })
}

fn requirements() -> Value {
    json!([
        { "key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"] },
        { "key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g5.12xlarge"] },
    ])
}

async fn merge(client: &kube::Client, path: &str, change: &Value) -> anyhow::Result<()> {
    let request = Request::patch(path)
        .header(CONTENT_TYPE, "application/merge-patch+json")
        .body(change.to_string().into_bytes())?;
    client.request_text(request).await.with_context(|| path.to_owned())?;
    Ok(())
}

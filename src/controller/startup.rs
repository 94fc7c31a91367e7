//! Takes the startup taint off a node once its agent is there and ready: until then no pod comes.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_domain::cluster::facts::Pause;
use lifeboat_domain::policy::OperatingMode;

use crate::adapters::cluster::nodes;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::nodes::Ours;
use crate::adapters::cluster::nodes::Patched;
use crate::adapters::cluster::pods::AgentPod;
use crate::adapters::cluster::pods::PodRow;
use crate::controller::Deps;
use crate::controller::observe;
use crate::crd::marks;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// How often nodes are looked at, whatever was heard.
const PATROL: Duration = Duration::from_secs(10);
/// Many changes within this time are looked at once.
const GATHER: Duration = Duration::from_millis(100);

/// Looks at new nodes for ever.
pub async fn run(deps: Arc<Deps>) {
    if deps.settings.policy.mode == OperatingMode::Observe {
        return;
    }
    let mut bell = deps.wakes.starts().hear();
    tokio::join!(
        deps.caches.nodes.synced(),
        deps.caches.pods.synced(),
        deps.caches.namespaces.synced(),
    );
    loop {
        for node in waiting(&deps) {
            open(&deps, &node).await;
        }
        tokio::select! {
            biased;
            () = bell.rung() => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(PATROL) => (),
        }
    }
}

/// Nodes that carry the taint, and whose agent is ready.
fn waiting(deps: &Deps) -> Vec<NodeRow> {
    let tainted = |node: &NodeRow| node.has_taint(marks::AGENT_NOT_READY).then(|| node.clone());
    let mut nodes = deps.caches.nodes.select(tainted);
    nodes.retain(|node| {
        let here = deps.caches.pods.group(&node.name);
        here.iter().any(|pod| is_ready_agent(deps, pod))
            && observe::paused(deps, Some(node)) == Pause::Off
    });
    nodes
}

/// Anybody may call a DaemonSet as ours is called, but not in our namespace.
fn is_ready_agent(deps: &Deps, pod: &PodRow) -> bool {
    let ready = pod.agent == AgentPod::Ready && pod.deletion.is_none();
    ready && pod.namespace == deps.settings.namespace
}

async fn open(deps: &Deps, node: &NodeRow) {
    match nodes::take_back_one(&deps.cluster, node, Ours::StartupTaint).await {
        Ok(Patched::Done) => tracing::info!(node = node.name, "agent is ready, node is opened"),
        Ok(Patched::Already | Patched::NoNode) => (),
        Err(error) => {
            metrics::error("cluster", error.label());
            tracing::warn!(node = node.name, error = %Chain(&error), "startup taint not taken off");
        }
    }
}

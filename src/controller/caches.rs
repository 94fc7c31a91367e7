//! What the API server last showed, and who is woken when it shows something else.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use jiff::Timestamp;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::policy::KarpenterMode;
use tokio::task::JoinSet;

use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::checkpoints;
use crate::adapters::cluster::checkpoints::CheckpointRow;
use crate::adapters::cluster::claims;
use crate::adapters::cluster::claims::ClaimRow;
use crate::adapters::cluster::interruptions;
use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::adapters::cluster::namespaces;
use crate::adapters::cluster::namespaces::NamespaceRow;
use crate::adapters::cluster::nodes;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::pods;
use crate::adapters::cluster::pods::AgentPod;
use crate::adapters::cluster::pods::PodRow;
use crate::adapters::cluster::rows::Change;
use crate::adapters::cluster::rows::Rows;
use crate::adapters::cluster::rows::Selector;
use crate::config::NodeSelector;
use crate::controller::Deps;
use crate::crd::marks;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// Most protected pods that are remembered after they are gone.
const DEPARTED_MAX: usize = 2_000;

/// Rows of everything that decisions look at.
#[derive(Clone, Debug, Default)]
pub struct Caches {
    /// Nodes, by name; grouped by instance.
    pub nodes: Rows<NodeRow>,
    /// Pods, by UID; grouped by node.
    pub pods: Rows<PodRow>,
    /// Karpenter's claims, by name; ours are grouped by the instance that they replace.
    pub claims: Rows<ClaimRow>,
    /// Records, by instance; grouped by node.
    pub interruptions: Rows<InterruptionRow>,
    /// Indexes of checkpoints, by namespace and job key.
    pub checkpoints: Rows<CheckpointRow>,
    /// Namespaces, by name.
    pub namespaces: Rows<NamespaceRow>,
    /// Protected pods that are gone.
    departed: Arc<Mutex<BTreeMap<String, Departed>>>,
}

/// A protected pod that is gone.
#[derive(Clone, Debug)]
pub struct Departed {
    /// As it was last seen.
    pub pod: PodRow,
    /// When it was seen to be gone.
    pub at: Timestamp,
}

impl Caches {
    /// The node of an instance, if it is one that we care for.
    pub fn node_of(&self, instance: &InstanceId, selector: &NodeSelector) -> Option<NodeRow> {
        let node = self.nodes.group(instance.as_str()).into_iter().next()?;
        selector.takes(&node.labels, &node.extended).then_some(node)
    }

    /// Protected pods of a node that went after `since`.
    pub fn departed(&self, node: &str, since: Timestamp) -> Vec<Departed> {
        let departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        let here = departed.values().filter(|one| one.pod.node.as_deref() == Some(node));
        here.filter(|one| one.at >= since).cloned().collect()
    }

    /// All protected pods that went within the last hour.
    pub fn departed_lately(&self, now: Timestamp) -> Vec<Departed> {
        let departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = departed.values().filter(|one| elapsed(one.at, now).as_secs() < 3600);
        lately.cloned().collect()
    }

    /// The node that a pod is on, or was on when it went.
    fn place(&self, uid: &str) -> Option<String> {
        if let Some(pod) = self.pods.row(&uid.to_owned()) {
            return pod.node;
        }
        let departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        departed.get(uid)?.pod.node.clone()
    }

    fn remember(&self, pod: &PodRow, at: Timestamp) {
        let mut departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        departed.insert(pod.uid.clone(), Departed { pod: pod.clone(), at });
        while departed.len() > DEPARTED_MAX {
            let oldest = departed.iter().min_by_key(|(_, one)| one.at);
            let Some(oldest) = oldest.map(|(uid, _)| uid.clone()) else { return };
            departed.remove(&oldest);
            metrics::overflow("departed_pods");
        }
    }
}

/// Starts every watch. They run until the set is dropped.
pub fn follow(deps: &Arc<Deps>) -> JoinSet<()> {
    let mut watches = JoinSet::new();
    watches.spawn(follow_nodes(deps.clone()));
    watches.spawn(follow_pods(deps.clone()));
    watches.spawn(follow_interruptions(deps.clone()));
    watches.spawn(follow_checkpoints(deps.clone()));
    watches.spawn(follow_namespaces(deps.clone()));
    match deps.settings.policy.karpenter {
        KarpenterMode::Beside => drop(watches.spawn(follow_claims(deps.clone()))),
        KarpenterMode::None => (),
    }
    watches
}

async fn follow_nodes(deps: Arc<Deps>) {
    let on_change = |change: Change<'_, NodeRow>| match change {
        Change::Put(_, node) | Change::Gone(_, node) => {
            if let Some(instance) = node.instance.as_ref().and_then(|id| id.parse().ok()) {
                deps.wakes.wake(&instance);
            }
            if node.has_taint(marks::AGENT_NOT_READY) {
                deps.wakes.starts().ring();
            }
        }
        Change::Synced => deps.wakes.wake_all(),
        Change::Broken(error) => broken(error),
    };
    let (api, whose) = (nodes::api(&deps.cluster), &deps.settings.identity);
    deps.caches.nodes.follow((api, Selector::All), whose, on_change).await;
}

async fn follow_pods(deps: Arc<Deps>) {
    let on_change = |change: Change<'_, PodRow>| match change {
        Change::Put(_, pod) => pod_changed(&deps, pod),
        Change::Gone(_, pod) => {
            if pod.is_protected() {
                deps.caches.remember(pod, deps.clock.now());
            }
            pod_changed(&deps, pod);
        }
        Change::Synced => deps.wakes.wake_all(),
        Change::Broken(error) => broken(error),
    };
    let (api, whose) = (pods::api(&deps.cluster), &deps.settings.identity);
    deps.caches.pods.follow((api, Selector::All), whose, on_change).await;
}

fn pod_changed(deps: &Deps, pod: &PodRow) {
    let Some(node) = &pod.node else { return };
    if pod.agent == AgentPod::Ready {
        deps.wakes.starts().ring();
    }
    for record in deps.caches.interruptions.group(node) {
        deps.wakes.wake(&record.instance);
    }
    if !pod.is_protected() {
        return;
    }
    deps.wakes.ends().ring();
    let made_for = |claim: &ClaimRow| {
        if claim.node.as_ref() != Some(node) {
            return None;
        }
        claim.replaces.as_ref()?.parse::<InstanceId>().ok()
    };
    for instance in deps.caches.claims.select(made_for) {
        deps.wakes.wake(&instance);
    }
}

async fn follow_interruptions(deps: Arc<Deps>) {
    let on_change = |change: Change<'_, InterruptionRow>| match change {
        Change::Put(instance, _) | Change::Gone(instance, _) => {
            deps.wakes.wake(instance);
            deps.wakes.records().ring();
        }
        Change::Synced => deps.wakes.records().ring(),
        Change::Broken(error) => broken(error),
    };
    let (api, whose) = (interruptions::api(&deps.cluster), &deps.settings.identity);
    deps.caches.interruptions.follow((api, Selector::All), whose, on_change).await;
}

async fn follow_claims(deps: Arc<Deps>) {
    let on_change = |change: Change<'_, ClaimRow>| match change {
        Change::Put(_, claim) | Change::Gone(_, claim) => {
            let about = [claim.instance.as_ref(), claim.replaces.as_ref()];
            for instance in about.into_iter().flatten().filter_map(|id| id.parse().ok()) {
                deps.wakes.wake(&instance);
            }
        }
        Change::Synced => deps.wakes.wake_all(),
        Change::Broken(error) => broken(error),
    };
    let (api, whose) = (claims::api(&deps.cluster), &deps.settings.identity);
    deps.caches.claims.follow((api, Selector::All), whose, on_change).await;
}

async fn follow_checkpoints(deps: Arc<Deps>) {
    let on_change = |change: Change<'_, CheckpointRow>| match change {
        Change::Put(_, index) | Change::Gone(_, index) => {
            index_changed(&deps, index);
            deps.wakes.ends().ring();
        }
        Change::Synced => {
            deps.wakes.wake_all();
            deps.wakes.ends().ring();
        }
        Change::Broken(error) => broken(error),
    };
    let (api, whose) = (checkpoints::api(&deps.cluster), &deps.settings.identity);
    deps.caches.checkpoints.follow((api, Selector::All), whose, on_change).await;
}

/// Wakes the tasks of the nodes that the pods of an index are or were on. In a storm an index
/// changes many times a second, and nobody else's task has anything to see in it.
fn index_changed(deps: &Deps, index: &CheckpointRow) {
    let pods: BTreeSet<&String> =
        index.status.saves.keys().chain(index.status.ended.keys()).collect();
    let nodes: BTreeSet<String> =
        pods.into_iter().filter_map(|uid| deps.caches.place(uid)).collect();
    for record in nodes.iter().flat_map(|node| deps.caches.interruptions.group(node)) {
        deps.wakes.wake(&record.instance);
    }
}

async fn follow_namespaces(deps: Arc<Deps>) {
    let on_change = |change: Change<'_, NamespaceRow>| match change {
        Change::Put(..) | Change::Gone(..) | Change::Synced => deps.wakes.wake_all(),
        Change::Broken(error) => broken(error),
    };
    let (api, whose) = (namespaces::api(&deps.cluster), &deps.settings.identity);
    deps.caches.namespaces.follow((api, Selector::All), whose, on_change).await;
}

fn broken(error: &ClusterError) {
    metrics::error("cluster", error.label());
    tracing::warn!(error = %Chain(error), "watch broken, to be opened again");
}

//! The objects of this node, while the API server is there. Nothing waits for them.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use lifeboat_domain::cluster::facts::Pause;
use lifeboat_domain::gpu::Sharing;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::ids::NodeName;
use tracing::info;
use tracing::warn;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::interruptions;
use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::adapters::cluster::namespaces;
use crate::adapters::cluster::namespaces::NamespaceRow;
use crate::adapters::cluster::nodes;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::pods;
use crate::adapters::cluster::pods::PodRow;
use crate::adapters::cluster::rows::Change;
use crate::adapters::cluster::rows::Row;
use crate::adapters::cluster::rows::Rows;
use crate::adapters::cluster::rows::Selector;
use crate::agent::bell::Bell;
use crate::agent::pods::Pods;
use crate::crd::marks;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// How GFD says that GPUs are shared. Source: NVIDIA GPU feature discovery, labels.
const SHARING_LABEL: &str = "nvidia.com/gpu.sharing-strategy";

/// The node's own objects.
#[derive(Debug, Clone)]
pub struct Objects {
    node: NodeName,
    namespace: String,
    pods: Rows<PodRow>,
    interruptions: Rows<InterruptionRow>,
    nodes: Rows<NodeRow>,
    namespaces: Rows<NamespaceRow>,
    server: Arc<Mutex<Server>>,
    bell: Bell,
}

/// Which objects an agent follows, of each kind: all of them from the server's cache.
#[derive(Debug)]
pub struct Own {
    /// The pods of its node.
    pub pods: Selector,
    /// Its node.
    pub node: Selector,
    /// The interruptions of its node.
    pub records: Selector,
    /// Namespaces, which may be paused.
    pub namespaces: Selector,
}

impl Own {
    /// Those of the agent of a node.
    pub fn of(node: &NodeName) -> Self {
        Self {
            pods: Selector::Fields(format!("spec.nodeName={node}")),
            node: Selector::Fields(format!("metadata.name={node}")),
            records: Selector::Fields(format!("spec.node={node}")),
            namespaces: Selector::Few,
        }
    }
}

/// Whether what we know of our pods is current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// It is watched.
    There,
    /// The watch is broken, or has not begun.
    Away,
}

impl Objects {
    /// Nothing yet, of `node`; `namespace` is our own.
    pub fn new(node: NodeName, namespace: &str, bell: Bell) -> Self {
        Self {
            node,
            namespace: namespace.to_owned(),
            pods: Rows::default(),
            interruptions: Rows::default(),
            nodes: Rows::default(),
            namespaces: Rows::default(),
            server: Arc::new(Mutex::new(Server::Away)),
            bell,
        }
    }

    /// Follows them for ever, telling `met` of pods.
    pub async fn follow(&self, cluster: &Cluster, met: &Pods) {
        let own = Own::of(&self.node);
        let whose = self.node.as_str();
        futures::join!(
            self.pods.follow((pods::api(cluster), own.pods), whose, |change| {
                self.on_pod(&change, met);
            }),
            self.interruptions.follow(
                (interruptions::api(cluster), own.records),
                whose,
                |change| {
                    self.note("interruptions", &change);
                }
            ),
            self.nodes.follow((nodes::api(cluster), own.node), whose, |change| {
                self.note("node", &change);
            }),
            self.namespaces.follow((namespaces::api(cluster), own.namespaces), whose, |change| {
                self.note("namespaces", &change);
            }),
        );
    }

    /// A pod of this node by UID, as last seen.
    pub fn pod(&self, uid: &str) -> Option<PodRow> {
        self.pods.row(&uid.to_owned())
    }

    /// The node, as last seen.
    pub fn node(&self) -> Option<NodeRow> {
        self.nodes.row(&self.node.to_string())
    }

    /// The open record of this node's instance. A node's name may be another instance's tomorrow.
    pub fn interruption(&self, instance: Option<&InstanceId>) -> Option<InterruptionRow> {
        let own = |row: &InterruptionRow| instance.is_none_or(|instance| *instance == row.instance);
        let rows = self.interruptions.group(self.node.as_str());
        rows.into_iter().find(|row| own(row) && !row.is_closed())
    }

    /// How this node's GPUs are shared.
    pub fn sharing(&self) -> Sharing {
        let node = self.node();
        Sharing::read(
            node.as_ref().and_then(|node| node.labels.get(SHARING_LABEL)).map(String::as_str),
        )
    }

    /// Whether the node, or all of Lifeboat, is paused.
    pub fn paused(&self) -> Pause {
        let Some(node) = self.node() else { return Pause::Unknown };
        let on_node = node.annotation(marks::PAUSED).is_some_and(namespaces::is_on);
        if on_node { Pause::On } else { self.paused_in(&self.namespace) }
    }

    /// Whether a namespace is paused.
    pub fn paused_in(&self, namespace: &str) -> Pause {
        match self.namespaces.row(&namespace.to_owned()) {
            Some(row) if row.paused => Pause::On,
            Some(_) => Pause::Off,
            None => Pause::Unknown,
        }
    }

    /// Whether what is known of pods is current.
    pub fn server(&self) -> Server {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_pod(&self, change: &Change<'_, PodRow>, met: &Pods) {
        match change {
            Change::Put(_, row) => met.seen(row),
            Change::Gone(_, row) => met.gone(&row.uid),
            Change::Synced => {
                met.only(&self.pods.select(|row| Some(row.uid.clone())));
                self.is(Server::There);
            }
            Change::Broken(_) => self.is(Server::Away),
        }
        self.note("pods", change);
    }

    fn note<R: Row>(&self, what: &'static str, change: &Change<'_, R>) {
        match change {
            Change::Put(..) | Change::Gone(..) => (),
            Change::Synced => info!(what, "watched at the API server"),
            Change::Broken(error) => {
                metrics::error("cluster", error.label());
                warn!(what, error = %Chain(*error), "watch at the API server broke");
            }
        }
        self.bell.ring();
    }

    fn is(&self, server: Server) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }
}

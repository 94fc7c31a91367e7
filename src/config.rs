//! File, environment and flags, parsed once into typed parts, with every fault at once.

mod keys;
mod read;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use keys::document;
pub use read::Fault;
pub use read::Faults;

/// Which program reads the configuration: it decides which keys must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `lifeboat controller`.
    Controller,
    /// `lifeboat agent`.
    Agent,
    /// A command that a person types.
    Command,
}

/// Where configuration comes from, weakest first.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The text of the file, where there is one.
    pub file: Option<String>,
    /// The environment: only `LIFEBOAT_…` is looked at.
    pub environment: BTreeMap<String, String>,
    /// Keys and values set by flags.
    pub flags: Vec<(String, String)>,
}

/// The configuration, whole and checked. Passed by part.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of this cluster: the first part of every checkpoint's path.
    pub cluster: String,
    /// The AWS region.
    pub region: String,
    /// The AWS account; absent, any account's messages are taken.
    pub account: Option<String>,
    /// Whether to act or only to look on.
    pub mode: Mode,
    /// Our own namespace.
    pub namespace: String,
    /// Which nodes are ours to care for.
    pub nodes: Nodes,
    /// Where the API server is.
    pub kubernetes: Kubernetes,
    /// The queue that EventBridge fills.
    pub queue: Queue,
    /// The bucket that checkpoints go to.
    pub store: Store,
    /// How we live beside Karpenter.
    pub karpenter: Karpenter,
    /// How pods are kept from others' drains.
    pub hold: Hold,
    /// How pods are ended.
    pub drain: Drain,
    /// How replacements are asked for.
    pub replacement: Replacement,
    /// What a rebalance recommendation leads to.
    pub rebalance: Rebalance,
    /// The Lease of the controller.
    pub lease: Lease,
    /// The agent on its node.
    pub agent: Agent,
    /// The admin server.
    pub admin: Admin,
    /// Logging.
    pub log: Log,
    /// What was read but not understood, for the log: no reason to refuse.
    pub warnings: Vec<String>,
}

/// Whether to act or only to look on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Hear, plan and act.
    Protect,
    /// Hear, plan and record; write nothing but our own objects.
    Observe,
}

/// Which nodes are ours to care for.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// A label selector, as `kubectl -l` takes it; empty means GPU Spot nodes.
    pub selector: String,
}

/// Where the API server is.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// Its URL; absent, the pod's own service account or the kubeconfig says.
    pub server: Option<String>,
}

/// The queue that EventBridge fills.
#[derive(Clone, Debug)]
pub struct Queue {
    /// The queue's URL.
    pub url: String,
    /// Another address for the SQS API.
    pub endpoint: Option<String>,
    /// How long one receive waits.
    pub wait: Duration,
    /// How long a message in hand is hidden from others.
    pub visibility: Duration,
    /// Receives at a time, on each replica.
    pub pollers: usize,
}

/// The bucket that checkpoints go to.
#[derive(Clone, Debug)]
pub struct Store {
    /// The bucket's name.
    pub bucket: String,
    /// What every path in it begins with; may be empty.
    pub prefix: String,
    /// Another address for the S3 API.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: String,
    /// Bytes of a chunk.
    pub chunk: u64,
    /// Bytes read and not yet stored, at most.
    pub in_flight: u64,
    /// Requests at a time.
    pub connections: usize,
}

/// How we live beside Karpenter.
#[derive(Clone, Debug)]
pub struct Karpenter {
    /// Whether it is there.
    pub mode: KarpenterMode,
}

/// Whether Karpenter manages the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KarpenterMode {
    /// It does: we hold pods against its drain and ask for claims.
    Beside,
    /// Managed node groups: no hold exists, the group replaces.
    None,
}

/// How pods are kept from others' drains.
#[derive(Clone, Debug)]
pub struct Hold {
    /// For pods that say nothing themselves.
    pub default: HoldMode,
}

/// When a pod is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldMode {
    /// From its admission on.
    Always,
    /// From the signal on.
    OnSignal,
}

/// How pods are ended.
#[derive(Clone, Debug)]
pub struct Drain {
    /// Longest grace for a pod whose state is saved.
    pub max_grace: Duration,
    /// Time kept between a grace's end and the deadline.
    pub margin: Duration,
    /// The same for pods that save themselves on SIGTERM.
    pub sigterm_margin: Duration,
    /// With less than this left, a durable pod no longer waits for its GPU's other pods.
    pub sharers_until: Duration,
    /// Which pods are drained.
    pub scope: DrainScope,
}

/// Which pods of an interrupted node we end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainScope {
    /// Protected ones only.
    Protected,
    /// Every pod, where there is no Karpenter to do it.
    All,
}

/// How replacements are asked for.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// Whether they are at all.
    pub enabled: bool,
    /// Claims alive at a time.
    pub max_in_flight: u32,
    /// Claims made in any hour.
    pub max_per_hour: u32,
    /// Whether on-demand is tried once Spot is exhausted.
    pub on_demand_last: bool,
    /// On-demand nodes alive at a time.
    pub on_demand_max_nodes: u32,
}

/// What a rebalance recommendation leads to.
#[derive(Clone, Debug)]
pub struct Rebalance {
    /// Whether work is saved and the node marked.
    pub prepare: bool,
    /// Whether a replacement is asked for.
    pub replace: bool,
    /// When all of it is taken back, if no notice follows.
    pub lapse: Duration,
}

/// The Lease of the controller.
#[derive(Clone, Debug)]
pub struct Lease {
    /// How long it holds without being renewed.
    pub duration: Duration,
    /// How often it is renewed.
    pub renew: Duration,
}

/// The agent on its node.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The node it runs on; empty outside the agent.
    pub node_name: String,
    /// What all host paths begin with.
    pub host_root: PathBuf,
    /// Bytes of memory lent to workloads, together.
    pub ring_budget: u64,
    /// Bytes of one slot of a ring.
    pub slot: u64,
    /// The instance metadata service.
    pub imds_endpoint: String,
    /// The NVML library; absent, the loader searches.
    pub nvml_library: Option<PathBuf>,
    /// How long the agent goes on after SIGTERM with work in hand.
    pub grace: Duration,
}

/// The admin server.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// What is logged, as `RUST_LOG` says it.
    pub filter: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object on each line.
    Json,
    /// Text.
    Text,
}

impl Config {
    /// Reads what `program` needs from `sources`; refused with every fault at once.
    pub fn load(program: Program, sources: &Sources) -> Result<Self, Faults> {
        keys::load(program, sources)
    }

    /// Reads the text of a file alone, as a simulation does.
    pub fn parse(program: Program, text: &str) -> Result<Self, Faults> {
        let file = Some(text.to_owned());
        Self::load(program, &Sources { file, ..Sources::default() })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Protect => "protect",
            Self::Observe => "observe",
        })
    }
}

#[cfg(test)]
mod tests;

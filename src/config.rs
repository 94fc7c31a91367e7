//! File, environment and flags, parsed once into typed parts, with every fault at once.

mod keys;
mod read;
mod selector;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_domain::policy::Policy;

pub use keys::document;
pub use read::Fault;
pub use read::Faults;
pub use selector::NodeSelector;

/// Which program reads the configuration: it decides which keys must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `lifeboat controller`.
    Controller,
    /// `lifeboat agent`.
    Agent,
    /// A command that reads the bucket.
    Bucket,
    /// Any other command: it needs none.
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
    /// What is deleted from the bucket.
    pub collect: Collect,
    /// The Lease of the controller.
    pub lease: Lease,
    /// The agent on its node.
    pub agent: Agent,
    /// The admin server.
    pub admin: Admin,
    /// The webhook.
    pub webhook: Webhook,
    /// Logging.
    pub log: Log,
    /// What was read but not understood, for the log: no reason to refuse.
    pub warnings: Vec<String>,
    policy: Policy,
}

/// Which nodes are ours to care for.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// By their labels; GPU Spot nodes where nothing is set.
    pub selector: NodeSelector,
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
    /// Requests at a time; absent, as many as the bandwidth takes.
    pub connections: Option<usize>,
}

/// What is deleted from the bucket, of what nothing names any more.
#[derive(Clone, Debug)]
pub struct Collect {
    /// Whether, and how.
    pub mode: CollectMode,
    /// How many states of a job key stay, the newest first.
    pub keep: usize,
    /// How often every job key is looked at.
    pub every: Duration,
}

/// Whether what nothing names any more is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectMode {
    /// It is.
    On,
    /// It is only said what would be.
    DryRun,
    /// Nothing is looked at.
    Off,
}

/// The Lease of the controller.
#[derive(Clone, Debug)]
pub struct Lease {
    /// How long it holds without being renewed.
    pub duration: Duration,
    /// How often it is renewed.
    pub renew: Duration,
    /// Who this replica is; absent, a name is made up.
    pub identity: Option<String>,
}

/// The agent on its node.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The node it runs on; empty outside the agent.
    pub node_name: String,
    /// What all host paths begin with.
    pub host_root: PathBuf,
    /// Bytes that the node's network carries in a second, where that is known.
    pub bandwidth: Option<u64>,
    /// Bytes of memory lent to workloads, together.
    pub ring_budget: u64,
    /// Bytes of one slot of a ring.
    pub slot: u64,
    /// A folder on the node's own `NVMe`, for memory that is saved in the background.
    pub spool: Option<PathBuf>,
    /// Bytes that may lie there, together.
    pub spool_budget: u64,
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

/// The webhook that pods pass when they are made.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Where it listens; absent, there is none.
    pub listen: Option<SocketAddr>,
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

    /// What decisions look at: `mode`, `karpenter`, `hold`, `drain`, `replacement`, `rebalance`,
    /// `background`.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Reads the text of a file alone, as a simulation does.
    pub fn parse(program: Program, text: &str) -> Result<Self, Faults> {
        let file = Some(text.to_owned());
        Self::load(program, &Sources { file, ..Sources::default() })
    }
}

#[cfg(test)]
mod tests;

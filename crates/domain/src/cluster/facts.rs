//! All that the cluster's side may look at to decide about one instance, taken at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::ids::InstanceId;
use crate::ids::InstanceType;
use crate::ids::JobKey;
use crate::ids::NodeName;
use crate::ids::PodRef;
use crate::ids::PodUid;
use crate::ids::Zone;
use crate::progress::Phase;
use crate::replacement::PodRequirements;
use crate::replacement::ReplacementFacts;
use crate::signal::Signals;
use crate::workload::Checkpoint;
use crate::workload::Containers;
use crate::workload::Ending;
use crate::workload::Mode;
use crate::workload::Proof;
use crate::workload::Report;
use crate::workload::Stored;

/// What is true of one instance, as the controller can know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFacts {
    /// The one moment of all of it.
    pub observed_at: Timestamp,
    /// The instance; it names the record.
    pub instance: InstanceId,
    /// Everything that was told about it.
    pub signals: Signals,
    /// Whether the node, or all of Lifeboat, is paused.
    pub paused: Pause,
    /// Its Node.
    pub node: Node,
    /// What EC2 says of it, or Karpenter by its claim.
    pub fate: Fate,
    /// Its protected pods: those on it at the notice, and those seen on it since. They stay here
    /// when they are gone.
    pub workloads: BTreeMap<PodUid, Workload>,
    /// Its other pods that somebody may drain: no mirror pods, none of a DaemonSet. Only looked at
    /// without Karpenter.
    pub others: BTreeMap<PodUid, PodFacts>,
    /// What could replace it, and what was tried.
    pub replacement: ReplacementFacts,
    /// Whether the record is closed.
    pub record: Record,
}

/// Whether somebody asked us to do nothing but record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pause {
    /// Nobody did.
    Off,
    /// Somebody did.
    On,
    /// We do not know, and act: work that is lost is worse than work that is moved.
    #[serde(other)]
    Unknown,
}

/// The Node of the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Node {
    /// It is there.
    Present(NodeState),
    /// It was deleted.
    Gone {
        /// When that was seen.
        at: Timestamp,
    },
    /// It could not be read.
    #[serde(other)]
    Unknown,
}

/// A Node that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Its name.
    pub name: NodeName,
    /// Its zone.
    pub zone: Option<Zone>,
    /// Its instance type.
    pub instance_type: Option<InstanceType>,
    /// Whether its kubelet is heard.
    pub ready: Ready,
    /// Whether our taint and the cordon are both on it.
    pub fence: Fence,
    /// Our soft taint.
    pub soft_taint: SoftTaint,
    /// `karpenter.sh/do-not-disrupt` on the Node.
    pub disruption_block: Mark,
}

/// Whether the kubelet of a node is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Ready {
    /// It is.
    Yes,
    /// It is not: the condition is False or Unknown.
    No {
        /// Since when.
        since: Timestamp,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// Whether new pods are kept off a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fence {
    /// The taint or the cordon is missing.
    Open,
    /// Both are there.
    Fenced,
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// Our soft taint on a node at risk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum SoftTaint {
    /// It is not there.
    Absent,
    /// It is there.
    Until {
        /// When it expires.
        expiry: Timestamp,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// A mark that we and others may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// It is not there.
    Absent,
    /// We set it: our own mark is beside it.
    Ours,
    /// Somebody else set it; never taken back by us.
    Others,
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// What becomes of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Fate {
    /// It runs.
    Running,
    /// It is shutting down or stopping: nothing can be saved from it any more.
    Going,
    /// It is terminated or stopped.
    Gone {
        /// When that was seen.
        at: Timestamp,
    },
    /// Nobody says.
    #[serde(other)]
    Unknown,
}

/// A pod on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodFacts {
    /// Which one.
    pub pod: PodRef,
    /// `terminationGracePeriodSeconds`.
    pub own_grace: Duration,
    /// Whether it is still in the API.
    pub presence: Presence,
    /// Whether its containers run, by kubelet's word.
    pub containers: Containers,
    /// Whether it is being ended.
    pub ending: Ending,
    /// What our evictions came to.
    pub eviction: Eviction,
    /// Its condition `DisruptionTarget`.
    pub target: DisruptionTarget,
}

/// Whether a pod is in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Presence {
    /// It is.
    Present,
    /// It is not: deleted, or another UID has its name.
    Gone {
        /// When that was seen.
        at: Timestamp,
    },
    /// It could not be read.
    #[serde(other)]
    Unknown,
}

/// What our evictions of a pod came to so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Eviction {
    /// None was answered.
    Untried,
    /// A budget refused (429).
    Refused {
        /// How often.
        times: u32,
        /// When last.
        last: Timestamp,
    },
    /// One was taken.
    Accepted {
        /// When.
        at: Timestamp,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// The condition on which a Job's failure policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisruptionTarget {
    /// It is not there.
    Absent,
    /// It is there, whoever set it.
    Set,
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// A protected pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// The pod.
    pub pod: PodFacts,
    /// How it is saved.
    pub mode: Mode,
    /// Who holds it against Karpenter's drain.
    pub hold: HoldMark,
    /// Whether its namespace is paused.
    pub paused: Pause,
    /// What its checkpoint belongs to. Without one nothing is restored, and no gate is to open.
    pub job_key: Option<JobKey>,
    /// What the agent last said of it; [`Report::unknown`] while it is silent.
    pub report: Report,
    /// What the bucket says, for when the agent is silent.
    pub bucket: Bucket,
    /// Whether its successor was told that it ended.
    pub gate: Gate,
    /// Where it can run.
    pub requirements: PodRequirements,
}

/// `karpenter.sh/do-not-disrupt` on a pod, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldMark {
    /// Not held.
    Absent,
    /// Held by us for an interruption; taken back if the pod outlives it.
    ForInterruption,
    /// Held by us since its admission; it goes with its pod.
    AtAdmission,
    /// Held by somebody else; never taken back by us.
    Others,
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// What the bucket holds of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "holds", rename_all = "kebab-case")]
pub enum Bucket {
    /// A manifest that this very pod committed since the first notice, other than for insurance.
    Manifest(Stored),
    /// No such manifest.
    Nothing,
    /// It was not looked at, or not readable.
    #[serde(other)]
    Unknown,
}

/// Whether the proof that a pod ended stands in `WorkloadCheckpoint.status.ended`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Gate {
    /// It does not.
    Closed,
    /// It does.
    Open {
        /// Which.
        proof: Proof,
    },
    /// We do not know; writing it again changes nothing.
    #[serde(other)]
    Unknown,
}

/// Whether the record is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Record {
    /// It is not, or does not exist yet.
    Open,
    /// It is.
    Closed {
        /// When.
        at: Timestamp,
        /// As what.
        phase: Phase,
    },
}

/// What is true of a protected pod that is being ended without an interruption of its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodEndFacts {
    /// The one moment of all of it.
    pub observed_at: Timestamp,
    /// Its Node.
    pub node: Node,
    /// What becomes of the instance.
    pub fate: Fate,
    /// The pod.
    pub workload: Workload,
}

impl PodFacts {
    /// Whether the pod is over: out of the API, or none of its containers runs.
    pub fn is_over(&self) -> bool {
        let gone = matches!(self.presence, Presence::Gone { .. });
        gone || matches!(self.containers, Containers::Ended { .. })
    }

    /// Whether it is being ended.
    pub fn is_ending(&self) -> bool {
        matches!(self.ending, Ending::By { .. })
    }
}

impl Workload {
    /// What was saved of it, by the agent's word or the bucket's.
    pub fn saved(&self) -> Option<Stored> {
        match (&self.report.checkpoint, &self.bucket) {
            (Checkpoint::Durable(stored), _) | (_, Bucket::Manifest(stored)) => Some(*stored),
            (_, Bucket::Nothing | Bucket::Unknown) => None,
        }
    }
}

impl Node {
    /// The Node, if it is there.
    pub fn present(&self) -> Option<&NodeState> {
        match self {
            Self::Present(node) => Some(node),
            Self::Gone { .. } | Self::Unknown => None,
        }
    }
}

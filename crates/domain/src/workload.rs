//! What a protected workload wants, how far its checkpoint is, and how both are told.

mod wishes;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::gpu::Release;
use crate::gpu::Slice;
use crate::ids::Epoch;
use crate::ids::Step;

pub use wishes::AnnotationFault;
pub use wishes::CHECKPOINT_ANNOTATION;
pub use wishes::CHECKPOINT_HTTP_ANNOTATION;
pub use wishes::CHECKPOINT_PATH_ANNOTATION;
pub use wishes::HOLD_ANNOTATION;
pub use wishes::HttpTarget;
pub use wishes::JOB_KEY_ANNOTATION;
pub use wishes::PRIORITY_ANNOTATION;
pub use wishes::RESTORE_ANNOTATION;
pub use wishes::Restore;
pub use wishes::Wishes;

/// How a workload is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It calls our SDK once per step.
    Sdk,
    /// Its checkpoint folder is our volume.
    Directory,
    /// It is called on a port of its own.
    Http,
    /// It saves itself on SIGTERM; its clean exit is its save.
    Sigterm,
    /// Not protected.
    None,
    /// One that only a later version knows, or a misspelt one: protected, treated like `sdk`.
    #[serde(other)]
    Unknown,
}

impl Mode {
    /// Whether a pod of this mode is held, saved and ended by us.
    pub fn is_protected(self) -> bool {
        self != Self::None
    }

    /// Whether we store its state ourselves, so that it is ended only when that is durable.
    pub fn is_saved_by_us(self) -> bool {
        match self {
            Self::Sdk | Self::Directory | Self::Http | Self::Unknown => true,
            Self::Sigterm | Self::None => false,
        }
    }

    /// Its name in annotations, metrics and records.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sdk => "sdk",
            Self::Directory => "directory",
            Self::Http => "http",
            Self::Sigterm => "sigterm",
            Self::None => "none",
            Self::Unknown => "unknown",
        }
    }
}

/// When a pod is held against Karpenter's drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hold {
    /// From its admission on.
    Always,
    /// From the first signal with a deadline on.
    OnSignal,
    /// One that only a later version knows.
    #[serde(other)]
    Unknown,
}

/// Why a workload is asked to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Time has passed since the last save: it goes on afterwards.
    Background,
    /// In case: it goes on afterwards.
    Insurance,
    /// Its pod is being ended.
    Ending,
    /// Its node is being taken.
    Interruption,
    /// One that only a later version knows.
    #[serde(other)]
    Unknown,
}

impl Purpose {
    /// Whether the workload goes on afterwards.
    pub fn goes_on(self) -> bool {
        match self {
            Self::Background | Self::Insurance => true,
            Self::Ending | Self::Interruption | Self::Unknown => false,
        }
    }
}

/// How far the saving of a workload is.
///
/// Unknown, Idle, Asked and Saving wait. Durable and Failed are settled. A save for insurance ends
/// as Idle again, and stands in [`Report::insurance`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Checkpoint {
    /// Nothing is asked of it.
    Idle,
    /// It was asked, and has not handed over yet.
    Asked,
    /// Its state is being stored.
    Saving {
        /// The step it was taken at.
        step: Option<Step>,
        /// How many bytes are stored.
        stored: u64,
        /// How many bytes there are, once known.
        total: Option<u64>,
    },
    /// Its manifest is committed, and it does nothing any more that would be lost.
    Durable(Stored),
    /// It will not be saved.
    Failed {
        /// Why.
        why: FailReason,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// What a committed manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// Its number.
    pub epoch: Epoch,
    /// The step; none in directory and http mode.
    pub step: Option<Step>,
    /// How many bytes it stands for.
    pub bytes: u64,
    /// When it was committed.
    pub at: Timestamp,
}

/// Why a workload will not be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailReason {
    /// It did not answer.
    NoAnswer,
    /// It ended before its state was handed over.
    WorkloadGone,
    /// It said that it cannot.
    Refused,
    /// The store does not take it.
    Store,
    /// Another incarnation holds the next epoch.
    Superseded,
    /// It did not fit the time left.
    TooLate,
    /// Its ranks did not agree on a step.
    Disagreed,
    /// It has no job key, so there is nowhere to save it.
    NoJobKey,
    /// One that only a later version knows.
    #[serde(other)]
    Unknown,
}

impl Checkpoint {
    /// Whether nothing more will come of waiting.
    pub fn is_settled(&self) -> bool {
        match self {
            Self::Durable(_) | Self::Failed { .. } => true,
            Self::Unknown | Self::Idle | Self::Asked | Self::Saving { .. } => false,
        }
    }

    /// Whether the manifest is committed.
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Durable(_))
    }

    /// Its name in metrics and records.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Idle => "idle",
            Self::Asked => "asked",
            Self::Saving { .. } => "saving",
            Self::Durable(_) => "durable",
            Self::Failed { .. } => "failed",
        }
    }
}

impl FailReason {
    /// Its name in metrics and records.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoAnswer => "no-answer",
            Self::WorkloadGone => "workload-gone",
            Self::Refused => "refused",
            Self::Store => "store",
            Self::Superseded => "superseded",
            Self::TooLate => "too-late",
            Self::Disagreed => "disagreed",
            Self::NoJobKey => "no-job-key",
            Self::Unknown => "unknown",
        }
    }
}

/// What the agent says of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// How far its saving is.
    pub checkpoint: Checkpoint,
    /// The newest save that was made in case.
    pub insurance: Option<Stored>,
    /// Whether its slices are free.
    pub release: Release,
    /// The slices it holds or held.
    pub slices: Slices,
}

impl Report {
    /// What stands for a silent agent.
    pub fn unknown() -> Self {
        Self {
            checkpoint: Checkpoint::Unknown,
            insurance: None,
            release: Release::Unknown,
            slices: Slices::Unknown,
        }
    }
}

/// The slices of a pod, as far as they are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "known", rename_all = "kebab-case")]
pub enum Slices {
    /// Exactly these; none for a pod without a GPU.
    Held {
        /// The slices.
        slices: BTreeSet<Slice>,
    },
    /// We do not know: it may share with anyone on the node.
    #[serde(other)]
    Unknown,
}

impl Slices {
    /// Exactly these.
    pub fn of(slices: impl IntoIterator<Item = Slice>) -> Self {
        Self::Held { slices: slices.into_iter().collect() }
    }

    /// Whether ending a holder of the one may harm a holder of the other.
    pub fn share_a_fault_domain(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unknown, Self::Unknown) => true,
            (Self::Unknown, Self::Held { slices }) | (Self::Held { slices }, Self::Unknown) => {
                !slices.is_empty()
            }
            (Self::Held { slices: mine }, Self::Held { slices: theirs }) => {
                mine.iter().any(|slice| theirs.iter().any(|other| slice.shares_with(other)))
            }
        }
    }
}

/// Whether the containers of a pod run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Containers {
    /// At least one runs, or will be started again.
    Running,
    /// None runs, and none will be started again in this pod.
    Ended {
        /// When the last one ended.
        at: Timestamp,
        /// The exit code of the first container that did not end with 0, or 0.
        code: Option<i32>,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// Whether a pod is being ended, by anyone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Ending {
    /// It is not.
    No,
    /// It has a deletion timestamp, or saw SIGTERM.
    By {
        /// When its grace is over (the deletion timestamp).
        ends_at: Timestamp,
        /// Who began it.
        who: Ender,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// Who began to end a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ender {
    /// We did.
    Us,
    /// Somebody else did.
    Others,
    /// We do not know.
    #[serde(other)]
    Unknown,
}

impl Ending {
    /// When the pod's grace is over, if it is being ended.
    pub fn ends_at(&self) -> Option<Timestamp> {
        match self {
            Self::By { ends_at, .. } => Some(*ends_at),
            Self::No | Self::Unknown => None,
        }
    }
}

/// The first fact that lets a new incarnation go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Proof {
    /// The agent saw the slices free.
    Released,
    /// Kubelet said that the containers ended.
    ContainersEnded,
    /// EC2 said that the instance is going or gone.
    InstanceGone,
    /// The node is gone.
    NodeGone,
    /// The deadline is 30 s past, and the node is silent.
    PastDeadline,
    /// Without an interruption: the pod's deletion timestamp is past, and the pod gone or silent.
    PodDeleted,
    /// One that only a later version knows.
    #[serde(other)]
    Unknown,
}

impl Proof {
    /// Its name in metrics, records and the demo.
    pub fn label(self) -> &'static str {
        match self {
            Self::Released => "Released",
            Self::ContainersEnded => "ContainersEnded",
            Self::InstanceGone => "InstanceGone",
            Self::NodeGone => "NodeGone",
            Self::PastDeadline => "PastDeadline",
            Self::PodDeleted => "PodDeleted",
            Self::Unknown => "Unknown",
        }
    }
}

/// How long after a deadline a silent node counts as gone.
pub const SILENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_version_wrote_reads_as_unknown() {
        let checkpoint: Checkpoint =
            serde_json::from_str(r#"{"state": "beamed-up", "by": "scotty"}"#).unwrap();
        assert_eq!(checkpoint, Checkpoint::Unknown);
        assert_eq!(serde_json::from_str::<Mode>(r#""criu""#).unwrap(), Mode::Unknown);
        assert_eq!(serde_json::from_str::<Proof>(r#""Oath""#).unwrap(), Proof::Unknown);
        assert!(!checkpoint.is_settled());
    }

    #[test]
    fn a_checkpoint_survives_its_record() {
        let stored =
            Stored { epoch: Epoch(3), step: Some(Step(8412)), bytes: 7, at: Timestamp::UNIX_EPOCH };
        for checkpoint in [
            Checkpoint::Idle,
            Checkpoint::Saving { step: None, stored: 1, total: Some(2) },
            Checkpoint::Durable(stored),
            Checkpoint::Failed { why: FailReason::Store },
        ] {
            let text = serde_json::to_string(&checkpoint).unwrap();
            assert_eq!(serde_json::from_str::<Checkpoint>(&text).unwrap(), checkpoint, "{text}");
        }
    }
}

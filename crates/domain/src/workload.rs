//! What a protected workload wants, how far its checkpoint is, and how both are told.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::gpu::Release;
use crate::gpu::Slice;
use crate::ids::Epoch;
use crate::ids::JobKey;
use crate::ids::Step;

/// The annotation that makes a pod protected.
pub const CHECKPOINT_ANNOTATION: &str = "lifeboat.dev/checkpoint";
/// The annotation that says where the volume is mounted in directory mode.
pub const CHECKPOINT_PATH_ANNOTATION: &str = "lifeboat.dev/checkpoint-path";
/// The annotation that says where an http workload listens.
pub const CHECKPOINT_HTTP_ANNOTATION: &str = "lifeboat.dev/checkpoint-http";
/// The annotation that names the job key.
pub const JOB_KEY_ANNOTATION: &str = "lifeboat.dev/job-key";
/// The annotation that says what to resume from.
pub const RESTORE_ANNOTATION: &str = "lifeboat.dev/restore";
/// The annotation that orders saves within a namespace.
pub const PRIORITY_ANNOTATION: &str = "lifeboat.dev/priority";
/// The annotation that says when the pod is held.
pub const HOLD_ANNOTATION: &str = "lifeboat.dev/hold";

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

/// What a new incarnation resumes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restore {
    /// The newest manifest, unless the work is finished.
    Auto,
    /// Nothing: it starts over.
    Never,
    /// The manifest made at this step.
    Step(Step),
    /// The manifest of this number.
    Epoch(Epoch),
}

/// What a pod's annotations ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wishes {
    /// How to save it.
    pub mode: Mode,
    /// When to hold it; the policy's default where the pod says nothing.
    pub hold: Option<Hold>,
    /// What to resume from.
    pub restore: Restore,
    /// Its place within its namespace: the higher is saved first.
    pub priority: i32,
    /// The job key it names itself.
    pub job_key: Option<JobKey>,
    /// Where its volume is mounted.
    pub path: Option<String>,
    /// Where it is called.
    pub http: Option<HttpTarget>,
}

/// Where an http workload is called, on its pod's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpTarget {
    /// The port.
    pub port: u16,
    /// The path, with its leading slash.
    pub path: String,
}

/// An annotation that says something that is not allowed there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation `{key}` is `{value}`. It may be {allowed}")]
pub struct AnnotationFault {
    /// The annotation.
    pub key: &'static str,
    /// What it says, cut to 80 characters.
    pub value: String,
    /// What it may say.
    pub allowed: &'static str,
}

impl Wishes {
    /// Reads annotations. What is not allowed is told, and taken as not said; but a pod whose mode
    /// cannot be read stays protected, since it asked for that.
    pub fn read(annotations: &BTreeMap<String, String>) -> (Self, Vec<AnnotationFault>) {
        let mut reader = Reader { annotations, faults: Vec::new() };
        let wishes = Self {
            mode: reader.mode(),
            hold: reader.hold(),
            restore: reader.restore(),
            priority: reader.priority(),
            job_key: reader.job_key(),
            path: reader.path(),
            http: reader.http(),
        };
        (wishes, reader.faults)
    }
}

/// Why a workload is asked to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
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

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    faults: Vec<AnnotationFault>,
}

impl Reader<'_> {
    fn mode(&mut self) -> Mode {
        let allowed = "`sdk`, `directory`, `http`, `sigterm` or `none`";
        let mode = self.read(CHECKPOINT_ANNOTATION, allowed, |text| match text {
            "sdk" => Some(Mode::Sdk),
            "directory" => Some(Mode::Directory),
            "http" => Some(Mode::Http),
            "sigterm" => Some(Mode::Sigterm),
            "none" => Some(Mode::None),
            _ => None,
        });
        match mode {
            Said::Nothing => Mode::None,
            Said::Allowed(mode) => mode,
            Said::NotAllowed => Mode::Unknown,
        }
    }

    fn hold(&mut self) -> Option<Hold> {
        self.read(HOLD_ANNOTATION, "`always` or `on-signal`", |text| match text {
            "always" => Some(Hold::Always),
            "on-signal" => Some(Hold::OnSignal),
            _ => None,
        })
        .allowed()
    }

    fn restore(&mut self) -> Restore {
        let allowed = "`auto`, `never`, `step=` and a number, or the number of an epoch";
        self.read(RESTORE_ANNOTATION, allowed, |text| match text {
            "auto" => Some(Restore::Auto),
            "never" => Some(Restore::Never),
            _ => match text.strip_prefix("step=") {
                Some(step) => step.parse().ok().map(Restore::Step),
                None => text.parse().ok().map(Restore::Epoch),
            },
        })
        .allowed()
        .unwrap_or(Restore::Auto)
    }

    fn priority(&mut self) -> i32 {
        self.read(PRIORITY_ANNOTATION, "a whole number", |text| text.parse().ok())
            .allowed()
            .unwrap_or(0)
    }

    fn job_key(&mut self) -> Option<JobKey> {
        let allowed = "1 to 128 letters, digits, `.`, `_` and `-`, \
                       with a letter or digit at both ends";
        self.read(JOB_KEY_ANNOTATION, allowed, |text| text.parse().ok()).allowed()
    }

    fn path(&mut self) -> Option<String> {
        self.read(CHECKPOINT_PATH_ANNOTATION, "an absolute path without `..`", |text| {
            let stays = text.split('/').all(|part| part != "..");
            (text.starts_with('/') && stays).then(|| text.to_owned())
        })
        .allowed()
    }

    fn http(&mut self) -> Option<HttpTarget> {
        self.read(CHECKPOINT_HTTP_ANNOTATION, "`:`, a port, and a path", |text| {
            let rest = text.strip_prefix(':')?;
            let end = rest.find('/').unwrap_or(rest.len());
            let (port, path) = rest.split_at(end);
            let port = port.parse().ok().filter(|port| *port > 0)?;
            let path = if path.is_empty() { "/" } else { path };
            let plain = path.bytes().all(|byte| byte.is_ascii_graphic());
            plain.then(|| HttpTarget { port, path: path.to_owned() })
        })
        .allowed()
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        allowed: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Said<T> {
        let Some(text) = self.annotations.get(key) else { return Said::Nothing };
        if let Some(value) = parse(text.trim()) {
            return Said::Allowed(value);
        }
        let value = text.chars().take(80).collect();
        self.faults.push(AnnotationFault { key, value, allowed });
        Said::NotAllowed
    }
}

enum Said<T> {
    Nothing,
    Allowed(T),
    NotAllowed,
}

impl<T> Said<T> {
    fn allowed(self) -> Option<T> {
        match self {
            Self::Allowed(value) => Some(value),
            Self::Nothing | Self::NotAllowed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Wishes, Vec<AnnotationFault>) {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Wishes::read(&pairs.collect())
    }

    #[test]
    fn a_pod_without_annotations_is_not_protected() {
        let (wishes, faults) = read(&[]);
        assert!(!wishes.mode.is_protected());
        assert_eq!(faults, []);
        assert!(!read(&[(CHECKPOINT_ANNOTATION, "none")]).0.mode.is_protected());
    }

    #[test]
    fn every_annotation_is_read() {
        let (wishes, faults) = read(&[
            (CHECKPOINT_ANNOTATION, "http"),
            (CHECKPOINT_PATH_ANNOTATION, "/ckpt"),
            (CHECKPOINT_HTTP_ANNOTATION, ":8080/save"),
            (JOB_KEY_ANNOTATION, "bert"),
            (RESTORE_ANNOTATION, "step=12"),
            (PRIORITY_ANNOTATION, "-3"),
            (HOLD_ANNOTATION, "on-signal"),
        ]);
        assert_eq!(faults, []);
        let expected = Wishes {
            mode: Mode::Http,
            hold: Some(Hold::OnSignal),
            restore: Restore::Step(Step(12)),
            priority: -3,
            job_key: Some("bert".parse().unwrap()),
            path: Some("/ckpt".to_owned()),
            http: Some(HttpTarget { port: 8080, path: "/save".to_owned() }),
        };
        assert_eq!(wishes, expected);
        assert_eq!(read(&[(RESTORE_ANNOTATION, "7")]).0.restore, Restore::Epoch(Epoch(7)));
    }

    #[test]
    fn every_fault_is_told_and_the_pod_stays_protected() {
        let (wishes, faults) = read(&[
            (CHECKPOINT_ANNOTATION, "skd"),
            (CHECKPOINT_PATH_ANNOTATION, "/a/../b"),
            (CHECKPOINT_HTTP_ANNOTATION, "http://evil/"),
            (JOB_KEY_ANNOTATION, "a/b"),
            (RESTORE_ANNOTATION, "latest"),
            (PRIORITY_ANNOTATION, "high"),
            (HOLD_ANNOTATION, "sometimes"),
        ]);
        assert!(wishes.mode.is_protected());
        assert_eq!(wishes.mode, Mode::Unknown);
        assert_eq!(faults.len(), 7);
        let expected = "annotation `lifeboat.dev/checkpoint` is `skd`. \
                        It may be `sdk`, `directory`, `http`, `sigterm` or `none`";
        assert_eq!(faults[0].to_string(), expected);
    }

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

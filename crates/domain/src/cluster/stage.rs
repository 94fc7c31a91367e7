//! What kind of moment this is for an instance, and what is proven by it.

use std::time::Duration;

use jiff::Timestamp;

use crate::cluster::facts::Bucket;
use crate::cluster::facts::ClusterFacts;
use crate::cluster::facts::Fate;
use crate::cluster::facts::Node;
use crate::cluster::facts::NodeState;
use crate::cluster::facts::PodFacts;
use crate::cluster::facts::Presence;
use crate::cluster::facts::Ready;
use crate::cluster::facts::Record;
use crate::cluster::facts::Workload;
use crate::deadline::Deadline;
use crate::deadline::later;
use crate::policy::Policy;
use crate::progress;
use crate::workload::Checkpoint;
use crate::workload::Containers;
use crate::workload::Ending;
use crate::workload::Proof;
use crate::workload::SILENCE;

/// How long after the deadline a record is closed though nobody says that the instance is gone.
pub(super) const CLOSE_LATEST: Duration = Duration::from_secs(45);

/// How long after the deadline a record is closed though the bucket could not be read.
pub(super) const CLOSE_UNREAD: Duration = Duration::from_mins(10);

/// The exit code of a process that SIGTERM ended, as of one that parked and was told to end.
const SIGTERMED: i32 = 143;

/// What kind of moment this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was told that asks for anything.
    Quiet,
    /// The instance is at risk, until then.
    Advised {
        /// When the advice lapses.
        until: Timestamp,
    },
    /// The advice lapsed.
    Lapsed,
    /// The instance is being taken.
    Interrupted {
        /// When it may be gone.
        deadline: Deadline,
        /// What is left until then.
        left: Duration,
    },
    /// The instance is gone, or its time is: the record can be closed.
    Over,
    /// The record is closed.
    Closed,
}

impl Stage {
    /// The stage at `now`.
    pub fn of(facts: &ClusterFacts, policy: &Policy, now: Timestamp) -> Self {
        match facts.record {
            Record::Closed { .. } => return Self::Closed,
            Record::Open => (),
        }
        let deadline = facts.signals.deadline();
        if is_over(facts, deadline, now) {
            return Self::Over;
        }
        if let Some(deadline) = deadline {
            return Self::Interrupted { deadline, left: deadline.left(now) };
        }
        match facts.signals.advised_at() {
            None => Self::Quiet,
            Some(advised) => {
                let until = later(advised, policy.rebalance.lapse);
                if now < until { Self::Advised { until } } else { Self::Lapsed }
            }
        }
    }

    /// The deadline and what is left until it, while pods may still be ended.
    pub(super) fn window(self) -> Option<(Deadline, Duration)> {
        match self {
            Self::Interrupted { deadline, left } if !left.is_zero() => Some((deadline, left)),
            Self::Interrupted { .. }
            | Self::Quiet
            | Self::Advised { .. }
            | Self::Lapsed
            | Self::Over
            | Self::Closed => None,
        }
    }

    /// Whether an interruption or advice has passed, so that nothing of it may stay.
    pub(super) fn is_past(self) -> bool {
        match self {
            Self::Lapsed | Self::Over | Self::Closed => true,
            Self::Quiet | Self::Advised { .. } | Self::Interrupted { .. } => false,
        }
    }
}

/// The instance is gone and the bucket was asked about whatever the agent did not tell; or so much
/// time has passed that nothing more will come.
fn is_over(facts: &ClusterFacts, deadline: Option<Deadline>, now: Timestamp) -> bool {
    let all_known = facts.workloads.values().all(is_known);
    let wait = if all_known { CLOSE_LATEST } else { CLOSE_UNREAD };
    if deadline.is_some_and(|deadline| now >= later(deadline.at(), wait)) {
        return true;
    }
    let all_kept = || facts.workloads.values().all(progress::is_kept);
    let passed = deadline.is_none_or(|deadline| deadline.has_passed(now));
    match (&facts.fate, &facts.node) {
        (Fate::Gone { .. }, _) => all_known,
        // Somebody deleted the Node of an instance that may live: its agent may still be saving.
        (Fate::Running | Fate::Going | Fate::Unknown, Node::Gone { .. }) => {
            all_known && (passed || all_kept())
        }
        (Fate::Running | Fate::Going | Fate::Unknown, Node::Present(_) | Node::Unknown) => false,
    }
}

fn is_known(workload: &Workload) -> bool {
    let told = progress::is_kept(workload) || workload.report.checkpoint.is_settled();
    let nowhere = workload.job_key.is_none();
    told || nowhere || !workload.mode.is_saved_by_us() || workload.bucket != Bucket::Unknown
}

/// The moments at which the end of a pod becomes certain by itself.
pub(super) fn certain_at(pod: &PodFacts) -> impl Iterator<Item = Timestamp> {
    let ended = match pod.containers {
        Containers::Ended { at, .. } => Some(at),
        Containers::Running | Containers::Unknown => None,
    };
    pod.ending.ends_at().into_iter().chain(ended).map(|moment| later(moment, SILENCE))
}

/// What is looked at for the proof that a pod has ended.
#[derive(Debug, Clone, Copy)]
pub struct Witness<'a> {
    /// The pod.
    pub workload: &'a Workload,
    /// Its Node.
    pub node: &'a Node,
    /// What becomes of its instance.
    pub fate: Fate,
    /// When the instance may be gone, if it is being taken.
    pub deadline: Option<Deadline>,
}

impl Witness<'_> {
    /// The first proof that there is, for the gate of the pod's successor.
    pub fn proof(&self, now: Timestamp) -> Option<Proof> {
        if self.workload.report.release.is_released() && !self.is_being_stored() {
            Some(Proof::Released)
        } else if self.is_ended_and_settled(now) {
            Some(Proof::ContainersEnded)
        } else if matches!(self.fate, Fate::Going | Fate::Gone { .. }) {
            Some(Proof::InstanceGone)
        } else if matches!(self.node, Node::Gone { .. }) {
            Some(Proof::NodeGone)
        } else {
            self.proof_by_silence(now)
        }
    }

    /// The agent may hold the state of a pod that has ended, and finish storing it alone. A successor
    /// that goes on before would claim the number of that very save, and the work would be lost.
    fn is_being_stored(&self) -> bool {
        let stored = matches!(self.workload.bucket, Bucket::Manifest(_));
        let checkpoint = &self.workload.report.checkpoint;
        !stored && matches!(checkpoint, Checkpoint::Asked | Checkpoint::Saving { .. })
    }

    /// Whether the containers have ended, and nothing more of them will be stored.
    fn is_ended_and_settled(&self, now: Timestamp) -> bool {
        match self.workload.pod.containers {
            Containers::Ended { at, code } => {
                !self.is_being_stored() && !self.may_yet_be_stored(at, code, now)
            }
            Containers::Running | Containers::Unknown => false,
        }
    }

    /// A workload that was told to end was told to save, too. What became of that the agent says a
    /// moment later, and for so long its word is waited for.
    fn may_yet_be_stored(&self, ended: Timestamp, code: Option<i32>, now: Timestamp) -> bool {
        let workload = self.workload;
        let told = matches!(workload.pod.ending, Ending::By { .. }) || code == Some(SIGTERMED);
        let saved_by_us = workload.mode.is_saved_by_us() && workload.job_key.is_some();
        let untold = matches!(workload.report.checkpoint, Checkpoint::Idle | Checkpoint::Unknown);
        let stored = matches!(workload.bucket, Bucket::Manifest(_));
        told && saved_by_us && untold && !stored && now < later(ended, SILENCE)
    }

    /// A node that is silent, or a pod out of the API, some time after both should have ended.
    fn proof_by_silence(&self, now: Timestamp) -> Option<Proof> {
        let pod = &self.workload.pod;
        let not_ready = |node: &NodeState| matches!(node.ready, Ready::No { .. });
        let silent = self.node.present().is_some_and(not_ready);
        let gone = matches!(pod.presence, Presence::Gone { .. });
        let is_past = |moment: Timestamp| now >= later(moment, SILENCE);
        if (silent || gone) && self.deadline.is_some_and(|deadline| is_past(deadline.at())) {
            Some(Proof::PastDeadline)
        } else if (silent || gone && !self.is_being_stored())
            && pod.ending.ends_at().is_some_and(is_past)
        {
            Some(Proof::PodDeleted)
        } else {
            None
        }
    }
}

//! Where an interruption is, for people: derived from facts, and never a reason to do anything.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::cluster::Stage;
use crate::cluster::facts::ClusterFacts;
use crate::cluster::facts::Eviction;
use crate::cluster::facts::Workload;
use crate::ids::PodRef;
use crate::policy::Policy;
use crate::workload::Checkpoint;
use crate::workload::Containers;

/// Where an interruption is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// The instance is at risk.
    Advised,
    /// The risk passed without a notice. A notice may follow all the same.
    Withdrawn,
    /// The instance is being taken, and nothing is saved yet.
    Interrupted,
    /// Protected work is being saved.
    Saving,
    /// What is saved is being ended.
    Draining,
    /// All pods are gone; the GPUs are not seen empty yet.
    Confirming,
    /// The end: all saved, all gone, GPUs seen empty.
    Released,
    /// The end: all saved; the instance went first.
    Saved,
    /// The end: protected work has no manifest made after the notice.
    Lost,
    /// One that only a later version knows.
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// Its name in metrics, records and columns.
    pub fn label(self) -> &'static str {
        match self {
            Self::Advised => "Advised",
            Self::Withdrawn => "Withdrawn",
            Self::Interrupted => "Interrupted",
            Self::Saving => "Saving",
            Self::Draining => "Draining",
            Self::Confirming => "Confirming",
            Self::Released => "Released",
            Self::Saved => "Saved",
            Self::Lost => "Lost",
            Self::Unknown => "Unknown",
        }
    }

    /// Whether nothing follows it.
    pub fn is_end(self) -> bool {
        match self {
            Self::Released | Self::Saved | Self::Lost => true,
            Self::Advised
            | Self::Withdrawn
            | Self::Interrupted
            | Self::Saving
            | Self::Draining
            | Self::Confirming
            | Self::Unknown => false,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.label())
    }
}

/// Names where we are.
pub fn phase_of(facts: &ClusterFacts, policy: &Policy, now: Timestamp) -> Phase {
    match (Stage::of(facts, policy, now), facts.signals.deadline()) {
        (Stage::Advised { .. }, _) => Phase::Advised,
        (Stage::Quiet | Stage::Lapsed, _) | (Stage::Over | Stage::Closed, None) => Phase::Withdrawn,
        (Stage::Over | Stage::Closed, Some(_)) => end_phase(facts),
        (Stage::Interrupted { .. }, _) => phase_under_way(facts),
    }
}

/// How an interruption ends, by what was saved and seen.
pub fn end_phase(facts: &ClusterFacts) -> Phase {
    let released = |workload: &Workload| workload.report.release.is_released();
    if lost(facts).next().is_some() {
        Phase::Lost
    } else if facts.workloads.values().all(released) {
        Phase::Released
    } else {
        Phase::Saved
    }
}

/// The protected pods whose work is not kept.
pub fn lost(facts: &ClusterFacts) -> impl Iterator<Item = &PodRef> {
    let lost = |workload: &&Workload| workload.mode.is_protected() && !is_kept(workload);
    facts.workloads.values().filter(lost).map(|workload| &workload.pod.pod)
}

/// Whether the work of a pod is kept: it was saved, or finished, or ended by itself where that is
/// its save.
pub fn is_kept(workload: &Workload) -> bool {
    if workload.mode.is_saved_by_us() {
        let finished = matches!(workload.pod.containers, Containers::Ended { code: Some(0), .. });
        return finished || workload.saved().is_some();
    }
    let killed = matches!(workload.pod.containers, Containers::Ended { code: Some(KILLED), .. });
    workload.pod.is_over() && !killed
}

/// What was left when the last state became durable; none while one is not, or without a deadline.
pub fn slack(facts: &ClusterFacts) -> Option<Duration> {
    let deadline = facts.signals.deadline()?;
    let saved = facts.workloads.values().filter(|workload| workload.mode.is_saved_by_us());
    let last = saved.map(|workload| workload.saved().map(|stored| stored.at));
    let last = last.reduce(|one, other| one.zip(other).map(|(one, other)| one.max(other)));
    Some(deadline.left(last??))
}

/// The exit code of a container that its grace was too short for: 128 + SIGKILL.
const KILLED: i32 = 137;

fn phase_under_way(facts: &ClusterFacts) -> Phase {
    let protected = || facts.workloads.values().filter(|workload| workload.mode.is_protected());
    let moving = |workload: &Workload| {
        let evicted = matches!(workload.pod.eviction, Eviction::Accepted { .. });
        evicted || workload.pod.is_over() || workload.pod.is_ending()
    };
    let begun = |workload: &Workload| match workload.report.checkpoint {
        Checkpoint::Unknown | Checkpoint::Idle => false,
        Checkpoint::Asked
        | Checkpoint::Saving { .. }
        | Checkpoint::Durable(_)
        | Checkpoint::Failed { .. } => true,
    };
    if protected().next().is_some() && protected().all(|workload| workload.pod.is_over()) {
        Phase::Confirming
    } else if protected().any(moving) {
        Phase::Draining
    } else if protected().any(begun) {
        Phase::Saving
    } else {
        Phase::Interrupted
    }
}

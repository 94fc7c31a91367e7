//! Where an interruption is, for people: derived from facts, and never a reason to do anything.

use std::fmt;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::cluster::facts::ClusterFacts;
use crate::policy::Policy;

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
    let _ = (facts, policy, now);
    Phase::Interrupted
}

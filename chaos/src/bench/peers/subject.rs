//! Who is measured, in which settings.

use std::fmt;

use clap::ValueEnum;
use serde::Deserialize;
use serde::Serialize;

use crate::bench::witness::Edge;
use crate::bench::witness::Fence;
use crate::bench::witness::Sight;

/// Their own names and values, by their documentation for many interruptions at once.
const NTH_TUNED: &str = include_str!("../../../../tests/cluster/peers/nth/tuned.env");
const KARPENTER_TUNED: &str = include_str!("../../../../tests/cluster/peers/karpenter/tuned.env");

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Who {
    /// The bare loop, which does only the patch that fences.
    Floor,
    /// Our controller.
    Lifeboat,
    /// aws-node-termination-handler, in its queue mode.
    Nth,
    /// The interruption controller of Karpenter's AWS provider beside Karpenter's core.
    Karpenter,
}

/// In which settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Tuning {
    /// As it is released.
    Default,
    /// As its documentation says for many interruptions at once.
    Tuned,
}

/// Somebody in some settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Subject {
    pub(super) who: Who,
    /// Nothing where there is nothing to choose.
    pub(super) tuning: Option<Tuning>,
}

impl Subject {
    /// All of them, in the order that they are shown.
    pub(super) const ALL: [Self; 6] = [
        Self { who: Who::Floor, tuning: None },
        Self { who: Who::Lifeboat, tuning: None },
        Self { who: Who::Karpenter, tuning: Some(Tuning::Default) },
        Self { who: Who::Karpenter, tuning: Some(Tuning::Tuned) },
        Self { who: Who::Nth, tuning: Some(Tuning::Default) },
        Self { who: Who::Nth, tuning: Some(Tuning::Tuned) },
    ];

    /// By what it is seen that a node is done.
    pub(super) fn sight(self) -> Sight {
        let fence = match self.who {
            Who::Floor | Who::Lifeboat => Fence::Ours,
            Who::Nth => Fence::Cordon,
            Who::Karpenter => Fence::Disrupted,
        };
        Sight { fence, awaited: &[Edge::Fenced, Edge::Deleted] }
    }

    /// How many replicas run: our controller and Karpenter have one that acts.
    pub(super) fn replicas(self) -> usize {
        match (self.who, self.tuning) {
            (Who::Floor, _) => 0,
            (Who::Nth, Some(Tuning::Tuned)) => 3,
            (Who::Lifeboat | Who::Nth | Who::Karpenter, _) => 1,
        }
    }

    /// What is set beyond the defaults.
    pub(super) fn settings(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let text = match (self.who, self.tuning) {
            (Who::Nth, Some(Tuning::Tuned)) => NTH_TUNED,
            (Who::Karpenter, Some(Tuning::Tuned)) => KARPENTER_TUNED,
            _ => "",
        };
        text.lines().filter_map(|line| line.split_once('='))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.who {
            Who::Floor => "bare loop",
            Who::Lifeboat => "lifeboat",
            Who::Nth => "nth",
            Who::Karpenter => "karpenter",
        };
        let settings = match self.tuning {
            None => "",
            Some(Tuning::Default) => " default",
            Some(Tuning::Tuned) => " tuned",
        };
        formatter.pad(&format!("{name}{settings}"))
    }
}

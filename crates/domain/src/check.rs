//! Rules that every plan must keep, looked at apart from the planners, in production too.

mod cluster_side;
mod node_side;

use jiff::Timestamp;
use serde::Serialize;

use crate::cluster;
use crate::cluster::facts::ClusterFacts;
use crate::node;
use crate::node::facts::NodeFacts;
use crate::policy::Policy;

/// A step that broke a rule, and was taken out of its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused<S> {
    /// The step.
    pub step: S,
    /// The rule.
    pub rule: Rule,
}

/// Keeps the steps of the cluster's side that break no rule, and sets the others apart.
pub fn cluster(
    steps: Vec<cluster::plan::Step>,
    facts: &ClusterFacts,
    policy: &Policy,
    now: Timestamp,
) -> (Vec<cluster::plan::Step>, Vec<Refused<cluster::plan::Step>>) {
    let mut court = cluster_side::Court::new(facts, policy, now, &steps);
    sort(steps, |step| court.judge(step))
}

/// Keeps the steps of the node's side that break no rule, and sets the others apart.
pub fn node(
    steps: Vec<node::plan::Step>,
    facts: &NodeFacts,
    policy: &Policy,
    now: Timestamp,
) -> (Vec<node::plan::Step>, Vec<Refused<node::plan::Step>>) {
    let court = node_side::Court { facts, policy, now };
    sort(steps, |step| court.judge(step))
}

fn sort<S>(
    steps: Vec<S>,
    mut judge: impl FnMut(&S) -> Result<(), Rule>,
) -> (Vec<S>, Vec<Refused<S>>) {
    let mut kept = Vec::with_capacity(steps.len());
    let mut refused = Vec::new();
    for step in steps {
        match judge(&step) {
            Ok(()) => kept.push(step),
            Err(rule) => refused.push(Refused { step, rule }),
        }
    }
    (kept, refused)
}

/// `Ok` if the rule holds.
fn keep(rule: Rule, holds: bool) -> Result<(), Rule> {
    if holds { Ok(()) } else { Err(rule) }
}

/// A rule that every plan must keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Rule {
    /// No pod whose state we store is ended before that is durable or given up, unless time ran
    /// out and the step says so.
    SavedFirst,
    /// Who shares a fault domain is settled before one of them is ended, until 35 s are left.
    SharersTogether,
    /// Nothing is asked, evicted or deleted after the deadline.
    BeforeTheDeadline,
    /// Nothing is asked, fenced, evicted or deleted on advice alone.
    AdviceKillsNothing,
    /// The node is fenced before a pod is ended.
    FencedFirst,
    /// A replacement that is due is asked for before a pod is ended.
    ClaimedFirst,
    /// Observe mode and a pause leave nothing but our own objects to write.
    RecordOnly,
    /// What others set is never taken back.
    OnlyOurs,
    /// A pod that is no part of the facts, or not protected, is not touched.
    KnownPods,
    /// A grace is at least a second, and ends before the deadline.
    GraceFits,
    /// At most one claim is alive, and none is made while the last may be.
    OneClaim,
    /// A restore is let through only with a proof, and a proof only if its fact is there.
    ProofFirst,
    /// No process is frozen near the deadline, or while its pod is being ended.
    Thawed,
    /// A record is closed only when its instance is gone, or its time is.
    ClosedLast,
}

impl Rule {
    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::SavedFirst => "saved-first",
            Self::SharersTogether => "sharers-together",
            Self::BeforeTheDeadline => "before-the-deadline",
            Self::AdviceKillsNothing => "advice-kills-nothing",
            Self::FencedFirst => "fenced-first",
            Self::ClaimedFirst => "claimed-first",
            Self::RecordOnly => "record-only",
            Self::OnlyOurs => "only-ours",
            Self::KnownPods => "known-pods",
            Self::GraceFits => "grace-fits",
            Self::OneClaim => "one-claim",
            Self::ProofFirst => "proof-first",
            Self::Thawed => "thawed",
            Self::ClosedLast => "closed-last",
        }
    }
}

#[cfg(test)]
mod tests;

//! What the cluster's side does next about one instance, and why.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::check;
use crate::check::Refused;
use crate::cluster::drain;
use crate::cluster::facts::ClusterFacts;
use crate::cluster::facts::Gate;
use crate::cluster::facts::Pause;
use crate::cluster::facts::PodEndFacts;
use crate::cluster::marks;
use crate::cluster::stage::Stage;
use crate::cluster::stage::Witness;
use crate::cluster::stage::certain_at;
use crate::cluster::wake;
use crate::cluster::wake::LOOK_AGAIN;
use crate::deadline::later;
use crate::ids::ClaimName;
use crate::ids::JobKey;
use crate::ids::NodeName;
use crate::ids::PodRef;
use crate::policy::OperatingMode;
use crate::policy::Policy;
use crate::progress;
use crate::progress::Phase;
use crate::replacement::ClaimSpec;
use crate::replacement::NoClaim;
use crate::signal::Kind;
use crate::workload::Proof;

/// What to do, in this order.
///
/// A step is begun when the ones before it were answered, well or badly, or their time was over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What to do.
    pub steps: Vec<Step>,
    /// What would be done, were it not for observe mode or a pause: to be recorded, not done.
    pub withheld: Vec<Step>,
    /// Steps that broke a rule: to be counted and logged, not done. Always empty, but for a fault
    /// of the planner.
    pub refused: Vec<Refused<Step>>,
    /// Why no replacement is asked for, while one might have been.
    pub no_claim: Option<NoClaim>,
    /// When to look again, if no fact changes before.
    pub next: Next,
}

/// When a plan could change by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Next {
    /// At this moment at the latest.
    At(Timestamp),
    /// Only when a fact changes.
    OnChange,
    /// Never: the record is closed, and nothing of ours is left to take back.
    Never,
}

/// An action and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// Something that the controller does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Taint and cordon the node in one guarded patch.
    Fence {
        /// The node.
        node: NodeName,
        /// The value of the taint.
        kind: Kind,
    },
    /// Taint the node softly.
    SoftTaint {
        /// The node.
        node: NodeName,
        /// The value of the taint.
        expiry: Timestamp,
    },
    /// Keep voluntary disruption off the node.
    BlockDisruption {
        /// The node.
        node: NodeName,
    },
    /// Hold the pod against Karpenter's drain, with our mark beside.
    Hold {
        /// The pod.
        pod: PodRef,
    },
    /// Tell Karpenter when it may end held pods.
    SetTerminationTime {
        /// The dying claim.
        claim: ClaimName,
        /// The value of the annotation.
        at: Timestamp,
    },
    /// Make the claim, if it does not exist.
    EnsureClaim {
        /// Which.
        claim: ClaimSpec,
    },
    /// Delete the claim.
    DeleteClaim {
        /// Which.
        claim: ClaimName,
    },
    /// Evict the pod, by UID.
    Evict {
        /// The pod.
        pod: PodRef,
        /// Its grace, in whole seconds.
        grace: Duration,
    },
    /// Delete the pod, by UID, budget or not.
    Delete {
        /// The pod.
        pod: PodRef,
        /// Its grace, in whole seconds.
        grace: Duration,
        /// What is done first about the condition `DisruptionTarget`.
        target: Target,
    },
    /// Take our hold of an interruption off the pod.
    Unhold {
        /// The pod.
        pod: PodRef,
    },
    /// Take something else of ours back.
    TakeBack {
        /// What.
        ours: Ours,
    },
    /// Write the proof that the pod ended, for the restore gate.
    Ended {
        /// The pod.
        pod: PodRef,
        /// Whose gate.
        job_key: JobKey,
        /// The proof.
        proof: Proof,
    },
    /// Close the record.
    Close {
        /// As what.
        phase: Phase,
    },
}

/// What is done about the condition `DisruptionTarget` before a pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// It is set.
    SetFirst,
    /// Nothing: it is there.
    AlreadySet,
}

/// Something that we set, other than the hold of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "mark", rename_all = "kebab-case")]
pub enum Ours {
    /// The taint of an interruption, and the cordon if we set it.
    Fence {
        /// The node.
        node: NodeName,
    },
    /// The soft taint.
    SoftTaint {
        /// The node.
        node: NodeName,
    },
    /// `do-not-disrupt` on the node.
    DisruptionBlock {
        /// The node.
        node: NodeName,
    },
    /// `do-not-disrupt` on our claim.
    ClaimHold {
        /// The claim.
        claim: ClaimName,
    },
}

/// Why a step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Reason {
    /// The instance is being taken.
    Interrupted,
    /// The instance is at risk.
    Advised,
    /// The deadline is far: Karpenter would end held pods too early.
    FarDeadline,
    /// The last claim came to nothing.
    CapacityRefused,
    /// The state is stored.
    Durable,
    /// The state will not be stored.
    SaveFailed,
    /// The pod saves itself when it is told to end.
    SavesItself,
    /// The pod is not protected, and nobody else drains it.
    Unprotected,
    /// A budget refused until the last moment.
    BudgetOverruled,
    /// Time ran out before the state was stored.
    OutOfTime,
    /// The advice lapsed.
    Lapsed,
    /// The interruption is over, and this is still here.
    Outlived,
    /// Nobody uses it.
    Unused,
    /// Its pods are bound.
    Bound,
    /// The pod has ended.
    Proven,
    /// The instance is gone, or its time is.
    Over,
}

/// Decides what to do now. Same facts, same policy, same moment: same plan.
pub fn plan(facts: &ClusterFacts, policy: &Policy, now: Timestamp) -> Plan {
    let stage = Stage::of(facts, policy, now);
    let replacement = marks::replacement(facts, policy, stage, now);
    let no_claim = replacement.as_ref().and_then(|choice| choice.as_ref().err().copied());
    let claim =
        replacement.and_then(Result::ok).map(|claim| marks::ensure_claim(facts, stage, claim));

    let wanted: Vec<Step> = marks::fence(facts, stage)
        .into_iter()
        .chain(marks::holds(facts, policy, stage))
        .chain(marks::termination_time(facts, policy, stage))
        .chain(marks::prepare(facts, policy, stage))
        .chain(claim)
        .chain(drain::drains(facts, policy, stage, now))
        .chain(proofs(facts, now))
        .chain(marks::unholds(facts, stage))
        .chain(marks::take_backs(facts, stage))
        .chain(marks::claims(facts, &policy.replacement, stage, now))
        .chain(close(facts, stage))
        .collect();
    let (steps, withheld) = wanted.into_iter().partition(|step| is_allowed(facts, policy, step));
    let (steps, refused) = check::cluster(steps, facts, policy, now);
    let next = try_again(wake::next(facts, policy, stage, now), &steps, now);
    Plan { steps, withheld, refused, no_claim, next }
}

/// Decides whether the end of a pod without an interruption is proven: at most one Ended step.
pub fn pod_end(facts: &PodEndFacts, now: Timestamp) -> Plan {
    let witness =
        Witness { workload: &facts.workload, node: &facts.node, fate: facts.fate, deadline: None };
    let steps: Vec<Step> = ended(&witness, now).into_iter().collect();
    let certain = certain_at(&facts.workload.pod).filter(|moment| *moment > now).min();
    let next = match facts.workload.gate {
        Gate::Open { .. } => Next::Never,
        Gate::Closed | Gate::Unknown => certain.map_or(Next::OnChange, Next::At),
    };
    let next = try_again(next, &steps, now);
    Plan { steps, withheld: Vec::new(), refused: Vec::new(), no_claim: None, next }
}

fn proofs(facts: &ClusterFacts, now: Timestamp) -> impl Iterator<Item = Step> {
    facts.workloads.values().filter_map(move |workload| {
        let deadline = facts.signals.deadline();
        ended(&Witness { workload, node: &facts.node, fate: facts.fate, deadline }, now)
    })
}

fn ended(witness: &Witness, now: Timestamp) -> Option<Step> {
    let workload = witness.workload;
    match workload.gate {
        Gate::Closed => (),
        Gate::Open { .. } | Gate::Unknown => return None,
    }
    let job_key = workload.job_key.clone()?;
    let proof = witness.proof(now)?;
    let action = Action::Ended { pod: workload.pod.pod.clone(), job_key, proof };
    Some(Step { action, reason: Reason::Proven })
}

fn close(facts: &ClusterFacts, stage: Stage) -> Option<Step> {
    let phase = match facts.signals.deadline() {
        Some(_) => progress::end_phase(facts),
        None => Phase::Withdrawn,
    };
    (stage == Stage::Over).then_some(Step { action: Action::Close { phase }, reason: Reason::Over })
}

/// Observe mode and a pause allow nothing but records; a paused namespace, nothing for its pods.
fn is_allowed(facts: &ClusterFacts, policy: &Policy, step: &Step) -> bool {
    if step.action.only_records() {
        return true;
    }
    let namespace_paused = step
        .action
        .pod()
        .and_then(|pod| facts.workloads.get(&pod.uid))
        .is_some_and(|workload| workload.paused == Pause::On);
    policy.mode == OperatingMode::Protect && facts.paused != Pause::On && !namespace_paused
}

/// A step that fails may leave every fact as it was.
fn try_again(next: Next, steps: &[Step], now: Timestamp) -> Next {
    if steps.is_empty() {
        return next;
    }
    let again = later(now, LOOK_AGAIN);
    match next {
        Next::At(moment) => Next::At(moment.min(again)),
        Next::OnChange | Next::Never => Next::At(again),
    }
}

impl Action {
    /// Its name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Fence { .. } => "fence",
            Self::SoftTaint { .. } => "soft-taint",
            Self::BlockDisruption { .. } => "block-disruption",
            Self::Hold { .. } => "hold",
            Self::SetTerminationTime { .. } => "set-termination-time",
            Self::EnsureClaim { .. } => "ensure-claim",
            Self::DeleteClaim { .. } => "delete-claim",
            Self::Evict { .. } => "evict",
            Self::Delete { .. } => "delete",
            Self::Unhold { .. } => "unhold",
            Self::TakeBack { .. } => "take-back",
            Self::Ended { .. } => "ended",
            Self::Close { .. } => "close",
        }
    }

    /// The pod it is about, if it is about one.
    pub fn pod(&self) -> Option<&PodRef> {
        match self {
            Self::Hold { pod }
            | Self::Evict { pod, .. }
            | Self::Delete { pod, .. }
            | Self::Unhold { pod }
            | Self::Ended { pod, .. } => Some(pod),
            Self::Fence { .. }
            | Self::SoftTaint { .. }
            | Self::BlockDisruption { .. }
            | Self::SetTerminationTime { .. }
            | Self::EnsureClaim { .. }
            | Self::DeleteClaim { .. }
            | Self::TakeBack { .. }
            | Self::Close { .. } => None,
        }
    }

    /// Whether it writes nothing but our own objects, so that observe mode and a pause allow it.
    pub fn only_records(&self) -> bool {
        match self {
            Self::Ended { .. } | Self::Close { .. } => true,
            Self::Fence { .. }
            | Self::SoftTaint { .. }
            | Self::BlockDisruption { .. }
            | Self::Hold { .. }
            | Self::SetTerminationTime { .. }
            | Self::EnsureClaim { .. }
            | Self::DeleteClaim { .. }
            | Self::Evict { .. }
            | Self::Delete { .. }
            | Self::Unhold { .. }
            | Self::TakeBack { .. } => false,
        }
    }
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 16] = [
        Self::Interrupted,
        Self::Advised,
        Self::FarDeadline,
        Self::CapacityRefused,
        Self::Durable,
        Self::SaveFailed,
        Self::SavesItself,
        Self::Unprotected,
        Self::BudgetOverruled,
        Self::OutOfTime,
        Self::Lapsed,
        Self::Outlived,
        Self::Unused,
        Self::Bound,
        Self::Proven,
        Self::Over,
    ];

    /// Its name in metrics and Kubernetes Events.
    pub fn label(self) -> &'static str {
        match self {
            Self::Interrupted => "Interrupted",
            Self::Advised => "Advised",
            Self::FarDeadline => "FarDeadline",
            Self::CapacityRefused => "CapacityRefused",
            Self::Durable => "Durable",
            Self::SaveFailed => "SaveFailed",
            Self::SavesItself => "SavesItself",
            Self::Unprotected => "Unprotected",
            Self::BudgetOverruled => "BudgetOverruled",
            Self::OutOfTime => "OutOfTime",
            Self::Lapsed => "Lapsed",
            Self::Outlived => "Outlived",
            Self::Unused => "Unused",
            Self::Bound => "Bound",
            Self::Proven => "Proven",
            Self::Over => "Over",
        }
    }
}

impl fmt::Display for Step {
    /// Like `evict train-0 15s because Durable`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} because {}", self.action, self.reason.label())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = self.label();
        match self {
            Self::Fence { node, .. } | Self::BlockDisruption { node } => {
                write!(formatter, "{verb} {node}")
            }
            Self::SoftTaint { node, expiry } => write!(formatter, "{verb} {node} until {expiry}"),
            Self::Hold { pod } | Self::Unhold { pod } => write!(formatter, "{verb} {}", pod.name),
            Self::SetTerminationTime { claim, at } => write!(formatter, "{verb} {claim} {at}"),
            Self::EnsureClaim { claim } => write!(formatter, "{verb} {}", claim.name),
            Self::DeleteClaim { claim } => write!(formatter, "{verb} {claim}"),
            Self::Evict { pod, grace } | Self::Delete { pod, grace, .. } => {
                write!(formatter, "{verb} {} {}s", pod.name, grace.as_secs())
            }
            Self::TakeBack { ours } => write!(formatter, "{verb} {ours}"),
            Self::Ended { pod, proof, .. } => {
                write!(formatter, "{verb} {} {}", pod.name, proof.label())
            }
            Self::Close { phase } => write!(formatter, "{verb} {}", phase.label()),
        }
    }
}

impl fmt::Display for Ours {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fence { node } => write!(formatter, "fence of {node}"),
            Self::SoftTaint { node } => write!(formatter, "soft taint of {node}"),
            Self::DisruptionBlock { node } => write!(formatter, "disruption block of {node}"),
            Self::ClaimHold { claim } => write!(formatter, "hold of {claim}"),
        }
    }
}

#[cfg(test)]
mod tests;

//! What is set on the node, its pods and its claims, and what of it is taken back.

use std::time::Duration;

use jiff::Timestamp;

use crate::cluster::facts::ClusterFacts;
use crate::cluster::facts::Fence;
use crate::cluster::facts::HoldMark;
use crate::cluster::facts::Mark;
use crate::cluster::facts::NodeState;
use crate::cluster::facts::Presence;
use crate::cluster::facts::SoftTaint;
use crate::cluster::facts::Workload;
use crate::cluster::plan::Action;
use crate::cluster::plan::Ours;
use crate::cluster::plan::Reason;
use crate::cluster::plan::Step;
use crate::cluster::stage::Stage;
use crate::deadline::earlier;
use crate::deadline::later;
use crate::policy::Asked;
use crate::policy::KarpenterMode;
use crate::policy::Policy;
use crate::policy::Prepare;
use crate::policy::ReplacementPolicy;
use crate::replacement::Attempt;
use crate::replacement::Attempts;
use crate::replacement::ClaimHold;
use crate::replacement::ClaimSpec;
use crate::replacement::Dying;
use crate::replacement::Need;
use crate::replacement::NoClaim;
use crate::replacement::Offering;
use crate::replacement::Used;
use crate::replacement::choose;
use crate::replacement::claim_name;
use crate::signal::Kind;

/// New pods are kept off a node that is being taken.
pub(super) fn fence(facts: &ClusterFacts, stage: Stage) -> Option<Step> {
    let node = facts.node.present()?;
    let interrupted = matches!(stage, Stage::Interrupted { .. });
    match node.fence {
        Fence::Open | Fence::Unknown if interrupted => Some(Step {
            action: Action::Fence { node: node.name.clone(), kind: facts.signals.kind() },
            reason: Reason::Interrupted,
        }),
        Fence::Fenced | Fence::Open | Fence::Unknown => None,
    }
}

/// Protected pods are held against Karpenter's drain, until we evict them.
pub(super) fn holds(
    facts: &ClusterFacts,
    policy: &Policy,
    stage: Stage,
) -> impl Iterator<Item = Step> {
    let beside = policy.karpenter == KarpenterMode::Beside;
    let due = beside && stage.window().is_some();
    facts.workloads.values().filter(move |workload| due && wants_hold(workload)).map(|workload| {
        Step { action: Action::Hold { pod: workload.pod.pod.clone() }, reason: Reason::Interrupted }
    })
}

fn wants_hold(workload: &Workload) -> bool {
    let stays = workload.pod.presence == Presence::Present
        && !workload.pod.is_over()
        && !workload.pod.is_ending();
    workload.mode.is_protected() && stays && workload.hold == HoldMark::Absent
}

/// A node at risk is kept from new pods, softly, and from voluntary disruption.
pub(super) fn prepare(facts: &ClusterFacts, policy: &Policy, stage: Stage) -> Vec<Step> {
    let (Stage::Advised { until }, Some(node)) = (stage, facts.node.present()) else {
        return Vec::new();
    };
    if policy.rebalance.prepare == Prepare::Nothing {
        return Vec::new();
    }
    let tainted = match node.soft_taint {
        SoftTaint::Absent => false,
        SoftTaint::Until { expiry } => expiry.as_second() >= until.as_second(),
        SoftTaint::Unknown => true,
    };
    let beside = policy.karpenter == KarpenterMode::Beside;
    let blocked = !beside || node.disruption_block != Mark::Absent;
    let taint = Action::SoftTaint { node: node.name.clone(), expiry: until };
    let block = Action::BlockDisruption { node: node.name.clone() };
    [(tainted, taint), (blocked, block)]
        .into_iter()
        .filter(|(done, _)| !done)
        .map(|(_, action)| Step { action, reason: Reason::Advised })
        .collect()
}

/// For a deadline that is far, Karpenter is told when it may end held pods.
///
/// Never on a Spot notice: Karpenter ends every pod at that time less the pod's own grace, held or
/// not, which for a long grace is at once. Source: Karpenter, `pkg/controllers/node/termination`.
pub(super) fn termination_time(
    facts: &ClusterFacts,
    policy: &Policy,
    stage: Stage,
) -> Option<Step> {
    let (deadline, _) = stage.window()?;
    let Dying::Claim(claim) = &facts.replacement.dying else { return None };
    let beside = policy.karpenter == KarpenterMode::Beside;
    let far = facts.signals.kind() == Kind::ScheduledChange;
    if !beside || !far || claim.termination_time.is_some() {
        return None;
    }
    let held = facts.workloads.values().filter(|workload| !workload.pod.is_over());
    let longest: Duration = held.map(|workload| workload.pod.own_grace).max()?;
    let at = earlier(later(deadline.at(), longest), policy.drain.max_grace);
    let action = Action::SetTerminationTime { claim: claim.name.clone(), at };
    Some(Step { action, reason: Reason::FarDeadline })
}

/// The replacement that is to be asked for, or why none is; nothing while none is called for.
pub(super) fn replacement(
    facts: &ClusterFacts,
    policy: &Policy,
    stage: Stage,
    now: Timestamp,
) -> Option<Result<ClaimSpec, NoClaim>> {
    let asked = match stage {
        Stage::Interrupted { .. } => Asked::ByUs,
        Stage::Advised { .. } => policy.rebalance.replace,
        Stage::Quiet | Stage::Lapsed | Stage::Over | Stage::Closed => Asked::Never,
    };
    if asked == Asked::Never {
        return None;
    }
    if policy.karpenter == KarpenterMode::None {
        return Some(Err(NoClaim::NotOurs));
    }
    let movers = facts.workloads.values().filter(|workload| workload.mode.is_protected());
    let need = Need {
        instance: facts.instance.clone(),
        reclaimed: facts.node.present().and_then(reclaimed),
        pods: movers.map(|workload| workload.requirements.clone()).collect(),
    };
    Some(choose(&facts.replacement, &need, &policy.replacement, now))
}

fn reclaimed(node: &NodeState) -> Option<Offering> {
    let (instance_type, zone) = (node.instance_type.clone()?, node.zone.clone()?);
    Some(Offering { instance_type, zone })
}

/// The step that asks for the replacement.
pub(super) fn ensure_claim(facts: &ClusterFacts, stage: Stage, claim: ClaimSpec) -> Step {
    let first = match &facts.replacement.attempts {
        Attempts::Known { attempts } => attempts.is_empty(),
        Attempts::Unknown => true,
    };
    let reason = match (first, stage) {
        (false, _) => Reason::CapacityRefused,
        (true, Stage::Advised { .. }) => Reason::Advised,
        (true, _) => Reason::Interrupted,
    };
    Step { action: Action::EnsureClaim { claim }, reason }
}

/// Holds of an interruption that is over are taken off the pods that outlived it.
pub(super) fn unholds(facts: &ClusterFacts, stage: Stage) -> impl Iterator<Item = Step> {
    let outlived = |workload: &&Workload| {
        let here = workload.pod.presence == Presence::Present && !workload.pod.is_over();
        here && workload.hold == HoldMark::ForInterruption
    };
    let past = stage.is_past();
    facts.workloads.values().filter(move |workload| past && outlived(workload)).map(|workload| {
        Step { action: Action::Unhold { pod: workload.pod.pod.clone() }, reason: Reason::Outlived }
    })
}

/// What advice set is taken back when it lapsed, or when its record closed.
pub(super) fn take_backs(facts: &ClusterFacts, stage: Stage) -> Vec<Step> {
    let Some(node) = facts.node.present().filter(|_| stage.is_past()) else { return Vec::new() };
    let reason = if stage == Stage::Lapsed { Reason::Lapsed } else { Reason::Outlived };
    let tainted = matches!(node.soft_taint, SoftTaint::Until { .. });
    let blocked = node.disruption_block == Mark::Ours;
    let soft_taint = Ours::SoftTaint { node: node.name.clone() };
    let block = Ours::DisruptionBlock { node: node.name.clone() };
    [(tainted, soft_taint), (blocked, block)]
        .into_iter()
        .filter(|(there, _)| *there)
        .map(|(_, ours)| Step { action: Action::TakeBack { ours }, reason })
        .collect()
}

/// Our claims are let go when their pods are bound, and deleted when nobody comes.
pub(super) fn claims(
    facts: &ClusterFacts,
    policy: &ReplacementPolicy,
    stage: Stage,
    now: Timestamp,
) -> Vec<Step> {
    let Attempts::Known { attempts } = &facts.replacement.attempts else { return Vec::new() };
    let step = |(number, attempt): (&u32, &Attempt)| {
        let claim = claim_name(&facts.instance, *number).ok()?;
        let Attempt::Alive { used, held, .. } = attempt else { return None };
        match used {
            Used::Bound => {
                let action = Action::TakeBack { ours: Ours::ClaimHold { claim } };
                (*held == ClaimHold::Held).then_some(Step { action, reason: Reason::Bound })
            }
            Used::Empty { since } => {
                let reason = unwanted(*since, policy, stage, now)?;
                Some(Step { action: Action::DeleteClaim { claim }, reason })
            }
            Used::Unknown => None,
        }
    };
    attempts.iter().filter_map(step).collect()
}

fn unwanted(
    empty_since: Option<Timestamp>,
    policy: &ReplacementPolicy,
    stage: Stage,
    now: Timestamp,
) -> Option<Reason> {
    match stage {
        Stage::Lapsed => Some(Reason::Lapsed),
        Stage::Over | Stage::Closed => {
            let unused = empty_since.is_some_and(|since| now >= later(since, policy.unused));
            unused.then_some(Reason::Unused)
        }
        Stage::Quiet | Stage::Advised { .. } | Stage::Interrupted { .. } => None,
    }
}

//! Takes the steps of a plan. It makes no choices: what it needs to know stands in the step.

use std::time::Duration;

use lifeboat_domain::cluster::facts::Eviction;
use lifeboat_domain::cluster::plan::Action;
use lifeboat_domain::cluster::plan::Ours;
use lifeboat_domain::cluster::plan::Step;
use lifeboat_domain::cluster::plan::Target;
use lifeboat_domain::ids::ClaimName;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::replacement::ClaimSpec;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::checkpoints;
use crate::adapters::cluster::claims;
use crate::adapters::cluster::claims::ClaimRow;
use crate::adapters::cluster::claims::Made;
use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::adapters::cluster::nodes;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::nodes::Patched;
use crate::adapters::cluster::pods;
use crate::adapters::cluster::pods::Ending;
use crate::adapters::cluster::pods::PodRow;
use crate::controller::Deps;
use crate::controller::memory::Memory;
use crate::controller::observe;
use crate::controller::replace;
use crate::crd::node_interruption::Claim;
use crate::crd::node_interruption::Drain;
use crate::crd::node_interruption::DrainBy;
use crate::crd::workload_checkpoint::Ended;
use crate::crd::workload_checkpoint::Proof;
use crate::error::Chain;
use crate::error::Class;
use crate::error::Classify;
use crate::metrics;

/// What an action did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked.
    Done,
    /// Nothing: it was so.
    Already,
    /// Nothing: a budget refused.
    Refused,
    /// Nothing: what it was about is gone.
    Gone,
    /// Nothing was asked: its time was over.
    TooLate,
    /// Nothing was asked: the same went well a moment ago.
    Settling,
    /// It failed, and may go better next time.
    Failed,
    /// It failed, and will again.
    Hopeless,
}

impl Outcome {
    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Already => "already",
            Self::Refused => "refused",
            Self::Gone => "gone",
            Self::TooLate => "too-late",
            Self::Settling => "settling",
            Self::Failed => "failed",
            Self::Hopeless => "hopeless",
        }
    }

    /// Whether the world is now as the step wants it, or will not be for want of its object.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Done | Self::Already | Self::Gone)
    }
}

/// What a step is taken with.
#[derive(Clone, Copy)]
pub struct Hand<'a> {
    /// Everything shared.
    pub deps: &'a Deps,
    /// The API server, with or without the slots of first aid.
    pub cluster: &'a Cluster,
    /// What the task remembers.
    pub memory: &'a Memory,
    /// The record.
    pub row: &'a InterruptionRow,
}

/// Takes one step within what is left, and counts it.
pub async fn take(hand: Hand<'_>, step: &Step) -> Outcome {
    let left = hand.row.signals.deadline().map(|deadline| deadline.left(hand.deps.clock.now()));
    let bound = match (&step.action, left) {
        // Nothing that ends a pod is begun after the deadline.
        (Action::Evict { .. } | Action::Delete { .. }, Some(left)) => left.min(REQUEST_MAX),
        _ => REQUEST_MAX,
    };
    let outcome = if bound.is_zero() {
        Outcome::TooLate
    } else if hand.memory.is_settling(&step.to_string()) {
        return Outcome::Settling;
    } else {
        sort(perform(hand, step, bound).await)
    };
    metrics::action(step.action.label(), outcome.label(), step.reason.label());
    tracing::info!(%step, outcome = outcome.label(), "step taken");
    outcome
}

/// Notes in the task's memory what a step came to.
pub fn note(deps: &Deps, memory: &mut Memory, step: &Step, outcome: Outcome) {
    if outcome.is_settled() {
        memory.settle(step.to_string());
    }
    match &step.action {
        Action::Evict { pod, grace } => {
            note_ending(deps, memory, (step, pod, *grace, DrainBy::Evict), outcome);
        }
        Action::Delete { pod, grace, .. } => {
            note_ending(deps, memory, (step, pod, *grace, DrainBy::Delete), outcome);
        }
        Action::Hold { pod } if outcome == Outcome::Done => {
            memory.holds.entry(pod.uid.to_string()).or_insert(deps.clock.now());
        }
        Action::EnsureClaim { claim } if outcome.is_settled() => {
            let Some(attempt) = crate::controller::memory::attempt_of(claim.name.as_str()) else {
                return;
            };
            let without = replace::left_out(memory, claim);
            let made = Claim {
                name: claim.name.to_string(),
                asked_at: deps.clock.now(),
                without,
                ready_at: None,
                gone_at: None,
            };
            memory.claims.entry(attempt).or_default().record.get_or_insert(made);
        }
        Action::Fence { .. }
        | Action::SoftTaint { .. }
        | Action::BlockDisruption { .. }
        | Action::Hold { .. }
        | Action::SetTerminationTime { .. }
        | Action::EnsureClaim { .. }
        | Action::DeleteClaim { .. }
        | Action::Unhold { .. }
        | Action::TakeBack { .. }
        | Action::Ended { .. }
        | Action::Close { .. } => (),
    }
}

/// Writes the proof that a pod ended.
pub async fn prove(
    cluster: &Cluster,
    pod: &PodRef,
    job_key: &str,
    ended: &Ended,
) -> Result<(), ClusterError> {
    let index = (pod.namespace.as_str(), job_key);
    checkpoints::record_ended(cluster, index, pod.uid.as_str(), ended).await
}

/// The proof as it is written.
pub fn proof_to_wire(proof: lifeboat_domain::workload::Proof) -> Proof {
    serde_json::from_value(serde_json::json!(proof)).unwrap_or(Proof::Unknown)
}

async fn perform(hand: Hand<'_>, step: &Step, bound: Duration) -> Result<Outcome, ClusterError> {
    let Hand { deps, cluster, row, .. } = hand;
    let now = deps.clock.now();
    match &step.action {
        Action::Fence { kind, .. } => {
            let Some(node) = observe::node_of(deps, row) else { return Ok(Outcome::Gone) };
            nodes::fence(&cluster.for_fences(), &node, kind.label(), now).await.map(patched)
        }
        Action::SoftTaint { expiry, .. } => {
            let Some(node) = observe::node_of(deps, row) else { return Ok(Outcome::Gone) };
            nodes::mark_at_risk(cluster, &node, *expiry).await.map(patched)
        }
        Action::BlockDisruption { .. } => {
            let Some(node) = observe::node_of(deps, row) else { return Ok(Outcome::Gone) };
            nodes::block_disruption(cluster, &node).await.map(patched)
        }
        Action::TakeBack { ours } => take_back(hand, ours).await,
        Action::EnsureClaim { claim } => ensure_claim(hand, claim).await,
        Action::DeleteClaim { claim } => {
            let Some(claim) = claim_row(hand, claim) else { return Ok(Outcome::Gone) };
            claims::delete(cluster, &claim).await.map(|()| Outcome::Done)
        }
        Action::SetTerminationTime { claim, at } => {
            let Some(claim) = claim_row(hand, claim) else { return Ok(Outcome::Gone) };
            claims::set_termination_time(cluster, &claim, *at).await.map(|()| Outcome::Done)
        }
        Action::Hold { pod } => {
            let Some(pod) = pod_row(hand, pod) else { return Ok(Outcome::Gone) };
            let held = pods::hold(cluster, &pod, row.instance.as_str()).await?;
            Ok(if held { Outcome::Done } else { Outcome::Gone })
        }
        Action::Unhold { pod } => {
            let Some(pod) = pod_row(hand, pod) else { return Ok(Outcome::Gone) };
            pods::unhold(cluster, &pod, row.instance.as_str()).await.map(|()| Outcome::Done)
        }
        Action::Evict { pod, grace } => {
            let Some(pod) = pod_row(hand, pod) else { return Ok(Outcome::Gone) };
            pods::evict(cluster, &pod, *grace, bound).await.map(ending)
        }
        Action::Delete { pod, grace, target } => {
            let Some(pod) = pod_row(hand, pod) else { return Ok(Outcome::Gone) };
            if *target == Target::SetFirst {
                mark_disruption_target(hand, &pod).await;
            }
            pods::delete(cluster, &pod, *grace, bound).await.map(ending)
        }
        Action::Ended { pod, job_key, proof } => {
            let noted = row.status.workloads.get(pod.uid.as_str());
            let epoch = noted.and_then(|workload| workload.save.as_ref()?.epoch);
            let ended = Ended { epoch, proof: proof_to_wire(*proof), at: now };
            prove(cluster, pod, job_key.as_str(), &ended).await.map(|()| Outcome::Done)
        }
        // Closed by its own hand, after everything else of the pass.
        Action::Close { .. } => Ok(Outcome::Done),
    }
}

/// Without the condition a Job may count a failure; without the deletion the pod is lost.
async fn mark_disruption_target(hand: Hand<'_>, pod: &PodRow) {
    let now = hand.deps.clock.now();
    if let Err(error) = pods::mark_disruption_target(hand.cluster, pod, now).await {
        complain(&error, "condition not set");
    }
}

async fn take_back(hand: Hand<'_>, ours: &Ours) -> Result<Outcome, ClusterError> {
    let mark = match ours {
        Ours::Fence { .. } => nodes::Ours::Fence,
        Ours::SoftTaint { .. } => nodes::Ours::SoftTaint,
        Ours::DisruptionBlock { .. } => nodes::Ours::Block,
        Ours::ClaimHold { claim } => {
            let Some(claim) = claim_row(hand, claim) else { return Ok(Outcome::Gone) };
            return claims::unblock(hand.cluster, &claim).await.map(|()| Outcome::Done);
        }
    };
    let node: Option<NodeRow> = observe::node_of(hand.deps, hand.row);
    let Some(node) = node else { return Ok(Outcome::Gone) };
    nodes::take_back_one(hand.cluster, &node, mark).await.map(patched)
}

async fn ensure_claim(hand: Hand<'_>, claim: &ClaimSpec) -> Result<Outcome, ClusterError> {
    let Some(new) = replace::new_claim(hand.memory, hand.row, claim) else {
        return Ok(Outcome::Gone);
    };
    Ok(match claims::create(hand.cluster, &new).await? {
        Made::Created => Outcome::Done,
        Made::Already => Outcome::Already,
    })
}

fn claim_row(hand: Hand<'_>, claim: &ClaimName) -> Option<ClaimRow> {
    hand.deps.caches.claims.row(&claim.to_string())
}

fn note_ending(
    deps: &Deps,
    memory: &mut Memory,
    (step, pod, grace, by): (&Step, &PodRef, Duration, DrainBy),
    outcome: Outcome,
) {
    let now = deps.clock.now();
    let uid = pod.uid.to_string();
    let drain = memory.drains.entry(uid.clone()).or_insert_with(|| Drain {
        decided: now,
        by,
        reason: step.reason.label().to_owned(),
        grace: grace.as_secs(),
        evicted_at: None,
        gone_at: None,
        refusals: 0,
    });
    drain.by = by;
    step.reason.label().clone_into(&mut drain.reason);
    drain.grace = grace.as_secs();
    match outcome {
        Outcome::Done | Outcome::Already => {
            drain.evicted_at.get_or_insert(now);
            memory.evictions.insert(uid, Eviction::Accepted { at: now });
        }
        Outcome::Refused => {
            drain.refusals += 1;
            let times = u32::try_from(drain.refusals).unwrap_or(u32::MAX);
            memory.evictions.insert(uid, Eviction::Refused { times, last: now });
        }
        Outcome::Gone => drop(memory.gone.entry(uid).or_insert(now)),
        Outcome::TooLate | Outcome::Settling | Outcome::Failed | Outcome::Hopeless => (),
    }
}

/// The pod as it was last seen: by UID, so that no other incarnation is touched.
fn pod_row(hand: Hand<'_>, pod: &PodRef) -> Option<PodRow> {
    let uid = pod.uid.to_string();
    hand.deps.caches.pods.row(&uid).or_else(|| hand.memory.pods.get(&uid).cloned())
}

fn patched(patched: Patched) -> Outcome {
    match patched {
        Patched::Done => Outcome::Done,
        Patched::Already => Outcome::Already,
        Patched::NoNode => Outcome::Gone,
    }
}

fn ending(ending: Ending) -> Outcome {
    match ending {
        Ending::Accepted => Outcome::Done,
        Ending::RefusedByBudget => Outcome::Refused,
        Ending::Gone => Outcome::Gone,
    }
}

fn sort(answer: Result<Outcome, ClusterError>) -> Outcome {
    let error = match answer {
        Ok(outcome) => return outcome,
        Err(error) => error,
    };
    complain(&error, "step not taken");
    match error.class() {
        Class::Transient | Class::Superseded => Outcome::Failed,
        Class::Permanent => Outcome::Hopeless,
    }
}

fn complain(error: &ClusterError, what: &'static str) {
    metrics::error("cluster", error.label());
    tracing::warn!(error = %Chain(error), "{what}");
}

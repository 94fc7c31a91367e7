//! Which pods are ended now, and how.

use std::time::Duration;

use jiff::Timestamp;

use crate::cluster::facts::Bucket;
use crate::cluster::facts::ClusterFacts;
use crate::cluster::facts::DisruptionTarget;
use crate::cluster::facts::Eviction;
use crate::cluster::facts::Fate;
use crate::cluster::facts::Pause;
use crate::cluster::facts::PodFacts;
use crate::cluster::facts::Workload;
use crate::cluster::plan::Action;
use crate::cluster::plan::Reason;
use crate::cluster::plan::Step;
use crate::cluster::plan::Target;
use crate::cluster::stage::Stage;
use crate::deadline::later;
use crate::eviction::Drain;
use crate::eviction::drain;
use crate::eviction::drain_self_saving;
use crate::grace::grace;
use crate::grace::whole_seconds;
use crate::policy::DrainPolicy;
use crate::policy::KarpenterMode;
use crate::policy::Others;
use crate::policy::Policy;
use crate::workload::Checkpoint;
use crate::workload::Mode;

/// How long an eviction rests after it was taken and not yet seen, or for each time that a budget
/// refused it.
const EVICT_AGAIN: Duration = Duration::from_secs(2);

/// The longest that an eviction rests.
const REST_MAX: Duration = Duration::from_secs(10);

/// A pod that is being ended within this much of the grace we would give it is left to end.
const NEAR_ENOUGH: Duration = Duration::from_secs(2);

/// The pods that are ended now: protected ones by their checkpoint, others where we drain them.
pub(super) fn drains(
    facts: &ClusterFacts,
    policy: &Policy,
    stage: Stage,
    now: Timestamp,
) -> Vec<Step> {
    let here = !matches!(facts.fate, Fate::Going | Fate::Gone { .. });
    let Some((_, left)) = stage.window().filter(|_| here) else { return Vec::new() };
    let moment = Moment { policy: &policy.drain, left, now };
    let protected = facts.workloads.values().filter_map(|workload| moment.settle(facts, workload));
    let by_us = policy.karpenter == KarpenterMode::None && policy.drain.others == Others::Drain;
    let others = facts.others.values().filter(|_| by_us).filter_map(|pod| moment.clear(pod));
    protected.chain(others).collect()
}

/// How far the saving of a workload is, by the agent's word or the bucket's.
pub(super) fn checkpoint(workload: &Workload) -> Checkpoint {
    match workload.bucket {
        Bucket::Manifest(stored) => Checkpoint::Durable(stored),
        Bucket::Nothing | Bucket::Unknown => workload.report.checkpoint.clone(),
    }
}

/// Those whose state we store, that share a fault domain with `workload` and are not settled.
pub(super) fn waiting_sharers<'a>(
    facts: &'a ClusterFacts,
    workload: &'a Workload,
) -> impl Iterator<Item = &'a Workload> {
    facts.workloads.values().filter(|other| {
        let another = other.pod.pod.uid != workload.pod.pod.uid;
        let waits = other.mode.is_saved_by_us()
            && other.paused != Pause::On
            && !other.pod.is_over()
            && !checkpoint(other).is_settled();
        another && waits && workload.report.slices.share_a_fault_domain(&other.report.slices)
    })
}

struct Moment<'a> {
    policy: &'a DrainPolicy,
    left: Duration,
    now: Timestamp,
}

impl Moment<'_> {
    fn settle(&self, facts: &ClusterFacts, workload: &Workload) -> Option<Step> {
        let pod = &workload.pod;
        if pod.is_over() || workload.paused == Pause::On {
            return None;
        }
        match workload.mode {
            Mode::None => None,
            Mode::Sigterm => self.end_self_saving(pod, Reason::SavesItself),
            Mode::Sdk | Mode::Directory | Mode::Http | Mode::Unknown => {
                self.end_saved(facts, workload)
            }
        }
    }

    fn clear(&self, pod: &PodFacts) -> Option<Step> {
        if pod.is_over() { None } else { self.end_self_saving(pod, Reason::Unprotected) }
    }

    fn end_saved(&self, facts: &ClusterFacts, workload: &Workload) -> Option<Step> {
        let pod = &workload.pod;
        let checkpoint = checkpoint(workload);
        let grace = grace(workload.mode, pod.own_grace, self.policy, self.left);
        if pod.is_ending() {
            return self.hasten(facts, workload, grace);
        }
        match drain(&checkpoint, grace, self.policy.margin, self.left) {
            Drain::Wait => None,
            Drain::Evict { .. } if self.waits_for_sharers(facts, workload) => None,
            Drain::Evict { grace } => self.evict(pod, grace, settled(&checkpoint)),
            Drain::Delete { grace } => {
                let reason = match (checkpoint.is_settled(), refusals(pod)) {
                    (false, _) => Reason::OutOfTime,
                    (true, 0) => settled(&checkpoint),
                    (true, _) => Reason::BudgetOverruled,
                };
                Some(delete(pod, grace, reason))
            }
        }
    }

    /// Whoever ends a saved pod with its own long grace leaves it hours that it does not need.
    fn hasten(&self, facts: &ClusterFacts, workload: &Workload, grace: Duration) -> Option<Step> {
        let checkpoint = checkpoint(workload);
        let near = later(self.now, grace + NEAR_ENOUGH);
        let ends_late = workload.pod.ending.ends_at().is_some_and(|ends_at| ends_at > near);
        let due = ends_late && checkpoint.is_settled() && !self.waits_for_sharers(facts, workload);
        due.then(|| delete(&workload.pod, grace, settled(&checkpoint)))
    }

    fn waits_for_sharers(&self, facts: &ClusterFacts, workload: &Workload) -> bool {
        self.left > self.policy.sharers_until && waiting_sharers(facts, workload).next().is_some()
    }

    fn end_self_saving(&self, pod: &PodFacts, reason: Reason) -> Option<Step> {
        if pod.is_ending() {
            return None;
        }
        match drain_self_saving(refusals(pod), pod.own_grace, self.policy, self.left) {
            Drain::Wait => None,
            Drain::Evict { grace } => self.evict(pod, grace, reason),
            Drain::Delete { grace } if refusals(pod) > 0 => {
                Some(delete(pod, grace, Reason::BudgetOverruled))
            }
            Drain::Delete { grace } => Some(delete(pod, grace, reason)),
        }
    }

    fn evict(&self, pod: &PodFacts, grace: Duration, reason: Reason) -> Option<Step> {
        let rests = rests_until(pod).is_some_and(|until| self.now < until);
        let action = Action::Evict { pod: pod.pod.clone(), grace: whole_seconds(grace) };
        (!rests).then_some(Step { action, reason })
    }
}

/// Until when an eviction of the pod rests.
pub(super) fn rests_until(pod: &PodFacts) -> Option<Timestamp> {
    match pod.eviction {
        Eviction::Accepted { at } => Some(later(at, EVICT_AGAIN)),
        Eviction::Refused { times, last } => {
            Some(later(last, EVICT_AGAIN.saturating_mul(times).min(REST_MAX)))
        }
        Eviction::Untried | Eviction::Unknown => None,
    }
}

fn delete(pod: &PodFacts, grace: Duration, reason: Reason) -> Step {
    let target = match pod.target {
        DisruptionTarget::Set => Target::AlreadySet,
        DisruptionTarget::Absent | DisruptionTarget::Unknown => Target::SetFirst,
    };
    let action = Action::Delete { pod: pod.pod.clone(), grace: whole_seconds(grace), target };
    Step { action, reason }
}

fn refusals(pod: &PodFacts) -> u32 {
    match pod.eviction {
        Eviction::Refused { times, .. } => times,
        Eviction::Untried | Eviction::Accepted { .. } | Eviction::Unknown => 0,
    }
}

fn settled(checkpoint: &Checkpoint) -> Reason {
    if checkpoint.is_durable() { Reason::Durable } else { Reason::SaveFailed }
}

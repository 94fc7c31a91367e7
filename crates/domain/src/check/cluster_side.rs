//! The rules of the cluster's side, one step after another.

use std::time::Duration;

use jiff::Timestamp;

use super::Rule;
use super::keep;
use crate::cluster::facts::Bucket;
use crate::cluster::facts::ClusterFacts;
use crate::cluster::facts::Fate;
use crate::cluster::facts::Fence;
use crate::cluster::facts::HoldMark;
use crate::cluster::facts::Mark;
use crate::cluster::facts::Node;
use crate::cluster::facts::Pause;
use crate::cluster::facts::Presence;
use crate::cluster::facts::Ready;
use crate::cluster::facts::SoftTaint;
use crate::cluster::facts::Workload;
use crate::cluster::plan::Action;
use crate::cluster::plan::Ours;
use crate::cluster::plan::Reason;
use crate::cluster::plan::Step;
use crate::ids::ClaimName;
use crate::ids::PodRef;
use crate::policy::KarpenterMode;
use crate::policy::OperatingMode;
use crate::policy::Others;
use crate::policy::Policy;
use crate::replacement::Attempt;
use crate::replacement::Attempts;
use crate::replacement::ClaimHold;
use crate::replacement::Used;
use crate::workload::Checkpoint;
use crate::workload::Containers;
use crate::workload::Mode;
use crate::workload::Proof;

/// How long after the deadline a record may be closed, and a silent node counts as gone.
const PAST: Duration = Duration::from_secs(30);

/// What is looked at while the steps of one plan are judged in their order.
pub(super) struct Court<'a> {
    facts: &'a ClusterFacts,
    policy: &'a Policy,
    now: Timestamp,
    left: Option<Duration>,
    fenced: bool,
    claims_to_come: usize,
}

impl<'a> Court<'a> {
    pub(super) fn new(
        facts: &'a ClusterFacts,
        policy: &'a Policy,
        now: Timestamp,
        steps: &[Step],
    ) -> Self {
        let fenced = match &facts.node {
            Node::Present(node) => node.fence == Fence::Fenced,
            Node::Gone { .. } | Node::Unknown => true,
        };
        let is_claim = |step: &&Step| matches!(step.action, Action::EnsureClaim { .. });
        let claims_to_come = steps.iter().filter(is_claim).count();
        let left = facts.signals.deadline().map(|deadline| deadline.left(now));
        Self { facts, policy, now, left, fenced, claims_to_come }
    }

    pub(super) fn judge(&mut self, step: &Step) -> Result<(), Rule> {
        if !step.action.only_records() {
            keep(Rule::RecordOnly, self.may_act(step))?;
        }
        match &step.action {
            Action::Fence { .. } => {
                keep(Rule::AdviceKillsNothing, self.left.is_some())?;
                self.fenced = true;
                Ok(())
            }
            Action::EnsureClaim { claim } => {
                self.claims_to_come = self.claims_to_come.saturating_sub(1);
                keep(Rule::OneClaim, self.is_next_claim(&claim.name))
            }
            Action::Hold { pod } => {
                keep(Rule::AdviceKillsNothing, self.left.is_some())?;
                let workload = self.workload(pod)?;
                keep(Rule::OnlyOurs, workload.hold == HoldMark::Absent)
            }
            Action::Evict { pod, grace } | Action::Delete { pod, grace, .. } => {
                self.judge_end(step, pod, *grace)
            }
            Action::Unhold { pod } => {
                let workload = self.workload(pod)?;
                keep(Rule::OnlyOurs, workload.hold == HoldMark::ForInterruption)
            }
            Action::TakeBack { ours } => keep(Rule::OnlyOurs, self.is_ours(ours)),
            Action::DeleteClaim { claim } => keep(Rule::OnlyOurs, self.is_unused(claim)),
            Action::Ended { pod, proof, .. } => {
                keep(Rule::ProofFirst, self.is_proven(self.workload(pod)?, *proof))
            }
            Action::Close { .. } => keep(Rule::ClosedLast, self.is_over()),
            Action::SoftTaint { .. }
            | Action::BlockDisruption { .. }
            | Action::SetTerminationTime { .. } => Ok(()),
        }
    }

    fn judge_end(&self, step: &Step, pod: &PodRef, grace: Duration) -> Result<(), Rule> {
        let left = self.left.ok_or(Rule::AdviceKillsNothing)?;
        keep(Rule::BeforeTheDeadline, !left.is_zero())?;
        keep(Rule::FencedFirst, self.fenced)?;
        keep(Rule::ClaimedFirst, self.claims_to_come == 0)?;
        let second = Duration::from_secs(1);
        keep(Rule::GraceFits, grace >= second && (grace == second || grace <= left))?;
        let Ok(workload) = self.workload(pod) else {
            return keep(Rule::KnownPods, self.is_other_of_ours(pod));
        };
        match workload.mode {
            Mode::None => Err(Rule::KnownPods),
            Mode::Sigterm => Ok(()),
            Mode::Sdk | Mode::Directory | Mode::Http | Mode::Unknown => {
                self.judge_end_of_saved(step, workload, left)
            }
        }
    }

    fn judge_end_of_saved(
        &self,
        step: &Step,
        workload: &Workload,
        left: Duration,
    ) -> Result<(), Rule> {
        let drain = &self.policy.drain;
        let last_moment = left <= drain.max_grace + drain.margin;
        let out_of_time = last_moment
            && step.reason == Reason::OutOfTime
            && matches!(step.action, Action::Delete { .. });
        keep(Rule::SavedFirst, is_settled(workload) || out_of_time)?;
        let alone = self.facts.workloads.values().all(|other| {
            let harmed = other.pod.pod.uid != workload.pod.pod.uid
                && other.mode.is_saved_by_us()
                && other.paused != Pause::On
                && !is_ended(other)
                && !is_settled(other);
            !(harmed && workload.report.slices.share_a_fault_domain(&other.report.slices))
        });
        keep(Rule::SharersTogether, alone || left <= drain.sharers_until)
    }

    fn workload(&self, pod: &PodRef) -> Result<&'a Workload, Rule> {
        let workload = self.facts.workloads.get(&pod.uid);
        workload.filter(|workload| workload.pod.pod == *pod).ok_or(Rule::KnownPods)
    }

    fn is_other_of_ours(&self, pod: &PodRef) -> bool {
        let known = self.facts.others.get(&pod.uid).is_some_and(|other| other.pod == *pod);
        let drained = self.policy.karpenter == KarpenterMode::None;
        known && drained && self.policy.drain.others == Others::Drain
    }

    fn may_act(&self, step: &Step) -> bool {
        let pod = step.action.pod().and_then(|pod| self.facts.workloads.get(&pod.uid));
        let paused = pod.is_some_and(|workload| workload.paused == Pause::On);
        let protecting = self.policy.mode == OperatingMode::Protect;
        protecting && self.facts.paused != Pause::On && !paused
    }

    fn attempts(&self) -> impl Iterator<Item = (u32, &'a Attempt)> {
        let attempts = match &self.facts.replacement.attempts {
            Attempts::Known { attempts } => Some(attempts),
            Attempts::Unknown => None,
        };
        attempts.into_iter().flatten().map(|(number, attempt)| (*number, attempt))
    }

    fn is_next_claim(&self, name: &ClaimName) -> bool {
        let known = matches!(self.facts.replacement.attempts, Attempts::Known { .. });
        let gone = |(_, attempt)| matches!(attempt, &Attempt::Gone { .. });
        let next = self.attempts().map(|(number, _)| number).max().unwrap_or(0).saturating_add(1);
        known && self.attempts().all(gone) && self.claim(next) == name.as_str()
    }

    fn is_unused(&self, name: &ClaimName) -> bool {
        self.attempts().any(|(number, attempt)| {
            let empty = matches!(attempt, Attempt::Alive { used: Used::Empty { .. }, .. });
            empty && self.claim(number) == name.as_str()
        })
    }

    fn claim(&self, number: u32) -> String {
        format!("{}-{number}", self.facts.instance)
    }

    fn is_ours(&self, ours: &Ours) -> bool {
        let node = self.facts.node.present();
        match ours {
            Ours::Fence { .. } => false,
            Ours::SoftTaint { .. } => {
                node.is_some_and(|node| matches!(node.soft_taint, SoftTaint::Until { .. }))
            }
            Ours::DisruptionBlock { .. } => {
                node.is_some_and(|node| node.disruption_block == Mark::Ours)
            }
            Ours::ClaimHold { claim } => self.attempts().any(|(number, attempt)| {
                let held = matches!(attempt, Attempt::Alive { held: ClaimHold::Held, .. });
                held && self.claim(number) == claim.as_str()
            }),
        }
    }

    fn is_proven(&self, workload: &Workload, proof: Proof) -> bool {
        let pod = &workload.pod;
        let not_ready =
            self.facts.node.present().is_some_and(|node| matches!(node.ready, Ready::No { .. }));
        let silent = not_ready || matches!(pod.presence, Presence::Gone { .. });
        match proof {
            Proof::Released => workload.report.release.is_released(),
            Proof::ContainersEnded => matches!(pod.containers, Containers::Ended { .. }),
            Proof::InstanceGone => self.is_leaving(),
            Proof::NodeGone => matches!(self.facts.node, Node::Gone { .. }),
            Proof::PastDeadline => {
                let deadline = self.facts.signals.deadline();
                silent && deadline.is_some_and(|deadline| self.is_past(deadline.at()))
            }
            Proof::PodDeleted => {
                silent && pod.ending.ends_at().is_some_and(|ends_at| self.is_past(ends_at))
            }
            Proof::Unknown => false,
        }
    }

    fn is_over(&self) -> bool {
        let gone = matches!(self.facts.fate, Fate::Gone { .. })
            || matches!(self.facts.node, Node::Gone { .. });
        let past =
            self.facts.signals.deadline().is_some_and(|deadline| self.is_past(deadline.at()));
        gone || past
    }

    fn is_leaving(&self) -> bool {
        matches!(self.facts.fate, Fate::Going | Fate::Gone { .. })
    }

    fn is_past(&self, moment: Timestamp) -> bool {
        self.now.duration_since(moment) >= jiff::SignedDuration::try_from(PAST).unwrap_or_default()
    }
}

fn is_settled(workload: &Workload) -> bool {
    let told =
        matches!(workload.report.checkpoint, Checkpoint::Durable(_) | Checkpoint::Failed { .. });
    told || matches!(workload.bucket, Bucket::Manifest(_))
}

fn is_ended(workload: &Workload) -> bool {
    matches!(workload.pod.presence, Presence::Gone { .. })
        || matches!(workload.pod.containers, Containers::Ended { .. })
}

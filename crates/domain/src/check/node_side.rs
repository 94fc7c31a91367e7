//! The rules of the node's side, one step after another.

use std::time::Duration;

use jiff::Timestamp;

use super::Rule;
use super::keep;
use crate::cluster::facts::Pause;
use crate::deadline::Deadline;
use crate::node::facts::NodeFacts;
use crate::node::facts::Restore;
use crate::node::facts::Session;
use crate::node::facts::Workload;
use crate::node::plan::Action;
use crate::node::plan::Notice;
use crate::node::plan::Step;
use crate::policy::OperatingMode;
use crate::policy::Policy;
use crate::workload::Checkpoint;
use crate::workload::Containers;
use crate::workload::Ending;
use crate::workload::Proof;
use crate::workload::Purpose;

/// How long after a deadline a silent node counts as gone.
const PAST: Duration = Duration::from_secs(30);
/// With this much left, nothing is frozen.
const THAWED: Duration = Duration::from_secs(20);

/// What is looked at while the steps of one plan are judged.
pub(super) struct Court<'a> {
    pub(super) facts: &'a NodeFacts,
    pub(super) policy: &'a Policy,
    pub(super) now: Timestamp,
}

impl Court<'_> {
    pub(super) fn judge(&self, step: &Step) -> Result<(), Rule> {
        let pod = step.action.pod();
        let workload = self.facts.workloads.get(&pod.uid).ok_or(Rule::KnownPods)?;
        keep(Rule::KnownPods, workload.pod == *pod && workload.mode.is_protected())?;
        if !step.action.is_always_allowed() {
            keep(Rule::RecordOnly, self.may_act(workload))?;
        }
        match &step.action {
            Action::Ask { notice, .. } => self.judge_ask(workload, *notice),
            Action::Save { .. } => {
                keep(Rule::SavedFirst, matches!(workload.session, Session::HandedOver { .. }))
            }
            Action::Freeze { .. } => self.judge_freeze(workload),
            Action::AllowRestore { proof, .. } => {
                keep(Rule::ProofFirst, self.is_proven(workload, *proof))
            }
            Action::CallOff { .. }
            | Action::Thaw { .. }
            | Action::ConfirmRelease { .. }
            | Action::Report { .. } => Ok(()),
        }
    }

    fn judge_ask(&self, workload: &Workload, notice: Notice) -> Result<(), Rule> {
        let in_time = notice.deadline.is_none_or(|deadline| !deadline.has_passed(self.now));
        let node_in_time = self.deadline().is_none_or(|deadline| !deadline.has_passed(self.now));
        keep(Rule::BeforeTheDeadline, in_time && node_in_time)?;
        let meant = match notice.purpose {
            Purpose::Interruption => self.deadline().is_some(),
            Purpose::Ending => matches!(workload.ending, Ending::By { .. }),
            Purpose::Background | Purpose::Insurance => notice.deadline.is_none(),
            Purpose::Unknown => false,
        };
        keep(Rule::AdviceKillsNothing, meant)
    }

    fn judge_freeze(&self, workload: &Workload) -> Result<(), Rule> {
        let deadline = self.deadline().ok_or(Rule::AdviceKillsNothing)?;
        let saved = matches!(workload.report.checkpoint, Checkpoint::Durable(_));
        keep(Rule::SavedFirst, saved)?;
        let ending = matches!(workload.ending, Ending::By { .. });
        keep(Rule::Thawed, !ending && deadline.left(self.now) > THAWED)
    }

    fn may_act(&self, workload: &Workload) -> bool {
        let paused = self.facts.paused == Pause::On || workload.paused == Pause::On;
        self.policy.mode == OperatingMode::Protect && !paused
    }

    fn is_proven(&self, workload: &Workload, proof: Proof) -> bool {
        let Restore::Waiting { from, deadline, proof: told, .. } = &workload.restore else {
            return false;
        };
        if *told == Some(proof) {
            return true;
        }
        let old = self.facts.workloads.get(from);
        match proof {
            Proof::Released => old.is_some_and(|old| old.report.release.is_released()),
            Proof::ContainersEnded => {
                old.is_some_and(|old| matches!(old.containers, Containers::Ended { .. }))
            }
            Proof::PastDeadline => deadline.is_some_and(|deadline| {
                let past = self.now.duration_since(deadline.at());
                Duration::try_from(past).unwrap_or_default() >= PAST
            }),
            Proof::InstanceGone | Proof::NodeGone | Proof::PodDeleted | Proof::Unknown => false,
        }
    }

    fn deadline(&self) -> Option<Deadline> {
        self.facts.signals.deadline()
    }
}

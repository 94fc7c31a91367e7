//! Does what the plan says, and makes no choice.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::facts::NodeFacts;
use lifeboat_domain::node::facts::Quiet;
use lifeboat_domain::node::facts::Workload;
use lifeboat_domain::node::outlook;
use lifeboat_domain::node::outlook::Outlook;
use lifeboat_domain::node::outlook::Save;
use lifeboat_domain::node::plan::Action;
use lifeboat_domain::node::plan::Plan;
use lifeboat_domain::node::plan::Reason;
use lifeboat_domain::node::plan::Step;
use tracing::debug;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::adapters::proc::Motion;
use crate::adapters::proc::Proc;
use crate::agent::observe::Observer;
use crate::agent::outlook::Foresight;
use crate::agent::report::Letter;
use crate::agent::report::Reporter;
use crate::agent::report::Weight;
use crate::agent::senses::Senses;
use crate::agent::workloads::Workloads;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// What the agent can do.
#[derive(Debug)]
pub struct Hands {
    /// To the workloads.
    pub workloads: Workloads,
    /// To slices.
    pub senses: Senses,
    /// To processes.
    pub proc: Proc,
    /// To others.
    pub reporter: Reporter,
    /// When each pod was first asked.
    pub asked_at: BTreeMap<PodUid, Timestamp>,
    /// What is to be expected of each save.
    pub outlooks: BTreeMap<PodUid, Outlook>,
    /// What was said of that.
    pub foresight: Foresight,
}

/// What an action did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
}

impl Hands {
    /// Hands that have done nothing yet.
    pub fn new(workloads: Workloads, senses: Senses, proc: Proc, reporter: Reporter) -> Self {
        Self {
            workloads,
            senses,
            proc,
            reporter,
            asked_at: BTreeMap::new(),
            outlooks: BTreeMap::new(),
            foresight: Foresight::default(),
        }
    }

    /// Does the steps in their order. What one of them does is seen by the next look, in `observer`
    /// where only this life of the agent knows it.
    pub async fn act(&mut self, plan: &Plan, facts: &NodeFacts, observer: &mut Observer) {
        for refused in &plan.refused {
            metrics::step_refused(refused.rule.label());
            error!(step = %refused.step, rule = refused.rule.label(), "step refused: fault of the planner");
        }
        for step in &plan.withheld {
            debug!(step = %step, "step withheld");
        }
        for step in &plan.steps {
            let outcome = self.step(step, facts, observer).await;
            let label = match outcome {
                Outcome::Done => "done",
                Outcome::Failed => "failed",
            };
            metrics::action(step.action.label(), label, step.reason.label());
            tell(step, outcome);
        }
    }

    /// Tells people and workloads what is to be expected of each save, and of which workload none
    /// could be made if a notice came now.
    pub fn foretell(&mut self, facts: &NodeFacts) {
        let outlooks = outlook::outlook(facts, facts.observed_at);
        let at_risk = |outlook: &&Outlook| outlook.of == Save::AtNotice && outlook.is_too_late();
        metrics::workloads_unsavable(outlooks.values().filter(at_risk).count());
        for (uid, outlook) in self.foresight.news(&outlooks, facts.observed_at) {
            let Some(workload) = facts.workloads.get(&uid) else { continue };
            let pod = &workload.pod;
            match (outlook.of, outlook.is_too_late()) {
                (Save::UnderWay { .. }, false) => info!(%pod, %outlook, "save expected"),
                (Save::UnderWay { .. }, true) => warn!(%pod, %outlook, "save will not fit"),
                (Save::AtNotice, true) => {
                    warn!(%pod, %outlook, "workload could not be saved at a notice");
                }
                (Save::AtNotice, false) => {
                    info!(%pod, %outlook, "workload could be saved at a notice again");
                }
            }
            if let (Save::AtNotice, Some(key)) = (outlook.of, &workload.job_key) {
                self.reporter.foretell((pod, key), outlook, facts.observed_at);
            }
            self.workloads.expect(&uid, outlook);
        }
        self.outlooks = outlooks;
    }

    /// Forgets a pod that is over.
    pub fn forget(&mut self, pod: &PodUid) {
        self.asked_at.remove(pod);
        self.foresight.forget(pod);
        self.reporter.forget(pod);
    }

    async fn step(&mut self, step: &Step, facts: &NodeFacts, observer: &mut Observer) -> Outcome {
        let now = facts.observed_at;
        let uid = &step.action.pod().uid;
        let workload = facts.workloads.get(uid);
        match &step.action {
            Action::Ask { notice, .. } => {
                self.asked_at.entry(uid.clone()).or_insert(now);
                self.workloads.ask(uid, *notice);
            }
            Action::Save { .. } => self.workloads.save(uid),
            Action::CallOff { .. } => {
                self.asked_at.remove(uid);
                self.workloads.call_off(uid);
            }
            Action::Freeze { .. } => return self.set(uid, Motion::Frozen, observer).await,
            Action::Thaw { .. } => return self.set(uid, Motion::Running, observer).await,
            Action::ConfirmRelease { .. } => {
                if let Some(workload) = workload {
                    self.senses.watch(uid, &workload.report.slices);
                }
            }
            Action::AllowRestore { proof, .. } => self.workloads.allow_restore(uid, *proof),
            Action::Report { .. } => {
                if let Some(letter) = workload.and_then(|known| self.letter(step, known)) {
                    self.reporter.tell(letter);
                }
            }
        }
        Outcome::Done
    }

    async fn set(&self, pod: &PodUid, motion: Motion, observer: &mut Observer) -> Outcome {
        let quiet = match motion {
            Motion::Frozen => Quiet::Frozen,
            Motion::Running => Quiet::Thawed,
        };
        match self.proc.set(pod, motion).await {
            Ok(()) => {
                observer.moved(pod, quiet);
                Outcome::Done
            }
            Err(error) => {
                metrics::error("proc", error.label());
                warn!(pod = %pod, error = %Chain(&error), "pod not frozen or thawed");
                Outcome::Failed
            }
        }
    }

    fn letter(&self, step: &Step, workload: &Workload) -> Option<Letter> {
        let Action::Report { pod, report, to } = &step.action else { return None };
        let outlook = self.outlooks.get(&pod.uid).copied();
        let outlook = outlook.filter(|outlook| outlook.of != Save::AtNotice);
        let weight = match step.reason {
            Reason::Progress => Weight::Progress,
            Reason::Interrupted
            | Reason::Advised
            | Reason::Background
            | Reason::Ending
            | Reason::Tightened
            | Reason::HandedOver
            | Reason::WillNotFit
            | Reason::CalledOff
            | Reason::Saved
            | Reason::NearDeadline
            | Reason::AgentStarted
            | Reason::Proven
            | Reason::Changed => Weight::Edge,
        };
        Some(Letter {
            pod: pod.clone(),
            job_key: workload.job_key.clone(),
            mode: workload.mode,
            asked_at: self.asked_at.get(&pod.uid).copied(),
            report: report.clone(),
            outlook,
            stall: workload.stall,
            to: *to,
            weight,
        })
    }
}

/// A report is no step that a person would look for.
fn tell(step: &Step, outcome: Outcome) {
    let is_report = matches!(step.action, Action::Report { .. });
    match outcome {
        Outcome::Done if is_report => debug!(step = %step, "step taken"),
        Outcome::Done => info!(pod = %step.action.pod(), step = %step, "step taken"),
        Outcome::Failed => warn!(pod = %step.action.pod(), step = %step, "step not taken"),
    }
}

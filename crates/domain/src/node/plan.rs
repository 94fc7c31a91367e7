//! What the node's side does next, and why.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use crate::check;
use crate::check::Refused;
use crate::cluster::plan::Next;
use crate::deadline::Deadline;
use crate::ids::PodRef;
use crate::node::facts::NodeFacts;
use crate::node::moment::Moment;
use crate::node::moment::confirm_release;
use crate::policy::Policy;
use crate::workload::Proof;
use crate::workload::Purpose;
use crate::workload::Report;

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// What to do.
    pub steps: Vec<Step>,
    /// What would be done, were it not for observe mode or a pause: to be logged, not done.
    pub withheld: Vec<Step>,
    /// Steps that broke a rule: to be counted and logged, not done. Always empty, but for a fault
    /// of the planner.
    pub refused: Vec<Refused<Step>>,
    /// Whether the agent must stay, SIGTERM or not.
    pub hand: Hand,
    /// When to look again, if no fact changes before.
    pub next: Next,
}

/// Whether there is work in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hand {
    /// Nothing keeps the agent.
    Idle,
    /// A state is being stored, or a slice watched: the agent keeps the instance alive.
    Busy,
}

/// An action and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// Something that the agent does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Tell the workload to hand its state over at its next safe point. Asking again tells it a
    /// tighter deadline, or a graver purpose.
    Ask {
        /// The pod.
        pod: PodRef,
        /// What it is told.
        notice: Notice,
    },
    /// Store what it hands over.
    Save {
        /// The pod.
        pod: PodRef,
        /// The most bytes a second it may take while other namespaces wait; none for no bound.
        part: Option<u64>,
        /// Its place in the queue, from 0.
        place: u32,
    },
    /// Tell the workload to go on, and forget what it handed over.
    CallOff {
        /// The pod.
        pod: PodRef,
    },
    /// Stop all its processes by its cgroup.
    Freeze {
        /// The pod.
        pod: PodRef,
    },
    /// Let its processes run, so that they can handle signals.
    Thaw {
        /// The pod.
        pod: PodRef,
    },
    /// Begin to watch its slices.
    ConfirmRelease {
        /// The pod.
        pod: PodRef,
    },
    /// Let its `restore()` return.
    AllowRestore {
        /// The pod that waits.
        pod: PodRef,
        /// The proof that its predecessor ended.
        proof: Proof,
    },
    /// Tell others.
    Report {
        /// The pod.
        pod: PodRef,
        /// What.
        report: Report,
        /// Where.
        to: Records,
    },
}

/// What a workload is told when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// Why.
    pub purpose: Purpose,
    /// Until when; none if there is no hurry.
    pub deadline: Option<Deadline>,
}

/// Which records hear of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Records {
    /// The interruption and the checkpoint's index.
    InterruptionAndCheckpoint,
    /// The checkpoint's index only: nothing interrupts the node.
    Checkpoint,
}

/// Why a step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Reason {
    /// The instance is being taken.
    Interrupted,
    /// The instance is at risk.
    Advised,
    /// Time has passed since the last save.
    Background,
    /// The pod is being ended.
    Ending,
    /// The deadline moved earlier, or the purpose is graver, since it was asked.
    Tightened,
    /// Its state is handed over, and it fits the time, or nobody knows that it does not.
    HandedOver,
    /// Its state is handed over, and will not fit the time by the rate so far.
    WillNotFit,
    /// The advice lapsed, or somebody paused.
    CalledOff,
    /// It is saved, and others still need the GPU.
    Saved,
    /// Little time is left: a frozen process handles no SIGTERM.
    NearDeadline,
    /// It was frozen by an agent that is gone.
    AgentStarted,
    /// Its predecessor has ended.
    Proven,
    /// Something changed that others must know.
    Changed,
    /// Others were not told for a while.
    Progress,
}

/// Decides what to do now. Same facts, same policy, same moment: same plan.
pub fn plan(facts: &NodeFacts, policy: &Policy, now: Timestamp) -> Plan {
    let moment = Moment { facts, policy, now };
    let workloads = || facts.workloads.values().filter(|one| one.mode.is_protected());
    let wanted: Vec<Step> = workloads()
        .filter_map(|workload| moment.thaw(workload))
        .chain(workloads().filter_map(|workload| moment.call_off(workload)))
        .chain(workloads().filter_map(|workload| moment.ask(workload)))
        .chain(moment.saves())
        .chain(workloads().filter_map(|workload| moment.freeze(workload)))
        .chain(workloads().filter_map(confirm_release))
        .chain(workloads().filter_map(|workload| moment.allow_restore(workload)))
        .chain(workloads().filter_map(|workload| moment.report(workload)))
        .collect();
    let (steps, withheld) = wanted.into_iter().partition(|step| moment.is_allowed(step));
    let (steps, refused) = check::node(steps, facts, policy, now);
    let busy = workloads().any(|workload| moment.is_in_hand(workload));
    let hand = if busy { Hand::Busy } else { Hand::Idle };
    let next = moment.next(&steps);
    Plan { steps, withheld, refused, hand, next }
}

impl Action {
    /// Its name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Ask { .. } => "ask",
            Self::Save { .. } => "save",
            Self::CallOff { .. } => "call-off",
            Self::Freeze { .. } => "freeze",
            Self::Thaw { .. } => "thaw",
            Self::ConfirmRelease { .. } => "confirm-release",
            Self::AllowRestore { .. } => "allow-restore",
            Self::Report { .. } => "report",
        }
    }

    /// The pod it is about.
    pub fn pod(&self) -> &PodRef {
        match self {
            Self::Ask { pod, .. }
            | Self::Save { pod, .. }
            | Self::CallOff { pod }
            | Self::Freeze { pod }
            | Self::Thaw { pod }
            | Self::ConfirmRelease { pod }
            | Self::AllowRestore { pod, .. }
            | Self::Report { pod, .. } => pod,
        }
    }

    /// Whether observe mode and a pause allow it: it only records, or undoes what we did, or keeps
    /// nobody waiting for us.
    pub fn is_always_allowed(&self) -> bool {
        match self {
            Self::CallOff { .. }
            | Self::Thaw { .. }
            | Self::AllowRestore { .. }
            | Self::Report { .. } => true,
            Self::Ask { .. }
            | Self::Save { .. }
            | Self::Freeze { .. }
            | Self::ConfirmRelease { .. } => false,
        }
    }
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 14] = [
        Self::Interrupted,
        Self::Advised,
        Self::Background,
        Self::Ending,
        Self::Tightened,
        Self::HandedOver,
        Self::WillNotFit,
        Self::CalledOff,
        Self::Saved,
        Self::NearDeadline,
        Self::AgentStarted,
        Self::Proven,
        Self::Changed,
        Self::Progress,
    ];

    /// Its name in metrics and Kubernetes Events.
    pub fn label(self) -> &'static str {
        match self {
            Self::Interrupted => "Interrupted",
            Self::Advised => "Advised",
            Self::Background => "Background",
            Self::Ending => "Ending",
            Self::Tightened => "Tightened",
            Self::HandedOver => "HandedOver",
            Self::WillNotFit => "WillNotFit",
            Self::CalledOff => "CalledOff",
            Self::Saved => "Saved",
            Self::NearDeadline => "NearDeadline",
            Self::AgentStarted => "AgentStarted",
            Self::Proven => "Proven",
            Self::Changed => "Changed",
            Self::Progress => "Progress",
        }
    }
}

impl fmt::Display for Step {
    /// Like `ask train-0 because Interrupted`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} because {}", self.action, self.reason.label())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, pod) = (self.label(), &self.pod().name);
        match self {
            Self::AllowRestore { proof, .. } => write!(formatter, "{verb} {pod} {}", proof.label()),
            Self::Report { report, .. } => {
                let (checkpoint, release) = (report.checkpoint.label(), report.release.label());
                write!(formatter, "{verb} {pod} {checkpoint} {release}")
            }
            Self::Ask { .. }
            | Self::Save { .. }
            | Self::CallOff { .. }
            | Self::Freeze { .. }
            | Self::Thaw { .. }
            | Self::ConfirmRelease { .. } => write!(formatter, "{verb} {pod}"),
        }
    }
}

#[cfg(test)]
mod tests;

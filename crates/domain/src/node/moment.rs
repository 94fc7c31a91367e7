//! What is due for each workload of the node at one moment.

use std::time::Duration;

use jiff::Timestamp;

use crate::budget::Fit;
use crate::budget::Waiting;
use crate::budget::turns;
use crate::cluster::facts::Pause;
use crate::cluster::plan::Next;
use crate::deadline::Deadline;
use crate::deadline::earlier;
use crate::deadline::elapsed;
use crate::deadline::later;
use crate::gpu::Release;
use crate::node::facts::Asked;
use crate::node::facts::NodeFacts;
use crate::node::facts::Quiet;
use crate::node::facts::Restore;
use crate::node::facts::Session;
use crate::node::facts::Told;
use crate::node::facts::Workload;
use crate::node::plan::Action;
use crate::node::plan::Notice;
use crate::node::plan::Reason;
use crate::node::plan::Records;
use crate::node::plan::Step;
use crate::policy::OperatingMode;
use crate::policy::Policy;
use crate::policy::Prepare;
use crate::workload::Checkpoint;
use crate::workload::Containers;
use crate::workload::Ending;
use crate::workload::Mode;
use crate::workload::Proof;
use crate::workload::Purpose;
use crate::workload::Report;
use crate::workload::SILENCE;

/// With this much left, everything that we froze runs again.
///
/// A frozen process handles no SIGTERM, and under cgroup v1 no SIGKILL.
const THAW_BY: Duration = Duration::from_secs(20);

/// How often others are told of progress alone.
const PROGRESS_EVERY: Duration = Duration::from_secs(15);

/// Two deadlines closer than this are told as one.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// How long the agent stays for a release that it could not tell anybody.
const LAST_WORD: Duration = Duration::from_secs(10);

/// What may be assumed of the time there is where nothing ends.
const NO_HURRY: Duration = Duration::from_hours(1);

/// How soon a step that changed no fact is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The facts, and when they are looked at.
pub(super) struct Moment<'a> {
    pub(super) facts: &'a NodeFacts,
    pub(super) policy: &'a Policy,
    pub(super) now: Timestamp,
}

impl Moment<'_> {
    /// A workload that runs and is not settled is told to hand its state over, and told again when
    /// that gets more urgent.
    pub(super) fn ask(&self, workload: &Workload) -> Option<Step> {
        let (notice, reason) = self.notice(workload)?;
        let reachable = matches!(workload.session, Session::Open | Session::HandedOver { .. });
        let over = notice.deadline.is_some_and(|deadline| deadline.has_passed(self.now));
        // A folder outlives its containers, for as long as somebody speaks for it.
        let is_lost = is_ended(workload) && workload.mode != Mode::Directory;
        if !workload.mode.is_saved_by_us() || !reachable || over || is_lost {
            return None;
        }
        let unasked = matches!(workload.report.checkpoint, Checkpoint::Idle | Checkpoint::Unknown);
        let reason = match workload.asked {
            _ if workload.report.checkpoint.is_settled() => return None,
            Asked::Nothing | Asked::Unknown if unasked => reason,
            // The last one failed, and its time has come again.
            Asked::Save { purpose, .. } if unasked && purpose == Purpose::Background => reason,
            Asked::Save { purpose, deadline }
                if is_tighter(notice, Notice { purpose, deadline }) =>
            {
                Reason::Tightened
            }
            Asked::Nothing | Asked::Unknown | Asked::Save { .. } => return None,
        };
        Some(Step { action: Action::Ask { pod: workload.pod.clone(), notice }, reason })
    }

    /// Those that handed over are stored, in the order and the parts of the budget.
    pub(super) fn saves(&self) -> Vec<Step> {
        let workloads = || self.facts.workloads.values().filter(|one| one.mode.is_saved_by_us());
        let waiting: Vec<Waiting> = workloads().filter_map(waiting).collect();
        let deadlines = workloads().filter_map(|workload| self.notice(workload)?.0.deadline);
        let earliest = deadlines.reduce(Deadline::tighten);
        let left = earliest.map_or(NO_HURRY, |deadline| deadline.left(self.now));
        let turns = turns(&waiting, self.facts.rate, left);
        (0..)
            .zip(turns)
            .filter_map(|(place, turn)| {
                let workload = self.facts.workloads.get(&turn.uid)?;
                let ready = matches!(workload.session, Session::HandedOver { .. })
                    && workload.report.checkpoint == Checkpoint::Asked;
                let reason = match turn.fit {
                    Fit::Fits { .. } | Fit::Unknown => Reason::HandedOver,
                    Fit::WillNotFit => Reason::WillNotFit,
                };
                let pod = workload.pod.clone();
                ready.then_some(Step {
                    action: Action::Save { pod, part: turn.part, place },
                    reason,
                })
            })
            .collect()
    }

    /// What was asked in case is forgotten when the advice lapses; anything is, on a pause.
    pub(super) fn call_off(&self, workload: &Workload) -> Option<Step> {
        let under_way = is_being_stored(workload);
        let unwanted = match workload.asked {
            Asked::Nothing | Asked::Unknown => false,
            Asked::Save { purpose, .. } if purpose.goes_on() => {
                self.notice(workload).is_none() || !self.may_act(workload)
            }
            Asked::Save { .. } => !self.may_act(workload) && !is_ending(workload),
        };
        let action = Action::CallOff { pod: workload.pod.clone() };
        (under_way && unwanted).then_some(Step { action, reason: Reason::CalledOff })
    }

    /// Who is saved is quiet: one that does not park takes no GPU time from those still saving.
    pub(super) fn freeze(&self, workload: &Workload) -> Option<Step> {
        let parks = match workload.mode {
            Mode::Directory | Mode::Http => false,
            Mode::Sdk | Mode::Sigterm | Mode::None | Mode::Unknown => true,
        };
        let left = self.facts.signals.deadline()?.left(self.now);
        let saved = workload.report.checkpoint.is_durable();
        let running = workload.quiet == Quiet::Running && !is_ended(workload);
        let due = !parks && saved && running && !is_ending(workload) && left > THAW_BY;
        let action = Action::Freeze { pod: workload.pod.clone() };
        due.then_some(Step { action, reason: Reason::Saved })
    }

    /// A frozen process handles no signal, so it runs again before it gets one.
    pub(super) fn thaw(&self, workload: &Workload) -> Option<Step> {
        match workload.quiet {
            Quiet::Frozen | Quiet::FrozenBefore => (),
            Quiet::Running | Quiet::Parked | Quiet::Thawed | Quiet::Unknown => return None,
        }
        let left = self.facts.signals.deadline().map(|deadline| deadline.left(self.now));
        let reason = if is_ending(workload) {
            Reason::Ending
        } else if workload.quiet == Quiet::FrozenBefore {
            Reason::AgentStarted
        } else if left.is_none() || !self.may_act(workload) {
            Reason::CalledOff
        } else if left.is_some_and(|left| left <= THAW_BY) {
            Reason::NearDeadline
        } else {
            return None;
        };
        Some(Step { action: Action::Thaw { pod: workload.pod.clone() }, reason })
    }

    /// A waiting restore returns at the first proof that its predecessor has ended.
    pub(super) fn allow_restore(&self, workload: &Workload) -> Option<Step> {
        let Restore::Waiting { from, deadline, proof, .. } = &workload.restore else { return None };
        let old = self.facts.workloads.get(from);
        let told = proof.filter(|proof| *proof != Proof::Unknown);
        let old = old.filter(|old| !is_being_stored(old));
        let released = old.is_some_and(|old| old.report.release.is_released());
        let ended = old.is_some_and(is_ended);
        let past = deadline.is_some_and(|deadline| self.now >= later(deadline.at(), SILENCE));
        let proof = told
            .or(released.then_some(Proof::Released))
            .or(ended.then_some(Proof::ContainersEnded))
            .or(past.then_some(Proof::PastDeadline))?;
        let action = Action::AllowRestore { pod: workload.pod.clone(), proof };
        Some(Step { action, reason: Reason::Proven })
    }

    /// Others are told on edges, and of progress now and then.
    pub(super) fn report(&self, workload: &Workload) -> Option<Step> {
        let interrupted = self.facts.signals.deadline().is_some();
        let to = if interrupted { Records::InterruptionAndCheckpoint } else { Records::Checkpoint };
        let leaving = is_leaving(workload);
        let reason = match &workload.told {
            Told::Nothing | Told::Unknown => {
                let first = worth_telling_first(&workload.report, to)
                    || leaving && is_being_stored(workload);
                first.then_some(Reason::Changed)
            }
            Told::Report { report, at } => {
                let rested = elapsed(*at, self.now) >= PROGRESS_EVERY;
                let begun = leaving && is_begun(report) != is_begun(&workload.report);
                if begun || is_edge(report, &workload.report, to) {
                    Some(Reason::Changed)
                } else {
                    let progressed = interrupted && report.checkpoint != workload.report.checkpoint;
                    // Somebody waits for this save, and must hear that it is still under way.
                    let awaited = !interrupted && leaving && is_being_stored(workload);
                    ((progressed || awaited) && rested).then_some(Reason::Progress)
                }
            }
        }?;
        let action =
            Action::Report { pod: workload.pod.clone(), report: workload.report.clone(), to };
        Some(Step { action, reason })
    }

    /// Whether the agent must stay for a workload: its state is being taken, or its end watched.
    pub(super) fn is_in_hand(&self, workload: &Workload) -> bool {
        let background = matches!(workload.asked, Asked::Save { purpose: Purpose::Background, .. });
        let saving = is_being_stored(workload)
            && !background
            && (!is_ended(workload) || has_handed_over(workload));
        let interrupted = self.facts.signals.deadline().is_some();
        let concerned = interrupted || is_ending(workload);
        match workload.report.release {
            Release::Released { second, .. } => {
                let untold = match &workload.told {
                    Told::Report { report, .. } => !report.release.is_released(),
                    Told::Nothing | Told::Unknown => true,
                };
                saving || (interrupted && untold && self.now < later(second, LAST_WORD))
            }
            Release::NotWatched | Release::Held | Release::SeenEmpty { .. } | Release::Unknown => {
                saving || (concerned && self.may_act(workload))
            }
        }
    }

    /// Observe mode and a pause allow what only records, or undoes what we did.
    pub(super) fn is_allowed(&self, step: &Step) -> bool {
        let workload = self.facts.workloads.get(&step.action.pod().uid);
        step.action.is_always_allowed() || workload.is_some_and(|one| self.may_act(one))
    }

    /// The first moment at which something becomes due by itself.
    pub(super) fn next(&self, steps: &[Step]) -> Next {
        let again = (!steps.is_empty()).then(|| later(self.now, LOOK_AGAIN));
        let deadline = self.facts.signals.deadline();
        let thaw = deadline.map(|deadline| earlier(deadline.at(), THAW_BY));
        let background = self.facts.workloads.values().map(|one| self.background_due(one));
        let workloads = self.facts.workloads.values().flat_map(dues).chain(background);
        [again, thaw, deadline.map(Deadline::at), self.lapse()]
            .into_iter()
            .chain(workloads)
            .flatten()
            .filter(|moment| *moment > self.now)
            .min()
            .map_or(Next::OnChange, Next::At)
    }

    /// What the workload is to be told now, and why; nothing while nothing threatens it.
    fn notice(&self, workload: &Workload) -> Option<(Notice, Reason)> {
        let ends = workload.ending.ends_at().map(Deadline::new);
        if let Some(deadline) = self.facts.signals.deadline() {
            let deadline = ends.map_or(deadline, |ends| deadline.tighten(ends));
            let notice = Notice { purpose: Purpose::Interruption, deadline: Some(deadline) };
            return Some((notice, Reason::Interrupted));
        }
        if ends.is_some() {
            let notice = Notice { purpose: Purpose::Ending, deadline: ends };
            return Some((notice, Reason::Ending));
        }
        if self.is_to_be_insured(workload) {
            let notice = Notice { purpose: Purpose::Insurance, deadline: None };
            return Some((notice, Reason::Advised));
        }
        let due = self.background_due(workload)?;
        let notice = Notice { purpose: Purpose::Background, deadline: None };
        (due <= self.now).then_some((notice, Reason::Background))
    }

    /// Whether the instance is at risk, and the workload not saved since that was said.
    fn is_to_be_insured(&self, workload: &Workload) -> bool {
        let (Some(advised), Some(lapse)) = (self.facts.signals.advised_at(), self.lapse()) else {
            return false;
        };
        let insured = workload.report.insurance.is_some_and(|stored| stored.at >= advised);
        let wanted = self.policy.rebalance.prepare == Prepare::NodeAndSave;
        self.now < lapse && wanted && !insured
    }

    /// When a workload is saved next while nothing is wrong.
    fn background_due(&self, workload: &Workload) -> Option<Timestamp> {
        let pause = self.policy.background.pause(workload.stall.unwrap_or_default())?;
        Some(later(workload.background_since?, pause))
    }

    fn lapse(&self) -> Option<Timestamp> {
        let advised = self.facts.signals.advised_at()?;
        Some(later(advised, self.policy.rebalance.lapse))
    }

    fn may_act(&self, workload: &Workload) -> bool {
        let paused = self.facts.paused == Pause::On || workload.paused == Pause::On;
        self.policy.mode == OperatingMode::Protect && !paused
    }
}

/// The slices of a pod that is ending or ended are watched until they are free.
pub(super) fn confirm_release(workload: &Workload) -> Option<Step> {
    let unwatched = match workload.report.release {
        Release::NotWatched | Release::Unknown => true,
        Release::Held | Release::SeenEmpty { .. } | Release::Released { .. } => false,
    };
    let due = unwatched && (is_ending(workload) || is_ended(workload));
    let action = Action::ConfirmRelease { pod: workload.pod.clone() };
    due.then_some(Step { action, reason: Reason::Ending })
}

/// When something becomes due for one workload.
fn dues(workload: &Workload) -> [Option<Timestamp>; 4] {
    let gate = match &workload.restore {
        Restore::Waiting { deadline, .. } => deadline.map(|deadline| later(deadline.at(), SILENCE)),
        Restore::No | Restore::Allowed { .. } | Restore::Unknown => None,
    };
    let saving = matches!(workload.report.checkpoint, Checkpoint::Saving { .. });
    let progress = match &workload.told {
        Told::Report { at, .. } if saving => Some(later(*at, PROGRESS_EVERY)),
        Told::Report { .. } | Told::Nothing | Told::Unknown => None,
    };
    let last_word = match workload.report.release {
        Release::Released { second, .. } => Some(later(second, LAST_WORD)),
        Release::NotWatched | Release::Held | Release::SeenEmpty { .. } | Release::Unknown => None,
    };
    [gate, progress, last_word, workload.ending.ends_at()]
}

pub(super) fn waiting(workload: &Workload) -> Option<Waiting> {
    let handed_over = match workload.session {
        Session::HandedOver { bytes } => bytes,
        Session::None | Session::Open | Session::Unknown => None,
    };
    let remaining = match &workload.report.checkpoint {
        Checkpoint::Asked => handed_over.or(workload.size),
        Checkpoint::Saving { stored, total, .. } => {
            total.or(workload.size).map(|total| total.saturating_sub(*stored))
        }
        Checkpoint::Unknown
        | Checkpoint::Idle
        | Checkpoint::Durable(_)
        | Checkpoint::Failed { .. } => return None,
    };
    Some(Waiting {
        uid: workload.pod.uid.clone(),
        namespace: workload.pod.namespace.clone(),
        pod_priority: workload.pod_priority,
        priority: workload.priority,
        remaining,
    })
}

fn is_tighter(notice: Notice, before: Notice) -> bool {
    let graver = notice.purpose > before.purpose;
    let sooner = match (notice.deadline, before.deadline) {
        (Some(now), Some(before)) => later(now.at(), WORTH_TELLING) < before.at(),
        (Some(_), None) => true,
        (None, _) => false,
    };
    graver || sooner
}

/// Whether a first report says anything. The index hears of checkpoints only.
fn worth_telling_first(report: &Report, to: Records) -> bool {
    let stored = report.checkpoint.is_settled() || report.insurance.is_some();
    match to {
        Records::Checkpoint => stored,
        Records::InterruptionAndCheckpoint => {
            stored || is_begun(report) || report.release.is_released()
        }
    }
}

/// Whether others must know. From Asked to Saving is progress, and a first empty look is nothing
/// yet: writes are few.
fn is_edge(before: &Report, after: &Report, to: Records) -> bool {
    let settled = after.checkpoint.is_settled() && before.checkpoint != after.checkpoint;
    let stored = settled || before.insurance != after.insurance;
    let release = before.release.is_released() != after.release.is_released();
    match to {
        Records::Checkpoint => stored,
        Records::InterruptionAndCheckpoint => {
            let slices = before.slices != after.slices;
            stored || release || slices || is_begun(before) != is_begun(after)
        }
    }
}

fn is_begun(report: &Report) -> bool {
    !matches!(report.checkpoint, Checkpoint::Idle | Checkpoint::Unknown)
}

fn is_being_stored(workload: &Workload) -> bool {
    matches!(workload.report.checkpoint, Checkpoint::Asked | Checkpoint::Saving { .. })
}

pub(super) fn is_leaving(workload: &Workload) -> bool {
    is_ending(workload) || is_ended(workload)
}

fn is_ending(workload: &Workload) -> bool {
    matches!(workload.ending, Ending::By { .. })
}

fn is_ended(workload: &Workload) -> bool {
    matches!(workload.containers, Containers::Ended { .. })
}

pub(super) fn has_handed_over(workload: &Workload) -> bool {
    matches!(workload.session, Session::HandedOver { .. })
}

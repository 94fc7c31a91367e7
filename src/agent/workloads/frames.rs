//! What the domain says, in the words of the protocol.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::deadline::later;
use lifeboat_domain::node::outlook;
use lifeboat_domain::node::outlook::Outlook;
use lifeboat_domain::node::plan::Notice;
use lifeboat_domain::workload::FailReason;
use lifeboat_domain::workload::Purpose;
use lifeboat_protocol::frame;
use lifeboat_protocol::frame::Cause;
use lifeboat_protocol::frame::Durable;
use lifeboat_protocol::frame::Failure;
use lifeboat_protocol::frame::Forecast;
use lifeboat_protocol::frame::Pace;
use lifeboat_protocol::frame::Prepare;
use lifeboat_protocol::frame::SaveAt;
use lifeboat_protocol::frame::SaveFailed;

use crate::adapters::store::StoreError;
use crate::agent::workloads::life::Save;
use crate::agent::workloads::session::Still;
use crate::clock::Clock;
use crate::data::history::HistoryError;
use crate::data::save::Committed;
use crate::data::save::SaveError;

/// A moment as a workload reckons with it.
pub(super) fn deadline(clock: &Clock, at: Timestamp) -> frame::Deadline {
    let left = u64::try_from(elapsed(clock.now(), at).as_nanos()).unwrap_or(u64::MAX);
    let boottime_ns = clock.boottime().saturating_add(left);
    frame::Deadline { boottime_ns, unix_ms: at.as_millisecond() }
}

/// Why a workload is asked.
pub(super) fn cause(purpose: Purpose) -> Cause {
    match purpose {
        Purpose::Background => Cause::Background,
        Purpose::Insurance => Cause::Rebalance,
        Purpose::Ending => Cause::Ending,
        Purpose::Interruption => Cause::Interruption,
        Purpose::Unknown => Cause::Unknown,
    }
}

/// What becomes of it after.
pub(super) fn purpose(purpose: Purpose) -> frame::Purpose {
    match purpose {
        Purpose::Background | Purpose::Insurance => frame::Purpose::Insurance,
        Purpose::Ending | Purpose::Interruption | Purpose::Unknown => frame::Purpose::Park,
    }
}

/// A notice for the user's own hooks.
pub(super) fn notice(clock: &Clock, notice: &Notice) -> frame::Notice {
    let text = match notice.purpose {
        Purpose::Background => "time has passed since the last save: the state is saved",
        Purpose::Insurance => "EC2 may take this instance: the state is saved in case",
        Purpose::Ending => "the pod is being ended: the state is saved",
        Purpose::Interruption | Purpose::Unknown => "EC2 takes this instance: the state is saved",
    };
    frame::Notice {
        cause: cause(notice.purpose),
        deadline: notice.deadline.map(|at| deadline(clock, at.at())),
        text: text.to_owned(),
    }
}

/// A save is due.
pub(super) fn prepare(clock: &Clock, save: &Save) -> Prepare {
    Prepare {
        save: save.number,
        cause: cause(save.purpose),
        purpose: purpose(save.purpose),
        deadline: save.deadline.map(|at| deadline(clock, at.at())),
    }
}

/// When to save: at this step, in chunks of this size. The first rank is the donor of what is
/// replicated.
pub(super) fn save_at(
    clock: &Clock,
    save: &Save,
    (step, chunk_bytes): (Option<u64>, u64),
) -> SaveAt {
    let deadline = save.deadline.map(|at| deadline(clock, at.at()));
    SaveAt { save: save.number, step, chunk_bytes, skip_replicated: false, deadline }
}

/// When a save under way is expected to be committed.
pub(super) fn expected(clock: &Clock, save: &Save, outlook: &Outlook) -> Pace {
    let at = |at: Timestamp| deadline(clock, at);
    Pace {
        save: save.number,
        expected: Some(at(later(clock.now(), outlook.eta))),
        deadline: save.deadline.map(|by| at(by.at())),
        leave_out: Vec::new(),
    }
}

/// Whether a workload could be saved if a notice came now.
pub(super) fn forecast(outlook: &Outlook) -> Forecast {
    let nanoseconds = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
    Forecast {
        fits: !outlook.is_too_late(),
        bytes: outlook.bytes,
        eta_ns: nanoseconds(outlook.eta),
        window_ns: nanoseconds(outlook::WINDOW),
        bytes_per_second: outlook.rate.bytes_per_second,
        text: outlook.to_string(),
    }
}

/// A save is committed: how long it took, and how much was left.
pub(super) fn durable(
    (save, committed): (u64, &Committed),
    (took, deadline, now): (Duration, Option<Deadline>, Timestamp),
) -> Durable {
    let spare = deadline.map(|deadline| deadline.at().duration_since(now).as_nanos());
    Durable {
        save,
        epoch: committed.epoch,
        step: committed.step,
        bytes: committed.bytes,
        took_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
        spare_ns: spare.map(|spare| i64::try_from(spare).unwrap_or(i64::MAX)),
    }
}

/// A save is not committed.
pub(super) fn save_failed(save: u64, why: Failure, reason: String) -> SaveFailed {
    SaveFailed { save, why, reason }
}

/// The step at which ranks can all be saved: those that run stop one further on at the earliest,
/// and those that stand still must stand there already.
pub(super) fn agreed(at: &[(u64, Still)]) -> Option<u64> {
    let step = at
        .iter()
        .map(|(step, still)| match still {
            Still::Yes => *step,
            Still::No => step.saturating_add(1),
        })
        .max()?;
    let fits = |(own, still): &(u64, Still)| *still == Still::No || *own == step;
    at.iter().all(fits).then_some(step)
}

/// Why a save did not work, for the workload.
pub(super) fn failure(error: &SaveError) -> Failure {
    match error {
        SaveError::Part(StoreError::Late { .. })
        | SaveError::Commit {
            source: HistoryError::Store { source: StoreError::Late { .. }, .. },
            ..
        }
        | SaveError::Late { .. }
        | SaveError::Silent => Failure::TooLate,
        SaveError::Part(_) | SaveError::Commit { .. } | SaveError::Spool(_) => Failure::Store,
        SaveError::Superseded { .. } => Failure::Superseded,
        SaveError::HandOver { .. } | SaveError::Parts { .. } => Failure::HandOver,
        SaveError::Gone { .. } | SaveError::Steps => Failure::Rank,
    }
}

/// Why a save did not work, for the record.
pub(super) fn fail_reason(error: &SaveError) -> FailReason {
    match failure(error) {
        Failure::TooLate => FailReason::TooLate,
        Failure::Store | Failure::Damaged => FailReason::Store,
        Failure::Superseded => FailReason::Superseded,
        Failure::HandOver => FailReason::Refused,
        Failure::Rank if matches!(error, SaveError::Steps) => FailReason::Disagreed,
        Failure::Rank => FailReason::WorkloadGone,
        Failure::CalledOff | Failure::Unknown => FailReason::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_stop_one_step_past_the_furthest() {
        let (still, runs) = (Still::Yes, Still::No);
        assert_eq!(agreed(&[(10, runs), (11, runs), (9, runs)]), Some(12));
        assert_eq!(agreed(&[(11, still), (11, still)]), Some(11));
        // After an agent's restart: one had stopped where the others will.
        assert_eq!(agreed(&[(11, still), (10, runs)]), Some(11));
        assert_eq!(agreed(&[(11, still), (11, runs)]), None);
        assert_eq!(agreed(&[(11, still), (12, still)]), None);
        assert_eq!(agreed(&[]), None);
    }
}

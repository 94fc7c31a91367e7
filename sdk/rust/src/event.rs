//! What happens to the program, as lines for people and as values for those who want them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_protocol::frame;
use lifeboat_protocol::frame::Cause;
use lifeboat_protocol::frame::Deadline;

use crate::boottime::Moment;

/// Whoever is told of events. Called from the boat's own threads too.
pub type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

/// Something that happened. Its text is the line that is logged.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The agent answered.
    Connected {
        /// Its name and version.
        agent: String,
    },
    /// Nobody answers at the socket; it is tried again in the background.
    NoAgent {
        /// Where, and why not.
        reason: String,
    },
    /// The agent went away; it is tried again in the background.
    AgentLost,
    /// Another life of this job is being ended; `restore` waits for it.
    Successor {
        /// Who that is.
        holder: String,
    },
    /// The node's or the program's end is near, or may be.
    Noticed(Notice),
    /// State is wanted, at the next safe point or at a step agreed on.
    Asked {
        /// Why.
        cause: Cause,
        /// How much time there is.
        left: Option<Duration>,
    },
    /// The program stands still.
    Parked {
        /// Steps completed, if any.
        step: Option<u64>,
        /// Why, in words.
        reason: String,
    },
    /// All of the state is the agent's.
    HandedOver {
        /// Steps completed in it.
        step: u64,
        /// Its size, of this rank.
        bytes: u64,
        /// How long it took.
        took: Duration,
    },
    /// When the state is expected to be committed, by what the agent measures.
    Expected {
        /// How long until then.
        left: Duration,
        /// From then to the deadline, if there is one; negative if it will not be in time.
        spare_seconds: Option<i64>,
    },
    /// Whether the state could be saved if the node were interrupted now.
    Forecast {
        /// Whether it could. If not, that is worth a change: smaller state, shorter steps with
        /// [`Boat::safe_point`](crate::Boat::safe_point) within them, or fewer workloads on a node.
        fits: bool,
        /// Why, in words.
        text: String,
    },
    /// The state is committed.
    Durable {
        /// Steps completed in it.
        step: u64,
        /// Its epoch.
        epoch: u64,
        /// Its size, over all ranks.
        bytes: u64,
        /// Since the notice.
        took: Duration,
        /// To the deadline, if there is one; negative past it.
        spare_seconds: Option<i64>,
    },
    /// Steps take longer than a notice leaves time for, and no safe point lies within them.
    StepTooLong {
        /// How long the last one took.
        took: Duration,
        /// How long one may take at most.
        window: Duration,
    },
    /// The state is not committed.
    NotSaved {
        /// Why.
        reason: String,
    },
    /// The program goes on.
    GoesOn {
        /// Why.
        reason: String,
    },
    /// State is being read.
    Reading {
        /// Its epoch.
        epoch: u64,
        /// Steps completed in it.
        step: u64,
        /// Its size, of this rank.
        bytes: u64,
    },
    /// `restore` waits.
    Waiting {
        /// For what.
        reason: String,
    },
    /// `restore` returns with state.
    Resumed {
        /// The epoch that was claimed.
        epoch: u64,
        /// Steps completed.
        step: u64,
        /// What proved that the old life is over.
        proof: String,
    },
    /// `restore` returns without.
    NothingToRestore {
        /// Why.
        reason: String,
    },
    /// SIGTERM came.
    Terminating,
    /// The program ends.
    Exiting {
        /// Its exit code.
        code: i32,
        /// Why now.
        reason: String,
    },
    /// The end of the work is stored.
    Finished,
}

/// That the node's or the program's end is near, or may be.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// Why.
    pub cause: Cause,
    /// In words.
    pub text: String,
    deadline: Option<Deadline>,
}

impl Notice {
    /// How much time is left; none for advice. It may only become less.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| Moment::from(deadline).left())
    }
}

impl From<frame::Notice> for Notice {
    fn from(notice: frame::Notice) -> Self {
        Self { cause: notice.cause, text: notice.text, deadline: notice.deadline }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { agent } => write!(to, "protected by {agent}"),
            Self::NoAgent { reason } => write!(
                to,
                "WARNING: no agent: {reason}. This program is NOT PROTECTED until one answers"
            ),
            Self::AgentLost => write!(to, "agent went away, trying again"),
            Self::Successor { holder } => write!(to, "takes over from {holder}"),
            Self::Noticed(notice) => write!(to, "notice: {}", notice.text),
            Self::Asked { cause, left } => asked(to, *cause, *left),
            Self::Parked { step: Some(step), reason } => {
                write!(to, "parked at step {step}: {reason}")
            }
            Self::Parked { step: None, reason } => write!(to, "parked: {reason}"),
            Self::HandedOver { step, bytes, took } => {
                let (size, seconds) = (Size(*bytes), took.as_secs_f64());
                write!(to, "step {step} handed over, {size} in {seconds:.1} s")
            }
            Self::Expected { left, spare_seconds } => expected(to, *left, *spare_seconds),
            Self::Forecast { fits: true, text } => write!(to, "can be saved at a notice: {text}"),
            Self::Forecast { fits: false, text } => {
                write!(to, "WARNING: cannot be saved at a notice: {text}")
            }
            Self::Durable { step, took, spare_seconds, .. } => {
                durable(to, *step, *took, *spare_seconds)
            }
            Self::StepTooLong { took, window } => write!(
                to,
                "WARNING: a step takes {} s, and a notice leaves {}: one that comes early in a step \
                 is lost. Call `safe_point` within the step, or make it shorter",
                took.as_secs(),
                window.as_secs()
            ),
            Self::NotSaved { reason } => write!(to, "state was not saved: {reason}"),
            Self::GoesOn { reason } => write!(to, "goes on: {reason}"),
            Self::Reading { epoch, step, bytes } => {
                write!(to, "reading step {step}, epoch {epoch}, {}", Size(*bytes))
            }
            Self::Waiting { reason } => write!(to, "restore waits: {reason}"),
            Self::Resumed { step, proof, .. } => write!(to, "goes on at step {step}: {proof}"),
            Self::NothingToRestore { reason } => write!(to, "nothing to restore: {reason}"),
            Self::Terminating => write!(to, "told to end"),
            Self::Exiting { code, reason } => write!(to, "ends with exit code {code}: {reason}"),
            Self::Finished => write!(to, "finished, nothing will be resumed"),
        }
    }
}

fn asked(to: &mut fmt::Formatter<'_>, cause: Cause, left: Option<Duration>) -> fmt::Result {
    let why = match cause {
        Cause::Interruption => "the Spot instance will be taken",
        Cause::Rebalance => "the Spot instance may be taken",
        Cause::Maintenance => "the machine will be worked on",
        Cause::Ending => "the pod is being ended",
        Cause::Asked => "the program asked",
        Cause::Background => "a copy in the background is due",
        Cause::Unknown => "the agent asks for it",
    };
    match left {
        Some(left) => write!(to, "saving at the next safe point: {why}, {} s left", left.as_secs()),
        None => write!(to, "saving at the next safe point: {why}"),
    }
}

fn expected(
    to: &mut fmt::Formatter<'_>,
    left: Duration,
    spare_seconds: Option<i64>,
) -> fmt::Result {
    let left = left.as_secs();
    match spare_seconds {
        Some(spare) if spare >= 0 => {
            write!(to, "expected to be durable in {left} s, {spare} s to spare")
        }
        Some(spare) => write!(
            to,
            "WARNING: expected to be durable in {left} s, {} s too late",
            spare.unsigned_abs()
        ),
        None => write!(to, "expected to be durable in {left} s"),
    }
}

fn durable(
    to: &mut fmt::Formatter<'_>,
    step: u64,
    took: Duration,
    spare_seconds: Option<i64>,
) -> fmt::Result {
    write!(to, "step {step} durable at T+{} s", took.as_secs())?;
    match spare_seconds {
        Some(spare) if spare >= 0 => write!(to, ", {spare} s to spare"),
        Some(spare) => write!(to, ", {} s late", spare.unsigned_abs()),
        None => Ok(()),
    }
}

/// Bytes as people write them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 0..1024 => write!(to, "{bytes} bytes"),
            bytes @ 1024..1_048_576 => write!(to, "{} KiB", bytes >> 10),
            bytes @ 1_048_576..10_737_418_240 => write!(to, "{} MiB", bytes >> 20),
            bytes => write!(to, "{} GiB", bytes >> 30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_reads_as_a_warning_only_if_it_is_too_late() {
        let expected = |spare_seconds| {
            Event::Expected { left: Duration::from_secs(70), spare_seconds }.to_string()
        };
        assert_eq!(expected(Some(45)), "expected to be durable in 70 s, 45 s to spare");
        assert_eq!(expected(None), "expected to be durable in 70 s");
        let late = "WARNING: expected to be durable in 70 s, 8 s too late";
        assert_eq!(expected(Some(-8)), late);
        let text = "40.0 GiB take 190 s, and a notice leaves 115 s".to_owned();
        let forecast = Event::Forecast { fits: false, text };
        let said =
            "WARNING: cannot be saved at a notice: 40.0 GiB take 190 s, and a notice leaves 115 s";
        assert_eq!(forecast.to_string(), said);
    }

    #[test]
    fn a_durable_step_reads_as_people_want_it() {
        let event = Event::Durable {
            step: 8412,
            epoch: 2,
            bytes: 1 << 30,
            took: Duration::from_millis(38_400),
            spare_seconds: Some(82),
        };
        assert_eq!(event.to_string(), "step 8412 durable at T+38 s, 82 s to spare");
    }

    #[test]
    fn a_step_that_is_too_long_says_what_to_do() {
        let (took, window) = (Duration::from_secs(131), Duration::from_secs(115));
        let said = Event::StepTooLong { took, window }.to_string();
        assert!(said.contains("takes 131 s, and a notice leaves 115"), "{said}");
        assert!(said.contains("Call `safe_point` within the step"), "{said}");
    }
}

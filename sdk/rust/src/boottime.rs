//! The clock that all processes of a node share, and that nobody steps.

use std::time::Duration;

use lifeboat_protocol::frame::Deadline;
use rustix::time::ClockId;

/// A moment on `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    pub(crate) fn now() -> Self {
        let now = rustix::time::clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Self(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0))
    }

    pub(crate) fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// From now to then; zero if it is past.
    pub(crate) fn left(self) -> Duration {
        self.since(Self::now())
    }

    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl From<Deadline> for Moment {
    fn from(deadline: Deadline) -> Self {
        Self(deadline.boottime_ns)
    }
}

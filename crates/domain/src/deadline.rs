//! When an instance may be gone. It only ever moves earlier.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

/// The moment at which an instance, or a pod being ended, may be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Deadline(Timestamp);

impl Deadline {
    /// The deadline that is `at`.
    pub fn new(at: Timestamp) -> Self {
        Self(at)
    }

    /// The deadline that is `window` after `start`; at the end of time if there is no such moment.
    pub fn after(start: Timestamp, window: Duration) -> Self {
        Self(later(start, window))
    }

    /// The moment itself.
    pub fn at(self) -> Timestamp {
        self.0
    }

    /// What is left at `now`: zero once it has passed.
    pub fn left(self, now: Timestamp) -> Duration {
        elapsed(now, self.0)
    }

    /// Whether nothing is left at `now`.
    pub fn has_passed(self, now: Timestamp) -> bool {
        now >= self.0
    }

    /// The earlier of the two.
    #[must_use]
    pub fn tighten(self, other: Self) -> Self {
        self.min(other)
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The moment `wait` after `start`; the end of time if there is no such moment.
pub fn later(start: Timestamp, wait: Duration) -> Timestamp {
    start.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// The moment `lead` before `end`; the beginning of time if there is no such moment.
pub fn earlier(end: Timestamp, lead: Duration) -> Timestamp {
    end.checked_sub(lead).unwrap_or(Timestamp::MIN)
}

/// The time from `start` to `end`: zero if `end` comes first.
pub fn elapsed(start: Timestamp, end: Timestamp) -> Duration {
    Duration::try_from(end.duration_since(start)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_once_it_has_passed() {
        let start = Timestamp::UNIX_EPOCH;
        let deadline = Deadline::after(start, Duration::from_mins(2));
        assert_eq!(deadline.left(start), Duration::from_mins(2));
        assert_eq!(deadline.left(later(start, Duration::from_secs(121))), Duration::ZERO);
        assert!(deadline.has_passed(deadline.at()));
    }

    #[test]
    fn the_ends_of_time_are_no_panic() {
        let deadline = Deadline::after(Timestamp::MAX, Duration::MAX);
        assert_eq!(deadline.at(), Timestamp::MAX);
        assert_eq!(earlier(Timestamp::MIN, Duration::MAX), Timestamp::MIN);
        assert!(deadline.left(Timestamp::MIN) > Duration::from_hours(24));
    }
}

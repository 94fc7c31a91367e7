//! The time of day and the time since boot, so that nothing else asks the machine.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Tells the time: the wall's at its making, plus the monotonic time since.
///
/// The wall clock is therefore never stepped under an open interruption, and in simulation it
/// follows tokio's paused clock by itself. To wait, use `tokio::time`.
#[derive(Clone, Debug)]
pub struct Clock {
    wall: Timestamp,
    boot: u64,
    started: Instant,
}

impl Clock {
    /// The machine's own clocks, read once.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn system() -> Self {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let boot = Duration::try_from(boot).unwrap_or_default();
        Self::starting_at(Timestamp::now(), nanoseconds(boot))
    }

    /// A clock that shows `wall` now, and `boot` nanoseconds since boot.
    pub fn starting_at(wall: Timestamp, boot: u64) -> Self {
        Self { wall, boot, started: Instant::now() }
    }

    /// The time of day.
    pub fn now(&self) -> Timestamp {
        self.wall.saturating_add(self.started.elapsed()).unwrap_or(Timestamp::MAX)
    }

    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub fn boottime(&self) -> u64 {
        self.boot.saturating_add(nanoseconds(self.started.elapsed()))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn both_times_follow_the_virtual_clock() {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH, 5);
        tokio::time::sleep(Duration::from_secs(90)).await;
        assert_eq!(clock.now(), Timestamp::from_second(90).unwrap());
        assert_eq!(clock.boottime(), 90_000_000_005);
    }

    #[test]
    fn the_system_clock_is_past_its_boot() {
        let clock = Clock::system();
        assert!(clock.boottime() > 0);
        assert!(clock.now() > Timestamp::UNIX_EPOCH);
    }
}

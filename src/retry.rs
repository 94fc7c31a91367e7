//! The one place that tries again: before the deadline, and only what may go better next time.

use std::time::Duration;

use lifeboat_domain::deadline::Deadline;

use crate::clock::Clock;
use crate::error::Class;
use crate::error::Classify;

/// Makes `attempt` again after each of `pauses`, while its error is transient and the pause fits
/// before `deadline`.
///
/// An attempt in flight is not cut short: its caller bounds it by what is left.
///
/// An attempt is a plain future and not an `AsyncFnMut`, whose futures the compiler cannot yet
/// prove to be `Send` in a spawned task.
pub async fn until<T, E: Classify, F: Future<Output = Result<T, E>>>(
    deadline: Deadline,
    pauses: impl Iterator<Item = Duration>,
    clock: &Clock,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E> {
    for pause in pauses {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let hopeless = error.class() != Class::Transient;
        let too_late = deadline.left(clock.now()) <= pause;
        if hopeless || too_late {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
    attempt().await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use jiff::Timestamp;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("it was not done")]
    struct NotDone(Class);

    impl Classify for NotDone {
        fn class(&self) -> Class {
            self.0
        }

        fn label(&self) -> &'static str {
            "not-done"
        }
    }

    /// How often is it tried, when it fails `failures` times as `class`, with `left` to the deadline?
    async fn tries(class: Class, failures: u32, left: u64) -> (u32, bool) {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH, 0);
        let deadline = Deadline::after(clock.now(), Duration::from_secs(left));
        let pauses = [1, 2, 4].into_iter().map(Duration::from_secs);
        let tried = &Cell::new(0);
        let outcome = until(deadline, pauses, &clock, || async move {
            tried.set(tried.get() + 1);
            if tried.get() > failures { Ok(()) } else { Err(NotDone(class)) }
        })
        .await;
        (tried.get(), outcome.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_go_better_is_tried_again_and_never_past_the_deadline() {
        assert_eq!(tries(Class::Transient, 2, 60).await, (3, true));
        assert_eq!(tries(Class::Transient, 9, 60).await, (4, false));
        assert_eq!(tries(Class::Transient, 9, 3).await, (2, false));
        assert_eq!(tries(Class::Transient, 9, 0).await, (1, false));
        assert_eq!(tries(Class::Permanent, 9, 60).await, (1, false));
        assert_eq!(tries(Class::Superseded, 9, 60).await, (1, false));
    }
}

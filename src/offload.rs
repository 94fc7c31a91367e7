//! Blocking work, kept off the threads that answer.

use std::panic::resume_unwind;

/// Where blocking work runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// On tokio's blocking threads: production.
    Threads,
    /// Here and now: simulation, where a thread would break the identical traces.
    Inline,
}

impl Offload {
    /// Runs `work`, which computes or reads and has no effect on the world: when the returned
    /// future is dropped, `work` may still run to its end.
    #[expect(clippy::disallowed_methods, reason = "the one place that takes a blocking thread")]
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Self::Inline => work(),
            Self::Threads => match tokio::task::spawn_blocking(work).await {
                Ok(value) => value,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // Only a runtime that is shutting down cancels blocking work.
                    Err(_) => std::future::pending().await,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_places_give_the_same_answer() {
        assert_eq!(Offload::Inline.run(|| 6 * 7).await, 42);
        assert_eq!(Offload::Threads.run(|| 6 * 7).await, 42);
    }
}

//! The end of a program: asked once, finish what has a deadline; asked twice, go.

use std::io;

use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::watch;

/// How urgently the program was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Requested,
    AtOnce,
}

/// A token that every part of a program holds: each clone sees the same request.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: watch::Sender<Stage>,
}

impl Shutdown {
    /// A program that nobody has asked to end.
    pub fn new() -> Self {
        Self { stage: watch::Sender::new(Stage::Running) }
    }

    /// Asks to end: the first time in order, the second time at once.
    pub fn request(&self) {
        self.stage.send_modify(|stage| {
            *stage = match *stage {
                Stage::Running => Stage::Requested,
                Stage::Requested | Stage::AtOnce => Stage::AtOnce,
            };
        });
    }

    /// Whether the program was asked to end.
    pub fn is_requested(&self) -> bool {
        *self.stage.borrow() >= Stage::Requested
    }

    /// Returns when the program is asked to end: finish what has a deadline.
    pub async fn requested(&self) {
        self.reached(Stage::Requested).await;
    }

    /// Returns when the program is asked a second time: go.
    pub async fn at_once(&self) {
        self.reached(Stage::AtOnce).await;
    }

    /// Turns SIGTERM and SIGINT into requests, for as long as it is polled.
    pub async fn listen(&self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => self.request(),
                _ = interrupt.recv() => self.request(),
            }
        }
    }

    async fn reached(&self, stage: Stage) {
        let mut seen = self.stage.subscribe();
        // It cannot close: `self` holds the sender.
        if seen.wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_request_means_at_once() {
        let shutdown = Shutdown::new();
        let part = shutdown.clone();
        assert!(!part.is_requested());
        shutdown.request();
        part.requested().await;
        assert_eq!(*part.stage.borrow(), Stage::Requested);
        shutdown.request();
        part.at_once().await;
    }
}

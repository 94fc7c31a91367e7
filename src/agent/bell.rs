//! Wakes the loop: rung by whatever learned something.

use tokio::sync::watch;

/// Rung by many, heard by one. A ring that comes while nobody listens is heard at the next wait.
#[derive(Debug, Clone)]
pub struct Bell {
    rings: watch::Sender<()>,
}

/// The end that hears.
#[derive(Debug)]
pub struct Ear {
    rings: watch::Receiver<()>,
}

impl Bell {
    /// A bell that nobody has rung.
    pub fn new() -> Self {
        Self { rings: watch::Sender::new(()) }
    }

    /// Rings.
    pub fn ring(&self) {
        self.rings.send_replace(());
    }

    /// Listens from now on.
    pub fn ear(&self) -> Ear {
        Ear { rings: self.rings.subscribe() }
    }
}

impl Default for Bell {
    fn default() -> Self {
        Self::new()
    }
}

impl Ear {
    /// Returns when the bell was rung since the last time; never, once nobody can ring it.
    pub async fn rung(&mut self) {
        if self.rings.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

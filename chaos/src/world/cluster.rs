//! What the simulated API server knows: objects, their versions, and what happened to them.

use jiff::Timestamp;

pub mod fields;
pub mod object;
pub mod patch;
pub mod refusal;
pub mod resource;
pub mod selector;

/// The objects of the cluster.
#[derive(Debug)]
pub struct Cluster {
    now: Timestamp,
    random: fastrand::Rng,
}

impl Cluster {
    /// An empty cluster whose names and uids come from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { now: Timestamp::UNIX_EPOCH, random: fastrand::Rng::with_seed(seed) }
    }

    pub(super) fn set_time(&mut self, now: Timestamp) {
        self.now = now;
    }
}

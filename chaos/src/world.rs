//! The one mutable truth of a simulated cluster and cloud.

use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use jiff::Timestamp;
use lifeboat::clock::Clock;
use tokio::sync::Notify;

use crate::world::bucket::Bucket;
use crate::world::cluster::Cluster;
use crate::world::cluster::audit::Audit;
use crate::world::instances::Instances;
use crate::world::machines::Machines;
use crate::world::offerings::Offerings;
use crate::world::queue::Queues;

pub mod behave;
pub mod bucket;
pub mod budgets;
pub mod build;
pub mod cluster;
pub mod daemons;
pub mod ec2;
pub mod instances;
pub mod jobs;
pub mod karpenter;
pub mod kubelet;
pub mod lifecycle;
pub mod machines;
pub mod offerings;
pub mod queue;
pub mod runtime;
pub mod scheduler;
pub mod workloads;

/// A handle to the simulated world: cheap to clone, and every clone is the same world.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Notify,
    clock: Clock,
}

/// Everything that is true in the world at one moment.
pub struct State {
    /// What the Kubernetes API server knows.
    pub cluster: Cluster,
    /// What stands in each node's folder, and which process is on which GPU.
    pub machines: Machines,
    /// What EC2 knows.
    pub instances: Instances,
    /// What EC2 has to sell.
    pub offerings: Offerings,
    /// What SQS knows.
    pub queues: Queues,
    /// What S3 knows.
    pub bucket: Bucket,
    /// The only source of chance: names, uids, delays.
    pub random: fastrand::Rng,
    generation: u64,
}

impl World {
    /// An empty world. The same seed and the same calls give the same world.
    pub fn new(clock: Clock, seed: u64) -> Self {
        let state = State {
            cluster: Cluster::new(seed),
            machines: Machines::default(),
            instances: Instances::default(),
            offerings: Offerings::default(),
            queues: Queues::default(),
            bucket: Bucket::default(),
            random: fastrand::Rng::with_seed(seed),
            generation: 0,
        };
        let shared = Shared { state: Mutex::new(state), changed: Notify::new(), clock };
        Self { shared: Arc::new(shared) }
    }

    /// The time of day in this world.
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// The clock of this world.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Looks at the world and changes nothing.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the world and wakes everyone who waits for a change, in the order they came.
    pub fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let answer = {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.generation += 1;
            let now = self.now();
            state.cluster.set_time(now);
            change(&mut state)
        };
        self.shared.changed.notify_waiters();
        answer
    }

    /// Counts in the API server's audit; wakes nobody.
    pub fn audit<T>(&self, count: impl FnOnce(&mut Audit) -> T) -> T {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut state.cluster.audit)
    }

    /// Counts the changes made so far; see [`World::changed_since`].
    pub fn generation(&self) -> u64 {
        self.read(|state| state.generation)
    }

    /// Returns once the world has changed after `generation`, at once if it has already.
    pub async fn changed_since(&self, generation: u64) {
        self.until(|state| (state.generation > generation).then_some(())).await;
    }

    /// Waits until `look` sees what it looks for. It is asked again after every change.
    pub async fn until<T>(&self, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut notified = pin!(self.shared.changed.notified());
        loop {
            notified.as_mut().enable();
            if let Some(found) = self.read(&mut look) {
                return found;
            }
            notified.as_mut().await;
            notified.set(self.shared.changed.notified());
        }
    }
}

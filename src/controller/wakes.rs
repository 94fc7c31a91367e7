//! Who looks again when something changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat_domain::ids::InstanceId;
use tokio::sync::watch;

/// With more interruptions than this, changes are gathered before all are looked at again.
const CROWD: usize = 64;
/// How long they are gathered, for each thousand of them: what a look costs grows with their number,
/// and so does the pause after it.
const GATHER: Duration = Duration::from_millis(20);

/// The bells of all tasks. Many rings before a task looks are one.
#[derive(Clone, Debug, Default)]
pub struct Wakes {
    tasks: Arc<Mutex<BTreeMap<InstanceId, watch::Sender<u64>>>>,
    records: Bell,
    ends: Bell,
    starts: Bell,
}

/// One bell.
#[derive(Clone, Debug)]
pub struct Bell(watch::Sender<u64>);

impl Default for Bell {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Bell {
    /// Rings it.
    pub fn ring(&self) {
        self.0.send_modify(|rings| *rings += 1);
    }

    /// Hears it from now on.
    pub fn hear(&self) -> Ear {
        Ear(self.0.subscribe())
    }
}

/// One who hears a bell.
#[derive(Debug)]
pub struct Ear(watch::Receiver<u64>);

impl Ear {
    /// Returns when the bell has rung since the last time; at once if it has already.
    pub async fn rung(&mut self) {
        if self.0.changed().await.is_err() {
            // The bell is gone: nobody will ring it any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Lets changes gather where so many interruptions are looked at for each of them.
pub async fn gather(interruptions: usize) {
    if interruptions > CROWD {
        let thousands = u32::try_from(interruptions.div_ceil(1_000)).unwrap_or(u32::MAX);
        tokio::time::sleep(GATHER.saturating_mul(thousands)).await;
    }
}

impl Wakes {
    /// Wakes the task of one interruption, if there is one.
    pub fn wake(&self, instance: &InstanceId) {
        if let Some(task) = self.tasks().get(instance) {
            task.send_modify(|rings| *rings += 1);
        }
    }

    /// Whether there are so many tasks that each looks again less often.
    pub fn is_crowded(&self) -> bool {
        self.tasks().len() > CROWD
    }

    /// Wakes the tasks of all interruptions.
    pub fn wake_all(&self) {
        for task in self.tasks().values() {
            task.send_modify(|rings| *rings += 1);
        }
    }

    /// The bell of one interruption's task.
    pub fn task(&self, instance: &InstanceId) -> Ear {
        let mut tasks = self.tasks();
        let bell = tasks.entry(instance.clone()).or_insert_with(|| watch::Sender::new(0));
        Ear(bell.subscribe())
    }

    /// Takes away the bell of a task that has ended.
    pub fn forget(&self, instance: &InstanceId) {
        self.tasks().remove(instance);
    }

    /// Rung when a record is new, different or gone.
    pub fn records(&self) -> &Bell {
        &self.records
    }

    /// Rung when a protected pod is being ended or gone.
    pub fn ends(&self) -> &Bell {
        &self.ends
    }

    /// Rung when a node waits for its agent, or an agent is there or different.
    pub fn starts(&self) -> &Bell {
        &self.starts
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<InstanceId, watch::Sender<u64>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Descriptors that workloads handed over: counted, for each pod, until they are closed.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

/// A descriptor of a workload's. Closed, and counted no more, when it is dropped.
#[derive(Debug)]
pub struct Handed {
    descriptor: OwnedFd,
    _counted: OwnedSemaphorePermit,
}

impl AsFd for Handed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// How many descriptors of one pod may be held at a time. Clones share it.
#[derive(Clone, Debug)]
pub struct Allowance(Arc<Semaphore>);

impl Allowance {
    /// So many.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Counts descriptors, once there is room for all of them.
    pub async fn count(&self, descriptors: Vec<OwnedFd>) -> Vec<Handed> {
        let mut handed = Vec::with_capacity(descriptors.len());
        for descriptor in descriptors {
            // It is never closed.
            let Ok(counted) = Arc::clone(&self.0).acquire_owned().await else { break };
            handed.push(Handed { descriptor, _counted: counted });
        }
        handed
    }
}

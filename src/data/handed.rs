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

    /// Counts descriptors, once there is room for all of them: one line that held some and waited for
    /// more could wait for another that does the same.
    pub async fn count(&self, descriptors: Vec<OwnedFd>) -> Vec<Handed> {
        let count = u32::try_from(descriptors.len()).unwrap_or(u32::MAX);
        // It is never closed.
        let Ok(mut counted) = Arc::clone(&self.0).acquire_many_owned(count).await else {
            return Vec::new();
        };
        let one_each = descriptors
            .into_iter()
            .map_while(|descriptor| Some(Handed { descriptor, _counted: counted.split(1)? }));
        one_each.collect()
    }
}

//! What S3 knows: the objects of one bucket, unfinished uploads, and how much was asked of it.

use std::collections::BTreeMap;

/// The simulated bucket.
#[derive(Debug, Default)]
pub struct Bucket {
    objects: BTreeMap<String, ()>,
}

impl Bucket {
    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.objects.len()
    }
}

//! The data path: from a workload to durable objects and back.

pub mod restore;
pub mod save;
pub mod scheduler;

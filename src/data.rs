//! The data path: from a workload to durable objects and back.

pub mod buffers;
pub mod collect;
pub mod concurrency;
pub mod handed;
pub mod history;
pub mod holes;
pub mod restore;
pub mod ring;
pub mod save;
pub mod scheduler;
pub mod spool;

//! Wire types of our resources.

pub mod node_interruption;
pub mod workload_checkpoint;

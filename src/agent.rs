//! The node side of an interruption.

pub mod act;
pub mod csi;
pub mod listen;
pub mod observe;
pub mod records;
pub mod release;
pub mod report;
pub mod workloads;

//! The Kubernetes API, one module for each kind of object.

pub mod checkpoints;
pub mod claims;
pub mod interruptions;
pub mod lease;
pub mod nodes;
pub mod pods;

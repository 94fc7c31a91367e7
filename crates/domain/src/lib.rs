//! What Lifeboat decides: pure functions from facts to plans. No IO, no async, no clock.

pub mod budget;
pub mod check;
pub mod cluster;
pub mod deadline;
pub mod directory;
pub mod eviction;
pub mod gpu;
pub mod grace;
pub mod ids;
pub mod node;
pub mod policy;
pub mod progress;
pub mod replacement;
pub mod signal;
pub mod workload;

#[cfg(test)]
extern crate self as lifeboat_domain;

#[cfg(test)]
mod samples;

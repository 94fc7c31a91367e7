//! The planner of the cluster side.

pub mod facts;
pub mod plan;

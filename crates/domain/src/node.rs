//! The planner of the node side.

pub mod facts;
pub mod plan;

//! The planner of the node side: ask, save, keep quiet, watch the slices, let restores through.

pub mod facts;
pub mod plan;

pub use plan::plan;

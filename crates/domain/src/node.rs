//! The planner of the node side: ask, save, keep quiet, watch the slices, let restores through.

pub mod facts;
pub mod outlook;
pub mod plan;

mod moment;

pub use plan::plan;

//! The planner of the cluster side: fence, hold, replace, drain, prove, close.

pub mod facts;
pub mod plan;

pub use plan::plan;

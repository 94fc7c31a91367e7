//! The planner of the cluster side: fence, hold, replace, drain, prove, close.

pub mod facts;
pub mod plan;

mod drain;
mod marks;
mod stage;
mod wake;

pub use plan::plan;
pub use stage::Stage;
pub use stage::Witness;

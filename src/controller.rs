//! The cluster side of an interruption.

pub mod act;
pub mod first_aid;
pub mod intake;
pub mod observe;
pub mod record;

//! The commands people type.

pub mod check_config;
pub mod checkpoints;
pub mod cleanup;
pub mod crds;
pub mod doctor;
pub mod pause;
pub mod status;

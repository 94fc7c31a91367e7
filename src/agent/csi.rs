//! Serves the volume that brings a socket into each pod.

pub mod serve;
pub mod socket;
pub mod wire;

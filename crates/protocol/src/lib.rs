//! The line between a workload and the agent on its node: frames and descriptor passing over a Unix socket.

pub mod fd;
pub mod frame;
pub mod ring;
pub mod wire;

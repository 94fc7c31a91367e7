//! The line between a workload and the agent on its node: frames and descriptors over a Unix socket.
//!
//! Each rank of a workload has a connection of its own to the socket of its pod. A frame is a
//! header of eight bytes and JSON ([`wire`]); descriptors go beside it ([`fd`]); state goes
//! through a [`ring`] that the agent lends, or is taken from files by descriptor. What may be
//! said, and in which order, stands in [`frame`].

pub mod fd;
pub mod frame;
pub mod ring;
pub mod wire;

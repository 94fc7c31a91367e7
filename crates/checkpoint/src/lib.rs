//! The checkpoint format: manifests, chunks, verification. No network, no async.

pub mod chunk;
pub mod key;
pub mod manifest;
pub mod tree;

//! The checkpoint format: keys, manifests, chunks, verification. No network, no async.
//!
//! A rank's state is one stream of bytes: its [regions](region::Region), one after the other, cut
//! into [chunks](chunk::Chunk). Each [attempt](attempt::Attempt) to save stores its chunks in a folder
//! of its own, under their BLAKE3 hash, and never changes them.
//! A [`RankManifest`](manifest::RankManifest) says which chunks make up the stream of one rank,
//! and one [`Manifest`](manifest::Manifest), written last, names the rank manifests. What no
//! manifest names does not exist.

pub mod attempt;
pub mod chunk;
pub mod collect;
pub mod folder;
pub mod key;
pub mod manifest;
pub mod region;
pub mod tree;

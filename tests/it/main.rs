//! Integration tests, one binary.
#![allow(clippy::unwrap_used, missing_docs)]

mod sqs_wire;

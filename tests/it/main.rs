//! Integration tests, one binary.
#![allow(clippy::unwrap_used, missing_docs)]

mod imds_wire;
mod s3_wire;
mod kube_wire;
mod sqs_wire;

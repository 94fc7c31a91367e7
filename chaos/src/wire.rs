//! Protocols over the world, each a `tower::Service` from HTTP request to HTTP response.

pub mod imds;
pub mod kube;
pub mod kubelet;
pub mod s3;
pub mod sqs;

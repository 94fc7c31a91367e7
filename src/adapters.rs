//! Each speaks to one outside system, and decides nothing.

pub mod cluster;
pub mod eventbridge;
pub mod folder;
pub mod imds;
pub mod kubelet;
pub mod nvml;
pub mod pod_http;
pub mod proc;
pub mod signed;
pub mod sqs;
pub mod store;
pub mod workload_socket;

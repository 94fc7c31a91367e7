//! Integration tests, one binary.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod commands;
mod csi;
mod data;
mod dependencies;
mod documents;
mod events;
mod fake_nvml;
mod faults;
mod gpu;
mod imds;
mod imds_wire;
mod kill;
mod kube_wire;
mod kubelet_wire;
mod layers;
mod names;
mod nvml;
mod program;
mod s3_wire;
mod served;
mod sources;
mod sqs_wire;
mod tidy;
mod world;

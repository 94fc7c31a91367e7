//! Integration tests, one binary.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod chart;
mod collect;
mod commands;
mod control_plane;
mod controller;
mod csi;
mod data;
mod dependencies;
mod directory;
mod doctor;
mod documents;
mod events;
mod fake_nvml;
mod faults;
mod gpu;
mod http;
mod image;
mod imds;
mod imds_wire;
mod kill;
mod kube_wire;
mod kubelet_wire;
mod layers;
mod names;
mod notice;
mod nvml;
mod program;
mod rights;
#[path = "../cluster/contract/rules.rs"]
mod rules;
mod s3_wire;
mod scripts;
mod sdk;
mod served;
#[path = "../cluster/contract/simulated.rs"]
mod simulated;
mod slicing;
mod sources;
mod sqs_wire;
mod tidy;
mod webhook;
mod world;

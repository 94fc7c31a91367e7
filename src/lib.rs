//! Lifeboat: gets GPU work off an EC2 Spot node before it is taken away.
//!
//! The layers, lowest first; a module names only lower ones (`tests/it/layers.rs` keeps it):
//!
//! ```text
//! cli                                                     7
//! wiring                                                  6
//! commands                                                5
//! controller  agent                                       4
//! data                                                    3
//! adapters                                                2
//! crd  metrics  retry  offload  shutdown  telemetry       1
//! clock  config  error                                    0
//! ```

pub mod adapters;
pub mod agent;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod controller;
pub mod crd;
pub mod data;
pub mod error;
pub mod metrics;
pub mod offload;
pub mod retry;
pub mod shutdown;
pub mod telemetry;
pub mod wiring;

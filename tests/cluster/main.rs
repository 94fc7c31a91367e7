//! On the real control plane: `make cluster-test` builds what it needs and runs it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    missing_docs,
    reason = "tests; what is skipped is said"
)]

mod beside;
mod chart;
mod conformance;
mod contract;
mod doctor;
mod ends;
mod faults;
mod flow;
mod hearing;
mod jobs;
mod leaving;
#[expect(dead_code, reason = "the other half is for `tests/it`")]
#[path = "../it/webhook/line.rs"]
mod line;
mod node;
mod observe;
mod plane;
mod replacing;
mod roles;
#[path = "contract/rules.rs"]
mod rules;
mod saving;
#[path = "contract/simulated.rs"]
mod simulated;
mod slicing;
mod stolen;
mod storm;
mod story;
mod theater;
mod webhook;

//! On the real control plane: `make cluster-test` builds what it needs and runs it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "tests; what is skipped is said"
)]

mod beside;
mod flow;
mod jobs;
mod plane;
mod saving;
mod story;
mod theater;

//! Benches: how fast an interruption is answered, alone and in a storm, on the real API server.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

mod counters;
mod figures;
mod fleet;
mod floor;
mod ground;
pub mod peers;
mod post;
mod program;
mod screen;
mod simulated;
pub mod storm;
mod witness;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Notices for many nodes at once, on a real API server.
    Storm(storm::Options),
    /// The same notices for Lifeboat, Karpenter and aws-node-termination-handler, each alone.
    Peers(peers::Options),
}

/// Runs a bench; answers whether all that must hold did hold.
pub fn run(bench: &Bench) -> anyhow::Result<bool> {
    match bench {
        Bench::Storm(options) if options.simulated => simulated::run(options),
        Bench::Storm(options) => runtime()?.block_on(storm::run(options)),
        Bench::Peers(options) => runtime()?.block_on(peers::run(options)),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// The program that lies beside this one.
fn beside_us(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.parent().context("this program lies in no folder")?;
    Ok(folder.join(name))
}

//! Benches: how fast an interruption is answered, alone and in a storm, on the real API server; and
//! how fast a state goes to the store and comes back, and whether it is there in time.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use tokio::runtime::Builder;
use tokio::runtime::Runtime;

mod counters;
mod crowd;
mod figures;
mod fleet;
mod floor;
mod ground;
mod link;
pub mod notice;
mod ordeal;
pub mod peers;
mod post;
mod program;
pub mod restore;
pub mod save;
mod screen;
mod simulated;
pub mod step;
pub mod storm;
mod witness;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Notices for many nodes at once, on a real API server.
    Storm(storm::Options),
    /// The same notices for Lifeboat, Karpenter and aws-node-termination-handler, each alone.
    Peers(peers::Options),
    /// A state's way from a workload's memory to a committed manifest, beside bare PUTs.
    Save(save::Options),
    /// The same backwards, beside bare GETs.
    Restore(restore::Options),
    /// Notices to real trainers, by the size of their states, the time of a step and the way to the
    /// store: who is durable in time, and when they go on.
    Notice(notice::Options),
    /// A healthy step.
    Step(step::Options),
    /// The workload of the others.
    #[command(hide = true)]
    Workload(save::workload::Role),
}

/// Runs a bench; answers whether all that must hold did hold.
pub fn run(bench: &Bench) -> anyhow::Result<bool> {
    match bench {
        Bench::Storm(options) if options.simulated => simulated::run(options),
        Bench::Storm(options) => runtime()?.block_on(storm::run(options)),
        Bench::Peers(options) => runtime()?.block_on(peers::run(options)),
        Bench::Save(options) => runtime()?.block_on(save::run(options)),
        Bench::Restore(options) => runtime()?.block_on(restore::run(options)),
        Bench::Notice(options) => runtime()?.block_on(notice::run(options)),
        Bench::Step(options) => runtime()?.block_on(step::run(options)),
        Bench::Workload(role) => save::workload::run(role),
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

/// The program that lies beside this one.
fn beside_us(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program.parent().context("this program lies in no folder")?;
    Ok(folder.join(name))
}

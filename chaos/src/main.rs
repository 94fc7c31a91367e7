//! The program `chaos`: scenarios, the swarm, simulators on sockets, and the demo.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use clap::Subcommand;
use lifeboat_chaos::demo;
use lifeboat_chaos::scenario;
use lifeboat_chaos::script::Script;

/// Simulated interruptions, and what must hold in them.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a script in virtual time and prints its trace.
    Run {
        /// The script.
        script: PathBuf,
        /// The seed of names and chances.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Shows one whole interruption, with the production programs as processes.
    Demo {
        /// Writes the same as data.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Leaves the logs of all processes in this folder.
        #[arg(long)]
        logs: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Run { script, seed } => run(&script, seed),
        Command::Demo { json, logs } => show(json, logs),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            print(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(path: &std::path::Path, seed: u64) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let script = Script::parse(&text).with_context(|| path.display().to_string())?;
    let outcome = scenario::run(&script, seed)?;
    outcome.trace.iter().for_each(|line| print(line));
    for unmet in &outcome.unmet {
        print(&format!("UNMET {unmet}"));
    }
    for broken in &outcome.broken {
        print(&format!("BROKEN {broken}"));
    }
    let well = outcome.unmet.is_empty() && outcome.broken.is_empty();
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(json: Option<PathBuf>, logs: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe()?;
    let programs = program.parent().context("this program lies in no folder")?.to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let seen = runtime.block_on(demo::run(&demo::Options { programs, json, logs }))?;
    Ok(if seen { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[expect(clippy::print_stdout, reason = "the one place that talks to a person")]
fn print(line: &str) {
    println!("{line}");
}

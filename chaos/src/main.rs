//! The program `chaos`: scenarios, the swarm, simulators on sockets, and the demo.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use lifeboat_chaos::bench;
use lifeboat_chaos::bench::Bench;
use lifeboat_chaos::demo;
use lifeboat_chaos::interrupt;
use lifeboat_chaos::interrupt::Work;
use lifeboat_chaos::keeper;
use lifeboat_chaos::keeper::Cluster;
use lifeboat_chaos::open;
use lifeboat_chaos::scenario;
use lifeboat_chaos::scenario::Outcome;
use lifeboat_chaos::script::Script;
use lifeboat_chaos::swarm;
use tracing_subscriber::EnvFilter;

/// Simulated interruptions, and what must hold in them.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a script, or what is drawn from a seed, in virtual time and prints its trace.
    Run {
        #[command(flatten)]
        what: What,
        /// What the programs log, to standard error, as in `lifeboat=debug`.
        #[arg(long)]
        log: Option<String>,
    },
    /// Runs it twice and compares the traces byte for byte.
    Meta {
        #[command(flatten)]
        what: What,
    },
    /// Runs what is drawn from one seed after another until the time is over or one fails.
    Swarm {
        /// How long to go on, in seconds of this machine's time.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
        /// The first seed; without it, one that nobody had before.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Serves a simulated cluster and cloud with one node on loopback, until it is asked to end.
    Serve,
    /// Starts and ends a real control plane on loopback.
    Cluster {
        #[command(subcommand)]
        cluster: Cluster,
    },
    /// Measures how fast interruptions are answered.
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// Interrupts a trainer of any language once, and compares its end with a run that nothing
    /// interrupts. It has to understand what `sdk/rust/examples/trainer.rs` does.
    Interrupt {
        /// The folder with the programs: `lifeboat` and `examples/trainer`.
        #[arg(long)]
        programs: PathBuf,
        /// Leaves the logs of all processes in this folder.
        #[arg(long)]
        logs: PathBuf,
        /// Size of the trainer's state.
        #[arg(long, default_value_t = 6 << 20)]
        bytes: u64,
        /// Steps that it takes, a step each tenth of a second.
        #[arg(long, default_value_t = 100)]
        steps: u64,
        /// Milliseconds that it trains before the notice.
        #[arg(long, default_value_t = 1000)]
        after: u64,
    },
    /// Shows one whole interruption, with the production programs as processes.
    Demo {
        /// The same on real nodes: Lifeboat installed by its chart, pods that kubelet runs. It needs
        /// root, and what `make cluster-build` builds.
        #[arg(long, conflicts_with_all = ["json", "logs"])]
        cluster: bool,
        /// Writes the same as data.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Leaves the logs of all processes in this folder.
        #[arg(long)]
        logs: Option<PathBuf>,
    },
}

/// A script with a seed of names and chances, or a seed that all of it is drawn from.
#[derive(Args)]
struct What {
    /// The script; without it, one is drawn from the seed.
    script: Option<PathBuf>,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Run { what, log } => run(&what, log.as_deref()),
        Command::Meta { what } => meta(&what),
        Command::Swarm { seconds, seed } => swarm(Duration::from_secs(seconds), seed),
        Command::Serve => serve(),
        Command::Cluster { cluster } => keep(&cluster),
        Command::Bench { bench } => bench::run(&bench).map(code),
        Command::Interrupt { programs, logs, bytes, steps, after } => {
            let after = Duration::from_millis(after);
            interrupt(&programs, &logs, Work { bytes, steps, after })
        }
        Command::Demo { cluster: true, .. } => show_on_nodes(),
        Command::Demo { cluster: false, json, logs } => show(json, logs),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            print(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(what: &What, log: Option<&str>) -> anyhow::Result<ExitCode> {
    if let Some(filter) = log {
        let filter = EnvFilter::try_new(filter).context("`--log`")?;
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let text = what.text()?;
    if what.script.is_none() {
        print(&text);
    }
    let outcome = scenario::run(&what.parse(&text)?, what.seed)?;
    report(&outcome);
    Ok(code(outcome.is_well()))
}

fn meta(what: &What) -> anyhow::Result<ExitCode> {
    let script = what.parse(&what.text()?)?;
    let first = scenario::run(&script, what.seed)?.trace;
    let second = scenario::run(&script, what.seed)?.trace;
    if let Some((one, other)) = scenario::difference(&first, &second) {
        print(&format!("DIFFERS\n  {one}\n  {other}"));
        return Ok(ExitCode::FAILURE);
    }
    print(&format!("{} lines, twice the same", first.len()));
    Ok(ExitCode::SUCCESS)
}

fn swarm(length: Duration, first: Option<u64>) -> anyhow::Result<ExitCode> {
    let found = swarm::run(first.unwrap_or_else(|| fastrand::u64(..1 << 32)), length)?;
    let runs = found.runs;
    let Some(failed) = found.failed else {
        print(&format!("{runs} runs, no rule broken; the first seed was {}", found.first));
        return Ok(ExitCode::SUCCESS);
    };
    print(&failed.text);
    report(&failed.outcome);
    print(&format!("{runs} runs; the last failed: `chaos run --seed {}` repeats it", failed.seed));
    Ok(ExitCode::FAILURE)
}

fn serve() -> anyhow::Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let served = open::open(folder.path()).await?;
        for (name, address) in &served.addresses {
            print(&format!("{name:10} {address}"));
        }
        print(&format!("{:10} {}", "hostRoot", folder.path().join("gpu-1").display()));
        tokio::signal::ctrl_c().await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn keep(cluster: &Cluster) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for line in runtime.block_on(keeper::run(cluster))? {
        print(&line);
    }
    Ok(ExitCode::SUCCESS)
}

fn interrupt(programs: &Path, logs: &Path, work: Work) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let seen = runtime.block_on(interrupt::run(programs, logs, work))?;
    print(&serde_json::to_string_pretty(&seen)?);
    Ok(code(seen.is_well()))
}

fn show_on_nodes() -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("this program has no path")?;
    let programs = program.parent().context("this program lies in no folder")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(demo::real::run(programs)).map(code)
}

fn show(json: Option<PathBuf>, logs: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe()?;
    let programs = program.parent().context("this program lies in no folder")?.to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let seen = runtime.block_on(demo::run(&demo::Options { programs, json, logs }))?;
    Ok(if seen { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl What {
    fn text(&self) -> anyhow::Result<String> {
        let Some(path) = &self.script else { return Ok(swarm::draw(self.seed)) };
        std::fs::read_to_string(path).with_context(|| path.display().to_string())
    }

    fn parse(&self, text: &str) -> anyhow::Result<Script> {
        let name = self.script.as_deref().unwrap_or(Path::new("the drawn script"));
        Script::parse(text).with_context(|| name.display().to_string())
    }
}

fn report(outcome: &Outcome) {
    outcome.trace.iter().for_each(|line| print(line));
    for unmet in &outcome.unmet {
        print(&format!("UNMET {unmet}"));
    }
    for broken in &outcome.broken {
        print(&format!("BROKEN {broken}"));
    }
}

fn code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the one place that talks to a person")]
fn print(line: &str) {
    println!("{line}");
}

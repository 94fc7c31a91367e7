//! The command line: what was asked for, and with which exit code it ends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tracing::info;
use tracing::warn;

use crate::clock::Clock;
use crate::commands::check_config;
use crate::commands::crds;
use crate::config::Config;
use crate::config::Program;
use crate::config::Sources;
use crate::error::Chain;
use crate::metrics;
use crate::offload::Offload;
use crate::shutdown::Shutdown;
use crate::telemetry;
use crate::wiring;
use crate::wiring::AgentClients;
use crate::wiring::ControllerClients;

/// Exit code of a wrong flag: `EX_USAGE` of sysexits.
pub const USAGE: u8 = 64;
/// Exit code where an outside system is not there: `EX_UNAVAILABLE`.
pub const UNAVAILABLE: u8 = 69;
/// Exit code of a broken invariant: `EX_SOFTWARE`.
pub const BROKEN: u8 = 70;
/// Exit code of a wrong configuration: `EX_CONFIG`.
pub const CONFIG: u8 = 78;

/// Gets GPU work off an EC2 Spot node before it is taken away.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Args)]
struct Settings {
    /// The configuration file, in TOML.
    #[arg(long, global = true, env = "LIFEBOAT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, over file and environment; may be given again.
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
}

/// What is asked for.
#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the cluster's side: queue, fence, hold, replacement, drain, record.
    Controller,
    /// Runs the node's side: metadata, workloads, saving and restoring, release.
    Agent,
    /// Prints both resource definitions as YAML.
    Crds,
    /// Reads the configuration and shows every fault.
    CheckConfig {
        /// Print the table of all keys as Markdown, and read nothing.
        #[arg(long)]
        document: bool,
        /// Check what the agent needs, and not the controller.
        #[arg(long)]
        agent: bool,
    },
}

/// Why a command came to nothing, with its exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
}

impl Failure {
    fn new(code: u8, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { code, text: Chain(error).to_string() }
    }
}

/// Does what `arguments` ask for.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let shown = error.print();
            let wanted = !error.use_stderr() && shown.is_ok();
            return if wanted { ExitCode::SUCCESS } else { USAGE.into() };
        }
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, text }) => {
            // Where standard error is closed, the code still tells.
            drop(writeln!(io::stderr(), "lifeboat: {text}"));
            code.into()
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let settings = &cli.settings;
    match cli.command {
        Command::Controller => controller(load(Program::Controller, settings)?),
        Command::Agent => agent(load(Program::Agent, settings)?),
        Command::Crds => print(&crds::yaml()),
        Command::CheckConfig { document: true, .. } => print(&crate::config::document()),
        Command::CheckConfig { agent, .. } => {
            let program = if agent { Program::Agent } else { Program::Controller };
            print(&check_config::summary(&load(program, settings)?))
        }
    }
}

fn load(program: Program, settings: &Settings) -> Result<Config, Failure> {
    let file = match &settings.config {
        None => None,
        Some(path) => match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) => {
                let text = format!("file `{}` was not read: {error}", path.display());
                return Err(Failure { code: CONFIG, text });
            }
        },
    };
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let sources = Sources { file, environment, flags: settings.set.clone() };
    Config::load(program, &sources).map_err(|faults| Failure::new(CONFIG, &faults))
}

fn controller(config: Config) -> Result<(), Failure> {
    service("controller", config, async |config, shutdown| {
        let clients = ControllerClients::connect(&config).await.map_err(unavailable)?;
        let run = wiring::controller(config, clients, Clock::system(), shutdown).await;
        run.map_err(|error| Failure::new(UNAVAILABLE, &error))
    })
}

fn agent(config: Config) -> Result<(), Failure> {
    service("agent", config, async |config, shutdown| {
        let clients = AgentClients::connect(&config).await.map_err(unavailable)?;
        let runtime = wiring::Runtime { clock: Clock::system(), offload: Offload::Threads };
        let run = wiring::agent(config, clients, runtime, shutdown).await;
        run.map_err(|error| Failure::new(UNAVAILABLE, &error))
    })
}

/// Runs `program` beside the admin server until it ends by itself, or SIGTERM ends it.
fn service(
    name: &'static str,
    config: Config,
    program: impl AsyncFnOnce(Config, Shutdown) -> Result<(), Failure>,
) -> Result<(), Failure> {
    telemetry::init(&config.log);
    runtime()?.block_on(async {
        info!(program = name, version = env!("CARGO_PKG_VERSION"), config = ?config, "started");
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let shutdown = Shutdown::new();
        let admin = admin(config.admin.listen, shutdown.clone()).await?;
        let ended = tokio::select! {
            biased;
            () = shutdown.at_once() => Ok(()),
            ended = program(config, shutdown.clone()) => ended,
            Err(error) = shutdown.listen() => Err(Failure::new(BROKEN, &error)),
            Err(error) = admin => Err(Failure::new(UNAVAILABLE, &error)),
        };
        info!(program = name, "ended");
        ended
    })
}

async fn admin(
    listen: SocketAddr,
    shutdown: Shutdown,
) -> Result<impl Future<Output = io::Result<()>>, Failure> {
    match TcpListener::bind(listen).await {
        Ok(listener) => {
            let until = async move { shutdown.at_once().await };
            Ok(telemetry::serve(listener, metrics::render, until))
        }
        Err(error) => {
            let text = format!("`admin.listen` {listen} was not bound: {error}");
            Err(Failure { code: UNAVAILABLE, text })
        }
    }
}

fn runtime() -> Result<Runtime, Failure> {
    Runtime::new().map_err(|error| Failure::new(UNAVAILABLE, &error))
}

fn unavailable(error: wiring::ConnectError) -> Failure {
    Failure::new(UNAVAILABLE, &error)
}

fn print(text: &str) -> Result<(), Failure> {
    let written = io::stdout().write_all(text.as_bytes());
    written.map_err(|error| Failure::new(UNAVAILABLE, &error))
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err("allowed is key=value, like drain.maxGrace=15s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}

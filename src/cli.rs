//! The command line: what was asked for, and with which exit code it ends.

mod ask;
mod service;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use tokio::runtime::Runtime;

use crate::commands::CommandError;
use crate::config::Config;
use crate::config::Program;
use crate::config::Sources;
use crate::error::Chain;
use crate::wiring::ConnectError;

/// Exit code of `doctor` where nothing is broken, and something should be looked at.
pub const LOOK: u8 = 1;
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
    /// Shows what is going on, and what is saved.
    Status {
        /// Only this interruption, told from its beginning: an instance or a node.
        name: Option<String>,
        /// Show it anew every second, until it is interrupted.
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Checks what can be checked before the first interruption, and says what to do.
    ///
    /// The exit code says the worst of it: 0 all is well, 1 something should be looked at, 78
    /// something will not work.
    Doctor {
        #[command(flatten)]
        output: Output,
        /// End with 0 unless something will not work.
        #[arg(long)]
        only_bad: bool,
    },
    /// What lies in the bucket.
    Checkpoints {
        #[command(subcommand)]
        command: Checkpoints,
    },
    /// Stops everything but recording: for all, a namespace or a node.
    Pause {
        /// Act again.
        #[arg(long)]
        off: bool,
        /// Only this namespace's pods.
        #[arg(long, conflicts_with = "node")]
        namespace: Option<String>,
        /// Only this node.
        #[arg(long)]
        node: Option<String>,
    },
    /// Takes back every mark of ours: taints, cordons, holds, pauses.
    Cleanup {
        /// Only say what would be taken back.
        #[arg(long)]
        dry_run: bool,
        /// End the controller first, as before Lifeboat is uninstalled: it would mark again.
        #[arg(long, conflicts_with = "dry_run")]
        end_controller: bool,
    },
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

/// What is asked of the bucket.
#[derive(Debug, Subcommand)]
enum Checkpoints {
    /// The newest checkpoint of every job key, or every epoch of one.
    Ls {
        /// Only this namespace's.
        #[arg(long)]
        namespace: Option<String>,
        /// Every epoch of this job key.
        #[arg(long, requires = "namespace")]
        key: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Removes epochs: nothing goes on from them any more, and their chunks are collected.
    Rm {
        #[command(flatten)]
        key: OfKey,
        /// Which epochs.
        #[arg(required_unless_present = "all")]
        epochs: Vec<u64>,
        /// All epochs of the job key.
        #[arg(long, conflicts_with = "epochs")]
        all: bool,
        /// Even if a live pod would go on from one of them: it is not saved any more until it
        /// starts again.
        #[arg(long)]
        supersede_holder: bool,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
    /// Keeps an epoch from being collected.
    Pin {
        #[command(flatten)]
        key: OfKey,
        /// Which epoch.
        epoch: u64,
        /// Collect it like any other.
        #[arg(long)]
        off: bool,
    },
    /// Deletes what nothing names any more, as the controller does by and by.
    Collect {
        /// Only this namespace's.
        #[arg(long)]
        namespace: Option<String>,
        /// Only this job key.
        #[arg(long)]
        key: Option<String>,
        /// Only say what would be deleted.
        #[arg(long)]
        dry_run: bool,
    },
}

/// One job key.
#[derive(Clone, Debug, Args)]
struct OfKey {
    /// The namespace.
    namespace: String,
    /// The job key.
    key: String,
}

/// For whom the answer is.
#[derive(Clone, Copy, Debug, Args)]
struct Output {
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
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

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::new(UNAVAILABLE, &error)
    }
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self::new(UNAVAILABLE, &error)
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
        Command::Controller => service::controller(settings),
        Command::Agent => service::agent(settings),
        Command::Status { name, watch: true, .. } => {
            runtime()?.block_on(ask::watch_status(settings, name.as_deref()))
        }
        Command::Status { name, output, .. } => {
            runtime()?.block_on(ask::status(settings, name.as_deref(), output))
        }
        Command::Doctor { output, only_bad } => {
            runtime()?.block_on(ask::doctor(settings, output, ask::least(only_bad)))
        }
        Command::Checkpoints { command } => {
            runtime()?.block_on(ask::checkpoints(settings, command))
        }
        Command::Pause { off, namespace, node } => {
            let wish = ask::pause_wish(off);
            runtime()?.block_on(ask::pause(settings, wish, namespace, node))
        }
        Command::Cleanup { dry_run, end_controller } => {
            let end = if end_controller { ask::Controller::End } else { ask::Controller::Leave };
            runtime()?.block_on(ask::cleanup(settings, ask::cleanup_wish(dry_run), end))
        }
        Command::Crds => ask::crds(),
        Command::CheckConfig { document: true, .. } => ask::document(),
        Command::CheckConfig { agent: true, .. } => ask::check_config(settings, Program::Agent),
        Command::CheckConfig { .. } => ask::check_config(settings, Program::Controller),
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

fn runtime() -> Result<Runtime, Failure> {
    Runtime::new().map_err(|error| Failure::new(UNAVAILABLE, &error))
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

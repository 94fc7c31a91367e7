//! The commands that ask, print an answer and end.

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;

use super::CONFIG;
use super::Checkpoints;
use super::Failure;
use super::LOOK;
use super::OfKey;
use super::Output;
use super::Settings;
use super::UNAVAILABLE;
use super::load;
use crate::clock::Clock;
use crate::commands::check_config;
use crate::commands::checkpoints as bucket;
use crate::commands::checkpoints::collect;
use crate::commands::checkpoints::pin;
use crate::commands::checkpoints::remove;
use crate::commands::cleanup as marks;
use crate::commands::crds as definitions;
use crate::commands::doctor as checks;
use crate::commands::pause as pauses;
use crate::commands::status as records;
use crate::config::Config;
use crate::config::Program;
use crate::error::Chain;
use crate::wiring;

/// How long the API server may be silent: a person waits.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often what is watched is shown anew.
const FRAME: Duration = Duration::from_secs(1);

pub(super) fn crds() -> Result<(), Failure> {
    print(&definitions::yaml())
}

pub(super) fn document() -> Result<(), Failure> {
    print(&crate::config::document())
}

pub(super) fn check_config(settings: &Settings, program: Program) -> Result<(), Failure> {
    print(&check_config::summary(&load(program, settings)?))
}

pub(super) async fn status(
    settings: &Settings,
    name: Option<&str>,
    output: Output,
) -> Result<(), Failure> {
    let config = load(Program::Command, settings)?;
    let mut status = records::read(&client(&config).await?).await?;
    let text = shown(&status, name)?;
    if let Some(name) = name {
        status.keep(name);
    }
    output.print(|| text, || records::json(&status))
}

/// Shows it again and again. What was not read is said in its place, and tried again.
pub(super) async fn watch_status(settings: &Settings, name: Option<&str>) -> Result<(), Failure> {
    let config = load(Program::Command, settings)?;
    let client = client(&config).await?;
    // The first answer says whether there is anything to watch.
    let mut frame = shown(&records::read(&client).await?, name)?;
    loop {
        match io::stdout().write_all(records::frame(&frame, stdout()).as_bytes()) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Failure::new(UNAVAILABLE, &error)),
        }
        tokio::time::sleep(FRAME).await;
        frame = match records::read(&client).await {
            Ok(status) => shown(&status, name)?,
            Err(error) => format!("{}\n", Chain(&error)),
        };
    }
}

fn shown(status: &records::Status, name: Option<&str>) -> Result<String, Failure> {
    match name {
        None => Ok(records::table(status, now())),
        Some(name) => Ok(records::timeline(status, name, now())?),
    }
}

fn stdout() -> records::Screen {
    if io::stdout().is_terminal() { records::Screen::Terminal } else { records::Screen::Pipe }
}

pub(super) async fn doctor(
    settings: &Settings,
    output: Output,
    least: checks::Health,
) -> Result<(), Failure> {
    let config = load(Program::Controller, settings)?;
    let clients = checks::Clients {
        kube: wiring::kubernetes(&config.kubernetes, PATIENCE)
            .await
            .map_err(|error| Chain(&error).to_string()),
        sqs: wiring::queue(&config.queue, &config.region).await,
        store: wiring::bucket(&config.store)?,
        signed: wiring::signed(&config.store, &config.region)?,
        clock: Clock::system(),
    };
    let findings = checks::examine(&config, &clients).await;
    output.print(|| checks::table(&findings), || checks::json(&findings))?;
    let worst = checks::worst(&findings);
    let (code, text) = match worst {
        checks::Health::Green => return Ok(()),
        checks::Health::Yellow => (LOOK, "some of it should be looked at"),
        checks::Health::Red => (CONFIG, "some of it will not work"),
    };
    if worst < least {
        return Ok(());
    }
    Err(Failure { code, text: text.to_owned() })
}

pub(super) fn least(only_bad: bool) -> checks::Health {
    if only_bad { checks::Health::Red } else { checks::Health::Yellow }
}

pub(super) async fn checkpoints(settings: &Settings, command: Checkpoints) -> Result<(), Failure> {
    let config = load(Program::Bucket, settings)?;
    let store = wiring::bucket(&config.store)?;
    let place = bucket::Bucket::new(&config, store.clone(), &Clock::system());
    match command {
        Checkpoints::Ls { namespace, key, output } => {
            let rows = match (namespace, key) {
                (Some(namespace), Some(job_key)) => {
                    bucket::epochs(&place, &bucket::Key { namespace, job_key }).await?
                }
                (namespace, _) => {
                    bucket::newest(&*store, &bucket::Scope::new(&config, namespace)).await?
                }
            };
            output.print(|| bucket::table(&rows), || bucket::json(&rows))
        }
        Checkpoints::Rm { key, epochs, all, supersede_holder, dry_run } => {
            let removal = remove::Removal {
                key: key.into(),
                which: which(epochs, all),
                if_held: if_held(supersede_holder),
                wish: if dry_run { remove::Wish::Say } else { remove::Wish::Remove },
            };
            // Where it is not reached, nobody knows whether the pod lives.
            let cluster = client(&config).await.ok();
            print(&remove::run(&place, cluster.as_ref(), &removal).await?)
        }
        Checkpoints::Pin { key, epoch, off } => {
            let wish = if off { pin::Wish::Unpin } else { pin::Wish::Pin };
            print(&pin::set(&place, &key.into(), epoch, wish).await?)
        }
        Checkpoints::Collect { namespace, key: job_key, dry_run } => {
            let which = collect::Which { namespace, job_key };
            let wish = if dry_run { collect::Wish::Say } else { collect::Wish::Delete };
            let report = collect::run(&place, &which, config.collect.keep, wish).await?;
            print(&report.text)?;
            match report.refused {
                0 => Ok(()),
                refused => {
                    let text = format!("{refused} job keys were left alone");
                    Err(Failure { code: UNAVAILABLE, text })
                }
            }
        }
    }
}

fn which(epochs: Vec<u64>, all: bool) -> remove::Which {
    if all { remove::Which::All } else { remove::Which::Epochs(epochs.into_iter().collect()) }
}

fn if_held(supersede: bool) -> remove::IfHeld {
    if supersede { remove::IfHeld::Supersede } else { remove::IfHeld::Refuse }
}

impl From<OfKey> for bucket::Key {
    fn from(OfKey { namespace, key }: OfKey) -> Self {
        Self { namespace, job_key: key }
    }
}

pub(super) async fn pause(
    settings: &Settings,
    wish: pauses::Wish,
    namespace: Option<String>,
    node: Option<String>,
) -> Result<(), Failure> {
    let config = load(Program::Command, settings)?;
    let target = match (namespace, node) {
        (Some(namespace), _) => pauses::Target::Namespace(namespace),
        (None, Some(node)) => pauses::Target::Node(node),
        (None, None) => pauses::Target::All(config.namespace.clone()),
    };
    print(&pauses::set(&client(&config).await?, &target, wish).await?)
}

pub(super) fn pause_wish(off: bool) -> pauses::Wish {
    if off { pauses::Wish::Resume } else { pauses::Wish::Pause }
}

/// What becomes of the controller at a cleanup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    /// It is ended first.
    End,
    /// It goes on.
    Leave,
}

pub(super) async fn cleanup(
    settings: &Settings,
    wish: marks::Wish,
    controller: Controller,
) -> Result<(), Failure> {
    let config = load(Program::Command, settings)?;
    let client = client(&config).await?;
    if controller == Controller::End {
        marks::check_users(&client).await?;
        marks::end_controller(&client, &config.namespace).await?;
    }
    let report = marks::run(&client, wish).await?;
    if !report.users.is_empty() {
        let users = report.users.join("\n  ");
        print(&format!("would refuse: these pods still use the volume\n  {users}\n"))?;
    }
    match report.lines.as_slice() {
        [] => print("no marks of ours\n")?,
        lines => print(&format!("{}\n", lines.join("\n")))?,
    }
    match report.failed {
        0 => Ok(()),
        failed => {
            let text = format!("{failed} marks were not taken back. Run it again");
            Err(Failure { code: UNAVAILABLE, text })
        }
    }
}

pub(super) fn cleanup_wish(dry_run: bool) -> marks::Wish {
    if dry_run { marks::Wish::Name } else { marks::Wish::TakeBack }
}

impl Output {
    fn print(
        self,
        text: impl FnOnce() -> String,
        json: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        print(&if self.json { json() } else { text() })
    }
}

async fn client(config: &Config) -> Result<kube::Client, Failure> {
    Ok(wiring::kubernetes(&config.kubernetes, PATIENCE).await?)
}

fn now() -> Timestamp {
    Clock::system().now()
}

fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(()),
        // `lifeboat status | head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(UNAVAILABLE, &error)),
    }
}

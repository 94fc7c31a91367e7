//! `chaos cluster`: a real control plane that goes on after the command that started it.

use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use clap::Subcommand;
use rustix::process::Pid;
use rustix::process::Signal;
use tokio::process::Command;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::time::Instant;

use crate::control_plane;
use crate::control_plane::ControlPlane;
use crate::control_plane::Durability;
use crate::control_plane::Part;
use crate::control_plane::Settings;

/// How long the whole may take to end before it is killed.
const END: Duration = Duration::from_secs(20);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// What the keeping process is called among the pids.
const KEEPER: &str = "keeper";

/// What is to be done with it.
#[derive(Subcommand)]
pub enum Cluster {
    /// Starts one, and returns when it answers.
    Up(Plane),
    /// Ends what was started with the same `--state`.
    Down {
        /// The folder that everything lies in.
        #[arg(long, default_value = "target/cluster-state")]
        state: PathBuf,
    },
    /// Keeps one until it is asked to end: what `up` leaves running.
    #[command(hide = true)]
    Keep(Plane),
}

/// One control plane.
#[derive(Args)]
pub struct Plane {
    /// The folder that everything lies in.
    #[arg(long, default_value = "target/cluster-state")]
    state: PathBuf,
    /// Starts Karpenter too, over a cloud that is steered by files.
    #[arg(long)]
    karpenter: bool,
    /// Lets etcd wait for the disk, as in production.
    #[arg(long)]
    fsync: bool,
}

/// Does it, and says how it went.
pub async fn run(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    match cluster {
        Cluster::Up(plane) => up(plane).await,
        Cluster::Down { state } => down(state).await,
        Cluster::Keep(plane) => keep(plane).await,
    }
}

async fn up(plane: &Plane) -> anyhow::Result<Vec<String>> {
    std::fs::create_dir_all(plane.state.join("pids"))?;
    let state = plane.state.canonicalize()?;
    let shown = state.display();
    if let Some((name, pid)) = running(&state).first() {
        bail!(
            "`{name}` of a control plane runs already (process {pid}). \
             `chaos cluster down --state {shown}` ends all of it"
        );
    }
    binaries()?;
    forget(&state)?;
    let log = state.join("keeper.log");
    let mut keeper = spawn(plane, &state, &File::create(&log)?)?;
    let pid = keeper.id().context("the keeper was not started")?;
    std::fs::write(state.join("pids").join(KEEPER), pid.to_string())?;
    while !state.join("ready").exists() {
        if keeper.try_wait()?.is_some() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("{}", said.trim().lines().last().unwrap_or("the keeper ended and said nothing"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(vec![
        format!("export KUBECONFIG={shown}/admin.kubeconfig"),
        format!("`chaos cluster down --state {shown}` ends it"),
    ])
}

async fn down(state: &Path) -> anyhow::Result<Vec<String>> {
    let Ok(state) = state.canonicalize() else {
        return Ok(vec![format!("nothing runs in `{}`", state.display())]);
    };
    let all = running(&state);
    let until = Instant::now() + END;
    for (name, pid) in &all {
        if name == KEEPER {
            send(*pid, Signal::TERM);
        }
    }
    let alone = !all.iter().any(|(name, _)| name == KEEPER);
    while !alone && !running(&state).is_empty() && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
    for (_, pid) in running(&state) {
        send(pid, Signal::KILL);
    }
    let ended = all.len();
    Ok(vec![format!("{ended} processes of `{}` ended", state.display())])
}

async fn keep(plane: &Plane) -> anyhow::Result<Vec<String>> {
    let mut settings = Settings::new(&binaries()?, &plane.state);
    if plane.karpenter {
        settings = settings.with_karpenter();
    }
    if plane.fsync {
        settings.durability = Durability::Fsync;
    }
    let mut asked = signal(SignalKind::terminate())?;
    let running = tokio::select! {
        biased;
        _ = asked.recv() => return Ok(Vec::new()),
        started = ControlPlane::start(settings) => started?,
    };
    std::fs::write(plane.state.join("ready"), running.server())?;
    asked.recv().await;
    drop(running);
    Ok(Vec::new())
}

fn spawn(plane: &Plane, state: &Path, log: &File) -> anyhow::Result<tokio::process::Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["cluster", "keep", "--state"]).arg(state);
    if plane.karpenter {
        command.arg("--karpenter");
    }
    if plane.fsync {
        command.arg("--fsync");
    }
    command.env("LIFEBOAT_CLUSTER_BIN", binaries()?).current_dir(state);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    // In a group of its own, so that it does not end with the terminal's command.
    Ok(command.process_group(0).spawn()?)
}

fn binaries() -> anyhow::Result<PathBuf> {
    let found = control_plane::binaries().context(
        "the control plane is not built. `make cluster-up` builds it, where Go is installed",
    )?;
    Ok(found.canonicalize()?)
}

/// Removes what an earlier control plane knew.
fn forget(state: &Path) -> anyhow::Result<()> {
    for folder in ["etcd", "cloud", "log"] {
        let path = state.join(folder);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    for file in ["ready", "audit.log"] {
        let path = state.join(file);
        if path.exists() {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// What runs of the control plane in `state`: a number that was given to another process since is
/// told by the folder that it runs in.
fn running(state: &Path) -> Vec<(String, u32)> {
    let names = Part::ALL.map(Part::name).into_iter().chain([KEEPER]);
    let alive = |name: &str| {
        let pid = std::fs::read_to_string(state.join("pids").join(name)).ok()?.parse().ok()?;
        let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (folder == state).then(|| (name.to_owned(), pid))
    };
    names.filter_map(alive).collect()
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(Err(error)) = pid.map(|pid| rustix::process::kill_process(pid, signal)) {
        tracing::debug!(%error, "process was gone before its signal");
    }
}

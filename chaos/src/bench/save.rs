//! How fast a state goes from a workload's memory to a committed manifest, through the real agent
//! and its ring, side by side with bare PUTs of the same bytes to the same store.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::bench::beside_us;
use crate::bench::program;
use crate::bench::program::Taken;
use crate::bench::screen;
use crate::bench::screen::say;

pub(super) mod agent;
pub(super) mod busy;
mod limits;
pub(super) mod sink;
pub(super) mod workload;

use agent::Agent;
use busy::Busy;
use limits::Limits;
use sink::Keep;
use sink::Sink;
use workload::Workload;

/// Slots of a ring, as the agent's scheduler has it.
const SLOTS: u64 = 8;
/// How long anything of a bench may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// What is saved, and where to.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    setting: Setting,
    /// Writes the figures as data.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What both ways have in common.
#[derive(Args, Clone, Debug)]
pub(super) struct Setting {
    /// Size of the workload's state.
    #[arg(long, default_value_t = 2 << 30)]
    pub(super) bytes: u64,
    /// The store; without it, one on loopback that only counts and checks.
    #[arg(long)]
    pub(super) endpoint: Option<String>,
    /// How fast that store is, in Gbit/s; without it, as fast as it can.
    #[arg(long, conflicts_with = "endpoint")]
    pub(super) gbit: Option<f64>,
    /// Bytes of a chunk and of a slot, in MiB.
    #[arg(long, default_value_t = 32)]
    pub(super) chunk_mib: u64,
    /// Requests at a time, of the agent and of the bare client.
    #[arg(long, default_value_t = 8)]
    pub(super) connections: usize,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    pub(super) rounds: usize,
    /// Processors that something else keeps busy meanwhile.
    #[arg(long, default_value_t = 0)]
    pub(super) busy: usize,
}

impl Setting {
    /// A state of a MiB, for what has nothing to do with its size.
    pub(super) fn small() -> Self {
        let (bytes, chunk_mib, connections) = (1 << 20, 1, 8);
        let (endpoint, gbit) = (None, None);
        Self { bytes, endpoint, gbit, chunk_mib, connections, rounds: 1, busy: 0 }
    }
}

/// One hand-over of all bytes, and what it cost.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Moved {
    /// 10⁹ bytes for each second.
    pub(super) gb_per_second: f64,
    /// How long it took.
    pub(super) seconds: f64,
    /// Processor seconds of the workload for each 10⁹ bytes.
    pub(super) workload_cpu: f64,
    /// The same of the agent.
    pub(super) agent_cpu: f64,
    /// The same of the store, which on AWS is not ours.
    pub(super) store_cpu: f64,
}

/// What it was measured on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ground {
    bytes: u64,
    chunk_mib: u64,
    connections: usize,
    gbit: Option<f64>,
    busy: usize,
    processors: usize,
    load: f64,
    limits: Limits,
}

/// What the agent held, in MiB.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Mebibytes {
    /// Resident before it was asked for anything.
    at_rest: f64,
    /// The most that was ever resident; the ring, which it never maps, comes on top.
    peak: f64,
    /// The ring that it lent.
    ring: u64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    ground: Ground,
    /// PUTs of the same bytes with no hash, no checksum and no manifest.
    bare: Vec<Moved>,
    /// From the call of `save` to the answer that the manifest is committed.
    save: Vec<Moved>,
    /// The median save, in parts of the median bare round.
    of_bare: f64,
    agent_mib: Mebibytes,
}

/// Who takes part.
pub(super) struct Stage {
    sink: Option<Sink>,
    endpoint: String,
    pub(super) agent: Agent,
    pub(super) workload: Workload,
    bytes: u64,
    connections: usize,
}

/// Measures, prints the table, and answers whether everything was saved.
pub(super) async fn run(options: &Options) -> anyhow::Result<bool> {
    let setting = &options.setting;
    say("the machine's own limits …");
    let ground = Ground::of(setting);
    let mut stage = Stage::set(setting, Keep::Nothing).await?;
    stage.workload.begin().await?;
    let idle = stage.agent.taken().resident_mib;
    let _busy = Busy::start(setting.busy)?;
    let (mut bare, mut save) = (Vec::new(), Vec::new());
    for round in 1..=setting.rounds.max(1) {
        let order = stage.bare_order("bare");
        bare.push(stage.measure(&order).await?);
        save.push(stage.measure("save").await?);
        say(&format!("round {round} of {}", setting.rounds));
    }
    if let Some(sink) = &stage.sink {
        sink.check()?;
    }
    let of_bare = median(&save) / median(&bare);
    let agent_mib = Mebibytes::of(&stage.agent.taken(), idle, setting);
    stage.workload.end().await?;
    let figures = Figures { ground, bare, save, of_bare, agent_mib };
    figures.lines().iter().for_each(|line| screen::print(line));
    keep(options.json.as_ref(), &figures)?;
    Ok(true)
}

impl Stage {
    /// The store, the agent and the workload, each a process but for the store.
    pub(super) async fn set(setting: &Setting, keep: Keep) -> anyhow::Result<Self> {
        let sink = match &setting.endpoint {
            Some(_) => None,
            None => Some(Sink::serve(setting.gbit, keep).await?),
        };
        let served = sink.as_ref().map(Sink::url);
        let endpoint = setting.endpoint.clone().or(served).context("no store")?;
        let agent = Agent::start(&beside_us("lifeboat")?, &endpoint, setting).await?;
        let workload = Workload::start(&agent.socket(), setting)?;
        let (bytes, connections) = (setting.bytes, setting.connections);
        Ok(Self { sink, endpoint, agent, workload, bytes, connections })
    }

    /// Puts a new life in the workload's place: an empty one.
    pub(super) async fn renew(&mut self, setting: &Setting) -> anyhow::Result<()> {
        let next = Workload::empty(&self.agent.socket(), setting)?;
        std::mem::replace(&mut self.workload, next).end().await
    }

    /// What has the workload move the same bytes without us.
    pub(super) fn bare_order(&self, order: &str) -> String {
        format!("{order} {} {}", self.endpoint, self.connections)
    }

    /// Has the workload do what moves all its bytes once.
    pub(super) async fn measure(&mut self, order: &str) -> anyhow::Result<Moved> {
        let before = self.cpu();
        let seconds = self.workload.order(order).await?;
        let after = self.cpu();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
        let gigabytes = self.bytes as f64 / 1e9;
        let each = |place: usize| (after[place] - before[place]) / gigabytes;
        Ok(Moved {
            gb_per_second: gigabytes / seconds,
            seconds,
            workload_cpu: each(0),
            agent_cpu: each(1),
            store_cpu: each(2),
        })
    }

    fn cpu(&self) -> [f64; 3] {
        let own = Taken::of(std::process::id());
        [self.workload.taken(), self.agent.taken(), own].map(|taken| taken.cpu_seconds)
    }
}

impl Ground {
    pub(super) fn of(setting: &Setting) -> Self {
        Self {
            bytes: setting.bytes,
            chunk_mib: setting.chunk_mib,
            connections: setting.connections,
            gbit: setting.gbit,
            busy: setting.busy,
            processors: std::thread::available_parallelism().map_or(0, NonZero::get),
            load: program::load(),
            limits: limits::measure(),
        }
    }

    /// As a person reads it.
    pub(super) fn lines(&self) -> Vec<String> {
        let shaped = self.gbit.map_or_else(String::new, |gbit| {
            format!("; the store goes at {gbit} Gbit/s, {:.3} GB/s", gbit / 8.0)
        });
        let what = format!(
            "{} MiB of state, chunks of {} MiB, {} requests at a time{shaped}",
            self.bytes >> 20,
            self.chunk_mib,
            self.connections,
        );
        let on = format!(
            "{} processors, {} of them busy otherwise, load {:.1}",
            self.processors, self.busy, self.load
        );
        vec![what, on, self.limits.line()]
    }
}

impl Mebibytes {
    pub(super) fn of(agent: &Taken, at_rest: f64, setting: &Setting) -> Self {
        let ring = (agent::RING_MIB / 2).min(SLOTS * setting.chunk_mib);
        Self { at_rest, peak: agent.peak_mib, ring }
    }

    pub(super) fn line(&self) -> String {
        format!(
            "agent: {:.0} MiB resident at rest, {:.0} at most, and a ring of {} MiB",
            self.at_rest, self.peak, self.ring
        )
    }
}

impl Figures {
    fn lines(&self) -> Vec<String> {
        let mut lines = self.ground.lines();
        lines.push(heading());
        lines.extend(self.bare.iter().map(|moved| row("bare PUTs", moved)));
        lines.extend(self.save.iter().map(|moved| row("save", moved)));
        lines.push(format!("save: {:.2} of bare, by the medians", self.of_bare));
        lines.push(self.agent_mib.line());
        lines
    }
}

/// The heading above [`row`]s.
pub(super) fn heading() -> String {
    format!("{:12} {:>8} {:>8}   {:>30}", "", "GB/s", "s", "CPU s/GB: workload agent store")
}

/// One measurement as a person reads it.
pub(super) fn row(name: &str, moved: &Moved) -> String {
    format!(
        "{name:12} {:8.3} {:8.2}   {:18.2} {:5.2} {:5.2}",
        moved.gb_per_second, moved.seconds, moved.workload_cpu, moved.agent_cpu, moved.store_cpu
    )
}

/// The median rate.
pub(super) fn median(all: &[Moved]) -> f64 {
    let mut rates: Vec<f64> = all.iter().map(|moved| moved.gb_per_second).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}

/// Writes figures as data, where that is wanted.
pub(super) fn keep(path: Option<&PathBuf>, figures: &impl Serialize) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(figures)?;
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

//! How fast a state goes from a workload's memory to a committed manifest, through the real agent
//! and its ring, side by side with bare PUTs of the same bytes to the same store.

use std::io::Write;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::bench::beside_us;
use crate::bench::program;
use crate::bench::program::Taken;
use crate::bench::screen;
use crate::bench::screen::say;
use crate::serve::tls::Identity;

pub(super) mod agent;
mod bound;
pub(super) mod busy;
mod limits;
mod peer;
pub(super) mod sink;
pub(super) mod workload;

use agent::Agent;
use busy::Busy;
use limits::Limits;
use peer::Peer;
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
    /// Does the same over TLS, side by side.
    #[arg(long, conflicts_with = "endpoint")]
    tls: bool,
    /// An s5cmd that puts the same bytes beside it, from files in memory.
    #[arg(long, conflicts_with = "endpoint")]
    s5cmd: Option<PathBuf>,
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
    /// Processors that something else keeps busy meanwhile, as a data loader does.
    #[arg(long, default_value_t = 0)]
    pub(super) busy: usize,
    /// The agent's cgroup is charged with so many MiB at most, and the kernel kills it beyond that.
    #[arg(long)]
    pub(super) limit_mib: Option<u64>,
    /// Memory that the agent may lend, in MiB; no more than half of it goes to one workload.
    #[arg(long, default_value_t = agent::RING_MIB)]
    pub(super) ring_mib: u64,
    /// The state is made up while it is read, so that it may be larger than the machine's memory.
    #[arg(long)]
    pub(super) made_up: bool,
}

impl Setting {
    /// A state of a MiB, for what has nothing to do with its size.
    pub(super) fn small() -> Self {
        let (bytes, chunk_mib, connections) = (1 << 20, 1, 8);
        let (endpoint, gbit, limit_mib) = (None, None, None);
        let (rounds, busy, ring_mib, made_up) = (1, 0, agent::RING_MIB, false);
        Self {
            bytes,
            endpoint,
            gbit,
            chunk_mib,
            connections,
            rounds,
            busy,
            limit_mib,
            ring_mib,
            made_up,
        }
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
    /// The most that its cgroup was ever charged, the ring with it; none without a limit.
    charged: Option<f64>,
    /// What it may be charged.
    limit: Option<u64>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    ground: Ground,
    ways: Vec<Measured>,
}

/// What was measured on one way to the store.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    way: Way,
    /// PUTs of the same bytes with no hash, no checksum and no manifest.
    bare: Vec<Moved>,
    /// s5cmd with the same bytes, from files in memory; none where there is none.
    s5cmd: Vec<Moved>,
    /// From the call of `save` to the answer that the manifest is committed.
    save: Vec<Moved>,
    /// The median save, in parts of the median bare round.
    of_bare: f64,
    agent_mib: Mebibytes,
}

/// How the store is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Way {
    /// As its endpoint says; in the clear where it is ours.
    Plain,
    /// Over TLS, with a certificate of an authority that `SSL_CERT_FILE` names.
    Tls,
}

/// The store as others are told of it.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) endpoint: String,
    /// Where the certificate of its authority lies, unless everybody knows it.
    authority: Option<PathBuf>,
}

/// Where a workload finds what it needs.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) socket: PathBuf,
    store: Store,
}

/// Who takes part.
pub(super) struct Stage {
    sink: Option<Sink>,
    store: Store,
    _authority: Option<NamedTempFile>,
    pub(super) agent: Agent,
    pub(super) workload: Workload,
    bytes: u64,
    connections: usize,
}

/// One way to the store, while it is measured.
struct Lane {
    way: Way,
    stage: Stage,
    idle_mib: f64,
    bare: Vec<Moved>,
    s5cmd: Vec<Moved>,
    save: Vec<Moved>,
}

/// Measures, prints the table, and answers whether everything was saved.
pub(super) async fn run(options: &Options) -> anyhow::Result<bool> {
    let setting = &options.setting;
    say("the machine's own limits …");
    let ground = Ground::of(setting);
    let mut lanes = vec![Lane::begin(setting, Way::Plain).await?];
    if options.tls {
        lanes.push(Lane::begin(setting, Way::Tls).await?);
    }
    let peer = options.s5cmd.as_ref().map(|program| Peer::new(program, setting)).transpose()?;
    let peer = peer.flatten();
    let busy = Busy::start(setting.busy)?;
    for round in 1..=setting.rounds.max(1) {
        for lane in &mut lanes {
            lane.round(peer.as_ref()).await?;
        }
        say(&format!("round {round} of {}", setting.rounds));
    }
    drop(busy);
    let mut ways = Vec::new();
    for lane in lanes {
        ways.push(lane.end(setting).await?);
    }
    let figures = Figures { ground, ways };
    figures.lines().iter().for_each(|line| screen::print(line));
    keep(options.json.as_ref(), &figures)?;
    Ok(true)
}

impl Lane {
    async fn begin(setting: &Setting, way: Way) -> anyhow::Result<Self> {
        let mut stage = Stage::set(setting, Keep::Nothing, way).await?;
        stage.workload.begin().await?;
        let idle_mib = stage.agent.taken().resident_mib;
        let (bare, s5cmd, save) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { way, stage, idle_mib, bare, s5cmd, save })
    }

    async fn round(&mut self, peer: Option<&Peer>) -> anyhow::Result<()> {
        let order = self.stage.bare_order("bare");
        self.bare.push(self.stage.measure(&order).await?);
        if let Some(peer) = peer {
            self.s5cmd.push(peer.put(&self.stage.store).await?);
        }
        self.save.push(self.stage.measure("save").await?);
        Ok(())
    }

    async fn end(self, setting: &Setting) -> anyhow::Result<Measured> {
        let Self { way, stage, idle_mib, bare, s5cmd, save } = self;
        if let Some(sink) = &stage.sink {
            sink.check()?;
        }
        let agent_mib = Mebibytes::of(&stage.agent, idle_mib, setting)?;
        stage.workload.end().await?;
        let of_bare = median(&save) / median(&bare);
        Ok(Measured { way, bare, s5cmd, save, of_bare, agent_mib })
    }
}

impl Way {
    /// What stands before the rows.
    fn mark(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Tls => ", TLS",
        }
    }
}

impl Store {
    /// What has a program trust it.
    pub(super) fn trusts(&self) -> Option<(String, String)> {
        let path = self.authority.as_ref()?;
        Some(("SSL_CERT_FILE".to_owned(), path.display().to_string()))
    }
}

impl Place {
    pub(super) fn trusts(&self) -> Option<(String, String)> {
        self.store.trusts()
    }
}

impl Stage {
    /// The store, the agent and the workload, each a process but for the store.
    pub(super) async fn set(setting: &Setting, keep: Keep, way: Way) -> anyhow::Result<Self> {
        let identity = (way == Way::Tls).then(Identity::new).transpose()?;
        let sink = match &setting.endpoint {
            Some(_) => None,
            None => Some(Sink::serve(setting.gbit, keep, identity.as_ref()).await?),
        };
        let served = sink.as_ref().map(Sink::url);
        let endpoint = setting.endpoint.clone().or(served).context("no store")?;
        let written = identity.map(|identity| -> anyhow::Result<_> {
            let mut file = NamedTempFile::new()?;
            file.write_all(identity.authority_pem().as_bytes())?;
            Ok(file)
        });
        let written = written.transpose()?;
        let authority = written.as_ref().map(|file| file.path().to_owned());
        let store = Store { endpoint, authority };
        let agent = Agent::start(&beside_us("lifeboat")?, &store, setting).await?;
        let place = Place { socket: agent.socket(), store: store.clone() };
        let workload = Workload::start(&place, setting)?;
        let (bytes, connections) = (setting.bytes, setting.connections);
        Ok(Self { sink, store, _authority: written, agent, workload, bytes, connections })
    }

    /// Puts a new life in the workload's place: an empty one.
    pub(super) async fn renew(&mut self, setting: &Setting) -> anyhow::Result<()> {
        let place = Place { socket: self.agent.socket(), store: self.store.clone() };
        let next = Workload::empty(&place, setting)?;
        std::mem::replace(&mut self.workload, next).end().await
    }

    /// What has the workload move the same bytes without us.
    pub(super) fn bare_order(&self, order: &str) -> String {
        format!("{order} {} {}", self.store.endpoint, self.connections)
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
            "{} processors, {} of them busy otherwise, load {:.1}; the store is on them, too",
            self.processors, self.busy, self.load
        );
        vec![what, on, self.limits.line()]
    }
}

impl Mebibytes {
    pub(super) fn of(agent: &Agent, at_rest: f64, setting: &Setting) -> anyhow::Result<Self> {
        let ring = (setting.ring_mib / 2).min(SLOTS * setting.chunk_mib);
        let (peak, charged) = (agent.taken().peak_mib, agent.charged_mib()?);
        Ok(Self { at_rest, peak, ring, charged, limit: setting.limit_mib })
    }

    pub(super) fn line(&self) -> String {
        let charged = self.charged.zip(self.limit).map_or_else(String::new, |(charged, limit)| {
            format!("; its cgroup was charged {charged:.0} MiB at most, of {limit}")
        });
        format!(
            "agent: {:.0} MiB resident at rest, {:.0} at most, and a ring of {} MiB{charged}",
            self.at_rest, self.peak, self.ring
        )
    }
}

impl Figures {
    fn lines(&self) -> Vec<String> {
        let mut lines = self.ground.lines();
        lines.push(heading());
        for Measured { way, bare, s5cmd, save, of_bare, agent_mib } in &self.ways {
            let mark = way.mark();
            lines.extend(bare.iter().map(|moved| row(&format!("bare PUTs{mark}"), moved)));
            lines.extend(s5cmd.iter().map(|moved| row(&format!("s5cmd{mark}"), moved)));
            lines.extend(save.iter().map(|moved| row(&format!("save{mark}"), moved)));
            lines.push(format!("save{mark}: {of_bare:.2} of bare, by the medians"));
            lines.push(agent_mib.line());
        }
        lines
    }
}

/// The heading above [`row`]s.
pub(super) fn heading() -> String {
    format!("{:16} {:>8} {:>8}   {:>30}", "", "GB/s", "s", "CPU s/GB: workload agent store")
}

/// One measurement as a person reads it.
pub(super) fn row(name: &str, moved: &Moved) -> String {
    format!(
        "{name:16} {:8.3} {:8.2}   {:18.2} {:5.2} {:5.2}",
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

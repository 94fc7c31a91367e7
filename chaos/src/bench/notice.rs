//! Who is durable in time: real trainers under the production programs, each node with a notice of
//! its own, by how many share it, the size of their states, the time of a step and the network.
//!
//! The rest of the world is simulated on loopback; the way to the store carries so many bits a
//! second each way, and no more.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::ensure;
use clap::Args;
use fastrand::Rng;
use futures::StreamExt;
use futures::TryStreamExt;
use futures::stream;
use serde::Serialize;

use crate::bench::program;
use crate::bench::save;
use crate::bench::screen;
use crate::bench::screen::say;

mod node;
mod table;

use node::Case;
use node::Load;
use node::Missed;
use table::Cell;

/// Slices of the node.
const TRAINERS_MAX: usize = 8;
/// The share of what fits that must be durable.
const GOAL: f64 = 0.99;

/// Which notices are given, and to whom.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Trainers on the node, 1 to 8.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    pub trainers: Vec<usize>,
    /// Size of each one's state, in MiB.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    pub state_mib: Vec<u64>,
    /// Time of a step, in seconds.
    #[arg(long, value_delimiter = ',', default_value = "0.1,10")]
    pub step: Vec<f64>,
    /// What the node's network carries, in Gbit/s.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub gbit: Vec<f64>,
    /// Notices for each combination of these.
    #[arg(long, default_value_t = 1)]
    pub notices: usize,
    /// Nodes at a time.
    #[arg(long, default_value_t = 2)]
    pub at_once: usize,
    /// Seconds from a notice to the end of the instance.
    #[arg(long, default_value_t = 120)]
    pub window: u64,
    /// Of a hundred requests to the store, so many are answered with 503.
    #[arg(long, default_value_t = 1)]
    pub refused: u8,
    /// Of a hundred notices, so many are missing in the metadata or in the queue.
    #[arg(long, default_value_t = 5)]
    pub missing: u8,
    /// Of a hundred instances, so many are taken before their time, after half of it or later.
    #[arg(long, default_value_t = 0)]
    pub early: u8,
    /// Bytes of a chunk and of a slot, in MiB.
    #[arg(long, default_value_t = 8)]
    pub chunk_mib: u64,
    /// What chance is drawn from.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the programs lie; the folder of this program, unless said otherwise.
    #[arg(long)]
    pub programs: Option<PathBuf>,
    /// Leaves the logs of all processes in this folder.
    #[arg(long)]
    pub logs: Option<PathBuf>,
    /// Writes the figures as data.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    window: u64,
    refused: u8,
    missing: u8,
    early: u8,
    chunk_mib: u64,
    processors_load: f64,
    cells: Vec<Cell>,
}

/// Measures, prints the table, and answers whether what fits was durable and went on from there.
pub(super) async fn run(options: &Options) -> anyhow::Result<bool> {
    let figures = measure(options).await?;
    figures.lines().iter().for_each(|line| screen::print(line));
    save::keep(options.json.as_ref(), &figures)?;
    Ok(figures.is_well())
}

/// Gives all notices, so many nodes at a time.
pub async fn measure(options: &Options) -> anyhow::Result<Figures> {
    let programs = match &options.programs {
        Some(programs) => programs.clone(),
        None => super::beside_us("")?,
    };
    let folder = tempfile::tempdir()?;
    let logs = options.logs.clone().unwrap_or_else(|| folder.path().to_owned());
    let cases = options.cases()?;
    let (processors_load, count) = (program::load(), cases.len());
    let nodes = cases.iter().enumerate().map(|(number, case)| {
        let (programs, logs) = (&programs, logs.join(format!("node-{number}")));
        async move {
            let seen = node::interrupt(programs, &logs, case).await;
            let seen = seen.with_context(|| format!("node {number}, {case:?}"))?;
            say(&format!("node {} of {count}: {}", number + 1, seen.line()));
            Ok::<_, anyhow::Error>((number, seen))
        }
    });
    let mut seen: Vec<_> =
        stream::iter(nodes).buffer_unordered(options.at_once.max(1)).try_collect().await?;
    seen.sort_by_key(|(number, _)| *number);
    let mut cells: Vec<Cell> = Vec::new();
    for (case, (_, seen)) in cases.iter().zip(seen) {
        match cells.iter_mut().find(|cell| cell.load == case.load) {
            Some(cell) => cell.nodes.push(seen),
            None => cells.push(Cell { load: case.load, nodes: vec![seen] }),
        }
    }
    let Options { window, refused, missing, early, chunk_mib, .. } = *options;
    Ok(Figures { window, refused, missing, early, chunk_mib, processors_load, cells })
}

impl Options {
    /// One case for each notice: what is left to chance is drawn here.
    fn cases(&self) -> anyhow::Result<Vec<Case>> {
        ensure!(
            self.trainers.iter().all(|count| (1..=TRAINERS_MAX).contains(count)),
            "a node holds 1 to {TRAINERS_MAX} trainers"
        );
        ensure!(self.step.iter().all(|step| *step > 0.0), "a step takes time");
        ensure!(self.gbit.iter().all(|gbit| *gbit > 0.0), "a network carries something");
        ensure!(self.window >= 10, "a notice of less than 10 s is none");
        let mut random = Rng::with_seed(self.seed);
        let mut cases = Vec::new();
        for &trainers in &self.trainers {
            for &state_mib in &self.state_mib {
                for &step in &self.step {
                    for &gbit in &self.gbit {
                        let load = Load { trainers, state_mib, step, gbit };
                        let drawn = (0..self.notices.max(1)).map(|_| self.draw(load, &mut random));
                        cases.extend(drawn);
                    }
                }
            }
        }
        Ok(cases)
    }

    fn draw(&self, load: Load, random: &mut Rng) -> Case {
        let mut happens = |of_a_hundred: u8| random.u8(0..100) < of_a_hundred;
        let (missing, early) = (happens(self.missing), happens(self.early));
        let missed = match (missing, random.bool()) {
            (false, _) => Missed::Nothing,
            (true, false) => Missed::Metadata,
            (true, true) => Missed::Queue,
        };
        let window = Duration::from_secs(self.window);
        Case {
            load,
            missed,
            window,
            taken: if early { window.mul_f64(0.5 + random.f64() / 2.0) } else { window },
            after: Duration::from_secs(1) + Duration::from_secs_f64(load.step * random.f64()),
            refused: self.refused,
            chunk_mib: self.chunk_mib,
            seed: random.u64(..),
        }
    }
}

impl Figures {
    /// Whether nearly all that fits was durable, and everything went on from where it was saved.
    pub fn is_well(&self) -> bool {
        let (mut fits, mut durable) = (0, 0);
        for node in self.cells.iter().flat_map(|cell| &cell.nodes) {
            fits += if node.fits { node.states.len() } else { 0 };
            durable += if node.fits { node.durable() } else { 0 };
        }
        let whole = self.cells.iter().flat_map(|cell| &cell.nodes).all(node::Seen::is_whole);
        whole && table::share(durable, fits).is_none_or(|share| share >= GOAL)
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "notices of {} s; of 100 requests {} are refused, of 100 notices {} miss a path, of \
                 100 instances {} are taken early; chunks of {} MiB; load {:.1} before",
                self.window,
                self.refused,
                self.missing,
                self.early,
                self.chunk_mib,
                self.processors_load
            ),
            table::heading(),
        ];
        lines.extend(self.cells.iter().map(Cell::line));
        lines.extend(table::total(&self.cells));
        lines
    }
}

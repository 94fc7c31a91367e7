//! `chaos bench peers`: the same notices for Lifeboat and for two others, each alone on a server of
//! its own, and one table of what each did.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::bench::peers::programs::Programs;
use crate::bench::peers::row::Row;
use crate::bench::peers::stage::Stage;
use crate::bench::peers::subject::Subject;
use crate::bench::peers::subject::Tuning;
use crate::bench::peers::subject::Who;
use crate::bench::screen;

mod claims;
mod instances;
mod programs;
mod row;
mod stage;
mod subject;

/// How the comparison is made.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Nodes that get a notice at once, run after run; 1 is one notice after another.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 500])]
    nodes: Vec<usize>,
    /// Notices one after another, where that is asked for.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Pods on each node; they end as soon as they are asked to.
    #[arg(long, default_value_t = 1)]
    pods: usize,
    /// Only these, in place of all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Who>,
    /// Only these settings, in place of all that somebody has.
    #[arg(long, value_delimiter = ',')]
    settings: Vec<Tuning>,
    /// Seconds for all nodes of a run; what is not fenced by then is counted as lost.
    #[arg(long, default_value_t = 180)]
    within: u64,
    /// Seconds after the last answer in which requests are still counted.
    #[arg(long, default_value_t = 5)]
    settle: u64,
    /// Rows of an earlier run, for the same table.
    #[arg(long)]
    with: Vec<PathBuf>,
    /// Writes the rows as JSON, too.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs it; answers whether our controller lost nothing.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let mut rows = Vec::new();
    for path in &options.with {
        let text = fs::read(path).with_context(|| path.display().to_string())?;
        rows.extend(serde_json::from_slice::<Vec<Row>>(&text)?);
    }
    let earlier = rows.len();
    let subjects = options.subjects();
    let programs = Programs::find(&subjects)?;
    for nodes in &options.nodes {
        for subject in &subjects {
            screen::say(&format!("{subject}, {nodes} node(s)"));
            let row = one(options, &programs, *subject, *nodes).await;
            rows.push(row.with_context(|| format!("{subject}, {nodes} node(s)"))?);
            // What was measured is kept, whatever comes after it.
            if let Some(path) = &options.json {
                fs::write(path, serde_json::to_vec_pretty(&rows[earlier..])?)?;
            }
        }
    }
    rows.sort_by_key(|row| (row.nodes_at_once, row.subject));
    for line in row::lines(&rows) {
        screen::print(&line);
    }
    Ok(rows.iter().all(|row| row.subject.who != Who::Lifeboat || row.lost_nothing()))
}

async fn one(
    options: &Options,
    programs: &Programs,
    subject: Subject,
    nodes_at_once: usize,
) -> anyhow::Result<Row> {
    let nodes = if nodes_at_once == 1 { options.rounds } else { nodes_at_once };
    let mut stage = Stage::set(subject, (nodes, options.pods)).await?;
    let played = stage.play(options, programs, nodes_at_once).await;
    stage.clear().await;
    played
}

impl Options {
    fn subjects(&self) -> Vec<Subject> {
        let all = Subject::ALL.into_iter();
        let named = all.filter(|one| self.only.is_empty() || self.only.contains(&one.who));
        let tuned = |one: &Subject| match one.tuning {
            Some(tuning) => self.settings.is_empty() || self.settings.contains(&tuning),
            None => true,
        };
        named.filter(tuned).collect()
    }

    fn within(&self) -> Duration {
        Duration::from_secs(self.within)
    }

    fn settle(&self) -> Duration {
        Duration::from_secs(self.settle)
    }
}

//! The demo: one whole Spot interruption on this machine, with the production programs as processes.
//!
//! Everything that it prints is read from the records, the bucket, the trainers' own logs and the
//! simulators' counters.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::cast::Cast;
use crate::cast::Ends;
use crate::cast::NODE;
use crate::cast::Outage;
use crate::cast::PACE;
use crate::cast::Play;
use crate::cast::Trainer;
use crate::chronicle::Event;
use crate::demo::screen::Screen;
use crate::demo::verdict::Observation;
use crate::demo::verdict::Row;
use crate::world::instances::NoticeAction;
use crate::world::instances::announce::Announcement;

pub mod real;
mod screen;
mod verdict;

/// The instance's end, counted from the notice: nearer than the two minutes of the event, so that
/// nobody has to wait for them. Deadlines only tighten.
const LEAD: Duration = Duration::from_secs(45);
/// How long the trainers train before the notice.
const TRAINING: Duration = Duration::from_secs(4);
/// When the first act is over at the latest, counted from the notice.
const FIRST_ACT: Duration = Duration::from_secs(75);
/// Steps that each trainer takes in all, a step each tenth of a second.
const STEPS: u64 = 120;
/// State of each trainer: parameters and both moments, 12 bytes for each place of the model.
const STATE_BYTES: u64 = 264 << 20;

/// Two share a GPU, the third has one of its own. The second is behind a budget that allows nothing,
/// of a Job without failure policy, so that its successor is made while it still ends, and takes its
/// time to end.
const TRAINERS: [Trainer; 3] = [
    Trainer { job: "train-a", options: "hold on-signal grace 60s", ends: Ends::AtOnce },
    Trainer {
        job: SLOW,
        options: "hold on-signal grace 30s pdb 0 no-failure-policy",
        ends: Ends::Slowly,
    },
    Trainer { job: "train-c", options: "hold on-signal grace 30s", ends: Ends::AtOnce },
];
/// The trainer behind the budget.
const SLOW: &str = "train-b";

/// What a person can ask of the demo.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the programs lie; the folder of this program, unless said otherwise.
    pub programs: PathBuf,
    /// Where the same is written as data.
    pub json: Option<PathBuf>,
    /// Where the logs of all processes are left; nowhere, unless said.
    pub logs: Option<PathBuf>,
}

/// The demo as data.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether all of it was seen.
    seen: bool,
    acts: Vec<Act>,
}

/// One act as data.
#[derive(Debug, Serialize)]
struct Act {
    title: &'static str,
    observations: Vec<Observation>,
    workloads: Vec<Row>,
    events: Vec<Timed>,
}

#[derive(Debug, Serialize)]
struct Timed {
    /// Seconds since the notice.
    seconds: f64,
    event: String,
}

/// One node of four GPUs, each in two time slices, and the three trainers on it.
fn play() -> Play {
    Play {
        nodes: vec![format!("node {NODE} type g5.12xlarge zone us-east-2a gpus 4 slices 2")],
        trainers: TRAINERS.to_vec(),
        bytes: STATE_BYTES,
        steps: STEPS,
        pace: PACE,
        chunk: "32MiB".to_owned(),
        settings: BTreeMap::new(),
        before_store: Box::new(|store, _| store),
    }
}

/// Plays both acts; says whether everything was seen.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let folder = tempfile::tempdir().context("no folder for the demo")?;
    let logs = options.logs.clone().unwrap_or_else(|| folder.path().join("logs"));
    let first = first_act(options, &folder.path().join("1"), &logs.join("1")).await?;
    let second = second_act(options, &folder.path().join("2"), &logs.join("2")).await?;
    let acts = vec![first, second];
    let seen = acts.iter().flat_map(|act| &act.observations).all(|observation| observation.seen);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&Report { seen, acts })?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    screen::say(if seen { "\nAll of it was seen." } else { "\nNot all of it was seen." });
    Ok(seen)
}

async fn first_act(options: &Options, folder: &Path, logs: &Path) -> anyhow::Result<Act> {
    let title = "Act 1: two minutes' notice, of which this demo uses 45 seconds";
    screen::title(title);
    let mut screen = Screen::new();
    let mut cast = Cast::new(&options.programs, (folder, logs), play()).await?;
    let noticed = notice(&mut cast, &mut screen).await;
    let end = Instant::now() + FIRST_ACT;
    while Instant::now() < end && !verdict::is_over(&cast.events(), &cast.world) {
        follow(&cast, &mut screen, noticed).await;
    }
    let digests = cast.reference_digests().await?;
    let observations = verdict::first(&cast, noticed, &digests);
    Ok(finish(title, cast, noticed, observations).await)
}

async fn second_act(options: &Options, folder: &Path, logs: &Path) -> anyhow::Result<Act> {
    let title = "Act 2: the same, with the API server and the queue both down";
    screen::title(title);
    let mut screen = Screen::new();
    let mut cast = Cast::new(&options.programs, (folder, logs), play()).await?;
    tokio::time::sleep(TRAINING).await;
    cast.outage(Outage::Begins);
    let noticed = notice(&mut cast, &mut screen).await;
    let end = Instant::now() + LEAD;
    while Instant::now() < end && verdict::durable(&cast.events()) < TRAINERS.len() {
        follow(&cast, &mut screen, noticed).await;
    }
    let observations = verdict::second(&cast, noticed);
    Ok(finish(title, cast, noticed, observations).await)
}

/// Lets the trainers train, and then gives the notice.
async fn notice(cast: &mut Cast, screen: &mut Screen) -> Timestamp {
    let trained = Instant::now() + TRAINING;
    cast.all_training().await;
    tokio::time::sleep_until(trained).await;
    let noticed = cast.world.now();
    screen.begin(noticed, cast.events().len());
    let queues = [crate::programs::QUEUE, crate::scenario::KARPENTER_QUEUE];
    cast.world.announce(
        &cast.instance_of(NODE),
        Announcement {
            action: NoticeAction::Terminate,
            lead: LEAD,
            imds_after: Some(Duration::ZERO),
            queues: &queues,
        },
    );
    noticed
}

async fn follow(cast: &Cast, screen: &mut Screen, noticed: Timestamp) {
    tokio::time::sleep(Duration::from_millis(100)).await;
    screen.show(&cast.events(), &cast.world, noticed);
}

async fn finish(
    title: &'static str,
    cast: Cast,
    noticed: Timestamp,
    observations: Vec<Observation>,
) -> Act {
    let events = cast.events();
    let workloads = verdict::rows(&events, noticed);
    screen::observations(&observations);
    screen::table(&workloads);
    let timed = |event: &Event| Timed {
        seconds: event.at.duration_since(noticed).as_secs_f64(),
        event: event.what.to_string(),
    };
    let events = events.iter().filter(|event| event.at >= noticed).map(timed).collect();
    cast.end().await;
    Act { title, observations, workloads, events }
}

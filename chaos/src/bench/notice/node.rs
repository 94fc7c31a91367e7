//! One node with trainers, which EC2 takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use anyhow::ensure;
use jiff::Timestamp;
use lifeboat_checkpoint::manifest::Kind;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::bench::link;
use crate::cast::Cast;
use crate::cast::Ends;
use crate::cast::NODE;
use crate::cast::Play;
use crate::cast::Trainer;
use crate::checkers;
use crate::chronicle::What;
use crate::faults::Faults;
use crate::faults::Plan;
use crate::faults::WireName;
use crate::programs::QUEUE;
use crate::scenario::KARPENTER_QUEUE;
use crate::wire::Wire;
use crate::wire::call;
use crate::wire::collect;
use crate::wire::full;
use crate::wire::wire;
use crate::world::cluster::object;
use crate::world::instances::NoticeAction;
use crate::world::instances::announce::Announcement;

/// The Jobs.
const JOBS: [&str; super::TRAINERS_MAX] =
    ["train-a", "train-b", "train-c", "train-d", "train-e", "train-f", "train-g", "train-h"];
/// Where they go on: it is there already, so that nobody waits for a machine.
const SPARE: &str = "node gpu-2 type g6.12xlarge zone us-east-2b gpus 4 slices 2";
/// When all train, at the latest.
const START: Duration = Duration::from_mins(3);
/// When all have gone on, at the latest, counted from the end of the instance.
const AFTER: Duration = Duration::from_mins(2);
/// Time of a window that is kept, and the part of the rate that is counted on, in what fits.
const KEPT: f64 = 5.0;
const COUNTED_ON: f64 = 0.85;
/// What a restore may take beyond the way of its bytes at 0.9 of the rate.
const RESUME: f64 = 3.0;
/// Bytes in flight: those of so much time, as the default of `store.inFlight` is at 2.5 Gbit/s.
const IN_FLIGHT: f64 = 0.8;

/// What stands on a node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Load {
    pub(super) trainers: usize,
    /// Of each.
    pub(super) state_mib: u64,
    /// Seconds.
    pub(super) step: f64,
    pub(super) gbit: f64,
}

/// Which path a notice misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Missed {
    Nothing,
    Metadata,
    Queue,
}

/// One notice, and what goes wrong meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) load: Load,
    pub(super) missed: Missed,
    /// What the notice says.
    pub(super) window: Duration,
    /// When the instance is taken, from the notice.
    pub(super) taken: Duration,
    /// How long all train before the notice.
    pub(super) after: Duration,
    /// Of a hundred requests to the store.
    pub(super) refused: u8,
    pub(super) chunk_mib: u64,
    pub(super) seed: u64,
}

/// What became of one node.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Seen {
    pub(super) missed: Missed,
    /// When it was taken, in seconds from the notice.
    pub(super) taken: f64,
    /// Whether all its states together fit.
    pub(super) fits: bool,
    pub(super) states: Vec<State>,
    /// Requests that were answered with 503.
    pub(super) refused: usize,
    /// From the last manifest to the last trainer that went on, in seconds.
    pub(super) resume: Option<f64>,
    /// What that may take.
    pub(super) resume_most: f64,
    /// What is wrong with the bucket.
    pub(super) broken: Vec<String>,
}

/// What became of one trainer, in seconds from the notice.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct State {
    /// Its first step that was complete.
    pub(super) boundary: Option<f64>,
    /// Its manifest.
    pub(super) durable: Option<f64>,
    /// Its successor had its state back, and began the next step.
    pub(super) resumed: Option<f64>,
    pub(super) saved_step: Option<u64>,
    pub(super) resumed_step: Option<u64>,
}

/// Has a node taken, and looks until everything that was saved goes on.
pub(super) async fn interrupt(programs: &Path, logs: &Path, trial: &Case) -> anyhow::Result<Seen> {
    let folder = tempfile::tempdir()?;
    let refusals = format!("s3 503 method PUT path /chunks/ chance {}", trial.refused);
    let faults = Faults::new(refusals.parse::<Plan>()?, trial.seed);
    let cast = Cast::new(programs, (folder.path(), logs), trial.play(&faults)).await?;
    let training = tokio::time::timeout(START, cast.all_training()).await;
    training.context("not all trainers began to train")?;
    cast.add_node(SPARE)?;
    tokio::time::sleep(trial.after).await;
    let jobs = &JOBS[..trial.load.trainers];
    ensure!(jobs.iter().all(|job| cast.node_of(job).as_deref() == Some(NODE)), "not on one node");
    let noticed = trial.announce(&cast);
    let seen = follow(&cast, logs, trial, noticed).await;
    let broken = cast.world.read(checkers::bucket).iter().map(ToString::to_string).collect();
    cast.end().await;
    Ok(trial.judge(seen, faults.log().len(), broken))
}

/// Looks until all is over; takes the instance where that is sooner than was said.
async fn follow(cast: &Cast, logs: &Path, trial: &Case, told_at: Timestamp) -> Vec<State> {
    let (begun, instance) = (Instant::now(), cast.instance_of(NODE));
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let since = begun.elapsed();
        if since >= trial.taken && trial.taken < trial.window {
            cast.world.update(|state| state.instances.take(&instance, told_at + trial.taken));
        }
        let states = look(cast, logs, trial, told_at);
        let gone_on = |state: &&State| state.resumed.is_some();
        let saved = states.iter().filter(|state| state.durable.is_some()).count();
        let resumed = states.iter().filter(gone_on).count();
        let all = resumed == states.len();
        let all_that_can = since > trial.taken && resumed >= saved;
        if all || all_that_can || since > trial.taken + AFTER {
            return states;
        }
    }
}

impl Case {
    fn play(&self, faults: &Faults) -> Play {
        let (gbit, faults) = (self.load.gbit, faults.clone());
        let chunk = self.chunk_mib << 20;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a moment of a network"
        )]
        let in_flight = (self.rate() * IN_FLIGHT) as u64;
        let in_flight = in_flight.clamp(4 * chunk, (256 << 20).max(4 * chunk));
        let trainer = |job| Trainer { job, options: "grace 30s", ends: Ends::AtOnce };
        Play {
            nodes: vec![format!("node {NODE} type g5.12xlarge zone us-east-2a gpus 4 slices 2")],
            trainers: JOBS[..self.load.trainers].iter().copied().map(trainer).collect(),
            bytes: self.load.state_mib << 20,
            steps: 1_000_000,
            pace: Duration::from_secs_f64(self.load.step),
            chunk: format!("{}MiB", self.chunk_mib),
            settings: BTreeMap::from([(
                "LIFEBOAT_STORE_IN_FLIGHT".to_owned(),
                format!("{}MiB", in_flight >> 20),
            )]),
            before_store: Box::new(move |store, _| {
                link::shaped(gbit, received(faults.before(WireName::S3, "agents", store)))
            }),
        }
    }

    /// Bytes for each second.
    fn rate(&self) -> f64 {
        self.load.gbit * 1e9 / 8.0
    }

    fn announce(&self, cast: &Cast) -> Timestamp {
        let noticed = cast.world.now();
        let both: &[&str] = &[QUEUE, KARPENTER_QUEUE];
        let announcement = Announcement {
            action: NoticeAction::Terminate,
            lead: self.window,
            imds_after: (self.missed != Missed::Metadata).then_some(Duration::ZERO),
            queues: if self.missed == Missed::Queue { &[KARPENTER_QUEUE] } else { both },
        };
        cast.world.announce(&cast.instance_of(NODE), announcement);
        noticed
    }

    /// The bytes of all its states.
    fn bytes(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
        let bytes = ((self.load.state_mib << 20) * self.load.trainers as u64) as f64;
        bytes
    }

    fn judge(&self, states: Vec<State>, refused: usize, broken: Vec<String>) -> Seen {
        let taken = self.taken.as_secs_f64();
        let boundary = latest(&states, |state| state.boundary);
        let fits = boundary.is_some_and(|boundary| {
            self.bytes() <= COUNTED_ON * self.rate() * (taken - KEPT - boundary)
        });
        let durable = latest(&states, |state| state.durable);
        let resumed = latest(&states, |state| state.resumed);
        let resume = durable.zip(resumed).map(|(durable, resumed)| resumed - durable);
        let resume_most = self.bytes() / (0.9 * self.rate()) + RESUME;
        Seen { missed: self.missed, taken, fits, states, refused, resume, resume_most, broken }
    }
}

impl Seen {
    /// How many states were durable in time.
    pub(super) fn durable(&self) -> usize {
        let in_time = |state: &&State| state.durable.is_some_and(|durable| durable <= self.taken);
        self.states.iter().filter(in_time).count()
    }

    /// Whether all that was saved can be read, and went on at its step.
    pub(super) fn is_whole(&self) -> bool {
        let went_on =
            |state: &State| state.saved_step.is_none() || state.saved_step == state.resumed_step;
        self.broken.is_empty() && self.states.iter().all(went_on)
    }

    /// As a person reads it.
    pub(super) fn line(&self) -> String {
        let fits = if self.fits { "fits" } else { "does not fit" };
        let last = latest(&self.states, |state| state.durable);
        let last = last.map_or_else(String::new, |last| format!(", the last at {last:.1} s"));
        format!("{fits}, {} of {} durable{last}", self.durable(), self.states.len())
    }
}

/// The latest of all; none unless each has one.
fn latest(states: &[State], of: impl Fn(&State) -> Option<f64>) -> Option<f64> {
    states.iter().map(of).try_fold(0.0, |latest: f64, one| Some(latest.max(one?)))
}

/// Has a request come whole before it is looked at, so that whoever is refused hears of it.
fn received(inner: Wire) -> Wire {
    wire(move |request| {
        let inner = inner.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = full(collect(body).await?);
            call(&inner, http::Request::from_parts(parts, body)).await
        }
    })
}

/// What became of each trainer so far.
fn look(cast: &Cast, logs: &Path, trial: &Case, noticed: Timestamp) -> Vec<State> {
    let events = cast.events();
    let look_at = |job: &&str| {
        let mut state = State::default();
        let committed = events.iter().find_map(|event| match &event.what {
            What::Committed(commit) if commit.kind == Kind::Save && commit.pod.starts_with(job) => {
                Some((event.at, commit))
            }
            _ => None,
        });
        if let Some((at, commit)) = committed {
            state.durable = Some(at.duration_since(noticed).as_secs_f64());
            state.saved_step = Some(commit.step);
        }
        state.hear(&diary(logs, job), noticed);
        state
    };
    JOBS[..trial.load.trainers].iter().map(look_at).collect()
}

/// All that the pods of a Job wrote into their logs.
fn diary(logs: &Path, job: &str) -> Vec<Value> {
    let files = std::fs::read_dir(logs).into_iter().flatten().flatten();
    let own = files.filter(|file| {
        let name = file.file_name().to_string_lossy().into_owned();
        name.starts_with(job) && Path::new(&name).extension().is_some_and(|kind| kind == "jsonl")
    });
    let texts = own.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default());
    texts
        .flat_map(|text| text.lines().map(serde_json::from_str).collect::<Vec<_>>())
        .filter_map(Result::ok)
        .collect()
}

impl State {
    fn hear(&mut self, entries: &[Value], noticed: Timestamp) {
        for entry in entries {
            let at = object::number(entry, "/unix_ms").unwrap_or(0) - noticed.as_millisecond();
            if at < 0 {
                continue;
            }
            #[expect(clippy::cast_precision_loss, reason = "some minutes")]
            let at = at as f64 / 1000.0;
            let number = |name: &str| {
                object::number(entry, name).and_then(|number| u64::try_from(number).ok())
            };
            match object::text(entry, "/event") {
                "step" => {
                    self.boundary = Some(self.boundary.map_or(at, |first| first.min(at)));
                }
                "training" => {
                    self.resumed = Some(at);
                    self.resumed_step = number("/from");
                }
                _ => (),
            }
        }
        // A step of the successor's is none of its own.
        self.boundary = self.boundary.filter(|own| self.resumed.is_none_or(|next| *own < next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load { trainers: 2, state_mib: 100, step: 1.0, gbit: 0.1 };

    fn case(taken: u64) -> Case {
        let second = Duration::from_secs;
        let (window, taken, after) = (second(120), second(taken), second(1));
        let missed = Missed::Nothing;
        Case { load: LOAD, missed, window, taken, after, refused: 0, chunk_mib: 8, seed: 1 }
    }

    fn state(boundary: Option<f64>, durable: Option<f64>) -> State {
        State { boundary, durable, ..State::default() }
    }

    #[test]
    fn what_fits_is_what_goes_over_the_wire_between_the_last_boundary_and_the_end() {
        // 210 MB at 0.85 of 12.5 MB/s: 19.7 s.
        let fits = |taken: u64, boundaries: [Option<f64>; 2]| {
            let states = boundaries.map(|boundary| state(boundary, None)).to_vec();
            case(taken).judge(states, 0, Vec::new()).fits
        };
        assert!(fits(120, [Some(0.5), Some(95.0)]));
        assert!(!fits(120, [Some(0.5), Some(95.5)]));
        assert!(!fits(60, [Some(0.5), Some(36.0)]));
        assert!(!fits(120, [Some(0.5), None]));
    }

    #[test]
    fn what_is_durable_after_the_end_is_not() {
        let states = vec![state(Some(1.0), Some(59.0)), state(Some(1.0), Some(61.0))];
        assert_eq!(case(60).judge(states.clone(), 0, Vec::new()).durable(), 1);
        assert_eq!(case(120).judge(states, 0, Vec::new()).durable(), 2);
    }

    #[test]
    fn a_state_that_went_on_elsewhere_than_it_was_saved_is_not_whole() {
        let at = |saved_step, resumed_step| {
            let state = State { saved_step, resumed_step, ..State::default() };
            case(120).judge(vec![state], 0, Vec::new()).is_whole()
        };
        assert!(at(Some(7), Some(7)));
        assert!(at(None, Some(0)));
        assert!(!at(Some(7), Some(6)));
        assert!(!at(Some(7), None));
    }
}

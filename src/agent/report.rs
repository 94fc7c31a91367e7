//! Tells others: the agent's parts of the records. Best effort, retried, and never waited for.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::ids::JobKey;
use lifeboat_domain::ids::NodeName;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::facts::Told;
use lifeboat_domain::node::outlook;
use lifeboat_domain::node::outlook::Outlook;
use lifeboat_domain::node::plan;
use lifeboat_domain::signal::Signal;
use lifeboat_domain::signal::SignalKey;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::Mode;
use lifeboat_domain::workload::Report;
use lifeboat_domain::workload::Stored;
use tokio::time::Instant;
use tracing::warn;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::checkpoints;
use crate::adapters::cluster::interruptions;
use crate::adapters::cluster::interruptions::Subject;
use crate::agent::bell::Bell;
use crate::agent::listen::Ears;
use crate::agent::listen::objects::Objects;
use crate::clock::Clock;
use crate::crd::convert;
use crate::crd::node_interruption::Save;
use crate::crd::node_interruption::SaveState;
use crate::crd::node_interruption::Workload;
use crate::crd::workload_checkpoint;
use crate::crd::workload_checkpoint::Newest;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// First pause after a record was not written; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Who writes, in the names of field managers.
const BY: &str = "agent";

/// Field manager of `WorkloadCheckpoint.status.newest`.
const NEWEST_MANAGER: &str = "lifeboat-agent-newest";

/// Field manager of `WorkloadCheckpoint.status.outlook`.
const OUTLOOK_MANAGER: &str = "lifeboat-agent-outlook";

/// What others are told, and were told.
#[derive(Debug, Clone)]
pub struct Reporter {
    desk: Arc<Mutex<Desk>>,
    wanted: Bell,
    done: Bell,
}

/// Where reports go, and whose they are.
#[derive(Clone)]
pub struct Post {
    /// The API server.
    pub cluster: Cluster,
    /// What the agent heard.
    pub ears: Ears,
    /// What the node's objects say.
    pub objects: Objects,
    /// The node.
    pub node: NodeName,
    /// The time.
    pub clock: Clock,
}

/// What is to be told of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The pod.
    pub pod: PodRef,
    /// Its index.
    pub job_key: Option<JobKey>,
    /// How it is saved.
    pub mode: Mode,
    /// When it was asked, if it was.
    pub asked_at: Option<Timestamp>,
    /// What is told.
    pub report: Report,
    /// What is to be expected of its save.
    pub outlook: Option<Outlook>,
    /// How long it stood still for the last save after which it went on.
    pub stall: Option<Duration>,
    /// Whom.
    pub to: plan::Records,
    /// Whether it can be dropped for one that matters more.
    pub weight: Weight,
}

/// How much a report matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Something has changed.
    Edge,
    /// Only numbers have moved.
    Progress,
}

/// That the work of a job key is done.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    pod: PodRef,
    job_key: JobKey,
    stored: Stored,
}

/// Whether a workload could be saved if its node were interrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Forecast {
    pod: PodRef,
    job_key: JobKey,
    outlook: Outlook,
    at: Timestamp,
}

#[derive(Debug, Default)]
struct Desk {
    waiting: BTreeMap<PodUid, Letter>,
    told: BTreeMap<PodUid, (Report, Timestamp)>,
    newest: BTreeMap<PodUid, Stored>,
    /// What would come of an interruption, by the pod, and whether that was written.
    forecasts: BTreeMap<PodUid, (Forecast, bool)>,
    /// Whose work is done, by its index, and whether that was written.
    finished: BTreeMap<PodUid, (End, bool)>,
    recorded: BTreeSet<SignalKey>,
    writing: bool,
}

impl Reporter {
    /// Nothing told, nothing to tell. `bell` hears of what was told.
    pub fn new(bell: Bell) -> Self {
        Self { desk: Arc::default(), wanted: Bell::new(), done: bell }
    }

    /// Puts a letter on the desk, over the last one about the same pod.
    pub fn tell(&self, letter: Letter) {
        let mut desk = self.desk();
        // An estimate alone is no reason to write.
        let waits = desk.waiting.get(&letter.pod.uid);
        let known = waits.map(|waits| Letter { outlook: letter.outlook, ..waits.clone() });
        let is_news = known.as_ref() != Some(&letter);
        desk.waiting.insert(letter.pod.uid.clone(), letter);
        if is_news {
            self.wanted.ring();
        }
    }

    /// Puts on the desk whether a pod's workload could be saved if the node were interrupted.
    pub fn foretell(&self, (pod, job_key): (&PodRef, &JobKey), outlook: Outlook, at: Timestamp) {
        let forecast = Forecast { pod: pod.clone(), job_key: job_key.clone(), outlook, at };
        self.desk().forecasts.insert(pod.uid.clone(), (forecast, false));
        self.wanted.ring();
    }

    /// Puts on the desk that the work of a pod's job key is done; once is enough.
    pub fn finished(&self, pod: &PodRef, job_key: &JobKey, stored: Stored) {
        let end = End { pod: pod.clone(), job_key: job_key.clone(), stored };
        let mut desk = self.desk();
        if desk.finished.get(&pod.uid).is_none_or(|(known, _)| *known != end) {
            desk.finished.insert(pod.uid.clone(), (end, false));
            self.wanted.ring();
        }
    }

    /// What others were last told of a pod.
    pub fn told(&self, pod: &PodUid) -> Told {
        match self.desk().told.get(pod) {
            Some((report, at)) => Told::Report { report: report.clone(), at: *at },
            None => Told::Nothing,
        }
    }

    /// Forgets a pod that is over, once all about it was told.
    pub fn forget(&self, pod: &PodUid) {
        let mut desk = self.desk();
        desk.told.remove(pod);
        desk.newest.remove(pod);
        desk.forecasts.remove(pod);
        desk.finished.remove(pod);
    }

    /// Returns when nothing waits to be told.
    pub async fn drained(&self) {
        let mut done = self.done.ear();
        while !self.is_idle() {
            done.rung().await;
        }
    }

    /// Writes what there is to tell, for ever.
    pub async fn run(&self, post: Post) {
        let (mut wanted, mut heard) = (self.wanted.ear(), post.ears.ear());
        let mut pause = PAUSE_MIN;
        loop {
            let written = match self.pass(&post).await {
                Some(Ok(())) => {
                    pause = PAUSE_MIN;
                    continue;
                }
                Some(Err(error)) => Err(error),
                None => Ok(()),
            };
            if let Err(error) = written {
                metrics::error("cluster", error.label());
                warn!(error = %Chain(&error), "record not written, it is tried again");
                self.rest(pause, &mut wanted).await;
                pause = (pause * 2).min(PAUSE_MAX);
                continue;
            }
            tokio::select! {
                biased;
                () = wanted.rung() => (),
                () = heard.rung() => (),
            }
        }
    }

    /// One write, or `None` if there is none to do. What was heard comes before what was done.
    async fn pass(&self, post: &Post) -> Option<Result<(), ClusterError>> {
        if let Some((subject, signal)) = self.unrecorded(post) {
            let answer = interruptions::record(&post.cluster, &subject, &signal, BY).await;
            if answer.is_ok() {
                self.desk().recorded.insert(signal.key());
            }
            return Some(answer);
        }
        let end = self.desk().finished.values().find(|(_, told)| !told).map(|(end, _)| end.clone());
        if let Some(end) = end {
            let answer = write_end(post, &end).await;
            if answer.is_ok() {
                self.desk().finished.insert(end.pod.uid.clone(), (end, true));
            }
            return Some(answer);
        }
        let Some(letter) = self.take() else { return self.forecast(post).await };
        let answer = write(post, &letter, self.newest(&letter)).await;
        self.put_away(letter, answer.is_ok(), post.clock.now());
        self.done.ring();
        Some(answer)
    }

    /// The next forecast, once there is nothing that matters more.
    async fn forecast(&self, post: &Post) -> Option<Result<(), ClusterError>> {
        let next = self.desk().forecasts.values().find(|(_, told)| !told).cloned();
        let (forecast, _) = next?;
        let answer = write_forecast(post, &forecast).await;
        let mut desk = self.desk();
        if let Some((known, told)) = desk.forecasts.get_mut(&forecast.pod.uid) {
            *told = answer.is_ok() && *known == forecast;
        }
        Some(answer)
    }

    /// A signal of our own that is not on the record, once it is known whose record that is.
    fn unrecorded(&self, post: &Post) -> Option<(Subject, Signal)> {
        let subject = subject(post)?;
        let signals = post.ears.signals();
        let desk = self.desk();
        let signal = signals.iter().find(|signal| !desk.recorded.contains(&signal.key()))?;
        Some((subject, signal.clone()))
    }

    fn take(&self) -> Option<Letter> {
        let mut desk = self.desk();
        let next = desk.waiting.iter().min_by_key(|(uid, letter)| (letter.weight, *uid));
        let uid = next.map(|(uid, _)| uid.clone())?;
        desk.writing = true;
        desk.waiting.remove(&uid)
    }

    /// The manifest that the index does not name yet.
    fn newest(&self, letter: &Letter) -> Option<Stored> {
        let stored = match &letter.report.checkpoint {
            Checkpoint::Durable(stored) => Some(*stored),
            Checkpoint::Idle
            | Checkpoint::Asked
            | Checkpoint::Saving { .. }
            | Checkpoint::Failed { .. }
            | Checkpoint::Unknown => letter.report.insurance,
        };
        stored.filter(|stored| self.desk().newest.get(&letter.pod.uid) != Some(stored))
    }

    fn put_away(&self, letter: Letter, written: bool, now: Timestamp) {
        let newest = self.newest(&letter);
        let mut desk = self.desk();
        desk.writing = false;
        let uid = letter.pod.uid.clone();
        if !written {
            desk.waiting.entry(uid).or_insert(letter);
            return;
        }
        if let Some(newest) = newest {
            desk.newest.insert(uid.clone(), newest);
        }
        desk.told.insert(uid, (letter.report, now));
    }

    /// A change that comes meanwhile does not shorten the pause: the server is in trouble.
    async fn rest(&self, pause: Duration, wanted: &mut crate::agent::bell::Ear) {
        let until = Instant::now() + pause;
        while tokio::time::timeout_at(until, wanted.rung()).await.is_ok() {}
        self.wanted.ring();
    }

    fn is_idle(&self) -> bool {
        let desk = self.desk();
        let told = desk.finished.values().all(|(_, told)| *told);
        desk.waiting.is_empty() && !desk.writing && told
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Nothing that can panic runs under the lock.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write(post: &Post, letter: &Letter, newest: Option<Stored>) -> Result<(), ClusterError> {
    if let (Some(stored), Some(key)) = (newest, &letter.job_key) {
        let index = (letter.pod.namespace.as_str(), key.as_str());
        let insured = letter.report.insurance == Some(stored);
        let stall = letter.stall.filter(|_| insured);
        let newest = Newest {
            stall_milliseconds: stall
                .map(|stall| u64::try_from(stall.as_millis()).unwrap_or(u64::MAX)),
            ..newest_of(post, &letter.pod, stored)
        };
        checkpoints::record_newest(&post.cluster, index, NEWEST_MANAGER, (&newest, None)).await?;
    }
    match letter.to {
        plan::Records::Checkpoint => index(post, letter).await,
        plan::Records::InterruptionAndCheckpoint => interruption(post, letter).await,
    }
}

/// The work is done: its index says so, and names the epoch that says it in the bucket.
async fn write_end(post: &Post, end: &End) -> Result<(), ClusterError> {
    let index = (end.pod.namespace.as_str(), end.job_key.as_str());
    let newest = newest_of(post, &end.pod, end.stored);
    checkpoints::record_newest(&post.cluster, index, NEWEST_MANAGER, (&newest, Some(true))).await
}

async fn write_forecast(post: &Post, forecast: &Forecast) -> Result<(), ClusterError> {
    let (pod, outlook) = (&forecast.pod, &forecast.outlook);
    let index = (pod.namespace.as_str(), forecast.job_key.as_str());
    let told = workload_checkpoint::Outlook {
        fits: !outlook.is_too_late(),
        pod: pod.name.to_string(),
        node: post.node.to_string(),
        at: forecast.at,
        bytes: outlook.bytes,
        window: outlook::WINDOW.as_secs(),
        needed: outlook.eta.as_secs(),
        bytes_per_second: outlook.rate.bytes_per_second,
        by: outlook.rate.basis.label().to_owned(),
    };
    checkpoints::record_outlook(&post.cluster, index, OUTLOOK_MANAGER, &told).await
}

fn newest_of(post: &Post, pod: &PodRef, stored: Stored) -> Newest {
    Newest {
        epoch: stored.epoch.0,
        step: stored.step.map(|step| step.0),
        bytes: stored.bytes,
        durable_at: stored.at,
        pod_uid: pod.uid.to_string(),
        node: post.node.to_string(),
        stall_milliseconds: None,
    }
}

/// A pod that is ended while nothing interrupts its node: its successor waits for this word.
async fn index(post: &Post, letter: &Letter) -> Result<(), ClusterError> {
    let save = convert::save_to_wire(&letter.report.checkpoint, letter.asked_at);
    let save = save.filter(|save| save.state != SaveState::Idle);
    let (Some(save), Some(key)) = (save, &letter.job_key) else { return Ok(()) };
    let now = post.clock.now();
    let expected = letter.outlook.map(|outlook| convert::expected_to_wire(&outlook, now));
    let save = Save { told_at: Some(now), expected, ..save };
    let (namespace, uid) = (letter.pod.namespace.as_str(), letter.pod.uid.as_str());
    let manager = format!("lifeboat-{BY}-{uid}");
    checkpoints::record_save(&post.cluster, (namespace, key.as_str()), &manager, (uid, &save)).await
}

/// Without an instance id nobody knows which record it would be; the index was told all the same.
async fn interruption(post: &Post, letter: &Letter) -> Result<(), ClusterError> {
    let known = post.ears.instance();
    let watched = || post.objects.interruption(None).map(|row| row.instance);
    let Some(instance) = known.or_else(watched) else { return Ok(()) };
    let mut part = Workload {
        namespace: letter.pod.namespace.to_string(),
        pod: letter.pod.name.to_string(),
        job_key: letter.job_key.as_ref().map(ToString::to_string),
        mode: Some(letter.mode.label().to_owned()),
        save: None,
        insurance: None,
        slices: None,
        release: None,
        drain: None,
    };
    convert::report_to_wire(&letter.report, letter.asked_at, &mut part);
    if let (Some(save), Some(outlook)) = (&mut part.save, &letter.outlook) {
        save.expected = Some(convert::expected_to_wire(outlook, post.clock.now()));
    }
    let uid = letter.pod.uid.as_str();
    if matches!(letter.report.checkpoint, Checkpoint::Idle | Checkpoint::Unknown) {
        let row = interruptions::read(&post.cluster, &instance, REQUEST_MAX).await?;
        if let Some(before) = row.and_then(|mut row| row.status.workloads.remove(uid)) {
            keep(&mut part, before);
        }
    }
    interruptions::apply_workload(&post.cluster, &instance, BY, (uid, &part)).await
}

/// What an agent before this one had told, where this one knows nothing of it: an apply takes away
/// what it leaves out, and a saved workload must not look unsaved because the agent started again.
fn keep(part: &mut Workload, before: Workload) {
    part.save = before.save.or(part.save.take());
    part.insurance = part.insurance.take().or(before.insurance);
    part.slices = part.slices.take().or(before.slices);
    if before.release.as_ref().is_some_and(|release| release.released_at.is_some()) {
        part.release = before.release;
    }
}

fn subject(post: &Post) -> Option<Subject> {
    let instance = post.ears.instance()?;
    let identity = post.ears.identity();
    let node = post.objects.node();
    let zone = identity.as_ref().map(|identity| identity.availability_zone.clone());
    Some(Subject {
        instance,
        node: post.node.to_string(),
        zone: zone.or_else(|| node.and_then(|node| node.zone)).unwrap_or_default(),
        instance_type: identity.and_then(|identity| identity.instance_type),
    })
}

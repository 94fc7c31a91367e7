//! What happened in the world, told in order: read from the simulators, never from the programs.
//!
//! The trace of a scenario, the checkers and the demo's timeline all read this.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use serde_json::Value;

use crate::world::State;
use crate::world::World;
use crate::world::cluster::Change;
use crate::world::cluster::Fate;
use crate::world::cluster::object;
use crate::world::cluster::resource::CHECKPOINT;
use crate::world::cluster::resource::INTERRUPTION;
use crate::world::cluster::resource::JOB;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::NODE_CLAIM;
use crate::world::cluster::resource::POD;
use crate::world::queue::PassageKind;
use crate::world::workloads::Diary;

/// Our taint on an interrupted node.
const INTERRUPTED: &str = "lifeboat.dev/interrupted";
/// Our taint on a node that is at risk.
const AT_RISK: &str = "lifeboat.dev/at-risk";
/// Karpenter's taint on a node that it drains.
const DISRUPTED: &str = "karpenter.sh/disrupted";
/// Karpenter's annotation that holds a pod.
const HOLD: &str = "karpenter.sh/do-not-disrupt";

/// What the names of our programs begin with, as the API server sees them.
pub const OURS: &str = "lifeboat";

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A script or demo did something to the world.
    Act(String),
    /// A taint came or went: ours, or Karpenter's.
    Taint {
        /// The node.
        node: String,
        /// The taint, as `fence`, `soft taint`, `disrupted taint`.
        taint: &'static str,
        /// Whether it came.
        came: bool,
        /// Whether the node was cordoned in the same write.
        cordoned: bool,
    },
    /// A hold came or went.
    Hold {
        /// The pod.
        pod: String,
        /// Its UID.
        uid: String,
        /// Whether it came.
        came: bool,
    },
    /// A pod was told to end.
    Ending {
        /// The pod.
        pod: String,
        /// Its UID.
        uid: String,
        /// `evict` or `delete`.
        verb: &'static str,
        /// Who did it, as its user agent or field manager says.
        by: String,
        /// Grace in seconds.
        grace: i64,
    },
    /// One of our programs took away what somebody else had set.
    Lost {
        /// From which object.
        object: String,
        /// What.
        what: String,
    },
    /// A record's deadline was set or moved.
    Deadline {
        /// The node.
        node: String,
        /// Until when.
        until: Timestamp,
        /// Until when it was before.
        before: Option<Timestamp>,
    },
    /// A pod was bound to a node.
    Bound {
        /// The pod.
        pod: String,
        /// The node.
        node: String,
    },
    /// A container ended.
    Exited {
        /// The pod.
        pod: String,
        /// Its UID.
        uid: String,
        /// The exit code.
        code: i64,
    },
    /// A pod is gone.
    Gone {
        /// The pod.
        pod: String,
        /// Its UID.
        uid: String,
    },
    /// A claim came or went.
    Claim {
        /// The claim.
        claim: String,
        /// Whether it came.
        came: bool,
        /// Who made or deleted it.
        by: String,
    },
    /// A record was made.
    Recorded {
        /// The instance.
        instance: String,
        /// The node.
        node: String,
    },
    /// A record has a new phase.
    Phase {
        /// The node.
        node: String,
        /// The phase.
        phase: String,
    },
    /// A record says that a slice was released.
    Released {
        /// The node.
        node: String,
        /// The pod.
        pod: String,
        /// Its UID.
        uid: String,
        /// Processes of the pod that the world has on a GPU at that moment.
        still_there: usize,
    },
    /// A record says how a save stands.
    Save {
        /// The pod.
        pod: String,
        /// Its UID.
        uid: String,
        /// The state.
        state: String,
    },
    /// The index says why an old life is over.
    Ended {
        /// The index's name.
        index: String,
        /// UID of the pod whose life is over.
        uid: String,
        /// The proof.
        proof: String,
    },
    /// A manifest was committed.
    Committed(Commit),
    /// A manifest was refused, because there was one of that epoch or for another reason.
    CommitRefused {
        /// Its key.
        key: String,
        /// HTTP status.
        status: u16,
    },
    /// Objects of a job key were deleted.
    Deleted {
        /// The job key, as its folder is called.
        job_key: String,
        /// How many chunks.
        chunks: usize,
        /// How many manifests of ranks, and pins.
        others: usize,
    },
    /// A message of a queue was deleted or went to the dead-letter queue.
    Message {
        /// The queue.
        queue: String,
        /// What happened.
        fate: &'static str,
        /// Its text.
        body: String,
    },
    /// A Job is complete or failed.
    Job {
        /// Its name.
        job: String,
        /// `Complete` or `Failed`.
        condition: &'static str,
    },
    /// An instance has a new state.
    Instance {
        /// Its id.
        instance: String,
        /// The state.
        state: &'static str,
    },
    /// A workload said something.
    Said(String),
}

/// A manifest that was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Where it lies.
    pub key: String,
    /// What it commits.
    pub kind: Kind,
    /// Its number.
    pub epoch: u64,
    /// Steps completed in its state.
    pub step: u64,
    /// Size of its state.
    pub bytes: u64,
    /// The pod that committed it.
    pub pod: String,
    /// UID of that pod.
    pub uid: String,
}

/// Reads the world from where it left off.
pub struct Chronicle {
    world: World,
    diary: Diary,
    events: Vec<Event>,
    version: u64,
    said: usize,
    accesses: usize,
    deleted: usize,
    passages: BTreeMap<String, usize>,
    instances: BTreeMap<String, &'static str>,
}

impl Chronicle {
    /// Begins with what happens from now on.
    pub fn new(world: &World, diary: &Diary) -> Self {
        let mut chronicle = Self {
            world: world.clone(),
            diary: diary.clone(),
            events: Vec::new(),
            version: 0,
            said: 0,
            accesses: 0,
            deleted: 0,
            passages: BTreeMap::new(),
            instances: BTreeMap::new(),
        };
        chronicle.catch_up();
        chronicle.events.clear();
        chronicle
    }

    /// Tells of something that was done to the world.
    pub fn act(&mut self, what: &str) {
        self.events.push(Event { at: self.world.now(), what: What::Act(what.to_owned()) });
    }

    /// Reads what happened since, and says how many events came.
    pub fn catch_up(&mut self) -> usize {
        let before = self.events.len();
        let (world, now) = (self.world.clone(), self.world.now());
        let whats = world.read(|state| {
            let mut whats = self.of_cluster(state);
            whats.extend(self.of_bucket(state));
            whats.extend(self.of_queues(state));
            whats.extend(self.of_instances(state));
            whats
        });
        self.events.extend(whats.into_iter().map(|what| Event { at: now, what }));
        let lines = self.diary.lines();
        for (at, line) in lines.iter().skip(self.said) {
            self.events.push(Event { at: *at, what: What::Said(line.clone()) });
        }
        self.said = lines.len();
        self.events.len() - before
    }

    /// Everything so far.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    fn of_cluster(&mut self, state: &State) -> Vec<What> {
        let cluster = &state.cluster;
        let since = std::mem::replace(&mut self.version, cluster.version());
        let mut changes: Vec<&Change> = [POD, NODE, NODE_CLAIM, INTERRUPTION, CHECKPOINT, JOB]
            .into_iter()
            .flat_map(|resource| cluster.changes_since(resource, since))
            .collect();
        changes.sort_by_key(|change| change.version);
        changes.into_iter().flat_map(|change| of_change(change, state)).collect()
    }

    fn of_bucket(&mut self, state: &State) -> Vec<What> {
        let log = state.bucket.log();
        let new = &log[self.accesses.min(log.len())..];
        self.accesses = log.len();
        let deleted = &state.bucket.deleted()[self.deleted..];
        self.deleted += deleted.len();
        let deleted = of_deletions(deleted);
        let commits = new
            .iter()
            .filter(|access| access.method == "PUT" && access.key.ends_with("/MANIFEST.json"));
        let commits = commits.filter_map(|access| of_commit(&access.key, access.status, state));
        commits.chain(deleted).collect()
    }

    fn of_queues(&mut self, state: &State) -> Vec<What> {
        let mut whats = Vec::new();
        for queue in state.queues.names() {
            let history = state.queues.history(queue);
            let seen = self.passages.entry(queue.to_owned()).or_default();
            for passage in history.iter().skip(*seen) {
                let fate = match passage.kind {
                    PassageKind::Deleted => "deleted",
                    PassageKind::Redriven => "redriven",
                    PassageKind::Expired => "expired",
                    PassageKind::Sent | PassageKind::Received => continue,
                };
                let body = passage.body.clone();
                whats.push(What::Message { queue: queue.to_owned(), fate, body });
            }
            *seen = history.len();
        }
        whats
    }

    fn of_instances(&mut self, state: &State) -> Vec<What> {
        let mut whats = Vec::new();
        for instance in state.instances.iter() {
            let now = instance.state.as_str();
            let before = self.instances.insert(instance.id.clone(), now);
            if before.is_some_and(|before| before != now) {
                whats.push(What::Instance { instance: instance.id.clone(), state: now });
            }
        }
        whats
    }
}

/// What an answer to the put of a manifest says; none while the bytes are unreadable.
fn of_commit(key: &str, status: u16, state: &State) -> Option<What> {
    let key = key.to_owned();
    if status != 200 {
        return Some(What::CommitRefused { key, status });
    }
    let manifest = Manifest::parse(&state.bucket.read(&key)?).ok()?;
    Some(What::Committed(Commit {
        key,
        kind: manifest.kind,
        epoch: manifest.epoch,
        step: manifest.step,
        bytes: manifest.bytes,
        pod: manifest.holder.pod,
        uid: manifest.holder.pod_uid,
    }))
}

/// What was deleted of each job key, counted.
fn of_deletions(keys: &[String]) -> Vec<What> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for key in keys {
        let folder =
            ["/chunks/", "/epochs/", "/pins/"].iter().find_map(|part| key.split_once(part));
        let (job_key, _) = folder.unwrap_or((key.as_str(), ""));
        let count = counts.entry(job_key).or_default();
        if key.contains("/chunks/") { count.0 += 1 } else { count.1 += 1 }
    }
    let deleted = counts.into_iter().map(|(folder, (chunks, others))| {
        let job_key = folder.rsplit('/').next().unwrap_or(folder).to_owned();
        What::Deleted { job_key, chunks, others }
    });
    deleted.collect()
}

fn of_change(change: &Change, state: &State) -> Vec<What> {
    match change.resource {
        NODE => of_node(change, state),
        POD => of_pod(change, state),
        NODE_CLAIM => of_claim(change, state),
        INTERRUPTION => of_record(change, state),
        CHECKPOINT => of_index(change),
        JOB => of_job(change),
        _ => Vec::new(),
    }
}

fn of_node(change: &Change, state: &State) -> Vec<What> {
    let node = object::name(&change.object).to_owned();
    let before = change.before.as_deref().unwrap_or(&Value::Null);
    let now = if change.fate == Fate::Gone { before } else { &change.object };
    let cordoned = object::is_true(now, "/spec/unschedulable")
        && !object::is_true(before, "/spec/unschedulable");
    let named = [(INTERRUPTED, "fence"), (AT_RISK, "soft taint"), (DISRUPTED, "disrupted taint")];
    let moved = named.into_iter().filter_map(|(key, taint)| {
        let (was, is) = (has_taint(before, key), has_taint(now, key));
        (was != is).then(|| What::Taint { node: node.clone(), taint, came: is, cordoned })
    });
    let mut whats: Vec<What> = moved.collect();
    if change.fate == Fate::Kept && writer(state, change.version).0.starts_with(OURS) {
        let lost = foreign_taints(before).filter(|key| !has_taint(now, key));
        whats.extend(lost.map(|key| What::Lost { object: node.clone(), what: key.to_owned() }));
    }
    whats
}

fn foreign_taints(node: &Value) -> impl Iterator<Item = &str> {
    let keys = object::items(node, "/spec/taints").iter().map(|taint| object::text(taint, "/key"));
    keys.filter(|key| !key.starts_with("lifeboat.dev/"))
}

fn has_taint(node: &Value, key: &str) -> bool {
    object::items(node, "/spec/taints").iter().any(|taint| object::text(taint, "/key") == key)
}

fn of_pod(change: &Change, state: &State) -> Vec<What> {
    let pod = object::name(&change.object).to_owned();
    let uid = object::uid(&change.object).to_owned();
    let before = change.before.as_deref().unwrap_or(&Value::Null);
    if change.fate == Fate::Gone {
        return vec![What::Gone { pod, uid }];
    }
    let mut whats = Vec::new();
    let node = object::text(&change.object, "/spec/nodeName");
    if object::text(before, "/spec/nodeName").is_empty() && !node.is_empty() {
        whats.push(What::Bound { pod: pod.clone(), node: node.to_owned() });
    }
    let held = |object: &Value| object::annotation(object, HOLD) == "true";
    if held(before) != held(&change.object) && (change.before.is_some()) {
        let came = held(&change.object);
        whats.push(What::Hold { pod: pod.clone(), uid: uid.clone(), came });
    }
    if object::is_deleting(&change.object) && !object::is_deleting(before) {
        let (by, _) = writer(state, change.version);
        let evicted = object::items(&change.object, "/status/conditions")
            .iter()
            .any(|condition| object::text(condition, "/reason") == "EvictionByEvictionAPI");
        let verb = if evicted { "evict" } else { "delete" };
        let grace = object::number(&change.object, "/metadata/deletionGracePeriodSeconds");
        let grace = grace.unwrap_or(0);
        whats.push(What::Ending { pod: pod.clone(), uid: uid.clone(), verb, by, grace });
    }
    let exits = |object: &Value| -> Vec<i64> {
        object::items(object, "/status/containerStatuses")
            .iter()
            .flat_map(|status| {
                ["/state/terminated/exitCode", "/lastState/terminated/exitCode"]
                    .into_iter()
                    .filter_map(|path| object::number(status, path))
            })
            .collect()
    };
    let (was, is) = (exits(before), exits(&change.object));
    if is.len() > was.len() {
        let code = is[0];
        whats.push(What::Exited { pod, uid, code });
    }
    whats
}

/// Who made a version, and how.
fn writer(state: &State, version: u64) -> (String, &'static str) {
    let writes = state.cluster.audit.writes();
    let found = writes.iter().rev().find(|write| write.version == version);
    found.map_or((String::new(), ""), |write| (write.caller.agent.clone(), write.verb))
}

fn of_claim(change: &Change, state: &State) -> Vec<What> {
    let claim = object::name(&change.object).to_owned();
    let (by, _) = writer(state, change.version);
    match (&change.before, change.fate) {
        (None, _) => vec![What::Claim { claim, came: true, by }],
        (_, Fate::Gone) => vec![What::Claim { claim, came: false, by }],
        (Some(_), Fate::Kept) => Vec::new(),
    }
}

fn of_record(change: &Change, state: &State) -> Vec<What> {
    if change.fate == Fate::Gone {
        return Vec::new();
    }
    let node = object::text(&change.object, "/spec/node").to_owned();
    let before = change.before.as_deref().unwrap_or(&Value::Null);
    let mut whats = Vec::new();
    if change.before.is_none() {
        let instance = object::name(&change.object).to_owned();
        whats.push(What::Recorded { instance, node: node.clone() });
    }
    let phase = object::text(&change.object, "/status/phase");
    if phase != object::text(before, "/status/phase") {
        whats.push(What::Phase { node: node.clone(), phase: phase.to_owned() });
    }
    let until = object::time(&change.object, "/status/deadline");
    let earlier = object::time(before, "/status/deadline");
    if let Some(until) = until.filter(|_| until != earlier) {
        whats.push(What::Deadline { node: node.clone(), until, before: earlier });
    }
    let workloads = change.object.pointer("/status/workloads").and_then(Value::as_object);
    for (uid, workload) in workloads.into_iter().flatten() {
        let pod = object::text(workload, "/pod").to_owned();
        let old = before.pointer(&format!("/status/workloads/{uid}")).unwrap_or(&Value::Null);
        let saved = object::text(workload, "/save/state");
        if saved != object::text(old, "/save/state") {
            let state = saved.to_owned();
            whats.push(What::Save { pod: pod.clone(), uid: uid.clone(), state });
        }
        let released = |workload: &Value| !object::text(workload, "/release/releasedAt").is_empty();
        if released(workload) && !released(old) {
            let processes = state.machines.get(&node).map(|machine| &machine.processes);
            let still_there = processes
                .map_or(0, |all| all.values().filter(|process| process.pod == *uid).count());
            let (node, uid) = (node.clone(), uid.clone());
            whats.push(What::Released { node, pod, uid, still_there });
        }
    }
    whats
}

fn of_index(change: &Change) -> Vec<What> {
    let before = change.before.as_deref().unwrap_or(&Value::Null);
    let ended = change.object.pointer("/status/ended").and_then(Value::as_object);
    let new = ended
        .into_iter()
        .flatten()
        .filter(|(uid, _)| before.pointer(&format!("/status/ended/{uid}")).is_none());
    new.map(|(uid, ended)| What::Ended {
        index: object::name(&change.object).to_owned(),
        uid: uid.clone(),
        proof: object::text(ended, "/proof").to_owned(),
    })
    .collect()
}

fn of_job(change: &Change) -> Vec<What> {
    let before = change.before.as_deref().unwrap_or(&Value::Null);
    ["Complete", "Failed"]
        .into_iter()
        .filter(|kind| object::condition(&change.object, kind) == "True")
        .filter(|kind| object::condition(before, kind) != "True")
        .map(|condition| What::Job { job: object::name(&change.object).to_owned(), condition })
        .collect()
}

impl fmt::Display for What {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = |came: &bool, comes: &'static str, goes: &'static str| {
            if *came { comes } else { goes }
        };
        match self {
            Self::Act(text) | Self::Said(text) => formatter.write_str(text),
            Self::Taint { node, taint, came, cordoned } => {
                let cordon = if *cordoned { " with cordon" } else { "" };
                let verb = verb(came, "put on", "taken off");
                write!(formatter, "{taint} {verb} {node}{cordon}")
            }
            Self::Hold { pod, came, .. } => {
                write!(formatter, "{} {pod}", verb(came, "hold", "unhold"))
            }
            Self::Ending { pod, verb, by, grace, .. } => {
                write!(formatter, "{verb} {pod} grace {grace}s by {by}")
            }
            Self::Lost { object, what } => write!(formatter, "lost {what} of {object}"),
            Self::Deadline { node, .. } => write!(formatter, "deadline of {node} set"),
            Self::Bound { pod, node } => write!(formatter, "bind {pod} to {node}"),
            Self::Exited { pod, code, .. } => write!(formatter, "{pod} exited {code}"),
            Self::Gone { pod, .. } => write!(formatter, "{pod} gone"),
            Self::Claim { claim, came, by } => {
                write!(formatter, "claim {claim} {} by {by}", verb(came, "made", "gone"))
            }
            Self::Recorded { instance, node } => write!(formatter, "record {node} {instance}"),
            Self::Phase { node, phase } => write!(formatter, "record {node} is {phase}"),
            Self::Released { node, pod, .. } => write!(formatter, "released {pod} on {node}"),
            Self::Save { pod, state, .. } => write!(formatter, "save {pod} {state}"),
            Self::Ended { index, proof, .. } => write!(formatter, "ended {index} {proof}"),
            Self::Committed(commit) => write!(
                formatter,
                "manifest {} epoch {} step {} {}",
                commit.pod,
                commit.epoch,
                commit.step,
                match commit.kind {
                    Kind::Save => "durable",
                    Kind::Claim => "claimed",
                    Kind::Finished => "finished",
                    Kind::Collected => "collected",
                    Kind::Unknown => "unknown",
                }
            ),
            Self::Deleted { job_key, chunks, others } => {
                write!(formatter, "deleted {chunks} chunks and {others} others of {job_key}")
            }
            Self::CommitRefused { key, status } => {
                write!(formatter, "manifest refused {status} {key}")
            }
            Self::Message { queue, fate, .. } => write!(formatter, "message {fate} from {queue}"),
            Self::Job { job, condition } => write!(formatter, "job {job} {condition}"),
            Self::Instance { instance, state } => write!(formatter, "instance {instance} {state}"),
        }
    }
}

/// Follows the world for as long as it is polled, so that each event has its own time.
pub async fn follow(chronicle: Arc<std::sync::Mutex<Chronicle>>) {
    let locked = || chronicle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let world = locked().world.clone();
    loop {
        let generation = world.generation();
        locked().catch_up();
        world.changed_since(generation).await;
    }
}

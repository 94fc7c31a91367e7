//! A life: the ranks that run together for one job key, and what is under way with them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::ids::Epoch;
use lifeboat_domain::ids::JobKey;
use lifeboat_domain::ids::Namespace;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::ids::Step;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::FailReason;
use lifeboat_domain::workload::Mode;
use lifeboat_domain::workload::Proof;
use lifeboat_domain::workload::Purpose;
use lifeboat_domain::workload::Stored;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::agent::workloads::line::Mouth;
use crate::agent::workloads::line::SessionId;
use crate::agent::workloads::restoring;
use crate::agent::workloads::saving;
use crate::agent::workloads::session::State;
use crate::data::save::Committed;
use crate::data::save::Stock;
use crate::data::spool::Spool;

/// Numbers the lives that this agent has met.
pub(super) type LifeId = u64;

/// Who speaks on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    /// The workload, by its SDK.
    Itself,
    /// The agent, for a workload that says nothing: it counts no steps, and does not park.
    StandIn,
}

/// One rank's connection.
#[derive(Debug)]
pub(super) struct Session {
    /// The pod whose socket it came through: its identity.
    pub(super) pod: PodUid,
    /// Who speaks.
    pub(super) speaker: Speaker,
    /// Its process, as the node numbers it.
    pub(super) pid: Option<u32>,
    /// What it is told.
    pub(super) mouth: Mouth,
    /// Where it is.
    pub(super) state: State,
    /// When its line is cut unless it has said hello.
    pub(super) hello_by: Instant,
    /// Its place, once it has said hello.
    pub(super) member: Option<Member>,
    /// Steps completed, as it last said.
    pub(super) step: Option<u64>,
    /// How long a step takes, as it last said.
    pub(super) step_time: Option<Duration>,
    /// Size of its state, as it last said.
    pub(super) bytes: Option<u64>,
    /// The step at which it says it was parked before its line broke.
    pub(super) parked_at: Option<u64>,
    /// It asked for the newest state, newer than its own where it has one, and has none yet.
    pub(super) wants: Option<Wants>,
    /// When it saw SIGTERM.
    pub(super) terminating: Option<(jiff::Timestamp, Instant)>,
    /// It was told that there is nothing to wait for.
    pub(super) left: bool,
    /// Since when it has been parked for a reason of an agent before this one.
    pub(super) parked_since: Option<Instant>,
    /// Where its words during a save go.
    pub(super) saving: Option<mpsc::Sender<saving::FromRank>>,
    /// Where its words during a restore go.
    pub(super) restoring: Option<mpsc::Sender<restoring::FromRank>>,
}

/// A rank's wish for the newest state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wants {
    /// Only one of more steps than this.
    pub(super) newer_than: Option<u64>,
    /// When it asked.
    pub(super) since: Instant,
}

/// A session's place in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The life.
    pub(super) life: LifeId,
    /// The rank.
    pub(super) rank: u32,
}

/// What makes two ranks one life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// The namespace.
    pub(super) namespace: Namespace,
    /// The job key; without one nothing is saved or restored.
    pub(super) job_key: Option<JobKey>,
    /// Tells this life from others of the same job key.
    pub(super) run: String,
    /// How many ranks there are.
    pub(super) world: u32,
}

/// The ranks that run together.
#[derive(Debug)]
pub(super) struct Life {
    /// Whose it is.
    pub(super) identity: Identity,
    /// Who speaks for it.
    pub(super) speaker: Speaker,
    /// How many of its ranks are here.
    pub(super) here: u32,
    /// The pods it runs in; the first one holds the job key.
    pub(super) pods: Vec<PodUid>,
    /// Its ranks; none where the line is broken.
    pub(super) ranks: BTreeMap<u32, Option<SessionId>>,
    /// How its history stands.
    pub(super) standing: Standing,
    /// The epoch whose state it went on from, or saved last.
    pub(super) parent: Option<u64>,
    /// The chunks of that epoch, if it is the newest that has any: only those are not stored again.
    pub(super) digests: Arc<Stock>,
    /// What is under way.
    pub(super) deed: Deed,
    /// What came of what its pods were last asked.
    pub(super) outcome: Outcome,
    /// What it saved last.
    pub(super) saved: Option<Stored>,
    /// The epoch that says that its work is done.
    pub(super) finished: Option<Stored>,
    /// Its last save in case.
    pub(super) insurance: Option<Stored>,
    /// Why the save in case that was asked for last will not be.
    pub(super) uninsured: Option<FailReason>,
    /// Opens the gate of its restore.
    pub(super) proof: watch::Sender<Option<Proof>>,
    /// When a save after which it goes on ended last, however it ended; or since when it runs.
    pub(super) tried_at: jiff::Timestamp,
    /// How long it stood still for the last such save.
    pub(super) stall: Option<Duration>,
    /// What its last save went through.
    pub(super) passage: Passage,
}

/// What a state goes through on its way to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// It was not saved yet.
    Unknown,
    /// A ring: the workload stands still until its last byte is stored.
    Ring,
    /// Files: it stands still until they are handed over.
    Files,
}

/// How a life's history stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has claimed nothing yet.
    Unclaimed,
    /// It goes on from an agent before this one, or a write of it was given up: the bucket knows.
    Unknown,
    /// This is its last number.
    Claimed(u64),
    /// Its work is done.
    Finished,
}

/// What came of a save that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing yet.
    Pending,
    /// It is durable, and the ranks are parked or gone.
    Durable(Stored),
    /// It will not be.
    Failed(FailReason),
}

/// What is under way.
#[derive(Debug)]
pub(super) enum Deed {
    /// Nothing.
    Nothing,
    /// The bucket is asked how the history stands.
    Looking {
        /// The task.
        _task: Task,
    },
    /// It takes the job key over with a state of its own, once the last holder has ended.
    Claiming {
        /// The task.
        _task: Task,
        /// What it waits for.
        waiting: watch::Receiver<Option<restoring::Holder>>,
    },
    /// It is restored.
    Restoring {
        /// The task.
        _task: Task,
        /// What it waits for.
        waiting: watch::Receiver<Option<restoring::Holder>>,
    },
    /// It is saved.
    Saving(Save),
    /// The end of its work is stored.
    Finishing {
        /// The task.
        _task: Task,
    },
}

/// A task that ends with what it is done for.
#[derive(Debug)]
pub(super) struct Task(pub(super) AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A save under way.
#[derive(Debug)]
pub(super) struct Save {
    /// Its number on the lines.
    pub(super) number: u64,
    /// Why.
    pub(super) purpose: Purpose,
    /// Until when.
    pub(super) deadline: Option<Deadline>,
    /// When it began.
    pub(super) began: jiff::Timestamp,
    /// How far it is.
    pub(super) stage: Stage,
    /// What is said if the ranks are not all there in time.
    pub(super) excuse: FailReason,
    /// How often it began anew because a line broke.
    pub(super) again: u32,
    /// How long the workload stands still for it.
    pub(super) stand: Stand,
    /// When the last byte of the last rank was taken, so that it was told to go on.
    pub(super) taken: Arc<Mutex<Option<Instant>>>,
}

/// How long a workload stands still for a save.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stand {
    /// When it was told at which step.
    pub(super) told: Option<Instant>,
    /// When it began to hand over.
    pub(super) begun: Option<Instant>,
    /// When it had handed over all.
    pub(super) ended: Option<Instant>,
    /// Whether any of it went through a ring.
    pub(super) by_ring: bool,
    /// When the last byte of it was taken.
    pub(super) taken: Option<Instant>,
}

impl Stand {
    /// How long it stood still, now that its save is committed. Not what it took it to put its state
    /// together before it handed that over: nobody tells us.
    pub(super) fn stall(&self, mode: Mode, now: Instant) -> Duration {
        let span = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to).map_or(Duration::ZERO, |(from, to)| to.saturating_duration_since(from))
        };
        match mode {
            // It runs on while its folder is read.
            Mode::Directory => Duration::ZERO,
            Mode::Http => span(self.told, self.begun),
            Mode::Sdk | Mode::Sigterm | Mode::None | Mode::Unknown => {
                let taken = self.taken.or(Some(now));
                span(self.begun, if self.by_ring { taken } else { self.ended })
            }
        }
    }
}

/// How far a save is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Not all ranks are there.
    Gathering {
        /// When that is given up.
        until: Instant,
    },
    /// The ranks were asked for their steps.
    Agreeing {
        /// When that is given up.
        until: Instant,
    },
    /// They hand over.
    HandingOver {
        /// The task that takes and stores.
        _task: Task,
        /// Lets it store.
        go: watch::Sender<bool>,
        /// Bytes announced by each rank that has begun.
        begun: BTreeMap<u32, u64>,
    },
}

impl Life {
    /// A life without ranks yet.
    pub(super) fn new(
        identity: Identity,
        here: u32,
        standing: Standing,
        now: jiff::Timestamp,
    ) -> Self {
        Self {
            identity,
            speaker: Speaker::Itself,
            here,
            pods: Vec::new(),
            ranks: BTreeMap::new(),
            standing,
            parent: None,
            digests: Arc::default(),
            deed: Deed::Nothing,
            outcome: Outcome::Pending,
            saved: None,
            finished: None,
            insurance: None,
            uninsured: None,
            proof: watch::Sender::new(None),
            tried_at: now,
            stall: None,
            passage: Passage::Unknown,
        }
    }

    /// Since when it could be saved in the background; none if it cannot, or nobody knows: without a
    /// spool, what goes through a ring would hold it up for as long as the upload takes.
    pub(super) fn background_since(&self, spool: Option<&Spool>) -> Option<jiff::Timestamp> {
        let goes_on = match (self.speaker, self.passage) {
            (Speaker::StandIn, _) | (Speaker::Itself, Passage::Files) => true,
            (Speaker::Itself, Passage::Ring | Passage::Unknown) => spool.is_some(),
        };
        let claimed = matches!(self.standing, Standing::Claimed(_));
        let may = goes_on && claimed && self.identity.job_key.is_some();
        may.then(|| self.saved.map_or(self.tried_at, |saved| saved.at.max(self.tried_at)))
    }

    /// Its ranks that are connected.
    pub(super) fn sessions(&self) -> impl Iterator<Item = (u32, SessionId)> {
        self.ranks.iter().filter_map(|(rank, session)| Some((*rank, (*session)?)))
    }

    /// Whether every rank of its world is connected.
    pub(super) fn is_whole(&self) -> bool {
        self.sessions().count() == self.identity.world as usize
    }

    /// Takes in what was committed.
    pub(super) fn committed(&mut self, committed: Committed, at: jiff::Timestamp) {
        self.standing = Standing::Claimed(committed.epoch);
        self.parent = Some(committed.epoch);
        let step = match self.speaker {
            Speaker::Itself => Some(Step(committed.step)),
            Speaker::StandIn => None,
        };
        let epoch = Epoch(committed.epoch);
        self.saved = Some(Stored { epoch, step, bytes: committed.bytes, at });
        self.digests = Arc::new(committed.digests);
    }

    /// How far its saving is.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        match (&self.outcome, &self.deed) {
            (Outcome::Durable(stored), _) => Checkpoint::Durable(*stored),
            (Outcome::Failed(why), _) => Checkpoint::Failed { why: *why },
            (Outcome::Pending, Deed::Saving(save)) => save.checkpoint(),
            (Outcome::Pending, Deed::Claiming { .. }) => Checkpoint::Asked,
            (
                Outcome::Pending,
                Deed::Nothing
                | Deed::Looking { .. }
                | Deed::Restoring { .. }
                | Deed::Finishing { .. },
            ) => Checkpoint::Idle,
        }
    }
}

impl Save {
    /// Bytes that all ranks have announced, once all have begun.
    pub(super) fn announced(&self, world: u32) -> Option<u64> {
        match &self.stage {
            Stage::Gathering { .. } | Stage::Agreeing { .. } => None,
            Stage::HandingOver { begun, .. } => {
                (begun.len() == world as usize).then(|| begun.values().sum())
            }
        }
    }

    /// Whether storing was ordered.
    pub(super) fn is_storing(&self) -> bool {
        match &self.stage {
            Stage::Gathering { .. } | Stage::Agreeing { .. } => false,
            Stage::HandingOver { go, .. } => *go.borrow(),
        }
    }

    /// When the ranks' answers are given up.
    pub(super) fn until(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Gathering { until } | Stage::Agreeing { until } => Some(*until),
            Stage::HandingOver { .. } => None,
        }
    }

    /// Whether a rank has begun to hand over.
    pub(super) fn has_begun(&self) -> bool {
        matches!(&self.stage, Stage::HandingOver { begun, .. } if !begun.is_empty())
    }

    fn checkpoint(&self) -> Checkpoint {
        match &self.stage {
            Stage::HandingOver { begun, .. } if self.is_storing() && !begun.is_empty() => {
                Checkpoint::Saving { step: None, stored: 0, total: None }
            }
            Stage::Gathering { .. } | Stage::Agreeing { .. } | Stage::HandingOver { .. } => {
                Checkpoint::Asked
            }
        }
    }
}

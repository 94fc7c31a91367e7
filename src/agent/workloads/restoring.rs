//! One restore of one life: read ahead, wait for the proof, claim, and let it go on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::try_join_all;
use jiff::Timestamp;
use lifeboat_checkpoint::chunk::Chunk;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_domain::deadline::later;
use lifeboat_domain::workload::Proof;
use lifeboat_protocol::frame::Failure;
use lifeboat_protocol::frame::Filling;
use lifeboat_protocol::frame::Lend;
use lifeboat_protocol::frame::NothingToRestore;
use lifeboat_protocol::frame::Opened;
use lifeboat_protocol::frame::RestoreFailed;
use lifeboat_protocol::frame::RestoreId;
use lifeboat_protocol::frame::RestoreOffer;
use lifeboat_protocol::frame::RingId;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::Waiting;
use lifeboat_protocol::frame::Zeros;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tracing::info;
use tracing::warn;

use crate::agent::workloads::line::Mouth;
use crate::data::history::Written;
use crate::data::restore;
use crate::data::restore::Beginning;
use crate::data::restore::Fill;
use crate::data::restore::Gate;
use crate::data::restore::Origin;
use crate::data::restore::Outlet;
use crate::data::restore::PAST_DEADLINE;
use crate::data::restore::RestoreError;
use crate::data::restore::Wish;
use crate::data::save;
use crate::data::save::Life;
use crate::data::save::Stock;
use crate::data::scheduler::Demand;
use crate::data::scheduler::Scheduler;
use crate::error::Chain;
use crate::error::Class;
use crate::error::Classify;
use crate::metrics;

/// How often a restore that waits looks for a newer epoch.
const LOOK: Duration = Duration::from_secs(1);

/// What a rank says during a restore.
#[derive(Debug)]
pub(super) enum FromRank {
    /// The offer fits.
    Accept {
        /// Which restore.
        restore: u64,
    },
    /// It does not.
    Decline {
        /// Which restore.
        restore: u64,
        /// Why.
        reason: String,
    },
    /// A slot was copied.
    Emptied {
        /// Which restore.
        restore: u64,
        /// The slot.
        slot: u32,
    },
}

/// One rank of a restore.
#[derive(Debug)]
pub(super) struct RankLine {
    /// The rank.
    pub(super) rank: u32,
    /// What it says.
    pub(super) heard: mpsc::Receiver<FromRank>,
    /// What it is told.
    pub(super) mouth: Mouth,
}

/// What a restore waits for, as the registry is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    /// The newest epoch.
    pub(super) epoch: u64,
    /// The UID of the pod that must have ended.
    pub(super) from: String,
    /// The deadline of its instance.
    pub(super) deadline: Option<Timestamp>,
}

/// A life that goes on.
#[derive(Clone, Debug)]
pub(super) struct Resumed {
    /// The epoch that it claimed.
    pub(super) claimed: u64,
    /// The epoch whose state it has, if any.
    pub(super) parent: Option<u64>,
    /// The chunks of that state, if it was the newest: others may be collected.
    pub(super) digests: Stock,
}

/// A restore.
#[derive(Debug)]
pub(super) struct Restoring {
    /// What it reads with.
    pub(super) means: restore::Means,
    /// What it claims with; its number is that of the claim, once it is known.
    pub(super) claims: save::Means,
    /// Whose it is.
    pub(super) life: Life,
    /// What is wanted.
    pub(super) wish: Wish,
    /// Whose turn it is.
    pub(super) scheduler: Scheduler,
    /// How urgent it is.
    pub(super) demand: Demand,
    /// Opened by the proof.
    pub(super) proof: watch::Receiver<Option<Proof>>,
    /// Told of what is waited for.
    pub(super) waiting: watch::Sender<Option<Holder>>,
    /// Wakes who asks for the proof.
    pub(super) stirred: Arc<Notify>,
    /// Numbers restores and rings on this agent.
    pub(super) numbers: Arc<AtomicU64>,
}

impl Restoring {
    /// Restores until it goes on, or for certain cannot.
    pub(super) async fn run(self, mut ranks: Vec<RankLine>) -> Result<Resumed, RestoreError> {
        let began = self.means.clock.now();
        loop {
            let failed = match self.attempt(&mut ranks).await {
                Ok(Some(resumed)) => {
                    metrics::restore("resumed", self.since(began));
                    return Ok(resumed);
                }
                // A newer epoch was committed meanwhile.
                Ok(None) => continue,
                Err(error) => error,
            };
            metrics::error("restore", failed.label());
            if failed.class() != Class::Transient {
                metrics::restore(failed.label(), self.since(began));
                let (why, reason) = (failure(&failed), Chain(&failed).to_string());
                let failed_frame = RestoreFailed { restore: 0, why, reason };
                tell(&ranks, &ToWorkload::RestoreFailed(failed_frame));
                return Err(failed);
            }
            warn!(job = %self.means.history.owner().job_key, error = %Chain(&failed), "restore begins again");
            tell(&ranks, &self.waiting(0, "the bucket does not answer", None));
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One attempt; nothing if a newer epoch was committed meanwhile.
    async fn attempt(&self, ranks: &mut [RankLine]) -> Result<Option<Resumed>, RestoreError> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let beginning = restore::beginning(&self.means, self.wish).await?;
        let gate = beginning.gate(&self.life.holder.pod_uid);
        self.wait_for(holder(&beginning, &gate));
        let ready = tokio::select! {
            biased;
            ready = self.get_ready(number, &beginning, ranks) => ready?,
            () = self.overtaken(&beginning) => return Ok(None),
        };
        let state = match &beginning.origin {
            Origin::State(state) => Some(state.as_ref()),
            Origin::Nothing(_) => None,
        };
        let life = Life { last: beginning.number() - 1, ..self.life.clone() };
        restore::check_kept(&self.means, &beginning).await?;
        match save::claim(&self.claims, &life, state).await? {
            Written::Ours => (),
            Written::Theirs(theirs)
                if theirs.kind != Kind::Claim || save::is_of(&life, &theirs) =>
            {
                return Ok(None);
            }
            Written::Theirs(theirs) => {
                let (epoch, holder) = (theirs.epoch, theirs.holder.pod);
                return Err(RestoreError::Superseded { epoch, holder });
            }
        }
        restore::keep(&self.means, &beginning).await;
        self.wait_for(None);
        tell(ranks, &self.go_on(number, &beginning, &ready.proof));
        Ok(Some(Resumed {
            claimed: beginning.number(),
            parent: state.map(|state| state.epoch),
            digests: if beginning.is_aside() { Stock::new() } else { ready.digests },
        }))
    }

    /// Tells whose end is waited for, so that somebody asks for the proof of it.
    fn wait_for(&self, holder: Option<Holder>) {
        self.waiting.send_replace(holder);
        self.stirred.notify_one();
    }

    /// Reads ahead, and then waits for the proof.
    async fn get_ready(
        &self,
        number: u64,
        beginning: &Beginning,
        ranks: &mut [RankLine],
    ) -> Result<ReadAhead, RestoreError> {
        let mut digests = Stock::new();
        let mut restore = 0;
        if let Origin::State(state) = &beginning.origin {
            if state.world != self.life.world {
                let (saved, world) = (state.world, self.life.world);
                return Err(RestoreError::World { saved, world });
            }
            restore = number;
            let each = ranks.iter_mut().map(|line| self.rank(number, state, line));
            for chunks in try_join_all(each).await? {
                digests.extend(save::stock(&chunks));
            }
        }
        let proof = self.proof(beginning, ranks, restore).await;
        Ok(ReadAhead { proof, digests })
    }

    /// Hands one rank its state, in its ring.
    async fn rank(
        &self,
        restore: u64,
        state: &Manifest,
        line: &mut RankLine,
    ) -> Result<Vec<Chunk>, RestoreError> {
        let by = self.claims.by;
        let manifest = self.means.history.read_rank(state, line.rank, by).await?;
        let layout = manifest.layout.clone();
        let (bytes, largest) = (layout.bytes(), manifest.chunks.iter().map(|chunk| chunk.bytes));
        let largest = largest.max().unwrap_or(0);
        let (epoch, step, world) = (state.epoch, state.step, state.world);
        let offer = RestoreOffer { restore, epoch, step, world, layout };
        say(line, ToWorkload::RestoreOffer(offer))?;
        accepted(restore, line).await?;
        if bytes > 0 {
            let turns = self.scheduler.open(Demand { bytes, ..self.demand.clone() });
            let made = self.scheduler.lend(bytes, largest).await;
            let lent = made.map_err(|error| RestoreError::Ring(std::io::Error::other(error)))?;
            let ring = self.numbers.fetch_add(1, Ordering::Relaxed);
            let frame = ToWorkload::Lend(Lend { ring, shape: lent.ring.shape() });
            line.mouth.lend(frame, &lent.ring).map_err(|_| RestoreError::Gone)?;
            let (pass, emptied) = mpsc::channel(64);
            let mouth = line.mouth.clone();
            let filled = |fill| mouth.say(frame_of(restore, fill)).map_err(|_| RestoreError::Gone);
            let outlet = Outlet { ring: lent.ring.clone(), emptied, filled };
            tokio::select! {
                biased;
                filled = restore::fill(&self.means, &manifest, &turns, outlet) => filled?,
                error = pass_on(restore, line, pass) => return Err(error),
            }
            say(line, ToWorkload::Reclaim(RingId { ring }))?;
        }
        say(line, ToWorkload::Sent(RestoreId { restore }))?;
        Ok(manifest.chunks)
    }

    /// Waits for the proof that the last holder has ended, and names it.
    async fn proof(&self, beginning: &Beginning, ranks: &[RankLine], restore: u64) -> String {
        let deadline = match beginning.gate(&self.life.holder.pod_uid) {
            Gate::Open { proof } => return proof.to_owned(),
            Gate::Shut { deadline, .. } => deadline,
        };
        let holder = beginning.newest.as_ref().map_or("", |newest| &newest.holder.pod);
        let opens = deadline.map(|deadline| later(deadline, PAST_DEADLINE));
        let mut proof = self.proof.clone();
        if proof.borrow().is_none() {
            let reason = format!("for the end of pod `{holder}`");
            tell(ranks, &self.waiting(restore, &reason, opens));
        }
        let past = async {
            match opens {
                Some(opens) => {
                    let left = opens.duration_since(self.means.clock.now());
                    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Ok(proof) = proof.wait_for(Option::is_some) => {
                proof.map_or("", Proof::label).to_owned()
            }
            () = past => Proof::PastDeadline.label().to_owned(),
        }
    }

    /// Returns when an epoch was committed after the one that is being restored.
    async fn overtaken(&self, beginning: &Beginning) {
        loop {
            tokio::time::sleep(LOOK).await;
            if restore::successor(&self.means, beginning).await.is_some() {
                return;
            }
        }
    }

    /// What ranks are told that may go on.
    fn go_on(&self, restore: u64, beginning: &Beginning, proof: &str) -> ToWorkload {
        let epoch = beginning.number();
        let job = &self.means.history.owner().job_key;
        match &beginning.origin {
            Origin::State(state) => {
                info!(%job, epoch, step = state.step, proof, "restored");
                let proof = proof.to_owned();
                ToWorkload::Opened(Opened { restore, epoch, step: state.step, proof })
            }
            Origin::Nothing(reason) => {
                info!(%job, epoch, reason, "nothing to restore");
                let reason = (*reason).to_owned();
                ToWorkload::NothingToRestore(NothingToRestore { reason, epoch })
            }
        }
    }

    fn waiting(&self, restore: u64, reason: &str, opens: Option<Timestamp>) -> ToWorkload {
        let deadline = opens.map(|opens| super::frames::deadline(&self.means.clock, opens));
        ToWorkload::Waiting(Waiting { restore, reason: reason.to_owned(), deadline })
    }

    fn since(&self, began: Timestamp) -> Duration {
        Duration::try_from(self.means.clock.now().duration_since(began)).unwrap_or_default()
    }
}

/// All of the state is with the ranks, and the last holder has ended.
#[derive(Debug)]
struct ReadAhead {
    proof: String,
    digests: Stock,
}

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "epoch {} of pod {}", self.epoch, self.from)
    }
}

fn holder(beginning: &Beginning, gate: &Gate) -> Option<Holder> {
    match gate {
        Gate::Open { .. } => None,
        Gate::Shut { from, deadline } => {
            let epoch = beginning.number() - 1;
            Some(Holder { epoch, from: from.clone(), deadline: *deadline })
        }
    }
}

/// Waits until a rank says whether the offer fits.
async fn accepted(restore: u64, line: &mut RankLine) -> Result<(), RestoreError> {
    loop {
        match line.heard.recv().await {
            Some(FromRank::Accept { restore: which }) if which == restore => return Ok(()),
            Some(FromRank::Decline { restore: which, reason }) if which == restore => {
                return Err(RestoreError::Declined { reason });
            }
            // Of an earlier offer.
            Some(_) => (),
            None => return Err(RestoreError::Gone),
        }
    }
}

/// Passes on which slots were copied, until the line breaks.
async fn pass_on(restore: u64, line: &mut RankLine, pass: mpsc::Sender<u32>) -> RestoreError {
    loop {
        match line.heard.recv().await {
            Some(FromRank::Emptied { restore: which, slot }) if which == restore => {
                if pass.send(slot).await.is_err() {
                    return RestoreError::Gone;
                }
            }
            Some(FromRank::Decline { restore: which, reason }) if which == restore => {
                return RestoreError::Declined { reason };
            }
            Some(_) => (),
            None => return RestoreError::Gone,
        }
    }
}

fn frame_of(restore: u64, fill: Fill) -> ToWorkload {
    match fill {
        Fill::Slot { slot, offset, bytes } => {
            ToWorkload::Filled(Filling { restore, slot, offset, bytes })
        }
        Fill::Zeros { offset, bytes } => ToWorkload::Zeros(Zeros { restore, offset, bytes }),
    }
}

fn failure(error: &RestoreError) -> Failure {
    match error {
        RestoreError::Superseded { .. } => Failure::Superseded,
        RestoreError::World { .. } => Failure::Rank,
        RestoreError::Declined { .. } | RestoreError::Gone => Failure::HandOver,
        RestoreError::History(_) | RestoreError::Chunk { .. } | RestoreError::Absent { .. } => {
            Failure::Damaged
        }
        RestoreError::Ring(_) => Failure::Unknown,
    }
}

fn say(line: &RankLine, frame: ToWorkload) -> Result<(), RestoreError> {
    line.mouth.say(frame).map_err(|_| RestoreError::Gone)
}

/// Tells all ranks. One that is gone is heard as closed.
fn tell(ranks: &[RankLine], frame: &ToWorkload) {
    for line in ranks {
        line.mouth.say(frame.clone()).ok();
    }
}

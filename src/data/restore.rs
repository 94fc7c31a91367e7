//! A restore: what there is to go on from, its chunks into the ring, and the claim at its end.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use lifeboat_checkpoint::chunk::Chunk;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_checkpoint::manifest::RankManifest;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::workload::Restore;
use object_store::path::Path;
use tokio::sync::mpsc;

use crate::adapters::store::StoreError;
use crate::clock::Clock;
use crate::data::collect;
use crate::data::history::History;
use crate::data::history::HistoryError;
use crate::data::ring::Ring;
use crate::data::scheduler::Lane;
use crate::error::Chain;
use crate::error::Class;
use crate::error::Classify;
use crate::metrics;
use crate::offload::Offload;

/// How long one object is tried for before the restore begins again.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// How long past its deadline an instance needs no other proof that it is gone.
pub const PAST_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes above which writing into the ring leaves the async thread.
const INLINE_MAX: u64 = 1 << 20;

/// How long a workload may copy nothing, with all slots full.
const STALLED: Duration = Duration::from_secs(20);

/// Most epochs that are looked through for a step.
const LOOK_BACK: usize = 1000;

/// What a new life wants to go on from.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What its pod's annotation says.
    pub restore: Restore,
    /// It has a state of its own of so many steps: only a newer one is wanted.
    pub newer_than: Option<u64>,
}

/// Where a new life begins.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// The newest epoch: who holds it must have ended, and the claim takes the number after it.
    pub newest: Option<Manifest>,
    /// What it goes on from.
    pub origin: Origin,
}

/// What a new life goes on from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The state of this epoch.
    State(Box<Manifest>),
    /// Nothing, for this reason.
    Nothing(&'static str),
}

/// What must be true before a new life may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Nothing more.
    Open {
        /// Why.
        proof: &'static str,
    },
    /// The last holder has ended.
    Shut {
        /// The UID of its pod.
        from: String,
        /// The deadline of its instance.
        deadline: Option<Timestamp>,
    },
}

/// What was put where for the workload to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// A slot holds these bytes of the stream.
    Slot {
        /// The slot.
        slot: u32,
        /// Where they begin in the stream.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// These bytes of the stream are zero.
    Zeros {
        /// Where they begin in the stream.
        offset: u64,
        /// How many.
        bytes: u64,
    },
}

/// The ring as a restore uses it: all slots are the agent's at first.
#[derive(Debug)]
pub struct Outlet<T> {
    /// The ring.
    pub ring: Ring,
    /// Slots that the workload has copied.
    pub emptied: mpsc::Receiver<u32>,
    /// Told of all that was filled.
    pub filled: T,
}

/// What a restore reads with.
#[derive(Clone, Debug)]
pub struct Means {
    /// The job key's place in the bucket.
    pub history: History,
    /// The time.
    pub clock: Clock,
    /// Where bytes are copied.
    pub offload: Offload,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A manifest.
    #[error("the history was not read")]
    History(#[from] HistoryError),
    /// A chunk.
    #[error("chunk at {offset} was not read")]
    Chunk {
        /// Where in the stream.
        offset: u64,
        /// What the bucket said.
        source: StoreError,
    },
    /// The ring was not written.
    #[error("the ring was not filled")]
    Ring(#[source] std::io::Error),
    /// What the annotation names is not there.
    #[error("there is no state of {what}. `lifeboat checkpoints ls` shows those there are")]
    Absent {
        /// Which epoch or step.
        what: String,
    },
    /// It was saved from another number of ranks.
    #[error("the state is of {saved} ranks, the job has {world}")]
    World {
        /// Ranks it was saved from.
        saved: u32,
        /// Ranks there are.
        world: u32,
    },
    /// Another life claimed the job key first.
    #[error("epoch {epoch} was claimed by pod `{holder}`")]
    Superseded {
        /// The epoch.
        epoch: u64,
        /// Name of the pod.
        holder: String,
    },
    /// The workload says that the state does not fit.
    #[error("the workload declined the state: {reason}")]
    Declined {
        /// Why.
        reason: String,
    },
    /// The workload ended, or its line broke.
    #[error("the workload ended before it was restored")]
    Gone,
}

impl Classify for RestoreError {
    fn class(&self) -> Class {
        match self {
            Self::History(source) => source.class(),
            Self::Chunk { source, .. } => source.class(),
            Self::Superseded { .. } => Class::Superseded,
            Self::Ring(_)
            | Self::Absent { .. }
            | Self::World { .. }
            | Self::Declined { .. }
            | Self::Gone => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::History(source) => source.label(),
            Self::Chunk { source, .. } => source.label(),
            Self::Ring(_) => "ring",
            Self::Absent { .. } => "absent",
            Self::World { .. } => "world",
            Self::Superseded { .. } => "superseded",
            Self::Declined { .. } => "declined",
            Self::Gone => "gone",
        }
    }
}

impl Beginning {
    /// The number that the claim takes.
    pub fn number(&self) -> u64 {
        self.newest.as_ref().map_or(1, |newest| newest.epoch.saturating_add(1))
    }

    /// Whether what it goes on from is not the state that the newest epoch names: that may have been
    /// superseded long ago, and be collected while it is read.
    pub fn is_aside(&self) -> bool {
        match &self.origin {
            Origin::Nothing(_) => false,
            Origin::State(state) => {
                self.newest.as_ref().and_then(Manifest::restores_from) != Some(state.epoch)
            }
        }
    }

    /// What must be true before a life of this pod begins.
    pub fn gate(&self, pod_uid: &str) -> Gate {
        match &self.newest {
            None => Gate::Open { proof: "Unclaimed" },
            Some(newest) if newest.kind == Kind::Finished => Gate::Open { proof: "Finished" },
            // The same pod again: kubelet starts a container only after the last one ended.
            Some(newest) if newest.holder.pod_uid == pod_uid => {
                Gate::Open { proof: "ContainersEnded" }
            }
            Some(newest) => Gate::Shut {
                from: newest.holder.pod_uid.clone(),
                deadline: newest.deadline.as_ref().and_then(|text| text.parse().ok()),
            },
        }
    }
}

/// Finds out where a new life begins, as the bucket has it now.
pub async fn beginning(means: &Means, wish: Wish) -> Result<Beginning, RestoreError> {
    let by = Deadline::after(means.clock.now(), PATIENCE);
    let newest = means.history.newest(by).await?;
    let origin = match &newest {
        None => Origin::Nothing("nothing was ever saved"),
        Some(newest) => origin(means, wish, newest).await?,
    };
    Ok(Beginning { newest, origin })
}

/// The manifest that was committed after the newest one that is known, if there is one by now.
pub async fn successor(means: &Means, beginning: &Beginning) -> Option<Manifest> {
    let by = Deadline::after(means.clock.now(), PATIENCE);
    // What cannot be read now is read at the next look.
    means.history.read(beginning.number(), by).await.ok().flatten()
}

/// Checks, just before the claim, that a state which is not the newest was not collected while it was
/// read.
pub async fn check_kept(means: &Means, beginning: &Beginning) -> Result<(), RestoreError> {
    let Origin::State(state) = &beginning.origin else { return Ok(()) };
    if !beginning.is_aside() {
        return Ok(());
    }
    let by = Deadline::after(means.clock.now(), PATIENCE);
    let found = means.history.read(state.epoch, by).await?;
    let absent = || RestoreError::Absent { what: format!("epoch {}", state.epoch) };
    found.filter(|found| found.kind == Kind::Save).map(|_| ()).ok_or_else(absent)
}

/// Puts a state back, just after the claim that names it, if it was collected since
/// [`check_kept`]: whoever collected it looks for such a claim afterwards, and we look for that.
pub async fn keep(means: &Means, beginning: &Beginning) {
    let Origin::State(state) = &beginning.origin else { return };
    if !beginning.is_aside() {
        return;
    }
    let by = Deadline::after(means.clock.now(), PATIENCE);
    // What goes wrong here is put right by the next pass of the collection.
    match collect::put_back(&means.history, state.epoch, by).await {
        Ok(true) => (),
        Ok(false) => tracing::warn!(epoch = state.epoch, "the state that is gone on from is gone"),
        Err(error) => {
            metrics::error("store", error.label());
            tracing::warn!(epoch = state.epoch, error = %Chain(&error), "state not looked after");
        }
    }
}

/// Puts a rank's stream into the ring, part by part, each part checked; ends when the workload has
/// copied all of it. One that copies nothing for a while is given up: others need the ring.
pub async fn fill<T: Fn(Fill) -> Result<(), RestoreError>>(
    means: &Means,
    rank: &RankManifest,
    lane: &Lane,
    outlet: Outlet<T>,
) -> Result<(), RestoreError> {
    let Outlet { ring, mut emptied, filled } = outlet;
    let mut free: BTreeSet<u32> = (0..ring.shape().slots()).collect();
    let mut full = BTreeSet::new();
    let mut reading = FuturesUnordered::new();
    let mut stream = runs(&rank.chunks).peekable();
    loop {
        while let Some(run) = stream.peek().copied() {
            match run {
                Run::Zeros { offset, bytes } => {
                    filled(Fill::Zeros { offset, bytes })?;
                    lane.skip(bytes);
                }
                Run::Chunk { offset, chunk } => {
                    let Some(slot) = free.pop_first() else { break };
                    let target = Target { ring: ring.clone(), slot };
                    reading.push(read(means, lane, (offset, chunk), target));
                }
            }
            stream.next();
        }
        if reading.is_empty() && full.is_empty() {
            return Ok(());
        }
        tokio::select! {
            biased;
            Some(read) = reading.next(), if !reading.is_empty() => {
                let (slot, offset, bytes) = read?;
                full.insert(slot);
                filled(Fill::Slot { slot, offset, bytes })?;
            }
            slot = emptied.recv() => {
                let slot = slot.ok_or(RestoreError::Gone)?;
                // One that was not full is the workload's mistake, and harmless.
                if full.remove(&slot) {
                    free.insert(slot);
                }
            }
            () = tokio::time::sleep(STALLED), if reading.is_empty() => return Err(RestoreError::Gone),
        }
    }
}

#[derive(Debug)]
struct Target {
    ring: Ring,
    slot: u32,
}

async fn read(
    means: &Means,
    lane: &Lane,
    (offset, chunk): (u64, Chunk),
    Target { ring, slot }: Target,
) -> Result<(u32, u64, u64), RestoreError> {
    let Some(address) = chunk.address() else { return Ok((slot, offset, 0)) };
    let turn = lane.turn(chunk.bytes).await;
    let path = Path::from(means.history.keys().chunk(&address));
    let by = Deadline::after(means.clock.now(), PATIENCE);
    let bytes = means.history.store().read_chunk(&path, chunk, by).await;
    let bytes = bytes.map_err(|source| RestoreError::Chunk { offset, source })?;
    let write = move || ring.write(slot, &bytes);
    let written = if chunk.bytes <= INLINE_MAX { write() } else { means.offload.run(write).await };
    written.map_err(RestoreError::Ring)?;
    turn.moved();
    Ok((slot, offset, chunk.bytes))
}

/// A part of a stream as it is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Chunk { offset: u64, chunk: Chunk },
    Zeros { offset: u64, bytes: u64 },
}

/// The stream in order, with zeros in a row taken together, so that they are few frames.
fn runs(chunks: &[Chunk]) -> impl Iterator<Item = Run> {
    let mut offset = 0_u64;
    let mut chunks = chunks.iter().peekable();
    std::iter::from_fn(move || {
        let chunk = *chunks.next()?;
        let begin = offset;
        offset = offset.saturating_add(chunk.bytes);
        if chunk.address().is_some() {
            return Some(Run::Chunk { offset: begin, chunk });
        }
        while let Some(zeros) = chunks.next_if(|next| next.address().is_none()) {
            offset = offset.saturating_add(zeros.bytes);
        }
        Some(Run::Zeros { offset: begin, bytes: offset - begin })
    })
}

async fn origin(means: &Means, wish: Wish, newest: &Manifest) -> Result<Origin, RestoreError> {
    let state = match wish.restore {
        Restore::Never => return Ok(Origin::Nothing("the pod wants none")),
        Restore::Auto => match (newest.kind, newest.restores_from()) {
            (Kind::Finished, _) => return Ok(Origin::Nothing("the work is finished")),
            (Kind::Save | Kind::Claim | Kind::Collected | Kind::Unknown, None) => {
                return Ok(Origin::Nothing("no life before saved anything"));
            }
            (Kind::Save | Kind::Claim | Kind::Collected | Kind::Unknown, Some(epoch)) => {
                state_of(means, newest, epoch).await?
            }
        },
        Restore::Epoch(epoch) => state_of(means, newest, epoch.0).await?,
        Restore::Step(step) => at_step(means, newest, step.0).await?,
    };
    if wish.newer_than.is_some_and(|own| state.step <= own) {
        return Ok(Origin::Nothing("the workload's own state is as new"));
    }
    Ok(Origin::State(Box::new(state)))
}

async fn state_of(means: &Means, newest: &Manifest, epoch: u64) -> Result<Manifest, RestoreError> {
    if newest.epoch == epoch && newest.kind == Kind::Save {
        return Ok(newest.clone());
    }
    let by = Deadline::after(means.clock.now(), PATIENCE);
    let found = means.history.read(epoch, by).await?;
    let absent = || RestoreError::Absent { what: format!("epoch {epoch}") };
    found.filter(|manifest| manifest.kind == Kind::Save).ok_or_else(absent)
}

/// The newest state of a step. Each number exists, so they are asked for one by one.
async fn at_step(means: &Means, newest: &Manifest, step: u64) -> Result<Manifest, RestoreError> {
    let fits = |manifest: &Manifest| manifest.kind == Kind::Save && manifest.step == step;
    if fits(newest) {
        return Ok(newest.clone());
    }
    for epoch in (1..newest.epoch).rev().take(LOOK_BACK) {
        let by = Deadline::after(means.clock.now(), PATIENCE);
        if let Some(manifest) = means.history.read(epoch, by).await?.filter(fits) {
            return Ok(manifest);
        }
    }
    Err(RestoreError::Absent { what: format!("step {step}") })
}

#[cfg(test)]
mod tests {
    use lifeboat_checkpoint::attempt::Attempt;

    use super::*;

    #[test]
    fn zeros_in_a_row_are_one_run() {
        let attempt = Attempt::new(1, &["uid"]);
        let parts = [&[0_u8; 4][..], &[0; 2], &[1; 3], &[0; 5]];
        let chunks: Vec<Chunk> = parts.map(|part| Chunk::of(part, attempt)).into_iter().collect();
        let found: Vec<Run> = runs(&chunks).collect();
        assert_eq!(
            found,
            [
                Run::Zeros { offset: 0, bytes: 6 },
                Run::Chunk { offset: 6, chunk: chunks[2] },
                Run::Zeros { offset: 9, bytes: 5 },
            ]
        );
    }
}

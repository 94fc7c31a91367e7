//! A save: chunks first, then the manifest of each rank, and the epoch's manifest last of all.
//!
//! Whatever dies between two writes leaves a whole checkpoint or none: what no manifest names does
//! not exist.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lifeboat_checkpoint::attempt::Attempt;
use lifeboat_checkpoint::chunk::CHUNK_MAX;
use lifeboat_checkpoint::chunk::Chunk;
use lifeboat_checkpoint::chunk::Content;
use lifeboat_checkpoint::chunk::Digest;
use lifeboat_checkpoint::chunk::Naming;
use lifeboat_checkpoint::manifest::FORMAT;
use lifeboat_checkpoint::manifest::Holder;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_checkpoint::manifest::RankEntry;
use lifeboat_checkpoint::manifest::RankManifest;
use lifeboat_checkpoint::region::Layout;
use lifeboat_checkpoint::region::Region;
use lifeboat_checkpoint::region::Spread;
use lifeboat_domain::deadline::Deadline;
use object_store::path::Path;
use tokio::sync::mpsc;

use crate::adapters::folder::Stamp;
use crate::adapters::folder::stamp_of;
use crate::adapters::store::StoreError;
use crate::clock::Clock;
use crate::data::buffers::Buffers;
use crate::data::handed::Handed;
use crate::data::history::History;
use crate::data::history::HistoryError;
use crate::data::history::Written;
use crate::data::holes::is_hole;
use crate::data::holes::read_around_holes;
use crate::data::ring::Ring;
use crate::data::scheduler::Lane;
use crate::data::spool::SpoolError;
use crate::data::spool::Spooled;
use crate::error::Class;
use crate::error::Classify;
use crate::offload::Offload;

/// Bytes above which reading and hashing leave the async thread.
const INLINE_MAX: u64 = 1 << 20;

/// Parts that are taken at a time, or wait for their turn. What a workload hands over beyond that
/// waits on its own line.
const UNDER_WAY_MAX: usize = 256;

/// Most chunks of one rank: its manifest has to name each, and readers bound its size.
pub const CHUNKS_MAX: usize = 1 << 19;

/// Commits of its own that a life may find in its way, whose answers were lost.
const OWN_MAX: usize = 3;

/// How long an attempt may store nothing and still be committed.
///
/// What an attempt stored may be collected once nothing was added to it for
/// [`QUIET`](lifeboat_checkpoint::collect::QUIET), by the clock of whoever collects, which S3 allows
/// to be a quarter of an hour off; some minutes are for a pass of the collection and a slow request.
pub const SILENT_MAX: Duration = Duration::from_mins(30);

/// Chunks that need not be stored again, and which attempt stored each.
pub type Stock = BTreeMap<Digest, Attempt>;

/// The life that saves, and how far its history is.
#[derive(Clone, Debug)]
pub struct Life {
    /// Tells this life from others of the same pod.
    pub run: String,
    /// How many ranks it has.
    pub world: u32,
    /// Who holds the job key.
    pub holder: Holder,
    /// The last number of this life: claimed or committed; 0 before the first.
    pub last: u64,
    /// The epoch whose state it went on from, or saved last.
    pub parent: Option<u64>,
    /// When the instance may be gone, as the manifest will say.
    pub deadline: Option<Deadline>,
}

/// What every part of a save works with.
#[derive(Clone, Debug)]
pub struct Means {
    /// The job key's place in the bucket.
    pub history: History,
    /// The agent's own buffers.
    pub buffers: Buffers,
    /// Where hashing runs.
    pub offload: Offload,
    /// The time.
    pub clock: Clock,
    /// Chunks that need not be stored again: those of the newest committed manifest.
    pub known: Arc<Stock>,
    /// The attempt that this save is.
    pub attempt: OwnAttempt,
    /// When it must be durable.
    pub by: Deadline,
}

/// An attempt of ours, and when it last stored something.
#[derive(Clone, Debug)]
pub struct OwnAttempt {
    name: Attempt,
    /// By the clock since boot, in nanoseconds.
    began: u64,
    /// By the same: when the last write began that was answered; 0 before there was one, and
    /// [`u64::MAX`] once it was silent for too long. Shared by the ranks.
    wrote: Arc<AtomicU64>,
}

/// What one rank announces.
#[derive(Clone, Debug)]
pub struct Announced {
    /// The rank.
    pub rank: u32,
    /// Steps completed in its state.
    pub step: u64,
    /// Its regions and its tree.
    pub layout: Layout,
}

/// A part of a rank's stream, whose bytes lie with the workload until they are taken.
#[derive(Debug)]
pub struct Part {
    /// Where it begins in the stream.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
    /// Where they lie.
    pub source: Source,
}

/// Where the bytes of a part lie.
#[derive(Clone, Debug)]
pub enum Source {
    /// In a slot of the ring that we lent.
    Ring {
        /// The ring.
        ring: Ring,
        /// The slot.
        slot: u32,
    },
    /// In a file or region of the workload's own, from there on.
    File {
        /// Its descriptor.
        file: Arc<Handed>,
        /// Where the part begins in it.
        from: u64,
    },
    /// In files that nobody may have written since they were looked at, one after the other.
    Files(Arc<[StillFile]>),
    /// On a disk of ours, from there on.
    Spool {
        /// The state's room.
        room: Arc<Spooled>,
        /// Where the part begins in it.
        from: u64,
    },
}

/// Bytes in a file that must be what it was when it was looked at.
#[derive(Clone, Debug)]
pub struct StillFile {
    /// Its descriptor.
    pub file: Arc<OwnedFd>,
    /// Where they begin in it.
    pub from: u64,
    /// How many.
    pub bytes: usize,
    /// What it was. It was written since if that has changed, but for its name.
    pub stamp: Stamp,
}

/// Bytes in a file of the workload's.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its descriptor.
    pub file: Arc<Handed>,
    /// Where they begin in it.
    pub from: u64,
    /// How many.
    pub bytes: u64,
}

/// What a rank hands over, and who is told that it was taken.
#[derive(Debug)]
pub struct Intake<T> {
    /// Its parts, in any order.
    pub parts: mpsc::Receiver<Part>,
    /// Told of each part once its bytes are in a buffer of ours.
    pub taken: T,
}

/// A rank whose chunks are stored; nothing names them yet.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What it announced.
    pub announced: Announced,
    /// Its stream.
    pub chunks: Vec<Chunk>,
}

/// An epoch that was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its number.
    pub epoch: u64,
    /// Steps completed in it.
    pub step: u64,
    /// Size of the state, over all ranks.
    pub bytes: u64,
    /// The chunks that it names.
    pub digests: Stock,
}

/// Why a state was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A chunk or a rank's manifest was not stored.
    #[error("a part of the checkpoint was not stored")]
    Part(#[source] StoreError),
    /// The epoch's manifest was not written.
    #[error("epoch {epoch} was not committed")]
    Commit {
        /// The epoch.
        epoch: u64,
        /// What the bucket said.
        source: HistoryError,
    },
    /// Somebody else has the number: a later life, and we are the zombie.
    #[error("epoch {epoch} belongs to pod `{holder}`")]
    Superseded {
        /// The epoch.
        epoch: u64,
        /// Name of the pod that has it.
        holder: String,
    },
    /// What the workload handed over could not be read as it said.
    #[error("the bytes from {offset} on cannot be read as the workload said")]
    HandOver {
        /// Where in the stream.
        offset: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The parts handed over do not make the stream that the workload announced.
    #[error("the parts handed over make {found} bytes in a row, of {expected} announced")]
    Parts {
        /// Bytes in a row from the beginning.
        found: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The workload ended, or its line broke, before it had handed over its state.
    #[error("rank {rank} ended before its state was taken")]
    Gone {
        /// The rank.
        rank: u32,
    },
    /// There was no memory to lend to it before its time was over.
    #[error("rank {rank} was lent no ring in time")]
    Late {
        /// The rank.
        rank: u32,
    },
    /// There was no room for it on the node's own disk.
    #[error("the state was not spooled")]
    Spool(#[source] SpoolError),
    /// The ranks saved different steps.
    #[error("the ranks are at different steps")]
    Steps,
    /// Nothing was stored for so long that what lies there already may be collected.
    #[error("nothing was stored for half an hour, so that what was stored before may be gone")]
    Silent,
}

impl Classify for SaveError {
    fn class(&self) -> Class {
        match self {
            Self::Part(source) => source.class(),
            Self::Commit { source, .. } => source.class(),
            Self::Superseded { .. } => Class::Superseded,
            Self::HandOver { .. }
            | Self::Parts { .. }
            | Self::Gone { .. }
            | Self::Late { .. }
            | Self::Spool(_)
            | Self::Steps
            | Self::Silent => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Part(source) => source.label(),
            Self::Commit { source, .. } => source.label(),
            Self::Superseded { .. } => "superseded",
            Self::HandOver { .. } => "hand_over",
            Self::Parts { .. } => "parts",
            Self::Gone { .. } => "gone",
            Self::Late { .. } => "late",
            Self::Spool(_) => "spool",
            Self::Steps => "steps",
            Self::Silent => "silent",
        }
    }
}

impl OwnAttempt {
    /// A new attempt of a pod's life.
    pub fn new(clock: &Clock, node: &str, pod_uid: &str, run: &str) -> Self {
        let (began, now) = (clock.boottime(), clock.now().as_second());
        let second = u64::try_from(now).unwrap_or(0);
        let name = Attempt::new(second, &[node, pod_uid, run, &began.to_string()]);
        Self { name, began, wrote: Arc::default() }
    }

    /// Its name in the bucket.
    pub fn name(&self) -> Attempt {
        self.name
    }

    /// Stores an object of this attempt, and remembers that it did.
    async fn put(&self, means: &Means, path: &Path, bytes: &Bytes) -> Result<(), SaveError> {
        let asked = means.clock.boottime();
        means.history.store().put(path, bytes, means.by).await.map_err(SaveError::Part)?;
        let next = |last: u64| if is_silent(last, asked) { u64::MAX } else { last.max(asked) };
        // It never fails: there is always a next value.
        self.wrote.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last))).ok();
        Ok(())
    }

    /// Until when it may be committed: no later than `by`, and while it is not silent for too long.
    fn commit_by(&self, clock: &Clock, by: Deadline) -> Result<Deadline, SaveError> {
        let (last, now) = (self.wrote.load(Ordering::Relaxed), clock.boottime());
        if is_silent(last, now) {
            return Err(SaveError::Silent);
        }
        let since = if last == 0 { 0 } else { now.saturating_sub(last) };
        let left = SILENT_MAX.saturating_sub(Duration::from_nanos(since));
        Ok(by.tighten(Deadline::after(clock.now(), left)))
    }

    /// Whether it began so long ago that what it did not store itself may be superseded by a commit
    /// that it did not know of.
    fn is_old(&self, clock: &Clock) -> bool {
        is_silent(self.began, clock.boottime())
    }
}

/// Whether nothing was stored for too long, with the last write at `last`, if there was one.
fn is_silent(last: u64, now: u64) -> bool {
    let long = Duration::from_nanos(now.saturating_sub(last)) > SILENT_MAX;
    last == u64::MAX || (last != 0 && long)
}

/// Stores one rank's chunks, from parts that come in any order.
///
/// Ends when the parts make the whole stream; if the channel closes before, that is an error.
/// Holds as many bytes as its turns allow, whatever the layout says.
pub async fn store_rank<T: Fn(&Part)>(
    means: &Means,
    lane: &Lane,
    announced: Announced,
    intake: Intake<T>,
) -> Result<Stored, SaveError> {
    let expected = announced.layout.bytes();
    let Intake { mut parts, taken: tell } = intake;
    let mut chunks = BTreeMap::new();
    let mut taken = 0;
    let mut under_way = FuturesUnordered::new();
    let mut open = true;
    while taken < expected {
        tokio::select! {
            biased;
            Some(stored) = under_way.next(), if !under_way.is_empty() => {
                let (offset, chunk): (u64, Chunk) = stored?;
                taken += chunk.bytes;
                chunks.insert(offset, chunk);
                if chunks.len() > CHUNKS_MAX {
                    return Err(SaveError::Parts { found: taken, expected });
                }
            }
            part = parts.recv(), if open && under_way.len() < UNDER_WAY_MAX => match part {
                Some(part) => under_way.push(take(means, lane, checked(part, expected)?, &tell)),
                None => open = false,
            },
            else => break,
        }
    }
    Ok(Stored { chunks: in_a_row(chunks, expected)?, announced })
}

/// Writes what the donor handed over for all into every rank: its replicated regions and their
/// chunks, which come first in its stream.
///
/// The donor is the first rank; the others were told to leave such regions out.
pub fn donated(mut ranks: Vec<Stored>) -> Result<Vec<Stored>, SaveError> {
    let Some((donor, others)) = ranks.split_first_mut() else { return Ok(ranks) };
    let regions = &donor.announced.layout.regions;
    let count = regions.iter().take_while(|one| one.spread == Spread::Replicated).count();
    let regions = &regions[..count];
    let expected: u64 = regions.iter().map(|region| region.bytes).sum();
    let mut found = 0;
    let shared = donor.chunks.iter().take_while(|chunk| {
        let shared = found < expected;
        found += if shared { chunk.bytes } else { 0 };
        shared
    });
    let shared: Vec<Chunk> = shared.copied().collect();
    if found != expected {
        return Err(SaveError::Parts { found, expected });
    }
    for rank in others {
        let left_out = |one: &Region| one.spread != Spread::Replicated;
        if rank.announced.layout.regions.iter().all(left_out) {
            rank.announced.layout.regions.splice(0..0, regions.iter().cloned());
            rank.chunks.splice(0..0, shared.iter().copied());
        }
    }
    Ok(ranks)
}

/// Names what was stored: the manifest of each rank, then that of the epoch, which is the commit.
///
/// The number is the one after the last of this life. If somebody else has it, we are superseded,
/// and never try the next one. If it is a commit of our own whose answer was lost, we go on from
/// there.
pub async fn commit(means: &Means, life: &Life, ranks: &[Stored]) -> Result<Committed, SaveError> {
    let mut epoch = life.last.saturating_add(1);
    let step = ranks.first().map_or(0, |rank| rank.announced.step);
    if ranks.iter().any(|rank| rank.announced.step != step) {
        return Err(SaveError::Steps);
    }
    for _ in 0..OWN_MAX {
        let manifest = name_ranks(means, life, ranks, epoch).await?;
        let by = means.attempt.commit_by(&means.clock, means.by)?;
        let written = means.history.create(&manifest, by).await;
        match written.map_err(|source| SaveError::Commit { epoch, source })? {
            Written::Ours => {
                let digests = stock(ranks.iter().flat_map(|rank| &rank.chunks));
                return Ok(Committed { epoch, step, bytes: manifest.bytes, digests });
            }
            // What this one did not store again is named by the epoch before that one, and goes
            // with it, though not so soon.
            Written::Theirs(theirs)
                if is_of(life, &theirs) && means.attempt.is_old(&means.clock) =>
            {
                return Err(SaveError::Silent);
            }
            Written::Theirs(theirs) if is_of(life, &theirs) => epoch = epoch.saturating_add(1),
            Written::Theirs(theirs) => return Err(superseded(&theirs)),
        }
    }
    Err(SaveError::Superseded { epoch, holder: life.holder.pod.clone() })
}

/// Says that the work is done: nothing is resumed after it.
pub async fn finish(means: &Means, life: &Life, step: u64) -> Result<Committed, SaveError> {
    let mut epoch = life.last.saturating_add(1);
    for _ in 0..OWN_MAX {
        let manifest = Manifest { kind: Kind::Finished, step, ..blank(means, life, epoch) };
        let written = means.history.create(&manifest, means.by).await;
        match written.map_err(|source| SaveError::Commit { epoch, source })? {
            Written::Ours => {
                return Ok(Committed { epoch, step, bytes: 0, digests: Stock::new() });
            }
            Written::Theirs(theirs) if is_of(life, &theirs) => epoch = epoch.saturating_add(1),
            Written::Theirs(theirs) => return Err(superseded(&theirs)),
        }
    }
    Err(SaveError::Superseded { epoch, holder: life.holder.pod.clone() })
}

/// Takes the job key for a new life, which goes on from `state` or from nothing.
pub async fn claim(
    means: &Means,
    life: &Life,
    state: Option<&Manifest>,
) -> Result<Written, HistoryError> {
    let epoch = life.last.saturating_add(1);
    let manifest = Manifest {
        kind: Kind::Claim,
        step: state.map_or(0, |state| state.step),
        parent: state.map(|state| state.epoch),
        ..blank(means, life, epoch)
    };
    means.history.create(&manifest, means.by).await
}

/// The chunks that are stored, and by whom.
pub fn stock<'a>(chunks: impl IntoIterator<Item = &'a Chunk>) -> Stock {
    let stored = chunks.into_iter().filter_map(Chunk::address);
    stored.map(|address| (address.digest, address.attempt)).collect()
}

/// Whether a manifest was written by this life.
pub fn is_of(life: &Life, manifest: &Manifest) -> bool {
    manifest.holder.pod_uid == life.holder.pod_uid && manifest.run == life.run
}

fn superseded(theirs: &Manifest) -> SaveError {
    SaveError::Superseded { epoch: theirs.epoch, holder: theirs.holder.pod.clone() }
}

/// Takes one part into a buffer of our own, names it by what is there, and stores those bytes.
async fn take(
    means: &Means,
    lane: &Lane,
    part: Part,
    tell: &impl Fn(&Part),
) -> Result<(u64, Chunk), SaveError> {
    let offset = part.offset;
    let hole = is_zero(means, &part).await;
    if hole.map_err(|source| SaveError::HandOver { offset, source })? {
        tell(&part);
        lane.skip(part.bytes);
        return Ok((offset, Chunk { bytes: part.bytes, content: Content::Zero }));
    }
    let turn = lane.turn(part.bytes).await;
    let read = read(means, &part).await;
    let (bytes, chunk) = read.map_err(|source| SaveError::HandOver { offset, source })?;
    tell(&part);
    drop(part);
    let chunk = means.as_stored(chunk);
    let own = chunk.address().filter(|address| address.attempt == means.attempt.name());
    if let Some(address) = own {
        let path = Path::from(means.history.keys().chunk(&address));
        means.attempt.put(means, &path, &bytes).await?;
        turn.moved();
    } else {
        turn.skipped();
    }
    means.buffers.give(bytes);
    Ok((offset, chunk))
}

/// Whether a part lies in a hole of its file, so that it need not be read at all.
async fn is_zero(means: &Means, part: &Part) -> io::Result<bool> {
    let (source, bytes) = (part.source.clone(), part.bytes);
    let look = move || match &source {
        Source::Ring { .. } | Source::Spool { .. } => Ok(false),
        Source::File { file, from } => is_hole(file, *from, bytes),
        Source::Files(files) => are_holes(files, bytes),
    };
    if part.bytes <= INLINE_MAX { look() } else { means.offload.run(look).await }
}

/// Whether files have not a byte where these parts of them are, and were not written since.
fn are_holes(files: &[StillFile], bytes: u64) -> io::Result<bool> {
    let mut found = 0;
    for still in files {
        if !is_hole(&still.file, still.from, still.bytes as u64)? {
            return Ok(false);
        }
        check_still(still)?;
        found += still.bytes as u64;
    }
    Ok(found == bytes)
}

impl Means {
    /// The chunk where it lies already, if the newest committed manifest names its bytes.
    fn as_stored(&self, chunk: Chunk) -> Chunk {
        let before = chunk.address().and_then(|address| self.known.get(&address.digest));
        before.map_or(chunk, |attempt| chunk.stored_by(*attempt))
    }
}

async fn read(means: &Means, part: &Part) -> io::Result<(Bytes, Chunk)> {
    // `checked` has bounded it.
    let length = usize::try_from(part.bytes).map_err(io::Error::other)?;
    let mut buffer = means.buffers.take(length);
    let (source, attempt) = (part.source.clone(), means.attempt.name());
    let work = move || {
        let mut naming = Naming::default();
        match &source {
            Source::Ring { ring, slot } => {
                ring.read(*slot, &mut buffer, |piece| naming.take(piece))?;
            }
            Source::File { file, from } => {
                read_around_holes(file, &mut buffer, *from)?;
                naming.take(&buffer);
            }
            Source::Files(files) => {
                read_still(files, &mut buffer)?;
                naming.take(&buffer);
            }
            Source::Spool { room, from } => {
                room.read(&mut buffer, *from)?;
                naming.take(&buffer);
            }
        }
        Ok((buffer.freeze(), naming.chunk(attempt)))
    };
    if part.bytes <= INLINE_MAX { work() } else { means.offload.run(work).await }
}

/// Reads files, and checks afterwards that none was written since it was looked at: what was read
/// is what lay there then.
fn read_still(files: &[StillFile], mut buffer: &mut [u8]) -> io::Result<()> {
    for still in files {
        let Some((own, rest)) = buffer.split_at_mut_checked(still.bytes) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        read_around_holes(&still.file, own, still.from)?;
        check_still(still)?;
        buffer = rest;
    }
    if buffer.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn check_still(still: &StillFile) -> io::Result<()> {
    let now = stamp_of(&still.file)?;
    if (now.bytes, now.modified_ns) != (still.stamp.bytes, still.stamp.modified_ns) {
        return Err(io::Error::other("it was written while it was saved"));
    }
    Ok(())
}

/// A part that may be taken: not empty, no larger than a chunk, and within the stream.
fn checked(part: Part, expected: u64) -> Result<Part, SaveError> {
    let end = part.offset.checked_add(part.bytes);
    let fits = part.bytes > 0 && part.bytes <= CHUNK_MAX && end.is_some_and(|end| end <= expected);
    if fits { Ok(part) } else { Err(SaveError::Parts { found: part.offset, expected }) }
}

fn in_a_row(chunks: BTreeMap<u64, Chunk>, expected: u64) -> Result<Vec<Chunk>, SaveError> {
    let mut found = 0;
    let mut row = Vec::with_capacity(chunks.len());
    for (offset, chunk) in chunks {
        if offset != found {
            break;
        }
        found += chunk.bytes;
        row.push(chunk);
    }
    if found == expected { Ok(row) } else { Err(SaveError::Parts { found, expected }) }
}

/// Stores the manifest of each rank, and makes that of the epoch.
async fn name_ranks(
    means: &Means,
    life: &Life,
    ranks: &[Stored],
    epoch: u64,
) -> Result<Manifest, SaveError> {
    // Unlike any other attempt, so that no two write the same object.
    let attempt = means.attempt.name();
    let mut entries = BTreeMap::new();
    for Stored { announced, chunks } in ranks {
        let (rank, step) = (announced.rank, announced.step);
        let (layout, chunks) = (announced.layout.clone(), chunks.clone());
        let bytes = layout.bytes();
        let manifest = RankManifest { format: FORMAT, epoch, rank, step, layout, chunks };
        let text = Bytes::from(manifest.to_bytes());
        let path = Path::from(means.history.keys().rank(epoch, rank, attempt));
        means.attempt.put(means, &path, &text).await?;
        let hash = Digest::of(&text);
        entries.insert(rank, RankEntry { attempt, hash, bytes });
    }
    let step = ranks.first().map_or(0, |rank| rank.announced.step);
    let bytes = entries.values().map(|entry| entry.bytes).sum();
    Ok(Manifest { step, bytes, ranks: entries, ..blank(means, life, epoch) })
}

fn blank(means: &Means, life: &Life, epoch: u64) -> Manifest {
    let owner = means.history.owner();
    Manifest {
        format: FORMAT,
        kind: Kind::Save,
        cluster: owner.cluster.clone(),
        namespace: owner.namespace.clone(),
        job_key: owner.job_key.clone(),
        epoch,
        step: 0,
        world: life.world,
        run: life.run.clone(),
        parent: life.parent,
        holder: life.holder.clone(),
        created_at: means.clock.now().to_string(),
        deadline: life.deadline.map(|deadline| deadline.at().to_string()),
        bytes: 0,
        ranks: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_checkpoint::region::Dtype;

    use super::*;

    fn stored(rank: u32, regions: &[(&str, Spread)]) -> Stored {
        let regions = regions.iter().map(|(name, spread)| Region {
            spread: *spread,
            ..Region::new(*name, Dtype::U8, &[4])
        });
        let layout = Layout { regions: regions.collect(), ..Layout::default() };
        let chunks = layout.regions.iter().map(|region| {
            let tag = u8::try_from(rank).unwrap() + 1;
            let (first, rest) = (region.name.as_bytes()[0], [tag; 3]);
            let (own, shared) = ([first, rest[0], rest[1], rest[2]], [first; 4]);
            let bytes = if region.spread == Spread::Own { &own } else { &shared };
            Chunk::of(bytes, Attempt::new(1, &["uid"]))
        });
        let chunks = chunks.collect();
        Stored { announced: Announced { rank, step: 1, layout }, chunks }
    }

    #[test]
    fn what_the_donor_hands_over_stands_in_every_rank() {
        let (own, all) = (Spread::Own, Spread::Replicated);
        let donor = stored(0, &[("weights", all), ("data", own)]);
        let spread = donated(vec![donor.clone(), stored(1, &[("data", own)])]).unwrap();
        let names: Vec<&str> =
            spread[1].announced.layout.regions.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["weights", "data"]);
        assert_eq!(spread[1].chunks[0], donor.chunks[0]);
        assert_ne!(spread[1].chunks[1], donor.chunks[1]);
        // One that handed its own over all the same keeps it.
        let kept = donated(vec![donor, stored(1, &[("weights", all), ("data", own)])]).unwrap();
        assert_eq!(kept[1].chunks.len(), 2);
    }
}

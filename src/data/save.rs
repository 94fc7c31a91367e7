//! A save: chunks first, then the manifest of each rank, and the epoch's manifest last of all.
//!
//! Whatever dies between two writes leaves a whole checkpoint or none: what no manifest names does
//! not exist.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lifeboat_checkpoint::chunk::CHUNK_MAX;
use lifeboat_checkpoint::chunk::Chunk;
use lifeboat_checkpoint::chunk::Digest;
use lifeboat_checkpoint::manifest::FORMAT;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_checkpoint::manifest::RankEntry;
use lifeboat_checkpoint::manifest::RankManifest;
use lifeboat_checkpoint::region::Layout;
use lifeboat_domain::deadline::Deadline;
use object_store::path::Path;
use tokio::sync::mpsc;

use crate::adapters::store::StoreError;
use crate::data::buffers::Buffers;
use crate::data::history::History;
use crate::data::history::HistoryError;
use crate::data::history::Written;
use crate::data::ring::Ring;
use crate::data::ring::read_exact_at;
use crate::data::scheduler::Lane;
use crate::error::Class;
use crate::error::Classify;
use crate::offload::Offload;

/// Bytes above which reading and hashing leave the async thread.
const INLINE_MAX: u64 = 1 << 20;

/// What one rank saves, and where it goes.
#[derive(Debug)]
pub struct RankSave {
    /// The job key's place in the bucket.
    pub history: History,
    /// The epoch that is being written.
    pub epoch: u64,
    /// The rank.
    pub rank: u32,
    /// Steps completed in this state.
    pub step: u64,
    /// Tells this attempt from another one at the same epoch.
    pub attempt: String,
    /// Its regions and its tree.
    pub layout: Layout,
    /// Chunks that need not be stored again: those of the newest committed manifest.
    pub known: Arc<BTreeSet<Digest>>,
    /// When it must be durable.
    pub by: Deadline,
}

/// What every save on a node shares.
#[derive(Clone, Debug)]
pub struct Means {
    /// The agent's own buffers.
    pub buffers: Buffers,
    /// Where hashing runs.
    pub offload: Offload,
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
    /// In a file or region of the workload's own, from this offset on.
    File {
        /// Its descriptor.
        file: Arc<OwnedFd>,
        /// Where the part begins in it.
        offset: u64,
    },
}

/// Why a state was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A chunk or a rank's manifest was not stored.
    #[error("a part of epoch {epoch} was not stored")]
    Part {
        /// The epoch.
        epoch: u64,
        /// What the bucket said.
        source: StoreError,
    },
    /// The epoch's manifest was not written.
    #[error("epoch {epoch} was not committed")]
    Commit {
        /// The epoch.
        epoch: u64,
        /// What the bucket said.
        source: HistoryError,
    },
    /// Somebody else has the number: a later life, or a zombie of an earlier one.
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
}

impl Classify for SaveError {
    fn class(&self) -> Class {
        match self {
            Self::Part { source, .. } => source.class(),
            Self::Commit { source, .. } => source.class(),
            Self::Superseded { .. } => Class::Superseded,
            Self::HandOver { .. } | Self::Parts { .. } => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Part { source, .. } => source.label(),
            Self::Commit { source, .. } => source.label(),
            Self::Superseded { .. } => "superseded",
            Self::HandOver { .. } => "hand_over",
            Self::Parts { .. } => "parts",
        }
    }
}

/// What a rank hands over, and who is told that it was taken.
#[derive(Debug)]
pub struct Intake<T> {
    /// Its parts, in any order.
    pub parts: mpsc::Receiver<Part>,
    /// Told of each part once its bytes are in a buffer of ours.
    pub taken: T,
}

/// A rank whose chunks and manifest are stored; nothing is committed yet.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What the epoch's manifest says of it.
    pub entry: RankEntry,
    /// The chunks that it names.
    pub digests: BTreeSet<Digest>,
}

/// Stores one rank's state and its manifest, from parts that come in any order.
///
/// Ends when the parts make the whole stream; if the channel closes before, that is an error.
/// Holds as many bytes as its turns allow, whatever the layout says.
pub async fn store_rank<T: Fn(&Part)>(
    means: &Means,
    save: &RankSave,
    lane: &Lane,
    intake: Intake<T>,
) -> Result<Stored, SaveError> {
    let expected = save.layout.bytes();
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
            }
            part = parts.recv(), if open => match part {
                Some(part) => {
                    let part = checked(part, expected)?;
                    under_way.push(take(Work { means, save, lane }, part, &tell));
                }
                None => open = false,
            },
            else => break,
        }
    }
    let chunks = in_a_row(chunks, expected)?;
    store_manifest(save, chunks).await
}

/// Commits an epoch: the last write, which makes all others count.
pub async fn commit(history: &History, manifest: &Manifest, by: Deadline) -> Result<(), SaveError> {
    let epoch = manifest.epoch;
    match history.create(manifest, by).await {
        Ok(Written::Ours) => Ok(()),
        Ok(Written::Theirs(theirs)) => {
            Err(SaveError::Superseded { epoch, holder: theirs.holder.pod })
        }
        Err(source) => Err(SaveError::Commit { epoch, source }),
    }
}

#[derive(Clone, Copy)]
struct Work<'a> {
    means: &'a Means,
    save: &'a RankSave,
    lane: &'a Lane,
}

/// Takes one part into a buffer of our own, names it by what is there, and stores those bytes.
async fn take(
    work: Work<'_>,
    part: Part,
    tell: &impl Fn(&Part),
) -> Result<(u64, Chunk), SaveError> {
    let Work { means, save, lane } = work;
    let turn = lane.turn(part.bytes).await;
    let offset = part.offset;
    let read = read(means, &part).await;
    let (bytes, chunk) = read.map_err(|source| SaveError::HandOver { offset, source })?;
    tell(&part);
    if let Some(digest) = chunk.digest().filter(|digest| !save.known.contains(digest)) {
        let path = Path::from(save.history.keys().chunk(digest));
        let put = save.history.store().put(&path, &bytes, save.by).await;
        put.map_err(|source| SaveError::Part { epoch: save.epoch, source })?;
        turn.moved();
    } else {
        turn.skipped();
    }
    means.buffers.give(bytes);
    Ok((offset, chunk))
}

async fn read(means: &Means, part: &Part) -> io::Result<(Bytes, Chunk)> {
    // `checked` has bounded it.
    let length = usize::try_from(part.bytes).map_err(io::Error::other)?;
    let mut buffer = means.buffers.take(length);
    let source = part.source.clone();
    let work = move || {
        match &source {
            Source::Ring { ring, slot } => ring.read(*slot, &mut buffer)?,
            Source::File { file, offset } => read_exact_at(file, &mut buffer, *offset)?,
        }
        let bytes = buffer.freeze();
        let chunk = Chunk::of(&bytes);
        Ok((bytes, chunk))
    };
    if part.bytes <= INLINE_MAX { work() } else { means.offload.run(work).await }
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

async fn store_manifest(save: &RankSave, chunks: Vec<Chunk>) -> Result<Stored, SaveError> {
    let digests = chunks.iter().filter_map(Chunk::digest).copied().collect();
    let (epoch, rank, step) = (save.epoch, save.rank, save.step);
    let layout = save.layout.clone();
    let manifest = RankManifest { format: FORMAT, epoch, rank, step, layout, chunks };
    let bytes = Bytes::from(manifest.to_bytes());
    let path = Path::from(save.history.keys().rank(epoch, rank, &save.attempt));
    let put = save.history.store().put(&path, &bytes, save.by).await;
    put.map_err(|source| SaveError::Part { epoch, source })?;
    let entry = RankEntry {
        attempt: save.attempt.clone(),
        hash: Digest::of(&bytes),
        bytes: save.layout.bytes(),
    };
    Ok(Stored { entry, digests })
}

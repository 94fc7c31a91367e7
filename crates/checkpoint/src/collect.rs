//! What may be deleted of a job key, given what lies in its folder and the time. Pure.
//!
//! Why a save is safe beside it. A chunk goes only if no manifest names it, if the attempt that
//! stored it has written nothing for [`QUIET`], and if none of the saves under way can come to name
//! it: a save names chunks of its own, which are young, and those of the newest state, which stay. An
//! attempt that was silent for half as long is never committed (`data::save`). And a restore of a state
//! that is not the newest looks, after its claim, whether that was collected meanwhile, and puts it
//! back: what was named by a state stays for [`QUIET`] after that was collected.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::attempt::Attempt;
use crate::chunk::Address;
use crate::chunk::Digest;
use crate::key::Object;
use crate::manifest::Kind;
use crate::manifest::Manifest;

/// How long nothing may have been written before anything goes: to an attempt, or of an epoch.
pub const QUIET: Duration = Duration::from_hours(1);

/// Until when an epoch that was collected may be put back.
///
/// Its chunks stay for [`QUIET`]: a third of that, since the clocks of whoever puts it back and of
/// whoever deletes may each be a quarter of an hour off.
pub const PUT_BACK: Duration = Duration::from_mins(20);

/// Epochs that are collected in one pass, at most.
const EPOCHS_MAX: usize = 200;

/// Seconds since 1970.
pub type Second = u64;

/// What lies in the folder of a job key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The manifest of each number, with when it was written.
    pub epochs: BTreeMap<u64, Epoch>,
    /// Manifests of ranks, with when each was written.
    pub ranks: BTreeMap<RankFile, Second>,
    /// Epochs that somebody wants to keep.
    pub pins: BTreeSet<u64>,
    /// Chunks by the attempt that stored them.
    pub chunks: BTreeMap<Attempt, BTreeMap<Digest, Stored>>,
    /// The chunks that the manifests of ranks name, of every epoch that has [a say](Contents::asks);
    /// nothing if not all of those could be read.
    pub named: Option<BTreeSet<Address>>,
}

/// A chunk, as a listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// When it was written.
    pub written: Second,
    /// Its size.
    pub bytes: u64,
}

/// The manifest of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// When it was written.
    pub written: Second,
    /// What it says; nothing if it was not read.
    pub manifest: Option<Manifest>,
}

/// The manifest of a rank, by its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RankFile {
    /// The epoch it was written for.
    pub epoch: u64,
    /// The rank.
    pub rank: u32,
    /// Who wrote it.
    pub attempt: Attempt,
}

/// What is done with a job key, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Collected epochs that the newest manifest or a pin names: they are put back.
    pub put_back: Vec<u64>,
    /// Collected epochs that a pin names, and that were collected too long ago for that.
    pub lost: Vec<u64>,
    /// Superseded epochs: nothing goes on from them any more.
    pub collect: Vec<u64>,
    /// Objects that go: chunks first, then the manifests of ranks.
    pub delete: Vec<Object>,
    /// A save that may be under way: nothing goes that a manifest named.
    pub open: Option<Attempt>,
}

impl Contents {
    /// The numbers whose manifests must be read, highest first: the newest, and all that have
    /// manifests of ranks. Of the others no chunk is left, or they never had any.
    pub fn needs(&self) -> Vec<u64> {
        let newest = self.epochs.last_key_value().map(|(epoch, _)| *epoch);
        let with_ranks = self.ranks.keys().map(|file| file.epoch);
        let needed: BTreeSet<u64> = newest.into_iter().chain(with_ranks).collect();
        let here = needed.into_iter().filter(|epoch| self.epochs.contains_key(epoch));
        here.rev().collect()
    }

    /// The epochs whose chunks stay: saves, and those that were collected only just now.
    pub fn asks(&self, now: Second) -> impl Iterator<Item = &Manifest> {
        self.epochs.values().filter_map(move |epoch| {
            let manifest = epoch.manifest.as_ref()?;
            let asks = match manifest.kind {
                Kind::Save => true,
                Kind::Collected => !is_quiet(epoch.written, now),
                Kind::Claim | Kind::Finished | Kind::Unknown => false,
            };
            asks.then_some(manifest)
        })
    }

    /// What may be done now, if the newest `keep` states stay.
    pub fn plan(&self, keep: usize, now: Second) -> Plan {
        let wanted = self.wanted();
        let (put_back, lost) = self.collected_but_wanted(&wanted, now);
        let open = self.open(now);
        let collect = if open.is_none() { self.superseded(keep, &wanted, now) } else { Vec::new() };
        // What is put back names chunks, too: they are counted the next time.
        let delete = match &self.named {
            Some(named) if put_back.is_empty() => self.unnamed(named, open.is_some(), now),
            Some(_) | None => Vec::new(),
        };
        Plan { put_back, lost, collect, delete, open }
    }

    /// Epochs that stay however old they are: pins, and the state that the newest manifest names.
    fn wanted(&self) -> BTreeSet<u64> {
        self.pins.iter().copied().chain(self.newest_state()).collect()
    }

    fn newest_state(&self) -> Option<u64> {
        let newest = self.epochs.values().next_back()?;
        newest.manifest.as_ref()?.restores_from()
    }

    fn collected_but_wanted(&self, wanted: &BTreeSet<u64>, now: Second) -> (Vec<u64>, Vec<u64>) {
        let collected = wanted.iter().copied().filter(|epoch| {
            self.manifest(*epoch).is_some_and(|manifest| manifest.kind == Kind::Collected)
        });
        // What the newest manifest names was there when it was claimed from, and nobody deletes it since.
        let state = self.newest_state();
        let whole = |epoch: &u64| {
            let written = self.epochs.get(epoch).map_or(0, |epoch| epoch.written);
            state == Some(*epoch) || age(written, now) <= PUT_BACK
        };
        collected.partition(whole)
    }

    /// Saves beyond the newest `keep` that nobody wants.
    fn superseded(&self, keep: usize, wanted: &BTreeSet<u64>, now: Second) -> Vec<u64> {
        let saves = self.epochs.iter().rev().filter(|(_, epoch)| {
            epoch.manifest.as_ref().is_some_and(|manifest| manifest.kind == Kind::Save)
        });
        let beyond = saves.skip(keep.max(1));
        let may_go = beyond
            .filter(|(number, epoch)| !wanted.contains(number) && is_quiet(epoch.written, now));
        may_go.map(|(number, _)| *number).take(EPOCHS_MAX).collect()
    }

    /// An attempt that no manifest names, and that wrote something not long ago.
    fn open(&self, now: Second) -> Option<Attempt> {
        let committed = self.committed();
        let last = self.last_writes(now);
        let mut uncommitted = last.iter().filter(|(attempt, _)| !committed.contains(attempt));
        uncommitted.find(|(_, written)| !is_quiet(**written, now)).map(|(attempt, _)| *attempt)
    }

    /// Objects that no manifest names any more, of attempts that have been silent for long. While a
    /// save may be under way only attempts go that were never committed.
    fn unnamed(&self, named: &BTreeSet<Address>, open: bool, now: Second) -> Vec<Object> {
        let committed = self.committed();
        let last = self.last_writes(now);
        let silent = |attempt: &Attempt| {
            let quiet = last.get(attempt).is_some_and(|written| is_quiet(*written, now));
            quiet && !(open && committed.contains(attempt))
        };
        let chunks = self.chunks.iter().filter(|(attempt, _)| silent(attempt));
        let chunks = chunks.flat_map(|(attempt, chunks)| {
            chunks.keys().map(|digest| Address { attempt: *attempt, digest: *digest })
        });
        let chunks = chunks.filter(|address| !named.contains(address)).map(Object::Chunk);
        let kept: BTreeSet<RankFile> = self.asks(now).flat_map(rank_files).collect();
        let ranks = self.ranks.keys().filter(|file| silent(&file.attempt) && !kept.contains(file));
        let ranks = ranks.map(|RankFile { epoch, rank, attempt }| Object::Rank {
            epoch: *epoch,
            rank: *rank,
            attempt: *attempt,
        });
        chunks.chain(ranks).collect()
    }

    /// Attempts that a manifest names, whether its state is still there or not.
    fn committed(&self) -> BTreeSet<Attempt> {
        let manifests = self.epochs.values().filter_map(|epoch| epoch.manifest.as_ref());
        manifests.flat_map(|manifest| manifest.ranks.values()).map(|entry| entry.attempt).collect()
    }

    /// When each attempt wrote last, by the later of the bucket's clock and its own. One that says it
    /// began in the future is not believed.
    fn last_writes(&self, now: Second) -> BTreeMap<Attempt, Second> {
        let chunks = self
            .chunks
            .iter()
            .flat_map(|(attempt, chunks)| chunks.values().map(|stored| (*attempt, stored.written)));
        let ranks = self.ranks.iter().map(|(file, written)| (file.attempt, *written));
        let mut last = BTreeMap::new();
        for (attempt, written) in chunks.chain(ranks) {
            let began = Some(attempt.second()).filter(|began| *began <= now).unwrap_or(0);
            let latest = last.entry(attempt).or_insert(began);
            *latest = written.max(*latest);
        }
        last
    }

    fn manifest(&self, epoch: u64) -> Option<&Manifest> {
        self.epochs.get(&epoch)?.manifest.as_ref()
    }
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.put_back.is_empty() && self.collect.is_empty() && self.delete.is_empty()
    }
}

/// The files of the ranks that a manifest names.
pub fn rank_files(manifest: &Manifest) -> impl Iterator<Item = RankFile> {
    let epoch = manifest.epoch;
    let entries = manifest.ranks.iter();
    entries.map(move |(rank, entry)| RankFile { epoch, rank: *rank, attempt: entry.attempt })
}

/// Whether nothing was written for long enough. What was written in the future was not.
pub fn is_quiet(written: Second, now: Second) -> bool {
    age(written, now) >= QUIET && written <= now
}

fn age(written: Second, now: Second) -> Duration {
    Duration::from_secs(now.saturating_sub(written))
}

#[cfg(test)]
mod tests;

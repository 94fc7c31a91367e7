//! Collection: what nothing names any more in the folder of one job key is looked at, and deleted.
//!
//! What may go is decided by [`Contents::plan`]; here it is read and acted on. The order of the reads
//! matters: chunks are listed before the manifests that may name them.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use lifeboat_checkpoint::chunk::Chunk;
use lifeboat_checkpoint::collect::Contents;
use lifeboat_checkpoint::collect::Epoch;
use lifeboat_checkpoint::collect::Plan;
use lifeboat_checkpoint::collect::RankFile;
use lifeboat_checkpoint::collect::Second;
use lifeboat_checkpoint::collect::Stored;
use lifeboat_checkpoint::collect::rank_files;
use lifeboat_checkpoint::key::Object;
use lifeboat_checkpoint::key::escape;
use lifeboat_checkpoint::key::unescape;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_domain::deadline::Deadline;
use object_store::path::Path;

use crate::adapters::store::Listed;
use crate::adapters::store::MANIFEST_MAX;
use crate::adapters::store::Replace;
use crate::adapters::store::Store;
use crate::adapters::store::StoreError;
use crate::adapters::store::Versioned;
use crate::clock::Clock;
use crate::data::history::History;
use crate::data::history::HistoryError;
use crate::data::history::Owner;
use crate::error::Class;
use crate::error::Classify;

/// How long one pass over a job key may take, from its first look to its last deletion.
///
/// Part of the arithmetic that keeps a save safe beside it: see
/// [`SILENT_MAX`](crate::data::save::SILENT_MAX).
pub const PASS_MAX: Duration = Duration::from_mins(5);

/// Objects of one job key that are looked at. A key with more is left alone, and said.
const OBJECTS_MAX: usize = 500_000;
/// Manifests of epochs that are read in one pass.
const MANIFESTS_MAX: usize = 500;
/// Bytes of manifests of ranks that are read in one pass: with more, only epochs are collected, so
/// that it is less the next time.
const RANKS_MAX: u64 = 64 << 20;
/// Objects that one request deletes.
const BATCH: usize = 250;
/// Objects of one job key that are deleted in one pass.
const DELETED_MAX: usize = 20_000;

/// What is known of a job key.
#[derive(Debug)]
pub struct Survey {
    /// What lies there.
    pub contents: Contents,
    /// When the look began.
    pub began: Timestamp,
}

/// What was done, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Epochs that nothing can go on from any more.
    pub epochs: usize,
    /// Epochs that were put back.
    pub put_back: usize,
    /// Chunks that were deleted.
    pub chunks: usize,
    /// Manifests of ranks that were deleted.
    pub ranks: usize,
    /// Bytes of those chunks.
    pub bytes: u64,
}

/// Whether one more request may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It may.
    Granted,
    /// It may not: the pass ends here.
    Withdrawn,
}

/// What became of letting an epoch go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetGo {
    /// Nothing goes on from it any more.
    Collected,
    /// The newest manifest or a pin names it: it is as it was.
    Wanted,
    /// There is no state of that number, or somebody else was first.
    Absent,
}

/// Why nothing of a job key is deleted.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The bucket.
    #[error("the bucket was not reached")]
    Store(#[source] StoreError),
    /// A manifest.
    #[error("a manifest was not read. Nothing of this job key is deleted.")]
    History(#[source] HistoryError),
    /// A manifest of a kind that a newer version writes.
    #[error(
        "epoch {epoch} is of a kind that a newer Lifeboat knows. Nothing of this job key is deleted."
    )]
    Kind {
        /// Which one.
        epoch: u64,
    },
    /// Something among the manifests that we do not write.
    #[error(
        "object `{path}` is none that this version writes. Nothing of this job key is deleted. Move it elsewhere if it is yours."
    )]
    Strange {
        /// Its key.
        path: Path,
    },
    /// Too many objects.
    #[error(
        "there are more than {OBJECTS_MAX} objects. This job key is left alone: delete it with another tool."
    )]
    TooMany,
}

impl Classify for CollectError {
    fn class(&self) -> Class {
        match self {
            Self::Store(source) => source.class(),
            Self::History(source) => source.class(),
            Self::Kind { .. } | Self::Strange { .. } | Self::TooMany => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Store(source) => source.label(),
            Self::History(source) => source.label(),
            Self::Kind { .. } => "kind",
            Self::Strange { .. } => "strange",
            Self::TooMany => "too_many",
        }
    }
}

/// Whose checkpoints there are, by their folders. Folders that we did not name are passed over.
pub async fn owners(
    store: &Store,
    (prefix, cluster): (&str, &str),
    by: Deadline,
) -> Result<Vec<Owner>, StoreError> {
    let segments = prefix.split('/').filter(|part| !part.is_empty()).chain([cluster]).map(escape);
    let top = Path::from(segments.collect::<Vec<String>>().join("/"));
    let mut owners = Vec::new();
    for folder in store.folders(&top, by).await? {
        let Some(namespace) = folder.filename().and_then(unescape) else { continue };
        for folder in store.folders(&folder, by).await? {
            let Some(job_key) = folder.filename().and_then(unescape) else { continue };
            let (cluster, namespace) = (cluster.to_owned(), namespace.clone());
            owners.push(Owner { cluster, namespace, job_key });
        }
    }
    Ok(owners)
}

/// Looks at all that lies in the folder of a job key.
pub async fn survey(history: &History, clock: &Clock) -> Result<Survey, CollectError> {
    let began = clock.now();
    let by = Deadline::after(began, PASS_MAX);
    let keys = history.keys();
    let mut contents = Contents::default();
    // Chunks first: what is committed after this names none of those that may go.
    for listed in list(history, &keys.chunks(), by).await? {
        if let Some(Object::Chunk(address)) = keys.object(listed.path.as_ref()) {
            let stored = Stored { written: second(listed.written), bytes: listed.bytes };
            contents.chunks.entry(address.attempt).or_default().insert(address.digest, stored);
        }
    }
    let mut sizes = Vec::new();
    for listed in list(history, &keys.epochs(), by).await? {
        match keys.object(listed.path.as_ref()) {
            Some(Object::Manifest(epoch)) => {
                let written = second(listed.written);
                contents.epochs.insert(epoch, Epoch { written, manifest: None });
            }
            Some(Object::Rank { epoch, rank, attempt }) => {
                let file = RankFile { epoch, rank, attempt };
                contents.ranks.insert(file, second(listed.written));
                sizes.push((file, listed.bytes));
            }
            Some(Object::Chunk(_) | Object::Pin(_)) | None => {
                return Err(CollectError::Strange { path: listed.path });
            }
        }
    }
    contents.pins = pins(history, by).await?;
    let whole = read_manifests(history, &mut contents, by).await?;
    if whole {
        read_ranks(history, &mut contents, &sizes, (second(began), by)).await?;
    }
    Ok(Survey { contents, began })
}

/// Does what was planned, asking for leave before each request.
///
/// Epochs first. Then it looks again, since a restore or a pin may have named one of them meanwhile,
/// and those are put back. Deletions come last.
pub async fn act<'a>(
    history: &History,
    clock: &Clock,
    (survey, plan): (&Survey, &Plan),
    leave: impl FnMut() -> BoxFuture<'a, Leave> + Send,
) -> Result<Tally, CollectError> {
    let by = Deadline::after(survey.began, PASS_MAX);
    let mut pass = Pass { leave, clock: clock.clone(), by };
    let mut tally = Tally::default();
    for epoch in &plan.put_back {
        if !pass.goes_on().await {
            return Ok(tally);
        }
        tally.put_back += usize::from(put_back(history, *epoch, by).await?);
    }
    for epoch in &plan.collect {
        if !pass.goes_on().await {
            return Ok(tally);
        }
        match let_go(history, *epoch, by).await? {
            LetGo::Collected => tally.epochs += 1,
            LetGo::Wanted => tally.put_back += 1,
            LetGo::Absent => (),
        }
    }
    let keys = history.keys();
    for batch in plan.delete[..plan.delete.len().min(DELETED_MAX)].chunks(BATCH) {
        if !pass.goes_on().await {
            break;
        }
        let paths: Vec<Path> = batch.iter().map(|object| Path::from(keys.key(object))).collect();
        history.store().delete(&paths, by).await.map_err(CollectError::Store)?;
        tally.count(&survey.contents, batch);
    }
    Ok(tally)
}

/// One pass over a job key, and how long it may go on.
struct Pass<F> {
    leave: F,
    clock: Clock,
    by: Deadline,
}

impl<'a, F: FnMut() -> BoxFuture<'a, Leave>> Pass<F> {
    async fn goes_on(&mut self) -> bool {
        (self.leave)().await == Leave::Granted && !self.by.has_passed(self.clock.now())
    }
}

/// Lets go of an epoch: its manifest says that its state is collected. What it named stays for a while.
///
/// If the newest manifest or a pin has come to name it meanwhile, it is put back: whoever claims from
/// it looks after the claim, and we look after this, so that one of the two sees the other.
pub async fn let_go(history: &History, epoch: u64, by: Deadline) -> Result<LetGo, CollectError> {
    if !replace(history, epoch, by, Manifest::collected).await? {
        return Ok(LetGo::Absent);
    }
    if is_wanted(history, epoch, by).await? {
        put_back(history, epoch, by).await?;
        return Ok(LetGo::Wanted);
    }
    Ok(LetGo::Collected)
}

/// Puts an epoch back whose state was let go of. Answers whether its state can be gone on from now.
///
/// Only right while all that it named is still there: just after it was collected, or while the newest
/// manifest names it.
pub async fn put_back(history: &History, epoch: u64, by: Deadline) -> Result<bool, CollectError> {
    if replace(history, epoch, by, Manifest::put_back).await? {
        return Ok(true);
    }
    let now = history.read(epoch, by).await.map_err(CollectError::History)?;
    Ok(now.is_some_and(|manifest| manifest.kind == Kind::Save))
}

impl Tally {
    /// What a plan would do.
    pub fn of(survey: &Survey, plan: &Plan) -> Self {
        let (epochs, put_back) = (plan.collect.len(), plan.put_back.len());
        let mut tally = Self { epochs, put_back, ..Self::default() };
        tally.count(&survey.contents, &plan.delete[..plan.delete.len().min(DELETED_MAX)]);
        tally
    }

    /// Whether it is nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn count(&mut self, contents: &Contents, objects: &[Object]) {
        for object in objects {
            match object {
                Object::Chunk(address) => {
                    let folder = contents.chunks.get(&address.attempt);
                    let stored = folder.and_then(|chunks| chunks.get(&address.digest));
                    self.chunks += 1;
                    self.bytes += stored.map_or(0, |stored| stored.bytes);
                }
                Object::Rank { .. } => self.ranks += 1,
                Object::Manifest(_) | Object::Pin(_) => (),
            }
        }
    }
}

/// Reads the manifests that are needed, the newest first. Answers whether it was all of them.
async fn read_manifests(
    history: &History,
    contents: &mut Contents,
    by: Deadline,
) -> Result<bool, CollectError> {
    let needs = contents.needs();
    for number in needs.iter().take(MANIFESTS_MAX) {
        let read = history.read(*number, by).await.map_err(CollectError::History)?;
        let Some(manifest) = read else { continue };
        if manifest.kind == Kind::Unknown {
            return Err(CollectError::Kind { epoch: *number });
        }
        if let Some(epoch) = contents.epochs.get_mut(number) {
            epoch.manifest = Some(manifest);
        }
    }
    Ok(needs.len() <= MANIFESTS_MAX)
}

/// Reads what the manifests of ranks name, unless they are too large together.
async fn read_ranks(
    history: &History,
    contents: &mut Contents,
    sizes: &[(RankFile, u64)],
    (now, by): (Second, Deadline),
) -> Result<(), CollectError> {
    let asks: Vec<Manifest> = contents.asks(now).cloned().collect();
    let wanted: BTreeSet<RankFile> = asks.iter().flat_map(rank_files).collect();
    let of_wanted = sizes.iter().filter(|(file, _)| wanted.contains(file));
    if of_wanted.map(|(_, bytes)| *bytes).fold(0, u64::saturating_add) > RANKS_MAX {
        return Ok(());
    }
    let mut named = BTreeSet::new();
    for manifest in &asks {
        for rank in manifest.ranks.keys() {
            let read = history.read_rank(manifest, *rank, by).await;
            let read = read.map_err(CollectError::History)?;
            named.extend(read.chunks.iter().filter_map(Chunk::address));
        }
    }
    contents.named = Some(named);
    Ok(())
}

/// Whether an epoch is the newest or the newest goes on from it, or a pin keeps it.
async fn is_wanted(history: &History, epoch: u64, by: Deadline) -> Result<bool, CollectError> {
    let newest = history.newest(by).await.map_err(CollectError::History)?;
    let named =
        newest.is_some_and(|newest| newest.epoch == epoch || newest.restores_from() == Some(epoch));
    Ok(named || pins(history, by).await?.contains(&epoch))
}

/// Replaces the manifest of an epoch by another of the same number. Answers whether it did.
async fn replace(
    history: &History,
    epoch: u64,
    by: Deadline,
    change: impl Fn(&Manifest) -> Option<Manifest>,
) -> Result<bool, CollectError> {
    let Some((read, manifest)) = read(history, epoch, by).await? else { return Ok(false) };
    let Some(changed) = change(&manifest) else { return Ok(false) };
    let path = Path::from(history.keys().manifest(epoch));
    let bytes = Bytes::from(changed.to_bytes());
    let replaced = history.store().replace((&path, &read), &bytes, by).await;
    Ok(replaced.map_err(CollectError::Store)? == Replace::Replaced)
}

async fn read(
    history: &History,
    epoch: u64,
    by: Deadline,
) -> Result<Option<(Versioned, Manifest)>, CollectError> {
    let path = Path::from(history.keys().manifest(epoch));
    let read = match history.store().read_version(&path, MANIFEST_MAX, by).await {
        Ok(read) => read,
        Err(StoreError::Missing { .. }) => return Ok(None),
        Err(source) => return Err(CollectError::Store(source)),
    };
    let manifest = history.parse(epoch, &read.bytes).map_err(CollectError::History)?;
    Ok(Some((read, manifest)))
}

/// The epochs that somebody wants to keep.
pub async fn pins(history: &History, by: Deadline) -> Result<BTreeSet<u64>, CollectError> {
    let listed = list(history, &history.keys().pins(), by).await?;
    let pins = listed.iter().map(|listed| match history.keys().object(listed.path.as_ref()) {
        Some(Object::Pin(epoch)) => Ok(epoch),
        Some(Object::Chunk(_) | Object::Manifest(_) | Object::Rank { .. }) | None => {
            Err(CollectError::Strange { path: listed.path.clone() })
        }
    });
    pins.collect()
}

async fn list(history: &History, folder: &str, by: Deadline) -> Result<Vec<Listed>, CollectError> {
    let listed = history.store().list(&Path::from(folder), OBJECTS_MAX + 1, by).await;
    let listed = listed.map_err(CollectError::Store)?;
    if listed.len() > OBJECTS_MAX { Err(CollectError::TooMany) } else { Ok(listed) }
}

fn second(at: Timestamp) -> Second {
    u64::try_from(at.as_second()).unwrap_or(0)
}

impl Survey {
    /// What may be done, if the newest `keep` states stay.
    pub fn plan(&self, keep: usize) -> Plan {
        self.contents.plan(keep, second(self.began))
    }
}

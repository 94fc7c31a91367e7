//! The bucket: chunks that never change, and manifests that are only ever created.
//!
//! Every call is bounded by what is left until its deadline, and tried again only by
//! [`retry::until`](crate::retry::until); the client beneath has its own retries off.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backon::BackoffBuilder;
use backon::ExponentialBuilder;
use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use lifeboat_checkpoint::chunk::Chunk;
use lifeboat_checkpoint::chunk::ChunkError;
use lifeboat_domain::deadline::Deadline;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::PutMode;
use object_store::PutOptions;
use object_store::UpdateVersion;
use object_store::path::Path;

use crate::clock::Clock;
use crate::error::Class;
use crate::error::Classify;
use crate::metrics;
use crate::offload::Offload;
use crate::retry;

/// How long one request may hang before it is given up and tried again.
///
/// Doubled at each attempt, so that a slow wire is not mistaken for a dead one for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most bytes of a manifest that we read.
pub const MANIFEST_MAX: u64 = 64 << 20;

/// Most names that one listing returns.
const NAMES_MAX: usize = 100_000;

/// Bytes above which hashing leaves the async thread.
const INLINE_MAX: usize = 1 << 20;

/// A bucket, reached through `object_store`.
#[derive(Clone, Debug)]
pub struct Store {
    bucket: Arc<dyn ObjectStore>,
    slow_downs: SlowDowns,
    clock: Clock,
    offload: Offload,
}

/// How often a bucket has asked for fewer requests. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SlowDowns(Arc<AtomicU64>);

impl SlowDowns {
    /// How often so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Once more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What became of a conditional create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Create {
    /// The object is there, with our bytes.
    Created,
    /// Somebody else's object is there; these are its bytes.
    AlreadyExists(Bytes),
}

/// What became of a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// The object holds our bytes.
    Replaced,
    /// It is not what was read any more, or gone.
    Changed,
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub path: Path,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the bucket's clock.
    pub written: Timestamp,
}

/// What was read, and which version of the object it was.
#[derive(Clone, Debug)]
pub struct Versioned {
    /// Its bytes.
    pub bytes: Bytes,
    /// When it was written, by the bucket's clock.
    pub written: Timestamp,
    version: UpdateVersion,
}

/// Why an object was not stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bucket did not answer before the deadline, or the attempt's share of it.
    #[error("object `{path}` was not answered for in time")]
    Late {
        /// The object.
        path: Path,
    },
    /// The bucket could not be reached, or answered that it may be asked again.
    #[error("object `{path}` was not reached")]
    Unreached {
        /// The object.
        path: Path,
        /// What the client said.
        source: object_store::Error,
    },
    /// The bucket asks for fewer requests at a time: 503, or 429.
    #[error("object `{path}` was put off: the bucket asks for fewer requests")]
    SlowDown {
        /// The object.
        path: Path,
        /// What the client said.
        source: object_store::Error,
    },
    /// The bucket said no, and will say so again.
    #[error("object `{path}` is refused")]
    Refused {
        /// The object.
        path: Path,
        /// What the client said.
        source: object_store::Error,
    },
    /// There is no such object.
    #[error("object `{path}` is not there")]
    Missing {
        /// The object.
        path: Path,
    },
    /// The object holds more bytes than it may.
    #[error("object `{path}` holds {found} bytes, and may hold {allowed}")]
    Size {
        /// The object.
        path: Path,
        /// Bytes it holds.
        found: u64,
        /// Bytes it may hold at most.
        allowed: u64,
    },
    /// The bytes are not those that the name promises.
    #[error("object `{path}` holds other bytes than its name says")]
    Corrupt {
        /// The object.
        path: Path,
        /// What was found.
        source: ChunkError,
    },
}

impl Classify for StoreError {
    fn class(&self) -> Class {
        match self {
            Self::Late { .. } | Self::Unreached { .. } | Self::SlowDown { .. } => Class::Transient,
            Self::Refused { .. }
            | Self::Missing { .. }
            | Self::Size { .. }
            | Self::Corrupt { .. } => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Late { .. } => "late",
            Self::Unreached { .. } => "unreached",
            Self::SlowDown { .. } => "slow-down",
            Self::Refused { .. } => "refused",
            Self::Missing { .. } => "missing",
            Self::Size { .. } => "size",
            Self::Corrupt { .. } => "corrupt",
        }
    }
}

impl Store {
    /// A store over any `object_store` client.
    pub fn new(bucket: Arc<dyn ObjectStore>, clock: Clock, offload: Offload) -> Self {
        Self { bucket, slow_downs: SlowDowns::default(), clock, offload }
    }

    /// How often this bucket has asked for fewer requests.
    pub fn slow_downs(&self) -> SlowDowns {
        self.slow_downs.clone()
    }

    /// Puts an object whose name follows from its content, so that writing it twice is no fault.
    pub async fn put(&self, path: &Path, bytes: &Bytes, by: Deadline) -> Result<(), StoreError> {
        let bytes = bytes.clone();
        self.until(path, by, move |store, path| {
            let bytes = bytes.clone();
            async move { store.put_once(&path, &bytes).await }.boxed()
        })
        .await
    }

    /// Creates an object if there is none.
    ///
    /// An answer that was lost is told from a lost race by reading what is there: equal bytes are
    /// ours, so the bytes must name their writer.
    pub async fn create(
        &self,
        path: &Path,
        bytes: &Bytes,
        by: Deadline,
    ) -> Result<Create, StoreError> {
        let bytes = bytes.clone();
        self.until(path, by, move |store, path| {
            let bytes = bytes.clone();
            async move { store.create_once(&path, &bytes).await }.boxed()
        })
        .await
    }

    /// Reads an object of at most `limit` bytes.
    pub async fn read(&self, path: &Path, limit: u64, by: Deadline) -> Result<Bytes, StoreError> {
        self.until(path, by, move |store, path| {
            async move { store.read_once(&path, limit).await }.boxed()
        })
        .await
    }

    /// Reads an object of at most `limit` bytes, to [replace](Self::replace) it.
    pub async fn read_version(
        &self,
        path: &Path,
        limit: u64,
        by: Deadline,
    ) -> Result<Versioned, StoreError> {
        self.until(path, by, move |store, path| {
            async move { store.read_version_once(&path, limit).await }.boxed()
        })
        .await
    }

    /// Replaces an object if it is still what was read.
    pub async fn replace(
        &self,
        (path, read): (&Path, &Versioned),
        bytes: &Bytes,
        by: Deadline,
    ) -> Result<Replace, StoreError> {
        let (version, bytes) = (read.version.clone(), bytes.clone());
        self.until(path, by, move |store, path| {
            let (version, bytes) = (version.clone(), bytes.clone());
            async move { store.replace_once(&path, version, &bytes).await }.boxed()
        })
        .await
    }

    /// Deletes objects. One that is not there is no fault.
    pub async fn delete(&self, paths: &[Path], by: Deadline) -> Result<(), StoreError> {
        let Some(first) = paths.first() else { return Ok(()) };
        let paths = paths.to_vec();
        self.until(first, by, move |store, _| {
            let paths = paths.clone();
            async move { store.delete_once(paths).await }.boxed()
        })
        .await
    }

    /// Lists at most `most` objects below a folder.
    pub async fn list(
        &self,
        folder: &Path,
        most: usize,
        by: Deadline,
    ) -> Result<Vec<Listed>, StoreError> {
        self.until(folder, by, move |store, folder| {
            async move { store.list_once(&folder, most).await }.boxed()
        })
        .await
    }

    /// Names the folders in a folder, in order.
    pub async fn folders(&self, folder: &Path, by: Deadline) -> Result<Vec<Path>, StoreError> {
        self.until(folder, by, |store, folder| {
            async move { store.folders_once(&folder).await }.boxed()
        })
        .await
    }

    /// Reads a chunk that is stored under its hash, and checks that it is what it should be.
    pub async fn read_chunk(
        &self,
        path: &Path,
        chunk: Chunk,
        by: Deadline,
    ) -> Result<Bytes, StoreError> {
        let bytes = self.read(path, chunk.bytes, by).await?;
        let checked = bytes.clone();
        let verify = move || chunk.verify(&checked);
        let verified =
            if bytes.len() <= INLINE_MAX { verify() } else { self.offload.run(verify).await };
        verified.map_err(|source| StoreError::Corrupt { path: path.clone(), source })?;
        Ok(bytes)
    }

    /// Names all objects below a folder, at most a hundred thousand, in order.
    pub async fn names(&self, folder: &Path, by: Deadline) -> Result<Vec<Path>, StoreError> {
        self.until(folder, by, |store, folder| {
            async move { store.names_once(&folder).await }.boxed()
        })
        .await
    }

    async fn put_once(&self, path: &Path, bytes: &Bytes) -> Result<(), StoreError> {
        let put = self.bucket.put(path, bytes.clone().into()).await;
        put.map(|_| ()).map_err(|source| refusal(path, source))
    }

    async fn create_once(&self, path: &Path, bytes: &Bytes) -> Result<Create, StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.bucket.put_opts(path, bytes.clone().into(), options).await {
            Ok(_) => Ok(Create::Created),
            Err(object_store::Error::AlreadyExists { path: _, source }) => {
                self.compare(path, bytes, source).await
            }
            Err(source) => Err(refusal(path, source)),
        }
    }

    async fn names_once(&self, folder: &Path) -> Result<Vec<Path>, StoreError> {
        let objects = self.list_once(folder, NAMES_MAX).await?;
        let mut names: Vec<Path> = objects.into_iter().map(|object| object.path).collect();
        names.sort();
        Ok(names)
    }

    async fn list_once(&self, folder: &Path, most: usize) -> Result<Vec<Listed>, StoreError> {
        let mut objects = Vec::new();
        let mut listing = self.bucket.list(Some(folder));
        while objects.len() < most {
            let next = listing.try_next().await.map_err(|source| refusal(folder, source))?;
            let Some(object) = next else { break };
            let written = second(object.last_modified.timestamp());
            objects.push(Listed { path: object.location, bytes: object.size, written });
        }
        Ok(objects)
    }

    async fn folders_once(&self, folder: &Path) -> Result<Vec<Path>, StoreError> {
        let listed = self.bucket.list_with_delimiter(Some(folder)).await;
        let mut folders = listed.map_err(|source| refusal(folder, source))?.common_prefixes;
        folders.sort();
        Ok(folders)
    }

    async fn read_version_once(&self, path: &Path, limit: u64) -> Result<Versioned, StoreError> {
        let found = self.bucket.get(path).await.map_err(|source| refusal(path, source))?;
        let meta = found.meta.clone();
        if meta.size > limit {
            let (path, found) = (path.clone(), meta.size);
            return Err(StoreError::Size { path, found, allowed: limit });
        }
        let bytes = found.bytes().await.map_err(|source| refusal(path, source))?;
        let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
        Ok(Versioned { bytes, written: second(meta.last_modified.timestamp()), version })
    }

    /// A replacement whose answer was lost is told by what is there.
    async fn replace_once(
        &self,
        path: &Path,
        version: UpdateVersion,
        bytes: &Bytes,
    ) -> Result<Replace, StoreError> {
        let options = PutOptions { mode: PutMode::Update(version), ..PutOptions::default() };
        match self.bucket.put_opts(path, bytes.clone().into(), options).await {
            Ok(_) => Ok(Replace::Replaced),
            Err(
                object_store::Error::Precondition { .. } | object_store::Error::NotFound { .. },
            ) => match self.read_once(path, MANIFEST_MAX).await {
                Ok(found) if found == *bytes => Ok(Replace::Replaced),
                Ok(_) | Err(StoreError::Missing { .. }) => Ok(Replace::Changed),
                Err(error) => Err(error),
            },
            Err(source) => Err(refusal(path, source)),
        }
    }

    async fn delete_once(&self, paths: Vec<Path>) -> Result<(), StoreError> {
        let named = futures::stream::iter(paths.clone().into_iter().map(Ok)).boxed();
        let mut deleted = self.bucket.delete_stream(named).zip(futures::stream::iter(paths));
        while let Some((answer, path)) = deleted.next().await {
            match answer {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => (),
                Err(source) => return Err(refusal(&path, source)),
            }
        }
        Ok(())
    }

    async fn read_once(&self, path: &Path, limit: u64) -> Result<Bytes, StoreError> {
        let found = self.bucket.get(path).await.map_err(|source| refusal(path, source))?;
        if found.meta.size > limit {
            let (path, found) = (path.clone(), found.meta.size);
            return Err(StoreError::Size { path, found, allowed: limit });
        }
        found.bytes().await.map_err(|source| refusal(path, source))
    }

    /// Whose object is there: ours, whose answer was lost, or another's?
    ///
    /// S3 also answers 409 while another create is under way, and then there may be none yet.
    async fn compare(
        &self,
        path: &Path,
        ours: &Bytes,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> Result<Create, StoreError> {
        match self.read_once(path, MANIFEST_MAX).await {
            Ok(found) if found == *ours => Ok(Create::Created),
            Ok(found) => Ok(Create::AlreadyExists(found)),
            Err(StoreError::Missing { path }) => {
                let source = object_store::Error::AlreadyExists { path: path.to_string(), source };
                Err(StoreError::Unreached { path, source })
            }
            Err(error) => Err(error),
        }
    }

    // Boxed and owned: a compiler that looks into borrows here cannot tell that they may change
    // threads.
    fn until<T: Send + 'static>(
        &self,
        path: &Path,
        by: Deadline,
        attempt: impl Fn(Self, Path) -> BoxFuture<'static, Result<T, StoreError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        let (store, path, clock) = (self.clone(), path.clone(), self.clock.clone());
        let mut patience = PATIENCE;
        let bounded = move || {
            let within = patience.min(by.left(store.clock.now()));
            patience *= 2;
            let answer = tokio::time::timeout(within, attempt(store.clone(), path.clone()));
            let (path, slow_downs) = (path.clone(), store.slow_downs.clone());
            async move {
                let answer = answer.await.unwrap_or(Err(StoreError::Late { path }));
                if let Err(StoreError::SlowDown { .. }) = &answer {
                    slow_downs.add();
                    metrics::store_slow_down();
                }
                answer
            }
            .boxed()
        };
        async move { retry::until(by, pauses(), &clock, bounded).await }.boxed()
    }
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_factor(2.0)
        .without_max_times()
        .build()
}

fn refusal(path: &Path, source: object_store::Error) -> StoreError {
    use object_store::Error;
    let path = path.clone();
    if matches!(source, Error::NotFound { .. }) {
        return StoreError::Missing { path };
    }
    if is_slow_down(&source) {
        return StoreError::SlowDown { path, source };
    }
    // Everything that the client has no name for: no answer, 429, 5xx. 409 is said while another
    // create is under way.
    let may_be_repeated = matches!(
        source,
        Error::Generic { .. } | Error::AlreadyExists { .. } | Error::JoinError { .. }
    );
    if may_be_repeated {
        StoreError::Unreached { path, source }
    } else {
        StoreError::Refused { path, source }
    }
}

/// The client has no type of its own for these that could be named from outside: it writes the
/// status into its error's text.
fn is_slow_down(error: &object_store::Error) -> bool {
    let object_store::Error::Generic { source, .. } = error else { return false };
    let text = source.to_string();
    ["503 ", "429 "].iter().any(|status| text.contains(&format!("status code: {status}")))
}

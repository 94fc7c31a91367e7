//! The history of a job key in the bucket: a numbered sequence, each number created once.

use std::collections::BTreeSet;

use bytes::Bytes;
use lifeboat_checkpoint::key::KeyError;
use lifeboat_checkpoint::key::Keys;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_checkpoint::manifest::ManifestError;
use lifeboat_checkpoint::manifest::Place;
use lifeboat_checkpoint::manifest::RankManifest;
use lifeboat_domain::deadline::Deadline;
use object_store::path::Path;

use crate::adapters::store::Create;
use crate::adapters::store::MANIFEST_MAX;
use crate::adapters::store::Store;
use crate::adapters::store::StoreError;
use crate::error::Class;
use crate::error::Classify;

/// Whose checkpoints: a job key in its namespace and cluster. No key leaves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The cluster.
    pub cluster: String,
    /// The namespace.
    pub namespace: String,
    /// The job key.
    pub job_key: String,
}

/// The epochs of one job key, in their order.
#[derive(Clone, Debug)]
pub struct History {
    store: Store,
    owner: Owner,
    keys: Keys,
}

/// What became of an epoch that we wrote.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// The number is ours.
    Ours,
    /// Somebody else has the number; this is theirs.
    Theirs(Box<Manifest>),
}

/// Why an epoch was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The bucket.
    #[error("epoch {epoch} was not reached")]
    Store {
        /// Which one; 0 for all.
        epoch: u64,
        /// What the bucket said.
        source: StoreError,
    },
    /// What is there cannot be used.
    #[error("epoch {epoch} is not one that can be read here")]
    Manifest {
        /// Which one.
        epoch: u64,
        /// What is wrong with it.
        source: ManifestError,
    },
}

impl HistoryError {
    /// Whether the bucket did not give it, rather than that it cannot be used.
    pub fn is_of_the_bucket(&self) -> bool {
        match self {
            Self::Store { .. } => true,
            Self::Manifest { .. } => false,
        }
    }
}

impl Classify for HistoryError {
    fn class(&self) -> Class {
        match self {
            Self::Store { source, .. } => source.class(),
            Self::Manifest { .. } => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Store { source, .. } => source.label(),
            Self::Manifest { .. } => "manifest",
        }
    }
}

impl History {
    /// The history of an owner, under the operator's prefix.
    pub fn new(store: Store, prefix: &str, owner: Owner) -> Result<Self, KeyError> {
        let keys = Keys::new(prefix, &owner.cluster, &owner.namespace, &owner.job_key)?;
        Ok(Self { store, owner, keys })
    }

    /// Whose it is.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Where its parts lie.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The bucket it lies in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The numbers that have a manifest, in order.
    pub async fn numbers(&self, by: Deadline) -> Result<BTreeSet<u64>, HistoryError> {
        let folder = Path::from(self.keys.epochs());
        let names = self.store.names(&folder, by).await;
        let names = names.map_err(|source| HistoryError::Store { epoch: 0, source })?;
        Ok(names.iter().filter_map(|name| self.keys.epoch_of(name.as_ref())).collect())
    }

    /// The manifest with the highest number, if there is any.
    pub async fn newest(&self, by: Deadline) -> Result<Option<Manifest>, HistoryError> {
        match self.numbers(by).await?.last().copied() {
            Some(epoch) => self.read(epoch, by).await,
            None => Ok(None),
        }
    }

    /// The manifest of a number, if it is there.
    pub async fn read(&self, epoch: u64, by: Deadline) -> Result<Option<Manifest>, HistoryError> {
        let path = Path::from(self.keys.manifest(epoch));
        match self.store.read(&path, MANIFEST_MAX, by).await {
            Ok(bytes) => Ok(Some(self.parse(epoch, &bytes)?)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(source) => Err(HistoryError::Store { epoch, source }),
        }
    }

    /// The manifest of a rank that an epoch names.
    pub async fn read_rank(
        &self,
        manifest: &Manifest,
        rank: u32,
        by: Deadline,
    ) -> Result<RankManifest, HistoryError> {
        let epoch = manifest.epoch;
        let Some(entry) = manifest.ranks.get(&rank) else {
            let (found, world) = (manifest.ranks.len(), manifest.world);
            return Err(HistoryError::Manifest {
                epoch,
                source: ManifestError::Ranks { found, world },
            });
        };
        let path = Path::from(self.keys.rank(epoch, rank, entry.attempt));
        let bytes = self.store.read(&path, MANIFEST_MAX, by).await;
        let bytes = bytes.map_err(|source| HistoryError::Store { epoch, source })?;
        let parsed = manifest.parse_rank(rank, &bytes);
        parsed.map_err(|source| HistoryError::Manifest { epoch, source })
    }

    /// Creates the epoch that a manifest names. This is the commit: it comes last.
    ///
    /// Whoever comes second learns whose the number is, and never tries the next one.
    pub async fn create(&self, manifest: &Manifest, by: Deadline) -> Result<Written, HistoryError> {
        let epoch = manifest.epoch;
        let path = Path::from(self.keys.manifest(epoch));
        let bytes = Bytes::from(manifest.to_bytes());
        match self.store.create(&path, &bytes, by).await {
            Ok(Create::Created) => Ok(Written::Ours),
            Ok(Create::AlreadyExists(theirs)) => {
                Ok(Written::Theirs(Box::new(self.parse(epoch, &theirs)?)))
            }
            Err(source) => Err(HistoryError::Store { epoch, source }),
        }
    }

    /// Reads the bytes of a manifest, and checks that they are those of this place.
    pub fn parse(&self, epoch: u64, bytes: &[u8]) -> Result<Manifest, HistoryError> {
        let refused = |source| HistoryError::Manifest { epoch, source };
        let manifest = Manifest::parse(bytes).map_err(refused)?;
        let Owner { cluster, namespace, job_key } = &self.owner;
        manifest.check_place(&Place { cluster, namespace, job_key, epoch }).map_err(refused)?;
        Ok(manifest)
    }
}

//! The bucket, as the controller needs it: what is durable of a pod whose agent is silent, and the
//! whole records of closed interruptions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat_checkpoint::key::escape;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_domain::cluster::facts::Bucket as Holds;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::deadline::earlier;
use lifeboat_domain::ids::Epoch;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::ids::Step;
use lifeboat_domain::workload::Stored;
use object_store::ObjectStore;
use object_store::path::Path;
use serde_json::Value;

use crate::adapters::store::Store;
use crate::adapters::store::StoreError;
use crate::clock::Clock;
use crate::controller::settings::Settings;
use crate::data::collect;
use crate::data::history::History;
use crate::data::history::HistoryError;
use crate::data::history::Owner;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;
use crate::offload::Offload;

/// Longest that one look may take.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How many epochs are looked through for the one that a pod committed: its successor's claim, and
/// what may have followed, stand above it.
const EPOCHS_MAX: u64 = 4;
/// How far clocks may differ before a manifest counts as made ahead of the notice.
const SKEW: Duration = Duration::from_secs(5);

/// The bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    store: Store,
    clock: Clock,
    cluster: String,
    prefix: String,
}

/// Whose manifest is looked for.
#[derive(Clone, Debug)]
pub struct Sought<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// The job key.
    pub job_key: &'a str,
    /// The pod.
    pub pod_uid: &'a str,
    /// Not before this moment, the first notice.
    pub since: Timestamp,
}

impl Bucket {
    /// The bucket behind a store.
    pub fn new(store: Arc<dyn ObjectStore>, clock: &Clock, settings: &Settings) -> Self {
        Self {
            // The controller reads small manifests and hashes nothing.
            store: Store::new(store, clock.clone(), Offload::Inline),
            clock: clock.clone(),
            cluster: settings.cluster.clone(),
            prefix: settings.prefix.clone(),
        }
    }

    /// What the bucket holds of one pod; unknown if it cannot be read.
    pub async fn look(&self, sought: &Sought<'_>) -> Holds {
        match self.find(sought).await {
            Ok(Some(stored)) => Holds::Manifest(stored),
            Ok(None) => Holds::Nothing,
            Err(error) => {
                metrics::error("store", error.label());
                tracing::warn!(job_key = sought.job_key, error = %Chain(&error), "bucket not read");
                Holds::Unknown
            }
        }
    }

    /// Whose checkpoints there are.
    pub async fn owners(&self, by: Deadline) -> Result<Vec<Owner>, StoreError> {
        collect::owners(&self.store, (&self.prefix, &self.cluster), by).await
    }

    /// The history of an owner; none if its names make no key.
    pub fn history(&self, owner: Owner) -> Option<History> {
        History::new(self.store.clone(), &self.prefix, owner).ok()
    }

    /// Keeps the whole record of a closed interruption.
    pub async fn keep(&self, instance: &InstanceId, record: &Value) -> Result<(), StoreError> {
        let folders = self.prefix.split('/').filter(|part| !part.is_empty()).map(escape);
        let folders: Vec<String> = folders.chain([escape(&self.cluster)]).collect();
        let path = Path::from(format!("{}/_records/{instance}.json", folders.join("/")));
        let bytes = Bytes::from(record.to_string());
        self.store.put(&path, &bytes, self.by()).await
    }

    async fn find(&self, sought: &Sought<'_>) -> Result<Option<Stored>, HistoryError> {
        let owner = Owner {
            cluster: self.cluster.clone(),
            namespace: sought.namespace.to_owned(),
            job_key: sought.job_key.to_owned(),
        };
        let Ok(history) = History::new(self.store.clone(), &self.prefix, owner) else {
            return Ok(None);
        };
        let mut next = history.newest(self.by()).await?;
        for _ in 0..EPOCHS_MAX {
            let Some(manifest) = next else { return Ok(None) };
            if let Some(stored) = committed_by(&manifest, sought) {
                return Ok(Some(stored));
            }
            let below = manifest.epoch.saturating_sub(1);
            next = if below == 0 { None } else { history.read(below, self.by()).await? };
        }
        Ok(None)
    }

    fn by(&self) -> Deadline {
        Deadline::after(self.clock.now(), LOOK_MAX)
    }
}

fn committed_by(manifest: &Manifest, sought: &Sought<'_>) -> Option<Stored> {
    let at: Timestamp = manifest.created_at.parse().ok()?;
    let is_theirs = manifest.kind == Kind::Save && manifest.holder.pod_uid == sought.pod_uid;
    let is_new = at >= earlier(sought.since, SKEW);
    (is_theirs && is_new).then_some(Stored {
        epoch: Epoch(manifest.epoch),
        step: Some(Step(manifest.step)),
        bytes: manifest.bytes,
        at,
    })
}

//! `lifeboat checkpoints`: what lies in the bucket.

pub mod collect;
pub mod pin;
pub mod remove;

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use lifeboat_checkpoint::key::escape;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_domain::deadline::Deadline;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::Serialize;

use crate::adapters::store::Store;
use crate::clock::Clock;
use crate::commands::CommandError;
use crate::commands::table::Table;
use crate::commands::table::bytes;
use crate::config::Config;
use crate::data::collect as collection;
use crate::data::history::History;
use crate::data::history::Owner;
use crate::offload::Offload;

/// How long one command may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// What every manifest of an epoch is called.
const MANIFEST: &str = "MANIFEST.json";

/// Job keys that are listed at most.
const KEYS_MAX: usize = 10_000;

/// Which part of the bucket is listed.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The bucket's name, for messages.
    pub bucket: String,
    /// The folder of the cluster.
    pub folder: Path,
    /// One namespace, or all.
    pub namespace: Option<String>,
}

/// A bucket to work on: one cluster's part of it.
#[derive(Clone, Debug)]
pub struct Bucket {
    store: Store,
    clock: Clock,
    name: String,
    prefix: String,
    cluster: String,
}

/// One job key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// The job key.
    pub job_key: String,
}

/// One epoch, or the newest one of a job key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its namespace.
    pub namespace: String,
    /// Its job key.
    pub job_key: String,
    /// The number of its newest manifest.
    pub epoch: u64,
    /// What that is: `save`, `claim` or `finished`.
    pub kind: String,
    /// Steps completed.
    pub step: u64,
    /// The bytes that it names.
    pub bytes: u64,
    /// When it was made.
    pub created_at: String,
    /// The pod that holds it.
    pub pod: String,
    /// Whether it is kept from being collected.
    pub pinned: bool,
}

impl Bucket {
    /// The part of the bucket that `config` names.
    pub fn new(config: &Config, store: Arc<dyn ObjectStore>, clock: &Clock) -> Self {
        Self {
            store: Store::new(store, clock.clone(), Offload::Inline),
            clock: clock.clone(),
            name: config.store.bucket.clone(),
            prefix: config.store.prefix.clone(),
            cluster: config.cluster.clone(),
        }
    }

    fn by(&self) -> Deadline {
        Deadline::after(self.clock.now(), PATIENCE)
    }

    fn history(&self, key: &Key) -> Result<History, CommandError> {
        let Key { namespace, job_key } = key.clone();
        let owner = Owner { cluster: self.cluster.clone(), namespace, job_key };
        let history = History::new(self.store.clone(), &self.prefix, owner);
        history.map_err(|source| CommandError::Refused { what: source.to_string() })
    }

    fn failed(&self, source: impl std::error::Error + Send + Sync + 'static) -> CommandError {
        CommandError::Bucket { bucket: self.name.clone(), source: source.into() }
    }
}

/// Every epoch of one job key, the newest first.
pub async fn epochs(bucket: &Bucket, key: &Key) -> Result<Vec<Row>, CommandError> {
    let history = bucket.history(key)?;
    let numbers = history.numbers(bucket.by()).await.map_err(|error| bucket.failed(error))?;
    let pins = collection::pins(&history, bucket.by()).await;
    let pins = pins.map_err(|error| bucket.failed(error))?;
    let mut rows = Vec::new();
    for number in numbers.into_iter().rev() {
        let row = match history.read(number, bucket.by()).await {
            Ok(Some(manifest)) => row(manifest),
            Ok(None) => continue,
            Err(error) if error.is_of_the_bucket() => return Err(bucket.failed(error)),
            Err(_) => unreadable(&Path::from(history.keys().manifest(number))),
        };
        rows.push(Row { pinned: pins.contains(&number), ..row });
    }
    Ok(rows)
}

impl Scope {
    /// What `config` names, or one namespace of it.
    pub fn new(config: &Config, namespace: Option<String>) -> Self {
        let folder = format!("{}/{}", config.store.prefix, config.cluster);
        Self { bucket: config.store.bucket.clone(), folder: Path::from(folder), namespace }
    }
}

/// The newest epoch of every job key, read from the manifests themselves.
pub async fn newest(store: &dyn ObjectStore, scope: &Scope) -> Result<Vec<Row>, CommandError> {
    let failed = |source: object_store::Error| CommandError::Bucket {
        bucket: scope.bucket.clone(),
        source: source.into(),
    };
    let mut rows = Vec::new();
    for namespace in folders(store, &scope.folder).await.map_err(failed)? {
        // `_records` and its like are ours, and no namespace.
        let name = namespace.filename().unwrap_or_default();
        let wanted = scope.namespace.as_ref().is_none_or(|wanted| escape(wanted) == name);
        if name.starts_with('_') || !wanted {
            continue;
        }
        for key in folders(store, &namespace).await.map_err(failed)?.into_iter().take(KEYS_MAX) {
            rows.extend(newest_of(store, &key).await.map_err(failed)?);
        }
    }
    Ok(rows)
}

/// As a person reads it.
pub fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no checkpoints\n".to_owned();
    }
    let heading = ["NAMESPACE", "KEY", "EPOCH", "KIND", "STEP", "BYTES", "MADE", "POD", "PINNED"];
    let mut table = Table::new("", &heading);
    for row in rows {
        table.add([
            row.namespace.clone(),
            row.job_key.clone(),
            row.epoch.to_string(),
            row.kind.clone(),
            row.step.to_string(),
            bytes(row.bytes),
            row.created_at.clone(),
            row.pod.clone(),
            if row.pinned { "yes".to_owned() } else { String::new() },
        ]);
    }
    table.render()
}

/// As a program reads it.
pub fn json(rows: &[Row]) -> String {
    let text = serde_json::to_string_pretty(rows).expect("rows are plain data");
    format!("{text}\n")
}

async fn folders(store: &dyn ObjectStore, folder: &Path) -> object_store::Result<Vec<Path>> {
    let mut folders = store.list_with_delimiter(Some(folder)).await?.common_prefixes;
    folders.sort();
    Ok(folders)
}

async fn newest_of(store: &dyn ObjectStore, key: &Path) -> object_store::Result<Option<Row>> {
    let objects: Vec<Path> = store
        .list(Some(&key.clone().join("epochs")))
        .map_ok(|object| object.location)
        .try_collect()
        .await?;
    // Numbers have a fixed width in paths, so that the last in order is the newest.
    let newest = objects.into_iter().filter(|path| path.filename() == Some(MANIFEST)).max();
    let Some(path) = newest else { return Ok(None) };
    let content = store.get(&path).await?.bytes().await?;
    let newest = match Manifest::parse(&content) {
        Ok(manifest) => row(manifest),
        Err(_) => unreadable(&path),
    };
    let pins = store.list_with_delimiter(Some(&key.clone().join("pins"))).await?.objects;
    let name = format!("{:010}.json", newest.epoch);
    let pinned = pins.iter().any(|pin| pin.location.filename() == Some(&name));
    Ok(Some(Row { pinned, ..newest }))
}

fn row(manifest: Manifest) -> Row {
    let kind = match manifest.kind {
        Kind::Save => "save",
        Kind::Claim => "claim",
        Kind::Finished => "finished",
        Kind::Collected => "collected",
        Kind::Unknown => "unknown",
    };
    Row {
        namespace: manifest.namespace,
        job_key: manifest.job_key,
        epoch: manifest.epoch,
        kind: kind.to_owned(),
        step: manifest.step,
        bytes: manifest.bytes,
        created_at: manifest.created_at,
        pod: manifest.holder.pod,
        pinned: false,
    }
}

/// What can be said of a manifest of another release.
fn unreadable(path: &Path) -> Row {
    let parts: Vec<String> = path.parts().map(|part| part.as_ref().to_owned()).collect();
    let part = |from_end: usize| {
        let index = parts.len().checked_sub(from_end);
        index.and_then(|index| parts.get(index)).cloned().unwrap_or_default()
    };
    Row {
        namespace: part(5),
        job_key: part(4),
        epoch: part(2).parse().unwrap_or_default(),
        kind: "unreadable".to_owned(),
        step: 0,
        bytes: 0,
        created_at: "-".to_owned(),
        pod: "-".to_owned(),
        pinned: false,
    }
}

//! `lifeboat checkpoints pin`: keeps an epoch from being collected, until it is unpinned.
//!
//! A pin is an object of its own, created once and deleted when it is taken off: nothing that is there
//! is ever changed.

use bytes::Bytes;
use lifeboat_checkpoint::collect::PUT_BACK;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_domain::deadline::elapsed;
use object_store::path::Path;
use serde_json::json;

use super::Bucket;
use super::Key;
use crate::adapters::store::MANIFEST_MAX;
use crate::adapters::store::StoreError;
use crate::commands::CommandError;
use crate::data::collect;

/// What the mark should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Keep it.
    Pin,
    /// Collect it like any other.
    Unpin,
}

/// Sets or takes away the mark, and says so.
pub async fn set(
    bucket: &Bucket,
    key: &Key,
    epoch: u64,
    wish: Wish,
) -> Result<String, CommandError> {
    let history = bucket.history(key)?;
    let path = Path::from(history.keys().pin(epoch));
    let Key { namespace, job_key } = key;
    let named = format!("epoch {epoch} of `{namespace}/{job_key}`");
    match wish {
        Wish::Unpin => {
            let gone = bucket.store.delete(&[path], bucket.by()).await;
            gone.map_err(|error| bucket.failed(error))?;
            Ok(format!("{named} may be collected like any other\n"))
        }
        Wish::Pin => {
            let mark = json!({"epoch": epoch, "pinned_at": bucket.clock.now().to_string()});
            // The mark first: whoever collects looks for it afterwards, and we look for that.
            let mark = Bytes::from(mark.to_string());
            let created = bucket.store.create(&path, &mark, bucket.by()).await;
            created.map_err(|error| bucket.failed(error))?;
            if is_kept(bucket, key, epoch).await? {
                return Ok(format!("{named} is kept until it is unpinned\n"));
            }
            let gone = bucket.store.delete(&[path], bucket.by()).await;
            gone.map_err(|error| bucket.failed(error))?;
            Err(CommandError::Missing { what: format!("a state of {named}") })
        }
    }
}

/// Whether there is a state to keep; one that was collected just now is put back.
async fn is_kept(bucket: &Bucket, key: &Key, epoch: u64) -> Result<bool, CommandError> {
    let history = bucket.history(key)?;
    let path = Path::from(history.keys().manifest(epoch));
    let found = match bucket.store.read_version(&path, MANIFEST_MAX, bucket.by()).await {
        Ok(found) => found,
        Err(StoreError::Missing { .. }) => return Ok(false),
        Err(error) => return Err(bucket.failed(error)),
    };
    let manifest = history.parse(epoch, &found.bytes).map_err(|error| bucket.failed(error))?;
    match manifest.kind {
        Kind::Save => Ok(true),
        Kind::Collected if elapsed(found.written, bucket.clock.now()) <= PUT_BACK => {
            let back = collect::put_back(&history, epoch, bucket.by()).await;
            back.map_err(|error| bucket.failed(error))
        }
        Kind::Collected | Kind::Claim | Kind::Finished | Kind::Unknown => Ok(false),
    }
}

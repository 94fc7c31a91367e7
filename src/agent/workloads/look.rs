//! What the bucket says of a life whose agent was gone in between.

use jiff::Timestamp;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::ids::Epoch;
use lifeboat_domain::ids::Step;
use lifeboat_domain::workload::Stored;

use crate::clock::Clock;
use crate::data::history::History;
use crate::data::history::HistoryError;
use crate::data::restore::PATIENCE;
use crate::data::save;

/// How a life's history stands.
#[derive(Debug)]
pub(super) enum Looked {
    /// Nobody ever wrote anything.
    Empty,
    /// The newest epoch is this life's own.
    Own {
        /// Its number.
        epoch: u64,
        /// The epoch whose state it follows.
        parent: Option<u64>,
        /// What it stored, if it is a save.
        stored: Option<Stored>,
    },
    /// The newest epoch is somebody else's: this life is superseded.
    Theirs(Box<Manifest>),
    /// The bucket did not say.
    Failed(HistoryError),
}

/// Asks the bucket how a life's history stands.
pub(super) async fn look(history: &History, life: &save::Life, by: Deadline) -> Looked {
    match history.newest(by).await {
        Ok(None) => Looked::Empty,
        Ok(Some(newest)) if save::is_of(life, &newest) => {
            let stored = stored(&newest);
            let parent = if stored.is_some() { Some(newest.epoch) } else { newest.parent };
            Looked::Own { epoch: newest.epoch, parent, stored }
        }
        Ok(Some(newest)) => Looked::Theirs(Box::new(newest)),
        Err(error) => Looked::Failed(error),
    }
}

/// What a pod saved for its end, if that is the newest epoch of its job key.
///
/// A save for insurance has no deadline, and does not count: its workload went on.
pub(super) async fn remembered(history: &History, clock: &Clock, pod_uid: &str) -> Option<Stored> {
    let by = Deadline::after(clock.now(), PATIENCE);
    // What cannot be read stays unknown; the controller asks the bucket too.
    let newest = history.newest(by).await.ok()??;
    let own = newest.holder.pod_uid == pod_uid && newest.deadline.is_some();
    if own { stored(&newest) } else { None }
}

/// What a manifest says is stored.
pub(super) fn stored(manifest: &Manifest) -> Option<Stored> {
    let at = manifest.created_at.parse().unwrap_or(Timestamp::UNIX_EPOCH);
    (manifest.kind == Kind::Save).then_some(Stored {
        epoch: Epoch(manifest.epoch),
        step: Some(Step(manifest.step)),
        bytes: manifest.bytes,
        at,
    })
}

//! `lifeboat checkpoints rm`: nothing goes on from an epoch any more, and its chunks are collected.
//!
//! The manifest first: it says from then on that its state is gone. What it named is deleted by the
//! collection, an hour later at the earliest, unless another epoch names it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use lifeboat_checkpoint::manifest::FORMAT;
use lifeboat_checkpoint::manifest::Holder;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;

use super::Bucket;
use super::Key;
use crate::commands::CommandError;
use crate::data::collect;
use crate::data::collect::LetGo;
use crate::data::history::History;
use crate::data::history::Written;

/// Who holds the job key after the state of its newest epoch was removed.
const NOBODY: &str = "lifeboat checkpoints rm";

/// Which epochs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// These.
    Epochs(BTreeSet<u64>),
    /// All of the job key.
    All,
}

/// Whether it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Remove them.
    Remove,
    /// Only say what would be removed.
    Say,
}

/// What is done if a live pod holds the job key, and restores from one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfHeld {
    /// It is refused.
    Refuse,
    /// The pod is superseded: it is not saved any more until it starts again.
    Supersede,
}

/// What is to be removed, and how.
#[derive(Clone, Debug)]
pub struct Removal {
    /// The job key.
    pub key: Key,
    /// Which of its epochs.
    pub which: Which,
    /// What is done if it is held.
    pub if_held: IfHeld,
    /// Whether it is done.
    pub wish: Wish,
}

/// Removes epochs, and says so. Without a cluster to ask, a job key counts as held.
pub async fn run(
    bucket: &Bucket,
    cluster: Option<&kube::Client>,
    removal: &Removal,
) -> Result<String, CommandError> {
    let history = bucket.history(&removal.key)?;
    let saves = saves(bucket, &history).await?;
    let going = going(removal, &saves)?;
    let pins = collect::pins(&history, bucket.by()).await.map_err(|error| bucket.failed(error))?;
    if let Some(pinned) = going.intersection(&pins).next() {
        let what = format!("epoch {pinned} is pinned. `lifeboat checkpoints pin --off` unpins it");
        return Err(CommandError::Refused { what });
    }
    let newest = history.newest(bucket.by()).await.map_err(|error| bucket.failed(error))?;
    let held = newest.filter(|newest| newest.restores_from().is_some_and(|at| going.contains(&at)));
    if let Some(newest) = &held
        && removal.if_held == IfHeld::Refuse
        && is_alive(cluster, &removal.key.namespace, &newest.holder).await?
    {
        return Err(still_held(newest));
    }
    let mut text = String::new();
    if let Some(newest) = &held {
        let rest = saves.keys().copied().rfind(|epoch| !going.contains(epoch));
        text.push_str(&from_then_on(newest, rest));
        if removal.wish == Wish::Remove {
            take_over(bucket, &history, newest, rest.and_then(|epoch| saves.get(&epoch))).await?;
        }
    }
    for epoch in &going {
        let said = match removal.wish {
            Wish::Say => "would be removed",
            Wish::Remove => match collect::let_go(&history, *epoch, bucket.by()).await {
                Ok(LetGo::Collected) => "removed",
                Ok(LetGo::Wanted) => "kept: it was claimed or pinned just now",
                Ok(LetGo::Absent) => "is gone already",
                Err(error) => return Err(bucket.failed(error)),
            },
        };
        writeln!(text, "epoch {epoch} {said}").expect("writing to a string does not fail");
    }
    if removal.wish == Wish::Remove {
        text.push_str("what they named is deleted by the collection, after an hour\n");
    }
    Ok(text)
}

/// The epochs that hold a state, by number.
async fn saves(
    bucket: &Bucket,
    history: &History,
) -> Result<BTreeMap<u64, Manifest>, CommandError> {
    let numbers = history.numbers(bucket.by()).await.map_err(|error| bucket.failed(error))?;
    let mut saves = BTreeMap::new();
    for number in numbers {
        let read = history.read(number, bucket.by()).await;
        let read = read.map_err(|error| bucket.failed(error))?;
        saves.extend(read.filter(|read| read.kind == Kind::Save).map(|read| (number, read)));
    }
    Ok(saves)
}

fn going(
    removal: &Removal,
    saves: &BTreeMap<u64, Manifest>,
) -> Result<BTreeSet<u64>, CommandError> {
    let going = match &removal.which {
        Which::All => saves.keys().copied().collect(),
        Which::Epochs(epochs) => epochs.clone(),
    };
    let Key { namespace, job_key } = &removal.key;
    match going.iter().find(|epoch| !saves.contains_key(epoch)) {
        Some(epoch) => {
            let what = format!("a state of epoch {epoch} of `{namespace}/{job_key}`");
            Err(CommandError::Missing { what })
        }
        None if going.is_empty() => {
            Err(CommandError::Missing { what: format!("a state of `{namespace}/{job_key}`") })
        }
        None => Ok(going),
    }
}

/// Whether the pod that holds a job key may still run.
async fn is_alive(
    cluster: Option<&kube::Client>,
    namespace: &str,
    holder: &Holder,
) -> Result<bool, CommandError> {
    if holder.pod == NOBODY {
        return Ok(false);
    }
    let Some(client) = cluster else { return Ok(true) };
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let found = pods.get_opt(&holder.pod).await.map_err(CommandError::read("the pod"))?;
    let Some(pod) = found else { return Ok(false) };
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let same = pod.metadata.uid.as_ref() == Some(&holder.pod_uid);
    Ok(same && !matches!(phase, Some("Succeeded" | "Failed")))
}

fn still_held(newest: &Manifest) -> CommandError {
    let (pod, epoch) = (&newest.holder.pod, newest.restores_from().unwrap_or(newest.epoch));
    let what = format!(
        "pod `{pod}` holds this job key, and goes on from epoch {epoch} if it is interrupted. \
         `--supersede-holder` removes it all the same: the pod is not saved any more until it \
         starts again"
    );
    CommandError::Refused { what }
}

fn from_then_on(newest: &Manifest, rest: Option<u64>) -> String {
    let begins = match rest {
        Some(epoch) => format!("goes on from epoch {epoch}"),
        None => "begins with nothing".to_owned(),
    };
    format!("the next life after epoch {} {begins}\n", newest.epoch)
}

/// Takes the next number, so that nobody who knows the removed state can commit any more: what is
/// not stored again, since that state names it, must never be named by a later one.
async fn take_over(
    bucket: &Bucket,
    history: &History,
    newest: &Manifest,
    rest: Option<&Manifest>,
) -> Result<(), CommandError> {
    let now = bucket.clock.now().to_string();
    let owner = history.owner().clone();
    let claim = Manifest {
        format: FORMAT,
        kind: Kind::Claim,
        cluster: owner.cluster,
        namespace: owner.namespace,
        job_key: owner.job_key,
        epoch: newest.epoch.saturating_add(1),
        step: rest.map_or(0, |rest| rest.step),
        world: rest.map_or(newest.world, |rest| rest.world),
        run: now.clone(),
        parent: rest.map(|rest| rest.epoch),
        holder: Holder { pod: NOBODY.to_owned(), ..Holder::default() },
        created_at: now.clone(),
        // Nobody is waited for: a restore is let through half a minute after this.
        deadline: Some(now),
        bytes: 0,
        ranks: BTreeMap::new(),
    };
    let written = history.create(&claim, bucket.by()).await;
    match written.map_err(|error| bucket.failed(error))? {
        Written::Theirs(theirs) => {
            let epoch = theirs.epoch;
            let what = format!("epoch {epoch} was committed meanwhile. Look again, and repeat it");
            return Err(CommandError::Refused { what });
        }
        Written::Ours => (),
    }
    if let Some(rest) = rest {
        // It may have been collected since it was read.
        let kept = collect::put_back(history, rest.epoch, bucket.by()).await;
        kept.map_err(|error| bucket.failed(error))?;
    }
    Ok(())
}

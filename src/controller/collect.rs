//! The collection: one job key of the bucket after the other, in nobody's way.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use lifeboat_checkpoint::collect::Plan;
use lifeboat_domain::cluster::facts::Pause;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::policy::OperatingMode;

use crate::config::CollectMode;
use crate::controller::Deps;
use crate::controller::observe;
use crate::crd::node_interruption::Save;
use crate::crd::node_interruption::SaveState;
use crate::data::collect;
use crate::data::collect::CollectError;
use crate::data::collect::Leave;
use crate::data::collect::PASS_MAX;
use crate::data::collect::Survey;
use crate::data::collect::Tally;
use crate::data::history::Owner;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// The pause before each request that changes something: a thousand objects a second at most, of the
/// 3,500 that S3 allows for a prefix.
const PAUSE: Duration = Duration::from_millis(250);
/// How often it is looked whether an interruption is over.
const CALM: Duration = Duration::from_secs(5);
/// With less left than this, an instance that is to be taken comes first.
const SOON: Duration = Duration::from_mins(15);
/// How long the last word on a save counts: an agent repeats it every 15 seconds.
const WORD_MAX: Duration = Duration::from_mins(10);

/// What a pass over one job key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Delete,
    Say,
}

/// Collects for ever.
pub async fn run(deps: Arc<Deps>) {
    tokio::join!(
        deps.caches.interruptions.synced(),
        deps.caches.checkpoints.synced(),
        deps.caches.pods.synced(),
        deps.caches.namespaces.synced(),
    );
    loop {
        tokio::time::sleep(deps.settings.collect.every).await;
        if let Some(mode) = mode(&deps) {
            pass(&deps, mode).await;
        }
    }
}

/// What may be done now; nothing where collection is off, or everything is paused.
fn mode(deps: &Deps) -> Option<Mode> {
    let observes = deps.settings.policy.mode == OperatingMode::Observe;
    match (deps.settings.collect.mode, observe::paused(deps, None)) {
        (CollectMode::Off, _) | (_, Pause::On | Pause::Unknown) => None,
        (CollectMode::DryRun, Pause::Off) => Some(Mode::Say),
        (CollectMode::On, Pause::Off) if observes => Some(Mode::Say),
        (CollectMode::On, Pause::Off) => Some(Mode::Delete),
    }
}

async fn pass(deps: &Deps, mode: Mode) {
    let by = Deadline::after(deps.clock.now(), PASS_MAX);
    let owners = match deps.bucket.owners(by).await {
        Ok(owners) => owners,
        Err(error) => {
            metrics::error("store", error.label());
            tracing::warn!(error = %Chain(&error), "job keys in the bucket not listed");
            return;
        }
    };
    for owner in owners {
        while is_urgent(deps) {
            tokio::time::sleep(CALM).await;
        }
        one(deps, mode, owner).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks at one job key, and deletes what may go.
async fn one(deps: &Deps, mode: Mode, owner: Owner) {
    if is_saving(deps, &owner) {
        return metrics::collection("open");
    }
    let Some(history) = deps.bucket.history(owner.clone()) else { return };
    let (namespace, job_key) = (owner.namespace.as_str(), owner.job_key.as_str());
    let surveyed = collect::survey(&history, &deps.clock).await;
    let survey = match surveyed {
        Ok(survey) => survey,
        Err(error) => return refused(&owner, &error),
    };
    let plan = survey.plan(deps.settings.collect.keep);
    for epoch in &plan.lost {
        tracing::warn!(
            namespace,
            job_key,
            epoch,
            "pinned epoch was collected before it was pinned"
        );
    }
    let tally = match mode {
        Mode::Say => Tally::of(&survey, &plan),
        Mode::Delete => {
            let leave = || leave(deps, &owner).boxed();
            match collect::act(&history, &deps.clock, (&survey, &plan), leave).await {
                Ok(tally) => tally,
                Err(error) => return refused(&owner, &error),
            }
        }
    };
    count(mode, &survey, &plan, &tally);
    if !tally.is_empty() {
        let Tally { epochs, put_back, chunks, ranks, bytes } = tally;
        let what = if mode == Mode::Delete { "collected" } else { "would be collected" };
        tracing::info!(namespace, job_key, epochs, put_back, chunks, ranks, bytes, "{what}");
    }
}

/// Whether one more request may be made, after a pause.
async fn leave(deps: &Deps, owner: &Owner) -> Leave {
    tokio::time::sleep(PAUSE).await;
    if is_urgent(deps) || is_saving(deps, owner) { Leave::Withdrawn } else { Leave::Granted }
}

/// Whether an instance is being taken just now: the bucket is theirs who save.
fn is_urgent(deps: &Deps) -> bool {
    let now = deps.clock.now();
    let open = deps.caches.interruptions.select(|row| {
        let deadline = row.signals.deadline()?;
        let soon = !deadline.has_passed(now) && deadline.left(now) <= SOON;
        (soon && !row.is_closed()).then_some(())
    });
    !open.is_empty()
}

/// Whether a save of this job key may be under way, as the records tell it: one of an interruption
/// that is not over, or of a pod that somebody ends.
fn is_saving(deps: &Deps, owner: &Owner) -> bool {
    let now = deps.clock.now();
    let interrupted = deps.caches.interruptions.select(|row| {
        let workloads = row.status.workloads.values();
        let mut ours = workloads.filter(|one| {
            one.namespace == owner.namespace && one.job_key.as_ref() == Some(&owner.job_key)
        });
        let soon = row.signals.deadline().is_some_and(|deadline| deadline.left(now) <= SOON);
        (soon && !row.is_closed() && ours.next().is_some()).then_some(())
    });
    let key = (owner.namespace.clone(), owner.job_key.clone());
    let index = deps.caches.checkpoints.row(&key);
    let is_open = |save: &Save| is_open(save, now);
    let ended = index.is_some_and(|row| row.status.saves.values().any(is_open));
    !interrupted.is_empty() || ended
}

fn is_open(save: &Save, now: Timestamp) -> bool {
    let lately = save.told_at.is_none_or(|told| elapsed(told, now) < WORD_MAX);
    lately && matches!(save.state, SaveState::Asked | SaveState::Saving)
}

fn refused(owner: &Owner, error: &CollectError) {
    metrics::error("collect", error.label());
    metrics::collection("refused");
    let (namespace, job_key) = (owner.namespace.as_str(), owner.job_key.as_str());
    tracing::warn!(namespace, job_key, error = %Chain(error), "job key not collected");
}

fn count(mode: Mode, survey: &Survey, plan: &Plan, tally: &Tally) {
    let label = match mode {
        Mode::Delete => "on",
        Mode::Say => "dry-run",
    };
    metrics::collected(label, "epochs", tally.epochs);
    metrics::collected(label, "chunks", tally.chunks);
    metrics::collected(label, "ranks", tally.ranks);
    metrics::collected_bytes(label, tally.bytes);
    metrics::collection(match (&plan.open, &survey.contents.named) {
        (Some(_), _) => "open",
        (None, None) => "partial",
        (None, Some(_)) if tally.is_empty() => "nothing",
        (None, Some(_)) => "collected",
    });
}

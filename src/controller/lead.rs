//! The Lease, and what only its holder does: a task for each open interruption, the proofs of pods
//! that end without one, the sweep, and the collection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_domain::ids::InstanceId;
use tokio::task::AbortHandle;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::lease;
use crate::adapters::cluster::lease::Held;
use crate::controller::Deps;
use crate::controller::collect;
use crate::controller::ends;
use crate::controller::reconcile;
use crate::controller::startup;
use crate::controller::sweep;
use crate::controller::told;
use crate::controller::wakes;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;
use crate::shutdown::Shutdown;

/// The pause after a renewal that failed: there is little time to lose the Lease in.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// Holds the Lease whenever it can, and does what its holder does. Losing it cancels tasks only.
pub async fn run(deps: Arc<Deps>, shutdown: Shutdown) {
    let mut seen = Seen::default();
    loop {
        metrics::following();
        let held = tokio::select! {
            biased;
            () = shutdown.requested() => return,
            held = campaign(&deps, &mut seen) => held,
        };
        metrics::leading();
        tracing::info!(identity = %deps.settings.identity, "lease taken");
        let mut mine = held;
        tokio::select! {
            biased;
            () = shutdown.requested() => {
                resign(&deps, &mine).await;
                return;
            }
            () = keep(&deps, &mut mine) => tracing::warn!("lease lost, tasks canceled"),
            () = work(&deps) => (),
        }
    }
}

/// A Lease as we saw it change last. Its own times are of another's clock.
#[derive(Default)]
struct Seen {
    last: Option<(Held, Instant)>,
}

impl Seen {
    /// Whether the holder has let it run out, by our own clock.
    fn has_run_out(&mut self, held: &Held, duration: Duration) -> bool {
        match &self.last {
            Some((last, since)) if last.is_same_write(held) => since.elapsed() >= duration,
            Some(_) | None => {
                self.last = Some((held.clone(), Instant::now()));
                false
            }
        }
    }
}

async fn campaign(deps: &Deps, seen: &mut Seen) -> Held {
    let seat = &deps.settings.seat;
    loop {
        match try_to_take(deps, seen).await {
            Ok(Some(held)) => return held,
            Ok(None) => (),
            Err(ClusterError::Conflict { .. }) => tracing::debug!("another replica was first"),
            Err(error) => complain(&error, "lease not read"),
        }
        tokio::time::sleep(deps.settings.renew.min(seat.duration / 3)).await;
    }
}

async fn try_to_take(deps: &Deps, seen: &mut Seen) -> Result<Option<Held>, ClusterError> {
    let seat = &deps.settings.seat;
    let now = deps.clock.now();
    let Some(held) = lease::read(&deps.cluster, seat, REQUEST_MAX).await? else {
        return lease::take(&deps.cluster, seat, None, now).await.map(Some);
    };
    let free = held.holder.is_empty() || held.holder == seat.identity;
    if free || seen.has_run_out(&held, seat.duration) {
        return lease::take(&deps.cluster, seat, Some(&held), now).await.map(Some);
    }
    Ok(None)
}

/// Renews the Lease; returns when it is lost, or may be before we know.
async fn keep(deps: &Deps, held: &mut Held) {
    let seat = &deps.settings.seat;
    let mut renewed = Instant::now();
    // Another may take it when its duration is over; we let go one renewal ahead of that.
    let patience = seat.duration.saturating_sub(deps.settings.renew);
    let mut pause = deps.settings.renew;
    loop {
        tokio::time::sleep(pause).await;
        let asked = Instant::now();
        match lease::take(&deps.cluster, seat, Some(held), deps.clock.now()).await {
            Ok(mine) => {
                *held = mine;
                renewed = asked;
                pause = deps.settings.renew;
            }
            Err(error) => {
                complain(&error, "lease not renewed");
                if renewed.elapsed() + RENEW_AGAIN >= patience {
                    return;
                }
                if matches!(error, ClusterError::Conflict { .. }) && !refresh(deps, held).await {
                    return;
                }
                pause = RENEW_AGAIN;
            }
        }
    }
}

/// After a conflict: our own renewal may have arrived without its answer. Answers whether the
/// Lease is still ours.
async fn refresh(deps: &Deps, held: &mut Held) -> bool {
    match lease::read(&deps.cluster, &deps.settings.seat, REQUEST_MAX).await {
        Ok(Some(now)) if now.holder == deps.settings.identity => {
            *held = now;
            true
        }
        Ok(_) => false,
        // Nobody knows: the next renewal will show.
        Err(_) => true,
    }
}

async fn resign(deps: &Deps, held: &Held) {
    let seat = &deps.settings.seat;
    if let Err(error) = lease::release(&deps.cluster, seat, held, deps.clock.now()).await {
        complain(&error, "lease not given back");
    }
}

async fn work(deps: &Arc<Deps>) {
    let mut parts = JoinSet::new();
    parts.spawn(sweep::run(deps.clone()));
    parts.spawn(collect::run(deps.clone()));
    parts.spawn(ends::run(deps.clone()));
    parts.spawn(startup::run(deps.clone()));
    parts.spawn(told::run(deps.clone()));
    parts.spawn(follow_interruptions(deps.clone()));
    while parts.join_next().await.is_some() {}
}

/// Keeps one task for each open interruption.
async fn follow_interruptions(deps: Arc<Deps>) {
    let mut records = deps.wakes.records().hear();
    let mut tasks: JoinSet<InstanceId> = JoinSet::new();
    let mut running: BTreeMap<InstanceId, AbortHandle> = BTreeMap::new();
    deps.caches.interruptions.synced().await;
    loop {
        let open = deps
            .caches
            .interruptions
            .select(|row| (!row.is_closed()).then(|| row.instance.clone()));
        metrics::interruptions_open(open.len());
        for instance in open {
            let of = instance.clone();
            running.entry(instance).or_insert_with(|| tasks.spawn(task(deps.clone(), of)));
        }
        wakes::gather(running.len()).await;
        tokio::select! {
            biased;
            Some(ended) = tasks.join_next() => {
                if let Ok(instance) = ended {
                    running.remove(&instance);
                } else {
                    // A task that panicked is started again with the next change.
                    running.retain(|_, task| !task.is_finished());
                }
            }
            () = records.rung() => (),
        }
    }
}

async fn task(deps: Arc<Deps>, instance: InstanceId) -> InstanceId {
    reconcile::follow(deps, instance.clone()).await;
    instance
}

fn complain(error: &ClusterError, what: &'static str) {
    metrics::error("cluster", error.label());
    tracing::warn!(error = %Chain(error), "{what}");
}

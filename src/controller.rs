//! The cluster side of an interruption.
//!
//! Every replica takes messages and gives first aid; the holder of the Lease runs one task for each
//! open interruption, so that nobody waits for a neighbor.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use object_store::ObjectStore;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::Slots;
use crate::adapters::cluster::events;
use crate::adapters::cluster::events::Note;
use crate::adapters::sqs::Queue;
use crate::clock::Clock;
use crate::config::Config;
use crate::controller::caches::Caches;
use crate::controller::first_aid::Aided;
use crate::controller::ledger::Ledger;
use crate::controller::settings::Settings;
use crate::controller::wakes::Wakes;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;
use crate::shutdown::Shutdown;

pub mod act;
pub mod at_risk;
pub mod bucket;
pub mod caches;
pub mod close;
pub mod collect;
pub mod ends;
pub mod first_aid;
pub mod intake;
pub mod lead;
pub mod ledger;
pub mod memory;
pub mod observe;
pub mod reconcile;
pub mod record;
pub mod replace;
pub mod settings;
pub mod startup;
pub mod sweep;
pub mod told;
pub mod wakes;
pub mod webhook;

/// Requests in flight to the API server, and how many of them are kept for first aid.
const SLOTS: (usize, usize) = (64, 16);
/// Requests in flight to the API server for the webhook, beside those.
const ADMISSION_SLOTS: usize = 16;
/// How long messages in hand may still be recorded after we were asked to end.
const LAST_MESSAGES: Duration = Duration::from_secs(10);

/// What the controller is made of.
pub struct Parts {
    /// The API server.
    pub kube: kube::Client,
    /// The API server, on a connection of its own.
    pub first_aid: kube::Client,
    /// The queue.
    pub sqs: aws_sdk_sqs::Client,
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
    /// Where the webhook is served, if it is.
    pub webhook: Option<TcpListener>,
    /// The time.
    pub clock: Clock,
    /// The configuration.
    pub config: Config,
}

/// What every part of the controller shares.
pub struct Deps {
    /// The API server, leaving first aid its own slots.
    pub cluster: Cluster,
    /// The API server, with any slot.
    pub first_aid: Cluster,
    /// The API server, for the webhook: pods are made anew in a storm, too, and wait two seconds.
    pub admission: Cluster,
    /// The queue.
    pub queue: Queue,
    /// The bucket.
    pub bucket: bucket::Bucket,
    /// The time.
    pub clock: Clock,
    /// What the operator wants.
    pub settings: Settings,
    /// What the API server last showed.
    pub caches: Caches,
    /// Who is woken by what.
    pub wakes: Wakes,
    /// Claims that were just asked for.
    pub ledger: Ledger,
    /// Which interruptions have had first aid from this replica.
    pub aided: Aided,
}

/// Runs until it is asked to end; then messages in hand are recorded and the Lease is given back.
pub async fn run(mut parts: Parts, shutdown: Shutdown) {
    let webhook = parts.webhook.take();
    let deps = Arc::new(Deps::new(parts));
    tracing::info!(identity = %deps.settings.identity, mode = ?deps.settings.policy.mode, "controller started");
    let mut watches = caches::follow(&deps);
    let mut services = JoinSet::new();
    services.spawn(first_aid::follow(deps.clone()));
    services.spawn(first_aid::keep_warm(deps.clone()));
    services.spawn(lead::run(deps.clone(), shutdown.clone()));
    // To the last: until the process has ended, the API server may still ask it.
    if let Some(listener) = webhook {
        watches.spawn(webhook::run(deps.clone(), listener));
    }
    let mut intake = JoinSet::new();
    intake.spawn(intake::run(deps.clone(), shutdown.clone()));

    tokio::select! {
        biased;
        () = shutdown.at_once() => (),
        () = finish(&mut intake, &mut services, &shutdown) => (),
    }
    watches.abort_all();
    services.abort_all();
}

async fn finish(intake: &mut JoinSet<()>, services: &mut JoinSet<()>, shutdown: &Shutdown) {
    shutdown.requested().await;
    // Whoever is late here has its message again when the visibility runs out.
    drop(
        tokio::time::timeout(LAST_MESSAGES, async { while intake.join_next().await.is_some() {} })
            .await,
    );
    drop(tokio::time::timeout(Duration::from_secs(3), services.join_next()).await);
}

impl Deps {
    /// Writes an Event, found at `at`; answers whether it is written.
    pub async fn tell(&self, note: &Note, at: Timestamp) -> bool {
        let written = events::create(&self.cluster, note, at).await;
        written
            .inspect_err(|error| {
                metrics::error("cluster", error.label());
                tracing::warn!(subject = note.about.name, error = %Chain(error), "event not written");
            })
            .is_ok()
    }

    fn new(parts: Parts) -> Self {
        let settings = Settings::new(&parts.config, &parts.clock);
        let slots = Slots::new(SLOTS.0, SLOTS.1);
        Self {
            admission: Cluster::routine(parts.kube.clone(), &Slots::new(ADMISSION_SLOTS, 0)),
            cluster: Cluster::routine(parts.kube, &slots),
            first_aid: Cluster::first_aid(parts.first_aid, &slots),
            queue: Queue::new(parts.sqs, parts.config.queue.url.clone()),
            bucket: bucket::Bucket::new(parts.store, &parts.clock, &settings),
            clock: parts.clock,
            settings,
            caches: Caches::default(),
            wakes: Wakes::default(),
            ledger: Ledger::default(),
            aided: Aided::default(),
        }
    }
}

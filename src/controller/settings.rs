//! What the operator wants, as the controller needs it.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lifeboat_domain::policy::Policy;

use crate::adapters::cluster::lease::Seat;
use crate::adapters::eventbridge::Home;
use crate::clock::Clock;
use crate::config::Collect;
use crate::config::Config;
use crate::config::NodeSelector;

/// The name of our Lease.
const LEASE: &str = "lifeboat-controller";

/// The controller's part of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who this replica is.
    pub identity: String,
    /// The cluster's name.
    pub cluster: String,
    /// Our own namespace.
    pub namespace: String,
    /// Which nodes are ours.
    pub selector: NodeSelector,
    /// Where events must come from.
    pub home: Home,
    /// How the queue is polled.
    pub intake: Intake,
    /// The Lease.
    pub seat: Seat,
    /// How often the Lease is renewed.
    pub renew: Duration,
    /// What decisions look at.
    pub policy: Policy,
    /// What every key in the bucket begins with.
    pub prefix: String,
    /// What is deleted from the bucket.
    pub collect: Collect,
    /// Where the webhook is served, if it is.
    pub webhook: Option<SocketAddr>,
}

/// How the queue is polled.
#[derive(Clone, Debug)]
pub struct Intake {
    /// How long one receive waits.
    pub wait: Duration,
    /// How long a message in hand is hidden.
    pub visibility: Duration,
    /// Receives at a time.
    pub pollers: usize,
}

impl Settings {
    /// Takes out of the configuration what the controller needs.
    pub fn new(config: &Config, clock: &Clock) -> Self {
        let identity = config.lease.identity.clone().unwrap_or_else(|| made_up(clock));
        Self {
            seat: Seat {
                namespace: config.namespace.clone(),
                name: LEASE.to_owned(),
                identity: identity.clone(),
                duration: config.lease.duration,
            },
            identity,
            cluster: config.cluster.clone(),
            namespace: config.namespace.clone(),
            selector: config.nodes.selector.clone(),
            home: Home { region: config.region.clone(), account: config.account.clone() },
            intake: Intake {
                wait: config.queue.wait,
                visibility: config.queue.visibility,
                pollers: config.queue.pollers,
            },
            renew: config.lease.renew,
            policy: config.policy().clone(),
            prefix: config.store.prefix.clone(),
            collect: config.collect.clone(),
            webhook: config.webhook.listen,
        }
    }
}

/// Another name after every start: the time since boot, and a count for those in one process.
fn made_up(clock: &Clock) -> String {
    static STARTED: AtomicU64 = AtomicU64::new(0);
    let count = STARTED.fetch_add(1, Ordering::Relaxed);
    format!("controller-{:x}-{count}", clock.boottime())
}

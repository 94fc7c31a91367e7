//! At start: says in one line what is not there, waits for it, and says when it is.

use std::cell::Cell;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::deadline::Deadline;
use tracing::info;
use tracing::warn;

use super::AgentClients;
use super::ControllerClients;
use crate::clock::Clock;
use crate::commands::doctor::probe_path;
use crate::commands::doctor::reach;
use crate::commands::doctor::reach::ReachError;
use crate::config::Config;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;
use crate::retry;
use crate::telemetry;

/// First pause between two tries; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Waits until everything that the controller needs has answered. The controller runs meanwhile.
pub async fn reach_controller(config: &Config, clients: &ControllerClients, clock: &Clock) {
    let path = probe_path(config);
    let (url, name) = (config.queue.url.as_str(), config.store.bucket.as_str());
    tokio::join!(
        wait("API server", clock, async || reach::api_server(&clients.kube).await.map(drop)),
        wait("queue", clock, async || reach::queue(&clients.sqs, url).await.map(drop)),
        wait("bucket", clock, async || {
            reach::bucket(&*clients.store, name, &path).await.map(drop)
        }),
    );
}

/// Waits until everything that the agent works with has answered. It runs meanwhile, and saves
/// without the API server.
pub async fn reach_agent(config: &Config, clients: &AgentClients, clock: &Clock) {
    let path = probe_path(config);
    let name = config.store.bucket.as_str();
    tokio::join!(
        wait("API server", clock, async || reach::api_server(&clients.kube).await.map(drop)),
        wait("bucket", clock, async || {
            reach::bucket(&*clients.store, name, &path).await.map(drop)
        }),
    );
}

async fn wait<F: Future<Output = Result<(), ReachError>>>(
    part: &'static str,
    clock: &Clock,
    attempt: impl Fn() -> F,
) {
    telemetry::not_ready(part);
    let said = &Cell::new(false);
    let attempt = &attempt;
    let pauses = std::iter::successors(Some(PAUSE_MIN), |pause| Some((*pause * 2).min(PAUSE_MAX)));
    // For a service there is no hour at which waiting has no sense any more.
    let forever = Deadline::new(Timestamp::MAX);
    let reached = retry::until(forever, pauses, clock, || async move {
        let outcome = attempt().await;
        if let Err(error) = &outcome {
            metrics::error("reach", error.label());
            if !said.replace(true) {
                warn!(error = %Chain(error), "{part} not reached yet, trying on");
            }
        }
        outcome
    });
    match reached.await {
        Ok(()) => info!("{part} reached"),
        // The pauses do not end, and every error here is transient.
        Err(error) => warn!(error = %Chain(&error), "{part} given up"),
    }
    telemetry::ready(part);
}

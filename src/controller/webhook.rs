//! The mutating webhook: gives protected pods what they need, and never stands in a pod's way.

use std::sync::Arc;

use bytes::Bytes;
use lifeboat_domain::cluster::facts::Pause;
use lifeboat_domain::policy::KarpenterMode;
use lifeboat_domain::policy::OperatingMode;
use lifeboat_domain::workload::Hold;
use tokio::net::TcpListener;

use crate::controller::Deps;
use crate::controller::observe;
use crate::controller::webhook::keep::Shown;
use crate::controller::webhook::review::Review;

pub mod certificate;
pub mod injection;
pub mod job_key;
pub mod keep;
pub mod review;
pub mod serve;

/// Serves the API server, and looks after the certificate, until dropped.
pub async fn run(deps: Arc<Deps>, listener: TcpListener) {
    let shown = Arc::new(Shown::default());
    let answer = |body: Bytes| {
        let deps = &deps;
        async move { answer(deps, &body).await }
    };
    let served = serve::serve(listener, shown.clone(), answer);
    futures::join!(keep::run(&deps, &shown), served);
}

/// Answers a review; nothing where it is none.
async fn answer(deps: &Deps, body: &[u8]) -> Option<String> {
    let review = Review::read(body)
        .inspect_err(|error| tracing::warn!(%error, "review of a pod not read"))
        .ok()?;
    if is_silent(deps, review.namespace()) {
        return Some(review.unchanged());
    }
    let pod = review.pod();
    let key = if injection::needs_key(pod) {
        job_key::find(&deps.admission, review.namespace(), pod).await
    } else {
        Err(String::new())
    };
    let injection = injection::inject(pod, &key, default_hold(deps));
    for fault in &injection.faults {
        tracing::info!(namespace = review.namespace(), pod = review.name(), "{fault}");
    }
    Some(review.answer(&injection))
}

/// Whether nothing is to be done: we only observe, or all of Lifeboat or the namespace is paused.
fn is_silent(deps: &Deps, namespace: &str) -> bool {
    deps.settings.policy.mode == OperatingMode::Observe
        || observe::paused(deps, None) == Pause::On
        || observe::namespace_paused(deps, namespace) == Pause::On
}

/// Only Karpenter knows holds.
fn default_hold(deps: &Deps) -> Hold {
    match deps.settings.policy.karpenter {
        KarpenterMode::Beside => deps.settings.policy.hold,
        KarpenterMode::None => Hold::OnSignal,
    }
}

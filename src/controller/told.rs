//! Tells by an Event of protected pods that the webhook could not give what they need, or never saw.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_domain::cluster::facts::Pause;
use lifeboat_domain::policy::OperatingMode;
use lifeboat_domain::workload::Mode;
use lifeboat_domain::workload::Wishes;

use crate::adapters::cluster::events::About;
use crate::adapters::cluster::events::Note;
use crate::adapters::cluster::events::Tone;
use crate::adapters::cluster::pods::PodRow;
use crate::controller::Deps;
use crate::controller::observe;
use crate::crd::marks;

/// How often pods are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// Events written on one look: a storm of them helps nobody.
const EVENTS_MAX: usize = 50;

/// Looks at protected pods for ever, if it is us who should have given them something.
pub async fn run(deps: Arc<Deps>) {
    if deps.settings.webhook.is_none() || deps.settings.policy.mode == OperatingMode::Observe {
        return;
    }
    tokio::join!(deps.caches.pods.synced(), deps.caches.namespaces.synced());
    let mut told = BTreeSet::new();
    loop {
        let lacking = deps.caches.pods.select(|pod| lack(pod).map(|lack| (pod.clone(), lack)));
        let lack: BTreeSet<&String> = lacking.iter().map(|(pod, _)| &pod.uid).collect();
        told.retain(|uid| lack.contains(uid));
        let paused = |pod: &PodRow| {
            observe::paused(&deps, None) != Pause::Off
                || observe::namespace_paused(&deps, &pod.namespace) != Pause::Off
        };
        let new = lacking.into_iter().filter(|(pod, _)| !told.contains(&pod.uid) && !paused(pod));
        for (pod, lack) in new.take(EVENTS_MAX).collect::<Vec<_>>() {
            if deps.tell(&note(&pod, lack), deps.clock.now()).await {
                told.insert(pod.uid);
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What a pod lacks that it asked for; nothing for one that is over.
fn lack(pod: &PodRow) -> Option<String> {
    if !pod.is_protected() || pod.deletion.is_some() || pod.ended().is_some() {
        return None;
    }
    if let Some(said) = pod.annotation(marks::NOT_INJECTED) {
        return Some(said.to_owned());
    }
    if pod.has_volume {
        return None;
    }
    let (wishes, _) = Wishes::read(&pod.annotations.to_map());
    match wishes.mode {
        Mode::Sdk | Mode::Directory => {
            Some("it has no volume of Lifeboat's: the webhook did not see it. Make it anew".into())
        }
        Mode::Http | Mode::Sigterm | Mode::Unknown | Mode::None => None,
    }
}

fn note(pod: &PodRow, lack: String) -> Note {
    Note { about: About::pod(pod), warning: Tone::Warning, reason: "NotInjected", message: lack }
}

//! The end of an interruption: the whole record to the bucket, the last word into the record, an
//! Event, metrics, and a line that a person can read.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::cluster::facts::ClusterFacts;
use lifeboat_domain::cluster::facts::Workload;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::deadline::later;
use lifeboat_domain::progress::Phase;
use serde_json::Value;
use serde_json::json;

use crate::adapters::cluster::events::About;
use crate::adapters::cluster::events::Note;
use crate::adapters::cluster::events::Tone;
use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::controller::Deps;
use crate::controller::memory::Memory;
use crate::controller::record;
use crate::crd::node_interruption::NodeInterruptionStatus;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// How long after the deadline the bucket is waited for: the record itself must close.
const BUCKET_WAIT: Duration = Duration::from_secs(30);

/// Closes the record; answers whether it is closed. What fails is tried again by the next pass.
pub async fn close(
    deps: &Deps,
    memory: &mut Memory,
    (row, facts): (&InterruptionRow, &ClusterFacts),
    phase: Phase,
) -> bool {
    let now = deps.clock.now();
    let mut status = record::status(memory, row, facts, phase);
    status.closed_at = Some(now);
    let whole = whole(memory, (row, facts), &status);
    if let Err(error) = deps.bucket.keep(&row.instance, &whole).await {
        metrics::error("store", error.label());
        tracing::warn!(error = %Chain(&error), "record not kept in the bucket");
        let waited = facts.signals.deadline().map_or(now, |by| later(by.at(), BUCKET_WAIT));
        if now < waited {
            return false;
        }
    }
    if !record::write_closed(deps, memory, row, &status).await {
        return false;
    }
    tell(deps, (row, facts), phase).await;
    true
}

async fn tell(deps: &Deps, (row, facts): (&InterruptionRow, &ClusterFacts), phase: Phase) {
    metrics::interruption_closed(phase.label());
    let slack = record::slack(facts);
    if let Some(slack) = slack.and_then(|seconds| u64::try_from(seconds).ok()) {
        metrics::deadline_slack(Duration::from_secs(slack));
    }
    let sentence = sentence(facts, phase, slack);
    if phase == Phase::Lost {
        tracing::error!(phase = phase.label(), "{sentence}");
    } else {
        tracing::info!(phase = phase.label(), "{sentence}");
    }
    let note = Note {
        about: About {
            kind: "NodeInterruption",
            api_version: "lifeboat.dev/v1alpha1",
            namespace: String::new(),
            name: row.instance.to_string(),
            uid: row.uid.clone(),
        },
        warning: if phase == Phase::Lost { Tone::Warning } else { Tone::Normal },
        reason: phase.label(),
        message: sentence,
    };
    deps.tell(&note, deps.clock.now()).await;
}

/// Like `2 of 2 workloads saved with 82 s to spare, 1.5 GiB`.
fn sentence(facts: &ClusterFacts, phase: Phase, slack: Option<i64>) -> String {
    let ours: Vec<&Workload> =
        facts.workloads.values().filter(|workload| workload.mode.is_saved_by_us()).collect();
    let saved: Vec<_> = ours.iter().filter_map(|workload| workload.saved()).collect();
    let bytes: u64 = saved.iter().map(|stored| stored.bytes).sum();
    let mut text = format!("{} of {} workloads saved", saved.len(), ours.len());
    if let Some(slack) = slack {
        text = format!("{text} with {slack} s to spare");
    }
    if bytes > 0 {
        text = format!("{text}, {} MiB", bytes >> 20);
    }
    if phase == Phase::Lost {
        let lost = ours.iter().filter(|workload| workload.saved().is_none());
        let lost: Vec<String> = lost.map(|workload| workload.pod.pod.to_string()).collect();
        text = format!("{text}; lost: {}", lost.join(", "));
    }
    text
}

/// Everything, for `lifeboat report` and `lifeboat replay`.
fn whole(
    memory: &Memory,
    (row, facts): (&InterruptionRow, &ClusterFacts),
    status: &NodeInterruptionStatus,
) -> Value {
    let passes = memory.passes.iter().filter_map(|pass| serde_json::from_str(pass).ok());
    let passes: Vec<Value> = passes.collect();
    let mut status = status.clone();
    status.workloads.clone_from(&row.status.workloads);
    for (uid, drain) in &memory.drains {
        if let Some(workload) = status.workloads.get_mut(uid) {
            workload.drain = Some(drain.clone());
        }
    }
    let first: Option<Timestamp> = facts.signals.iter().map(|signal| signal.time).min();
    let took = first.map(|first| elapsed(first, facts.observed_at).as_secs());
    json!({
        "format": 1,
        "instance": row.instance,
        "node": row.node,
        "zone": row.zone,
        "instanceType": row.instance_type,
        "signals": row.signals,
        "status": status,
        "seconds": took,
        "facts": facts,
        "passes": passes,
    })
}

//! Between the records as they are written and the domain's words. Reading never fails: what cannot
//! be understood, as from a later release, is `Unknown`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lifeboat_domain::budget::Fit;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::deadline::later;
use lifeboat_domain::gpu::Release as Released;
use lifeboat_domain::gpu::Slice;
use lifeboat_domain::ids::Epoch;
use lifeboat_domain::ids::Step;
use lifeboat_domain::node::outlook::Outlook;
use lifeboat_domain::signal;
use lifeboat_domain::signal::InstanceState;
use lifeboat_domain::signal::Kind;
use lifeboat_domain::signal::Signals;
use lifeboat_domain::signal::Source;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::FailReason;
use lifeboat_domain::workload::Report;
use lifeboat_domain::workload::Slices;
use lifeboat_domain::workload::Stored;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;

use super::node_interruption::Expected;
use super::node_interruption::HeldSlice;
use super::node_interruption::Release;
use super::node_interruption::Save;
use super::node_interruption::SaveState;
use super::node_interruption::Signal;
use super::node_interruption::Workload;

/// What stands in the place of a margin where there is none.
pub const WILL_NOT_FIT: &str = "will not fit";

/// A signal as it is written.
pub fn signal_to_wire(signal: &signal::Signal) -> Signal {
    let (action, state) = match signal.kind {
        Kind::SpotInterruption { action } => (Some(text(&action)), None),
        Kind::StateChange { state } => (None, Some(text(&state))),
        Kind::RebalanceRecommendation
        | Kind::ScheduledChange
        | Kind::CapacityReservation
        | Kind::PodEnding
        | Kind::Unknown => (None, None),
    };
    Signal {
        source: signal.source.label().to_owned(),
        kind: signal.kind.label().to_owned(),
        time: signal.time,
        deadline: signal.named.map(Deadline::at),
        heard_at: signal.heard_at,
        heard_by: signal.heard_by.clone(),
        action,
        state,
        detail: signal.detail.clone(),
    }
}

/// Signals as they were written.
pub fn signals_from_wire<'a>(signals: impl IntoIterator<Item = &'a Signal>) -> Signals {
    signals.into_iter().map(signal_from_wire).collect()
}

/// Writes the agent's part of a workload: `save`, `insurance`, `slices` and `release`.
pub fn report_to_wire(report: &Report, asked_at: Option<Timestamp>, workload: &mut Workload) {
    workload.save = save_to_wire(&report.checkpoint, asked_at);
    workload.insurance = report.insurance.as_ref().map(stored_to_wire);
    workload.slices = match &report.slices {
        Slices::Held { slices } => Some(slices.iter().map(slice_to_wire).collect()),
        Slices::Unknown => None,
    };
    workload.release = release_to_wire(&report.release, workload.slices.as_deref());
}

/// Reads the agent's part of a workload.
pub fn report_from_wire(workload: &Workload) -> Report {
    let slices = workload.slices.as_ref();
    Report {
        checkpoint: workload.save.as_ref().map_or(Checkpoint::Unknown, save_from_wire),
        insurance: workload.insurance.as_ref().and_then(stored_from_wire),
        release: workload.release.as_ref().map_or(Released::Unknown, release_from_wire),
        slices: slices.map_or(Slices::Unknown, |all| Slices::of(all.iter().map(slice_from_wire))),
    }
}

fn signal_from_wire(signal: &Signal) -> signal::Signal {
    let kind = match signal.kind.as_str() {
        "spot-interruption" => Kind::SpotInterruption {
            action: signal.action.as_deref().and_then(parsed).unwrap_or(signal::Action::Unknown),
        },
        "state-change" => Kind::StateChange {
            state: signal.state.as_deref().and_then(parsed).unwrap_or(InstanceState::Unknown),
        },
        "rebalance-recommendation" => Kind::RebalanceRecommendation,
        "scheduled-change" => Kind::ScheduledChange,
        "capacity-reservation" => Kind::CapacityReservation,
        "pod-ending" => Kind::PodEnding,
        _ => Kind::Unknown,
    };
    signal::Signal {
        source: parsed(&signal.source).unwrap_or(Source::Unknown),
        kind,
        time: signal.time,
        named: signal.deadline.map(Deadline::new),
        heard_at: signal.heard_at,
        heard_by: signal.heard_by.clone(),
        detail: signal.detail.clone(),
    }
}

/// How far a save is, as it is written; nothing of one that is unknown.
pub fn save_to_wire(checkpoint: &Checkpoint, asked_at: Option<Timestamp>) -> Option<Save> {
    let empty = Save { started_at: asked_at, ..Save::of(SaveState::Idle) };
    Some(match checkpoint {
        Checkpoint::Unknown => return None,
        Checkpoint::Idle => Save::of(SaveState::Idle),
        Checkpoint::Asked => Save { state: SaveState::Asked, ..empty },
        Checkpoint::Saving { step, stored, total } => Save {
            state: SaveState::Saving,
            step: step.map(|step| step.0),
            bytes: Some(*stored),
            of_bytes: *total,
            ..empty
        },
        Checkpoint::Durable(stored) => Save { started_at: asked_at, ..stored_to_wire(stored) },
        Checkpoint::Failed { why } => {
            Save { state: SaveState::Failed, error: Some(why.label().to_owned()), ..empty }
        }
    })
}

/// What is to be expected of a save, as it is written.
pub fn expected_to_wire(outlook: &Outlook, now: Timestamp) -> Expected {
    let margin = match outlook.fit {
        Fit::Fits { margin } => Some(format!("{}s", margin.as_secs())),
        Fit::WillNotFit => Some(WILL_NOT_FIT.to_owned()),
        Fit::Unknown => None,
    };
    Expected {
        at: later(now, outlook.eta),
        margin,
        bytes_per_second: outlook.rate.bytes_per_second,
        by: outlook.rate.basis.label().to_owned(),
    }
}

/// How far a save is, as it was written.
pub fn save_from_wire(save: &Save) -> Checkpoint {
    match save.state {
        SaveState::Idle => Checkpoint::Idle,
        SaveState::Asked => Checkpoint::Asked,
        SaveState::Saving => Checkpoint::Saving {
            step: save.step.map(Step),
            stored: save.bytes.unwrap_or_default(),
            total: save.of_bytes,
        },
        // Durable without number or time is not durable.
        SaveState::Durable => {
            stored_from_wire(save).map_or(Checkpoint::Unknown, Checkpoint::Durable)
        }
        SaveState::Failed => Checkpoint::Failed {
            why: save.error.as_deref().and_then(parsed).unwrap_or(FailReason::Unknown),
        },
        SaveState::Unknown => Checkpoint::Unknown,
    }
}

fn stored_to_wire(stored: &Stored) -> Save {
    Save {
        epoch: Some(stored.epoch.0),
        step: stored.step.map(|step| step.0),
        bytes: Some(stored.bytes),
        of_bytes: Some(stored.bytes),
        durable_at: Some(stored.at),
        ..Save::of(SaveState::Durable)
    }
}

fn stored_from_wire(save: &Save) -> Option<Stored> {
    Some(Stored {
        epoch: Epoch(save.epoch?),
        step: save.step.map(Step),
        bytes: save.bytes.unwrap_or_default(),
        at: save.durable_at?,
    })
}

fn slice_to_wire(slice: &Slice) -> HeldSlice {
    let profile = match slice {
        Slice::Mig { profile, .. } => profile.as_ref().map(ToString::to_string),
        Slice::Whole { .. } | Slice::TimeSliced { .. } | Slice::Mps { .. } | Slice::Unknown => None,
    };
    HeldSlice { device: slice.to_string(), kind: slice.label().to_owned(), profile }
}

fn slice_from_wire(held: &HeldSlice) -> Slice {
    let (device, replica) = match held.device.rsplit_once("::") {
        Some((device, replica)) => (device, replica.parse::<u32>().ok()),
        None => (held.device.as_str(), None),
    };
    let tagged = match held.kind.as_str() {
        "whole" => json!({"kind": "whole", "gpu": device}),
        "time-sliced" | "mps" => json!({"kind": held.kind, "gpu": device, "replica": replica}),
        "mig" => json!({
            "kind": "mig", "device": device, "profile": held.profile, "replica": replica,
        }),
        _ => return Slice::Unknown,
    };
    serde_json::from_value(tagged).unwrap_or(Slice::Unknown)
}

fn release_to_wire(release: &Released, slices: Option<&[HeldSlice]>) -> Option<Release> {
    let devices: Vec<&str> = slices.into_iter().flatten().map(|one| one.device.as_str()).collect();
    let kind = slices.and_then(<[HeldSlice]>::first).map_or("none", |one| one.kind.as_str());
    // The schema takes 253 characters; the list itself stands in `slices`.
    let empty = Release {
        slice: devices.join(",").chars().take(253).collect(),
        kind: kind.to_owned(),
        first: None,
        second: None,
        released_at: None,
    };
    match release {
        Released::NotWatched | Released::Unknown => None,
        Released::Held => Some(empty),
        Released::SeenEmpty { at } => Some(Release { first: Some(*at), ..empty }),
        Released::Released { first, second } => Some(Release {
            first: Some(*first),
            second: Some(*second),
            released_at: Some(*second),
            ..empty
        }),
    }
}

fn release_from_wire(release: &Release) -> Released {
    match (release.first, release.second) {
        (Some(first), Some(second)) => Released::Released { first, second },
        (Some(at), None) => Released::SeenEmpty { at },
        (None, _) => Released::Held,
    }
}

impl Save {
    /// One that says nothing but its state.
    pub fn of(state: SaveState) -> Self {
        Self {
            state,
            epoch: None,
            step: None,
            bytes: None,
            of_bytes: None,
            started_at: None,
            durable_at: None,
            expected: None,
            error: None,
            told_at: None,
        }
    }
}

/// The word that serde writes for a plain enum of the domain.
fn text(word: &impl Serialize) -> String {
    match serde_json::to_value(word) {
        Ok(Value::String(text)) => text,
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

fn parsed<T: DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(json!(word)).ok()
}

/// The entries of a map that can be read, whatever the others hold.
pub fn readable<T: DeserializeOwned>(map: &Value) -> BTreeMap<String, T> {
    let entries = map.as_object().into_iter().flatten();
    let read = entries.filter_map(|(key, value)| {
        Some((key.clone(), serde_json::from_value(value.clone()).ok()?))
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp::UNIX_EPOCH;

    #[track_caller]
    fn check(checkpoint: Checkpoint, release: Released, slices: Slices) {
        let insurance = Some(Stored { epoch: Epoch(2), step: None, bytes: 7, at: AT });
        let report = Report { checkpoint, insurance, release, slices };
        let mut workload = Workload {
            namespace: "ml".to_owned(),
            pod: "train-0".to_owned(),
            job_key: None,
            mode: None,
            save: None,
            insurance: None,
            slices: None,
            release: None,
            drain: None,
        };
        report_to_wire(&report, None, &mut workload);
        assert_eq!(report_from_wire(&workload), report);
    }

    #[test]
    fn a_report_comes_back_as_it_was_written() {
        let stored = Stored { epoch: Epoch(3), step: Some(Step(8412)), bytes: 9, at: AT };
        let saving = Checkpoint::Saving { step: Some(Step(1)), stored: 1, total: Some(9) };
        let failed = Checkpoint::Failed { why: FailReason::Store };
        let shared = Slice::TimeSliced { gpu: "GPU-1".parse().unwrap(), replica: 3 };
        let mig: Slice = serde_json::from_value(json!({
            "kind": "mig", "device": "MIG-GPU-1/2/0", "profile": "1g.5gb", "replica": 1,
        }))
        .unwrap();
        let released = Released::Released { first: AT, second: AT };
        check(Checkpoint::Unknown, Released::Unknown, Slices::Unknown);
        check(Checkpoint::Idle, Released::Held, Slices::of([]));
        check(Checkpoint::Asked, Released::SeenEmpty { at: AT }, Slices::of([shared.clone()]));
        check(saving, Released::Held, Slices::of([mig.clone()]));
        check(Checkpoint::Durable(stored), released, Slices::of([mig, shared]));
        check(failed, Released::Unknown, Slices::of([Slice::Unknown]));
    }

    #[test]
    fn a_signal_comes_back_as_it_was_written() {
        let kinds = [
            Kind::SpotInterruption { action: signal::Action::Hibernate },
            Kind::StateChange { state: InstanceState::ShuttingDown },
            Kind::RebalanceRecommendation,
            Kind::ScheduledChange,
            Kind::CapacityReservation,
        ];
        for kind in kinds {
            let signal = signal::Signal {
                source: Source::Imds,
                kind,
                time: AT,
                named: Some(Deadline::new(AT)),
                heard_at: AT,
                heard_by: "agent-1".to_owned(),
                detail: None,
            };
            assert_eq!(signal_from_wire(&signal_to_wire(&signal)), signal);
        }
    }
}

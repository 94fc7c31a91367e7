//! `lifeboat status`: what is going on, and what is saved.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::Api;
use kube::Client;
use kube::ResourceExt;
use lifeboat_domain::deadline::Deadline;
use serde::Serialize;

use crate::commands::CommandError;
use crate::commands::list;
use crate::commands::table::Table;
use crate::commands::table::ago;
use crate::commands::table::bytes;
use crate::commands::table::or_dash;
use crate::commands::table::since;
use crate::commands::table::span;
use crate::crd::node_interruption::NodeInterruption;
use crate::crd::node_interruption::Save;
use crate::crd::node_interruption::SaveState;
use crate::crd::node_interruption::Workload;
use crate::crd::workload_checkpoint::Outlook;
use crate::crd::workload_checkpoint::WorkloadCheckpoint;

mod timeline;

/// Everything that we have recorded.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Status {
    /// Interruptions, open ones first, then the newest.
    pub interruptions: Vec<NodeInterruption>,
    /// What is saved, by namespace and key.
    pub checkpoints: Vec<WorkloadCheckpoint>,
}

impl Status {
    /// Leaves out every interruption but that of this instance or node.
    pub fn keep(&mut self, name: &str) {
        self.interruptions.retain(|record| timeline::is_named(record, name));
    }
}

/// Where what is watched is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    /// On a terminal, whose screen it takes.
    Terminal,
    /// Anywhere else, one below the other.
    Pipe,
}

/// One picture of what is watched.
pub fn frame(text: &str, screen: Screen) -> String {
    match screen {
        // Home, and clear what is below: no flicker, and the lines above stay.
        Screen::Terminal => format!("\x1b[H\x1b[2J{text}"),
        Screen::Pipe => format!("{text}\n"),
    }
}

/// Reads both records.
pub async fn read(client: &Client) -> Result<Status, CommandError> {
    let mut interruptions: Vec<NodeInterruption> =
        list(&Api::all(client.clone()), "the list of interruptions").await?;
    interruptions.sort_by_key(|record| {
        let closed = record.status.as_ref().is_some_and(|status| status.closed_at.is_some());
        (closed, std::cmp::Reverse(record.creation_timestamp()), record.name_any())
    });
    let mut checkpoints: Vec<WorkloadCheckpoint> =
        list(&Api::all(client.clone()), "the list of checkpoints").await?;
    checkpoints.sort_by_key(|index| (index.namespace(), index.spec.job_key.clone()));
    Ok(Status { interruptions, checkpoints })
}

/// As a person reads it.
pub fn table(status: &Status, now: Timestamp) -> String {
    let mut text = String::new();
    if status.interruptions.is_empty() {
        text.push_str("no interruptions\n");
    }
    for record in &status.interruptions {
        text.push_str(&interruption(record, now));
        text.push('\n');
    }
    text.push_str(&checkpoints(&status.checkpoints, now));
    text
}

/// One interruption by its instance or its node, as a timeline; the newest where there are several.
pub fn timeline(status: &Status, name: &str, now: Timestamp) -> Result<String, CommandError> {
    let found = status.interruptions.iter().find(|record| timeline::is_named(record, name));
    let missing = || CommandError::Missing { what: format!("an interruption of `{name}`") };
    found.map(|record| timeline::tell(record, now)).ok_or_else(missing)
}

/// As a program reads it.
pub fn json(status: &Status) -> String {
    let text = serde_json::to_string_pretty(status).expect("records are plain data");
    format!("{text}\n")
}

fn interruption(record: &NodeInterruption, now: Timestamp) -> String {
    let status = record.status.clone().unwrap_or_default();
    let times = (noticed(record), status.deadline);
    format!("{}{}", head(record, now), workloads(&status.workloads, times))
}

/// Where one interruption stands, in a line.
fn head(record: &NodeInterruption, now: Timestamp) -> String {
    let status = record.status.clone().unwrap_or_default();
    let notice = noticed(record);
    let saved = |workload: &&Workload| {
        workload.save.as_ref().is_some_and(|save| save.state == SaveState::Durable)
    };
    let count = status.workloads.len();
    let durable = status.workloads.values().filter(saved).count();
    let left = match (status.closed_at, status.deadline) {
        (None, Some(deadline)) => format!("{} left", span(Deadline::new(deadline).left(now))),
        (_, _) => status
            .slack
            .as_ref()
            .map_or_else(|| "-".to_owned(), |slack| format!("{slack} to spare")),
    };
    let mut head =
        Table::new("", &["INSTANCE", "NODE", "PHASE", "HEARD", "TIME", "SAVED", "BYTES"]);
    head.add([
        record.name_any(),
        record.spec.node.clone(),
        or_dash(status.phase.as_ref()),
        or_dash(notice.map(|notice| ago(notice, now))),
        left,
        format!("{durable} of {count}"),
        or_dash(status.bytes.map(bytes)),
    ]);
    head.render()
}

fn workloads(
    workloads: &BTreeMap<String, Workload>,
    (notice, deadline): (Option<Timestamp>, Option<Timestamp>),
) -> String {
    if workloads.is_empty() {
        return String::new();
    }
    let heading = ["POD", "MODE", "SAVE", "STEP", "BYTES", "DURABLE", "SPARE", "ENDED", "RELEASED"];
    let mut table = Table::new("  ", &heading);
    for workload in workloads.values() {
        let save = workload.save.as_ref();
        let ended = workload.drain.as_ref().map(|drain| {
            format!("{} {} {}", drain.by, since(notice, Some(drain.decided)), drain.reason)
        });
        let released = workload.release.as_ref().and_then(|release| release.released_at);
        table.add([
            format!("{}/{}", workload.namespace, workload.pod),
            or_dash(workload.mode.as_ref()),
            or_dash(save.map(|save| save.state)),
            or_dash(save.and_then(|save| save.step)),
            or_dash(save.and_then(progress)),
            durable(notice, save),
            or_dash(save.and_then(|save| spare(save, deadline))),
            or_dash(ended),
            since(notice, released),
        ]);
    }
    table.render()
}

/// What is stored, and of how much while it is under way.
fn progress(save: &Save) -> Option<String> {
    let stored = save.bytes?;
    match save.of_bytes.filter(|all| *all > stored && save.durable_at.is_none()) {
        Some(all) => Some(format!("{} of {}", bytes(stored), bytes(all))),
        None => Some(bytes(stored)),
    }
}

/// When it was stored, or when it is expected to be.
fn durable(notice: Option<Timestamp>, save: Option<&Save>) -> String {
    let expected = save.and_then(|save| save.expected.as_ref());
    match (save.and_then(|save| save.durable_at), expected) {
        (None, Some(expected)) => format!("~ {}", since(notice, Some(expected.at))),
        (durable_at, _) => since(notice, durable_at),
    }
}

/// What was left when it was stored, or what is expected to be, and by which rate.
fn spare(save: &Save, deadline: Option<Timestamp>) -> Option<String> {
    if let (Some(durable_at), Some(deadline)) = (save.durable_at, deadline) {
        return Some(span(Deadline::new(deadline).left(durable_at)));
    }
    let expected = save.expected.as_ref()?;
    let margin = expected.margin.as_ref()?;
    let rate = u128::from(expected.bytes_per_second) * 10 / 125_000_000;
    Some(format!("{margin} at {}.{} Gbit/s ({})", rate / 10, rate % 10, expected.by))
}

fn checkpoints(indexes: &[WorkloadCheckpoint], now: Timestamp) -> String {
    if indexes.is_empty() {
        return "no checkpoints\n".to_owned();
    }
    let mut table = Table::new(
        "",
        &["NAMESPACE", "KEY", "EPOCH", "STEP", "BYTES", "SAVED", "STALL", "STATE", "AT RISK"],
    );
    for index in indexes {
        let status = index.status.clone().unwrap_or_default();
        let (newest, finished) = (status.newest.as_ref(), status.finished == Some(true));
        table.add([
            index.namespace().unwrap_or_default(),
            index.spec.job_key.clone(),
            or_dash(newest.map(|newest| newest.epoch)),
            or_dash(newest.and_then(|newest| newest.step)),
            or_dash(newest.map(|newest| bytes(newest.bytes))),
            or_dash(newest.map(|newest| ago(newest.durable_at, now))),
            or_dash(newest.and_then(|newest| newest.stall_milliseconds).map(stall)),
            if finished { "finished" } else { "open" }.to_owned(),
            or_dash(status.outlook.as_ref().filter(|_| !finished).and_then(at_risk)),
        ]);
    }
    table.render()
}

/// How long a workload stood still for a save.
fn stall(milliseconds: u64) -> String {
    format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
}

/// Why a state could not be saved if its node were interrupted; nothing if it could.
fn at_risk(outlook: &Outlook) -> Option<String> {
    let Outlook { fits, needed, window, by, .. } = outlook;
    let size = bytes(outlook.bytes);
    (!fits).then(|| format!("{size} need {needed} s, a notice leaves {window} s ({by} rate)"))
}

/// T0: the earliest signal that names a deadline, or the earliest of all.
fn noticed(record: &NodeInterruption) -> Option<Timestamp> {
    let signals = record.spec.signals.values();
    let notices = signals.clone().filter(|signal| signal.deadline.is_some());
    let earliest = notices.map(|signal| signal.time).min();
    earliest.or_else(|| signals.map(|signal| signal.time).min())
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn record() -> NodeInterruption {
        let at = |second: u32| format!("2026-11-22T12:00:{second:02}Z");
        serde_json::from_value(json!({
            "apiVersion": "lifeboat.dev/v1alpha1",
            "kind": "NodeInterruption",
            "metadata": {"name": "i-1"},
            "spec": {"node": "gpu-1", "zone": "eu-central-1a", "signals": {
                "queue-interruption": {
                    "source": "queue", "kind": "interruption", "time": at(0),
                    "deadline": "2026-11-22T12:02:00Z", "heardAt": at(1), "heardBy": "c-0",
                },
            }},
            "status": {
                "phase": "Draining",
                "deadline": "2026-11-22T12:02:00Z",
                "bytes": 1 << 29,
                "workloads": {
                    "u-1": {
                        "namespace": "team", "pod": "train-0", "mode": "sdk",
                        "save": {
                            "state": "Durable", "epoch": 2, "step": 8412, "bytes": 1 << 29,
                            "durableAt": at(38),
                        },
                        "drain": {
                            "decided": at(39), "by": "Evict", "reason": "Durable", "grace": 15,
                        },
                    },
                    "u-2": {
                        "namespace": "team", "pod": "train-1",
                        "save": {
                            "state": "Saving", "bytes": 1 << 28, "ofBytes": 1_u64 << 31,
                            "expected": {
                                "at": "2026-11-22T12:01:10Z", "margin": "50s",
                                "bytesPerSecond": 312_500_000, "by": "measured",
                            },
                        },
                    },
                    "u-3": {
                        "namespace": "team", "pod": "train-2",
                        "save": {
                            "state": "Asked",
                            "expected": {
                                "at": "2026-11-22T12:03:10Z", "margin": "will not fit",
                                "bytesPerSecond": 312_500_000, "by": "baseline",
                            },
                        },
                    },
                },
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_person_sees_who_is_saved_and_what_is_left() {
        let status = Status { interruptions: vec![record()], checkpoints: Vec::new() };
        let now = "2026-11-22T12:00:40Z".parse().unwrap();
        let expected = "\
INSTANCE  NODE   PHASE     HEARD     TIME       SAVED   BYTES
i-1       gpu-1  Draining  40 s ago  80 s left  1 of 3  512.0 MiB
  POD           MODE  SAVE     STEP  BYTES                 DURABLE    SPARE                                  ENDED                 RELEASED
  team/train-0  sdk   Durable  8412  512.0 MiB             T+38 s     82 s                                   Evict T+39 s Durable  -
  team/train-1  -     Saving   -     256.0 MiB of 2.0 GiB  ~ T+70 s   50s at 2.5 Gbit/s (measured)           -                     -
  team/train-2  -     Asked    -     -                     ~ T+190 s  will not fit at 2.5 Gbit/s (baseline)  -                     -

no checkpoints
";
        assert_eq!(table(&status, now), expected);
    }

    #[test]
    fn whoever_could_not_be_saved_at_a_notice_stands_out() {
        let index = |name: &str, fits: bool| -> WorkloadCheckpoint {
            serde_json::from_value(json!({
                "apiVersion": "lifeboat.dev/v1alpha1",
                "kind": "WorkloadCheckpoint",
                "metadata": {"name": name, "namespace": "team"},
                "spec": {"jobKey": name},
                "status": {"outlook": {
                    "fits": fits, "pod": "train-0", "node": "gpu-1", "at": "2026-11-22T12:00:00Z",
                    "bytes": 60_u64 << 30, "window": 115, "needed": 242,
                    "bytesPerSecond": 312_500_000, "by": "baseline",
                }},
            }))
            .unwrap()
        };
        let checkpoints = vec![index("large", false), index("small", true)];
        let status = Status { interruptions: Vec::new(), checkpoints };
        let expected = "\
no interruptions
NAMESPACE  KEY    EPOCH  STEP  BYTES  SAVED  STALL  STATE  AT RISK
team       large  -      -     -      -      -      open   60.0 GiB need 242 s, a notice leaves 115 s (baseline rate)
team       small  -      -     -      -      -      open   -
";
        assert_eq!(table(&status, Timestamp::UNIX_EPOCH), expected);
    }

    #[test]
    fn nothing_at_all_is_said_too() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(table(&Status::default(), now), "no interruptions\nno checkpoints\n");
    }
}

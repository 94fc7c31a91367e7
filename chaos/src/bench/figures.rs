//! The figures of a run: as a table for people, and as data.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::bench::ordeal::Aftermath;
use crate::bench::post::Counts;
use crate::bench::program::Taken;

/// How long something took for each of many nodes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Quantiles {
    /// For how many nodes it came.
    pub(super) count: usize,
    /// Half of them were faster, in milliseconds.
    pub(super) p50_ms: f64,
    /// All but a hundredth were faster.
    pub(super) p99_ms: f64,
    /// From the first notice to the last node.
    pub(super) last_ms: f64,
}

/// The bare loop, which does nothing but the guarded patch.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Floor {
    /// Requests at a time.
    pub(super) at_a_time: usize,
    /// Each patch by itself, in milliseconds.
    pub(super) patch: Quantiles,
    /// Nodes for each second.
    pub(super) nodes_per_second: f64,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// Nodes with a notice.
    pub(super) nodes: usize,
    /// Pods on each.
    pub(super) pods: usize,
    /// Replicas of the controller.
    pub(super) replicas: usize,
    /// All notices at once, or one after another.
    pub(super) order: &'static str,
    /// Where the API server came from, and whether etcd syncs.
    pub(super) ground: String,
    /// The load average when the notices were sent.
    pub(super) load: f64,
    /// The bare loop at each concurrency, before the storm and after it.
    pub(super) floors: Vec<Floor>,
    /// From the notice, by what was waited for.
    pub(super) edges: BTreeMap<&'static str, Quantiles>,
    /// The last node fenced, in times of the fastest bare loop; not where something went wrong.
    pub(super) times_floor: Option<f64>,
    /// What was seen of what went wrong.
    pub(super) aftermath: Option<Aftermath>,
    /// Agents whose watches were open meanwhile.
    pub(super) agents: usize,
    /// Requests to the API server by everybody for each node, until all nodes were done.
    pub(super) requests: BTreeMap<String, f64>,
    /// The same, some seconds later: with what the holder of the Lease wrote into the records.
    pub(super) requests_settled: BTreeMap<String, f64>,
    /// The same, of the bare loop.
    pub(super) requests_floor: BTreeMap<String, f64>,
    /// Bytes in etcd's log for each node: until done, settled, and of the bare loop.
    pub(super) etcd_bytes: [f64; 3],
    /// What was asked of the queue.
    pub(super) queue: Counts,
    /// Each replica, before the storm and after it.
    pub(super) programs: Vec<[Taken; 2]>,
}

impl Quantiles {
    /// Of what was measured; `last` is the whole's.
    pub(super) fn of(mut times: Vec<Duration>, last: Option<Duration>) -> Self {
        times.sort();
        let at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share of a count of nodes"
            )]
            let place = (share * times.len() as f64).ceil() as usize;
            times.get(place.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self {
            count: times.len(),
            p50_ms: milliseconds(at(0.5)),
            p99_ms: milliseconds(at(0.99)),
            last_ms: milliseconds(last.or(times.last().copied()).unwrap_or_default()),
        }
    }
}

impl Floor {
    /// How long the whole loop took, in milliseconds.
    pub(super) fn whole_ms(&self) -> f64 {
        self.patch.last_ms
    }
}

impl Figures {
    /// Whether every node got all that it waits for, and no message was deleted too early.
    pub(super) fn is_whole(&self) -> bool {
        let all = self.edges.values().all(|edge| edge.count == self.nodes);
        all && self.queue.deleted_early == 0 && self.queue.left == 0
    }

    /// The table, line by line.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{} nodes with {} pods each, {}, {} controller(s), {} agent(s); load {:.1}",
                self.nodes, self.pods, self.order, self.replicas, self.agents, self.load
            ),
            self.ground.clone(),
            format!("{:28} {:>6} {:>10} {:>10} {:>10}", "", "nodes", "P50 ms", "P99 ms", "last ms"),
        ];
        for floor in &self.floors {
            lines.push(row(&format!("floor, {} at a time", floor.at_a_time), &floor.patch));
        }
        lines.extend(
            self.edges.iter().map(|(edge, times)| row(&format!("notice to {edge}"), times)),
        );
        lines.extend(
            self.times_floor.map(|times| format!("last node fenced: {times:.2} times the floor")),
        );
        lines.extend(self.aftermath.iter().flat_map(Aftermath::lines));
        let [until, settled, floor] = self.etcd_bytes;
        lines.push(format!(
            "etcd's log, bytes a node: {until:.0} until done, {settled:.0} settled, {floor:.0} floor"
        ));
        lines.push(format!(
            "{:42} {:>8} {:>8} {:>8}",
            "requests a node", "done", "settled", "floor"
        ));
        for (name, settled) in &self.requests_settled {
            let of = |all: &BTreeMap<String, f64>| all.get(name).copied().unwrap_or(0.0);
            let (done, floor) = (of(&self.requests), of(&self.requests_floor));
            lines.push(format!("  {name:40} {done:8.2} {settled:8.2} {floor:8.2}"));
        }
        lines.push(self.queue.line());
        lines.extend(self.programs.iter().map(memory));
        lines
    }
}

impl Counts {
    fn line(&self) -> String {
        let requests: Vec<String> =
            self.requests.iter().map(|(action, count)| format!("{action} {count}")).collect();
        format!(
            "queue: {}; {} receives brought messages, {} deleted, {} before the record, {} left",
            requests.join(", "),
            self.receives_with_messages,
            self.deleted,
            self.deleted_early,
            self.left
        )
    }
}

fn row(name: &str, times: &Quantiles) -> String {
    format!(
        "{name:28} {:6} {:10.1} {:10.1} {:10.1}",
        times.count, times.p50_ms, times.p99_ms, times.last_ms
    )
}

fn memory([before, after]: &[Taken; 2]) -> String {
    format!(
        "controller: {:.0} MiB resident before, {:.0} after, {:.0} at most; {:.1} s of processor",
        before.resident_mib,
        after.resident_mib,
        after.peak_mib,
        after.cpu_seconds - before.cpu_seconds
    )
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

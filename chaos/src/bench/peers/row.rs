//! What one run came to, and the table of all.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::bench::figures::Quantiles;
use crate::bench::peers::subject::Subject;
use crate::bench::peers::subject::Who;
use crate::bench::post::Post;
use crate::bench::program::Taken;
use crate::bench::witness::Edge;
use crate::bench::witness::Witness;
use crate::control_plane::audit::Entry;

/// How many times sooner than Karpenter a node alone and a storm are to be fenced.
const GOALS: [f64; 2] = [2.0, 10.0];
/// How many times less memory a node is to take.
const MEMORY_GOAL: f64 = 10.0;

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    /// Who was measured.
    pub(super) subject: Subject,
    /// Notices at once; 1: one after another.
    pub(super) nodes_at_once: usize,
    /// Nodes with a notice.
    nodes: usize,
    /// The load average when the notices were sent.
    load: f64,
    /// From the notice to the fence, as a watch shows it.
    fenced: Quantiles,
    /// From the notice to the deletion of the node's claim; Karpenter alone has claims.
    claim_deleted: Quantiles,
    /// From the notice to the deletion of its message.
    message_deleted: Quantiles,
    /// Messages deleted in each second, from the first notice to the last deletion.
    messages_per_second: f64,
    /// Messages that were left.
    messages_left: u64,
    /// Requests to the queue, by action.
    queue: BTreeMap<String, u64>,
    /// Requests to the API server.
    asked: Asked,
    /// Memory and processor time.
    memory: Memory,
}

/// Requests to the API server for each node, watches left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Asked {
    /// All of them.
    all: f64,
    /// Those that write.
    writes: f64,
    /// By verb and resource.
    by_kind: BTreeMap<String, f64>,
}

/// What the processes took, all replicas together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    /// Resident where there was no node yet, in MiB.
    empty_mib: f64,
    /// Resident with all nodes, before the first notice, in MiB.
    resting_mib: f64,
    /// The most that was ever resident, in MiB.
    peak_mib: f64,
    /// From no node to the most that was ever resident, for each node, in KiB.
    growth_kib: f64,
    /// Processor time from the first notice on, in seconds.
    cpu_seconds: f64,
}

impl Row {
    /// What was seen and counted.
    pub(super) fn new(
        (subject, nodes_at_once, load): (Subject, usize, f64),
        (witness, post): (&Witness, &Post),
        asked: Asked,
        memory: Memory,
    ) -> Self {
        let of = |edge| Quantiles::of(witness.times(edge), witness.last(edge));
        let (message_deleted, counts) = (of(Edge::Deleted), post.counts());
        Self {
            subject,
            nodes_at_once,
            nodes: witness.nodes_in_sight(),
            load,
            fenced: of(Edge::Fenced),
            claim_deleted: of(Edge::ClaimDeleted),
            messages_per_second: per_second(&message_deleted),
            message_deleted,
            messages_left: counts.left,
            queue: counts.requests,
            asked,
            memory,
        }
    }

    /// A pass of the bare loop: the patch by itself, without a queue.
    pub(super) fn bare(
        (subject, nodes_at_once, load): (Subject, usize, f64),
        patch: Quantiles,
    ) -> Self {
        let kinds = BTreeMap::from([("patch nodes".to_owned(), 1.0)]);
        Self {
            subject,
            nodes_at_once,
            nodes: patch.count,
            load,
            fenced: patch,
            claim_deleted: Quantiles::default(),
            message_deleted: Quantiles::default(),
            messages_per_second: 0.0,
            messages_left: 0,
            queue: BTreeMap::new(),
            asked: Asked { all: 1.0, writes: 1.0, by_kind: kinds },
            memory: Memory::default(),
        }
    }

    /// Whether every node was fenced and no message was left.
    pub(super) fn lost_nothing(&self) -> bool {
        self.never_fenced() == 0 && self.messages_left == 0
    }

    fn never_fenced(&self) -> usize {
        self.nodes - self.fenced.count
    }

    /// The time that counts: of a node alone the median, of a storm the last.
    fn time_ms(&self) -> f64 {
        if self.nodes_at_once == 1 { self.fenced.p50_ms } else { self.fenced.last_ms }
    }

    fn line(&self) -> String {
        let last = match self.nodes_at_once {
            1 => "-".to_owned(),
            _ => format!("{:.0}", self.fenced.last_ms),
        };
        format!(
            "{:18} {:>5} {:>9.1} {:>9.1} {:>8} {:>7.1} {:>8.1} {:>6.1} {:>7.0} {:>6.0} {:>7.0} {:>6} {:>6}",
            self.subject,
            self.nodes_at_once,
            self.fenced.p50_ms,
            self.fenced.p99_ms,
            last,
            self.messages_per_second,
            self.asked.all,
            self.asked.writes,
            self.memory.resting_mib,
            self.memory.peak_mib,
            self.memory.growth_kib,
            self.never_fenced(),
            self.messages_left,
        )
    }
}

impl Asked {
    /// Of these requests, for so many nodes.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests and nodes")]
    pub(super) fn of(entries: &[Entry], nodes: usize) -> Self {
        let nodes = nodes as f64;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for entry in entries {
            let part = if entry.subresource.is_empty() { "" } else { "/" };
            let kind = format!("{} {}{part}{}", entry.verb, entry.resource, entry.subresource);
            *counts.entry(kind).or_default() += 1;
        }
        let writes = entries.iter().filter(|entry| entry.writes()).count();
        Self {
            all: entries.len() as f64 / nodes,
            writes: writes as f64 / nodes,
            by_kind: counts.into_iter().map(|(kind, count)| (kind, count as f64 / nodes)).collect(),
        }
    }
}

impl Memory {
    /// Without nodes, with all of them, and at the end.
    #[expect(clippy::cast_precision_loss, reason = "a count of nodes")]
    pub(super) fn of([empty, resting, end]: [Taken; 3], nodes: usize) -> Self {
        Self {
            empty_mib: empty.resident_mib,
            resting_mib: resting.resident_mib,
            peak_mib: end.peak_mib,
            growth_kib: (end.peak_mib - empty.resident_mib) * 1024.0 / nodes as f64,
            cpu_seconds: end.cpu_seconds - resting.cpu_seconds,
        }
    }
}

/// The table, line by line, and how it stands with the goals.
pub(super) fn lines(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{:18} {:>5} {:>9} {:>9} {:>8} {:>7} {:>8} {:>6} {:>7} {:>6} {:>7} {:>6} {:>6}",
            "",
            "nodes",
            "fenced",
            "ms",
            "ms",
            "messa-",
            "requests",
            "writes",
            "MiB at",
            "MiB at",
            "KiB",
            "never",
            "messa-"
        ),
        format!(
            "{:18} {:>5} {:>9} {:>9} {:>8} {:>7} {:>8} {:>6} {:>7} {:>6} {:>7} {:>6} {:>6}",
            "",
            "",
            "P50",
            "P99",
            "last",
            "ges/s",
            "a node",
            "a node",
            "rest",
            "most",
            "a node",
            "fenced",
            "left"
        ),
    ];
    lines.extend(rows.iter().map(Row::line));
    for ours in rows.iter().filter(|row| row.subject.who == Who::Lifeboat) {
        let theirs = rows.iter().filter(|row| {
            row.subject.who == Who::Karpenter && row.nodes_at_once == ours.nodes_at_once
        });
        lines.extend(theirs.map(|theirs| goal(ours, theirs)));
    }
    lines
}

fn goal(ours: &Row, theirs: &Row) -> String {
    let alone = ours.nodes_at_once == 1;
    let (sooner, aim) = (theirs.time_ms() / ours.time_ms(), GOALS[usize::from(!alone)]);
    let lost = match theirs.never_fenced() {
        0 => String::new(),
        lost => format!(", which left {lost} unfenced"),
    };
    let fenced = format!(
        "{} node(s), against {}{lost}: fenced {sooner:.1} times sooner (goal {aim}: {})",
        ours.nodes_at_once,
        theirs.subject,
        met(sooner >= aim),
    );
    // Of a few nodes, what a program takes by itself is more than what they take.
    if alone {
        return fenced;
    }
    let smaller = theirs.memory.growth_kib / ours.memory.growth_kib;
    let met = met(smaller >= MEMORY_GOAL);
    format!("{fenced}, {smaller:.1} times less memory a node (goal {MEMORY_GOAL}: {met})")
}

fn met(met: bool) -> &'static str {
    if met { "met" } else { "NOT met" }
}

fn per_second(deleted: &Quantiles) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of messages")]
    let count = deleted.count as f64;
    if deleted.last_ms > 0.0 { count * 1000.0 / deleted.last_ms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(who: Who, nodes_at_once: usize, (time_ms, growth_kib): (f64, f64)) -> Row {
        let count = if nodes_at_once == 1 { 20 } else { nodes_at_once };
        let patch = Quantiles { count, p50_ms: time_ms, p99_ms: time_ms, last_ms: time_ms };
        let mut row = Row::bare((Subject { who, tuning: None }, nodes_at_once, 0.0), patch);
        row.memory.growth_kib = growth_kib;
        row
    }

    #[test]
    fn a_goal_is_met_or_not_and_said_so() {
        let ours = row(Who::Lifeboat, 100, (300.0, 90.0));
        let theirs = row(Who::Karpenter, 100, (2_400.0, 900.0));
        let line = goal(&ours, &theirs);
        assert!(line.contains("8.0 times sooner (goal 10: NOT met)"), "{line}");
        assert!(line.contains("10.0 times less memory a node (goal 10: met)"), "{line}");
    }

    #[test]
    fn of_a_node_alone_the_median_counts_and_memory_does_not() {
        let ours = row(Who::Lifeboat, 1, (10.0, 1.0));
        let theirs = row(Who::Karpenter, 1, (25.0, 1.0));
        assert!(goal(&ours, &theirs).ends_with("2.5 times sooner (goal 2: met)"));
    }

    #[test]
    fn who_leaves_nodes_unfenced_is_named_with_their_number() {
        let mut theirs = row(Who::Karpenter, 100, (2_400.0, 900.0));
        theirs.fenced.count = 97;
        assert!(!theirs.lost_nothing());
        let line = goal(&row(Who::Lifeboat, 100, (200.0, 90.0)), &theirs);
        assert!(line.contains("which left 3 unfenced"), "{line}");
    }

    #[test]
    fn every_line_of_the_table_is_as_wide_as_its_head() {
        let rows = [row(Who::Floor, 1, (5.0, 0.0)), row(Who::Floor, 500, (1_100.0, 0.0))];
        let widths: Vec<usize> = lines(&rows).iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}");
    }
}

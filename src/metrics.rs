//! Every metric, as a function that records it, so that no call site can misname a label.
//!
//! Labels come from closed lists only: never a name, an id or an error's text.

use std::sync::LazyLock;
use std::time::Duration;

use lifeboat_domain::progress::Phase;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Metric;
use prometheus_client::registry::Registry;

/// Label names with their values.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Counters by label.
type Counters<const N: usize> = Family<Labels<N>, Counter>;

/// Distributions by label.
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// A metric as `docs/metrics.md` lists it.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// Its name, as Prometheus shows it.
    pub name: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// The question it answers.
    pub question: &'static str,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Counts a signal heard from `source`.
pub fn signal_received(kind: &'static str, source: &'static str) {
    METRICS.signals_received.get_or_create(&[("kind", kind), ("source", source)]).inc();
}

/// Records how old a signal was when it was heard.
pub fn signal_age(source: &'static str, age: Duration) {
    METRICS.signal_age.get_or_create(&[("source", source)]).observe(age.as_secs_f64());
}

/// Counts a queue message by what became of it.
pub fn message(outcome: &'static str) {
    METRICS.messages.get_or_create(&[("outcome", outcome)]).inc();
}

/// Counts an interruption that closed in `phase`.
pub fn interruption_closed(phase: &'static str) {
    METRICS.interruptions.get_or_create(&[("phase", phase)]).inc();
}

/// Records the time that was left when the last protected workload was durable.
pub fn deadline_slack(slack: Duration) {
    METRICS.deadline_slack.observe(slack.as_secs_f64());
}

/// Records one attempt to save a workload: how it went, its bytes and its time.
pub fn checkpoint(outcome: &'static str, bytes: u64, took: Duration) {
    METRICS.checkpoint_bytes.get_or_create(&[("outcome", outcome)]).inc_by(bytes);
    METRICS.checkpoint_duration.get_or_create(&[("outcome", outcome)]).observe(took.as_secs_f64());
}

/// Records how long a workload stood still for a save after which it went on.
pub fn checkpoint_stall(stall: Duration) {
    METRICS.checkpoint_stall.observe(stall.as_secs_f64());
}

/// Records one attempt to restore a workload, and how long it waited for its proof.
pub fn restore(outcome: &'static str, waited: Duration) {
    METRICS.restores.get_or_create(&[("outcome", outcome)]).inc();
    METRICS.restore_wait.get_or_create(&[("outcome", outcome)]).observe(waited.as_secs_f64());
}

/// Counts a step of a plan by what it did and why.
pub fn action(action: &'static str, outcome: &'static str, reason: &'static str) {
    let labels = [("action", action), ("outcome", outcome), ("reason", reason)];
    METRICS.actions.get_or_create(&labels).inc();
}

/// Counts a step that broke a rule of the plan, and was refused.
pub fn step_refused(rule: &'static str) {
    METRICS.steps_refused.get_or_create(&[("rule", rule)]).inc();
}

/// Records the time from a pod's end to the proof that its slice is free.
pub fn gpu_released(slice_kind: &'static str, took: Duration) {
    METRICS.gpu_release.get_or_create(&[("slice_kind", slice_kind)]).observe(took.as_secs_f64());
}

/// Counts an error where it is handled.
pub fn error(adapter: &'static str, label: &'static str) {
    METRICS.errors.get_or_create(&[("adapter", adapter), ("label", label)]).inc();
}

/// Counts something that a full queue turned away.
pub fn overflow(queue: &'static str) {
    METRICS.overflows.get_or_create(&[("queue", queue)]).inc();
}

/// Says whether this replica holds the Lease.
pub fn leading() {
    METRICS.leader.set(1);
}

/// Says that this replica does not hold the Lease.
pub fn following() {
    METRICS.leader.set(0);
}

/// Sets how many interruptions are open.
pub fn interruptions_open(count: usize) {
    METRICS.interruptions_open.set(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Sets how many protected workloads the agent holds a socket for.
pub fn workloads(count: usize) {
    METRICS.workloads.set(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Sets of how many workloads the state could not be saved if the node were interrupted now.
pub fn workloads_unsavable(count: usize) {
    METRICS.workloads_unsavable.set(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Sets how many bytes of the node's ring budget are lent to workloads.
pub fn ring_lent(bytes: u64) {
    METRICS.ring_lent.set(i64::try_from(bytes).unwrap_or(i64::MAX));
}

/// Sets how many requests to the bucket may be made at a time.
pub fn store_connections(count: usize) {
    METRICS.store_connections.set(i64::try_from(count).unwrap_or(i64::MAX));
}

/// Counts that the bucket asked for fewer requests.
pub fn store_slow_down() {
    METRICS.store_slow_downs.inc();
}

/// Counts what a pass over one job key deleted, or would have: `epochs`, `chunks` or `ranks`.
pub fn collected(mode: &'static str, what: &'static str, count: usize) {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    METRICS.collected.get_or_create(&[("mode", mode), ("what", what)]).inc_by(count);
}

/// Counts the bytes of the chunks that were deleted, or would have been.
pub fn collected_bytes(mode: &'static str, bytes: u64) {
    METRICS.collected_bytes.get_or_create(&[("mode", mode)]).inc_by(bytes);
}

/// Counts a pass over one job key by how it ended.
pub fn collection(outcome: &'static str) {
    METRICS.collections.get_or_create(&[("outcome", outcome)]).inc();
}

/// All metrics in the text format that Prometheus scrapes.
pub fn render() -> String {
    let mut text = String::new();
    encode(&mut text, &METRICS.registry).expect("writing to a string does not fail");
    text
}

/// Every metric, in the order of `docs/metrics.md`.
pub fn described() -> &'static [Described] {
    DESCRIBED
}

const fn row(
    name: &'static str,
    labels: &'static [&'static str],
    question: &'static str,
) -> Described {
    Described { name, labels, question }
}

const DESCRIBED: &[Described] = &[
    row("lifeboat_signals_received_total", &["kind", "source"], "Do we hear EC2?"),
    row("lifeboat_signal_age_seconds", &["source"], "How late do we hear it?"),
    row("lifeboat_messages_total", &["outcome"], "What became of the queue's messages?"),
    row("lifeboat_interruptions_total", &["phase"], "How often do we win?"),
    row("lifeboat_interruptions_open", &[], "How many are under way?"),
    row("lifeboat_deadline_slack_seconds", &[], "By how much do we win?"),
    row("lifeboat_checkpoint_bytes_total", &["outcome"], "How much is saved?"),
    row("lifeboat_checkpoint_duration_seconds", &["outcome"], "Is the store fast enough?"),
    row("lifeboat_checkpoint_stall_seconds", &[], "What does a save cost work that goes on?"),
    row("lifeboat_restores_total", &["outcome"], "Does the work go on?"),
    row("lifeboat_restore_wait_seconds", &["outcome"], "How long does it wait for its proof?"),
    row(
        "lifeboat_actions_total",
        &["action", "outcome", "reason"],
        "What do we do, and does it work?",
    ),
    row("lifeboat_steps_refused_total", &["rule"], "Did a plan break a rule of its own?"),
    row("lifeboat_gpu_release_seconds", &["slice_kind"], "Does the GPU really come free?"),
    row("lifeboat_errors_total", &["adapter", "label"], "What fails?"),
    row("lifeboat_overflows_total", &["queue"], "Which queue was full?"),
    row("lifeboat_leader", &[], "Which replica holds the Lease?"),
    row("lifeboat_workloads", &[], "How many protected workloads does the agent serve?"),
    row("lifeboat_workloads_unsavable", &[], "Whose state would not fit a notice?"),
    row("lifeboat_ring_lent_bytes", &[], "How much of the ring budget is lent?"),
    row("lifeboat_store_connections", &[], "How many requests to the bucket at a time?"),
    row("lifeboat_store_slow_downs_total", &[], "Does the bucket ask for fewer?"),
    row(
        "lifeboat_collections_total",
        &["outcome"],
        "How did the looks at job keys in the bucket end?",
    ),
    row(
        "lifeboat_collected_total",
        &["mode", "what"],
        "What was deleted that nothing named any more?",
    ),
    row("lifeboat_collected_bytes_total", &["mode"], "How much room did that make?"),
];

struct Metrics {
    registry: Registry,
    signals_received: Counters<2>,
    signal_age: Histograms<1>,
    messages: Counters<1>,
    interruptions: Counters<1>,
    interruptions_open: Gauge,
    deadline_slack: Histogram,
    checkpoint_bytes: Counters<1>,
    checkpoint_duration: Histograms<1>,
    checkpoint_stall: Histogram,
    restores: Counters<1>,
    restore_wait: Histograms<1>,
    actions: Counters<3>,
    steps_refused: Counters<1>,
    gpu_release: Histograms<1>,
    errors: Counters<2>,
    overflows: Counters<1>,
    leader: Gauge,
    workloads: Gauge,
    workloads_unsavable: Gauge,
    ring_lent: Gauge,
    store_connections: Gauge,
    store_slow_downs: Counter,
    collections: Counters<1>,
    collected: Counters<2>,
    collected_bytes: Counters<1>,
}

impl Metrics {
    fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            signals_received: Family::default(),
            signal_age: Family::new_with_constructor(seconds),
            messages: Family::default(),
            interruptions: Family::default(),
            interruptions_open: Gauge::default(),
            deadline_slack: seconds(),
            checkpoint_bytes: Family::default(),
            checkpoint_duration: Family::new_with_constructor(seconds),
            checkpoint_stall: seconds(),
            restores: Family::default(),
            restore_wait: Family::new_with_constructor(seconds),
            actions: Family::default(),
            steps_refused: Family::default(),
            gpu_release: Family::new_with_constructor(seconds),
            errors: Family::default(),
            overflows: Family::default(),
            leader: Gauge::default(),
            workloads: Gauge::default(),
            workloads_unsavable: Gauge::default(),
            ring_lent: Gauge::default(),
            store_connections: Gauge::default(),
            store_slow_downs: Counter::default(),
            collections: Family::default(),
            collected: Family::default(),
            collected_bytes: Family::default(),
        };
        metrics.register();
        // An increase is seen only of what was there before: the first loss must page, too.
        drop(metrics.interruptions.get_or_create(&[("phase", Phase::Lost.label())]));
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        add(registry, "lifeboat_signals_received_total", &self.signals_received);
        add(registry, "lifeboat_signal_age_seconds", &self.signal_age);
        add(registry, "lifeboat_messages_total", &self.messages);
        add(registry, "lifeboat_interruptions_total", &self.interruptions);
        add(registry, "lifeboat_interruptions_open", &self.interruptions_open);
        add(registry, "lifeboat_deadline_slack_seconds", &self.deadline_slack);
        add(registry, "lifeboat_checkpoint_bytes_total", &self.checkpoint_bytes);
        add(registry, "lifeboat_checkpoint_duration_seconds", &self.checkpoint_duration);
        add(registry, "lifeboat_checkpoint_stall_seconds", &self.checkpoint_stall);
        add(registry, "lifeboat_restores_total", &self.restores);
        add(registry, "lifeboat_restore_wait_seconds", &self.restore_wait);
        add(registry, "lifeboat_actions_total", &self.actions);
        add(registry, "lifeboat_steps_refused_total", &self.steps_refused);
        add(registry, "lifeboat_gpu_release_seconds", &self.gpu_release);
        add(registry, "lifeboat_errors_total", &self.errors);
        add(registry, "lifeboat_overflows_total", &self.overflows);
        add(registry, "lifeboat_leader", &self.leader);
        add(registry, "lifeboat_workloads", &self.workloads);
        add(registry, "lifeboat_workloads_unsavable", &self.workloads_unsavable);
        add(registry, "lifeboat_ring_lent_bytes", &self.ring_lent);
        add(registry, "lifeboat_store_connections", &self.store_connections);
        add(registry, "lifeboat_store_slow_downs_total", &self.store_slow_downs);
        add(registry, "lifeboat_collections_total", &self.collections);
        add(registry, "lifeboat_collected_total", &self.collected);
        add(registry, "lifeboat_collected_bytes_total", &self.collected_bytes);
    }
}

fn add(registry: &mut Registry, name: &str, metric: &(impl Metric + Clone)) {
    let row = DESCRIBED.iter().find(|row| row.name == name).expect("every metric is described");
    // The registry adds `_total` to counters by itself.
    registry.register(name.strip_suffix("_total").unwrap_or(name), row.question, metric.clone());
}

/// Buckets that tell a good interruption from a close one: 0.1 s to 10 minutes.
fn seconds() -> Histogram {
    Histogram::new([0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 300.0, 600.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_scraped_under_its_described_name() {
        signal_received("interruption", "queue");
        action("fence", "done", "Interrupted");
        deadline_slack(Duration::from_secs(82));
        let text = render();
        for expected in [
            "lifeboat_signals_received_total{kind=\"interruption\",source=\"queue\"} 1",
            "lifeboat_actions_total{action=\"fence\",outcome=\"done\",reason=\"Interrupted\"} 1",
            "lifeboat_deadline_slack_seconds_bucket{le=\"80.0\"} 0",
            "lifeboat_leader 0",
            "lifeboat_interruptions_total{phase=\"Lost\"} 0",
        ] {
            assert!(text.contains(expected), "no `{expected}` in\n{text}");
        }
    }
}

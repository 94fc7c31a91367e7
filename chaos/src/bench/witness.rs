//! Sees, on watches of its own, when each node is fenced, recorded and held.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat::adapters::cluster::Cluster;
use lifeboat::adapters::cluster::Slots;
use lifeboat::adapters::cluster::claims;
use lifeboat::adapters::cluster::claims::ClaimRow;
use lifeboat::adapters::cluster::interruptions;
use lifeboat::adapters::cluster::interruptions::InterruptionRow;
use lifeboat::adapters::cluster::nodes;
use lifeboat::adapters::cluster::nodes::NodeRow;
use lifeboat::adapters::cluster::pods;
use lifeboat::adapters::cluster::pods::PodRow;
use lifeboat::adapters::cluster::rows::Change;
use lifeboat::adapters::cluster::rows::Rows;
use lifeboat::adapters::cluster::rows::Selector;
use lifeboat::clock::Clock;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::bench::fleet::Fleet;

/// The taint by which Karpenter fences a node.
const DISRUPTED: &str = "karpenter.sh/disrupted";

/// What may come after a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Edge {
    /// The node has our taint and the cordon.
    Fenced,
    /// The interruption's record names the notice.
    Recorded,
    /// The message is off the queue.
    Deleted,
    /// Every pod of the node is held.
    Held,
    /// The deletion of the node's claim was asked for.
    ClaimDeleted,
}

/// Whose fence is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// Our taint and the cordon.
    Ours,
    /// A cordon.
    Cordon,
    /// Karpenter's taint.
    Disrupted,
}

/// What is looked for, and which of it is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// The fence.
    pub(super) fence: Fence,
    /// A node is done when all of these have come.
    pub(super) awaited: &'static [Edge],
}

impl Edge {
    /// All that our controller does, in the order that they are shown.
    pub(super) const ALL: [Self; 4] = [Self::Fenced, Self::Recorded, Self::Deleted, Self::Held];

    /// Its name.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Fenced => "fenced",
            Self::Recorded => "recorded",
            Self::Deleted => "deleted",
            Self::Held => "held",
            Self::ClaimDeleted => "claim deleted",
        }
    }
}

impl Sight {
    /// All that our controller does.
    pub(super) const OURS: Self = Self { fence: Fence::Ours, awaited: &Edge::ALL };
}

impl Fence {
    fn is_on(self, row: &NodeRow) -> bool {
        let cordoned = row.unschedulable == Some(true);
        let taints = || row.taints.iter().flatten();
        match self {
            Self::Ours => row.fence().is_some() && cordoned,
            Self::Cordon => cordoned,
            Self::Disrupted => taints().any(|taint| taint["key"] == DISRUPTED),
        }
    }
}

/// What was seen of one node.
#[derive(Clone, Debug, Default)]
struct Seen {
    sent: Option<Timestamp>,
    edges: [Option<Timestamp>; 5],
    held: BTreeSet<String>,
}

/// Sees one fleet.
#[derive(Clone)]
pub(super) struct Witness {
    fleet: Fleet,
    sight: Sight,
    clock: Clock,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Nodes for which all has come.
    done: Arc<AtomicUsize>,
    changed: Arc<Notify>,
    nodes: Rows<NodeRow>,
}

impl Witness {
    /// Opens the watches; they run until the set is dropped.
    pub(super) async fn start(
        client: &kube::Client,
        (fleet, sight): (&Fleet, Sight),
        clock: &Clock,
    ) -> (Self, JoinSet<()>) {
        let witness = Self {
            fleet: fleet.clone(),
            sight,
            clock: clock.clone(),
            seen: Arc::new(Mutex::new(vec![Seen::default(); fleet.nodes])),
            done: Arc::default(),
            changed: Arc::default(),
            nodes: Rows::default(),
        };
        let cluster = Cluster::first_aid(client.clone(), &Slots::new(1, 0));
        let pods = Rows::default();
        let mut watches = JoinSet::new();
        watches.spawn(witness.clone().follow_nodes(cluster.clone()));
        watches.spawn(witness.clone().follow_records(cluster.clone()));
        watches.spawn(witness.clone().follow_pods(pods.clone(), cluster.clone()));
        if sight.fence == Fence::Disrupted {
            watches.spawn(witness.clone().follow_claims(cluster));
        }
        tokio::join!(witness.nodes.synced(), pods.synced());
        (witness, watches)
    }

    /// A node as it was last seen, of whichever fleet.
    pub(super) fn row(&self, node: &str) -> Option<NodeRow> {
        self.nodes.row(&node.to_owned())
    }

    /// The notice of a node is being sent.
    pub(super) fn sent(&self, number: usize) {
        let now = self.clock.now();
        if let Some(seen) = self.seen().get_mut(number) {
            seen.sent = Some(now);
        }
    }

    /// Something that is waited for has come; only the first time counts.
    pub(super) fn mark(&self, number: usize, edge: Edge) {
        let now = self.clock.now();
        let mut all = self.seen();
        let Some(seen) = all.get_mut(number) else { return };
        let is_done = |seen: &Seen| {
            self.sight.awaited.iter().all(|edge| seen.edges[*edge as usize].is_some())
        };
        let before = is_done(seen);
        seen.edges[edge as usize].get_or_insert(now);
        let after = is_done(seen);
        drop(all);
        if !before && after {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        self.changed.notify_waiters();
    }

    /// How many nodes it looks at.
    pub(super) fn nodes_in_sight(&self) -> usize {
        self.fleet.nodes
    }

    /// Whether it is waited for.
    pub(super) fn awaits(&self, edge: Edge) -> bool {
        self.sight.awaited.contains(&edge)
    }

    /// Whether it has come.
    pub(super) fn has(&self, number: usize, edge: Edge) -> bool {
        self.seen().get(number).is_some_and(|seen| seen.edges[edge as usize].is_some())
    }

    /// Waits until it has come; answers whether it did within the bound.
    pub(super) async fn until(&self, number: usize, edge: Edge, bound: Duration) -> bool {
        self.wait(bound, || self.has(number, edge)).await
    }

    /// Waits until all has come for as many nodes; answers whether it did within the bound.
    pub(super) async fn all(&self, count: usize, bound: Duration) -> bool {
        self.wait(bound, || self.done.load(Ordering::Relaxed) >= count).await
    }

    /// Waits until it has come for as many nodes; answers whether it did within the bound.
    pub(super) async fn some(&self, edge: Edge, count: usize, bound: Duration) -> bool {
        let come = || self.seen().iter().filter(|seen| seen.edges[edge as usize].is_some()).count();
        self.wait(bound, || come() >= count).await
    }

    /// How long it took from the notice for each node for which it has come.
    pub(super) fn times(&self, edge: Edge) -> Vec<Duration> {
        let seen = self.seen();
        let times = seen.iter().filter_map(|seen| {
            let took = seen.edges[edge as usize]?.duration_since(seen.sent?);
            Some(Duration::try_from(took).unwrap_or_default())
        });
        times.collect()
    }

    /// From the first notice to the last node for which it has come.
    pub(super) fn last(&self, edge: Edge) -> Option<Duration> {
        let seen = self.seen();
        let first = seen.iter().filter_map(|seen| seen.sent).min()?;
        let last = seen.iter().filter_map(|seen| seen.edges[edge as usize]).max()?;
        Duration::try_from(last.duration_since(first)).ok()
    }

    async fn wait(&self, bound: Duration, done: impl Fn() -> bool) -> bool {
        let until = tokio::time::Instant::now() + bound;
        loop {
            let changed = self.changed.notified();
            if done() {
                return true;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return done();
            }
        }
    }

    async fn follow_nodes(self, cluster: Cluster) {
        let on_change = |change: Change<'_, NodeRow>| {
            let Change::Put(name, row) = change else { return };
            let Some(number) = self.fleet.number(name) else { return };
            if self.sight.fence.is_on(row) {
                self.mark(number, Edge::Fenced);
            }
        };
        self.nodes.follow((nodes::api(&cluster), Selector::All), "witness", on_change).await;
    }

    async fn follow_records(self, cluster: Cluster) {
        let on_change = |change: Change<'_, InterruptionRow>| {
            let Change::Put(_, row) = change else { return };
            let Some(number) = self.fleet.number(&row.node) else { return };
            if row.signals.deadline().is_some() {
                self.mark(number, Edge::Recorded);
            }
        };
        let records = Rows::default();
        records.follow((interruptions::api(&cluster), Selector::All), "witness", on_change).await;
    }

    async fn follow_claims(self, cluster: Cluster) {
        let on_change = |change: Change<'_, ClaimRow>| {
            let Change::Put(name, row) = change else { return };
            let Some(number) = self.fleet.number(name) else { return };
            if row.deleted_at.is_some() {
                self.mark(number, Edge::ClaimDeleted);
            }
        };
        let claims = Rows::default();
        claims.follow((claims::api(&cluster), Selector::All), "witness", on_change).await;
    }

    async fn follow_pods(self, pods: Rows<PodRow>, cluster: Cluster) {
        let on_change = |change: Change<'_, PodRow>| {
            let Change::Put(uid, row) = change else { return };
            let held = row.do_not_disrupt.is_some();
            let number = row.node.as_ref().and_then(|node| self.fleet.number(node));
            let (true, Some(number)) = (held, number) else { return };
            let all = {
                let mut seen = self.seen();
                seen[number].held.insert(uid.clone());
                seen[number].held.len() >= self.fleet.pods
            };
            if all {
                self.mark(number, Edge::Held);
            }
        };
        pods.follow((pods::api(&cluster), Selector::All), "witness", on_change).await;
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

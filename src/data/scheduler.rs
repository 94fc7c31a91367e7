//! One per node: whose bytes are moved next, how fast they go, and whether they will fit the time.
//!
//! Every chunk that is moved takes a turn, which bounds the bytes and the requests in flight over
//! all workloads. Saves go before restores; namespaces get equal parts; within one the order is
//! that of [`budget::turns`]. How many requests there are at a time, [`Concurrency`] says.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat_domain::budget;
use lifeboat_domain::budget::Rate;
use lifeboat_domain::budget::Waiting;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::ids::Namespace;
use lifeboat_domain::ids::PodUid;
use lifeboat_protocol::ring::RingError;
use lifeboat_protocol::ring::Shape;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::adapters::store::SlowDowns;
use crate::data::concurrency::Concurrency;
use crate::data::ring::Ring;
use crate::data::ring::budget_bytes;
use crate::data::ring::shape_for;
use crate::metrics;
use crate::offload::Offload;

/// How far back the rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Most completions that the rate is measured from.
const RATE_SAMPLES: usize = 512;
/// Shortest work whose rate says something of the next: less is mostly the way there and back.
const RATE_WORK_MIN: Duration = Duration::from_secs(1);
/// Most slots of one workload's ring.
const SLOTS_EACH: u32 = 8;

/// What a node may spend on moving state.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes read and not yet stored, at most.
    pub in_flight: u64,
    /// Requests at a time; none: as many as the bandwidth takes.
    pub connections: Option<usize>,
    /// Bytes that the node's network carries in a second; none if nobody said so.
    pub bandwidth: Option<u64>,
    /// Bytes of memory lent to workloads, together.
    pub ring_budget: u64,
}

/// The scheduler of a node. Clones share it.
#[derive(Clone, Debug)]
pub struct Scheduler {
    node: Arc<Mutex<Node>>,
    limits: Limits,
    slow_downs: SlowDowns,
    offload: Offload,
}

/// Which way bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To the bucket. Goes before everything that is restored.
    Save,
    /// From the bucket.
    Restore,
    /// To the bucket, while nothing is wrong: after all else, and below half of what the node's
    /// network carries for ever, so that its credit for bursts is there when a notice comes.
    Background,
}

impl Direction {
    /// Whether it leads to the bucket.
    pub fn is_save(self) -> bool {
        match self {
            Self::Save | Self::Background => true,
            Self::Restore => false,
        }
    }
}

/// Whose bytes, how many, and how urgent.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Whose.
    pub pod: PodUid,
    /// Its namespace.
    pub namespace: Namespace,
    /// Which way.
    pub direction: Direction,
    /// Its pod's priority in the cluster; the higher goes first.
    pub pod_priority: i32,
    /// Its place within its namespace; the higher goes first.
    pub priority: i32,
    /// All bytes.
    pub bytes: u64,
    /// When they must be there.
    pub deadline: Option<Deadline>,
}

/// A workload's place at the scheduler; given up when dropped.
#[derive(Debug)]
pub struct Lane {
    scheduler: Scheduler,
    number: u64,
    direction: Direction,
}

/// The right to have so many bytes in flight; given back when dropped.
#[derive(Debug)]
pub struct Turn {
    grant: Grant,
    lane: u64,
    bytes: u64,
}

/// A ring, and the part of the budget it takes; given back when dropped.
#[derive(Debug)]
pub struct Lent {
    /// The ring.
    pub ring: Ring,
    _grant: Grant,
}

/// How far a pod's bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes moved, or found not to need it.
    pub done: u64,
    /// All bytes.
    pub total: u64,
}

impl Scheduler {
    /// A scheduler that keeps within these limits, and makes fewer requests when the bucket asks
    /// for that.
    pub fn new(limits: Limits, slow_downs: SlowDowns, offload: Offload) -> Self {
        let concurrency = Concurrency::new(limits.connections, limits.bandwidth);
        let node = Arc::new(Mutex::new(Node::new(concurrency)));
        Self { node, limits, slow_downs, offload }
    }

    /// A place for a workload that has bytes to move.
    pub fn open(&self, demand: Demand) -> Lane {
        let mut node = self.node();
        let number = node.next_lane;
        node.next_lane += 1;
        let direction = demand.direction;
        let lane = LaneState { demand, done: 0, asking: VecDeque::new() };
        node.lanes.insert(number, lane);
        Lane { scheduler: self.clone(), number, direction }
    }

    /// How far the bytes of a pod are in these directions; none if none are moved.
    pub fn moved(&self, pod: &PodUid, which: impl Fn(Direction) -> bool) -> Option<Moved> {
        let node = self.node();
        let mine = |demand: &Demand| demand.pod == *pod && which(demand.direction);
        let mut moved = None;
        for lane in node.lanes.values().filter(|lane| mine(&lane.demand)) {
            let sum: &mut Moved = moved.get_or_insert_default();
            sum.done += lane.done;
            sum.total += lane.demand.bytes;
        }
        moved
    }

    /// Bytes per second, as measured over the last seconds of work, or as the operator says.
    pub fn rate(&self) -> Rate {
        match (self.node().rate.known(), self.limits.bandwidth) {
            (Some(bytes_per_second), _) => Rate::Measured { bytes_per_second },
            (None, Some(bytes_per_second)) => Rate::Configured { bytes_per_second },
            (None, None) => Rate::Unknown,
        }
    }

    /// Lends a ring for a state of so many bytes, once the budget has room for it.
    ///
    /// A slot holds a chunk of `chunk` bytes. No more than half of the budget goes to one, so that
    /// another can always begin.
    pub async fn lend(&self, state_bytes: u64, chunk: u64) -> Result<Lent, RingError> {
        let shape = self.shape(state_bytes, chunk)?;
        let bytes = budget_bytes(shape);
        let (tell, told) = oneshot::channel();
        {
            let mut node = self.node();
            node.borrowers.push_back((bytes, tell));
            node.lend(&self.limits);
        }
        let grant = self.granted(told, What::Ring { bytes }).await;
        let ring = self.offload.run(move || Ring::allocate(shape)).await?;
        Ok(Lent { ring, _grant: grant })
    }

    fn shape(&self, state_bytes: u64, chunk: u64) -> Result<Shape, RingError> {
        let slot = chunk.min(state_bytes).max(1);
        let affordable = (self.limits.ring_budget / 2 / slot).max(1);
        let slots = u32::try_from(affordable).unwrap_or(SLOTS_EACH).min(SLOTS_EACH);
        shape_for(state_bytes, slots, slot)
    }

    async fn granted(&self, told: oneshot::Receiver<()>, what: What) -> Grant {
        let mut pending = Pending { told, scheduler: self.clone(), what };
        // An error cannot be: who asks holds the lane, and with it the other end.
        (&mut pending.told).await.ok();
        Grant { scheduler: self.clone(), what }
    }

    /// Gives turns while there is room.
    fn grant(&self) {
        let mut node = self.node();
        let slowed = self.slow_downs.count();
        let measured = node.rate.known();
        let most = node.concurrency.most((slowed, measured), Instant::now());
        metrics::store_connections(most);
        node.grant(&self.limits, most);
    }

    fn node(&self) -> MutexGuard<'_, Node> {
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// Waits for the right to have so many bytes in flight.
    pub async fn turn(&self, bytes: u64) -> Turn {
        if let Some(at) = self.paced(bytes) {
            tokio::time::sleep_until(at).await;
        }
        let (tell, told) = oneshot::channel();
        if let Some(lane) = self.scheduler.node().lanes.get_mut(&self.number) {
            lane.asking.push_back((bytes, tell));
        }
        self.scheduler.grant();
        let paced = self.direction == Direction::Background;
        let grant = self.scheduler.granted(told, What::Turn { bytes, paced }).await;
        Turn { grant, lane: self.number, bytes }
    }

    /// When so many bytes may ask for their turn, where they are paced.
    fn paced(&self, bytes: u64) -> Option<Instant> {
        if self.direction != Direction::Background {
            return None;
        }
        let rate = self.scheduler.limits.bandwidth.unwrap_or(budget::BASELINE) / 2;
        let takes = budget::eta(Some(bytes), Some(rate)).unwrap_or_default();
        let mut node = self.scheduler.node();
        let at = node.paced_until.unwrap_or_else(Instant::now).max(Instant::now());
        node.paced_until = Some(at + takes);
        Some(at)
    }

    /// Counts bytes that need not be moved at all.
    pub fn skip(&self, bytes: u64) {
        self.scheduler.node().done(self.number, bytes);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.scheduler.node().leave(self.number);
        self.scheduler.grant();
    }
}

impl Turn {
    /// The bytes were moved: they count, and their time tells the rate.
    pub fn moved(self) {
        let mut node = self.grant.scheduler.node();
        if !self.grant.what.is_paced() {
            node.rate.moved(self.bytes);
        }
        node.done(self.lane, self.bytes);
    }

    /// The bytes did not need to be moved: they count, and say nothing of the rate.
    pub fn skipped(self) {
        self.grant.scheduler.node().done(self.lane, self.bytes);
    }
}

/// What was granted; given back when dropped.
#[derive(Debug)]
struct Grant {
    scheduler: Scheduler,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Turn {
        bytes: u64,
        /// It says nothing of how fast the node could be.
        paced: bool,
    },
    Ring {
        bytes: u64,
    },
}

impl What {
    fn is_paced(self) -> bool {
        matches!(self, Self::Turn { paced: true, .. })
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        match self.what {
            What::Turn { bytes, paced } => {
                self.scheduler.node().returned(bytes, paced);
                self.scheduler.grant();
            }
            What::Ring { bytes } => {
                let mut node = self.scheduler.node();
                node.lent = node.lent.saturating_sub(bytes);
                metrics::ring_lent(node.lent);
                node.lend(&self.scheduler.limits);
            }
        }
    }
}

/// A grant that is waited for. Dropped while it waits, nothing is held.
struct Pending {
    told: oneshot::Receiver<()>,
    scheduler: Scheduler,
    what: What,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.told.close();
        if self.told.try_recv().is_ok() {
            // Granted in the moment in which it was given up.
            drop(Grant { scheduler: self.scheduler.clone(), what: self.what });
        }
    }
}

#[derive(Debug)]
struct Node {
    concurrency: Concurrency,
    lanes: BTreeMap<u64, LaneState>,
    next_lane: u64,
    in_flight: u64,
    turns: usize,
    /// Those of the turns that are paced.
    paced: usize,
    /// Until when the paced bytes that were let go take the part of the network that is theirs.
    paced_until: Option<Instant>,
    /// Bytes that each namespace took while others waited too.
    taken: BTreeMap<Namespace, u64>,
    lent: u64,
    borrowers: VecDeque<(u64, oneshot::Sender<()>)>,
    rate: Meter,
}

#[derive(Debug)]
struct LaneState {
    demand: Demand,
    done: u64,
    asking: VecDeque<(u64, oneshot::Sender<()>)>,
}

impl LaneState {
    fn waiting(&self) -> Waiting {
        Waiting {
            uid: self.demand.pod.clone(),
            namespace: self.demand.namespace.clone(),
            pod_priority: self.demand.pod_priority,
            priority: self.demand.priority,
            remaining: Some(self.demand.bytes.saturating_sub(self.done)),
        }
    }
}

impl Node {
    fn new(concurrency: Concurrency) -> Self {
        Self {
            concurrency,
            lanes: BTreeMap::new(),
            next_lane: 0,
            in_flight: 0,
            turns: 0,
            paced: 0,
            paced_until: None,
            taken: BTreeMap::new(),
            lent: 0,
            borrowers: VecDeque::new(),
            rate: Meter::default(),
        }
    }

    /// A turn is over.
    fn returned(&mut self, bytes: u64, paced: bool) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.turns = self.turns.saturating_sub(1);
        self.paced = self.paced.saturating_sub(usize::from(paced));
        if self.turns == self.paced {
            self.rate.idle();
        }
    }

    /// A workload has no more bytes to move. What the last paced one had still reserved is free.
    fn leave(&mut self, number: u64) {
        self.lanes.remove(&number);
        let paced = |lane: &LaneState| lane.demand.direction == Direction::Background;
        if !self.lanes.values().any(paced) {
            self.paced_until = None;
        }
    }

    /// Gives turns while there is room, at most so many at a time.
    fn grant(&mut self, limits: &Limits, most: usize) {
        while self.turns < most.max(1) {
            let Some(number) = self.next() else { return };
            let Some(lane) = self.lanes.get_mut(&number) else { return };
            let Some((bytes, _)) = lane.asking.front() else { return };
            let bytes = *bytes;
            if self.in_flight > 0 && self.in_flight + bytes > limits.in_flight {
                return;
            }
            let Some((_, tell)) = lane.asking.pop_front() else { return };
            if tell.send(()).is_err() {
                // Who asked is gone.
                continue;
            }
            if let Some(taken) = self.taken.get_mut(&lane.demand.namespace) {
                *taken += bytes;
            }
            self.in_flight += bytes;
            self.turns += 1;
            if lane.demand.direction == Direction::Background {
                self.paced += 1;
            } else {
                self.rate.busy();
            }
        }
    }

    /// The lane whose turn it is, among those that ask.
    fn next(&mut self) -> Option<u64> {
        let asking = || self.lanes.iter().filter(|(_, lane)| !lane.asking.is_empty());
        let direction = asking().map(|(_, lane)| lane.demand.direction).min()?;
        let asking: Vec<(u64, Waiting)> = asking()
            .filter(|(_, lane)| lane.demand.direction == direction)
            .map(|(number, lane)| (*number, lane.waiting()))
            .collect();
        let namespace = self.behind(&asking)?;
        let waiting: Vec<Waiting> = asking
            .iter()
            .filter(|(_, one)| one.namespace == namespace)
            .map(|(_, one)| one.clone())
            .collect();
        let rate = match self.rate.known() {
            Some(bytes_per_second) => Rate::Measured { bytes_per_second },
            None => Rate::Unknown,
        };
        let first = budget::turns(&waiting, rate, Duration::MAX).into_iter().next()?;
        asking.iter().find(|(_, one)| one.uid == first.uid).map(|(number, _)| *number)
    }

    /// The namespace that took least while it shared the rate with the others.
    ///
    /// One that comes later begins where the others are: it gets an equal part from now on.
    fn behind(&mut self, asking: &[(u64, Waiting)]) -> Option<Namespace> {
        let wanted =
            |namespace: &Namespace| asking.iter().any(|(_, one)| one.namespace == *namespace);
        self.taken.retain(|namespace, _| wanted(namespace));
        let start = self.taken.values().copied().min().unwrap_or(0);
        for (_, one) in asking {
            self.taken.entry(one.namespace.clone()).or_insert(start);
        }
        let least = self.taken.iter().min_by_key(|(_, taken)| **taken)?;
        Some(least.0.clone())
    }

    /// Lends while there is room. One that is larger than the whole budget gets it alone.
    fn lend(&mut self, limits: &Limits) {
        while let Some((bytes, _)) = self.borrowers.front() {
            let bytes = *bytes;
            if self.lent > 0 && self.lent + bytes > limits.ring_budget {
                return;
            }
            let Some((_, tell)) = self.borrowers.pop_front() else { return };
            if tell.send(()).is_ok() {
                self.lent += bytes;
            }
            metrics::ring_lent(self.lent);
        }
    }

    fn done(&mut self, lane: u64, bytes: u64) {
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.done += bytes;
        }
    }
}

/// Measures the rate over the time in which there was work.
#[derive(Debug, Default)]
struct Meter {
    samples: VecDeque<(Instant, u64)>,
    busy_since: Option<Instant>,
    last: Option<u64>,
}

impl Meter {
    fn busy(&mut self) {
        self.busy_since.get_or_insert_with(Instant::now);
    }

    /// The work is over. What lasted long enough is remembered.
    fn idle(&mut self) {
        let worked = self.busy_since.is_some_and(|since| since.elapsed() >= RATE_WORK_MIN);
        self.last = self.measured().filter(|_| worked).or(self.last);
        self.busy_since = None;
        self.samples.clear();
    }

    fn moved(&mut self, bytes: u64) {
        if self.samples.len() == RATE_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((Instant::now(), bytes));
    }

    /// The rate now, or when there was work last.
    fn known(&self) -> Option<u64> {
        self.measured().or(self.last)
    }

    fn measured(&self) -> Option<u64> {
        let now = Instant::now();
        let from = now.checked_sub(RATE_WINDOW).unwrap_or(now).max(self.busy_since?);
        let from = match self.samples.front() {
            // Older samples were pushed out: what is left covers less time.
            Some((first, _)) if self.samples.len() == RATE_SAMPLES => from.max(*first),
            Some(_) | None => from,
        };
        let recent = self.samples.iter().filter(|(at, _)| *at >= from);
        let bytes: u64 = recent.map(|(_, bytes)| bytes).sum();
        let micros = u64::try_from((now - from).as_micros()).unwrap_or(u64::MAX);
        (bytes > 0 && micros > 0).then(|| {
            let rate = u128::from(bytes) * 1_000_000 / u128::from(micros);
            u64::try_from(rate).unwrap_or(u64::MAX)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;
    use std::task::Poll;
    use std::task::Waker;

    use super::*;

    fn scheduler(in_flight: u64, ring_budget: u64) -> Scheduler {
        limited(in_flight, Some(8), ring_budget, SlowDowns::default())
    }

    fn limited(
        in_flight: u64,
        connections: Option<usize>,
        ring_budget: u64,
        slow_downs: SlowDowns,
    ) -> Scheduler {
        let limits = Limits { in_flight, connections, bandwidth: None, ring_budget };
        Scheduler::new(limits, slow_downs, Offload::Inline)
    }

    fn demand(pod: &str, direction: Direction, bytes: u64) -> Demand {
        Demand {
            pod: pod.parse().unwrap(),
            namespace: pod.split('-').next().unwrap().parse().unwrap(),
            direction,
            pod_priority: 0,
            priority: 0,
            bytes,
            deadline: None,
        }
    }

    fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_in_flight_are_bounded_and_a_dropped_turn_makes_room() {
        let scheduler = scheduler(100, 0);
        let lane = scheduler.open(demand("a-1", Direction::Save, 1000));
        let first = ready(lane.turn(60)).unwrap();
        assert!(ready(lane.turn(60)).is_none());
        drop(first);
        let second = ready(lane.turn(60)).unwrap();
        second.skipped();
        let larger_than_all = ready(lane.turn(500));
        assert!(larger_than_all.is_some());
        let moved = scheduler.moved(&"a-1".parse().unwrap(), Direction::is_save);
        assert_eq!(moved.unwrap().done, 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_save_goes_before_a_restore() {
        let scheduler = scheduler(10, 0);
        let restore = scheduler.open(demand("a-1", Direction::Restore, 100));
        let save = scheduler.open(demand("a-2", Direction::Save, 100));
        let held = ready(restore.turn(10)).unwrap();
        let mut again = pin!(restore.turn(10));
        let mut urgent = pin!(save.turn(10));
        assert!(ready(again.as_mut()).is_none() && ready(urgent.as_mut()).is_none());
        drop(held);
        assert!(ready(again.as_mut()).is_none());
        assert!(ready(urgent.as_mut()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_saved_in_the_background_goes_last_and_at_half_the_bandwidth() {
        let (connections, bandwidth) = (Some(1), Some(200));
        let limits = Limits { in_flight: 1000, connections, bandwidth, ring_budget: 0 };
        let scheduler = Scheduler::new(limits, SlowDowns::default(), Offload::Inline);
        let lane = scheduler.open(demand("a-1", Direction::Background, 1000));
        let began = Instant::now();
        for _ in 0..5 {
            lane.turn(100).await.moved();
        }
        // The first goes at once, and each of the others when the one before has had its second.
        assert_eq!(began.elapsed().as_secs(), 4);
        assert_eq!(scheduler.rate(), Rate::Configured { bytes_per_second: 200 });
        let held = lane.turn(100).await;
        let urgent = scheduler.open(demand("a-2", Direction::Save, 1000));
        let mut again = Box::pin(lane.turn(100));
        tokio::select! {
            biased;
            _ = &mut again => panic!("there is one turn at a time"),
            () = tokio::time::sleep(Duration::from_secs(5)) => (),
        }
        let mut first = pin!(urgent.turn(100));
        assert!(ready(first.as_mut()).is_none());
        drop(held);
        assert!(ready(again.as_mut()).is_none());
        assert!(ready(first.as_mut()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn namespaces_take_equal_parts() {
        let scheduler = scheduler(10, 0);
        let lanes: Vec<Lane> = ["a-1", "a-2", "b-1"]
            .map(|pod| scheduler.open(demand(pod, Direction::Save, 1000)))
            .into_iter()
            .collect();
        let mut order = Vec::new();
        let mut turns: Vec<_> = lanes
            .iter()
            .enumerate()
            .flat_map(|(place, lane)| (0..4).map(move |_| (place, Box::pin(lane.turn(10)))))
            .collect();
        for _ in 0..8 {
            let granted = turns
                .iter_mut()
                .enumerate()
                .filter_map(|(index, (_, turn))| Some((index, ready(turn.as_mut())?)))
                .collect::<Vec<_>>();
            assert_eq!(granted.len(), 1);
            order.push(turns.remove(granted[0].0).0);
        }
        // The first asked before anybody else did.
        assert_eq!(order, [0, 0, 2, 0, 2, 0, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_measured_while_there_is_work() {
        let scheduler = scheduler(1000, 0);
        let lane = scheduler.open(demand("a-1", Direction::Save, 1000));
        assert_eq!(scheduler.rate(), Rate::Unknown);
        for _ in 0..5 {
            let turn = lane.turn(100).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            turn.moved();
        }
        assert_eq!(scheduler.rate(), Rate::Measured { bytes_per_second: 100 });
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(scheduler.rate(), Rate::Measured { bytes_per_second: 100 });
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_of_a_moment_is_not_remembered() {
        let scheduler = scheduler(1000, 0);
        let lane = scheduler.open(demand("a-1", Direction::Save, 1000));
        let turn = lane.turn(100).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        turn.moved();
        assert_eq!(scheduler.rate(), Rate::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_operator_says_counts_until_it_is_measured() {
        let (connections, bandwidth) = (None, Some(700));
        let limits = Limits { in_flight: 1000, connections, bandwidth, ring_budget: 0 };
        let scheduler = Scheduler::new(limits, SlowDowns::default(), Offload::Inline);
        assert_eq!(scheduler.rate(), Rate::Configured { bytes_per_second: 700 });
        let lane = scheduler.open(demand("a-1", Direction::Save, 1000));
        let turn = lane.turn(100).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        turn.moved();
        assert_eq!(scheduler.rate(), Rate::Measured { bytes_per_second: 50 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_that_says_slow_down_gets_fewer_requests_at_a_time() {
        let slow_downs = SlowDowns::default();
        let scheduler = limited(1000, Some(8), 0, slow_downs.clone());
        let lane = scheduler.open(demand("a-1", Direction::Save, 1000));
        let held: Vec<Turn> = (0..8).map(|_| ready(lane.turn(1)).unwrap()).collect();
        assert!(ready(lane.turn(1)).is_none());
        slow_downs.add();
        drop(held);
        let held: Vec<Turn> = (0..4).map(|_| ready(lane.turn(1)).unwrap()).collect();
        assert!(ready(lane.turn(1)).is_none());
        tokio::time::sleep(Duration::from_secs(10)).await;
        let more: Vec<Turn> = (0..4).map(|_| ready(lane.turn(1)).unwrap()).collect();
        assert!(ready(lane.turn(1)).is_none());
        drop((held, more));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_lent_is_bounded_and_comes_back() {
        let scheduler = scheduler(0, 16 << 10);
        let first = scheduler.lend(1 << 20, 4096).await.unwrap();
        assert_eq!(first.ring.shape().slots(), 2);
        let second = scheduler.lend(1 << 20, 4096).await.unwrap();
        let mut third = pin!(scheduler.lend(1 << 20, 4096));
        assert!(ready(third.as_mut()).is_none());
        let mut given_up = Box::pin(scheduler.lend(1 << 20, 4096));
        assert!(ready(given_up.as_mut()).is_none());
        drop(given_up);
        drop(first);
        assert!(ready(third.as_mut()).is_some());
        drop(second);
    }
}

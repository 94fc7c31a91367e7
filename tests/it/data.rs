//! The path from a workload's memory to the bucket and back, against a bucket in memory.
#![allow(
    clippy::wildcard_imports,
    clippy::wildcard_enum_match_arm,
    reason = "the peer speaks every frame there is, and waits for one of many"
)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat::adapters::store::Store;
use lifeboat::agent::workloads;
use lifeboat::agent::workloads::Known;
use lifeboat::agent::workloads::Means;
use lifeboat::agent::workloads::Place;
use lifeboat::agent::workloads::PodEntry;
use lifeboat::agent::workloads::Workloads;
use lifeboat::clock::Clock;
use lifeboat::data::history::History;
use lifeboat::data::history::Owner;
use lifeboat::data::scheduler::Limits;
use lifeboat::data::scheduler::Scheduler;
use lifeboat::data::spool::Spool;
use lifeboat::offload::Offload;
use lifeboat_chaos::world::workloads::line::Line;
use lifeboat_checkpoint::chunk::Chunk;
use lifeboat_checkpoint::chunk::cuts;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_checkpoint::region::Dtype;
use lifeboat_checkpoint::region::Layout;
use lifeboat_checkpoint::region::Region;
use lifeboat_checkpoint::tree::Tree;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::facts::Asked;
use lifeboat_domain::node::facts::Quiet;
use lifeboat_domain::node::facts::Restore as Restores;
use lifeboat_domain::node::facts::Session;
use lifeboat_domain::node::plan::Notice;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::FailReason;
use lifeboat_domain::workload::Proof;
use lifeboat_domain::workload::Purpose;
use lifeboat_domain::workload::Wishes;
use lifeboat_protocol::frame::*;
use lifeboat_protocol::ring::Shape;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

mod bucket;
mod spool;

use bucket::Counting;

const CHUNK: u64 = 64 << 10;
const STATE: u64 = 300_000;

/// One node: a registry and its driver, over a bucket that may be shared with other nodes.
struct Node {
    workloads: Workloads,
    driver: JoinHandle<()>,
    folder: tempfile::TempDir,
    clock: Clock,
    store: Store,
}

impl Node {
    fn new(name: &str, bucket: &Arc<dyn ObjectStore>, clock: &Clock) -> Self {
        Self::with(name, (bucket, None), clock, None)
    }

    /// One whose network is known to carry so many bytes a second, and that may have a spool.
    fn with(
        name: &str,
        (bucket, bandwidth): (&Arc<dyn ObjectStore>, Option<u64>),
        clock: &Clock,
        spool: Option<Spool>,
    ) -> Self {
        let store = Store::new(Arc::clone(bucket), clock.clone(), Offload::Inline);
        let limits =
            Limits { in_flight: 1 << 20, connections: Some(8), bandwidth, ring_budget: 1 << 20 };
        let place = Place {
            cluster: "blue".into(),
            node: name.into(),
            instance: None,
            prefix: "ckpt".into(),
            chunk: CHUNK,
            in_flight: 1 << 20,
        };
        let (workloads, driver) = workloads::registry(Means {
            store: store.clone(),
            scheduler: Scheduler::new(limits, store.slow_downs(), Offload::Inline),
            clock: clock.clone(),
            offload: Offload::Inline,
            place,
            spool,
        });
        let driver = tokio::spawn(driver.run());
        let folder = tempfile::tempdir().unwrap();
        Self { workloads, driver, folder, clock: clock.clone(), store }
    }

    fn publish(&self, pod: &str) -> PathBuf {
        self.publish_with(pod, &[])
    }

    fn publish_with(&self, pod: &str, annotations: &[(&str, &str)]) -> PathBuf {
        let socket = self.folder.path().join(format!("{pod}.sock"));
        std::fs::remove_file(&socket).ok();
        let listener = UnixListener::bind(&socket).unwrap();
        let mut all = BTreeMap::from([
            ("lifeboat.dev/checkpoint".to_owned(), "sdk".to_owned()),
            ("lifeboat.dev/job-key".to_owned(), "job".to_owned()),
        ]);
        all.extend(annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        let entry = PodEntry {
            pod: PodRef {
                namespace: "ml".parse().unwrap(),
                name: pod.parse().unwrap(),
                uid: uid(pod),
            },
            wishes: Wishes::read(&all).0,
            grace: Duration::from_secs(30),
            pod_priority: 0,
        };
        self.workloads.publish(entry, listener);
        socket
    }

    fn known(&self, pod: &str) -> Known {
        let all = self.workloads.workloads();
        all.into_iter().find(|one| one.pod.uid == uid(pod)).unwrap()
    }

    /// Waits until a pod is as it should be.
    async fn until(&self, pod: &str, wanted: impl Fn(&Known) -> bool) -> Known {
        for _ in 0..6000 {
            let all = self.workloads.workloads();
            if let Some(known) = all.into_iter().find(|one| one.pod.uid == uid(pod))
                && wanted(&known)
            {
                return known;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("pod {pod} is {:?}", self.known(pod));
    }

    fn ask(&self, pod: &str, purpose: Purpose, seconds: Option<u64>) {
        let deadline =
            seconds.map(|left| Deadline::after(self.clock.now(), Duration::from_secs(left)));
        self.workloads.ask(&uid(pod), Notice { purpose, deadline });
    }

    fn history(&self) -> History {
        let owner = Owner { cluster: "blue".into(), namespace: "ml".into(), job_key: "job".into() };
        History::new(self.store.clone(), "ckpt", owner).unwrap()
    }

    async fn newest(&self) -> Option<Manifest> {
        let by = Deadline::after(self.clock.now(), Duration::from_mins(1));
        self.history().newest(by).await.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A program that speaks the protocol by hand.
struct Peer {
    line: Line,
    rank: u32,
    ring: Option<(Shape, OwnedFd)>,
    state: Vec<u8>,
    step: u64,
    /// The save that is due.
    save: u64,
}

impl Peer {
    async fn connect(socket: &Path, hello: Hello) -> Self {
        let line = Line::connect(socket).await.unwrap();
        let (rank, step) = (hello.rank, hello.step.unwrap_or(0));
        let mut peer = Self { line, rank, ring: None, state: Vec::new(), step, save: 0 };
        peer.say(FromWorkload::Hello(hello)).await;
        peer
    }

    /// Connects, is welcome, and begins with nothing.
    async fn fresh(socket: &Path) -> Self {
        let mut peer = Self::connect(socket, hello(0, 1)).await;
        peer.register().await;
        peer.say(FromWorkload::Restore(Restore { newer_than: None })).await;
        assert!(peer.expect(nothing_to_restore).await.epoch > 0);
        peer
    }

    async fn register(&mut self) {
        self.say(FromWorkload::Register(Register { layout: layout(STATE) })).await;
    }

    async fn say(&mut self, frame: FromWorkload) {
        self.line.say(&frame, &[]).await.unwrap();
    }

    async fn hear(&mut self) -> ToWorkload {
        let (frame, mut descriptors) = self.line.hear().await.unwrap();
        if let ToWorkload::Lend(lend) = &frame {
            self.ring = Some((lend.shape, descriptors.pop().unwrap()));
        }
        frame
    }

    /// Hears until the frame that is waited for.
    async fn expect<T>(&mut self, wanted: impl Fn(ToWorkload) -> Option<T>) -> T {
        loop {
            let frame = tokio::time::timeout(Duration::from_mins(5), self.hear()).await.unwrap();
            if let Some(found) = wanted(frame) {
                return found;
            }
        }
    }

    async fn due(&mut self) -> SaveAt {
        let prepare = self
            .expect(|frame| match frame {
                ToWorkload::Prepare(prepare) => Some(prepare),
                _ => None,
            })
            .await;
        let ready = Ready { save: prepare.save, step: self.step, parked: false };
        self.save = prepare.save;
        self.say(FromWorkload::Ready(ready)).await;
        self.expect(|frame| match frame {
            ToWorkload::SaveAt(at) => Some(at),
            _ => None,
        })
        .await
    }

    async fn begin(&mut self, at: &SaveAt) {
        let begin = SaveBegin { save: at.save, step: self.step, layout: layout(STATE) };
        self.say(FromWorkload::SaveBegin(begin)).await;
    }

    /// Fills the ring that it is lent until all of its state went through it.
    async fn fill(&mut self, at: &SaveAt) {
        self.expect(|frame| matches!(frame, ToWorkload::Lend(_)).then_some(())).await;
        let regions = layout(STATE).regions;
        let slots = self.ring.as_ref().unwrap().0.slots();
        let mut free: Vec<u32> = (0..slots).rev().collect();
        for cut in cuts(&regions, at.chunk_bytes) {
            while free.is_empty() {
                let freed = |frame| match frame {
                    ToWorkload::Freed(freed) => Some(freed.slot),
                    _ => None,
                };
                let slot = self.expect(freed).await;
                free.push(slot);
            }
            let slot = free.pop().unwrap();
            let bytes = contents(self.rank, self.step, cut.offset..cut.offset + cut.bytes);
            let (shape, ring) = self.ring.as_ref().unwrap();
            rustix::io::pwrite(ring, &bytes, shape.offset(slot).unwrap()).unwrap();
            let (offset, bytes) = (cut.offset, cut.bytes);
            self.say(FromWorkload::Filled(Filled { save: at.save, slot, offset, bytes })).await;
        }
        self.say(FromWorkload::SaveEnd(SaveEnd { save: at.save, bytes: STATE })).await;
    }

    /// Hands the state of its step over in two files.
    async fn give(&mut self, at: &SaveAt) {
        self.begin(at).await;
        let half = STATE / 2;
        let files = [0..half, half..STATE].map(|part| {
            let file = rustix::fs::memfd_create("part", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::io::pwrite(&file, &contents(self.rank, self.step, part), 0).unwrap();
            file
        });
        let piece = |descriptor: u32, offset, bytes| Piece { descriptor, from: 0, offset, bytes };
        let pieces = vec![piece(0, 0, half), piece(1, half, STATE - half)];
        let given = FromWorkload::Given(Given { save: at.save, pieces });
        self.line.say(&given, &[files[0].as_fd(), files[1].as_fd()]).await.unwrap();
        self.say(FromWorkload::SaveEnd(SaveEnd { save: at.save, bytes: STATE })).await;
    }

    async fn taken(&mut self) {
        self.expect(|frame| matches!(frame, ToWorkload::Taken(_)).then_some(())).await;
    }

    async fn durable(&mut self) -> Durable {
        self.expect(|frame| match frame {
            ToWorkload::Durable(durable) => Some(durable),
            ToWorkload::SaveFailed(failed) => panic!("{failed:?}"),
            _ => None,
        })
        .await
    }

    /// Takes what is offered until it may go on; says from which step, and by which proof.
    async fn restored(&mut self) -> (u64, String) {
        loop {
            match self.hear().await {
                ToWorkload::RestoreOffer(offer) => {
                    self.state = vec![0xee; usize::try_from(offer.layout.bytes()).unwrap()];
                    let restore = offer.restore;
                    self.say(FromWorkload::Accept(Accept { restore })).await;
                }
                ToWorkload::Filled(filling) => {
                    let (shape, ring) = self.ring.as_ref().unwrap();
                    let place = range(filling.offset, filling.bytes);
                    let at = shape.offset(filling.slot).unwrap();
                    rustix::io::pread(ring, &mut self.state[place], at).unwrap();
                    let (restore, slot) = (filling.restore, filling.slot);
                    self.say(FromWorkload::Emptied(Emptied { restore, slot })).await;
                }
                ToWorkload::Zeros(zeros) => {
                    self.state[range(zeros.offset, zeros.bytes)].fill(0);
                }
                ToWorkload::Opened(opened) => {
                    self.step = opened.step;
                    let expected = contents(self.rank, opened.step, 0..STATE);
                    assert!(self.state == expected, "state of step {} is right", opened.step);
                    return (opened.step, opened.proof);
                }
                ToWorkload::RestoreFailed(failed) => panic!("{failed:?}"),
                _ => (),
            }
        }
    }
}

fn range(offset: u64, bytes: u64) -> Range<usize> {
    usize::try_from(offset).unwrap()..usize::try_from(offset + bytes).unwrap()
}

fn uid(pod: &str) -> PodUid {
    format!("uid-{pod}").parse().unwrap()
}

fn hello(rank: u32, world: u32) -> Hello {
    Hello { version: VERSION, rank, world, local_world: world, ..Hello::default() }
}

fn again(rank: u32, world: u32, step: u64) -> Hello {
    Hello { again: true, step: Some(step), ..hello(rank, world) }
}

fn layout(bytes: u64) -> Layout {
    Layout { regions: vec![Region::new("state", Dtype::U8, &[bytes])], tree: Tree::Null }
}

/// A state that follows from rank and step; its middle is zero.
fn contents(rank: u32, step: u64, range: Range<u64>) -> Vec<u8> {
    let byte = |at: u64| {
        let word = (at / 8).wrapping_add(step.wrapping_mul(0x9e37_79b9)) ^ u64::from(rank) << 40;
        word.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes()[(at % 8) as usize]
    };
    range.map(|at| if (100_000..240_000).contains(&at) { 0 } else { byte(at) }).collect()
}

fn world() -> (Arc<Counting>, Clock) {
    let clock = Clock::starting_at(Timestamp::from_second(1_700_000_000).unwrap(), 1);
    (Arc::new(Counting::new(InMemory::new())), clock)
}

fn as_bucket(bucket: &Arc<Counting>) -> Arc<dyn ObjectStore> {
    Arc::clone(bucket) as Arc<dyn ObjectStore>
}

/// A trainer on `pod` that began with nothing and has done ten steps.
async fn trainer(node: &Node, pod: &str) -> Peer {
    let socket = node.publish(pod);
    let mut peer = Peer::fresh(&socket).await;
    peer.step = 10;
    peer
}

#[tokio::test(start_paused = true)]
async fn a_state_is_durable_and_goes_on_elsewhere_after_the_proof() {
    let (bucket, clock) = world();
    let old = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&old, "old").await;
    old.ask("old", Purpose::Interruption, Some(120));
    let at = peer.due().await;
    assert_eq!(at.step, None);
    old.until("old", |known| known.checkpoint == Checkpoint::Asked).await;
    peer.begin(&at).await;
    let ready = old.until("old", |known| known.session != Session::Open).await;
    assert_eq!(ready.session, Session::HandedOver { bytes: Some(STATE) });
    assert_eq!(ready.checkpoint, Checkpoint::Asked);

    // The successor reads ahead what there is: nothing yet.
    let new = Node::new("gpu-2", &as_bucket(&bucket), &clock);
    let socket = new.publish("new");
    let mut successor = Peer::connect(&socket, hello(0, 1)).await;
    successor.register().await;
    successor.say(FromWorkload::Restore(Restore { newer_than: None })).await;
    let waiting = new.until("new", |known| known.restore != Restores::No).await.restore;
    assert!(matches!(waiting, Restores::Waiting { from, .. } if from == uid("old")));

    // Then the state is committed.
    old.workloads.save(&uid("old"));
    peer.fill(&at).await;
    peer.taken().await;
    let durable = peer.durable().await;
    assert_eq!((durable.epoch, durable.step, durable.bytes), (2, 10, STATE));
    let known = old.until("old", |known| known.checkpoint.is_durable()).await;
    assert_eq!(known.quiet, Quiet::Parked);

    // It has the state, and waits for the proof.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(new.newest().await.unwrap().epoch, 2);
    new.workloads.allow_restore(&uid("new"), Proof::Released);
    assert_eq!(successor.restored().await, (10, "Released".to_owned()));
    let claim = new.newest().await.unwrap();
    assert_eq!((claim.epoch, claim.kind, claim.parent), (3, Kind::Claim, Some(2)));
    assert_eq!(claim.holder.pod, "new");
}

#[tokio::test(start_paused = true)]
async fn without_proof_the_gate_opens_thirty_seconds_past_the_deadline() {
    let (bucket, clock) = world();
    let old = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&old, "old").await;
    save(&old, "old", &mut peer).await;
    let deadline = old.newest().await.unwrap().deadline.unwrap().parse::<Timestamp>().unwrap();

    let new = Node::new("gpu-2", &as_bucket(&bucket), &clock);
    let mut successor = waiting(&new, "new").await;
    assert_eq!(successor.restored().await, (10, "PastDeadline".to_owned()));
    let late = clock.now().duration_since(deadline).as_secs();
    assert!((30..32).contains(&late), "{late} s past the deadline");
}

#[tokio::test(start_paused = true)]
async fn a_zombie_that_commits_late_is_refused() {
    let (bucket, clock) = world();
    let old = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&old, "old").await;
    old.ask("old", Purpose::Interruption, Some(120));
    let at = peer.due().await;
    peer.begin(&at).await;

    let new = Node::new("gpu-2", &as_bucket(&bucket), &clock);
    let mut successor = waiting(&new, "new").await;
    new.workloads.allow_restore(&uid("new"), Proof::InstanceGone);
    let nothing = successor.expect(nothing_to_restore).await;
    assert_eq!(nothing.epoch, 2);

    old.until("old", |known| known.session != Session::Open).await;
    old.workloads.save(&uid("old"));
    peer.fill(&at).await;
    let failed = peer.expect(save_failed).await;
    assert_eq!(failed.why, Failure::Superseded);
    let why = FailReason::Superseded;
    old.until("old", |known| known.checkpoint == Checkpoint::Failed { why }).await;
    assert_eq!(new.newest().await.unwrap().epoch, 2);
}

#[tokio::test(start_paused = true)]
async fn a_second_holder_is_refused_unless_the_first_is_going() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let _first = trainer(&node, "first").await;
    let socket = node.publish("second");
    let in_use = |frame| match frame {
        ToWorkload::KeyInUse(in_use) => Some(in_use),
        _ => None,
    };
    let mut second = Peer::connect(&socket, hello(0, 1)).await;
    let refused = second.expect(in_use).await;
    assert_eq!((refused.holder.as_str(), refused.wait), ("ml/first", false));
    assert!(second.line.hear().await.is_err());

    node.ask("first", Purpose::Ending, Some(30));
    node.until("first", |known| known.asked != Asked::Nothing).await;
    let mut second = Peer::connect(&socket, hello(0, 1)).await;
    assert!(second.expect(in_use).await.wait);
}

#[tokio::test(start_paused = true)]
async fn ranks_agree_on_the_step_after_the_furthest() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let socket = node.publish("gang");
    let mut ranks = Vec::new();
    for (rank, step) in [(0, 10), (1, 12)] {
        let mut peer = Peer::connect(&socket, hello(rank, 2)).await;
        peer.register().await;
        peer.say(FromWorkload::Restore(Restore { newer_than: None })).await;
        peer.step = step;
        ranks.push(peer);
    }
    for peer in &mut ranks {
        assert_eq!(peer.expect(nothing_to_restore).await.epoch, 1);
    }
    node.ask("gang", Purpose::Interruption, Some(120));
    let [zero, one] = &mut ranks[..] else { panic!() };
    let (at, other) = futures::join!(zero.due(), one.due());
    assert_eq!((at.step, other.step), (Some(13), Some(13)));
    assert_eq!((at.skip_replicated, other.skip_replicated), (false, true));
    for (peer, at) in [(zero, at), (one, other)] {
        peer.step = 13;
        peer.begin(&at).await;
        let whole = |known: &Known| known.session == Session::HandedOver { bytes: Some(2 * STATE) };
        if peer.rank == 1 {
            node.until("gang", whole).await;
            node.workloads.save(&uid("gang"));
        }
    }
    let saves: Vec<_> = ranks
        .iter_mut()
        .map(|peer| async {
            let at = SaveAt { save: peer.save, chunk_bytes: CHUNK, ..SaveAt::default() };
            peer.fill(&at).await;
            peer.durable().await
        })
        .collect();
    for durable in futures::future::join_all(saves).await {
        assert_eq!((durable.epoch, durable.step, durable.bytes), (2, 13, 2 * STATE));
    }
    check_whole(&node).await;
}

#[tokio::test(start_paused = true)]
async fn what_lies_in_files_is_saved_though_the_workload_dies() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    node.ask("old", Purpose::Interruption, Some(120));
    let at = peer.due().await;
    peer.give(&at).await;
    node.until("old", |known| known.session != Session::Open).await;
    drop(peer);
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.workloads.save(&uid("old"));
    node.until("old", |known| known.checkpoint.is_durable()).await;
    check_whole(&node).await;

    let new = Node::new("gpu-2", &as_bucket(&bucket), &clock);
    let mut successor = waiting(&new, "new").await;
    new.workloads.allow_restore(&uid("new"), Proof::ContainersEnded);
    assert_eq!(successor.restored().await.0, 10);
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_dies_before_its_last_byte_is_taken_is_lost() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    node.ask("old", Purpose::Interruption, Some(120));
    let at = peer.due().await;
    peer.begin(&at).await;
    drop(peer);
    let why = FailReason::WorkloadGone;
    node.until("old", |known| known.checkpoint == Checkpoint::Failed { why }).await;
    assert_eq!(node.newest().await.unwrap().kind, Kind::Claim);
}

#[tokio::test(start_paused = true)]
async fn a_save_for_insurance_lets_the_workload_go_on() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    node.ask("old", Purpose::Insurance, None);
    let at = peer.due().await;
    peer.begin(&at).await;
    node.until("old", |known| known.session != Session::Open).await;
    node.workloads.save(&uid("old"));
    peer.fill(&at).await;
    assert_eq!(peer.durable().await.epoch, 2);
    let known = node.until("old", |known| known.insurance.is_some()).await;
    assert_eq!((known.checkpoint, known.asked), (Checkpoint::Idle, Asked::Nothing));
    assert_eq!(known.quiet, Quiet::Running);

    // Chunks that the last epoch names are not stored again, and zeros never are.
    let chunks = |bucket: &Counting| {
        bucket.written().iter().filter(|path| path.contains("/chunks/")).count()
    };
    assert_eq!(chunks(&bucket), 4);
    save(&node, "old", &mut peer).await;
    assert_eq!(chunks(&bucket), 4);
    assert_eq!(node.newest().await.unwrap().epoch, 3);
}

/// A commit whose answer is lost makes another state the newest than the one that is known: its chunks
/// are not counted on, since they may be collected.
#[tokio::test(start_paused = true)]
async fn only_chunks_of_the_newest_state_are_not_stored_again() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    for (step, lost) in [(10, false), (11, true), (10, false)] {
        peer.step = step;
        bucket.lose_answers(lost.then_some("0000000003/MANIFEST.json"));
        node.ask("old", Purpose::Insurance, lost.then_some(20));
        let at = peer.due().await;
        peer.begin(&at).await;
        node.until("old", |known| known.session != Session::Open).await;
        node.workloads.save(&uid("old"));
        peer.fill(&at).await;
        if lost {
            peer.expect(save_failed).await;
        } else {
            peer.durable().await;
        }
    }
    let newest = node.newest().await.unwrap();
    assert_eq!((newest.epoch, newest.step), (4, 10));
    let by = Deadline::after(clock.now(), Duration::from_mins(1));
    let rank = node.history().read_rank(&newest, 0, by).await.unwrap();
    let own = newest.ranks[&0].attempt;
    let stored_by = rank.chunks.iter().filter_map(Chunk::address);
    assert!(stored_by.map(|address| address.attempt).all(|attempt| attempt == own));
    check_whole(&node).await;
}

#[tokio::test(start_paused = true)]
async fn only_what_passes_by_files_is_known_to_be_fit_for_the_background() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    assert_eq!(node.known("old").background_since, None);
    for by_files in [true, false] {
        node.ask("old", Purpose::Background, None);
        let at = peer.due().await;
        let before = clock.now();
        if by_files {
            peer.give(&at).await;
        } else {
            peer.begin(&at).await;
        }
        node.until("old", |known| known.session != Session::Open).await;
        node.workloads.save(&uid("old"));
        if !by_files {
            tokio::time::sleep(Duration::from_secs(7)).await;
            peer.fill(&at).await;
        }
        peer.durable().await;
        let known = node.until("old", |known| known.asked == Asked::Nothing).await;
        assert_eq!(known.background_since.is_some_and(|since| since >= before), by_files);
        let stall = known.stall.unwrap();
        assert_eq!(stall >= Duration::from_secs(7), !by_files, "{stall:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_notice_takes_the_place_of_a_save_for_insurance() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    node.ask("old", Purpose::Insurance, None);
    let at = peer.due().await;
    peer.begin(&at).await;
    node.until("old", |known| known.session != Session::Open).await;
    save(&node, "old", &mut peer).await;
    let known = node.known("old");
    assert_eq!((known.insurance, known.quiet), (None, Quiet::Parked));
    assert_eq!(node.newest().await.unwrap().epoch, 2);
}

#[tokio::test(start_paused = true)]
async fn insurance_that_is_refused_does_not_stand_in_the_way_of_a_notice() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    node.ask("old", Purpose::Insurance, None);
    let at = peer.due().await;
    let reason = "not now".to_owned();
    peer.say(FromWorkload::SaveRefused(SaveRefused { save: at.save, reason })).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(node.known("old").checkpoint, Checkpoint::Idle);
    save(&node, "old", &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn a_program_that_ends_while_it_is_asked_is_done() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    node.ask("old", Purpose::Interruption, Some(120));
    peer.due().await;
    peer.say(FromWorkload::Finish(Finish { step: 10 })).await;
    peer.expect(|frame| matches!(frame, ToWorkload::Finished(_)).then_some(())).await;
    node.until("old", |known| known.checkpoint.is_durable()).await;
    assert_eq!(node.newest().await.unwrap().kind, Kind::Finished);
}

#[tokio::test(start_paused = true)]
async fn who_is_parked_for_no_reason_that_the_agent_knows_goes_on() {
    let (bucket, clock) = world();
    let first = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let peer = trainer(&first, "old").await;
    drop((first, peer));
    let second = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let socket = second.publish("old");
    let parked = Parked { step: 10, save: Some(1), taken: false, epoch: None };
    let mut peer = Peer::connect(&socket, Hello { parked: Some(parked), ..again(0, 1, 10) }).await;
    peer.expect(|frame| matches!(frame, ToWorkload::Unpark(_)).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn who_never_began_has_nothing_to_save() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let socket = node.publish("old");
    let parked = Parked { step: 0, save: None, taken: false, epoch: None };
    let hello = Hello { parked: Some(parked), again: true, ..hello(0, 1) };
    let _peer = Peer::connect(&socket, hello).await;
    node.ask("old", Purpose::Interruption, Some(120));
    node.until("old", |known| known.checkpoint.is_durable()).await;
    assert_eq!(node.newest().await, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_called_off_goes_on_and_can_be_saved_again() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    node.ask("old", Purpose::Interruption, Some(120));
    let at = peer.due().await;
    peer.begin(&at).await;
    node.until("old", |known| known.session != Session::Open).await;
    node.workloads.call_off(&uid("old"));
    peer.expect(|frame| matches!(frame, ToWorkload::CallOff(_)).then_some(())).await;
    let known = node.until("old", |known| known.asked == Asked::Nothing).await;
    assert_eq!((known.checkpoint, known.quiet), (Checkpoint::Idle, Quiet::Running));
    peer.step = 11;
    save(&node, "old", &mut peer).await;
    assert_eq!(node.newest().await.unwrap().step, 11);
}

#[tokio::test(start_paused = true)]
async fn who_says_hello_on_an_interrupted_node_is_parked_at_once() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let socket = node.publish("late");
    node.ask("late", Purpose::Interruption, Some(120));
    node.until("late", |known| known.asked != Asked::Nothing).await;
    let mut peer = Peer::connect(&socket, hello(0, 1)).await;
    let welcome = |frame| match frame {
        ToWorkload::Welcome(welcome) => Some(welcome),
        _ => None,
    };
    assert_eq!(peer.expect(welcome).await.park.unwrap().cause, Cause::Interruption);
    let known = node.until("late", |known| known.checkpoint.is_durable()).await;
    assert_eq!(known.quiet, Quiet::Parked);
    peer.say(FromWorkload::Terminating(Terminating { step: None })).await;
    peer.expect(|frame| matches!(frame, ToWorkload::Leave(_)).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_resumed_after_the_end() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    peer.say(FromWorkload::Finish(Finish { step: 10 })).await;
    let finished = |frame| match frame {
        ToWorkload::Finished(finished) => Some(finished),
        _ => None,
    };
    assert_eq!(peer.expect(finished).await.epoch, 2);
    let newest = node.newest().await.unwrap();
    assert_eq!((newest.kind, newest.step), (Kind::Finished, 10));

    let new = Node::new("gpu-2", &as_bucket(&bucket), &clock);
    let mut next = waiting(&new, "new").await;
    let nothing = next.expect(nothing_to_restore).await;
    assert_eq!((nothing.reason.as_str(), nothing.epoch), ("the work is finished", 3));
}

#[tokio::test(start_paused = true)]
async fn a_life_that_an_agents_restart_interrupts_is_saved_all_the_same() {
    let (bucket, clock) = world();
    let first = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let peer = trainer(&first, "old").await;
    drop((first, peer));
    let second = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let socket = second.publish("old");
    let mut peer = Peer::connect(&socket, again(0, 1, 11)).await;
    peer.register().await;
    save(&second, "old", &mut peer).await;
    let newest = second.newest().await.unwrap();
    assert_eq!((newest.epoch, newest.step, newest.kind), (2, 11, Kind::Save));

    // A third agent finds it parked where it is saved, and asks for nothing again.
    drop((second, peer));
    let third = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let socket = third.publish("old");
    let parked = Parked { step: 11, save: Some(1), taken: true, epoch: Some(2) };
    let mut peer = Peer::connect(&socket, Hello { parked: Some(parked), ..again(0, 1, 11) }).await;
    peer.register().await;
    third.ask("old", Purpose::Interruption, Some(60));
    third.until("old", |known| known.checkpoint.is_durable()).await;
    assert_eq!(third.newest().await.unwrap().epoch, 2);
}

#[tokio::test(start_paused = true)]
async fn a_silent_pod_is_remembered_by_the_bucket() {
    let (bucket, clock) = world();
    let first = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&first, "old").await;
    save(&first, "old", &mut peer).await;
    drop((first, peer));
    let second = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    second.publish("old");
    let known = second.until("old", |known| known.checkpoint.is_durable()).await;
    assert_eq!(known.session, Session::None);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_dies_between_any_two_writes_leaves_a_whole_checkpoint_or_none() {
    let whole = writes_of_a_save().await;
    assert_eq!(whole, 6);
    for survived in 0..=whole {
        let (bucket, clock) = world();
        let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
        let mut peer = trainer(&node, "old").await;
        bucket.stop_after(survived);
        node.ask("old", Purpose::Interruption, Some(120));
        let at = peer.due().await;
        peer.begin(&at).await;
        node.until("old", |known| known.session != Session::Open).await;
        node.workloads.save(&uid("old"));
        let filled = tokio::time::timeout(Duration::from_secs(2), peer.fill(&at)).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(filled.is_ok() || survived < whole);
        drop(node);
        bucket.stop_after(u64::MAX);

        let again_there = Node::new("gpu-1", &as_bucket(&bucket), &clock);
        let newest = again_there.newest().await.unwrap();
        let expected = if survived == whole { Kind::Save } else { Kind::Claim };
        assert_eq!(newest.kind, expected, "after {survived} writes");
        check_whole(&again_there).await;

        // The trainer is parked, comes back, and its state is taken again.
        let socket = again_there.publish("old");
        let parked = Parked { step: 10, save: Some(at.save), taken: false, epoch: None };
        let mut peer =
            Peer::connect(&socket, Hello { parked: Some(parked), ..again(0, 1, 10) }).await;
        peer.step = 10;
        peer.register().await;
        again_there.ask("old", Purpose::Interruption, Some(60));
        if expected == Kind::Claim {
            let at = peer.due().await;
            peer.begin(&at).await;
            again_there.until("old", |known| known.session != Session::Open).await;
            again_there.workloads.save(&uid("old"));
            peer.fill(&at).await;
            peer.durable().await;
        }
        again_there.until("old", |known| known.checkpoint.is_durable()).await;
        let newest = again_there.newest().await.unwrap();
        assert_eq!((newest.epoch, newest.step), (2, 10), "after {survived} writes");
        check_whole(&again_there).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lying_workload_is_an_error_for_itself_alone() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut honest = trainer(&node, "honest").await;
    let lies: [(&str, Lie); 4] = [
        ("slot", |save| FromWorkload::Filled(Filled { save, slot: 99, offset: 0, bytes: 4096 })),
        ("large", |save| {
            FromWorkload::Filled(Filled { save, slot: 0, offset: 0, bytes: u64::MAX })
        }),
        ("twice", |save| FromWorkload::Filled(Filled { save, slot: 0, offset: STATE, bytes: 1 })),
        ("short", |save| FromWorkload::SaveEnd(SaveEnd { save, bytes: 0 })),
    ];
    for (name, lie) in lies {
        let mut peer = begun(&node, name).await;
        node.workloads.save(&uid(name));
        peer.expect(|frame| matches!(frame, ToWorkload::Lend(_)).then_some(())).await;
        peer.say(lie(peer.save)).await;
        peer.expect(save_failed).await;
        node.until(name, |known| matches!(known.checkpoint, Checkpoint::Failed { .. })).await;
    }
    save(&node, "honest", &mut honest).await;
    check_whole(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_shorter_than_it_says_is_refused() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    node.ask("old", Purpose::Interruption, Some(120));
    let at = peer.due().await;
    peer.begin(&at).await;
    let file = rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, STATE - 1).unwrap();
    let pieces = vec![Piece { descriptor: 0, from: 0, offset: 0, bytes: STATE }];
    let given = FromWorkload::Given(Given { save: at.save, pieces });
    peer.line.say(&given, &[file.as_fd()]).await.unwrap();
    peer.say(FromWorkload::SaveEnd(SaveEnd { save: at.save, bytes: STATE })).await;
    node.until("old", |known| known.session != Session::Open).await;
    node.workloads.save(&uid("old"));
    assert_eq!(peer.expect(save_failed).await.why, Failure::HandOver);
}

/// A descriptor of a pod that has been handed over counts until it is closed. Beyond the bound the
/// line is not read, so that what is sent stays with its sender; and that not for ever.
#[tokio::test(start_paused = true)]
async fn no_pod_holds_more_descriptors_than_its_bound_and_others_are_saved() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut honest = trainer(&node, "honest").await;
    let mut greedy = begun(&node, "greedy").await;
    let file = rustix::fs::memfd_create("greedy", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 1).unwrap();
    let pieces = (0..16).map(|descriptor| Piece { descriptor, from: 0, offset: 0, bytes: 1 });
    let given = Given { save: greedy.save, pieces: pieces.collect() };
    let given = FromWorkload::Given(given);
    let second = Duration::from_secs(1);
    let mut sent = 0;
    while sent < 4096 {
        let files = [file.as_fd(); 16];
        match tokio::time::timeout(second, greedy.line.say(&given, &files)).await {
            Ok(said) => said.unwrap(),
            Err(_) => break,
        }
        sent += 16;
    }
    let held = held("memfd:greedy");
    assert!((1024..=1024 + 32).contains(&(held - 1)), "{held} are held of {sent} sent");
    save(&node, "honest", &mut honest).await;
    check_whole(&node).await;
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(self::held("memfd:greedy"), 1);
}

/// How many descriptors of this process lead there.
fn held(what: &str) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    let leads = |entry: std::io::Result<std::fs::DirEntry>| {
        let target = std::fs::read_link(entry.ok()?.path()).ok()?;
        target.to_str()?.contains(what).then_some(())
    };
    all.filter_map(leads).count()
}

#[tokio::test(start_paused = true)]
async fn what_is_zero_costs_no_request_and_what_was_never_written_no_page() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    node.ask("old", Purpose::Interruption, Some(120));
    let at = peer.due().await;
    let bytes = 64 * CHUNK;
    let begin = SaveBegin { save: at.save, step: peer.step, layout: layout(bytes) };
    peer.say(FromWorkload::SaveBegin(begin)).await;
    let file = rustix::fs::memfd_create("sparse", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, bytes).unwrap();
    let zeros = vec![0; range(0, CHUNK).len()];
    rustix::io::pwrite(&file, &zeros, 3 * CHUNK).unwrap();
    rustix::io::pwrite(&file, b"here", 10 * CHUNK + 5).unwrap();
    let blocks = rustix::fs::fstat(&file).unwrap().st_blocks;
    let before = bucket.writes();
    let pieces = vec![Piece { descriptor: 0, from: 0, offset: 0, bytes }];
    let given = FromWorkload::Given(Given { save: at.save, pieces });
    peer.line.say(&given, &[file.as_fd()]).await.unwrap();
    peer.say(FromWorkload::SaveEnd(SaveEnd { save: at.save, bytes })).await;
    node.until("old", |known| known.session != Session::Open).await;
    node.workloads.save(&uid("old"));
    assert_eq!(peer.durable().await.bytes, bytes);
    // One chunk, the manifest of the rank and that of the epoch.
    assert_eq!(bucket.writes() - before, 3);
    assert_eq!(rustix::fs::fstat(&file).unwrap().st_blocks, blocks);
    check_whole(&node).await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_nonsense_is_cut_off() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let socket = node.publish("odd");
    let mut mute = Line::connect(&socket).await.unwrap();
    assert!(mute.hear().await.is_err());
    let mut rude = Line::connect(&socket).await.unwrap();
    rude.say(&FromWorkload::Restore(Restore { newer_than: None }), &[]).await.unwrap();
    assert!(rude.hear().await.is_err());
    let mut odd = Line::connect(&socket).await.unwrap();
    odd.say(&FromWorkload::Hello(hello(7, 4)), &[]).await.unwrap();
    assert!(matches!(odd.hear().await.unwrap().0, ToWorkload::Refused(_)));
}

/// Three that begin and hand over nothing have the whole ring budget between them: whoever comes
/// after gets its ring when they are given up.
#[tokio::test(start_paused = true)]
async fn who_holds_a_ring_and_hands_over_nothing_does_not_stall_others() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut honest = trainer(&node, "honest").await;
    let mut idle = Vec::new();
    for name in ["idle-0", "idle-1", "idle-2"] {
        let mut peer = begun(&node, name).await;
        node.workloads.save(&uid(name));
        peer.ring = None;
        idle.push(peer);
    }
    let began = tokio::time::Instant::now();
    save(&node, "honest", &mut honest).await;
    assert!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    for peer in &mut idle {
        peer.expect(save_failed).await;
    }
    check_whole(&node).await;
}

/// One slot, filled and filled again without a pause, as no SDK does it: more than may wait is
/// more than it was lent.
#[tokio::test(start_paused = true)]
async fn who_hands_over_more_than_it_was_lent_is_given_up_and_others_are_saved() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut honest = trainer(&node, "honest").await;
    let mut flood = begun(&node, "flood").await;
    let save_of = flood.save;
    for offset in 0..5_000 {
        let frame = FromWorkload::Filled(Filled { save: save_of, slot: 0, offset, bytes: 1 });
        if flood.line.say(&frame, &[]).await.is_err() {
            break;
        }
    }
    node.workloads.save(&uid("flood"));
    // What it handed over is forgotten, and it is asked anew.
    node.until("flood", |known| known.session == Session::Open).await;
    save(&node, "honest", &mut honest).await;
    check_whole(&node).await;
}

/// The key is what kubelet and the API server say of the pod. What a workload says of itself
/// names a run in a manifest, and no place.
#[tokio::test(start_paused = true)]
async fn no_workload_names_the_key_of_another() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let socket = node.publish_with("evil", &[("lifeboat.dev/job-key", "evil")]);
    let run_id = "../../job/epochs/0000000001/MANIFEST.json\0".repeat(100);
    let mut evil = Peer::connect(&socket, Hello { run_id, ..hello(0, 1) }).await;
    evil.register().await;
    evil.say(FromWorkload::Restore(Restore { newer_than: None })).await;
    evil.expect(nothing_to_restore).await;
    evil.step = 3;
    save(&node, "evil", &mut evil).await;
    let by = Deadline::after(clock.now(), Duration::from_mins(1));
    let all = node.store.names(&object_store::path::Path::from("ckpt"), by).await.unwrap();
    assert!(all.len() > 3, "{all:?}");
    for name in all {
        assert!(name.as_ref().starts_with("ckpt/blue/ml/evil/"), "{name}");
    }
    assert_eq!(node.newest().await, None);
}

/// A workload of its own job key that was asked for its state and has begun to hand it over.
async fn begun(node: &Node, name: &str) -> Peer {
    let socket = node.publish_with(name, &[("lifeboat.dev/job-key", name)]);
    let mut peer = Peer::connect(&socket, hello(0, 1)).await;
    peer.register().await;
    peer.say(FromWorkload::Restore(Restore { newer_than: None })).await;
    peer.expect(nothing_to_restore).await;
    node.ask(name, Purpose::Interruption, Some(120));
    let at = peer.due().await;
    peer.begin(&at).await;
    node.until(name, |known| known.session != Session::Open).await;
    peer
}

/// What a workload says of a save that is not so.
type Lie = fn(u64) -> FromWorkload;

/// Waits in its restore.
async fn waiting(node: &Node, pod: &str) -> Peer {
    let socket = node.publish(pod);
    let mut peer = Peer::connect(&socket, hello(0, 1)).await;
    peer.register().await;
    peer.say(FromWorkload::Restore(Restore { newer_than: None })).await;
    node.until(pod, |known| known.session == Session::Open).await;
    peer
}

/// Saves a workload where it stands.
async fn save(node: &Node, pod: &str, peer: &mut Peer) {
    node.ask(pod, Purpose::Interruption, Some(120));
    let at = peer.due().await;
    peer.begin(&at).await;
    node.until(pod, |known| known.session != Session::Open).await;
    node.workloads.save(&uid(pod));
    peer.fill(&at).await;
    peer.durable().await;
    node.until(pod, |known| known.checkpoint.is_durable()).await;
}

async fn writes_of_a_save() -> u64 {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &as_bucket(&bucket), &clock);
    let mut peer = trainer(&node, "old").await;
    let before = bucket.writes();
    save(&node, "old", &mut peer).await;
    bucket.writes() - before
}

/// Every chunk that the newest state names can be read, and is what it is named.
async fn check_whole(node: &Node) {
    let history = node.history();
    let by = Deadline::after(node.clock.now(), Duration::from_mins(1));
    let newest = node.newest().await.unwrap();
    let Some(epoch) = newest.restores_from() else { return };
    let manifest = history.read(epoch, by).await.unwrap().unwrap();
    for rank in 0..manifest.world {
        let stored = history.read_rank(&manifest, rank, by).await.unwrap();
        for chunk in stored.chunks {
            let Some(address) = chunk.address() else { continue };
            let path = object_store::path::Path::from(history.keys().chunk(&address));
            history.store().read_chunk(&path, chunk, by).await.unwrap();
        }
    }
}

fn nothing_to_restore(frame: ToWorkload) -> Option<NothingToRestore> {
    match frame {
        ToWorkload::NothingToRestore(nothing) => Some(nothing),
        ToWorkload::RestoreFailed(failed) => panic!("{failed:?}"),
        _ => None,
    }
}

fn save_failed(frame: ToWorkload) -> Option<SaveFailed> {
    match frame {
        ToWorkload::SaveFailed(failed) => Some(failed),
        _ => None,
    }
}

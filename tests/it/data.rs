//! The path from a workload's memory to the bucket and back, against a bucket in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
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
use lifeboat::offload::Offload;
use lifeboat_chaos::world::workloads::line::Line;
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
        let store = Store::new(Arc::clone(bucket), clock.clone(), Offload::Inline);
        let limits = Limits { in_flight: 1 << 20, connections: 8, ring_budget: 1 << 20 };
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
            scheduler: Scheduler::new(limits, Offload::Inline),
            clock: clock.clone(),
            offload: Offload::Inline,
            place,
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

    /// Does what the node's plan does: asks, and lets store whoever has handed over.
    async fn interrupt(&self, pod: &str) {
        self.ask(pod, Purpose::Interruption, Some(120));
        self.until(pod, |known| matches!(known.session, Session::HandedOver { .. })).await;
        self.workloads.save(&uid(pod));
    }

    fn history(&self) -> History {
        let owner = Owner { cluster: "blue".into(), namespace: "ml".into(), job_key: "job".into() };
        History::new(self.store.clone(), "ckpt", owner).unwrap()
    }

    async fn newest(&self) -> Option<Manifest> {
        let by = Deadline::after(self.clock.now(), Duration::from_secs(60));
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
}

impl Peer {
    async fn connect(socket: &PathBuf, hello: Hello) -> Self {
        let line = Line::connect(socket).await.unwrap();
        let (rank, step) = (hello.rank, hello.step.unwrap_or(0));
        let mut peer = Self { line, rank, ring: None, state: Vec::new(), step };
        peer.say(FromWorkload::Hello(hello)).await;
        peer
    }

    /// Connects, is welcome, and begins with nothing.
    async fn fresh(node: &Node, socket: &PathBuf) -> Self {
        let mut peer = Self::connect(socket, hello(0, 1)).await;
        peer.register().await;
        peer.say(FromWorkload::Restore(Restore { newer_than: None })).await;
        let nothing = peer
            .expect(|frame| match frame {
                ToWorkload::NothingToRestore(nothing) => Some(nothing),
                _ => None,
            })
            .await;
        assert!(nothing.epoch > 0);
        let _ = node;
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
            let frame = tokio::time::timeout(Duration::from_secs(300), self.hear()).await.unwrap();
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

    /// Hands the state of its step over by the ring, and waits until it is taken.
    async fn hand_over(&mut self, at: &SaveAt) {
        self.begin(at).await;
        self.expect(|frame| matches!(frame, ToWorkload::Lend(_)).then_some(())).await;
        let regions = layout(STATE).regions;
        let slots = self.ring.as_ref().unwrap().0.slots();
        let mut free: Vec<u32> = (0..slots).rev().collect();
        for cut in cuts(&regions, at.chunk_bytes) {
            while free.is_empty() {
                let slot = self
                    .expect(|frame| match frame {
                        ToWorkload::Freed(freed) => Some(freed.slot),
                        _ => None,
                    })
                    .await;
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
    let mut peer = Peer::fresh(node, &socket).await;
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
    let mut again = Peer { line: peer.line, ..peer };
    old.workloads.save(&uid("old"));
    again.expect(|frame| matches!(frame, ToWorkload::Lend(_)).then_some(())).await;
    drop_and_fill(&mut again, &at).await;
    again.taken().await;
    let durable = again.durable().await;
    assert_eq!((durable.epoch, durable.step, durable.bytes), (2, 10, STATE));
    let known = old.until("old", |known| known.checkpoint.is_durable()).await;
    assert_eq!(known.quiet, Quiet::Parked);

    // It has the state, and waits for the proof.
    tokio::time::sleep(Duration::from_secs(5)).await;
    new.workloads.allow_restore(&uid("new"), Proof::Released);
    let (step, proof) = successor.restored().await;
    assert_eq!((step, proof.as_str()), (10, "Released"));
    let claim = new.newest().await.unwrap();
    assert_eq!((claim.epoch, claim.kind, claim.parent), (3, Kind::Claim, Some(2)));
    assert_eq!(claim.holder.pod, "new");
}

/// Fills what `hand_over` fills, after the beginning was said.
async fn drop_and_fill(peer: &mut Peer, at: &SaveAt) {
    let regions = layout(STATE).regions;
    let slots = peer.ring.as_ref().unwrap().0.slots();
    let mut free: Vec<u32> = (0..slots).rev().collect();
    for cut in cuts(&regions, at.chunk_bytes) {
        while free.is_empty() {
            let freed = peer
                .expect(|frame| match frame {
                    ToWorkload::Freed(freed) => Some(freed.slot),
                    _ => None,
                })
                .await;
            free.push(freed);
        }
        let slot = free.pop().unwrap();
        let bytes = contents(peer.rank, peer.step, cut.offset..cut.offset + cut.bytes);
        let (shape, ring) = peer.ring.as_ref().unwrap();
        rustix::io::pwrite(ring, &bytes, shape.offset(slot).unwrap()).unwrap();
        let (offset, bytes) = (cut.offset, cut.bytes);
        peer.say(FromWorkload::Filled(Filled { save: at.save, slot, offset, bytes })).await;
    }
    peer.say(FromWorkload::SaveEnd(SaveEnd { save: at.save, bytes: STATE })).await;
}

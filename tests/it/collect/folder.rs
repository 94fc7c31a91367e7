//! The folder of one job key in the simulated bucket, and what the programs do with it.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use jiff::Timestamp;
use lifeboat::adapters::store::Store;
use lifeboat::clock::Clock;
use lifeboat::commands::CommandError;
use lifeboat::commands::checkpoints::Bucket;
use lifeboat::commands::checkpoints::Key;
use lifeboat::commands::checkpoints::pin;
use lifeboat::commands::checkpoints::remove;
use lifeboat::commands::checkpoints::remove::IfHeld;
use lifeboat::config::Config;
use lifeboat::config::Program;
use lifeboat::data::buffers::Buffers;
use lifeboat::data::collect;
use lifeboat::data::collect::CollectError;
use lifeboat::data::collect::Leave;
use lifeboat::data::collect::Survey;
use lifeboat::data::collect::Tally;
use lifeboat::data::handed::Allowance;
use lifeboat::data::history::History;
use lifeboat::data::history::Owner;
use lifeboat::data::history::Written;
use lifeboat::data::restore;
use lifeboat::data::restore::Origin;
use lifeboat::data::restore::RestoreError;
use lifeboat::data::restore::Wish;
use lifeboat::data::save;
use lifeboat::data::save::Announced;
use lifeboat::data::save::Committed;
use lifeboat::data::save::Intake;
use lifeboat::data::save::Life;
use lifeboat::data::save::Means;
use lifeboat::data::save::OwnAttempt;
use lifeboat::data::save::Part;
use lifeboat::data::save::SaveError;
use lifeboat::data::save::Source;
use lifeboat::data::save::Stock;
use lifeboat::data::save::Stored;
use lifeboat::data::scheduler::Demand;
use lifeboat::data::scheduler::Direction;
use lifeboat::data::scheduler::Limits;
use lifeboat::data::scheduler::Scheduler;
use lifeboat::offload::Offload;
use lifeboat_chaos::checkers;
use lifeboat_chaos::serve::s3_store;
use lifeboat_chaos::wire::Wire;
use lifeboat_chaos::wire::s3::s3;
use lifeboat_chaos::world::World;
use lifeboat_checkpoint::key::Object;
use lifeboat_checkpoint::manifest::Holder;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_checkpoint::region::Dtype;
use lifeboat_checkpoint::region::Layout;
use lifeboat_checkpoint::region::Region;
use lifeboat_checkpoint::tree::Tree;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::workload::Restore;
use object_store::path::Path;
use tokio::sync::mpsc;

use super::turns::Gate;

/// Bytes of a chunk: one for each letter of a state.
const CHUNK: usize = 1000;
const BUCKET: &str = "checkpoints";
const NAMESPACE: &str = "ml";
const JOB_KEY: &str = "job";

/// The folder, as one client of the bucket reaches it.
pub(crate) struct Folder {
    pub(crate) world: World,
    pub(crate) history: History,
    wire: Wire,
    clock: Clock,
    scheduler: Scheduler,
    pod: String,
}

/// What a process does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deed<'a> {
    /// It saves, and knows what the newest state names.
    Save(&'a [u8]),
    /// It saves, and knows of nothing that is stored.
    SaveAll(&'a [u8]),
    /// It restores, and saves after that if there is something to save.
    Resume(Restore, Option<&'a [u8]>),
    /// It pins an epoch.
    Pin(u64),
    /// It removes an epoch, even if it is held.
    Remove(u64),
    /// It collects all but the newest state.
    Collect,
}

/// What a process came to.
#[derive(Debug)]
pub(crate) enum Came {
    Saved(Result<Committed, SaveError>),
    Restored(Result<Vec<u8>, RestoreError>),
    Said(Result<String, CommandError>),
    Collected,
}

impl Deed<'_> {
    /// Does it, in a folder whose last number is this.
    pub(crate) async fn run(&self, folder: &Folder, last: u64) -> Came {
        match *self {
            Self::Save(state) => {
                let known = folder.known(last).await;
                Came::Saved(folder.save(last, &known, state).await)
            }
            Self::SaveAll(state) => Came::Saved(folder.save(last, &Stock::new(), state).await),
            Self::Resume(wish, again) => Came::Restored(folder.resume(wish, again).await),
            Self::Pin(epoch) => Came::Said(folder.pin(epoch).await),
            Self::Remove(epoch) => {
                let removed = folder.remove(epoch, IfHeld::Supersede, remove::Wish::Remove);
                Came::Said(removed.await)
            }
            Self::Collect => {
                folder.collect(1).await.unwrap();
                Came::Collected
            }
        }
    }
}

/// A save that has stored its chunks and named nothing yet.
pub(crate) struct Saving {
    means: Means,
    stored: Stored,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap(), 1);
        let world = World::new(clock.clone(), 1);
        let wire = s3(world.clone());
        Self::over(world, wire, clock)
    }

    fn over(world: World, wire: Wire, clock: Clock) -> Self {
        let bucket = Arc::new(s3_store(&wire, BUCKET).unwrap());
        let store = Store::new(bucket, clock.clone(), Offload::Inline);
        let owner =
            Owner { cluster: "blue".into(), namespace: NAMESPACE.into(), job_key: JOB_KEY.into() };
        let history = History::new(store, "", owner).unwrap();
        let limits = Limits {
            in_flight: 1 << 20,
            connections: Some(1),
            bandwidth: None,
            ring_budget: 1 << 20,
        };
        let scheduler = Scheduler::new(limits, history.store().slow_downs(), Offload::Inline);
        Self { world, history, wire, clock, scheduler, pod: "train".to_owned() }
    }

    /// The same folder by another client, whose requests wait for their turn.
    pub(crate) fn behind(&self, gate: &Gate) -> Self {
        Self::over(self.world.clone(), gate.before(self.wire.clone()), self.clock.clone())
    }

    /// The same folder, as the agent of another pod reaches it.
    pub(crate) fn of_pod(&self, pod: &str) -> Self {
        let same = Self::over(self.world.clone(), self.wire.clone(), self.clock.clone());
        Self { pod: pod.to_owned(), ..same }
    }

    pub(crate) fn by(&self) -> Deadline {
        Deadline::after(self.clock.now(), Duration::from_hours(9))
    }

    pub(crate) async fn pass_time(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn life(&self, last: u64) -> Life {
        let pod = format!("{}-{last}", self.pod);
        let (pod_uid, node) = (format!("uid-{pod}"), "gpu-1".to_owned());
        let holder = Holder { pod, pod_uid, node, instance: None };
        let parent = (last > 0).then_some(last);
        Life { run: "r".into(), world: 1, holder, last, parent, deadline: None }
    }

    fn means(&self, known: Stock) -> Means {
        Means {
            history: self.history.clone(),
            buffers: Buffers::new(CHUNK * 4),
            offload: Offload::Inline,
            clock: self.clock.clone(),
            known: Arc::new(known),
            attempt: OwnAttempt::new(&self.clock, "gpu-1", "uid", "r"),
            by: self.by(),
        }
    }

    /// Takes the next number after `last`, from a state or from none.
    pub(crate) async fn claim(&self, last: u64, state: Option<&Manifest>) -> u64 {
        let written = save::claim(&self.means(Stock::new()), &self.life(last), state).await;
        assert_eq!(written.unwrap(), Written::Ours);
        last + 1
    }

    /// Saves a state, one chunk for each letter, after the epoch `last`.
    pub(crate) async fn save(
        &self,
        last: u64,
        known: &Stock,
        state: &[u8],
    ) -> Result<Committed, SaveError> {
        let saving = self.begin(known.clone(), state).await;
        self.commit(last, saving).await
    }

    /// Stores the chunks of a state.
    pub(crate) async fn begin(&self, known: Stock, state: &[u8]) -> Saving {
        let means = self.means(known);
        let stored = self.store(&means, state).await;
        Saving { means, stored }
    }

    /// Stores one chunk more, of the same attempt.
    pub(crate) async fn add(&self, saving: &mut Saving, letter: u8) {
        let more = self.store(&saving.means, &[letter]).await;
        saving.stored.chunks.extend(more.chunks);
        let letters = saving.stored.chunks.len();
        saving.stored.announced.layout = layout(letters);
    }

    pub(crate) async fn commit(&self, last: u64, saving: Saving) -> Result<Committed, SaveError> {
        save::commit(&saving.means, &self.life(last), &[saving.stored]).await
    }

    async fn store(&self, means: &Means, state: &[u8]) -> Stored {
        let (hand_over, parts) = mpsc::channel(state.len().max(1));
        for (number, letter) in state.iter().enumerate() {
            let mut handed = Allowance::new(1).count(vec![file_of(*letter)]).await;
            let file = Arc::new(handed.pop().unwrap());
            let (offset, bytes) = ((number * CHUNK) as u64, CHUNK as u64);
            let source = Source::File { file, from: 0 };
            hand_over.send(Part { offset, bytes, source }).await.unwrap();
        }
        drop(hand_over);
        let layout = layout(state.len());
        let announced = Announced { rank: 0, step: u64::from(state[0]), layout };
        let lane = self.scheduler.open(demand());
        let intake = Intake { parts, taken: |_: &Part| () };
        save::store_rank(means, &lane, announced, intake).await.unwrap()
    }

    /// What an attempt left that never committed.
    pub(crate) async fn chunk_of_an_attempt_that_failed(&self, letter: u8) {
        self.begin(Stock::new(), &[letter]).await;
    }

    /// The chunks that an epoch names.
    pub(crate) async fn known(&self, epoch: u64) -> Stock {
        let manifest = self.history.read(epoch, self.by()).await.unwrap().unwrap();
        let rank = self.history.read_rank(&manifest, 0, self.by()).await.unwrap();
        save::stock(&rank.chunks)
    }

    fn restoring(&self) -> restore::Means {
        let (history, clock) = (self.history.clone(), self.clock.clone());
        restore::Means { history, clock, offload: Offload::Inline }
    }

    /// The letters of a state, read as a restore reads it.
    pub(crate) async fn restore(&self, wish: Restore) -> Result<Vec<u8>, RestoreError> {
        let means = self.restoring();
        let wish = Wish { restore: wish, newer_than: None };
        let beginning = restore::beginning(&means, wish).await?;
        let Origin::State(state) = &beginning.origin else { return Ok(Vec::new()) };
        Ok(self.read(state).await?.0)
    }

    /// A new life: reads a state, claims the next number, and saves after that if it has a state to
    /// save. As `agent::workloads::restoring` does it, without the workload.
    pub(crate) async fn resume(
        &self,
        wish: Restore,
        again: Option<&[u8]>,
    ) -> Result<Vec<u8>, RestoreError> {
        let means = self.restoring();
        let wish = Wish { restore: wish, newer_than: None };
        let beginning = restore::beginning(&means, wish).await?;
        let Origin::State(state) = &beginning.origin else { return Ok(Vec::new()) };
        let (letters, stock) = self.read(state).await?;
        restore::check_kept(&means, &beginning).await?;
        let last = beginning.number() - 1;
        let own = self.means(Stock::new());
        let written = save::claim(&own, &self.life(last), Some(state)).await?;
        if let Written::Theirs(theirs) = written {
            let (epoch, holder) = (theirs.epoch, theirs.holder.pod);
            return Err(RestoreError::Superseded { epoch, holder });
        }
        restore::keep(&means, &beginning).await;
        let known = if beginning.is_aside() { Stock::new() } else { stock };
        if let Some(again) = again {
            // Superseded by a removal, it is not saved any more.
            self.save(last + 1, &known, again).await.ok();
        }
        Ok(letters)
    }

    async fn read(&self, state: &Manifest) -> Result<(Vec<u8>, Stock), RestoreError> {
        let rank = self.history.read_rank(state, 0, self.by()).await?;
        let mut letters = Vec::new();
        for chunk in &rank.chunks {
            let address = chunk.address().unwrap();
            let path = Path::from(self.history.keys().chunk(&address));
            let read = self.history.store().read_chunk(&path, *chunk, self.by()).await;
            let bytes = read.map_err(|source| RestoreError::Chunk { offset: 0, source })?;
            letters.push(bytes[0]);
        }
        Ok((letters, save::stock(&rank.chunks)))
    }

    pub(crate) async fn survey(&self) -> Survey {
        collect::survey(&self.history, &self.clock).await.unwrap()
    }

    /// One pass of the collection.
    pub(crate) async fn collect(&self, keep: usize) -> Result<Tally, CollectError> {
        let survey = collect::survey(&self.history, &self.clock).await?;
        let plan = survey.plan(keep);
        let leave = || std::future::ready(Leave::Granted).boxed();
        collect::act(&self.history, &self.clock, (&survey, &plan), leave).await
    }

    fn bucket(&self) -> Bucket {
        let text =
            "cluster = \"blue\"\nregion = \"eu-west-1\"\n[store]\nbucket = \"checkpoints\"\n";
        let config = Config::parse(Program::Bucket, text).unwrap();
        Bucket::new(&config, Arc::new(s3_store(&self.wire, BUCKET).unwrap()), &self.clock)
    }

    pub(crate) async fn pin(&self, epoch: u64) -> Result<String, CommandError> {
        let key = Key { namespace: NAMESPACE.into(), job_key: JOB_KEY.into() };
        pin::set(&self.bucket(), &key, epoch, pin::Wish::Pin).await
    }

    pub(crate) async fn remove(
        &self,
        epoch: u64,
        if_held: IfHeld,
        wish: remove::Wish,
    ) -> Result<String, CommandError> {
        let key = Key { namespace: NAMESPACE.into(), job_key: JOB_KEY.into() };
        let which = remove::Which::Epochs([epoch].into());
        let removal = remove::Removal { key, which, if_held, wish };
        remove::run(&self.bucket(), None, &removal).await
    }

    /// What the bucket's rules say of what lies there.
    #[track_caller]
    pub(crate) fn check(&self, why: &str) {
        let broken = self.world.read(checkers::bucket);
        assert!(broken.is_empty(), "{why}: {broken:?}");
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.world.read(|state| state.bucket.keys(""))
    }

    pub(crate) fn objects(&self) -> Vec<Object> {
        let keys = self.keys();
        keys.iter().filter_map(|key| self.history.keys().object(key)).collect()
    }

    pub(crate) fn chunks(&self) -> usize {
        self.objects().iter().filter(|object| matches!(object, Object::Chunk(_))).count()
    }

    pub(crate) fn kind(&self, epoch: u64) -> Kind {
        let key = self.history.keys().manifest(epoch);
        let bytes = self.world.read(|state| state.bucket.read(&key)).unwrap();
        Manifest::parse(&bytes).unwrap().kind
    }

    pub(crate) fn is_pinned(&self, epoch: u64) -> bool {
        self.keys().contains(&self.history.keys().pin(epoch))
    }

    /// Puts something below the folder; `newer kind` is a manifest that a later version writes.
    pub(crate) async fn put(&self, below: &str, text: &str) {
        let text = if text == "newer kind" {
            concat!(
                r#"{"format":1,"kind":"merge","cluster":"blue","namespace":"ml","#,
                r#""job_key":"job","epoch":5}"#
            )
        } else {
            text
        };
        let path = Path::from(format!("{}{below}", self.history.keys().root()));
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        self.history.store().put(&path, &bytes, self.by()).await.unwrap();
    }

    /// Turns a bit of the first object below a folder.
    pub(crate) fn damage(&self, below: &str) {
        let folder = format!("{}{below}", self.history.keys().root());
        self.world.update(|state| {
            let key = state.bucket.keys(&folder).remove(0);
            state.bucket.damage(&key);
        });
    }
}

fn layout(letters: usize) -> Layout {
    let bytes = (letters * CHUNK) as u64;
    Layout { regions: vec![Region::new("state", Dtype::U8, &[bytes])], tree: Tree::Null }
}

fn file_of(letter: u8) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[letter; CHUNK]).unwrap();
    file.into()
}

fn demand() -> Demand {
    Demand {
        pod: "uid".parse().unwrap(),
        namespace: NAMESPACE.parse().unwrap(),
        direction: Direction::Save,
        pod_priority: 0,
        priority: 0,
        bytes: 0,
        deadline: None,
    }
}

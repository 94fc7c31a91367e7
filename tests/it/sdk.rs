//! The SDK and the agent's registry of workloads, over a real socket: neither end is played.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use lifeboat::adapters::store::Store;
use lifeboat::agent::workloads;
use lifeboat::agent::workloads::Known;
use lifeboat::agent::workloads::Means;
use lifeboat::agent::workloads::Place;
use lifeboat::agent::workloads::PodEntry;
use lifeboat::agent::workloads::Workloads;
use lifeboat::clock::Clock;
use lifeboat::data::scheduler::Limits;
use lifeboat::data::scheduler::Scheduler;
use lifeboat::offload::Offload;
use lifeboat_chaos::bench::step;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::facts::Session;
use lifeboat_domain::node::plan::Notice;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::Proof;
use lifeboat_domain::workload::Purpose;
use lifeboat_domain::workload::Wishes;
use lifeboat_sdk::Boat;
use lifeboat_sdk::Error;
use lifeboat_sdk::Part;
use lifeboat_sdk::Rank;
use lifeboat_sdk::Settings;
use lifeboat_sdk::Signals;
use lifeboat_sdk::Tensor;
use lifeboat_sdk::Tree;
use lifeboat_sdk::Value;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

const CHUNK: u64 = 64 << 10;
const NUMBERS: usize = 200_000;
const PATIENCE: Duration = Duration::from_mins(1);

/// An agent, as far as workloads meet it. Dropped, it is as if it had been killed.
struct Agent {
    workloads: Workloads,
    driver: JoinHandle<()>,
    clock: Clock,
}

impl Agent {
    fn start(bucket: &Arc<dyn ObjectStore>) -> Self {
        let clock = Clock::system();
        let store = Store::new(Arc::clone(bucket), clock.clone(), Offload::Threads);
        let limits = Limits {
            in_flight: 1 << 20,
            connections: Some(8),
            bandwidth: None,
            ring_budget: 1 << 20,
        };
        let place = Place {
            cluster: "blue".into(),
            node: "gpu-1".into(),
            instance: None,
            prefix: "ckpt".into(),
            chunk: CHUNK,
            in_flight: 1 << 20,
        };
        let scheduler = Scheduler::new(limits, store.slow_downs(), Offload::Threads);
        let offload = Offload::Threads;
        let (workloads, driver) = workloads::registry(Means {
            store,
            scheduler,
            clock: clock.clone(),
            offload,
            place,
            spool: None,
        });
        Self { workloads, driver: tokio::spawn(driver.run()), clock }
    }

    /// Serves a pod under a socket of its name.
    fn serve(&self, folder: &Path, pod: &str) -> PathBuf {
        let socket = folder.join(format!("{pod}.sock"));
        std::fs::remove_file(&socket).ok();
        let listener = UnixListener::bind(&socket).unwrap();
        let annotations = BTreeMap::from([
            ("lifeboat.dev/checkpoint".to_owned(), "sdk".to_owned()),
            ("lifeboat.dev/job-key".to_owned(), "job".to_owned()),
        ]);
        let namespace = "ml".parse().unwrap();
        let pod = PodRef { namespace, name: pod.parse().unwrap(), uid: uid(pod) };
        let wishes = Wishes::read(&annotations).0;
        let grace = Duration::from_secs(30);
        self.workloads.publish(PodEntry { pod, wishes, grace, pod_priority: 0 }, listener);
        socket
    }

    async fn until(&self, pod: &str, wanted: impl Fn(&Known) -> bool) {
        let look = async {
            while !self
                .workloads
                .workloads()
                .iter()
                .any(|one| one.pod.uid == uid(pod) && wanted(one))
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, look).await;
        assert!(found.is_ok(), "pod {pod}: {:#?}", self.workloads.workloads());
    }

    /// Does what the node's plan does at a notice.
    async fn interrupt(&self, pod: &str) {
        let deadline = Some(Deadline::after(self.clock.now(), Duration::from_mins(2)));
        let purpose = Purpose::Interruption;
        self.workloads.ask(&uid(pod), Notice { purpose, deadline });
        self.until(pod, |known| matches!(known.session, Session::HandedOver { .. })).await;
        self.workloads.save(&uid(pod));
    }

    async fn durable(&self, pod: &str) {
        self.until(pod, |known| matches!(known.checkpoint, Checkpoint::Durable(_))).await;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn uid(pod: &str) -> PodUid {
    format!("uid-{pod}").parse().unwrap()
}

fn bucket() -> Arc<dyn ObjectStore> {
    Arc::new(InMemory::new())
}

/// A training program on a thread of its own: after step n every number is n.
struct Program {
    told: Arc<Told>,
    thread: Option<thread::JoinHandle<Result<(), Error>>>,
}

/// What is seen of a program from outside.
#[derive(Default)]
struct Told {
    lines: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Program {
    fn start(socket: PathBuf, (rank, world): (u32, u32)) -> Self {
        let told = Arc::new(Told::default());
        let tells = Arc::clone(&told);
        let train = move || train(&socket, (rank, world), &tells);
        let thread = thread::Builder::new().spawn(train).unwrap();
        Self { told, thread: Some(thread) }
    }

    fn said(&self, text: &str) -> bool {
        self.told.lines.lock().unwrap().iter().any(|line| line.contains(text))
    }

    async fn until(&self, text: &str) {
        let look = async {
            while !self.said(text) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, look).await;
        assert!(found.is_ok(), "no `{text}` in {:#?}", self.told.lines.lock().unwrap());
    }

    /// The step at which it was parked.
    fn parked_at(&self) -> u64 {
        let lines = self.told.lines.lock().unwrap();
        let line = lines.iter().find(|line| line.starts_with("parked at step")).unwrap();
        line.split([' ', ':']).nth(3).unwrap().parse().unwrap()
    }

    /// Lets it end its work.
    async fn finish(mut self) {
        self.told.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().unwrap();
        while !thread.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        thread.join().unwrap().unwrap();
    }
}

fn train(socket: &Path, (rank, world): (u32, u32), told: &Arc<Told>) -> Result<(), Error> {
    let tells = Arc::clone(told);
    let boat = Boat::with(Settings {
        socket: Some(socket.to_owned()),
        rank: Rank { rank, local_rank: rank, world, local_world: world },
        signals: Signals::Left,
        observer: Arc::new(move |event| tells.lines.lock().unwrap().push(event.to_string())),
        ..Settings::alone()
    })?;
    let weights = Tensor::new(vec![0_u32; NUMBERS]);
    let own = Tensor::new(vec![u64::from(rank); 1000]);
    let seen = Value::new(Tree::Int(0));
    boat.register("own", &own)?;
    boat.register("weights", Part::from(&weights).replicated())?;
    boat.register("seen", &seen)?;
    let start = boat.restore()?.unwrap_or(0);
    let expected = u32::try_from(start).unwrap();
    assert!(weights.lock().iter().all(|number| *number == expected), "state of step {start}");
    assert!(own.lock().iter().all(|number| *number == u64::from(rank) + start));
    assert_eq!(seen.get(), Tree::Int(i64::from(expected)));
    for step in start + 1.. {
        weights.lock().fill(u32::try_from(step).unwrap());
        own.lock().fill(u64::from(rank) + step);
        seen.set(Tree::Int(i64::try_from(step).unwrap()));
        thread::sleep(Duration::from_millis(5));
        boat.step(step)?;
        if step == start + 3 {
            told.lines.lock().unwrap().push("stepping".to_owned());
        }
        if told.stop.load(Ordering::SeqCst) {
            break;
        }
    }
    boat.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trainer_goes_on_elsewhere_from_where_it_was_parked() {
    let (bucket, folder) = (bucket(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&bucket);
    let old = Program::start(agent.serve(folder.path(), "train-0"), (0, 1));
    old.until("stepping").await;
    agent.interrupt("train-0").await;
    agent.durable("train-0").await;
    old.until("to spare").await;
    let step = old.parked_at();

    let other = Agent::start(&bucket);
    let new = Program::start(other.serve(folder.path(), "train-1"), (0, 1));
    new.until("restore waits: for the end of pod `train-0`").await;
    assert!(!new.said("stepping"));
    other.workloads.allow_restore(&uid("train-1"), Proof::Released);
    new.until(&format!("goes on at step {step}")).await;
    new.until("stepping").await;
    new.finish().await;

    let third = Program::start(other.serve(folder.path(), "train-2"), (0, 1));
    third.until("nothing to restore: the work is finished").await;
    third.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_trainer_is_saved_by_the_agent_that_comes_after() {
    let (bucket, folder) = (bucket(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&bucket);
    let program = Program::start(agent.serve(folder.path(), "train-0"), (0, 1));
    program.until("stepping").await;
    let purpose = Purpose::Interruption;
    agent.workloads.ask(&uid("train-0"), Notice { purpose, deadline: None });
    program.until("parked at step").await;
    drop(agent);

    let agent = Agent::start(&bucket);
    agent.serve(folder.path(), "train-0");
    agent.until("train-0", |known| known.session == Session::Open).await;
    agent.interrupt("train-0").await;
    agent.durable("train-0").await;
    let step = program.parked_at();

    let other = Agent::start(&bucket);
    let new = Program::start(other.serve(folder.path(), "train-1"), (0, 1));
    new.until("restore waits").await;
    other.workloads.allow_restore(&uid("train-1"), Proof::ContainersEnded);
    new.until(&format!("goes on at step {step}")).await;
    new.finish().await;
    agent.workloads.call_off(&uid("train-0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_of_one_pod_are_saved_at_one_step_and_share_what_is_replicated() {
    let (bucket, folder) = (bucket(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&bucket);
    let socket = agent.serve(folder.path(), "train-0");
    let ranks: Vec<_> = (0..3).map(|rank| Program::start(socket.clone(), (rank, 3))).collect();
    for rank in &ranks {
        rank.until("stepping").await;
    }
    agent.interrupt("train-0").await;
    agent.durable("train-0").await;
    let steps: Vec<u64> = ranks.iter().map(Program::parked_at).collect();
    assert!(steps.iter().all(|step| *step == steps[0]), "{steps:?}");

    let other = Agent::start(&bucket);
    let socket = other.serve(folder.path(), "train-1");
    let ranks: Vec<_> = (0..3).map(|rank| Program::start(socket.clone(), (rank, 3))).collect();
    for rank in &ranks {
        rank.until("restore waits").await;
    }
    other.workloads.allow_restore(&uid("train-1"), Proof::Released);
    for rank in &ranks {
        rank.until(&format!("goes on at step {}", steps[0])).await;
        rank.until("stepping").await;
    }
    for rank in &ranks {
        rank.told.stop.store(true, Ordering::SeqCst);
    }
    for rank in ranks {
        rank.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trainer_that_finishes_while_it_is_asked_is_finished() {
    let (bucket, folder) = (bucket(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&bucket);
    for round in 0..5 {
        let pod = format!("train-{round}");
        let program = Program::start(agent.serve(folder.path(), &pod), (0, 1));
        program.until("stepping").await;
        program.told.stop.store(true, Ordering::SeqCst);
        let purpose = Purpose::Insurance;
        agent.workloads.ask(&uid(&pod), Notice { purpose, deadline: None });
        agent.workloads.save(&uid(&pod));
        program.finish().await;
        agent.workloads.unpublish(&uid(&pod));
    }
}

/// A step of a program that nobody wants anything of, by the kernel's own count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_step_takes_no_system_call() {
    let (bucket, folder) = (bucket(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&bucket);
    let socket = agent.serve(folder.path(), "train-0");
    let settings = Settings {
        socket: Some(socket),
        signals: Signals::Left,
        observer: Arc::new(|_| ()),
        ..Settings::alone()
    };
    let program = thread::Builder::new().spawn(move || {
        let boat = Arc::new(Boat::with(settings).unwrap());
        boat.register("weights", &Tensor::new(vec![0_u32; NUMBERS])).unwrap();
        assert_eq!(boat.restore().unwrap(), None);
        step::are_silent(&boat, 1, 100_000)
    });
    let program = program.unwrap();
    while !program.is_finished() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    match program.join().unwrap() {
        Some(silent) => assert!(silent, "a step took a system call"),
        None => eprintln!("skipped: this kernel does not count a thread's system calls"),
    }
}

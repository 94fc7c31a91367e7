//! Workloads that save themselves when they are called, over real sockets on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use lifeboat::adapters::pod_http::Address;
use lifeboat::adapters::store::Store;
use lifeboat::agent::workloads::Known;
use lifeboat::agent::workloads::Means;
use lifeboat::agent::workloads::Place;
use lifeboat::agent::workloads::PodEntry;
use lifeboat::agent::workloads::Workloads;
use lifeboat::agent::workloads::registry;
use lifeboat::clock::Clock;
use lifeboat::data::history::History;
use lifeboat::data::history::Owner;
use lifeboat::data::scheduler::Limits;
use lifeboat::data::scheduler::Scheduler;
use lifeboat::offload::Offload;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::tree::Tree;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::facts::Restore;
use lifeboat_domain::node::facts::Session;
use lifeboat_domain::node::plan::Notice;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::FailReason;
use lifeboat_domain::workload::Proof;
use lifeboat_domain::workload::Purpose;
use lifeboat_domain::workload::Wishes;
use object_store::memory::InMemory;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What is waited for at most; each of it takes a fraction of a second.
const PATIENCE: Duration = Duration::from_mins(1);

/// A program with answers, one for each call; the last one stays.
struct Program {
    at: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Program {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Program {
    async fn new(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let answers: Vec<String> = answers.iter().map(|text| (*text).to_owned()).collect();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            for call in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = vec![0; 4096];
                let count = stream.read(&mut bytes).await.unwrap();
                told.lock().unwrap().push(String::from_utf8_lossy(&bytes[..count]).into_owned());
                let answer = &answers[call.min(answers.len() - 1)];
                // One that has nothing to say keeps the line.
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
                stream.write_all(answer.as_bytes()).await.ok();
            }
        });
        Self { at, heard, task }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

/// An agent's registry over a bucket in memory.
struct Node {
    workloads: Workloads,
    store: Store,
    clock: Clock,
    driver: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Node {
    fn new() -> Self {
        let clock = Clock::system();
        let store = Store::new(Arc::new(InMemory::new()), clock.clone(), Offload::Inline);
        Self::over(store, clock)
    }

    fn over(store: Store, clock: Clock) -> Self {
        let limits = Limits {
            in_flight: 1 << 20,
            connections: Some(2),
            bandwidth: None,
            ring_budget: 1 << 20,
        };
        let place = Place {
            cluster: "blue".into(),
            node: "gpu-1".into(),
            instance: None,
            prefix: String::new(),
            chunk: 1 << 16,
            in_flight: 1 << 20,
        };
        let (workloads, driver) = registry(Means {
            store: store.clone(),
            scheduler: Scheduler::new(limits, store.slow_downs(), Offload::Inline),
            clock: clock.clone(),
            offload: Offload::Inline,
            place,
            spool: None,
        });
        Self { workloads, store, clock, driver: tokio::spawn(driver.run()) }
    }

    fn call(&self, pod: &str, at: SocketAddr) {
        let said = [("lifeboat.dev/checkpoint", "http"), ("lifeboat.dev/job-key", "job")];
        let said = said.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let entry = PodEntry {
            pod: PodRef {
                namespace: "ml".parse().unwrap(),
                name: pod.parse().unwrap(),
                uid: uid(pod),
            },
            wishes: Wishes::read(&said.collect()).0,
            grace: Duration::from_secs(30),
            pod_priority: 0,
        };
        self.workloads.call(entry, Address::at(at, "/save?now=1").unwrap());
    }

    fn ask(&self, pod: &str, seconds: u64) {
        let deadline = Some(Deadline::after(self.clock.now(), Duration::from_secs(seconds)));
        self.workloads.ask(&uid(pod), Notice { purpose: Purpose::Interruption, deadline });
    }

    async fn until(&self, pod: &str, wanted: impl Fn(&Known) -> bool) -> Known {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let all = self.workloads.workloads();
            let known = all.into_iter().find(|one| one.pod.uid == uid(pod));
            if let Some(known) = known.as_ref().filter(|known| wanted(known)) {
                return known.clone();
            }
            assert!(tokio::time::Instant::now() < deadline, "{known:?}");
            self.workloads.save(&uid(pod));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn saved(&self, pod: &str, seconds: u64) -> Checkpoint {
        self.until(pod, |known| known.session == Session::Open).await;
        self.ask(pod, seconds);
        self.until(pod, |known| known.checkpoint.is_settled()).await.checkpoint
    }

    fn history(&self) -> History {
        let owner = Owner { cluster: "blue".into(), namespace: "ml".into(), job_key: "job".into() };
        History::new(self.store.clone(), "", owner).unwrap()
    }
}

fn uid(pod: &str) -> PodUid {
    format!("uid-{pod}").parse().unwrap()
}

#[tokio::test]
async fn a_workload_that_says_it_is_saved_is_durable_with_what_it_says() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"step\": 12}";
    let program = Program::new(&[answer]).await;
    let node = Node::new();
    node.call("train-0", program.at);
    let saved = node.saved("train-0", 60).await;
    assert!(matches!(saved, Checkpoint::Durable(stored) if stored.step.is_none()), "{saved:?}");
    let [heard] = &program.heard()[..] else { panic!("{:?}", program.heard()) };
    assert!(heard.starts_with("POST /save?now=1 HTTP/1.1\r\n"), "{heard}");
    assert!(heard.contains("\"cause\":\"interruption\""), "{heard}");
    let (_, left) = heard.split_once("\"secondsLeft\":").unwrap();
    let left: f64 = left.trim_end_matches(['}', '\n']).parse().unwrap();
    assert!(left > 0.0 && left <= 60.0, "{heard}");
    let by = Deadline::after(node.clock.now(), Duration::from_mins(1));
    let newest = node.history().newest(by).await.unwrap().unwrap();
    assert_eq!((newest.kind, newest.bytes), (Kind::Save, 0));
    let rank = node.history().read_rank(&newest, 0, by).await.unwrap();
    assert_eq!(rank.layout.tree.entry("answer"), Some(&Tree::Str("{\"step\": 12}".to_owned())));
}

#[tokio::test]
async fn one_that_is_busy_is_called_again() {
    let busy = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    let saved = "HTTP/1.1 204 No Content\r\n\r\n";
    let program = Program::new(&[busy, saved]).await;
    let node = Node::new();
    node.call("train-0", program.at);
    assert!(node.saved("train-0", 60).await.is_durable());
    assert_eq!(program.heard().len(), 2);
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_no_save() {
    let elsewhere = Program::new(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]).await;
    let redirect = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n",
        elsewhere.at
    );
    let program = Program::new(&[&redirect]).await;
    let node = Node::new();
    node.call("train-0", program.at);
    let why = FailReason::Refused;
    assert_eq!(node.saved("train-0", 60).await, Checkpoint::Failed { why });
    assert!(elsewhere.heard().is_empty());
}

#[tokio::test]
async fn an_answer_without_end_or_none_at_all_is_no_save() {
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000));
    for (answer, seconds) in [(long.as_str(), 60), ("", 5)] {
        let program = Program::new(&[answer]).await;
        let node = Node::new();
        node.call("train-0", program.at);
        let began = node.clock.now();
        let why = FailReason::Refused;
        assert_eq!(node.saved("train-0", seconds).await, Checkpoint::Failed { why });
        assert!(node.clock.now().duration_since(began).as_secs() < 50);
    }
}

#[tokio::test]
async fn a_successor_that_never_asked_for_the_state_takes_over_once_the_first_has_ended() {
    let saved = "HTTP/1.1 204 No Content\r\n\r\n";
    let (first, second) = (Program::new(&[saved]).await, Program::new(&[saved]).await);
    let old = Node::new();
    old.call("train-0", first.at);
    assert!(old.saved("train-0", 60).await.is_durable());
    let new = Node::over(old.store.clone(), old.clock.clone());
    new.call("train-1", second.at);
    new.until("train-1", |known| known.session == Session::Open).await;
    new.ask("train-1", 60);
    let waiting = |known: &Known| matches!(&known.restore, Restore::Waiting { from, .. } if *from == uid("train-0"));
    new.until("train-1", waiting).await;
    assert!(second.heard().is_empty(), "it is not called before its number is its own");
    new.workloads.allow_restore(&uid("train-1"), Proof::ContainersEnded);
    let known = new.until("train-1", |known| known.checkpoint.is_settled()).await;
    assert!(known.checkpoint.is_durable());
    let by = Deadline::after(new.clock.now(), Duration::from_mins(1));
    let newest = new.history().newest(by).await.unwrap().unwrap();
    assert_eq!((newest.epoch, newest.holder.pod.as_str()), (3, "train-1"));
}

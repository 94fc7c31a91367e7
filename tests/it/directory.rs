//! Workloads that know no SDK: their folder is filled before they start, and what of it is whole is
//! saved, over real files and a bucket in memory.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lifeboat::adapters::store::Store;
use lifeboat::agent::bell::Bell;
use lifeboat::agent::csi::Csi;
use lifeboat::agent::csi::Host;
use lifeboat::agent::pods::Pods;
use lifeboat::agent::pods::Volume;
use lifeboat::agent::records::Records;
use lifeboat::agent::workloads::Known;
use lifeboat::agent::workloads::Means;
use lifeboat::agent::workloads::Place;
use lifeboat::agent::workloads::Workloads;
use lifeboat::agent::workloads::registry;
use lifeboat::clock::Clock;
use lifeboat::data::history::History;
use lifeboat::data::history::Owner;
use lifeboat::data::scheduler::Limits;
use lifeboat::data::scheduler::Scheduler;
use lifeboat::offload::Offload;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::directory::MARKER;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::facts::Quiet;
use lifeboat_domain::node::plan::Notice;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::FailReason;
use lifeboat_domain::workload::Proof;
use lifeboat_domain::workload::Purpose;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::Status;

use crate::csi;

const CHUNK: u64 = 64 << 10;

/// One node with its agent's registry and volume driver, over a bucket that others share.
struct Node {
    root: Option<TempDir>,
    pods: Pods,
    workloads: Workloads,
    store: Store,
    clock: Clock,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Node {
    async fn new(name: &str, bucket: &Arc<dyn ObjectStore>, clock: &Clock) -> Self {
        let root = tempfile::tempdir().unwrap();
        // A pod without processes: nobody writes but this test, and it closes what it wrote.
        let cgroup = root.path().join("sys/fs/cgroup");
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.controllers"), "").unwrap();
        Self::over(root, name, (bucket, clock)).await
    }

    async fn over(root: TempDir, name: &str, world: (&Arc<dyn ObjectStore>, &Clock)) -> Self {
        let (bucket, clock) = world;
        let store = Store::new(Arc::clone(bucket), clock.clone(), Offload::Inline);
        let limits = Limits {
            in_flight: 1 << 20,
            connections: Some(8),
            bandwidth: None,
            ring_budget: 1 << 20,
        };
        let place = Place {
            cluster: "blue".into(),
            node: name.into(),
            instance: None,
            prefix: "ckpt".into(),
            chunk: CHUNK,
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
        let records = Records::new(root.path(), Offload::Inline);
        let pods = Pods::load(records, workloads.clone(), Bell::new()).await;
        let host = Host::new(root.path());
        pods.mount_again(&host);
        let csi = Csi::new(name, host, pods.clone());
        let listeners = csi.listen().unwrap();
        let keeper = pods.clone();
        let tasks = vec![
            tokio::spawn(driver.run()),
            tokio::spawn(csi.serve(listeners)),
            tokio::spawn(async move { keeper.keep().await }),
        ];
        Self { root: Some(root), pods, workloads, store, clock: clock.clone(), tasks }
    }

    fn root(&self) -> &Path {
        self.root.as_ref().unwrap().path()
    }

    /// The pod's folder.
    fn folder(&self) -> PathBuf {
        self.root().join(csi::TARGET.trim_start_matches('/'))
    }

    async fn publish(&self) -> Result<(), Status> {
        let mut context = csi::POD;
        context[4].1 = "directory";
        csi::publish(self.root(), &context).await
    }

    fn ask(&self, purpose: Purpose, seconds: u64) {
        let deadline = Some(Deadline::after(self.clock.now(), Duration::from_secs(seconds)));
        self.workloads.ask(&uid(), Notice { purpose, deadline });
    }

    fn known(&self) -> Known {
        self.workloads.workloads().into_iter().find(|one| one.pod.uid == uid()).unwrap()
    }

    /// Lets what is handed over be stored, as the plan does, and waits for what comes of it.
    async fn settled(&self) -> Checkpoint {
        for _ in 0..3000 {
            self.workloads.save(&uid());
            tokio::time::sleep(Duration::from_millis(50)).await;
            let checkpoint = self.known().checkpoint;
            if checkpoint.is_settled() {
                return checkpoint;
            }
        }
        panic!("not settled: {:?}", self.known());
    }

    async fn newest(&self) -> Option<Manifest> {
        let owner =
            Owner { cluster: "blue".into(), namespace: "ml".into(), job_key: "job-1".into() };
        let history = History::new(self.store.clone(), "ckpt", owner).unwrap();
        let by = Deadline::after(self.clock.now(), Duration::from_mins(1));
        history.newest(by).await.unwrap()
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.folder().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn uid() -> PodUid {
    "8f7a".parse().unwrap()
}

fn world() -> (Arc<dyn ObjectStore>, Clock) {
    let clock = Clock::starting_at("2026-11-22T12:00:00Z".parse().unwrap(), 0);
    (Arc::new(InMemory::new()), clock)
}

/// Everything below a folder, with its content.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn large(tag: u8) -> Vec<u8> {
    (0..3 * CHUNK + 7).map(|place| tag ^ u8::try_from(place % 251).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_whole_is_saved_and_the_successor_finds_its_folder_filled() {
    let (bucket, clock) = world();
    let old = Node::new("gpu-1", &bucket, &clock).await;
    old.publish().await.unwrap();
    assert!(files(&old.folder()).is_empty(), "a folder holds nothing of ours");
    assert_eq!(old.newest().await.unwrap().kind, Kind::Claim);
    old.write("step-1/model.pt", &large(1));
    old.write("step-1/deep/optimizer.pt", b"momentum");
    old.write(&format!("step-1/{MARKER}"), b"");
    old.write("latest", b"step-1");
    let before = files(&old.folder());

    old.ask(Purpose::Interruption, 110);
    let Checkpoint::Durable(stored) = old.settled().await else { panic!("{:?}", old.known()) };
    assert_eq!((stored.epoch.0, stored.step), (2, None));
    assert_eq!(old.known().quiet, Quiet::Unknown, "it runs on, and must be frozen");

    let new = Node::new("gpu-2", &bucket, &clock).await;
    // The same pod's UID, as the target's path has it: the same holder, so the gate is open.
    new.publish().await.unwrap();
    assert_eq!(files(&new.folder()), before);
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_being_written_is_left_out_and_never_torn() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &bucket, &clock).await;
    node.publish().await.unwrap();
    node.write("step-1/model.pt", b"whole");
    node.write(&format!("step-1/{MARKER}"), b"");
    // A process of the pod has a file of the next one open.
    let group = "sys/fs/cgroup/kubepods/pod8f7a";
    fs::create_dir_all(node.root().join(group)).unwrap();
    fs::write(node.root().join(group).join("cgroup.procs"), "7\n").unwrap();
    fs::create_dir_all(node.root().join("proc")).unwrap();
    std::os::unix::fs::symlink("/proc/self", node.root().join("proc/7")).unwrap();
    node.write("step-2/other.pt", b"whole");
    let _open = fs::File::create(node.folder().join("step-2/model.pt")).unwrap();

    node.ask(Purpose::Interruption, 110);
    let settled = node.settled().await;
    assert!(settled.is_durable(), "{settled:?}");
    let again = Node::new("gpu-2", &bucket, &clock).await;
    again.publish().await.unwrap();
    let names: Vec<String> = files(&again.folder()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [format!("step-1/{MARKER}"), "step-1/model.pt".to_owned()]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_saved_is_refused_and_alone_fails_the_save() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &bucket, &clock).await;
    node.publish().await.unwrap();
    node.write("step-1/model.pt", b"state");
    std::os::unix::fs::symlink("/etc/passwd", node.folder().join("step-1/link")).unwrap();
    node.ask(Purpose::Interruption, 110);
    let why = FailReason::Refused;
    assert_eq!(node.settled().await, Checkpoint::Failed { why });
    assert_eq!(node.newest().await.unwrap().kind, Kind::Claim, "nothing is committed");
}

#[tokio::test(start_paused = true)]
async fn an_ended_pod_is_saved_as_its_containers_left_it_and_its_volume_stays_until_then() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &bucket, &clock).await;
    node.publish().await.unwrap();
    node.write("model.pt", b"first");
    node.ask(Purpose::Ending, 30);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(node.known().checkpoint, Checkpoint::Asked);
    // What it writes on SIGTERM, in its grace.
    node.write("model.pt", b"last words");
    csi::unpublish(node.root()).await.unwrap();
    assert!(!node.folder().exists());
    assert!(node.settled().await.is_durable());
    assert_eq!(node.pods.all()[0].volume, Volume::Unmounted);
    let again = Node::new("gpu-2", &bucket, &clock).await;
    again.publish().await.unwrap();
    assert_eq!(files(&again.folder()), [("model.pt".to_owned(), b"last words".to_vec())]);
}

#[tokio::test(start_paused = true)]
async fn a_folder_in_use_is_left_alone_by_an_agent_that_starts_again() {
    let (bucket, clock) = world();
    let mut node = Node::new("gpu-1", &bucket, &clock).await;
    node.publish().await.unwrap();
    node.write("model.pt", b"state");
    let root = node.root.take().unwrap();
    drop(node);
    let again = Node::over(root, "gpu-1", (&bucket, &clock)).await;
    again.publish().await.unwrap();
    assert_eq!(files(&again.folder()), [("model.pt".to_owned(), b"state".to_vec())]);
    again.ask(Purpose::Interruption, 110);
    assert!(again.settled().await.is_durable());
    assert_eq!(again.newest().await.unwrap().epoch, 2);
}

#[tokio::test(start_paused = true)]
async fn a_folder_is_not_given_out_before_its_last_holder_has_ended() {
    let (bucket, clock) = world();
    let old = Node::new("gpu-1", &bucket, &clock).await;
    old.publish().await.unwrap();
    old.write("model.pt", b"state");
    old.ask(Purpose::Interruption, 110);
    assert!(old.settled().await.is_durable());

    let new = Node::new("gpu-2", &bucket, &clock).await;
    let target = csi::TARGET.replace("8f7a", "99aa");
    let publish = || async {
        let mut context = csi::POD;
        (context[1].1, context[3].1, context[4].1) = ("train-1", "99aa", "directory");
        csi::publish_at(new.root(), &target, &context).await
    };
    let refused = publish().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("for the end of pod `train-0`"), "{refused}");
    new.workloads.allow_restore(&"99aa".parse().unwrap(), Proof::ContainersEnded);
    publish().await.unwrap();
    let folder = new.root().join(target.trim_start_matches('/'));
    assert_eq!(files(&folder), [("model.pt".to_owned(), b"state".to_vec())]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_written_while_it_is_saved_fails_the_save() {
    let (bucket, clock) = world();
    let node = Node::new("gpu-1", &bucket, &clock).await;
    node.publish().await.unwrap();
    node.write("model.pt", &large(1));
    node.ask(Purpose::Interruption, 110);
    // Handed over, and not stored yet: the plan has not said so.
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if !node.workloads.is_to_hand_over(&uid()) {
            break;
        }
    }
    node.write("model.pt", &large(2)[..100]);
    let why = FailReason::Refused;
    assert_eq!(node.settled().await, Checkpoint::Failed { why });
}

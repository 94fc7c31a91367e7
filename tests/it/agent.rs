//! The whole agent in virtual time: what it knows, keeps, tells, and when it ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake_nvml::Process;
use fake_nvml::ProcessKind;
use lifeboat::adapters::cluster::Cluster;
use lifeboat::adapters::cluster::Slots;
use lifeboat::adapters::cluster::interruptions;
use lifeboat::agent::records::FOLDER;
use lifeboat::clock::Clock;
use lifeboat::config::Config;
use lifeboat::config::Program;
use lifeboat::offload::Offload;
use lifeboat::shutdown::Shutdown;
use lifeboat::wiring;
use lifeboat::wiring::AgentClients;
use lifeboat::wiring::Runtime;
use lifeboat_chaos::serve::ServedSocket;
use lifeboat_chaos::serve::bytes_service;
use lifeboat_chaos::serve::kube_client;
use lifeboat_chaos::wire::Wire;
use lifeboat_chaos::wire::call;
use lifeboat_chaos::wire::imds::imds;
use lifeboat_chaos::wire::kube;
use lifeboat_chaos::wire::kubelet::serve_pod_resources;
use lifeboat_chaos::wire::wire;
use lifeboat_chaos::world::State;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::cluster::resource::CHECKPOINT;
use lifeboat_chaos::world::cluster::resource::INTERRUPTION;
use lifeboat_chaos::world::cluster::resource::NAMESPACE;
use lifeboat_chaos::world::cluster::resource::NODE;
use lifeboat_chaos::world::instances::Notice;
use lifeboat_chaos::world::instances::NoticeAction;
use lifeboat_chaos::world::instances::Offering;
use lifeboat_chaos::world::instances::Purchase;
use lifeboat_chaos::world::machines::Assignment;
use lifeboat_chaos::world::machines::Gpu;
use lifeboat_chaos::world::machines::Machine;
use lifeboat_chaos::world::workloads::line::Line;
use lifeboat_checkpoint::region::Dtype;
use lifeboat_checkpoint::region::Layout;
use lifeboat_checkpoint::region::Region;
use lifeboat_protocol::frame::Finish;
use lifeboat_protocol::frame::Forecast;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Hello;
use lifeboat_protocol::frame::Progress;
use lifeboat_protocol::frame::Register;
use lifeboat_protocol::frame::Restore;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::VERSION;
use object_store::memory::InMemory;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::csi;

const ID: &str = "i-0123456789abcdef0";
const UUID: &str = "GPU-11111111-1111-1111-1111-111111111111";
const PID: u32 = 4711;

/// A node with one GPU in two slices, and its agent.
struct Node {
    world: World,
    root: TempDir,
    server: Arc<AtomicBool>,
    _kubelet: ServedSocket,
}

struct Running {
    agent: JoinHandle<()>,
    shutdown: Shutdown,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.agent.abort();
    }
}

impl Node {
    async fn new() -> Self {
        let world = World::new(Clock::starting_at("2026-11-22T12:00:00Z".parse().unwrap(), 0), 1);
        let root = tempfile::tempdir().unwrap();
        let now = world.now();
        let offering =
            Offering { instance_type: "g5.xlarge", zone: "us-east-2a", purchase: Purchase::Spot };
        world.update(|state| {
            state.instances.launch(ID, offering, now);
            state.machines.insert("gpu-1", machine(root.path().to_owned()));
            state.cluster.put(NODE, json!({"metadata": {"name": "gpu-1"}, "spec": {}}));
            state.cluster.put(NAMESPACE, json!({"metadata": {"name": "ml"}}));
        });
        let cgroup = root.path().join("sys/fs/cgroup");
        std::fs::create_dir_all(&cgroup).unwrap();
        std::fs::write(cgroup.join("cgroup.controllers"), "cpu memory\n").unwrap();
        let kubelet = serve_pod_resources(world.clone(), "gpu-1").await.unwrap();
        let node = Self { world, root, server: Arc::new(AtomicBool::new(true)), _kubelet: kubelet };
        node.gpu(&[]);
        fake_nvml::install(node.root.path()).unwrap();
        node
    }

    fn start(&self) -> Running {
        self.start_with("")
    }

    /// With more of the configuration.
    fn start_with(&self, more: &str) -> Running {
        let text = format!(
            "cluster = \"demo\"\nregion = \"us-east-2\"\n{more}[store]\nbucket = \"boats\"\n\
             [agent]\nnodeName = \"gpu-1\"\nhostRoot = \"{}\"\nnvmlLibrary = \"{}\"\n",
            self.root.path().display(),
            self.root.path().join(fake_nvml::LIBRARY).display(),
        );
        let config = Config::parse(Program::Agent, &text).unwrap();
        let clients = AgentClients {
            kube: kube_client(&self.api(), "lifeboat-system"),
            imds: bytes_service(&imds(self.world.clone(), ID)),
            store: Arc::new(InMemory::new()),
        };
        let runtime = Runtime { clock: self.world.clock().clone(), offload: Offload::Inline };
        let shutdown = Shutdown::new();
        let asked = shutdown.clone();
        let agent = tokio::spawn(async move {
            wiring::agent(config, clients, runtime, asked).await.unwrap();
        });
        Running { agent, shutdown }
    }

    /// The API server, which can be taken away.
    fn api(&self) -> Wire {
        let (inner, there) = (kube::wire(&self.world, "agent"), Arc::clone(&self.server));
        wire(move |request| {
            let (inner, is_there) = (inner.clone(), there.load(Ordering::SeqCst));
            async move {
                if is_there {
                    call(&inner, request).await
                } else {
                    Err("connection refused".into())
                }
            }
        })
    }

    fn server(&self, is_there: bool) {
        self.server.store(is_there, Ordering::SeqCst);
    }

    fn announce(&self) {
        let now = self.world.now();
        let time = now + Duration::from_mins(2);
        let notice =
            Notice { action: NoticeAction::Terminate, at: now, time, imds_from: Some(now) };
        self.world.update(|state| state.instances.announce(ID, notice));
    }

    /// The processes on the GPU.
    fn gpu(&self, pids: &[u32]) {
        let process = |pid: &u32| Process {
            pid: *pid,
            memory: None,
            kind: ProcessKind::Compute,
            gpu_instance: None,
            compute_instance: None,
        };
        let gpu = fake_nvml::Gpu {
            uuid: UUID.to_owned(),
            name: "NVIDIA A10G".to_owned(),
            memory: 24 << 30,
            utilization: 0,
            lost: false,
            processes: pids.iter().map(process).collect(),
            mig: std::collections::BTreeMap::new(),
        };
        let state = fake_nvml::State { gpus: vec![gpu], ..fake_nvml::State::default() };
        state.write(self.root.path()).unwrap();
    }

    fn group(&self) -> PathBuf {
        self.root.path().join("sys/fs/cgroup/kubepods.slice/kubepods-pod8f7a.slice")
    }

    /// Runs the pod's one process.
    fn run_pod(&self) {
        let inside = "kubepods.slice/kubepods-pod8f7a.slice/cri-containerd-0.scope";
        let folder = self.root.path().join("sys/fs/cgroup").join(inside);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cgroup.procs"), format!("{PID}\n")).unwrap();
        std::fs::write(self.group().join("cgroup.freeze"), "0\n").unwrap();
        let own = self.root.path().join("proc").join(PID.to_string());
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("cgroup"), format!("0::/{inside}\n")).unwrap();
        self.gpu(&[PID]);
    }

    /// Ends it, and with it the pod.
    async fn end_pod(&self) {
        self.gpu(&[]);
        std::fs::remove_dir_all(self.root.path().join("proc").join(PID.to_string())).unwrap();
        std::fs::remove_dir_all(self.group()).unwrap();
        csi::unpublish(self.root.path()).await.unwrap();
    }

    fn kept(&self, file: &str) -> Option<Value> {
        let text = std::fs::read(self.root.path().join(FOLDER).join(file)).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    /// The index of the only job key.
    fn index(&self) -> Option<Value> {
        let list =
            |state: &State| state.cluster.list(CHECKPOINT).next().map(|one| Value::clone(one));
        self.world.read(list)
    }

    fn record(&self) -> Option<Value> {
        self.world.read(|state| state.cluster.find(INTERRUPTION, ID).map(|found| (**found).clone()))
    }
}

fn machine(root: PathBuf) -> Machine {
    let resource = "nvidia.com/gpu".to_owned();
    let held = Assignment {
        namespace: "ml".to_owned(),
        pod: "train-0".to_owned(),
        uid: "8f7a".to_owned(),
        container: "main".to_owned(),
        resource: resource.clone(),
        devices: vec![format!("{UUID}::1")],
    };
    Machine {
        instance: ID.to_owned(),
        root,
        gpus: vec![Gpu { uuid: UUID.to_owned(), resource, replicas: 2 }],
        assignments: vec![held],
        processes: std::collections::BTreeMap::new(),
        alive: true,
    }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_agent_ends_at_once_when_it_is_asked_to() {
    let node = Node::new().await;
    let mut running = node.start();
    seconds(5).await;
    assert!(!running.agent.is_finished());
    running.shutdown.request();
    tokio::time::timeout(Duration::from_secs(1), &mut running.agent).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_notice_from_imds_is_kept_at_once_and_recorded_when_the_server_is_back() {
    let node = Node::new().await;
    node.server(false);
    let _running = node.start();
    seconds(2).await;
    node.announce();
    seconds(2).await;
    let kept = node.kept("notice.json").unwrap();
    assert_eq!(kept["instance"], ID);
    assert!(kept["signals"]["imds-spot-interruption"].is_object(), "{kept}");
    assert_eq!(node.record(), None);
    node.server(true);
    seconds(10).await;
    let record = node.record().unwrap();
    assert_eq!(record["spec"]["node"], "gpu-1");
    assert_eq!(record["spec"]["zone"], "us-east-2a");
    let signal = &record["spec"]["signals"]["imds-spot-interruption"];
    assert_eq!(signal["source"], "imds");
    assert_eq!(signal["deadline"], "2026-11-22T12:02:02Z");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_without_the_server_knows_its_pods_and_its_notice() {
    let node = Node::new().await;
    let first = node.start();
    seconds(1).await;
    csi::publish(node.root.path(), &csi::POD).await.unwrap();
    node.announce();
    seconds(2).await;
    let pod = node.kept("pods/8f7a.json").unwrap();
    assert_eq!(pod["devices"][0]["id"], format!("{UUID}::1"));
    drop(first);
    node.server(false);
    seconds(1).await;
    let socket = node.root.path().join(&csi::TARGET[1..]).join("agent.sock");
    csi::connect(socket.clone()).await.unwrap_err();
    let _second = node.start();
    seconds(1).await;
    csi::connect(socket).await.unwrap();
    assert!(node.kept("notice.json").unwrap()["signals"]["imds-spot-interruption"].is_object());
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_before_left_frozen_runs_again() {
    let node = Node::new().await;
    let first = node.start();
    seconds(1).await;
    csi::publish(node.root.path(), &csi::POD).await.unwrap();
    node.run_pod();
    seconds(1).await;
    drop(first);
    std::fs::write(node.group().join("cgroup.freeze"), "1\n").unwrap();
    let _second = node.start();
    seconds(1).await;
    assert_eq!(std::fs::read_to_string(node.group().join("cgroup.freeze")).unwrap(), "0");
}

#[tokio::test(start_paused = true)]
async fn an_agent_with_work_in_hand_stays_until_the_slices_are_seen_free_and_told() {
    let node = Node::new().await;
    let mut running = node.start();
    seconds(1).await;
    csi::publish(node.root.path(), &csi::POD).await.unwrap();
    node.run_pod();
    node.announce();
    seconds(3).await;
    running.shutdown.request();
    seconds(5).await;
    assert!(!running.agent.is_finished(), "a pod of ours is on the GPU");
    node.end_pod().await;
    tokio::time::timeout(Duration::from_secs(5), &mut running.agent).await.unwrap().unwrap();
    let told = &node.record().unwrap()["status"]["workloads"]["8f7a"];
    assert_eq!(told["pod"], "train-0");
    assert!(told["release"]["releasedAt"].is_string(), "{told}");
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_before_told_is_not_taken_back_by_one_that_does_not_know_it() {
    let node = Node::new().await;
    let first = node.start();
    csi_ready(&node).await;
    node.run_pod();
    node.announce();
    seconds(3).await;
    drop(first);
    let told = json!({"workloads": {"8f7a": {"namespace": "ml", "pod": "train-0", "save": {
        "state": "Durable", "epoch": 2, "step": 9, "bytes": 5,
        "durableAt": "2026-11-22T12:00:09Z",
    }}}});
    let api = kube_client(&node.api(), "lifeboat-system");
    let cluster = Cluster::first_aid(api, &Slots::new(2, 0));
    let (id, manager) = (ID.parse().unwrap(), "lifeboat-agent-8f7a");
    interruptions::apply_status(&cluster, &id, manager, told).await.unwrap();
    let _second = node.start();
    seconds(1).await;
    node.end_pod().await;
    seconds(5).await;
    let told = &node.record().unwrap()["status"]["workloads"]["8f7a"];
    assert!(told["release"]["releasedAt"].is_string(), "{told}");
    assert_eq!((&told["save"]["state"], &told["save"]["epoch"]), (&json!("Durable"), &json!(2)));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_asked_twice_goes() {
    let node = Node::new().await;
    let mut running = node.start();
    csi_ready(&node).await;
    node.run_pod();
    node.announce();
    seconds(3).await;
    running.shutdown.request();
    seconds(1).await;
    running.shutdown.request();
    tokio::time::timeout(Duration::from_secs(1), &mut running.agent).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_waits_no_longer_than_its_grace() {
    let node = Node::new().await;
    let mut running = node.start();
    csi_ready(&node).await;
    node.run_pod();
    node.announce();
    seconds(3).await;
    running.shutdown.request();
    seconds(100).await;
    assert!(!running.agent.is_finished());
    tokio::time::timeout(Duration::from_secs(30), &mut running.agent).await.unwrap().unwrap();
}

async fn csi_ready(node: &Node) {
    seconds(1).await;
    csi::publish(node.root.path(), &csi::POD).await.unwrap();
}

/// A workload that has nothing to restore.
async fn workload(node: &Node) -> Line {
    let socket = node.root.path().join(&csi::TARGET[1..]).join("agent.sock");
    let mut line = Line::connect(&socket).await.unwrap();
    let hello = Hello { version: VERSION, world: 1, ..Hello::default() };
    line.say(&FromWorkload::Hello(hello), &[]).await.unwrap();
    line.say(&FromWorkload::Restore(Restore { newer_than: None }), &[]).await.unwrap();
    seconds(2).await;
    line
}

#[tokio::test(start_paused = true)]
async fn whose_state_would_not_fit_a_notice_is_told_so_once_in_the_index_and_by_a_frame() {
    let node = Node::new().await;
    let _running = node.start();
    csi_ready(&node).await;
    let mut line = workload(&node).await;
    let register = async |line: &mut Line, gibibytes: u64| {
        let region = Region::new("weights", Dtype::U8, &[gibibytes << 30]);
        let layout = Layout { regions: vec![region], ..Layout::default() };
        line.say(&FromWorkload::Register(Register { layout }), &[]).await.unwrap();
        seconds(3).await;
    };
    register(&mut line, 25).await;
    assert_eq!(node.index(), None);
    register(&mut line, 60).await;
    let told = forecast(&mut line).await;
    assert!(!told.fits && told.bytes == 60 << 30 && told.window_ns == 115_000_000_000);
    let outlook = |index: &Value| index["status"]["outlook"].clone();
    let said = outlook(&node.index().unwrap());
    assert_eq!(
        (&said["fits"], &said["needed"], &said["by"]),
        (&json!(false), &json!(242), &json!("baseline"),)
    );
    assert_eq!((&said["pod"], &said["node"]), (&json!("train-0"), &json!("gpu-1")));
    let version = |index: &Value| index["metadata"]["resourceVersion"].clone();
    let written = version(&node.index().unwrap());
    seconds(600).await;
    assert_eq!(version(&node.index().unwrap()), written);
    // A long step is as much as many bytes.
    let progress = Progress { step: 3, step_ns: 90_000_000_000, parked: false };
    line.say(&FromWorkload::Progress(progress), &[]).await.unwrap();
    register(&mut line, 10).await;
    assert_eq!(version(&node.index().unwrap()), written);
    let progress = Progress { step: 4, step_ns: 9_000_000_000, parked: false };
    line.say(&FromWorkload::Progress(progress), &[]).await.unwrap();
    seconds(3).await;
    assert!(forecast(&mut line).await.fits);
    assert_eq!(outlook(&node.index().unwrap())["fits"], json!(true));
}

#[tokio::test(start_paused = true)]
async fn the_record_and_the_workload_hear_what_is_to_be_expected_of_a_save() {
    let node = Node::new().await;
    let _running = node.start();
    csi_ready(&node).await;
    let mut line = workload(&node).await;
    let region = Region::new("weights", Dtype::U8, &[10 << 30]);
    let layout = Layout { regions: vec![region], ..Layout::default() };
    line.say(&FromWorkload::Register(Register { layout }), &[]).await.unwrap();
    let progress = Progress { step: 3, step_ns: 20_000_000_000, parked: false };
    line.say(&FromWorkload::Progress(progress), &[]).await.unwrap();
    node.announce();
    seconds(6).await;
    let record = node.record().unwrap();
    let workloads = record["status"]["workloads"].as_object().unwrap();
    let save = &workloads.values().next().unwrap()["save"];
    assert_eq!(save["state"], json!("Asked"));
    let expected = &save["expected"];
    assert_eq!(
        (&expected["by"], &expected["bytesPerSecond"]),
        (&json!("baseline"), &json!(312_500_000),)
    );
    // A step of 20 s, and 34 s for 10 GiB at 2.5 Gbit/s.
    let margin = expected["margin"].as_str().unwrap().trim_end_matches('s');
    assert!((55..=65).contains(&margin.parse::<u64>().unwrap()), "{expected}");
    let pace = loop {
        match line.hear().await.unwrap() {
            (ToWorkload::Pace(pace), _) if pace.expected.is_some() => break pace,
            _ => (),
        }
    };
    assert!(pace.expected < pace.deadline, "{pace:?}");
}

/// The next word on whether a notice would leave time enough.
async fn forecast(line: &mut Line) -> Forecast {
    loop {
        if let (ToWorkload::Forecast(forecast), _) = line.hear().await.unwrap() {
            return forecast;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_is_saved_in_the_background_where_policy_says_so() {
    let node = Node::new().await;
    let _running = node.start_with("[background]\nenabled = true\n");
    seconds(1).await;
    let mut context = csi::POD;
    context[4].1 = "directory";
    while csi::publish(node.root.path(), &context).await.is_err() {
        seconds(1).await;
    }
    let set = node.root.path().join(&csi::TARGET[1..]).join("step-100");
    std::fs::create_dir(&set).unwrap();
    std::fs::write(set.join("weights"), b"weights").unwrap();
    std::fs::write(set.join(".lifeboat-complete"), b"").unwrap();
    seconds(9 * 60).await;
    assert_eq!(node.index(), None);
    seconds(2 * 60).await;
    let newest = |node: &Node| node.index().unwrap()["status"]["newest"].clone();
    let first = newest(&node);
    assert_eq!((&first["epoch"], &first["stallMilliseconds"]), (&json!(2), &json!(0)));
    seconds(8 * 60).await;
    assert_eq!(newest(&node), first);
    seconds(3 * 60).await;
    assert_eq!(newest(&node)["epoch"], json!(3));
}

#[tokio::test(start_paused = true)]
async fn the_index_says_when_the_work_is_done() {
    let node = Node::new().await;
    let _running = node.start();
    csi_ready(&node).await;
    let mut line = workload(&node).await;
    line.say(&FromWorkload::Finish(Finish { step: 90 }), &[]).await.unwrap();
    seconds(5).await;
    let index = node.index().unwrap();
    assert_eq!(index["spec"]["jobKey"], "job-1");
    let status = &index["status"];
    assert_eq!((&status["finished"], &status["newest"]["step"]), (&json!(true), &json!(90)));
}

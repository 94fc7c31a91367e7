//! What the simulated world does by itself, one behaviour a test, in virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::behave::Behaviours;
use lifeboat_chaos::world::build::NodeSpec;
use lifeboat_chaos::world::build::add_offerings;
use lifeboat_chaos::world::build::add_pool;
use lifeboat_chaos::world::cluster::Caller;
use lifeboat_chaos::world::cluster::Target;
use lifeboat_chaos::world::cluster::delete::DeleteOptions;
use lifeboat_chaos::world::cluster::object;
use lifeboat_chaos::world::cluster::resource;
use lifeboat_chaos::world::cluster::resource::Resource;
use lifeboat_chaos::world::cluster::write::Door;
use lifeboat_chaos::world::instances::InstanceState;
use lifeboat_chaos::world::instances::Notice;
use lifeboat_chaos::world::instances::NoticeAction;
use lifeboat_chaos::world::instances::Purchase;
use lifeboat_chaos::world::karpenter::Provisions;
use lifeboat_chaos::world::offerings::Offering;
use lifeboat_chaos::world::runtime::Container;
use lifeboat_chaos::world::runtime::KILLED;
use lifeboat_chaos::world::runtime::Launch;
use lifeboat_chaos::world::runtime::Runtime;
use lifeboat_chaos::world::runtime::TERMINATED;
use serde_json::Value;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How a container plays, by its pod's annotation `plays`.
#[derive(Clone, Copy)]
enum Play {
    /// Until SIGTERM, and a second longer.
    Obeys,
    /// Whatever comes.
    Deaf,
    /// So many seconds, then ends with this code.
    Ends(u64, i32),
}

struct Actors;

impl Runtime for Actors {
    fn start(&self, world: &World, launch: Launch) -> Box<dyn Container> {
        let play = match object::annotation(&launch.pod, "plays") {
            "deaf" => Play::Deaf,
            "succeeds" => Play::Ends(10, 0),
            "fails once" if launch.restarts > 0 => Play::Ends(10, 0),
            "fails" | "fails once" => Play::Ends(10, 3),
            _ => Play::Obeys,
        };
        let pid = world.update(|state| state.machines.new_pid());
        let (signal, _) = watch::channel("");
        Box::new(Actor { pid, play, signal, started: Instant::now() })
    }
}

struct Actor {
    pid: u32,
    play: Play,
    signal: watch::Sender<&'static str>,
    started: Instant,
}

impl Container for Actor {
    fn pids(&self) -> Vec<u32> {
        vec![self.pid]
    }

    fn gpu_processes(&self) -> BTreeMap<u32, u64> {
        BTreeMap::from([(self.pid, 1 << 30)])
    }

    fn terminate(&mut self) {
        if !matches!(self.play, Play::Deaf) {
            self.signal.send_replace("TERM");
        }
    }

    fn kill(&mut self) {
        self.signal.send_replace("KILL");
    }

    fn exited(&mut self) -> BoxFuture<'_, i32> {
        async {
            let mut signal = self.signal.subscribe();
            let ended = async {
                match self.play {
                    Play::Ends(seconds, code) => {
                        tokio::time::sleep_until(self.started + Duration::from_secs(seconds)).await;
                        code
                    }
                    Play::Obeys | Play::Deaf => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                heard = signal.wait_for(|signal| !signal.is_empty()) => match *heard.unwrap() {
                    "KILL" => KILLED,
                    _ => TERMINATED,
                },
                code = ended => code,
            }
        }
        .boxed()
    }
}

struct Fixture {
    world: World,
    folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Behaviours)) -> Self {
        let start: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let world = World::new(Clock::starting_at(start, 0), 7);
        let folder = tempfile::tempdir().unwrap();
        let mut behaviours = Behaviours::usual(Arc::new(Actors), folder.path());
        change(&mut behaviours);
        add_offerings(&world, 2);
        let tasks = behaviours.start(&world);
        Self { world, folder, _tasks: tasks }
    }

    /// A node of two slices of one GPU.
    fn node(&self, name: &str) {
        let spot = Offering::whole("g5.xlarge", "us-east-2a", Purchase::Spot, 4_000).sliced(1, 2);
        let spec = NodeSpec::new(name, &format!("i-{name}"), &spot);
        spec.below(self.folder.path()).of_pool("gpu").add(&self.world);
    }

    fn put(&self, resource: Resource, object: Value) {
        self.world.update(|state| state.cluster.put(resource, object));
    }

    fn job(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut job = json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "template": { "metadata": { "annotations": {} }, "spec": pod_spec() } },
        });
        job["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        change(&mut job);
        let caller = Caller::named("tester");
        self.world.update(|state| state.cluster.create(&caller, resource::JOB, job)).unwrap();
    }

    fn list(&self, resource: Resource) -> Vec<Value> {
        self.world.read(|state| state.cluster.list(resource).map(|one| Value::clone(one)).collect())
    }

    fn pods(&self) -> Vec<Value> {
        self.list(resource::POD)
    }

    fn find(&self, resource: Resource, name: &str) -> Option<Value> {
        self.list(resource).into_iter().find(|object| object::name(object) == name)
    }

    fn job_status(&self, name: &str) -> Value {
        self.find(resource::JOB, name).unwrap()["status"].clone()
    }

    fn evict(&self, pod: &str) -> Result<(), u16> {
        let target = Target::in_namespace(resource::POD, "default", pod);
        let (caller, options) = (Caller::named("tester"), DeleteOptions::default());
        let evicted = self.world.update(|state| state.cluster.evict(&caller, &target, &options));
        evicted.map_err(|refusal| refusal.code)
    }

    fn announce(&self, instance: &str) {
        self.world.update(|state| {
            let at = state.cluster.now();
            let time = at + jiff::SignedDuration::from_secs(120);
            let action = NoticeAction::Terminate;
            state.instances.announce(instance, Notice { action, at, time, imds_from: None });
        });
    }

    fn instance(&self, id: &str) -> InstanceState {
        self.world.read(|state| state.instances.get(id).unwrap().state)
    }
}

fn pod_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 20,
        "containers": [{
            "name": "main", "image": "train",
            "resources": { "limits": { "nvidia.com/gpu": "1" } },
        }],
    })
}

fn pod(name: &str) -> Value {
    let labels = json!({ "app": name });
    json!({
        "metadata": { "name": name, "namespace": "default", "labels": labels },
        "spec": pod_spec(),
    })
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn phase(pod: &Value) -> &str {
    object::text(pod, "/status/phase")
}

#[tokio::test(start_paused = true)]
async fn two_sharers_get_slices_of_one_gpu_and_a_third_waits() {
    let fixture = Fixture::with(|behaviours| behaviours.karpenter = None);
    fixture.node("gpu-1");
    for name in ["a", "b", "c"] {
        fixture.put(resource::POD, pod(name));
    }
    seconds(5).await;
    let phases: Vec<_> = fixture.pods().iter().map(|pod| phase(pod).to_owned()).collect();
    assert_eq!(phases, ["Running", "Running", "Pending"]);
    fixture.world.read(|state| {
        let machine = state.machines.get("gpu-1").unwrap();
        let uuid = &machine.gpus[0].uuid;
        let devices: Vec<_> =
            machine.assignments.iter().flat_map(|given| given.devices.clone()).collect();
        assert_eq!(devices, [format!("{uuid}::0"), format!("{uuid}::1")]);
        assert!(machine.processes.values().all(|process| process.gpu == *uuid));
        let pid = machine.processes.keys().next().unwrap();
        let group =
            std::fs::read_to_string(machine.root.join(format!("proc/{pid}/cgroup"))).unwrap();
        assert!(group.starts_with("0::/kubepods.slice/"), "{group}");
        assert!(
            machine
                .root
                .join("sys/fs/cgroup")
                .join(group[4..].trim())
                .join("cgroup.procs")
                .exists()
        );
    });
    let waiting = fixture.find(resource::POD, "c").unwrap();
    assert_eq!(object::condition(&waiting, "PodScheduled"), "False");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_obeys_ends_at_once_and_a_deaf_one_at_its_grace() {
    let fixture = Fixture::with(|behaviours| behaviours.karpenter = None);
    fixture.node("gpu-1");
    let mut deaf = pod("deaf");
    deaf["metadata"]["annotations"] = json!({ "plays": "deaf" });
    fixture.put(resource::POD, pod("obeys"));
    fixture.put(resource::POD, deaf);
    seconds(5).await;
    fixture.evict("obeys").unwrap();
    fixture.evict("deaf").unwrap();
    seconds(2).await;
    assert_eq!(fixture.pods().len(), 1);
    seconds(17).await;
    assert_eq!(phase(&fixture.pods()[0]), "Running");
    seconds(3).await;
    assert!(fixture.pods().is_empty());
    fixture.world.read(|state| {
        let machine = state.machines.get("gpu-1").unwrap();
        assert!(machine.processes.is_empty() && machine.assignments.is_empty());
    });
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_is_kept_by_the_kubelet() {
    let fixture = Fixture::with(|behaviours| behaviours.karpenter = None);
    fixture.node("gpu-1");
    let mut deaf = pod("deaf");
    deaf["metadata"]["annotations"] = json!({ "plays": "deaf" });
    fixture.put(resource::POD, deaf);
    seconds(5).await;
    fixture.evict("deaf").unwrap();
    seconds(2).await;
    let target = Target::in_namespace(resource::POD, "default", "deaf");
    let options = DeleteOptions::default().with_grace(Duration::from_secs(3));
    let caller = Caller::named("tester");
    fixture.world.update(|state| state.cluster.delete(&caller, &target, &options)).unwrap();
    seconds(5).await;
    assert!(fixture.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_job_is_complete_when_its_pod_succeeded() {
    let fixture = Fixture::new();
    fixture.node("gpu-1");
    fixture.job("train", |job| {
        job["spec"]["template"]["metadata"]["annotations"]["plays"] = json!("succeeds");
    });
    seconds(30).await;
    let status = fixture.job_status("train");
    assert_eq!((&status["succeeded"], &status["active"]), (&json!(1), &Value::Null));
    assert_eq!(
        object::condition(&fixture.find(resource::JOB, "train").unwrap(), "Complete"),
        "True"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_pod_is_replaced_under_never_and_started_again_under_on_failure() {
    let fixture = Fixture::new();
    fixture.node("gpu-1");
    let fails = |policy: &'static str| {
        move |job: &mut Value| {
            job["spec"]["template"]["metadata"]["annotations"]["plays"] = json!("fails once");
            job["spec"]["template"]["spec"]["restartPolicy"] = json!(policy);
        }
    };
    fixture.job("again", fails("OnFailure"));
    fixture.job("anew", fails("Never"));
    seconds(16).await;
    let of = |job: &str| {
        let own = |pod: &Value| object::label(pod, "job-name") == job;
        fixture.pods().into_iter().filter(own).collect::<Vec<_>>()
    };
    assert_eq!(of("anew").len(), 2);
    assert_eq!(fixture.job_status("anew")["failed"], 1);
    seconds(15).await;
    assert_eq!(of("again").len(), 1);
    let restarts = "/status/containerStatuses/0/restartCount";
    assert_eq!(object::number(&of("again")[0], restarts), Some(1));
    assert_eq!(fixture.job_status("again")["succeeded"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_too_often_has_failed() {
    let fixture = Fixture::new();
    fixture.node("gpu-1");
    fixture.job("train", |job| {
        job["spec"]["template"]["metadata"]["annotations"]["plays"] = json!("fails");
        job["spec"]["backoffLimit"] = json!(1);
    });
    seconds(60).await;
    let job = fixture.find(resource::JOB, "train").unwrap();
    assert_eq!(object::condition(&job, "Failed"), "True");
    assert_eq!(fixture.pods().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_failure_policy_the_successor_comes_while_the_old_pod_ends() {
    let fixture = Fixture::new();
    fixture.node("gpu-1");
    fixture.job("train", |job| {
        job["spec"]["template"]["metadata"]["annotations"]["plays"] = json!("deaf");
    });
    seconds(5).await;
    fixture.evict(object::name(&fixture.pods()[0])).unwrap();
    seconds(3).await;
    assert_eq!(fixture.pods().len(), 2);
    assert_eq!(fixture.job_status("train")["failed"], 1);
}

#[tokio::test(start_paused = true)]
async fn with_a_failure_policy_an_evicted_pod_counts_for_nothing_and_is_replaced_when_it_ended() {
    let fixture = Fixture::new();
    fixture.node("gpu-1");
    fixture.job("train", |job| {
        job["spec"]["podFailurePolicy"] = json!({ "rules": [{
            "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }],
        }] });
        job["spec"]["template"]["metadata"]["annotations"]["plays"] = json!("deaf");
    });
    seconds(5).await;
    let first = object::name(&fixture.pods()[0]).to_owned();
    fixture.evict(&first).unwrap();
    seconds(3).await;
    assert_eq!(fixture.pods().len(), 1, "not while the old one may still run");
    seconds(22).await;
    let pods = fixture.pods();
    assert!(pods.len() == 1 && object::name(&pods[0]) != first);
    assert!(fixture.job_status("train")["failed"].is_null());
}

#[tokio::test(start_paused = true)]
async fn a_budget_counts_healthy_pods() {
    let fixture = Fixture::with(|behaviours| behaviours.karpenter = None);
    fixture.node("gpu-1");
    for name in ["a", "b"] {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!({ "app": "x" });
        fixture.put(resource::POD, pod);
    }
    let selector = json!({ "matchLabels": { "app": "x" } });
    fixture.put(
        resource::BUDGET,
        json!({
            "metadata": { "name": "x", "namespace": "default" },
            "spec": { "minAvailable": 1, "selector": selector },
        }),
    );
    seconds(5).await;
    fixture.evict("a").unwrap();
    assert_eq!(fixture.evict("b"), Err(429));
    seconds(5).await;
    let budget = fixture.find(resource::BUDGET, "x").unwrap();
    assert_eq!(budget["status"]["expectedPods"], 1);
}

fn agents() -> Value {
    json!({
        "metadata": { "name": "agent", "namespace": "lifeboat-system" },
        "spec": { "template": {
            "metadata": { "labels": { "app": "agent" } },
            "spec": {
                "priorityClassName": "system-node-critical", "terminationGracePeriodSeconds": 120,
                "containers": [{ "name": "agent", "image": "agent" }],
            },
        } },
    })
}

#[tokio::test(start_paused = true)]
async fn karpenter_waits_for_held_pods_then_the_agent_and_only_then_ends_the_instance() {
    let fixture = Fixture::new();
    fixture.put(resource::DAEMON_SET, agents());
    fixture.node("gpu-1");
    let mut held = pod("held");
    held["metadata"]["annotations"] = json!({ "karpenter.sh/do-not-disrupt": "true" });
    fixture.put(resource::POD, held);
    fixture.put(resource::POD, pod("free"));
    seconds(5).await;
    assert_eq!(fixture.pods().len(), 3);
    fixture.announce("i-gpu-1");
    seconds(4).await;
    let node = || fixture.find(resource::NODE, "gpu-1");
    assert!(node().unwrap()["spec"]["taints"].is_null());
    seconds(2).await;
    assert_eq!(node().unwrap()["spec"]["taints"][0]["key"], "karpenter.sh/disrupted");
    seconds(20).await;
    let names: Vec<_> = fixture.pods().iter().map(|pod| object::name(pod).to_owned()).collect();
    assert_eq!(names[0], "held", "and the agent's pod, not the free one");
    assert_eq!((names.len(), fixture.instance("i-gpu-1")), (2, InstanceState::Running));
    fixture.evict("held").unwrap();
    seconds(8).await;
    assert!(fixture.pods().is_empty());
    assert_eq!(fixture.instance("i-gpu-1"), InstanceState::Terminated);
    assert!(node().is_none() && fixture.list(resource::NODE_CLAIM).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_termination_timestamp_ends_a_held_pod_its_grace_before() {
    let fixture = Fixture::new();
    fixture.node("gpu-1");
    let mut held = pod("held");
    held["metadata"]["annotations"] =
        json!({ "karpenter.sh/do-not-disrupt": "true", "plays": "deaf" });
    fixture.put(resource::POD, held);
    seconds(5).await;
    let claim = Target::in_cluster(resource::NODE_CLAIM, "gpu-gpu-1");
    let caller = Caller::named("tester");
    fixture.world.update(|state| {
        let by = state.cluster.now() + jiff::SignedDuration::from_secs(60);
        state
            .cluster
            .edit(&caller, (&claim, Door::Back), |claim| {
                let stamp = "karpenter.sh/nodeclaim-termination-timestamp";
                claim["metadata"]["annotations"] = json!({ stamp: object::second(by) });
            })
            .unwrap();
        state.cluster.delete(&caller, &claim, &DeleteOptions::default()).unwrap();
    });
    seconds(38).await;
    assert!(fixture.pods()[0]["metadata"]["deletionTimestamp"].is_null());
    seconds(4).await;
    assert!(fixture.pods()[0]["metadata"]["deletionTimestamp"].is_string());
    seconds(22).await;
    assert!(fixture.pods().is_empty());
}

fn claim(zone: &str) -> Value {
    let class = json!({ "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu" });
    json!({
        "metadata": { "name": "ours", "labels": { "karpenter.sh/nodepool": "gpu" } },
        "spec": {
            "nodeClassRef": class, "requirements": [
                { "key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone] },
                { "key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"] },
            ],
            "resources": { "requests": { "nvidia.com/gpu": "1" } },
        },
    })
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_others_is_launched_and_takes_waiting_pods() {
    let fixture = Fixture::new();
    fixture.put(resource::NODE_CLAIM, claim("us-east-2b"));
    fixture.put(resource::POD, pod("a"));
    seconds(45).await;
    let claim = fixture.find(resource::NODE_CLAIM, "ours").unwrap();
    assert_eq!(object::condition(&claim, "Ready"), "True");
    let node = fixture.find(resource::NODE, object::text(&claim, "/status/nodeName")).unwrap();
    assert_eq!(object::label(&node, "topology.kubernetes.io/zone"), "us-east-2b");
    assert_eq!(node["status"]["allocatable"]["nvidia.com/gpu"], "2");
    assert_eq!(phase(&fixture.pods()[0]), "Running");
    assert_eq!(fixture.list(resource::NODE_CLAIM).len(), 1, "the claim under way was counted");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_ec2_refuses_vanishes() {
    let fixture = Fixture::new();
    fixture.world.update(|state| {
        for instance_type in ["g5.xlarge", "g6.xlarge"] {
            state.offerings.sell_out(instance_type, "us-east-2b", Purchase::Spot);
        }
    });
    fixture.put(resource::NODE_CLAIM, claim("us-east-2b"));
    seconds(5).await;
    assert!(fixture.list(resource::NODE_CLAIM).is_empty());
    assert_eq!(fixture.list(resource::EVENT)[0]["reason"], "InsufficientCapacityError");
}

#[tokio::test(start_paused = true)]
async fn karpenter_buys_a_node_for_a_pod_that_fits_nowhere() {
    let fixture = Fixture::new();
    add_pool(
        &fixture.world,
        "gpu",
        &[json!({ "key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot"] })],
    );
    fixture.put(resource::POD, pod("a"));
    seconds(40).await;
    assert_eq!(phase(&fixture.pods()[0]), "Running");
    let claims = fixture.list(resource::NODE_CLAIM);
    assert_eq!(claims.len(), 1);
    assert_eq!(object::label(&claims[0], "karpenter.sh/nodepool"), "gpu");
}

#[tokio::test(start_paused = true)]
async fn without_an_overlay_karpenter_buys_a_node_for_each_sliced_pod() {
    for (overlay, expected) in [(false, 2), (true, 1)] {
        let fixture = Fixture::new();
        add_pool(&fixture.world, "gpu", &[]);
        if overlay {
            fixture.put(
                resource::NODE_OVERLAY,
                json!({
                    "metadata": { "name": "slices" },
                    "spec": { "requirements": [], "capacity": { "nvidia.com/gpu": "2" } },
                }),
            );
        }
        fixture.put(resource::POD, pod("a"));
        fixture.put(resource::POD, pod("b"));
        seconds(5).await;
        assert_eq!(fixture.list(resource::NODE_CLAIM).len(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_goes_at_its_hour_and_its_pods_without_a_word() {
    let fixture = Fixture::with(|behaviours| behaviours.karpenter = None);
    fixture.node("gpu-1");
    fixture.job("train", |job| {
        job["spec"]["template"]["spec"]["restartPolicy"] = json!("OnFailure");
    });
    seconds(5).await;
    let first = object::name(&fixture.pods()[0]).to_owned();
    fixture.announce("i-gpu-1");
    seconds(119).await;
    assert_eq!(fixture.instance("i-gpu-1"), InstanceState::Running);
    seconds(3).await;
    assert_eq!(fixture.instance("i-gpu-1"), InstanceState::Terminated);
    assert_eq!(phase(&fixture.pods()[0]), "Running", "nobody says that it ended");
    seconds(40).await;
    let node = fixture.find(resource::NODE, "gpu-1").unwrap();
    assert_eq!(object::condition(&node, "Ready"), "Unknown");
    let claim = Target::in_cluster(resource::NODE, "gpu-1");
    fixture
        .world
        .update(|state| {
            state.cluster.edit(&Caller::named("tester"), (&claim, Door::Back), |node| {
                node["metadata"]["finalizers"] = json!([]);
            })
        })
        .unwrap();
    seconds(60).await;
    assert!(fixture.find(resource::NODE, "gpu-1").is_none());
    let pods = fixture.pods();
    assert!(pods.len() == 1 && object::name(&pods[0]) != first);
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_instance_is_gone_is_let_go_by_karpenter() {
    let fixture = Fixture::with(|behaviours| {
        behaviours.karpenter.as_mut().unwrap().provisions = Provisions::OnlyClaims;
    });
    fixture.node("gpu-1");
    let mut held = pod("held");
    held["metadata"]["annotations"] =
        json!({ "karpenter.sh/do-not-disrupt": "true", "plays": "deaf" });
    fixture.put(resource::POD, held);
    seconds(5).await;
    fixture.announce("i-gpu-1");
    seconds(300).await;
    assert!(
        fixture.list(resource::NODE).is_empty() && fixture.list(resource::NODE_CLAIM).is_empty()
    );
    assert!(fixture.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_avoids_a_soft_taint_and_a_cordon() {
    let fixture = Fixture::with(|behaviours| behaviours.karpenter = None);
    fixture.node("gpu-1");
    fixture.node("gpu-2");
    let edit = |name: &str, change: fn(&mut Value)| {
        let node = Target::in_cluster(resource::NODE, name);
        let caller = Caller::named("tester");
        fixture
            .world
            .update(|state| state.cluster.edit(&caller, (&node, Door::Back), change))
            .unwrap();
    };
    edit("gpu-1", |node| {
        let taint = json!({ "key": "lifeboat.dev/at-risk", "effect": "PreferNoSchedule" });
        node["spec"]["taints"] = json!([taint]);
    });
    fixture.put(resource::POD, pod("a"));
    seconds(5).await;
    assert_eq!(fixture.pods()[0]["spec"]["nodeName"], "gpu-2");
    edit("gpu-2", |node| node["spec"]["unschedulable"] = json!(true));
    fixture.put(resource::POD, pod("b"));
    seconds(5).await;
    assert_eq!(fixture.pods()[1]["spec"]["nodeName"], "gpu-1");
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_driver_is_away_waits_and_a_frozen_one_hears_nothing() {
    let fixture = Fixture::with(|behaviours| behaviours.karpenter = None);
    fixture.node("gpu-1");
    let mut waits = pod("waits");
    waits["spec"]["volumes"] = json!([{ "name": "boat", "csi": { "driver": "lifeboat.dev" } }]);
    fixture.put(resource::POD, waits);
    fixture.put(resource::POD, pod("frozen"));
    seconds(20).await;
    assert_eq!(phase(&fixture.find(resource::POD, "waits").unwrap()), "Pending");
    let frozen = fixture.find(resource::POD, "frozen").unwrap();
    let group = object::uid(&frozen).replace('-', "_");
    let folder = fixture.folder.path().join("gpu-1/sys/fs/cgroup/kubepods.slice");
    let folder = folder.join("kubepods-burstable.slice");
    let freeze = folder.join(format!("kubepods-burstable-pod{group}.slice/cgroup.freeze"));
    std::fs::write(&freeze, "1").unwrap();
    fixture.evict("frozen").unwrap();
    seconds(10).await;
    assert!(fixture.find(resource::POD, "frozen").is_some());
    std::fs::write(&freeze, "0").unwrap();
    seconds(2).await;
    assert!(fixture.find(resource::POD, "frozen").is_none());
}

#[tokio::test(start_paused = true)]
async fn one_seed_has_one_history() {
    let mut histories = Vec::new();
    for _ in 0..2 {
        let fixture = Fixture::new();
        add_pool(&fixture.world, "gpu", &[]);
        fixture.put(resource::DAEMON_SET, agents());
        fixture.node("gpu-1");
        for name in ["x", "y", "z"] {
            fixture.job(name, |_| ());
        }
        seconds(20).await;
        fixture.announce("i-gpu-1");
        seconds(200).await;
        let writes = fixture.world.audit(|audit| audit.writes().to_vec());
        assert!(writes.len() > 50);
        histories.push(writes);
    }
    assert_eq!(histories[0], histories[1]);
}

//! The whole controller in virtual time, over the simulators. The agent's part is played by the
//! test: it writes into the record what an agent would.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat::adapters::cluster::Cluster;
use lifeboat::adapters::cluster::Slots;
use lifeboat::adapters::cluster::interruptions;
use lifeboat::clock::Clock;
use lifeboat::config::Config;
use lifeboat::config::Program;
use lifeboat::config::Sources;
use lifeboat::crd::node_interruption::Save;
use lifeboat::crd::node_interruption::SaveState;
use lifeboat::crd::node_interruption::Workload;
use lifeboat::crd::workload_checkpoint::name_of;
use lifeboat::shutdown::Shutdown;
use lifeboat::wiring;
use lifeboat::wiring::ControllerClients;
use lifeboat_chaos::faults::Fault;
use lifeboat_chaos::faults::FaultKind;
use lifeboat_chaos::faults::Faults;
use lifeboat_chaos::faults::Plan;
use lifeboat_chaos::faults::WireName;
use lifeboat_chaos::serve;
use lifeboat_chaos::wire::kube::wire;
use lifeboat_chaos::wire::s3::s3;
use lifeboat_chaos::wire::sqs::sqs;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::build;
use lifeboat_chaos::world::build::NodeSpec;
use lifeboat_chaos::world::cluster::Caller;
use lifeboat_chaos::world::cluster::Target;
use lifeboat_chaos::world::cluster::delete::DeleteOptions;
use lifeboat_chaos::world::cluster::object::annotation;
use lifeboat_chaos::world::cluster::object::is_deleting;
use lifeboat_chaos::world::cluster::object::label;
use lifeboat_chaos::world::cluster::object::uid;
use lifeboat_chaos::world::cluster::resource::BUDGET;
use lifeboat_chaos::world::cluster::resource::CHECKPOINT;
use lifeboat_chaos::world::cluster::resource::EVENT;
use lifeboat_chaos::world::cluster::resource::INTERRUPTION;
use lifeboat_chaos::world::cluster::resource::NODE;
use lifeboat_chaos::world::cluster::resource::NODE_CLAIM;
use lifeboat_chaos::world::cluster::resource::POD;
use lifeboat_chaos::world::cluster::resource::Resource;
use lifeboat_chaos::world::cluster::resource::Scope;
use lifeboat_chaos::world::cluster::write::Door;
use lifeboat_chaos::world::instances::InstanceState;
use lifeboat_chaos::world::instances::NoticeAction;
use lifeboat_chaos::world::instances::Purchase;
use lifeboat_chaos::world::instances::events::EventKind;
use lifeboat_chaos::world::offerings::Offering;
use lifeboat_chaos::world::queue::PassageKind;
use lifeboat_chaos::world::queue::Redrive;
use lifeboat_chaos::world::queue::Settings;
use serde_json::Value;
use serde_json::json;
use tokio::task::JoinSet;

mod leaving;

const POOL: &str = "gpu-spot";
const INSTANCE: &str = "i-00000000000000001";
const OTHER: &str = "i-00000000000000002";
const QUEUE: &str = "lifeboat";
const SPOT: EventKind = EventKind::SpotInterruption(NoticeAction::Terminate);

struct Stage {
    world: World,
    faults: Faults,
    settings: BTreeMap<String, String>,
    controllers: BTreeMap<usize, JoinSet<()>>,
    /// The cluster around the controller: it ends with the stage.
    _around: JoinSet<()>,
}

impl Stage {
    /// One node with one protected pod that is held, and one replica of the controller.
    async fn usual() -> Self {
        let mut stage = Self::bare(&[]);
        stage.pod("train-0", "gpu-1");
        stage.start(0);
        stage.after(1).await;
        stage
    }

    fn bare(settings: &[(&str, &str)]) -> Self {
        let beginning: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let world = World::new(Clock::starting_at(beginning, 1_000), 7);
        let redrive = Redrive { dead_letter_queue: "dead".to_owned(), max_receives: 5 };
        world.update(|state| {
            state.queues.create("dead", Settings::default());
            state.queues.create(QUEUE, Settings { redrive: Some(redrive), ..Settings::default() });
        });
        build::add_offerings(&world, 1);
        let within =
            |key: &str, values: &[&str]| json!({"key": key, "operator": "In", "values": values});
        let requirements = [
            within("node.kubernetes.io/instance-type", &["g5.xlarge", "g6.xlarge"]),
            within("topology.kubernetes.io/zone", &["us-east-2a", "us-east-2b"]),
            within("karpenter.sh/capacity-type", &["spot"]),
        ];
        build::add_pool(&world, POOL, &requirements);
        let mut around = JoinSet::new();
        around.spawn(kubelet(world.clone()));
        around.spawn(karpenter(world.clone()));
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let faults = Faults::new(Plan::default(), 7);
        let settings = settings.collect();
        let stage = Self { world, faults, settings, controllers: BTreeMap::new(), _around: around };
        stage.node("gpu-1", INSTANCE);
        stage
    }

    fn node(&self, name: &str, instance: &str) {
        let offering = Offering::whole("g5.xlarge", "us-east-2a", Purchase::Spot, 4_000);
        NodeSpec::new(name, instance, &offering).of_pool(POOL).add(&self.world);
    }

    fn pod(&self, name: &str, node: &str) {
        self.pod_with(name, node, &json!({"karpenter.sh/do-not-disrupt": "true"}));
    }

    fn pod_with(&self, name: &str, node: &str, more: &Value) {
        let mut annotations = json!({
            "lifeboat.dev/checkpoint": "sdk",
            "lifeboat.dev/job-key": name,
        });
        for (key, value) in more.as_object().unwrap() {
            annotations[key] = value.clone();
        }
        let ready = json!({"type": "Ready", "status": "True"});
        let pod = json!({
            "metadata": {
                "name": name, "namespace": "default",
                "labels": {"app": name}, "annotations": annotations,
            },
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 60, "restartPolicy": "Never",
                "containers": [{
                    "name": "trainer", "image": "t", "resources": {"limits": {"nvidia.com/gpu": "1"}},
                }],
            },
            "status": {
                "phase": "Running", "conditions": [ready],
                "containerStatuses": [{"name": "trainer", "state": {"running": {}}}],
            },
        });
        self.world.update(|state| state.cluster.put(POD, pod));
    }

    fn start(&mut self, number: usize) {
        let name = format!("lifeboat-controller-{number}");
        let config = self.config(&name);
        let kube = || {
            let wire = self.faults.before(WireName::Kube, &name, wire(&self.world, &name));
            serve::kube_client(&wire, "lifeboat-system")
        };
        let queue = self.faults.before(WireName::Sqs, &name, sqs(self.world.clone()));
        let bucket = self.faults.before(WireName::S3, &name, s3(self.world.clone()));
        let clients = ControllerClients {
            kube: kube(),
            first_aid: kube(),
            sqs: serve::sqs_client(&queue),
            store: Arc::new(serve::s3_store(&bucket, "checkpoints").unwrap()),
        };
        let clock = self.world.clock().clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            wiring::controller(config, clients, clock, Shutdown::new()).await.unwrap();
        });
        self.controllers.insert(number, task);
    }

    fn config(&self, name: &str) -> Config {
        let account = self.world.read(|state| state.instances.account().to_owned());
        let queue = format!("http://sqs.simulated/{account}/{QUEUE}");
        let usual = [
            ("cluster", "simulated"),
            ("region", serve::REGION),
            ("account", &account),
            ("queue.url", &queue),
            ("store.bucket", "checkpoints"),
            ("store.region", serve::REGION),
            ("lease.identity", name),
        ];
        let mut flags: Vec<(String, String)> =
            usual.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        flags.extend(self.settings.clone());
        Config::load(Program::Controller, &Sources { flags, ..Sources::default() }).unwrap()
    }

    async fn after(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    fn tell(&self, instance: &str, kind: EventKind) {
        self.world.publish(instance, kind, &[QUEUE]);
    }

    fn send(&self, body: &str) {
        let now = self.world.now();
        self.world.update(|state| state.queues.send(QUEUE, body, now)).unwrap();
    }

    fn event(&self, instance: &str) -> Value {
        let now = self.world.now();
        self.world.update(|state| state.instances.event(instance, SPOT, now))
    }

    fn fault(&self, kind: FaultKind, path: Option<&str>, seconds: u64) {
        let mut fault = Fault::new(WireName::Kube, kind);
        fault.path = path.map(str::to_owned);
        fault.until = Duration::from_secs(seconds);
        self.faults.add_from_now(fault);
    }

    /// Writes what the agent would: the state of this pod is stored.
    async fn durable(&self, pod: &str) {
        let pod = self.find(POD, pod).unwrap();
        let client = serve::kube_client(&wire(&self.world, "lifeboat-agent"), "default");
        let cluster = Cluster::routine(client, &Slots::new(4, 0));
        let save = Save {
            epoch: Some(1),
            bytes: Some(1 << 20),
            durable_at: Some(self.world.now()),
            ..Save::of(SaveState::Durable)
        };
        let part = Workload {
            namespace: "default".to_owned(),
            pod: pod["metadata"]["name"].as_str().unwrap().to_owned(),
            job_key: None,
            mode: Some("sdk".to_owned()),
            save: Some(save),
            insurance: None,
            slices: Some(Vec::new()),
            release: None,
            drain: None,
        };
        let instance = INSTANCE.parse().unwrap();
        interruptions::apply_workload(&cluster, &instance, "agent", (uid(&pod), &part))
            .await
            .unwrap();
    }

    fn find(&self, resource: Resource, name: &str) -> Option<Value> {
        let target = match resource.scope {
            Scope::Cluster => Target::in_cluster(resource, name),
            Scope::Namespace => Target::in_namespace(resource, "default", name),
        };
        self.world.read(|state| state.cluster.get(&target).map(|one| Value::clone(one)))
    }

    fn record(&self) -> Option<Value> {
        self.find(INTERRUPTION, INSTANCE)
    }

    fn phase(&self) -> String {
        self.record().unwrap()["status"]["phase"].as_str().unwrap_or_default().to_owned()
    }

    fn is_fenced(&self, node: &str) -> bool {
        let node = self.find(NODE, node).unwrap();
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let tainted = taints.iter().any(|taint| taint["key"] == "lifeboat.dev/interrupted");
        tainted && node["spec"]["unschedulable"] == true
    }

    fn claims(&self) -> Vec<Value> {
        self.world.read(|state| {
            let claims = state.cluster.list(NODE_CLAIM).map(|claim| Value::clone(claim));
            claims.filter(|claim| !label(claim, "lifeboat.dev/replaces").is_empty()).collect()
        })
    }

    /// What happened to messages, without what the test itself sent.
    fn passages(&self, kind: PassageKind) -> Vec<Timestamp> {
        self.world.read(|state| {
            let all = state.queues.history(QUEUE).iter().filter(|passage| passage.kind == kind);
            all.map(|passage| passage.at).collect()
        })
    }

    /// When writes of this kind took place, oldest first: `verb plural name`.
    fn writes(&self) -> Vec<String> {
        self.world.read(|state| {
            let ours = |write: &&lifeboat_chaos::world::cluster::audit::Write| {
                write.caller.agent.starts_with("lifeboat-controller")
            };
            let writes = state.cluster.audit.writes().iter().filter(ours);
            writes
                .map(|write| {
                    let target = &write.target;
                    format!("{} {} {}", write.verb, target.resource.plural, target.name)
                })
                .collect()
        })
    }

    fn place_of(&self, what: &str) -> usize {
        let writes = self.writes();
        let place = writes.iter().position(|write| write == what);
        place.unwrap_or_else(|| panic!("no `{what}` in {writes:#?}"))
    }
}

/// Ends what is being deleted, a second after it was asked to.
async fn kubelet(world: World) {
    let mut seen: BTreeMap<String, Timestamp> = BTreeMap::new();
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = world.now();
        let going: Vec<Value> = world.read(|state| {
            let pods = state.cluster.list(POD).filter(|pod| is_deleting(pod));
            pods.map(|pod| Value::clone(pod)).collect()
        });
        for pod in going {
            let since = *seen.entry(uid(&pod).to_owned()).or_insert(now);
            if now.duration_since(since).as_secs() < 1 {
                continue;
            }
            let target = Target::of(POD, &pod);
            let options =
                DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::of_uid(uid(&pod)) };
            world.update(|state| {
                drop(state.cluster.delete(&Caller::named("kubelet"), &target, &options));
            });
        }
    }
}

/// Launches the claims of others.
async fn karpenter(world: World) {
    use lifeboat_chaos::world::karpenter;
    let settings = karpenter::Settings {
        hears: karpenter::Hears::Nothing,
        provisions: karpenter::Provisions::OnlyClaims,
        ..karpenter::Settings::new(PathBuf::from("nowhere"))
    };
    karpenter::run(world, settings).await;
}

#[tokio::test(start_paused = true)]
async fn a_notice_is_fenced_and_recorded_and_only_then_deleted() {
    let stage = Stage::usual().await;
    stage.tell(INSTANCE, SPOT);
    stage.after(1).await;
    assert!(stage.is_fenced("gpu-1"));
    let record = stage.record().unwrap();
    let heard: Timestamp =
        record["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
    let deleted = stage.passages(PassageKind::Deleted);
    assert_eq!(deleted.len(), 1);
    assert!(deleted[0] >= heard);
    assert_eq!(record["spec"]["node"], "gpu-1");
    assert_eq!(record["spec"]["zone"], "us-east-2a");
}

#[tokio::test(start_paused = true)]
async fn a_replacement_is_asked_for_before_the_first_eviction_and_not_in_the_same_pool() {
    let stage = Stage::usual().await;
    stage.tell(INSTANCE, SPOT);
    stage.after(3).await;
    assert!(stage.find(POD, "train-0").is_some(), "not yet durable");
    stage.durable("train-0").await;
    stage.after(5).await;
    assert!(stage.find(POD, "train-0").is_none());
    let claim = format!("create nodeclaims {INSTANCE}-1");
    let fence = stage.place_of("patch nodes gpu-1");
    // The simulated server accounts for an eviction by what it does.
    let evict = stage.place_of("delete pods train-0");
    assert!(fence < evict && stage.place_of(&claim) < evict);
    let claims = stage.claims();
    let text = claims[0]["spec"]["requirements"].to_string();
    assert!(!(text.contains("g5.xlarge") && text.contains("us-east-2a")), "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_interruption_closes_when_its_instance_is_gone_and_is_kept_in_the_bucket() {
    let stage = Stage::usual().await;
    stage.tell(INSTANCE, SPOT);
    stage.after(2).await;
    stage.durable("train-0").await;
    stage.after(10).await;
    stage.tell(INSTANCE, EventKind::StateChange(InstanceState::Terminated));
    stage.world.update(|state| {
        let options = DeleteOptions::default();
        let caller = Caller::named("test");
        let node = Target::in_cluster(NODE, "gpu-1");
        drop(state.cluster.edit(&caller, (&node, Door::Back), |node| {
            node["metadata"]["finalizers"] = json!([]);
        }));
        drop(state.cluster.delete(&caller, &node, &options));
    });
    stage.after(150).await;
    assert_eq!(stage.phase(), "Saved", "{}", stage.record().unwrap());
    let kept = stage.world.read(|state| state.bucket.keys("simulated/_records/"));
    assert_eq!(kept, [format!("simulated/_records/{INSTANCE}.json")]);
    let index = stage.world.read(|state| state.cluster.list(CHECKPOINT).count());
    assert_eq!(index, 1, "the proof stands in the index of the job key");
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_honored_until_the_last_moment() {
    let stage = Stage::usual().await;
    let budget = json!({
        "metadata": {"name": "train", "namespace": "default"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "train-0"}}},
    });
    stage.world.update(|state| state.cluster.put(BUDGET, budget));
    stage.tell(INSTANCE, SPOT);
    stage.after(2).await;
    stage.durable("train-0").await;
    stage.after(60).await;
    assert!(stage.find(POD, "train-0").is_some(), "the budget holds it");
    stage.after(50).await;
    assert!(stage.find(POD, "train-0").is_none());
    let condition = stage.place_of("patch pods train-0");
    assert!(condition < stage.place_of("delete pods train-0"));
    let record = stage.record().unwrap();
    let drains: Vec<&Value> = record["status"]["workloads"].as_object().unwrap().values().collect();
    assert_eq!(drains[0]["drain"]["by"], "Delete");
    assert_eq!(drains[0]["drain"]["reason"], "BudgetOverruled");
}

#[tokio::test(start_paused = true)]
async fn what_is_told_often_and_to_two_replicas_is_one_interruption() {
    let mut stage = Stage::usual().await;
    stage.start(1);
    stage.after(1).await;
    for _ in 0..5 {
        stage.tell(INSTANCE, SPOT);
    }
    stage.after(5).await;
    assert_eq!(stage.passages(PassageKind::Deleted).len(), 5);
    assert_eq!(stage.claims().len(), 1);
    let records = stage.world.read(|state| state.cluster.list(INTERRUPTION).count());
    assert_eq!(records, 1);
    let signals = stage.record().unwrap()["spec"]["signals"].as_object().unwrap().len();
    assert_eq!(signals, 1);
}

#[tokio::test(start_paused = true)]
async fn when_the_holder_of_the_lease_dies_the_other_goes_on() {
    let mut stage = Stage::usual().await;
    stage.start(1);
    stage.after(10).await;
    stage.tell(INSTANCE, SPOT);
    stage.after(2).await;
    stage.controllers.remove(&0);
    stage.durable("train-0").await;
    stage.after(30).await;
    assert!(stage.find(POD, "train-0").is_none());
    assert_eq!(stage.claims().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_nobody_can_read_is_left_to_the_redrive() {
    let stage = Stage::usual().await;
    stage.send("not an event");
    stage.after(400).await;
    assert_eq!(stage.passages(PassageKind::Deleted), []);
    assert_eq!(stage.passages(PassageKind::Redriven).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_message_is_deleted_at_once_and_does_nothing() {
    let stage = Stage::usual().await;
    let mut event = stage.event(INSTANCE);
    event["account"] = json!("999999999999");
    stage.send(&event.to_string());
    stage.after(1).await;
    assert_eq!(stage.passages(PassageKind::Deleted).len(), 1);
    assert!(!stage.is_fenced("gpu-1"));
    assert_eq!(stage.record(), None);
}

#[tokio::test(start_paused = true)]
async fn a_warning_for_a_stranger_is_kept_for_two_visibilities() {
    let stage = Stage::usual().await;
    let mut event = stage.event(INSTANCE);
    event["detail"]["instance-id"] = json!("i-0abc0abc0abc0abc0");
    stage.send(&event.to_string());
    stage.after(55).await;
    assert_eq!(stage.passages(PassageKind::Deleted), []);
    stage.after(40).await;
    assert_eq!(stage.passages(PassageKind::Deleted).len(), 1);
    assert_eq!(stage.passages(PassageKind::Received).len(), 3);
    event["detail-type"] = json!("EC2 Instance Rebalance Recommendation");
    stage.send(&event.to_string());
    stage.after(1).await;
    assert_eq!(stage.passages(PassageKind::Deleted).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_is_kept_while_the_api_server_is_away() {
    let stage = Stage::usual().await;
    stage.fault(FaultKind::Away, None, 60);
    stage.tell(INSTANCE, SPOT);
    stage.after(50).await;
    assert_eq!(stage.passages(PassageKind::Deleted), []);
    assert_eq!(stage.passages(PassageKind::Received).len(), 1, "it is held in hand");
    stage.after(25).await;
    assert!(stage.is_fenced("gpu-1"));
    assert!(stage.record().is_some());
    assert_eq!(stage.passages(PassageKind::Deleted).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_slow_node_delays_neither_another_nor_the_intake() {
    let stage = Stage::usual().await;
    stage.node("gpu-2", OTHER);
    stage.after(1).await;
    stage.fault(FaultKind::Hang, Some("/nodes/gpu-1"), 300);
    stage.tell(INSTANCE, SPOT);
    stage.after(1).await;
    stage.tell(OTHER, SPOT);
    stage.after(1).await;
    assert!(!stage.is_fenced("gpu-1"));
    assert!(stage.is_fenced("gpu-2"));
    assert!(stage.find(INTERRUPTION, OTHER).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_an_agent_made_is_given_first_aid() {
    let stage = Stage::usual().await;
    let now = stage.world.now();
    let record = json!({
        "metadata": {"name": INSTANCE},
        "spec": {"node": "gpu-1", "zone": "us-east-2a", "signals": {"imds-spot-interruption": {
            "source": "imds", "kind": "spot-interruption", "action": "terminate",
            "time": now.to_string(), "heardAt": now.to_string(), "heardBy": "agent",
        }}},
    });
    stage.world.update(|state| state.cluster.put(INTERRUPTION, record));
    stage.after(1).await;
    assert!(stage.is_fenced("gpu-1"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_held_on_signal_is_held_at_once_with_our_mark() {
    let mut stage = Stage::bare(&[]);
    stage.pod_with("train-0", "gpu-1", &json!({"lifeboat.dev/hold": "on-signal"}));
    stage.start(0);
    stage.after(1).await;
    stage.tell(INSTANCE, SPOT);
    stage.after(1).await;
    let pod = stage.find(POD, "train-0").unwrap();
    assert_eq!(annotation(&pod, "karpenter.sh/do-not-disrupt"), "true");
    assert_eq!(annotation(&pod, "lifeboat.dev/held"), INSTANCE);
}

#[tokio::test(start_paused = true)]
async fn a_hold_whose_interruption_is_no_more_is_taken_off() {
    let mut stage = Stage::bare(&[]);
    let held = json!({"karpenter.sh/do-not-disrupt": "true", "lifeboat.dev/held": OTHER});
    stage.pod_with("train-0", "gpu-1", &held);
    stage.pod("train-1", "gpu-1");
    stage.start(0);
    stage.after(200).await;
    let pod = stage.find(POD, "train-0").unwrap();
    assert_eq!(annotation(&pod, "karpenter.sh/do-not-disrupt"), "");
    let other = stage.find(POD, "train-1").unwrap();
    assert_eq!(annotation(&other, "karpenter.sh/do-not-disrupt"), "true", "not ours");
}

#[tokio::test(start_paused = true)]
async fn observe_mode_writes_nothing_but_our_own_objects() {
    let mut stage = Stage::bare(&[("mode", "observe")]);
    stage.pod("train-0", "gpu-1");
    stage.start(0);
    stage.after(1).await;
    stage.tell(INSTANCE, SPOT);
    stage.after(130).await;
    assert!(!stage.is_fenced("gpu-1"));
    let ours = ["nodeinterruptions", "workloadcheckpoints", "leases", "events"];
    for write in stage.writes() {
        let plural = write.split(' ').nth(1).unwrap();
        assert!(ours.contains(&plural), "{write}");
    }
    let record = stage.record().unwrap();
    let conditions = record["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|one| one["type"] == "Withheld"), "{conditions:?}");
}

#[tokio::test(start_paused = true)]
async fn advice_marks_the_node_and_is_taken_back_when_it_lapses() {
    let mut stage = Stage::bare(&[("rebalance.lapse", "5m")]);
    stage.pod("train-0", "gpu-1");
    stage.start(0);
    stage.after(1).await;
    stage.tell(INSTANCE, EventKind::RebalanceRecommendation);
    stage.after(5).await;
    let node = stage.find(NODE, "gpu-1").unwrap();
    assert_eq!(node["spec"]["taints"][0]["key"], "lifeboat.dev/at-risk");
    assert_eq!(annotation(&node, "karpenter.sh/do-not-disrupt"), "true");
    assert_ne!(node["spec"]["unschedulable"], true);
    stage.after(320).await;
    let node = stage.find(NODE, "gpu-1").unwrap();
    assert_eq!(node["spec"]["taints"].as_array().map_or(0, Vec::len), 0);
    assert_eq!(annotation(&node, "karpenter.sh/do-not-disrupt"), "");
    assert!(stage.find(POD, "train-0").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_pause_stops_everything_but_recording() {
    let mut stage = Stage::bare(&[]);
    stage.pod("train-0", "gpu-1");
    stage.world.update(|state| {
        let namespace = json!({
            "metadata": {"name": "lifeboat-system", "annotations": {"lifeboat.dev/paused": "true"}},
        });
        state.cluster.put(lifeboat_chaos::world::cluster::resource::NAMESPACE, namespace);
    });
    stage.start(0);
    stage.after(1).await;
    stage.tell(INSTANCE, SPOT);
    stage.after(20).await;
    assert!(stage.record().is_some());
    assert!(!stage.is_fenced("gpu-1"));
    assert_eq!(stage.claims().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_pod_without_an_interruption_is_proven() {
    let stage = Stage::usual().await;
    let pod = stage.find(POD, "train-0").unwrap();
    stage.world.update(|state| {
        let target = Target::of(POD, &pod);
        drop(state.cluster.delete(&Caller::named("kubectl"), &target, &DeleteOptions::default()));
    });
    stage.after(100).await;
    let index = stage
        .world
        .read(|state| state.cluster.list(CHECKPOINT).next().map(|index| Value::clone(index)));
    let index = index.expect("an index with the proof");
    assert!(index["status"]["ended"][uid(&pod)]["proof"].is_string(), "{index}");
}

#[tokio::test(start_paused = true)]
async fn an_index_loses_its_oldest_pods_before_it_is_full() {
    let stage = Stage::usual().await;
    let ended = |number: i64| {
        let at = jiff::Timestamp::from_second(1_700_000_000 + number).unwrap();
        let ended = json!({"proof": "ContainersEnded", "at": at.to_string()});
        (format!("pod-{number:03}"), ended)
    };
    let ended: serde_json::Map<String, Value> = (0..300).map(ended).collect();
    let index = json!({
        "metadata": {"namespace": "default", "name": name_of("job")},
        "spec": {"jobKey": "job"},
        "status": {"ended": ended},
    });
    stage.world.update(|state| state.cluster.put(CHECKPOINT, index));
    stage.after(60).await;
    let index = stage
        .world
        .read(|state| state.cluster.list(CHECKPOINT).next().map(|index| Value::clone(index)));
    let index = index.unwrap();
    let left = index["status"]["ended"].as_object().unwrap();
    assert_eq!(left.len(), 256);
    assert_eq!(left.keys().next().unwrap(), "pod-044");
}

mod bodies {
    use lifeboat::adapters::eventbridge;
    use lifeboat::adapters::eventbridge::Home;
    use proptest::prelude::*;
    use serde_json::Value;
    use serde_json::json;

    fn home() -> Home {
        Home { region: "us-east-2".to_owned(), account: None }
    }

    fn scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,20}".prop_map(Value::from),
            "i-[0-9a-f]{8}".prop_map(Value::from),
        ]
    }

    fn any_json() -> impl Strategy<Value = Value> {
        scalar().prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z-]{1,12}", inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            drop(eventbridge::read(&bytes, &home(), jiff::Timestamp::UNIX_EPOCH));
        }

        #[test]
        fn no_json_in_an_event_makes_the_parser_panic(
            detail in any_json(), resources in any_json(), which in 0..5_usize,
        ) {
            let kinds = [
                ("aws.ec2", "EC2 Spot Instance Interruption Warning"),
                ("aws.ec2", "EC2 Instance Rebalance Recommendation"),
                ("aws.ec2", "EC2 Instance State-change Notification"),
                ("aws.ec2", "EC2 Capacity Reservation Instance Interruption Warning"),
                ("aws.health", "AWS Health Event"),
            ];
            let (source, detail_type) = kinds[which];
            let body = json!({
                "source": source, "detail-type": detail_type, "region": "us-east-2",
                "time": "1970-01-01T00:00:00Z", "resources": resources, "detail": detail,
            });
            drop(eventbridge::read(body.to_string().as_bytes(), &home(), jiff::Timestamp::UNIX_EPOCH));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn work_that_could_not_be_saved_is_told_once_by_whoever_leads_and_taken_back() {
    let mut stage = Stage::usual().await;
    let found = |stage: &Stage, fits: bool, at: &str| {
        let index = json!({
            "metadata": {"name": name_of("train-0"), "namespace": "default"},
            "spec": {"jobKey": "train-0"},
            "status": {"outlook": {
                "fits": fits, "pod": "train-0", "node": "gpu-1", "at": at, "bytes": 60_u64 << 30,
                "window": 115, "needed": 242, "bytesPerSecond": 312_500_000, "by": "baseline",
            }},
        });
        stage.world.update(|state| state.cluster.put(CHECKPOINT, index));
    };
    let told = |stage: &Stage| -> Vec<String> {
        stage.world.read(|state| {
            let events = state.cluster.list(EVENT).filter(|event| {
                event["involvedObject"]["kind"] == "Pod"
                    && event["involvedObject"]["name"] == "train-0"
            });
            events.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
        })
    };
    found(&stage, true, "2026-11-22T12:00:02Z");
    stage.after(60).await;
    assert_eq!(told(&stage), Vec::<String>::new(), "it was never amiss");
    found(&stage, false, "2026-11-22T12:01:00Z");
    stage.after(120).await;
    assert_eq!(told(&stage), ["AtRisk"]);
    // Another leader knows nothing of it, and says it again: it is the same Event.
    stage.controllers.remove(&0);
    stage.start(1);
    stage.after(120).await;
    assert_eq!(told(&stage), ["AtRisk"]);
    found(&stage, true, "2026-11-22T12:06:00Z");
    stage.after(60).await;
    assert_eq!(told(&stage), ["AtRisk", "SavableAgain"]);
}

//! Who plays in the demo: the world on loopback, and the programs as processes.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use lifeboat::clock::Clock;
use serde_json::Value;
use serde_json::json;
use tokio::process::Child;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::chronicle::Chronicle;
use crate::chronicle::Event;
use crate::chronicle::What;
use crate::demo::Options;
use crate::demo::STATE_BYTES;
use crate::demo::STEPS;
use crate::demo::logs;
use crate::processes::Processes;
use crate::programs;
use crate::scenario;
use crate::script::Line;
use crate::serve;
use crate::serve::Door;
use crate::serve::Served;
use crate::stage;
use crate::wire;
use crate::world::World;
use crate::world::behave::Behaviours;
use crate::world::build;
use crate::world::cluster::object;
use crate::world::instances::Purchase;
use crate::world::karpenter;
use crate::world::kubelet;
use crate::world::offerings::Offering;
use crate::world::runtime::Container;
use crate::world::runtime::Launch;
use crate::world::runtime::Runtime;
use crate::world::workloads::Diary;

/// The node that is taken.
pub(super) const NODE: &str = "gpu-1";
/// The trainers, as lines of a stage: two share a GPU, the third has one of its own. The second is
/// behind a budget that allows nothing, of a Job without failure policy, so that its successor is
/// made while it still ends, and takes its time to end.
pub(super) const TRAINERS: [(&str, &str); 3] = [
    ("train-a", "hold on-signal grace 60s"),
    ("train-b", "hold on-signal grace 30s pdb 0 no-failure-policy"),
    ("train-c", "hold on-signal grace 30s"),
];

/// The trainer that takes its time to end.
pub(super) const SLOW: &str = "train-b";
/// How long it takes: what is usual for a program that gives a GPU back.
const TEARDOWN: Duration = Duration::from_secs(3);

/// Whether the API server and the queue can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outage {
    /// From now on they cannot.
    Begins,
}

/// Everybody, and the world that they play in.
pub(super) struct Cast {
    /// The world.
    pub(super) world: World,
    /// The instance that is taken.
    pub(super) instance: String,
    chronicle: Arc<Mutex<Chronicle>>,
    options: Options,
    control_plane: Vec<Served>,
    _store: Arc<Served>,
    controllers: Vec<Child>,
    tasks: JoinSet<()>,
}

/// Where the agent of a node finds what it needs.
#[derive(Clone)]
struct Addresses {
    kube: String,
    store: String,
    metadata: Arc<Mutex<BTreeMap<String, Served>>>,
}

/// Runs the pods of the demo: each container with the command that belongs to it.
struct Players {
    processes: Processes,
    programs: PathBuf,
    logs: PathBuf,
    addresses: Addresses,
}

impl Cast {
    /// Sets the stage and starts everybody.
    pub(super) async fn new(
        options: &Options,
        (folder, logs): (&Path, &Path),
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(logs).context("no folder for the logs")?;
        let world = World::new(Clock::system(), 1);
        scenario::queues(&world);
        set_stage(&world, folder)?;
        let agents = serve::serve(wire::kube::wire(&world, "lifeboat-agent")).await?;
        let store = Arc::new(serve::serve(wire::s3::s3(world.clone())).await?);
        let metadata = Arc::new(Mutex::new(BTreeMap::new()));
        let addresses = Addresses { kube: agents.url(), store: store.url(), metadata };
        let diary = Diary::new(&world);
        let chronicle = Arc::new(Mutex::new(Chronicle::new(&world, &diary)));
        let mut tasks = JoinSet::new();
        tasks.spawn(crate::chronicle::follow(Arc::clone(&chronicle)));
        tasks.spawn(logs::follow(diary, logs.to_owned()));
        let players = Players {
            processes: Processes::new(logs),
            programs: options.programs.clone(),
            logs: logs.to_owned(),
            addresses: addresses.clone(),
        };
        let mut behaviours = behaviours(players, folder).start(&world);
        tasks.spawn(async move { while behaviours.join_next().await.is_some() {} });
        let instance = world.read(|state| {
            state.machines.get(NODE).map(|machine| machine.instance.clone()).unwrap_or_default()
        });
        let (options, control_plane) = (options.clone(), vec![agents]);
        let (controllers, _store) = (Vec::new(), store);
        let mut cast =
            Self { world, instance, chronicle, options, control_plane, _store, controllers, tasks };
        cast.start_controllers(&addresses, logs).await?;
        Ok(cast)
    }

    async fn start_controllers(
        &mut self,
        addresses: &Addresses,
        logs: &Path,
    ) -> anyhow::Result<()> {
        let queue = serve::serve(wire::sqs::sqs(self.world.clone())).await?;
        let account = self.world.read(|state| state.instances.account().to_owned());
        for number in 0..2 {
            let name = format!("lifeboat-controller-{number}");
            let server = serve::serve(wire::kube::wire(&self.world, &name)).await?;
            let mut environment = common(&server.url(), &addresses.store);
            environment.insert("LIFEBOAT_LEASE_IDENTITY", name.clone());
            environment.insert(
                "LIFEBOAT_QUEUE_URL",
                format!("{}/{account}/{}", queue.url(), programs::QUEUE),
            );
            environment.insert("LIFEBOAT_QUEUE_ENDPOINT", queue.url());
            let log = std::fs::File::create(logs.join(format!("{name}.log")))?;
            let program = self.options.programs.join("lifeboat");
            let child = Command::new(&program)
                .arg("controller")
                .envs(environment)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("{} was not started", program.display()))?;
            self.controllers.push(child);
            self.control_plane.push(server);
        }
        self.control_plane.push(queue);
        Ok(())
    }

    /// Everything that happened so far.
    pub(super) fn events(&self) -> Vec<Event> {
        let mut chronicle = self.chronicle.lock().unwrap_or_else(PoisonError::into_inner);
        chronicle.catch_up();
        chronicle.events().to_vec()
    }

    /// Returns once all trainers train.
    pub(super) async fn all_training(&self) {
        loop {
            let events = self.events();
            let trains = |name: &str| {
                events.iter().any(|event| {
                    matches!(&event.what, What::Said(line)
                        if line.starts_with(name) && line.contains("trains"))
                })
            };
            if TRAINERS.iter().all(|(name, _)| trains(name)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The API server and the queue go away.
    pub(super) fn outage(&mut self, _: Outage) {
        self.control_plane.iter().for_each(|served| served.set(Door::Closed));
    }

    /// What each trainer's state has to be at its end: computed by runs that nothing interrupts.
    pub(super) async fn reference_digests(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut digests = BTreeMap::new();
        for (name, _) in TRAINERS {
            let output = Command::new(self.options.programs.join("examples/trainer"))
                .args(trainer_arguments(name))
                .arg("--reference")
                .output()
                .await
                .context("the reference run was not started")?;
            let digest = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            digests.insert(name.to_owned(), digest);
        }
        Ok(digests)
    }

    /// Ends everybody, and waits until they are gone.
    pub(super) async fn end(mut self) {
        self.tasks.shutdown().await;
        for child in &mut self.controllers {
            child.kill().await.ok();
        }
    }
}

/// A pool of GPU types with four GPUs, each in two time slices; the node, and the trainers on it.
fn set_stage(world: &World, folder: &Path) -> anyhow::Result<()> {
    let types = [("g5.12xlarge", 20_000), ("g6.12xlarge", 18_000)];
    let zones = ["us-east-2a", "us-east-2b"];
    world.update(|state| {
        for (instance_type, price) in types {
            for zone in zones {
                let whole = Offering::whole(instance_type, zone, Purchase::Spot, price);
                state.offerings.all.push(whole.sliced(4, 2));
            }
        }
    });
    let within =
        |key: &str, values: &[&str]| json!({ "key": key, "operator": "In", "values": values });
    let requirements = [
        within("node.kubernetes.io/instance-type", &types.map(|(name, _)| name)),
        within("topology.kubernetes.io/zone", &zones),
        within("karpenter.sh/capacity-type", &["spot"]),
    ];
    build::add_pool(world, stage::POOL, &requirements);
    stage::agents(world, 2);
    let node = format!("node {NODE} type g5.12xlarge zone us-east-2a gpus 4 slices 2");
    stage::put(world, folder, &line(&node))?;
    for (name, options) in TRAINERS {
        stage::put(world, folder, &line(&format!("job {name} {options}")))?;
    }
    Ok(())
}

fn line(text: &str) -> Line {
    Line { number: 0, words: text.split(' ').map(str::to_owned).collect() }
}

fn behaviours(players: Players, folder: &Path) -> Behaviours {
    let metadata = Arc::clone(&players.addresses.metadata);
    let mut behaviours = Behaviours::usual(Arc::new(players), folder);
    behaviours.kubelet = kubelet::Settings {
        beside: vec![
            Arc::new(move |world, node, _| {
                serve_metadata(world, node, Arc::clone(&metadata)).boxed()
            }),
            Arc::new(|world, node, root| scenario::beside(world, node, root).boxed()),
        ],
        nvml: Some(programs::NVML.into()),
        ..kubelet::Settings::default()
    };
    behaviours.karpenter = Some(karpenter::Settings {
        launch: Duration::from_secs(1),
        boot: Duration::from_secs(4),
        ..karpenter::Settings::new(folder.to_owned())
    });
    behaviours
}

/// The metadata service of a node's instance, for as long as the node lives.
async fn serve_metadata(world: World, node: String, all: Arc<Mutex<BTreeMap<String, Served>>>) {
    let instance = world.read(|state| state.machines.get(&node).map(|it| it.instance.clone()));
    let Some(instance) = instance else { return };
    match serve::serve(wire::imds::imds(world, &instance)).await {
        Ok(served) => {
            all.lock().unwrap_or_else(PoisonError::into_inner).insert(node, served);
            std::future::pending::<()>().await;
        }
        Err(error) => tracing::error!(%error, node, "the metadata service is not served"),
    }
}

/// Settings that controller and agent share, as the environment carries them.
fn common(kube: &str, store: &str) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("LIFEBOAT_CLUSTER", "demo".to_owned()),
        ("LIFEBOAT_REGION", serve::REGION.to_owned()),
        ("LIFEBOAT_KUBERNETES_SERVER", kube.to_owned()),
        ("LIFEBOAT_STORE_BUCKET", programs::BUCKET.to_owned()),
        ("LIFEBOAT_STORE_ENDPOINT", store.to_owned()),
        ("LIFEBOAT_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ("LIFEBOAT_LOG_FORMAT", "text".to_owned()),
        ("AWS_ACCESS_KEY_ID", "demo".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "demo".to_owned()),
    ])
}

fn trainer_arguments(job: &str) -> Vec<String> {
    let seed = TRAINERS.iter().position(|(name, _)| *name == job).unwrap_or(0) + 1;
    let pairs = [
        ("--name", job.to_owned()),
        ("--seed", seed.to_string()),
        ("--steps", STEPS.to_string()),
        ("--bytes", STATE_BYTES.to_string()),
    ];
    pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

impl Players {
    fn agent(&self, launch: &Launch) -> (Vec<String>, BTreeMap<&'static str, String>) {
        let mut environment = common(&self.addresses.kube, &self.addresses.store);
        let metadata = self.addresses.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = metadata.get(&launch.node).map(Served::url).unwrap_or_default();
        let library = launch.root.join(programs::NVML).join("libnvidia-ml.so.1");
        environment.extend([
            ("LIFEBOAT_AGENT_NODE_NAME", launch.node.clone()),
            ("LIFEBOAT_AGENT_HOST_ROOT", launch.root.display().to_string()),
            ("LIFEBOAT_AGENT_IMDS_ENDPOINT", endpoint),
            ("LIFEBOAT_AGENT_NVML_LIBRARY", library.display().to_string()),
            ("LIFEBOAT_AGENT_RING_BUDGET", "512MiB".to_owned()),
        ]);
        let program = self.programs.join("lifeboat").display().to_string();
        (vec![program, "agent".to_owned()], environment)
    }

    fn trainer(&self, launch: &Launch) -> Vec<String> {
        let job = object::label(&launch.pod, stage::JOB_LABEL);
        let log = self.logs.join(format!("{}.jsonl", object::name(&launch.pod)));
        let mut words = vec![self.programs.join("examples/trainer").display().to_string()];
        words.extend(trainer_arguments(job));
        words.extend(["--log".to_owned(), log.display().to_string()]);
        if job == SLOW {
            words.extend(["--teardown".to_owned(), TEARDOWN.as_millis().to_string()]);
        }
        words
    }
}

impl Runtime for Players {
    fn start(&self, world: &World, mut launch: Launch) -> Box<dyn Container> {
        let (command, environment) = if launch.container == programs::AGENT {
            self.agent(&launch)
        } else {
            (self.trainer(&launch), BTreeMap::new())
        };
        let container = launch.container.clone();
        let containers = launch.pod.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
        for spec in containers.into_iter().flatten() {
            if spec["name"] != container.as_str() {
                continue;
            }
            spec["command"] = json!(command);
            let mut variables = object::items(spec, "/env").to_vec();
            let own =
                environment.iter().map(|(name, value)| json!({ "name": name, "value": value }));
            variables.extend(own);
            spec["env"] = json!(variables);
        }
        self.processes.start(world, launch)
    }
}

//! Who plays in the process tier: the world on loopback, and the programs as processes.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Context;
use lifeboat::clock::Clock;
use serde_json::Value;
use serde_json::json;
use tokio::process::Child;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::chronicle::Chronicle;
use crate::chronicle::Event;
use crate::chronicle::What;
use crate::crew;
use crate::crew::ApiServer;
use crate::crew::Crew;
use crate::crew::Metadata;
use crate::crew::QueueAddress;
use crate::processes::Processes;
use crate::programs;
use crate::scenario;
use crate::script::Line;
use crate::serve;
use crate::serve::Door;
use crate::serve::Served;
use crate::stage;
use crate::wire;
use crate::wire::Wire;
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
pub const NODE: &str = "gpu-1";
/// How long a step takes unless that matters.
pub const PACE: Duration = Duration::from_millis(100);
/// How long a program takes to end that has a GPU to give back.
const TEARDOWN: Duration = Duration::from_secs(3);

/// What is played.
pub struct Play {
    /// The nodes, as lines of a stage; the first is the one that is taken.
    pub nodes: Vec<String>,
    /// The trainers.
    pub trainers: Vec<Trainer>,
    /// Size of each trainer's state.
    pub bytes: u64,
    /// Steps that each takes in all.
    pub steps: u64,
    /// How long each step takes.
    pub pace: Duration,
    /// Size of a chunk and of a slot.
    pub chunk: String,
    /// Settings of our programs beyond the usual, as the environment carries them.
    pub settings: BTreeMap<String, String>,
    /// What lies between the programs and the bucket.
    pub before_store: Box<dyn Fn(Wire, Agents) -> Wire + Send>,
}

/// One trainer.
#[derive(Clone, Copy, Debug)]
pub struct Trainer {
    /// The name of its Job.
    pub job: &'static str,
    /// Options of the Job, as on a stage.
    pub options: &'static str,
    /// How it ends.
    pub ends: Ends,
}

/// How long a trainer takes to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// It ends at once.
    AtOnce,
    /// It takes three seconds.
    Slowly,
}

/// The agents' processes, by node.
pub type Agents = Arc<Mutex<BTreeMap<String, u32>>>;

pub(crate) mod logs;

/// Whether the API server and the queue can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// From now on they cannot.
    Begins,
}

/// Everybody, and the world that they play in.
pub struct Cast {
    /// The world.
    pub world: World,
    folder: PathBuf,
    chronicle: Arc<Mutex<Chronicle>>,
    programs: PathBuf,
    jobs: Arc<Jobs>,
    control_plane: Vec<Served>,
    _store: Served,
    controllers: Vec<Child>,
    tasks: JoinSet<()>,
}

/// What the trainers train.
struct Jobs {
    trainers: Vec<Trainer>,
    bytes: u64,
    steps: u64,
    pace: Duration,
}

/// Runs the pods: each container with the command that belongs to it.
struct Players {
    processes: Processes,
    programs: PathBuf,
    logs: PathBuf,
    crew: Crew,
    server: ApiServer,
    jobs: Arc<Jobs>,
    agents: Agents,
}

impl Cast {
    /// Sets the stage and starts everybody; `programs` is the folder that the programs lie in.
    pub async fn new(
        programs: &Path,
        (folder, logs): (&Path, &Path),
        play: Play,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(logs).context("no folder for the logs")?;
        let world = World::new(Clock::system(), 1);
        scenario::queues(&world);
        set_stage(&world, folder, &play)?;
        let agents = Agents::default();
        let kube = serve::serve(wire::kube::wire(&world, "lifeboat-agent")).await?;
        let store = (play.before_store)(wire::s3::s3(world.clone()), Arc::clone(&agents));
        let store = serve::serve(store).await?;
        let crew = Crew {
            programs: programs.to_owned(),
            cluster: "demo".to_owned(),
            store: store.url(),
            chunk: play.chunk.clone(),
            settings: play.settings.clone(),
            metadata: Metadata::default(),
        };
        let diary = Diary::new(&world);
        let chronicle = Arc::new(Mutex::new(Chronicle::new(&world, &diary)));
        let mut tasks = JoinSet::new();
        tasks.spawn(crate::chronicle::follow(Arc::clone(&chronicle)));
        tasks.spawn(logs::follow(diary, logs.to_owned()));
        let Play { trainers, bytes, steps, pace, .. } = play;
        let jobs = Arc::new(Jobs { trainers, bytes, steps, pace });
        let players = Players {
            processes: Processes::new(logs),
            programs: programs.to_owned(),
            logs: logs.to_owned(),
            crew: crew.clone(),
            server: ApiServer::Plain(kube.url()),
            jobs: Arc::clone(&jobs),
            agents,
        };
        let mut behaviours = behaviours(players, folder).start(&world);
        tasks.spawn(async move { while behaviours.join_next().await.is_some() {} });
        let mut cast = Self {
            world,
            folder: folder.to_owned(),
            chronicle,
            programs: programs.to_owned(),
            jobs,
            control_plane: vec![kube],
            _store: store,
            controllers: Vec::new(),
            tasks,
        };
        cast.start_controllers(&crew, logs).await?;
        Ok(cast)
    }

    async fn start_controllers(&mut self, crew: &Crew, logs: &Path) -> anyhow::Result<()> {
        let sqs = serve::serve(wire::sqs::sqs(self.world.clone())).await?;
        let account = self.world.read(|state| state.instances.account().to_owned());
        let queue = QueueAddress { endpoint: sqs.url(), account };
        for number in 0..2 {
            let name = format!("lifeboat-controller-{number}");
            let server = serve::serve(wire::kube::wire(&self.world, &name)).await?;
            let log = logs.join(format!("{name}.log"));
            let address = ApiServer::Plain(server.url());
            self.controllers.push(crew.controller((&name, &address), &queue, &log)?);
            self.control_plane.push(server);
        }
        self.control_plane.push(sqs);
        Ok(())
    }

    /// Everything that happened so far.
    pub fn events(&self) -> Vec<Event> {
        let mut chronicle = self.chronicle.lock().unwrap_or_else(PoisonError::into_inner);
        chronicle.catch_up();
        chronicle.events().to_vec()
    }

    /// Another node, as a line of a stage.
    pub fn add_node(&self, node: &str) -> anyhow::Result<()> {
        Ok(stage::put(&self.world, &self.folder, &line(node))?)
    }

    /// The node that a pod of a Job was last bound to.
    pub fn node_of(&self, job: &str) -> Option<String> {
        self.events().iter().rev().find_map(|event| match &event.what {
            What::Bound { pod, node } if pod.starts_with(job) => Some(node.clone()),
            _ => None,
        })
    }

    /// The instance of a node.
    pub fn instance_of(&self, node: &str) -> String {
        self.world.read(|state| {
            state.machines.get(node).map(|machine| machine.instance.clone()).unwrap_or_default()
        })
    }

    /// Returns once all trainers train.
    pub async fn all_training(&self) {
        loop {
            let events = self.events();
            let trains = |name: &str| {
                events.iter().any(|event| {
                    matches!(&event.what, What::Said(line)
                        if line.starts_with(name) && line.contains("trains"))
                })
            };
            if self.jobs.trainers.iter().all(|trainer| trains(trainer.job)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The API server and the queue go away.
    pub fn outage(&mut self, _: Outage) {
        self.control_plane.iter().for_each(|served| served.set(Door::Closed));
    }

    /// What each trainer's state has to be at its end: computed by runs that nothing interrupts.
    pub async fn reference_digests(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut digests = BTreeMap::new();
        for trainer in &self.jobs.trainers {
            let output = Command::new(self.programs.join("examples/trainer"))
                .args(self.jobs.arguments(trainer.job))
                .arg("--reference")
                .output()
                .await
                .context("the reference run was not started")?;
            let digest = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            digests.insert(trainer.job.to_owned(), digest);
        }
        Ok(digests)
    }

    /// Ends everybody, and waits until they are gone.
    pub async fn end(mut self) {
        self.tasks.shutdown().await;
        for child in &mut self.controllers {
            child.kill().await.ok();
        }
    }
}

/// A pool of GPU types with four GPUs, each in two time slices; the node, and the trainers on it.
fn set_stage(world: &World, folder: &Path, play: &Play) -> anyhow::Result<()> {
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
    for node in &play.nodes {
        stage::put(world, folder, &line(node))?;
    }
    for Trainer { job, options, .. } in &play.trainers {
        stage::put(world, folder, &line(&format!("job {job} {options}")))?;
    }
    Ok(())
}

fn line(text: &str) -> Line {
    Line { number: 0, words: text.split(' ').map(str::to_owned).collect() }
}

fn behaviours(players: Players, folder: &Path) -> Behaviours {
    let metadata = crew::metadata(&players.crew.metadata);
    let mut behaviours = Behaviours::usual(Arc::new(players), folder);
    behaviours.kubelet = kubelet::Settings {
        backoff: Duration::from_secs(1),
        beside: vec![metadata],
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

impl Jobs {
    fn arguments(&self, job: &str) -> Vec<String> {
        let seed = self.trainers.iter().position(|trainer| trainer.job == job).unwrap_or(0) + 1;
        let pairs = [
            ("--name", job.to_owned()),
            ("--seed", seed.to_string()),
            ("--steps", self.steps.to_string()),
            ("--bytes", self.bytes.to_string()),
            ("--pace", self.pace.as_millis().to_string()),
        ];
        pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    fn is_slow(&self, job: &str) -> bool {
        self.trainers.iter().any(|trainer| trainer.job == job && trainer.ends == Ends::Slowly)
    }
}

impl Players {
    fn trainer(&self, launch: &Launch) -> Vec<String> {
        let job = object::label(&launch.pod, stage::JOB_LABEL);
        let log = self.logs.join(format!("{}.jsonl", object::name(&launch.pod)));
        let mut words = vec![self.programs.join("examples/trainer").display().to_string()];
        words.extend(self.jobs.arguments(job));
        words.extend(["--log".to_owned(), log.display().to_string()]);
        if self.jobs.is_slow(job) {
            words.extend(["--teardown".to_owned(), TEARDOWN.as_millis().to_string()]);
        }
        words
    }
}

impl Runtime for Players {
    fn start(&self, world: &World, mut launch: Launch) -> Box<dyn Container> {
        let (command, environment) = if launch.container == programs::AGENT {
            self.crew.agent(&launch, &self.server)
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
        let node = launch.node.clone();
        let started = self.processes.start(world, launch);
        if container == programs::AGENT {
            let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
            agents.extend(started.pids().into_iter().map(|pid| (node.clone(), pid)));
        }
        started
    }
}

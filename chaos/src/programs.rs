//! The production programs as tasks in virtual time, over clients that end in simulators.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use futures::FutureExt;
use futures::future::BoxFuture;
use lifeboat::config::Config;
use lifeboat::config::Program;
use lifeboat::config::Sources;
use lifeboat::offload::Offload;
use lifeboat::shutdown::Shutdown;
use lifeboat::wiring;
use lifeboat::wiring::AgentClients;
use lifeboat::wiring::ControllerClients;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::aws::Actions;
use crate::faults::Faults;
use crate::faults::WireName;
use crate::serve;
use crate::wire;
use crate::wire::Wire;
use crate::world::World;
use crate::world::cluster::object;
use crate::world::runtime::Container;
use crate::world::runtime::KILLED;
use crate::world::runtime::Launch;
use crate::world::runtime::Runtime;
use crate::world::workloads::Virtual;

/// Name of the container that the agent runs in.
pub const AGENT: &str = "agent";
/// The bucket.
pub const BUCKET: &str = "checkpoints";
/// Our own queue.
pub const QUEUE: &str = "lifeboat";
/// Where in a machine's folder NVIDIA's library lies.
pub const NVML: &str = "usr/lib64";
/// Exit code of a program that ended with an error.
const FAILED: i32 = 70;

/// Starts programs and virtual workloads, and can kill any of them.
#[derive(Clone)]
pub struct Programs {
    world: World,
    faults: Faults,
    settings: BTreeMap<String, String>,
    workloads: Arc<Virtual>,
    running: Arc<Mutex<BTreeMap<String, watch::Sender<u64>>>>,
    actions: Actions,
}

impl Programs {
    /// Programs with these settings, by the keys of the configuration file.
    pub fn new(
        world: &World,
        faults: &Faults,
        settings: BTreeMap<String, String>,
        workloads: Virtual,
    ) -> Self {
        Self {
            world: world.clone(),
            faults: faults.clone(),
            settings,
            workloads: Arc::new(workloads),
            running: Arc::default(),
            actions: Actions::default(),
        }
    }

    /// What was asked of AWS, by whom.
    pub fn actions(&self) -> BTreeSet<(String, String)> {
        self.actions.seen()
    }

    /// Kills a container, named as `<pod>/<container>`, whose name begins so. Says whether there was one.
    pub fn kill(&self, name: &str) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = false;
        for (_, killed) in running.iter().filter(|(known, _)| known.starts_with(name)) {
            killed.send_modify(|times| *times += 1);
            found = true;
        }
        found
    }

    /// Runs one replica of the controller until it is dropped.
    pub async fn controller(&self, number: usize) {
        let name = format!("lifeboat-controller-{number}");
        let config = self.config(Program::Controller, &[("lease.identity", &name)]);
        let clients = ControllerClients {
            kube: serve::kube_client(&self.kube(&name), &config.namespace),
            first_aid: serve::kube_client(&self.kube(&name), &config.namespace),
            sqs: serve::sqs_client(&self.wire(
                WireName::Sqs,
                &name,
                wire::sqs::sqs(self.world.clone()),
            )),
            store: Arc::new(self.store(&name, None)),
        };
        let ended =
            wiring::controller(config, clients, self.world.clock().clone(), Shutdown::new()).await;
        if let Err(error) = ended {
            tracing::error!(%error, name, "controller ended");
        }
    }

    async fn agent(self, launch: Launch, shutdown: Shutdown) -> i32 {
        let name = format!("lifeboat-agent-{}", launch.node);
        let instance = self
            .world
            .read(|state| state.machines.get(&launch.node).map(|machine| machine.instance.clone()));
        let instance = instance.unwrap_or_default();
        let root = launch.root.display().to_string();
        let library = launch.root.join(NVML).join("libnvidia-ml.so.1").display().to_string();
        let own = [
            ("agent.nodeName", launch.node.as_str()),
            ("agent.hostRoot", &root),
            ("agent.nvmlLibrary", &library),
        ];
        let config = self.config(Program::Agent, &own);
        let imds = wire::imds::imds(self.world.clone(), &instance);
        let clients = AgentClients {
            kube: serve::kube_client(&self.kube(&name), &config.namespace),
            imds: serve::bytes_service(&self.wire(WireName::Imds, &name, imds)),
            store: Arc::new(self.store(&name, Some(instance))),
        };
        let runtime =
            wiring::Runtime { clock: self.world.clock().clone(), offload: Offload::Inline };
        match wiring::agent(config, clients, runtime, shutdown).await {
            Ok(()) => 0,
            Err(error) => {
                tracing::error!(%error, name, "agent ended");
                FAILED
            }
        }
    }

    fn kube(&self, name: &str) -> Wire {
        self.wire(WireName::Kube, name, wire::kube::wire(&self.world, name))
    }

    fn store(&self, name: &str, origin: Option<String>) -> object_store::aws::AmazonS3 {
        let wire = wire::s3::s3_from(self.world.clone(), origin);
        let wire = self.wire(WireName::S3, name, wire);
        serve::s3_store(&wire, BUCKET).expect("the simulated store has all it needs")
    }

    fn wire(&self, name: WireName, client: &str, wire: Wire) -> Wire {
        self.faults.before(name, client, self.actions.before(name, client, wire))
    }

    fn config(&self, program: Program, own: &[(&str, &str)]) -> Config {
        let account = self.world.read(|state| state.instances.account().to_owned());
        let queue = format!("http://sqs.simulated/{account}/{QUEUE}");
        let usual = [
            ("cluster", "simulated"),
            ("region", serve::REGION),
            ("account", &account),
            ("queue.url", &queue),
            ("store.bucket", BUCKET),
            ("store.region", serve::REGION),
            ("store.chunk", "16MiB"),
            ("agent.ringBudget", "64MiB"),
            ("agent.slot", "16MiB"),
        ];
        let mut flags: Vec<(String, String)> = Vec::new();
        for (key, value) in usual.iter().chain(own) {
            flags.push(((*key).to_owned(), (*value).to_owned()));
        }
        flags.extend(self.settings.clone());
        let sources = Sources { flags, ..Sources::default() };
        Config::load(program, &sources)
            .unwrap_or_else(|faults| panic!("the scenario's settings: {faults}"))
    }
}

impl Runtime for Programs {
    fn start(&self, world: &World, launch: Launch) -> Box<dyn Container> {
        let name = format!("{}/{}", object::name(&launch.pod), launch.container);
        let (killed, by_script) = watch::channel(0);
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(name, killed);
        drop(running);
        let inner: Box<dyn Container> = if launch.container == AGENT {
            let shutdown = Shutdown::new();
            let mut tasks = JoinSet::new();
            tasks.spawn(self.clone().agent(launch, shutdown.clone()));
            let pid = world.update(|state| state.machines.new_pid());
            Box::new(Hosted { pid, shutdown, tasks, ended: None })
        } else {
            self.workloads.start(world, launch)
        };
        Box::new(Killable { inner, by_script })
    }
}

/// A container that a script may kill.
struct Killable {
    inner: Box<dyn Container>,
    by_script: watch::Receiver<u64>,
}

impl Container for Killable {
    fn pids(&self) -> Vec<u32> {
        self.inner.pids()
    }

    fn gpu_processes(&self) -> BTreeMap<u32, u64> {
        self.inner.gpu_processes()
    }

    fn terminate(&mut self) {
        self.inner.terminate();
    }

    fn kill(&mut self) {
        self.inner.kill();
    }

    fn exited(&mut self) -> BoxFuture<'_, i32> {
        async {
            tokio::select! {
                biased;
                changed = self.by_script.changed() => {
                    if changed.is_ok() {
                        self.inner.kill();
                    }
                    self.inner.exited().await
                }
                code = self.inner.exited() => code,
            }
        }
        .boxed()
    }
}

/// The agent in a container.
struct Hosted {
    pid: u32,
    shutdown: Shutdown,
    tasks: JoinSet<i32>,
    ended: Option<i32>,
}

impl Container for Hosted {
    fn pids(&self) -> Vec<u32> {
        vec![self.pid]
    }

    fn gpu_processes(&self) -> BTreeMap<u32, u64> {
        BTreeMap::new()
    }

    fn terminate(&mut self) {
        self.shutdown.request();
    }

    fn kill(&mut self) {
        self.tasks.abort_all();
    }

    fn exited(&mut self) -> BoxFuture<'_, i32> {
        async {
            if self.ended.is_none() {
                let joined = self.tasks.join_next().await;
                self.ended = Some(joined.and_then(Result::ok).unwrap_or(KILLED));
            }
            self.ended.unwrap_or(KILLED)
        }
        .boxed()
    }
}

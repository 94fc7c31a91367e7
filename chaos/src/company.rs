//! Our programs at work on a real control plane: the controllers and, on each node, the agent as
//! processes, pods run by simulated kubelets, and simulators for SQS, S3, IMDS and NVML.
//!
//! A company cares for the nodes that carry its label, which its pools give to whatever Karpenter
//! buys for them. Several may come and go on one control plane, one after the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat::clock::Clock;
use serde_json::Value;
use serde_json::json;
use tokio::process::Child;
use tokio::task::JoinSet;

use crate::chronicle::Chronicle;
use crate::chronicle::Event;
use crate::company::machines::Machines;
use crate::company::objects::Objects;
use crate::company::players::Agents;
use crate::company::players::Players;
use crate::company::pods::Pods;
use crate::control_plane::FAKE_NODE;
use crate::control_plane::stages;
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
use crate::serve::Served;
use crate::stage;
use crate::wire;
use crate::wire::Wire;
use crate::world::World;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::instances::NoticeAction;
use crate::world::instances::announce::Announcement;
use crate::world::kubelet;
use crate::world::queue;
use crate::world::workloads::Diary;
use crate::world::workloads::Virtual;

pub mod objects;
pub mod players;

mod interruption;
mod machines;
mod pods;

/// Label of everything that belongs to a company; it is copied from pool to claim to node.
pub const LABEL: &str = "company";
/// EC2's own lead.
pub const NOTICE: Duration = Duration::from_mins(2);

/// A real control plane, as far as a company needs it.
pub struct Site {
    /// The administrator's client.
    pub client: kube::Client,
    /// Kubeconfigs of our programs, by name: `controller-0`, `controller-1`, `agent`.
    pub kubeconfigs: BTreeMap<String, PathBuf>,
}

/// What a company is like.
pub struct Settings {
    /// Its name: the value of [`LABEL`], the name of its pool and of Lifeboat's namespace.
    pub name: String,
    /// The folder that the programs lie in.
    pub programs: PathBuf,
    /// Where its machines have their folders, and its processes their logs.
    pub folder: PathBuf,
    /// Settings of the programs, by the keys of the configuration file.
    pub settings: BTreeMap<String, String>,
    /// Slices of each GPU.
    pub slices: u32,
    /// Where agents run.
    pub agents: Where,
    /// Delay of Karpenter's own queue; `None` where Karpenter hears of nothing.
    pub karpenter_hears: Option<Duration>,
    /// What lies between the programs and the bucket.
    pub before_store: Box<dyn Fn(Wire) -> Wire + Send>,
}

/// On which nodes of a company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// On all.
    Everywhere,
    /// On none.
    Nowhere,
}

/// Everybody.
pub struct Company {
    /// The simulated part of the world.
    pub world: World,
    /// The real API server's objects.
    pub objects: Objects,
    name: String,
    crew: Crew,
    site: Site,
    queue: (Served, QueueAddress),
    _store: Served,
    logs: PathBuf,
    chronicle: Arc<Mutex<Chronicle>>,
    agents: Agents,
    controllers: BTreeMap<u32, Child>,
    tasks: JoinSet<()>,
}

impl Settings {
    /// A company with this name and nothing special.
    pub fn new(name: &str, programs: &Path, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            programs: programs.to_owned(),
            folder: folder.to_owned(),
            settings: BTreeMap::new(),
            slices: 1,
            agents: Where::Everywhere,
            karpenter_hears: Some(Duration::ZERO),
            before_store: Box::new(|store| store),
        }
    }

    /// The same, with one setting of the programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The settings as the programs' environment carries them.
    fn environment(&self) -> BTreeMap<String, String> {
        let own = [("namespace", self.name.as_str())]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let all = own.into_iter().chain(self.settings.clone());
        all.map(|(key, value)| (variable(&key), value)).collect()
    }
}

impl Company {
    /// Everything but the controllers, which [`Company::start_controller`] starts.
    pub async fn new(site: Site, settings: Settings) -> anyhow::Result<Self> {
        let logs = settings.folder.join("logs");
        std::fs::create_dir_all(&logs)?;
        let world = World::new(Clock::system(), 1);
        scenario::queues(&world);
        let delay = settings.karpenter_hears.unwrap_or_default();
        let slow = queue::Settings { delay, ..queue::Settings::default() };
        world.update(|state| state.queues.create(scenario::KARPENTER_QUEUE, slow));
        let objects = Objects::new(site.client.clone());
        let served = serve::serve(wire::sqs::sqs(world.clone())).await?;
        let account = world.read(|state| state.instances.account().to_owned());
        let queue = QueueAddress { endpoint: served.url(), account };
        let store = serve::serve((settings.before_store)(wire::s3::s3(world.clone()))).await?;
        let crew = Crew {
            programs: settings.programs.clone(),
            cluster: settings.name.clone(),
            store: store.url(),
            chunk: "1MiB".to_owned(),
            settings: settings.environment(),
            metadata: Metadata::default(),
        };
        let diary = Diary::new(&world);
        let mut company = Self {
            chronicle: Arc::new(Mutex::new(Chronicle::new(&world, &diary))),
            world,
            objects,
            name: settings.name.clone(),
            crew,
            site,
            queue: (served, queue),
            _store: store,
            logs,
            agents: Agents::default(),
            controllers: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        company.behave(&settings, &diary);
        match settings.agents {
            Where::Everywhere => company.add_agents().await?,
            Where::Nowhere => (),
        }
        Ok(company)
    }

    /// Starts what the world does by itself.
    fn behave(&mut self, settings: &Settings, diary: &Diary) {
        let (world, objects) = (self.world.clone(), self.objects.clone());
        let machines = Machines {
            objects: objects.clone(),
            world: world.clone(),
            selector: self.selector(),
            folder: settings.folder.clone(),
            slices: settings.slices,
        };
        let pods = Pods::new(objects.clone(), world.clone());
        let players = Players {
            crew: self.crew.clone(),
            server: self.server_of("agent"),
            processes: Processes::new(&self.logs),
            workloads: Virtual::new(diary.clone()),
            logs: self.logs.clone(),
            agents: Arc::clone(&self.agents),
        };
        let kubelets = kubelet::Settings {
            backoff: Duration::from_secs(1),
            beside: vec![crew::metadata(&self.crew.metadata)],
            nvml: Some(programs::NVML.into()),
            ..kubelet::Settings::default()
        };
        self.tasks.spawn(crate::chronicle::follow(Arc::clone(&self.chronicle)));
        self.tasks.spawn(crate::cast::logs::follow(diary.clone(), self.logs.clone()));
        self.tasks.spawn(machines.clone().follow_nodes());
        self.tasks.spawn(machines.clone().follow_claims());
        self.tasks.spawn(machines.take_at_their_hour());
        self.tasks.spawn(pods.clone().take_in());
        self.tasks.spawn(pods.tell());
        self.tasks.spawn(kubelet::run(world.clone(), kubelets, Arc::new(players)));
        if settings.karpenter_hears.is_some() {
            self.tasks.spawn(interruption::listen(objects, world));
        }
    }

    /// The agent on every node of ours, in Lifeboat's namespace, which is there.
    async fn add_agents(&self) -> anyhow::Result<()> {
        let mut agent = stage::agent();
        agent["apiVersion"] = json!("apps/v1");
        agent["kind"] = json!("DaemonSet");
        agent["metadata"]["namespace"] = json!(self.name);
        agent["metadata"]["labels"] = json!({ LABEL: self.name });
        agent["spec"]["template"]["spec"]["nodeSelector"] = json!({ LABEL: self.name });
        self.played_here(&mut agent["spec"]["template"]);
        self.objects.create(agent).await?;
        Ok(())
    }

    /// The name of the company, of its pool, and of Lifeboat's namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What selects everything that belongs to it.
    pub fn selector(&self) -> String {
        format!("{LABEL}={}", self.name)
    }

    /// Marks a pod, or a template of pods, as one that our kubelets play, on our nodes.
    pub fn played_here(&self, template: &mut Value) {
        template["metadata"]["annotations"][stages::RUN_OUTSIDE] = json!("true");
        self.placed_here(template);
    }

    fn placed_here(&self, template: &mut Value) {
        template["metadata"]["labels"][LABEL] = json!(self.name);
        template["spec"]["nodeSelector"][LABEL] = json!(self.name);
    }

    /// A pool of Spot nodes of these instance types that carry our label.
    pub async fn add_pool(&self, instance_types: &[&str]) -> anyhow::Result<()> {
        let within =
            |key: &str, values: &[&str]| json!({ "key": key, "operator": "In", "values": values });
        let class = json!({
            "apiVersion": "karpenter.kwok.sh/v1alpha1", "kind": "KWOKNodeClass",
            "metadata": { "name": "default" },
        });
        if let Err(error) = self.objects.create(class).await {
            tracing::debug!(%error, "the node class was there");
        }
        let template = json!({
            "metadata": { "labels": { LABEL: self.name, "nvidia.com/gpu.present": "true" } },
            "spec": {
                "nodeClassRef": {
                    "group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "default",
                },
                "requirements": [
                    within("node.kubernetes.io/instance-type", instance_types),
                    within("karpenter.sh/capacity-type", &["spot"]),
                ],
                "taints": [{ "key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule" }],
                "expireAfter": "720h",
            },
        });
        let pool = json!({
            "apiVersion": "karpenter.sh/v1", "kind": "NodePool",
            "metadata": { "name": self.name, "labels": { LABEL: self.name } },
            "spec": {
                "template": template,
                "disruption": {
                    "consolidationPolicy": "WhenEmptyOrUnderutilized", "consolidateAfter": "Never",
                },
            },
        });
        self.objects.create(pool).await?;
        Ok(())
    }

    /// A node of a managed group, which Karpenter has nothing to do with, of one whole GPU.
    pub async fn add_managed_node(&self, node: &str, instance: &str) -> anyhow::Result<()> {
        let resources = json!({
            "cpu": "8", "memory": "32Gi", "pods": "110", "nvidia.com/gpu": "1",
        });
        let (annotation, value) = FAKE_NODE;
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": node,
                "annotations": { annotation: value },
                "labels": {
                    LABEL: self.name,
                    "eks.amazonaws.com/capacityType": "SPOT",
                    "eks.amazonaws.com/nodegroup": self.name,
                    "kubernetes.io/hostname": node,
                    "node.kubernetes.io/instance-type": "g5.xlarge",
                    "nvidia.com/gpu.present": "true",
                    "topology.kubernetes.io/zone": "us-east-2a",
                },
            },
            "spec": { "providerID": format!("aws:///us-east-2a/{instance}") },
        });
        self.objects.create(object).await?;
        let status = json!({ "status": { "capacity": resources, "allocatable": resources } });
        self.objects.merge_status(objects::NODE, ("", node), status).await?;
        Ok(())
    }

    /// States to Karpenter how many slices the GPUs of our pool have.
    pub async fn add_overlay(&self, resource: &str, slices: u32) -> anyhow::Result<()> {
        let overlay = json!({
            "apiVersion": "karpenter.sh/v1alpha1", "kind": "NodeOverlay",
            "metadata": { "name": self.name, "labels": { LABEL: self.name } },
            "spec": {
                "requirements": [
                    { "key": "karpenter.sh/nodepool", "operator": "In", "values": [self.name] },
                ],
                "capacity": { resource: slices.to_string() },
            },
        });
        self.objects.create(overlay).await?;
        Ok(())
    }

    /// A Job as a line of a stage has it, whose pods kwok plays: there is nothing in them.
    pub async fn add_hollow_job(&self, line: &str) -> anyhow::Result<()> {
        let words = line.split(' ').map(str::to_owned).collect();
        let (mut job, _) = stage::job_objects(&Line { number: 0, words })?;
        job["metadata"]["labels"] = json!({ LABEL: self.name });
        let template = &mut job["spec"]["template"];
        template["metadata"]["annotations"][stages::ENDS_AFTER] = json!("1s");
        self.placed_here(template);
        self.objects.create(job).await?;
        Ok(())
    }

    /// A Job as a line of a stage has it, played by our kubelets on our nodes.
    pub async fn add_job(&self, line: &str) -> anyhow::Result<()> {
        let words = line.split(' ').map(str::to_owned).collect();
        let (mut job, budget) = stage::job_objects(&Line { number: 0, words })?;
        job["metadata"]["labels"] = json!({ LABEL: self.name });
        self.played_here(&mut job["spec"]["template"]);
        self.objects.create(job).await?;
        if let Some(mut budget) = budget {
            budget["metadata"]["labels"] = json!({ LABEL: self.name });
            self.objects.create(budget).await?;
        }
        Ok(())
    }

    /// A StatefulSet of one pod, as a line of a stage has it for a Job.
    pub async fn add_stateful_set(&self, line: &str) -> anyhow::Result<()> {
        let words = line.split(' ').map(str::to_owned).collect();
        let (job, _) = stage::job_objects(&Line { number: 0, words })?;
        let mut template = job["spec"]["template"].clone();
        template["spec"]["restartPolicy"] = json!("Always");
        self.played_here(&mut template);
        let label = stage::JOB_LABEL;
        let set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {
                "name": name(&job), "namespace": "default", "labels": { LABEL: self.name },
            },
            "spec": {
                "serviceName": name(&job), "replicas": 1, "template": template,
                "selector": { "matchLabels": { label: name(&job) } },
            },
        });
        self.objects.create(set).await?;
        Ok(())
    }

    /// Starts a replica of the controller.
    pub fn start_controller(&mut self, number: u32) -> anyhow::Result<()> {
        let identity = format!("controller-{number}");
        let server = self.server_of(&identity);
        let log = self.logs.join(format!("{identity}.log"));
        let child = self.crew.controller((&identity, &server), &self.queue.1, &log)?;
        self.controllers.insert(number, child);
        Ok(())
    }

    /// Kills a replica with SIGKILL, and waits until it is gone.
    pub async fn kill_controller(&mut self, number: u32) {
        if let Some(mut child) = self.controllers.remove(&number) {
            child.kill().await.ok();
        }
    }

    /// The process of the agent of a node, the last that was started.
    pub fn agent_pid(&self, node: &str) -> Option<u32> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied()
    }

    /// Where the processes' logs are.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// What happened in the simulated part so far.
    pub fn events(&self) -> Vec<Event> {
        let mut chronicle = self.chronicle.lock().unwrap_or_else(PoisonError::into_inner);
        chronicle.catch_up();
        chronicle.events().to_vec()
    }

    /// The instance of a node; empty while it has none.
    pub fn instance_of(&self, node: &str) -> String {
        self.world.read(|state| {
            state.machines.get(node).map(|machine| machine.instance.clone()).unwrap_or_default()
        })
    }

    /// EC2 warns of an instance, on our queue, on Karpenter's and in its metadata.
    pub fn warn(&self, instance: &str) {
        self.warn_within(instance, NOTICE);
    }

    /// The same, and it will be taken sooner than the event says: its metadata tell.
    pub fn warn_within(&self, instance: &str, lead: Duration) {
        let announcement = Announcement {
            action: NoticeAction::Terminate,
            lead,
            imds_after: Some(Duration::ZERO),
            queues: &[programs::QUEUE, scenario::KARPENTER_QUEUE],
        };
        self.world.announce(instance, announcement);
    }

    /// EC2 recommends to move away from an instance, by the same ways.
    pub fn recommend(&self, instance: &str) {
        self.world.recommend(instance, &[programs::QUEUE, scenario::KARPENTER_QUEUE]);
    }

    /// Ends everybody. What they left in the API server [`clear`] takes out.
    pub async fn end(mut self) {
        for (_, mut child) in std::mem::take(&mut self.controllers) {
            child.kill().await.ok();
        }
        self.tasks.shutdown().await;
    }

    fn server_of(&self, program: &str) -> ApiServer {
        ApiServer::Kubeconfig(self.site.kubeconfigs.get(program).cloned().unwrap_or_default())
    }
}

impl Drop for Company {
    /// What happened is left beside the logs.
    fn drop(&mut self) {
        let lines = self.events().into_iter().map(|event| format!("{} {}\n", event.at, event.what));
        let written = std::fs::write(self.logs.join("chronicle.log"), lines.collect::<String>());
        if let Err(error) = written {
            tracing::debug!(%error, "the chronicle was not left");
        }
    }
}

/// Takes out of an API server what companies have left in it, whatever holds it.
pub async fn clear(objects: &Objects) {
    use objects::Kind;
    let makers = [
        Kind("karpenter.sh/v1alpha1", "NodeOverlay"),
        objects::NODE_POOL,
        Kind("policy/v1", "PodDisruptionBudget"),
        Kind("apps/v1", "DaemonSet"),
        Kind("apps/v1", "StatefulSet"),
        objects::JOB,
        objects::POD,
        objects::NODE_CLAIM,
        objects::NODE,
    ];
    for kind in makers {
        take_out(objects, kind, LABEL).await;
    }
    for kind in [objects::INTERRUPTION, objects::CHECKPOINT] {
        take_out(objects, kind, "").await;
    }
}

async fn take_out(objects: &Objects, kind: objects::Kind, selector: &str) {
    for object in objects.list(kind, selector).await {
        objects.force_out(kind, (namespace(&object), name(&object))).await;
    }
}

/// A key of the configuration file as a variable: `drain.maxGrace` is `LIFEBOAT_DRAIN_MAX_GRACE`.
fn variable(key: &str) -> String {
    let mut name = String::from("LIFEBOAT_");
    for letter in key.chars() {
        match letter {
            '.' => name.push('_'),
            letter if letter.is_ascii_uppercase() => {
                name.push('_');
                name.push(letter);
            }
            letter => name.push(letter.to_ascii_uppercase()),
        }
    }
    name
}

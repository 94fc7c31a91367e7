//! Lifeboat installed by its chart, as an operator does it, on a real control plane and real nodes.
//!
//! What is not real is AWS, behind the wires that all tests use, and the GPUs. The nodes are of a
//! managed group, which nobody but whoever holds this adds to.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use anyhow::ensure;
use lifeboat::clock::Clock;
use serde_json::Value;
use serde_json::json;

use crate::company::objects::NODE;
use crate::company::objects::Objects;
use crate::company::objects::POD;
use crate::control_plane;
use crate::control_plane::Audit;
use crate::control_plane::ControlPlane;
use crate::node;
use crate::node::Node;
use crate::node::image::Image;
use crate::programs;
use crate::scenario;
use crate::serve;
use crate::serve::Served;
use crate::wire;
use crate::world::World;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::name as object_name;
use crate::world::cluster::object::text;
use crate::world::instances::NoticeAction;
use crate::world::instances::Offering;
use crate::world::instances::Purchase;
use crate::world::instances::announce::Announcement;
use crate::world::machines::Gpu;

/// Where the release is.
pub const NAMESPACE: &str = "lifeboat-system";
/// The image of our program.
const LIFEBOAT: (&str, &str) = ("lifeboat.test/lifeboat", "test");
/// The image of the trainer.
pub const TRAINER: &str = "lifeboat.test/trainer:test";
/// Where on each node SQS answers.
const QUEUES: u16 = 9324;
/// Where on each node S3 answers.
const BUCKETS: u16 = 9000;
/// The network that the nodes' addresses are of.
const NETWORK: [u8; 3] = [10, 99, 0];
/// The zone that all nodes are in.
const ZONE: &str = "us-east-2a";
/// The resource that slices are offered under.
const SLICES: &str = "nvidia.com/gpu";

/// What is needed for an installation.
#[derive(Clone, Debug)]
pub struct Means {
    /// The folder of the control plane's programs.
    pub plane: PathBuf,
    /// The folder of a node's programs.
    pub nodes: PathBuf,
    /// Helm.
    pub helm: PathBuf,
    /// The folder of our own programs.
    pub programs: PathBuf,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// For whatever must not be on Spot: no GPU.
    System,
    /// For work: a Spot instance with one GPU in so many time slices.
    Work(u32),
}

/// Everybody.
pub struct Installation {
    /// The simulated part of the world: AWS.
    pub world: World,
    /// The API server's objects.
    pub objects: Objects,
    plane: ControlPlane,
    means: Means,
    folder: PathBuf,
    images: Vec<PathBuf>,
    queues: Served,
    buckets: Served,
    metadata: BTreeMap<String, Served>,
    nodes: BTreeMap<String, Node>,
}

impl Means {
    /// All of it as it is built here.
    ///
    /// # Errors
    /// What is missing, and what builds it.
    pub fn here(programs: &Path) -> Result<Self, String> {
        let built = |found: Option<PathBuf>, what: &str| {
            found.ok_or_else(|| format!("{what} is not built (`make cluster-build` does it)"))
        };
        if let Some(missing) = node::missing() {
            return Err(missing);
        }
        let helm = control_plane::cache().map(|cache| cache.join("helm"));
        Ok(Self {
            plane: built(control_plane::binaries(), "the control plane")?,
            nodes: built(node::binaries(), "the node")?,
            helm: built(helm.filter(|helm| helm.exists()), "Helm")?,
            programs: programs.to_owned(),
        })
    }
}

impl Installation {
    /// A control plane with the chart installed on it, and no node yet.
    pub async fn new(means: Means, folder: &Path) -> anyhow::Result<Self> {
        let world = World::new(Clock::system(), 1);
        scenario::queues(&world);
        let queues = serve::serve(wire::sqs::sqs(world.clone())).await?;
        let buckets = serve::serve(wire::s3::s3(world.clone())).await?;
        let mut settings = control_plane::Settings::new(&means.plane, &folder.join("plane"));
        settings.audit = Audit::Metadata;
        let plane = ControlPlane::start(settings).await?;
        let installation = Self {
            objects: Objects::new(plane.client()),
            world,
            images: images(&means.programs, folder)?,
            plane,
            means,
            folder: folder.to_owned(),
            queues,
            buckets,
            metadata: BTreeMap::new(),
            nodes: BTreeMap::new(),
        };
        let class = json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": { "name": node::NVIDIA }, "handler": node::NVIDIA,
        });
        installation.objects.create(class).await?;
        installation.install()?;
        Ok(installation)
    }

    /// `helm install`, with the two values that are needed and those that a cluster of this kind takes.
    fn install(&self) -> anyhow::Result<()> {
        let account = self.world.read(|state| state.instances.account().to_owned());
        let gateway = Ipv4Addr::new(NETWORK[0], NETWORK[1], NETWORK[2], 1);
        let queues = format!("http://{gateway}:{QUEUES}");
        let values = [
            ("bucket", programs::BUCKET.to_owned()),
            ("queue", format!("{queues}/{account}/{}", programs::QUEUE)),
            ("cluster", "real".to_owned()),
            ("region", serve::REGION.to_owned()),
            ("image.repository", LIFEBOAT.0.to_owned()),
            ("image.tag", LIFEBOAT.1.to_owned()),
            ("image.pullPolicy", "Never".to_owned()),
            ("controller.replicas", "1".to_owned()),
            ("agent.nvml.runtimeClassName", node::NVIDIA.to_owned()),
            ("config.karpenter.mode", "none".to_owned()),
            ("config.queue.endpoint", queues),
            ("config.store.endpoint", format!("http://{gateway}:{BUCKETS}")),
            ("config.store.chunk", "1MiB".to_owned()),
            ("config.agent.slot", "1MiB".to_owned()),
            ("config.agent.ringBudget", "256MiB".to_owned()),
        ];
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/lifeboat");
        let mut command = Command::new(&self.means.helm);
        command.args(["install", "lifeboat"]).arg(chart);
        // The definitions are there already.
        command.args(["--namespace", NAMESPACE, "--create-namespace", "--take-ownership"]);
        command.arg("--kubeconfig").arg(self.plane.kubeconfig());
        for (name, value) in values {
            command.arg("--set").arg(format!("{name}={value}"));
        }
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, self.folder.join("helm"));
        }
        let output = command.output().context("Helm was not run")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the chart was not installed: {said}");
        Ok(())
    }

    /// Starts a node, which joins by itself.
    pub async fn add_node(&mut self, purpose: Purpose) -> anyhow::Result<String> {
        let number = u8::try_from(self.metadata.len())?;
        let name = format!("node-{number}");
        let instance = format!("i-{:017x}", u32::from(number) + 1);
        let spot = matches!(purpose, Purpose::Work(_));
        let (instance_type, purchase) = match purpose {
            Purpose::System => ("m5.large", Purchase::OnDemand),
            Purpose::Work(_) => ("g5.xlarge", Purchase::Spot),
        };
        let now = self.world.now();
        let offering = Offering { instance_type, zone: ZONE, purchase };
        self.world.update(|state| state.instances.launch(&instance, offering, now));
        let metadata = serve::serve(wire::imds::imds(self.world.clone(), &instance)).await?;
        let gpus = match purpose {
            Purpose::System => Vec::new(),
            Purpose::Work(replicas) => {
                let uuid = format!("GPU-{number:08x}-0000-4000-8000-000000000001");
                vec![Gpu { uuid, resource: SLICES.to_owned(), replicas }]
            }
        };
        let mut labels = BTreeMap::from([
            ("node.kubernetes.io/instance-type".to_owned(), instance_type.to_owned()),
            ("topology.kubernetes.io/zone".to_owned(), ZONE.to_owned()),
        ]);
        let mut taints = Vec::new();
        if spot {
            labels.extend([
                ("eks.amazonaws.com/capacityType".to_owned(), "SPOT".to_owned()),
                ("nvidia.com/gpu.present".to_owned(), "true".to_owned()),
            ]);
            taints.push(json!({ "key": SLICES, "value": "present", "effect": "NoSchedule" }));
        }
        let [first, second, third] = NETWORK;
        let settings = node::Settings {
            binaries: self.means.nodes.clone(),
            state: self.folder.join(&name),
            address: Ipv4Addr::new(first, second, third, 1),
            provider_id: format!("aws:///{ZONE}/{instance}"),
            labels,
            taints,
            gpus,
            images: self.images.clone(),
            kubeconfig: self.plane.kubeconfig_of_node(&name),
            metadata: metadata.address(),
            services: BTreeMap::from([
                (QUEUES, self.queues.address()),
                (BUCKETS, self.buckets.address()),
            ]),
            name: name.clone(),
        };
        std::fs::create_dir_all(&settings.state)?;
        let node = Node::start(settings).await?;
        self.metadata.insert(name.clone(), metadata);
        self.nodes.insert(name.clone(), node);
        Ok(name)
    }

    /// Whether kubelet says that a node is ready, and its slices are offered.
    pub async fn is_ready(&self, name: &str) -> bool {
        let Some(node) = self.objects.find(NODE, ("", name)).await else { return false };
        let gpus = node.pointer("/metadata/labels/nvidia.com~1gpu.present").is_none()
            || node.pointer("/status/allocatable/nvidia.com~1gpu").is_some_and(|many| many != "0");
        condition(&node, "Ready") == "True" && gpus
    }

    /// A node that was added.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// What the containers of each pod wrote, wherever they run.
    pub fn said(&self) -> BTreeMap<String, Vec<String>> {
        self.nodes.values().flat_map(Node::said).collect()
    }

    /// What the containers of a pod wrote.
    pub fn said_by(&self, pod: &str) -> Vec<String> {
        self.said().remove(pod).unwrap_or_default()
    }

    /// The agent's pod on a node, once it is ready.
    pub async fn agent_on(&self, node: &str) -> Option<String> {
        let pods = self.objects.list(POD, "app.kubernetes.io/component=agent").await;
        let ready =
            |pod: &&Value| text(pod, "/spec/nodeName") == node && condition(pod, "Ready") == "True";
        pods.iter().find(ready).map(|pod| object_name(pod).to_owned())
    }

    /// The instance of a node.
    pub fn instance_of(&self, name: &str) -> String {
        let number = name.rsplit('-').next().and_then(|number| number.parse::<u32>().ok());
        format!("i-{:017x}", number.unwrap_or_default() + 1)
    }

    /// EC2 warns of a node's instance, in its metadata and by the queue.
    pub fn warn(&self, name: &str, lead: Duration) {
        self.world.announce(
            &self.instance_of(name),
            Announcement {
                action: NoticeAction::Terminate,
                lead,
                imds_after: Some(Duration::ZERO),
                queues: &[programs::QUEUE],
            },
        );
    }

    /// EC2 takes a node's instance: everything on it ends without a word.
    pub fn take(&mut self, name: &str) {
        let (instance, now) = (self.instance_of(name), self.world.now());
        self.world.update(|state| {
            state.instances.take(&instance, now);
            state.instances.terminated(&instance, now);
        });
        drop(self.nodes.remove(name));
    }

    /// The conformance suite of volume drivers, as it was built beside the node.
    pub fn suite(&self) -> PathBuf {
        self.means.nodes.join("csi-sanity")
    }

    /// The folder of our own programs.
    pub fn programs(&self) -> &Path {
        &self.means.programs
    }

    /// The control plane that all of it is on.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }
}

/// Writes the images of our program and of the trainer, stripped of what only debuggers read.
fn images(programs: &Path, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (repository, tag) = LIFEBOAT;
    let own = format!("{repository}:{tag}");
    let all = [("lifeboat", own.as_str()), ("examples/trainer", TRAINER)];
    let folder = folder.join("images");
    std::fs::create_dir_all(&folder)?;
    let mut written = Vec::new();
    for (program, name) in all {
        let whole = programs.join(program);
        let file = whole.file_name().context("a program has a name")?;
        let stripped = folder.join(file);
        let done = Command::new("strip").arg("-o").arg(&stripped).arg(&whole).status();
        if !done.is_ok_and(|status| status.success()) {
            std::fs::copy(&whole, &stripped)?;
        }
        let archive = stripped.with_extension("tar");
        Image::of(name, &stripped)?.write(&archive)?;
        written.push(archive);
    }
    Ok(written)
}

/// A Job of one pod that trains, which names all that the webhook would add, and no right that a pod
/// of the restricted profile does not have.
pub fn job(name: &str, mode: &str, arguments: &[&str]) -> Value {
    let marks = json!({ "lifeboat.dev/checkpoint": mode, "lifeboat.dev/job-key": name });
    let mut attributes = marks.clone();
    attributes["lifeboat.dev/grace"] = json!("30");
    let socket = json!({ "name": "LIFEBOAT_SOCKET", "value": "/run/lifeboat/agent.sock" });
    let container = json!({
        "name": "trainer",
        "image": TRAINER,
        "imagePullPolicy": "Never",
        "args": arguments,
        "env": [socket, { "name": "LIFEBOAT_REQUIRED", "value": "1" }],
        "resources": { "limits": { SLICES: "1", "memory": "256Mi" } },
        "volumeMounts": [{ "name": "lifeboat", "mountPath": "/run/lifeboat" }],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
        },
    });
    let pod = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "automountServiceAccountToken": false,
        "tolerations": [{ "key": SLICES, "operator": "Exists" }],
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container],
        "volumes": [
            { "name": "lifeboat", "csi": { "driver": "lifeboat.dev", "volumeAttributes": attributes } },
        ],
    });
    let ignored = json!({
        "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }],
    });
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": { "rules": [ignored] },
            "template": { "metadata": { "annotations": marks, "labels": { "job": name } }, "spec": pod },
        },
    })
}

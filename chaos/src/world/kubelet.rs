//! The kubelets: one for each machine, which runs the pods that are bound to its node.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::task::JoinSet;

use crate::wire::kubelet::serve_pod_resources;
use crate::world::World;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::cluster::resource::POD;
use crate::world::kubelet::pod::PodTask;
use crate::world::runtime::Runtime;
use crate::world::scheduler::fit::has_ended;

pub mod container;
pub mod csi;
pub mod devices;
pub mod files;
pub mod gpus;
pub mod pod;
pub mod status;
pub mod volumes;

/// Serves something for a node for as long as it is polled, as pod-resources on its socket.
pub type Side = Arc<dyn Fn(World, String, PathBuf) -> BoxFuture<'static, ()> + Send + Sync>;

/// How kubelets behave.
#[derive(Clone)]
pub struct Settings {
    /// From published volumes to started containers.
    pub start: Duration,
    /// From the end of the containers to the unpublishing of volumes.
    pub unpublish: Duration,
    /// From the end of a process to its leaving the GPU.
    pub linger: Duration,
    /// Wait before a container's first restart; doubled with each further one.
    pub backoff: Duration,
    /// Between two calls of `NodePublish` for a running pod.
    pub republish: Duration,
    /// Served beside each kubelet, given the node and its `hostRoot`.
    pub beside: Vec<Side>,
    /// Where in a machine's folder the fake NVML and its state file lie, if there is one.
    pub nvml: Option<PathBuf>,
}

impl Default for Settings {
    /// Times as they were measured on a real kubelet.
    fn default() -> Self {
        Self {
            start: Duration::from_millis(600),
            unpublish: Duration::from_millis(400),
            linger: Duration::from_millis(200),
            backoff: Duration::from_secs(10),
            republish: Duration::from_secs(10),
            beside: Vec::new(),
            nvml: None,
        }
    }
}

/// Runs a kubelet on each living machine for as long as it is polled.
pub async fn run(world: World, settings: Settings, runtime: Arc<dyn Runtime>) {
    let mut machines = JoinSet::new();
    let mut known: BTreeSet<(String, String)> = BTreeSet::new();
    loop {
        let found = world.until(|state| {
            let alive = state.machines.iter().filter(|(_, machine)| machine.alive);
            let named = alive.map(|(node, machine)| (node.to_owned(), machine.instance.clone()));
            let new: Vec<_> = named.filter(|machine| !known.contains(machine)).collect();
            (!new.is_empty()).then_some(new)
        });
        tokio::select! {
            biased;
            found = found => {
                for (node, instance) in found {
                    known.insert((node.clone(), instance.clone()));
                    let (world, runtime) = (world.clone(), Arc::clone(&runtime));
                    machines.spawn(machine(world, (node, instance), settings.clone(), runtime));
                }
            }
            Some(ended) = machines.join_next() => ended.expect("a kubelet does not panic"),
        }
    }
}

/// One machine's life: its pods end with it, without a word.
async fn machine(
    world: World,
    (node, instance): (String, String),
    settings: Settings,
    runtime: Arc<dyn Runtime>,
) {
    let root = world.read(|state| state.machines.get(&node).map(|machine| machine.root.clone()));
    let Some(root) = root else { return };
    files::prepare(&root);
    let dead = world.until(|state| {
        let machine = state.machines.get(&node);
        let alive = machine.is_some_and(|machine| machine.alive && machine.instance == instance);
        (!alive).then_some(())
    });
    let listing = serve_pod_resources(world.clone(), &node).await;
    let listing = listing.expect("a socket can be made in a machine's folder");
    let mut beside = JoinSet::new();
    for side in &settings.beside {
        beside.spawn(side(world.clone(), node.clone(), root.clone()));
    }
    if let Some(folder) = settings.nvml.as_ref().map(|folder| root.join(folder)) {
        std::fs::create_dir_all(&folder).expect("a machine's folder can be written");
        // Before it is built, a node has no library, as one without a driver.
        if let Err(error) = fake_nvml::install(&folder) {
            tracing::error!(%error, node, "the fake of NVIDIA's library was not installed");
        }
        beside.spawn(gpus::show(world.clone(), node.clone(), folder));
    }
    beside.spawn(csi::register(root.clone()));
    tokio::select! {
        biased;
        () = dead => (),
        () = pods(&world, (&node, root), &settings, &runtime) => (),
    }
    drop((beside, listing));
    world.update(|state| {
        if let Some(machine) = state.machines.get_mut(&node) {
            machine.processes.clear();
            machine.assignments.clear();
        }
    });
}

/// Starts a task for each pod that is bound to the node.
async fn pods(
    world: &World,
    (node, root): (&str, PathBuf),
    settings: &Settings,
    runtime: &Arc<dyn Runtime>,
) {
    let mut tasks: JoinSet<String> = JoinSet::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    loop {
        let found = world.until(|state| {
            let bound = state.cluster.list(POD).filter(|pod| text(pod, "/spec/nodeName") == node);
            let new = bound.filter(|pod| !has_ended(pod) && !known.contains(uid(pod)));
            let new: Vec<_> = new.cloned().collect();
            (!new.is_empty()).then_some(new)
        });
        tokio::select! {
            biased;
            found = found => {
                for pod in found {
                    known.insert(uid(&pod).to_owned());
                    let runtime = Arc::clone(runtime);
                    let task = PodTask::new(world, (node, &root), (settings, runtime), &pod);
                    tasks.spawn(task.run());
                }
            }
            Some(ended) = tasks.join_next() => {
                known.remove(&ended.expect("a pod's task does not panic"));
            }
        }
    }
}

//! The machines under the nodes: their folders, their GPUs, and who is on them.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Every machine, by node name.
#[derive(Debug, Default)]
pub struct Machines {
    machines: BTreeMap<String, Machine>,
    last_pid: u32,
}

/// One machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// EC2 instance id.
    pub instance: String,
    /// The agent's `hostRoot`; everything of this machine lies below it.
    pub root: PathBuf,
    /// Its GPUs, in the order of their index.
    pub gpus: Vec<Gpu>,
    /// Which devices kubelet gave to whom: what pod-resources answers. An ended pod is not in it.
    pub assignments: Vec<Assignment>,
    /// Processes on its GPUs, by process id: what NVML shows.
    pub processes: BTreeMap<u32, GpuProcess>,
    /// False once the instance is gone.
    pub alive: bool,
}

/// One physical GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// `GPU-<uuid>`.
    pub uuid: String,
    /// Extended resource that the device plugin offers it under.
    pub resource: String,
    /// Time slices; 1 is a whole GPU, whose device id is the uuid itself.
    pub replicas: u32,
}

/// Devices given to one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Extended resource.
    pub resource: String,
    /// Device ids, as the device plugin names them.
    pub devices: Vec<String>,
}

/// A process that has a context on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuProcess {
    /// `GPU-<uuid>` of the physical GPU.
    pub gpu: String,
    /// UID of the pod it belongs to.
    pub pod: String,
    /// GPU memory held.
    pub bytes: u64,
}

impl Machines {
    /// Adds a machine, or replaces one.
    pub fn insert(&mut self, node: &str, machine: Machine) {
        self.machines.insert(node.to_owned(), machine);
    }

    /// The machine of a node.
    pub fn get(&self, node: &str) -> Option<&Machine> {
        self.machines.get(node)
    }

    /// The machine of a node, to change it.
    pub fn get_mut(&mut self, node: &str) -> Option<&mut Machine> {
        self.machines.get_mut(node)
    }

    /// All machines by node name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Machine)> {
        self.machines.iter().map(|(node, machine)| (node.as_str(), machine))
    }

    /// The machine of an instance is gone, with all that ran on it.
    pub fn die(&mut self, instance: &str) {
        let own = self.machines.values_mut().filter(|machine| machine.instance == instance);
        own.for_each(|machine| machine.alive = false);
    }

    /// A process id that no process in this world has had; for virtual workloads.
    pub fn new_pid(&mut self) -> u32 {
        const FIRST: u32 = 10_000;
        self.last_pid = self.last_pid.max(FIRST) + 1;
        self.last_pid
    }
}

impl Gpu {
    /// The device ids that the device plugin advertises for it.
    pub fn device_ids(&self) -> Vec<String> {
        if self.replicas <= 1 {
            return vec![self.uuid.clone()];
        }
        (0..self.replicas).map(|slice| format!("{}::{slice}", self.uuid)).collect()
    }
}

/// The physical GPU of a device id: `GPU-<uuid>::<n>` without its slice.
pub fn physical(device: &str) -> &str {
    device.split_once("::").map_or(device, |(gpu, _)| gpu)
}

//! How a simulated kubelet runs containers: as virtual workloads, or as real processes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use futures::future::BoxFuture;
use serde_json::Value;

use crate::world::World;

/// Exit code of a container that SIGTERM ended.
pub const TERMINATED: i32 = 143;
/// Exit code of a container that SIGKILL ended.
pub const KILLED: i32 = 137;

/// Runs containers. One implementation plays workloads in virtual time, one spawns processes.
pub trait Runtime: Send + Sync + 'static {
    /// Starts one container; called once per start and restart, after its volumes are published.
    fn start(&self, world: &World, launch: Launch) -> Box<dyn Container>;
}

/// What a container is started with.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Name of the node.
    pub node: String,
    /// The node's `hostRoot`: all host paths lie below it.
    pub root: PathBuf,
    /// The pod as it stands in the API server.
    pub pod: Value,
    /// Name of the container in it.
    pub container: String,
    /// How often this container was started before in this pod.
    pub restarts: u32,
    /// Device ids that were allocated to the container, as `GPU-<uuid>::<n>`.
    pub devices: Vec<String>,
    /// Folder on this machine of each volume that the container mounts, by mount path.
    pub mounts: BTreeMap<String, PathBuf>,
}

/// A container that was started. Dropping it kills it.
pub trait Container: Send {
    /// Its processes, as the host numbers them.
    fn pids(&self) -> Vec<u32>;
    /// Those of its processes that are on its GPU now, each with the bytes that it holds there.
    fn gpu_processes(&self) -> BTreeMap<u32, u64>;
    /// Sends SIGTERM; the container may take its time.
    fn terminate(&mut self);
    /// Sends SIGKILL.
    fn kill(&mut self);
    /// Resolves to the exit code. May be called again after it was dropped half-way.
    fn exited(&mut self) -> BoxFuture<'_, i32>;
}

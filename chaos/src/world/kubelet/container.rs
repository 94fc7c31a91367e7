//! One container of a pod: started, started again, told to end, killed.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::world::State;
use crate::world::cluster::object::number;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::kubelet::devices;
use crate::world::kubelet::files;
use crate::world::kubelet::files::Group;
use crate::world::kubelet::pod::PodTask;
use crate::world::kubelet::status::Entry;
use crate::world::kubelet::volumes;
use crate::world::machines::GpuProcess;
use crate::world::machines::physical;
use crate::world::runtime::Container;
use crate::world::runtime::Launch;

/// Longest wait before a restart.
const BACKOFF_MAX: Duration = Duration::from_mins(5);

/// Between two looks at a frozen pod that is to end.
const THAW: Duration = Duration::from_millis(100);

/// A container.
pub(super) struct ContainerTask<'a> {
    pod: &'a PodTask,
    name: String,
}

/// How one run of a container ended.
struct Ended {
    code: i32,
    by_kubelet: bool,
}

impl<'a> ContainerTask<'a> {
    pub(super) fn new(pod: &'a PodTask, container: &Value) -> Self {
        Self { pod, name: text(container, "/name").to_owned() }
    }

    /// Runs it until it ends for good; answers its last exit code.
    pub(super) async fn run(self) -> i32 {
        let mut restarts = 0;
        loop {
            let ended = self.once(restarts).await;
            let again = match self.pod.restart_policy() {
                "Never" => false,
                "OnFailure" => ended.code != 0,
                _ => true,
            };
            if ended.by_kubelet || !again {
                return ended.code;
            }
            let pause = self.pod.settings.backoff.saturating_mul(restarts).min(BACKOFF_MAX);
            tokio::select! {
                biased;
                () = self.pod.deleting() => return ended.code,
                () = tokio::time::sleep(pause) => (),
            }
            restarts += 1;
        }
    }

    /// One run.
    async fn once(&self, restarts: u32) -> Ended {
        let launch = self.launch(restarts);
        let mut container = self.pod.runtime.start(&self.pod.world, launch.clone());
        let group = self.enter(container.as_ref(), &launch);
        let entry = Entry { name: &self.name, restarts };
        self.pod.status(|pod, now| entry.running(pod, now, group.id()));
        let ended = tokio::select! {
            biased;
            code = container.exited() => Some(code),
            () = self.pod.deleting() => None,
        };
        let ended = match ended {
            Some(code) => Ended { code, by_kubelet: false },
            None => Ended { code: self.end(container.as_mut()).await, by_kubelet: true },
        };
        drop(container);
        group.leave();
        tokio::time::sleep(self.pod.settings.linger).await;
        self.leave(&group);
        self.pod.status(|pod, now| entry.terminated(pod, now, ended.code));
        ended
    }

    fn launch(&self, restarts: u32) -> Launch {
        let pod = self.pod;
        let devices = pod.world.read(|state| {
            let machine = state.machines.get(&pod.node);
            machine.map(|machine| devices::of(machine, &pod.uid, &self.name)).unwrap_or_default()
        });
        let current = pod.world.read(|state| state.cluster.get(&pod.target).cloned());
        Launch {
            node: pod.node.clone(),
            root: pod.root.clone(),
            pod: Value::clone(&current.unwrap_or_else(|| pod.pod.clone())),
            container: self.name.clone(),
            restarts,
            devices,
            mounts: volumes::mounts(pod, &self.name),
        }
    }

    /// The container's processes show up: in their control group, and on their GPU.
    fn enter(&self, container: &dyn Container, launch: &Launch) -> Group {
        let id = self.pod.world.update(|state| {
            let (first, second) = (state.random.u128(..), state.random.u128(..));
            format!("{first:032x}{second:032x}")
        });
        let group = Group::make(&self.pod.root, &self.pod.uid, id, container.pids());
        let Some(device) = launch.devices.first() else { return group };
        let gpu = physical(device).to_owned();
        let processes: BTreeMap<u32, GpuProcess> = container
            .gpu_processes()
            .into_iter()
            .map(|(pid, bytes)| {
                (pid, GpuProcess { gpu: gpu.clone(), pod: self.pod.uid.clone(), bytes })
            })
            .collect();
        self.pod.world.update(|state| {
            if let Some(machine) = state.machines.get_mut(&self.pod.node) {
                machine.processes.extend(processes);
            }
        });
        group
    }

    fn leave(&self, group: &Group) {
        self.pod.world.update(|state| {
            if let Some(machine) = state.machines.get_mut(&self.pod.node) {
                machine.processes.retain(|pid, _| !group.pids().contains(pid));
            }
        });
    }

    /// SIGTERM, and SIGKILL when the grace is over. A frozen process hears SIGTERM when it thaws.
    async fn end(&self, container: &mut dyn Container) -> i32 {
        let killed = self.kill_time();
        let mut killed = std::pin::pin!(killed);
        let thawed = async {
            while files::is_frozen(&self.pod.root, &self.pod.uid) {
                tokio::time::sleep(THAW).await;
            }
        };
        let heard = tokio::select! {
            biased;
            () = thawed => true,
            () = killed.as_mut() => false,
        };
        if heard {
            container.terminate();
            tokio::select! {
                biased;
                code = container.exited() => return code,
                () = killed => (),
            }
        }
        container.kill();
        container.exited().await
    }

    /// Returns when the grace is over: counted from when kubelet saw it, and only ever shortened.
    async fn kill_time(&self) {
        let mut due: Option<Instant> = None;
        let mut seen = None;
        loop {
            let grace = self.pod.world.read(|state| self.grace(state));
            if grace != seen {
                seen = grace;
                let until = Instant::now() + grace.unwrap_or_default();
                due = Some(due.map_or(until, |due| due.min(until)));
            }
            let Some(due) = due else { return };
            let changed = self.pod.world.until(|state| (self.grace(state) != seen).then_some(()));
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due) => return,
                () = changed => (),
            }
        }
    }

    /// What the API server says the pod still has; nothing once it is gone.
    fn grace(&self, state: &State) -> Option<Duration> {
        let pod = self.pod;
        let object = state.cluster.get(&pod.target).filter(|object| uid(object) == pod.uid)?;
        let seconds = number(object, "/metadata/deletionGracePeriodSeconds")?;
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }
}

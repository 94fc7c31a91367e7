//! One pod on a node: its devices, its volumes, its containers, and its end.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::Value;
use serde_json::json;

use crate::world::World;
use crate::world::cluster::Caller;
use crate::world::cluster::Target;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::object::Condition;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::items;
use crate::world::cluster::object::second;
use crate::world::cluster::object::set;
use crate::world::cluster::object::set_condition;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::cluster::resource::POD;
use crate::world::cluster::write::Door;
use crate::world::kubelet::Settings;
use crate::world::kubelet::container::ContainerTask;
use crate::world::kubelet::devices;
use crate::world::kubelet::files;
use crate::world::kubelet::volumes;
use crate::world::runtime::Runtime;

/// What is known of a pod while it runs.
#[derive(Clone)]
pub struct PodTask {
    pub(super) world: World,
    pub(super) node: String,
    pub(super) root: PathBuf,
    pub(super) settings: Settings,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) pod: Arc<Value>,
    pub(super) target: Target,
    pub(super) uid: String,
}

/// Why a pod is not to be started.
enum Stop {
    /// It is being deleted, or gone.
    Deleted,
    /// The node has no device for it.
    NoDevice,
}

impl PodTask {
    /// The task of one pod.
    pub(super) fn new(
        world: &World,
        (node, root): (&str, &Path),
        (settings, runtime): (&Settings, Arc<dyn Runtime>),
        pod: &Arc<Value>,
    ) -> Self {
        Self {
            world: world.clone(),
            node: node.to_owned(),
            root: root.to_owned(),
            settings: settings.clone(),
            runtime,
            pod: Arc::clone(pod),
            target: Target::of(POD, pod),
            uid: uid(pod).to_owned(),
        }
    }

    /// Runs the pod to its end, and gives back its UID.
    pub(super) async fn run(self) -> String {
        match self.prepare().await {
            Ok(()) => {
                let phase = self.containers().await;
                self.release(phase);
            }
            Err(Stop::NoDevice) => self.refuse(),
            Err(Stop::Deleted) => self.release("Failed"),
        }
        tokio::time::sleep(self.settings.unpublish).await;
        volumes::unpublish(&self).await;
        files::remove_pod(&self.root, &self.uid);
        self.gone().await;
        self.uid
    }

    /// Devices first, then volumes: the order of a real kubelet.
    async fn prepare(&self) -> Result<(), Stop> {
        let granted = self.world.update(|state| {
            let machine = state.machines.get_mut(&self.node)?;
            devices::allocate(machine, &self.pod)
        });
        granted.ok_or(Stop::NoDevice)?;
        self.status(|pod, now| {
            set(pod, "/status/startTime", json!(second(now)));
            set_condition(pod, Condition::plain("Initialized", "True"), now);
        });
        tokio::select! {
            biased;
            () = self.deleting() => return Err(Stop::Deleted),
            () = volumes::publish(self) => (),
        }
        tokio::select! {
            biased;
            () = self.deleting() => Err(Stop::Deleted),
            () = tokio::time::sleep(self.settings.start) => Ok(()),
        }
    }

    /// Runs all containers, init containers first, and says in what phase that ends.
    async fn containers(&self) -> &'static str {
        for container in items(&self.pod, "/spec/initContainers") {
            if ContainerTask::new(self, container).run().await != 0 {
                return "Failed";
            }
        }
        self.status(|pod, now| {
            set(pod, "/status/phase", json!("Running"));
            set(pod, "/status/podIP", json!("10.0.0.10"));
            set_condition(pod, Condition::plain("ContainersReady", "True"), now);
            set_condition(pod, Condition::plain("Ready", "True"), now);
        });
        let containers = items(&self.pod, "/spec/containers").iter();
        let mut running: FuturesUnordered<_> =
            containers.map(|container| ContainerTask::new(self, container).run()).collect();
        let mut phase = "Succeeded";
        let ending = async {
            while let Some(code) = running.next().await {
                if code != 0 {
                    phase = "Failed";
                }
            }
        };
        tokio::select! {
            biased;
            () = ending => (),
            never = self.republish() => match never {},
        }
        phase
    }

    /// Publishes the volumes again and again, as kubelet does for a driver that wants it.
    async fn republish(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(self.settings.republish).await;
            volumes::republish(self).await;
        }
    }

    /// The containers have ended: the devices are free, and the phase is final.
    fn release(&self, phase: &str) {
        self.world.update(|state| {
            if let Some(machine) = state.machines.get_mut(&self.node) {
                machine.assignments.retain(|assignment| assignment.uid != self.uid);
            }
        });
        self.status(|pod, now| {
            set(pod, "/status/phase", json!(phase));
            let reason = if phase == "Succeeded" { "PodCompleted" } else { "PodFailed" };
            for kind in ["ContainersReady", "Ready"] {
                let (status, message) = ("False", "");
                set_condition(pod, Condition { kind, status, reason, message }, now);
            }
        });
    }

    fn refuse(&self) {
        self.status(|pod, _| {
            set(pod, "/status/phase", json!("Failed"));
            set(pod, "/status/reason", json!("UnexpectedAdmissionError"));
        });
    }

    /// Returns once the pod is being deleted, or gone.
    pub(super) async fn deleting(&self) {
        self.world
            .until(|state| {
                let pod = state.cluster.get(&self.target).filter(|pod| uid(pod) == self.uid);
                pod.is_none_or(|pod| is_deleting(pod)).then_some(())
            })
            .await;
    }

    /// Waits until the pod is deleted, then takes it out of the API server.
    async fn gone(&self) {
        self.deleting().await;
        let options = DeleteOptions::of_uid(&self.uid).with_grace(Duration::ZERO);
        self.world.update(|state| {
            let deleted = state.cluster.delete(&kubelet(), &self.target, &options);
            // Someone else may have forced it out before.
            if let Err(refusal) = deleted {
                tracing::debug!(pod = %self.target, "pod was gone: {}", refusal.message);
            }
        });
    }

    /// Changes the pod's status, if the pod is still there.
    pub(super) fn status(&self, change: impl FnOnce(&mut Value, jiff::Timestamp)) {
        self.world.update(|state| {
            let cluster = &mut state.cluster;
            let now = cluster.now();
            let here = cluster.get(&self.target).is_some_and(|pod| uid(pod) == self.uid);
            if here {
                let door = (&self.target, Door::Back);
                let edited = cluster.edit(&kubelet(), door, |pod| change(pod, now));
                edited.expect("the pod is there, and this door has no rules");
            }
        });
    }

    /// `Always`, `OnFailure` or `Never`.
    pub(super) fn restart_policy(&self) -> &str {
        text(&self.pod, "/spec/restartPolicy")
    }
}

/// Who writes.
pub(super) fn kubelet() -> Caller {
    Caller::named("kubelet")
}

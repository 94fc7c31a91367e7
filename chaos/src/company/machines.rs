//! The machines under the nodes of a real cluster: they come with their nodes, and end when EC2 or
//! Karpenter takes them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use serde_json::Value;
use serde_json::json;

use crate::company::objects::NODE;
use crate::company::objects::NODE_CLAIM;
use crate::company::objects::Objects;
use crate::company::objects::plain;
use crate::world::State;
use crate::world::World;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::label;
use crate::world::cluster::object::name;
use crate::world::cluster::object::text;
use crate::world::instances::Offering;
use crate::world::instances::Purchase;
use crate::world::machines::Gpu;
use crate::world::machines::Machine;
use crate::world::scheduler::quantity::amounts;

/// From an instance's being taken to its processes' end.
const SHUTDOWN: Duration = Duration::from_secs(1);
/// Between two looks at what EC2 is about to take.
const LOOK: Duration = Duration::from_millis(50);

/// What the machines are made from.
#[derive(Clone)]
pub(super) struct Machines {
    pub(super) objects: Objects,
    pub(super) world: World,
    /// Which nodes are ours.
    pub(super) selector: String,
    /// Where the machines have their folders.
    pub(super) folder: PathBuf,
    /// Slices of each GPU.
    pub(super) slices: u32,
}

impl Machines {
    /// Follows the nodes for as long as it is polled.
    pub(super) async fn follow_nodes(self) {
        let config = watcher::Config::default().labels(&self.selector);
        let mut events = watcher(self.objects.api(NODE, ""), config).boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(node) | Event::InitApply(node)) => {
                    self.appeared(&plain(&node)).await;
                }
                Ok(Event::Delete(node)) => self.end_of(&plain(&node)),
                Ok(Event::Init | Event::InitDone) => (),
                Err(error) => tracing::debug!(%error, "nodes not watched"),
            }
        }
    }

    /// Follows Karpenter's claims: one whose instance it asks EC2 to terminate loses it at once.
    pub(super) async fn follow_claims(self) {
        let config = watcher::Config::default().labels(&self.selector);
        let mut events = watcher(self.objects.api(NODE_CLAIM, ""), config).boxed();
        while let Some(event) = events.next().await {
            if let Ok(Event::Apply(claim) | Event::InitApply(claim)) = event {
                let claim = plain(&claim);
                if condition(&claim, "InstanceTerminating") == "True" {
                    let instance = instance_of(text(&claim, "/status/providerID"));
                    self.world.update(|state| end(state, instance));
                }
            }
        }
    }

    /// EC2 takes instances at their hour, for as long as it is polled.
    pub(super) async fn take_at_their_hour(self) {
        loop {
            let due = self.world.read(|state| state.instances.due(self.world.now()));
            for instance in due {
                let now = self.world.now();
                self.world.update(|state| state.instances.take(&instance, now));
                tokio::time::sleep(SHUTDOWN).await;
                self.world.update(|state| end(state, &instance));
                self.silence(&instance).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A node whose machine is gone renews nothing any more: nobody plays its kubelet.
    async fn silence(&self, instance: &str) {
        let node = self.world.read(|state| {
            let mut machines = state.machines.iter();
            machines
                .find(|(_, machine)| machine.instance == instance)
                .map(|(node, _)| node.to_owned())
        });
        let Some(node) = node else { return };
        let patch = json!({ "metadata": { "annotations": { "kwok.x-k8s.io/node": null } } });
        if let Err(error) = self.objects.merge(NODE, ("", &node), patch).await {
            tracing::debug!(%error, node, "node was gone");
        }
    }

    async fn appeared(&self, node: &Value) {
        let (known, instance) =
            (name(node).to_owned(), instance_of(text(node, "/spec/providerID")));
        let there = self.world.read(|state| state.machines.get(&known).is_some());
        if instance.is_empty() || there || self.gpus(node, instance).is_empty() {
            return;
        }
        if self.slices > 1 {
            self.label_slices(&known).await;
        }
        self.world.update(|state| self.enter(state, node, instance));
    }

    fn enter(&self, state: &mut State, node: &Value, instance: &str) {
        let now = state.cluster.now();
        let purchase = match label(node, "karpenter.sh/capacity-type") {
            "on-demand" => Purchase::OnDemand,
            _ => Purchase::Spot,
        };
        let offering = Offering {
            instance_type: label(node, "node.kubernetes.io/instance-type"),
            zone: zone_of(text(node, "/spec/providerID")),
            purchase,
        };
        state.instances.launch(instance, offering, now);
        let gpus = self.gpus(node, instance);
        state.machines.insert(
            name(node),
            Machine {
                instance: instance.to_owned(),
                root: self.folder.join(instance),
                gpus,
                assignments: Vec::new(),
                processes: BTreeMap::new(),
                alive: true,
            },
        );
    }

    /// The GPUs whose slices a node's device plugin offers.
    fn gpus(&self, node: &Value, instance: &str) -> Vec<Gpu> {
        let offered = amounts(node.pointer("/status/capacity")).into_iter();
        let offered = offered.filter(|(resource, _)| resource.starts_with("nvidia.com/"));
        let mut gpus = Vec::new();
        for (resource, thousandths) in offered {
            for _ in 0..thousandths / 1000 / i128::from(self.slices) {
                let number = gpus.len() + 1;
                let tail = instance.trim_start_matches("i-");
                let uuid =
                    format!("GPU-{:0>8}-0000-4000-8000-{number:012x}", &tail[tail.len() - 8..]);
                gpus.push(Gpu { uuid, resource: resource.clone(), replicas: self.slices });
            }
        }
        gpus
    }

    /// What GPU feature discovery says of a node whose GPUs are sliced.
    async fn label_slices(&self, node: &str) {
        let labels = json!({ "metadata": { "labels": {
            "nvidia.com/gpu.replicas": self.slices.to_string(),
            "nvidia.com/gpu.sharing-strategy": "time-slicing",
        } } });
        if let Err(error) = self.objects.merge(NODE, ("", node), labels).await {
            tracing::warn!(%error, node, "slices not labeled");
        }
    }

    fn end_of(&self, node: &Value) {
        let instance = instance_of(text(node, "/spec/providerID"));
        self.world.update(|state| end(state, instance));
    }
}

/// The instance is gone, and everything on it.
fn end(state: &mut State, instance: &str) {
    let now = state.cluster.now();
    state.instances.terminated(instance, now);
    state.machines.die(instance);
}

/// The instance of `aws:///<zone>/<instance>`.
pub(super) fn instance_of(provider_id: &str) -> &str {
    provider_id.rsplit_once('/').map_or("", |(_, instance)| instance)
}

fn zone_of(provider_id: &str) -> &str {
    provider_id.trim_start_matches("aws:///").split('/').next().unwrap_or_default()
}

//! Nodes, pods and budgets for scenarios: valid ones to start from.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use serde_json::Value;
use serde_json::json;

use crate::world::State;
use crate::world::World;
use crate::world::cluster::object::items;
use crate::world::cluster::object::set;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::NODE_CLAIM;
use crate::world::cluster::resource::NODE_CLASS;
use crate::world::cluster::resource::NODE_POOL;
use crate::world::instances::Purchase;
use crate::world::machines::Gpu;
use crate::world::machines::Machine;
use crate::world::offerings::Offering;

/// A node with its instance and its machine.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Its name.
    pub name: String,
    /// Its EC2 instance, which is launched unless it is there.
    pub instance: String,
    /// What it was bought as.
    pub offering: Offering,
    /// Its labels, beyond those that every node has.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Value>,
    /// The machine's folder.
    pub root: PathBuf,
    /// The name of Karpenter's claim for it; one that isn't there is made. Without one the node is
    /// of a managed group.
    pub claim: Option<String>,
    /// The pool that the claim is of.
    pub pool: Option<String>,
    /// GPUs in place of those of the offering.
    pub gpus: Option<Vec<Gpu>>,
}

impl NodeSpec {
    /// A node of an offering, without a claim.
    pub fn new(name: &str, instance: &str, offering: &Offering) -> Self {
        Self {
            name: name.to_owned(),
            instance: instance.to_owned(),
            offering: offering.clone(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            root: PathBuf::new(),
            claim: None,
            pool: None,
            gpus: None,
        }
    }

    /// The same, with its machine's folder below this one.
    #[must_use]
    pub fn below(self, folder: &Path) -> Self {
        Self { root: folder.join(&self.name), ..self }
    }

    /// The same, as Karpenter made it for a pool.
    #[must_use]
    pub fn of_pool(self, pool: &str) -> Self {
        let claim = format!("{pool}-{}", self.name);
        Self { claim: Some(claim), pool: Some(pool.to_owned()), ..self }
    }

    /// Puts it into the world.
    pub fn add(&self, world: &World) {
        world.update(|state| self.register(state));
    }

    /// Puts instance, machine, claim and node into the world, ready to run pods.
    pub fn register(&self, state: &mut State) {
        let now = state.cluster.now();
        let offering = &self.offering;
        if state.instances.get(&self.instance).is_none() {
            state.instances.launch(&self.instance, offering.order(), now);
        }
        let gpus = self.gpus.clone().unwrap_or_else(|| gpus(state, offering));
        if let Some(claim) = &self.claim
            && state.cluster.find(NODE_CLAIM, claim).is_none()
        {
            let requirements = self.requirements(state);
            state.cluster.put(NODE_CLAIM, self.claim(claim, &requirements));
        }
        state.cluster.put(NODE, self.node(&gpus));
        state.machines.insert(
            &self.name,
            Machine {
                instance: self.instance.clone(),
                root: self.root.clone(),
                gpus,
                assignments: Vec::new(),
                processes: BTreeMap::new(),
                alive: true,
            },
        );
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.offering.labels();
        if let Some(pool) = &self.pool {
            labels.insert("karpenter.sh/nodepool".to_owned(), pool.clone());
        }
        if self.claim.is_some() {
            labels.insert("karpenter.sh/registered".to_owned(), "true".to_owned());
        }
        labels.extend(self.labels.clone());
        labels
    }

    fn provider_id(&self) -> String {
        format!("aws:///{}/{}", self.offering.zone, self.instance)
    }

    fn node(&self, gpus: &[Gpu]) -> Value {
        let mut offered: BTreeMap<&str, usize> = BTreeMap::new();
        for gpu in gpus {
            *offered.entry(&gpu.resource).or_default() += gpu.device_ids().len();
        }
        let allocatable: Value = offered
            .iter()
            .map(|(name, count)| ((*name).to_owned(), json!(count.to_string())))
            .collect();
        let ready = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady" });
        let mut node = json!({
            "metadata": { "name": self.name, "labels": self.labels() },
            "spec": { "providerID": self.provider_id(), "taints": self.taints },
            "status": {
                "capacity": allocatable, "allocatable": allocatable, "conditions": [ready],
                "nodeInfo": { "kubeletVersion": "v1.35.4" },
            },
        });
        if self.taints.is_empty() {
            node["spec"].as_object_mut().map(|spec| spec.remove("taints"));
        }
        if self.claim.is_some() {
            set(&mut node, "/metadata/finalizers", json!(["karpenter.sh/termination"]));
        }
        node
    }

    /// What a claim was asked for: all that its pool allows, of which the offering is one.
    fn requirements(&self, state: &State) -> Vec<Value> {
        let requirement =
            |key: &str, value: &str| json!({ "key": key, "operator": "In", "values": [value] });
        let pool = self.pool.as_ref().and_then(|pool| state.cluster.find(NODE_POOL, pool));
        let Some((name, pool)) = self.pool.as_ref().zip(pool) else {
            return vec![
                requirement("node.kubernetes.io/instance-type", &self.offering.instance_type),
                requirement("topology.kubernetes.io/zone", &self.offering.zone),
                requirement("karpenter.sh/capacity-type", self.offering.purchase.as_str()),
            ];
        };
        let allowed = items(pool, "/spec/template/spec/requirements").iter().cloned();
        allowed.chain([requirement("karpenter.sh/nodepool", name)]).collect()
    }

    fn claim(&self, name: &str, requirements: &[Value]) -> Value {
        let conditions = ["Launched", "Registered", "Initialized", "Ready"]
            .map(|kind| json!({ "type": kind, "status": "True", "reason": kind, "message": "" }));
        json!({
            "metadata": {
                "name": name, "labels": self.labels(), "finalizers": ["karpenter.sh/termination"],
            },
            "spec": {
                "nodeClassRef": class_reference(),
                "requirements": requirements,
                "taints": self.taints,
                "resources": { "requests": { "nvidia.com/gpu": "1" } },
                "expireAfter": "720h",
            },
            "status": {
                "nodeName": self.name, "providerID": self.provider_id(), "conditions": conditions,
                "capacity": { "nvidia.com/gpu": self.offering.gpus.to_string() },
            },
        })
    }
}

fn gpus(state: &mut State, offering: &Offering) -> Vec<Gpu> {
    let uuid = |state: &mut State| format!("GPU-{}", state.cluster.new_uid());
    let one = |uuid| Gpu { uuid, resource: offering.resource.clone(), replicas: offering.replicas };
    (0..offering.gpus).map(|_| one(uuid(state))).collect()
}

fn class_reference() -> Value {
    json!({ "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu" })
}

impl State {
    /// A node name that nobody has, as EKS gives them.
    pub fn new_node_name(&mut self) -> String {
        loop {
            let (third, fourth) = (self.random.u8(..), self.random.u8(..));
            let name = format!("ip-10-0-{third}-{fourth}.us-east-2.compute.internal");
            if self.machines.get(&name).is_none() {
                return name;
            }
        }
    }
}

/// Adds a NodePool, and its node class, whose claims have these requirements.
pub fn add_pool(world: &World, name: &str, requirements: &[Value]) {
    world.update(|state| {
        let class = json!({
            "metadata": { "name": "gpu" },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        state.cluster.put(NODE_CLASS, class);
        let spec = json!({
            "nodeClassRef": class_reference(), "requirements": requirements, "expireAfter": "720h",
        });
        state.cluster.put(
            NODE_POOL,
            json!({ "metadata": { "name": name }, "spec": { "template": { "spec": spec } } }),
        );
    });
}

/// The offerings that most scenarios have: two types with a GPU each in three zones, Spot and on
/// demand, each GPU in `replicas` slices.
pub fn add_offerings(world: &World, replicas: u32) {
    world.update(|state| {
        let types = [("g5.xlarge", 4_000), ("g6.xlarge", 5_000)];
        for (instance_type, price) in types {
            for zone in ["us-east-2a", "us-east-2b", "us-east-2c"] {
                for (purchase, price) in [(Purchase::Spot, price), (Purchase::OnDemand, price * 3)]
                {
                    let whole = Offering::whole(instance_type, zone, purchase, price);
                    state.offerings.all.push(whole.sliced(1, replicas));
                }
            }
        }
    });
}

//! Whether a pod fits on a node, one that is there or one that is still to come.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::json;

use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::object::entries;
use crate::world::cluster::object::is_true;
use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::text;
use crate::world::cluster::resource::POD;
use crate::world::cluster::resource::VOLUME;
use crate::world::cluster::resource::VOLUME_CLAIM;
use crate::world::cluster::selector::satisfies;
use crate::world::scheduler::quantity::Amounts;
use crate::world::scheduler::quantity::add;
use crate::world::scheduler::quantity::amounts;

/// Where a pod says which nodes it wants.
pub const NODE_TERMS: &str =
    "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";

/// What a node offers to pods.
#[derive(Clone, Debug)]
pub struct Room {
    /// Its name, or the one it will have.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints; a cordon is one of them.
    pub taints: Vec<Value>,
    /// What is not taken yet.
    pub free: Amounts,
}

impl Room {
    /// What a node that is there has left.
    pub fn on(cluster: &Cluster, node: &Value) -> Self {
        let mut taints = items(node, "/spec/taints").to_vec();
        if is_true(node, "/spec/unschedulable") {
            let key = "node.kubernetes.io/unschedulable";
            taints.push(json!({ "key": key, "effect": "NoSchedule" }));
        }
        let mut free = amounts(node.pointer("/status/allocatable"));
        let here = cluster.list(POD).filter(|pod| text(pod, "/spec/nodeName") == name(node));
        for pod in here.filter(|pod| !has_ended(pod)) {
            take(&mut free, &requests(pod));
        }
        let labels = entries(node, "/metadata/labels");
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Self { name: name(node).to_owned(), labels, taints, free }
    }

    /// Whether a pod fits in.
    pub fn takes(&self, cluster: &Cluster, pod: &Value) -> bool {
        self.tolerated(pod, &["NoSchedule", "NoExecute"])
            && self.selected(pod)
            && self.reaches_volumes(cluster, pod)
            && requests(pod).iter().all(|(resource, wanted)| {
                // A node that says nothing of a plain resource has enough of it.
                let plain = !resource.contains('/');
                self.free.get(resource).map_or(plain, |free| free >= wanted)
            })
    }

    /// Takes a pod in.
    pub fn put(&mut self, pod: &Value) {
        take(&mut self.free, &requests(pod));
    }

    /// Whether a pod may come here, were there room for it.
    pub fn admits(&self, pod: &Value) -> bool {
        self.tolerated(pod, &["NoSchedule", "NoExecute"]) && self.selected(pod)
    }

    fn tolerated(&self, pod: &Value, effects: &[&str]) -> bool {
        let barring = self.taints.iter().filter(|taint| effects.contains(&text(taint, "/effect")));
        barring.into_iter().all(|taint| tolerates(pod, taint))
    }

    fn selected(&self, pod: &Value) -> bool {
        let mut selector = entries(pod, "/spec/nodeSelector");
        let labels =
            selector.all(|(key, value)| self.labels.get(key).is_some_and(|is| is == value));
        let terms = items(pod, NODE_TERMS);
        labels && (terms.is_empty() || terms.iter().any(|term| self.is_of(term)))
    }

    /// Whether this node is one of a `nodeSelectorTerm`.
    fn is_of(&self, term: &Value) -> bool {
        let labels = items(term, "/matchExpressions").iter().all(|expression| {
            satisfies(expression, self.labels.get(text(expression, "/key")).map(String::as_str))
        });
        let fields = items(term, "/matchFields").iter().all(|expression| {
            text(expression, "/key") == "metadata.name" && satisfies(expression, Some(&self.name))
        });
        labels && fields
    }

    /// Whether the volumes of a pod can be attached here; one that isn't bound yet can.
    fn reaches_volumes(&self, cluster: &Cluster, pod: &Value) -> bool {
        items(pod, "/spec/volumes").iter().all(|volume| {
            let claim = text(volume, "/persistentVolumeClaim/claimName");
            let claim = Target::in_namespace(VOLUME_CLAIM, namespace(pod), claim);
            let bound = cluster.get(&claim).map(|claim| text(claim, "/spec/volumeName"));
            let bound = bound.and_then(|volume| cluster.find(VOLUME, volume));
            let terms = bound.map_or(&[][..], |volume| {
                items(volume, "/spec/nodeAffinity/required/nodeSelectorTerms")
            });
            terms.is_empty() || terms.iter().any(|term| self.is_of(term))
        })
    }
}

/// How many taints of a node a pod should rather avoid.
pub fn avoided(node: &Value, pod: &Value) -> usize {
    let soft = |taint: &&Value| text(taint, "/effect") == "PreferNoSchedule";
    let soft = items(node, "/spec/taints").iter().filter(soft);
    soft.filter(|taint| !tolerates(pod, taint)).count()
}

/// Whether a pod tolerates a taint.
pub fn tolerates(pod: &Value, taint: &Value) -> bool {
    items(pod, "/spec/tolerations").iter().any(|toleration| {
        let (key, effect) = (text(toleration, "/key"), text(toleration, "/effect"));
        let exists = text(toleration, "/operator") == "Exists";
        let same_key = key == text(taint, "/key") || (key.is_empty() && exists);
        let same_effect = effect.is_empty() || effect == text(taint, "/effect");
        same_key && same_effect && (exists || text(toleration, "/value") == text(taint, "/value"))
    })
}

/// What a pod asks for: its containers together.
pub fn requests(pod: &Value) -> Amounts {
    let mut sum = Amounts::new();
    for container in items(pod, "/spec/containers") {
        let mut asked = amounts(container.pointer("/resources/limits"));
        asked.extend(amounts(container.pointer("/resources/requests")));
        add(&mut sum, &asked);
    }
    sum
}

/// Whether all containers of a pod have ended for good.
pub fn has_ended(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"))
}

fn take(free: &mut Amounts, taken: &Amounts) {
    for (resource, amount) in taken {
        if let Some(free) = free.get_mut(resource) {
            *free -= amount;
        }
    }
}

//! The scheduler: binds pending pods to nodes that they fit on.

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use crate::world::State;
use crate::world::World;
use crate::world::behave::follow;
use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::object::Condition;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::name;
use crate::world::cluster::object::number;
use crate::world::cluster::object::set_condition;
use crate::world::cluster::object::text;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::POD;
use crate::world::cluster::resource::VOLUME;
use crate::world::cluster::resource::VOLUME_CLAIM;
use crate::world::cluster::write::Door;
use crate::world::scheduler::fit::Room;

pub mod fit;
pub mod quantity;

/// Binds pods for as long as it is polled.
pub async fn run(world: World) {
    follow(&world, &[POD, NODE, VOLUME, VOLUME_CLAIM], schedule).await;
}

/// Pods that wait for a node: most important first, then oldest.
pub fn pending(cluster: &Cluster) -> Vec<Arc<Value>> {
    let waits = |pod: &&Arc<Value>| {
        text(pod, "/spec/nodeName").is_empty()
            && !is_deleting(pod)
            && text(pod, "/status/phase") == "Pending"
    };
    let mut pods: Vec<Arc<Value>> = cluster.list(POD).filter(waits).cloned().collect();
    pods.sort_by_key(|pod| {
        let age = text(pod, "/metadata/creationTimestamp").to_owned();
        (Reverse(number(pod, "/spec/priority")), age, name(pod).to_owned())
    });
    pods
}

fn schedule(state: &mut State) {
    let cluster = &mut state.cluster;
    for pod in pending(cluster) {
        let target = Target::of(POD, &pod);
        let caller = Caller::named("kube-scheduler");
        let now = cluster.now();
        let place = choose(cluster, &pod);
        if place.is_none() && condition(&pod, "PodScheduled") == "False" {
            continue;
        }
        let bound = cluster.edit(&caller, (&target, Door::Back), |pod| {
            if let Some(node) = &place {
                pod["spec"]["nodeName"] = json!(node);
                set_condition(pod, Condition::plain("PodScheduled", "True"), now);
            } else {
                let message = "0 nodes are available";
                let (kind, status, reason) = ("PodScheduled", "False", "Unschedulable");
                set_condition(pod, Condition { kind, status, reason, message }, now);
            }
        });
        bound.expect("a pending pod is there, and this door has no rules");
    }
}

/// The node that suits a pod best: the fewest taints that it should rather avoid, then by name.
fn choose(cluster: &Cluster, pod: &Value) -> Option<String> {
    let ready = cluster.list(NODE).filter(|node| condition(node, "Ready") == "True");
    let fitting = ready.filter(|node| Room::on(cluster, node).takes(cluster, pod));
    let best = fitting.min_by_key(|node| (fit::avoided(node, pod), name(node).to_owned()));
    best.map(|node| name(node).to_owned())
}

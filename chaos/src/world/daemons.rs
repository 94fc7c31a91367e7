//! The DaemonSet controller: one pod on each node that takes it.

use serde_json::Value;
use serde_json::json;

use crate::world::State;
use crate::world::World;
use crate::world::behave::follow;
use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::set as put;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::cluster::resource::DAEMON_SET;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::POD;
use crate::world::scheduler::fit::NODE_TERMS;
use crate::world::scheduler::fit::Room;
use crate::world::scheduler::fit::has_ended;

/// Makes daemon pods for as long as it is polled.
pub async fn run(world: World) {
    follow(&world, &[DAEMON_SET, NODE, POD], |state: &mut State| {
        let sets: Vec<_> = state.cluster.list(DAEMON_SET).cloned().collect();
        for set in sets.iter().filter(|set| !is_deleting(set)) {
            sync(&mut state.cluster, set);
        }
    })
    .await;
}

fn sync(cluster: &mut Cluster, set: &Value) {
    let caller = Caller::named("daemon-set-controller");
    let own: Vec<_> = cluster.list(POD).filter(|pod| is_of(pod, set)).cloned().collect();
    for pod in own.iter().filter(|pod| has_ended(pod) && !is_deleting(pod)) {
        let target = Target::of(POD, pod);
        let deleted = cluster.delete(&caller, &target, &DeleteOptions::of_uid(uid(pod)));
        deleted.expect("a pod that was listed is there");
    }
    let wanted = |node: &Value| {
        let taken = own.iter().any(|pod| node_of(pod) == name(node));
        !taken && Room::on(cluster, node).admits(&pod_for(set, name(node)))
    };
    let nodes: Vec<String> =
        cluster.list(NODE).filter(|node| wanted(node)).map(|node| name(node).to_owned()).collect();
    for node in nodes {
        let made = cluster.create(&caller, POD, pod_for(set, &node));
        made.expect("the template of a DaemonSet is a whole pod");
    }
}

fn is_of(pod: &Value, set: &Value) -> bool {
    items(pod, "/metadata/ownerReferences").iter().any(|owner| text(owner, "/uid") == uid(set))
}

/// The node that a daemon pod is for.
fn node_of(pod: &Value) -> &str {
    let terms = items(pod, NODE_TERMS).first();
    terms.map_or("", |term| text(term, "/matchFields/0/values/0"))
}

fn pod_for(set: &Value, node: &str) -> Value {
    let mut pod = set.pointer("/spec/template").cloned().unwrap_or_default();
    pod["metadata"]["generateName"] = json!(format!("{}-", name(set)));
    pod["metadata"]["namespace"] = json!(namespace(set));
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "DaemonSet", "name": name(set), "uid": uid(set),
        "controller": true, "blockOwnerDeletion": true,
    }]);
    let field = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    put(&mut pod, NODE_TERMS, json!([{ "matchFields": [field] }]));
    let mut tolerations = items(&pod, "/spec/tolerations").to_vec();
    for (key, effect) in [
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ] {
        tolerations.push(json!({ "key": key, "operator": "Exists", "effect": effect }));
    }
    pod["spec"]["tolerations"] = Value::Array(tolerations);
    pod
}

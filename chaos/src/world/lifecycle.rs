//! The node lifecycle controller: says by taints which nodes take no pods, and why.

use serde_json::Value;
use serde_json::json;

use crate::world::State;
use crate::world::World;
use crate::world::behave::follow;
use crate::world::cluster::Caller;
use crate::world::cluster::Target;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::is_true;
use crate::world::cluster::object::items;
use crate::world::cluster::object::set;
use crate::world::cluster::object::text;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::write::Door;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Keeps the taints of nodes for as long as it is polled.
pub async fn run(world: World) {
    follow(&world, &[NODE], |state: &mut State| {
        let cluster = &mut state.cluster;
        let tainted: Vec<(Target, Vec<Value>)> = cluster
            .list(NODE)
            .filter_map(|node| taints(node).map(|taints| (Target::of(NODE, node), taints)))
            .collect();
        for (target, taints) in tainted {
            let caller = Caller::named("node-controller");
            let edited = cluster.edit(&caller, (&target, Door::Back), |node| {
                set(node, "/spec/taints", Value::Array(taints));
            });
            edited.expect("a node that was listed is there");
        }
    })
    .await;
}

/// The taints that a node should have, if those are not the ones that it has.
fn taints(node: &Value) -> Option<Vec<Value>> {
    let wanted = [
        (NOT_READY, condition(node, "Ready") == "False"),
        (UNREACHABLE, condition(node, "Ready") == "Unknown"),
        (UNSCHEDULABLE, is_true(node, "/spec/unschedulable")),
    ];
    let known = items(node, "/spec/taints");
    let mut taints = known.to_vec();
    for (key, wanted) in wanted {
        // Nobody has said yet whether a new node is ready: its taint stays.
        if key == NOT_READY && condition(node, "Ready").is_empty() {
            continue;
        }
        let is =
            |taint: &Value| text(taint, "/key") == key && text(taint, "/effect") == "NoSchedule";
        if !wanted {
            taints.retain(|taint| !is(taint));
        } else if !taints.iter().any(is) {
            taints.push(json!({ "key": key, "effect": "NoSchedule" }));
        }
    }
    (taints != known).then_some(taints)
}

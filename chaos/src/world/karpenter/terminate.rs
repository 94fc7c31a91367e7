//! How Karpenter ends a node: taint, drain in four groups, terminate the instance, let go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;
use tokio::task::JoinSet;

use crate::world::State;
use crate::world::World;
use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::object::Condition;
use crate::world::cluster::object::annotation;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::duration;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::items;
use crate::world::cluster::object::keyed;
use crate::world::cluster::object::name;
use crate::world::cluster::object::number;
use crate::world::cluster::object::second;
use crate::world::cluster::object::set;
use crate::world::cluster::object::set_condition;
use crate::world::cluster::object::text;
use crate::world::cluster::object::time;
use crate::world::cluster::object::uid;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::NODE_CLAIM;
use crate::world::cluster::resource::POD;
use crate::world::instances::InstanceState;
use crate::world::karpenter::claims::FINALIZER;
use crate::world::karpenter::claims::edit;
use crate::world::scheduler::fit::has_ended;
use crate::world::scheduler::fit::tolerates;

/// Shortest drain. Source: karpenter core, `node/termination/controller.go`.
const MIN_DRAIN: Duration = Duration::from_secs(5);

/// Between two looks. Source: the same.
const REQUEUE: Duration = Duration::from_secs(1);

/// How long a pod may be overdue before the drain goes on without it.
const STUCK: SignedDuration = SignedDuration::from_mins(1);

/// The end of a node's time, if it has one.
const TIMESTAMP: &str = "karpenter.sh/nodeclaim-termination-timestamp";

/// Keeps Karpenter from evicting a pod.
const DO_NOT_DISRUPT: &str = "karpenter.sh/do-not-disrupt";

/// Ends deleted claims and nodes for as long as it is polled.
pub(super) async fn run(world: &World) {
    let mut ends = JoinSet::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    loop {
        let found = world.until(|state| {
            let claims = state.cluster.list(NODE_CLAIM).filter(|claim| is_ending(state, claim));
            let new: Vec<Arc<Value>> =
                claims.filter(|claim| !known.contains(uid(claim))).cloned().collect();
            (!new.is_empty()).then_some(new)
        });
        tokio::select! {
            biased;
            found = found => {
                for claim in found {
                    known.insert(uid(&claim).to_owned());
                    ends.spawn(end(world.clone(), Target::of(NODE_CLAIM, &claim)));
                }
            }
            Some(ended) = ends.join_next() => ended.expect("the end of a node does not panic"),
        }
    }
}

/// Whether a claim, or its node, is being deleted: either takes the other with it.
fn is_ending(state: &State, claim: &Value) -> bool {
    let kept = items(claim, "/metadata/finalizers").iter().any(|finalizer| finalizer == FINALIZER);
    let node = state.cluster.find(NODE, text(claim, "/status/nodeName"));
    kept && (is_deleting(claim) || node.is_some_and(|node| is_deleting(node)))
}

async fn end(world: World, target: Target) {
    let (node, instance) = world.update(|state| begin(state, &target));
    if let Some(node) = node {
        let node = Target::in_cluster(NODE, &node);
        tokio::select! {
            biased;
            () = gone(&world, instance.clone(), &node) => (),
            () = drain(&world, &target, &node) => {
                terminate(&world, instance).await;
            }
        }
        world.update(|state| release(&mut state.cluster, &node));
    } else {
        terminate(&world, instance).await;
    }
    world.update(|state| release(&mut state.cluster, &target));
}

/// Marks claim and node as ending; answers the node's name and the instance's id.
fn begin(state: &mut State, target: &Target) -> (Option<String>, String) {
    let now = state.cluster.now();
    let Some(claim) = state.cluster.get(target).cloned() else { return (None, String::new()) };
    let caller = Caller::named("karpenter");
    if !is_deleting(&claim) {
        let deleted = state.cluster.delete(&caller, target, &DeleteOptions::default());
        deleted.expect("a claim that was looked at is there");
    }
    let preset = !annotation(&claim, TIMESTAMP).is_empty();
    if let Some(grace) = duration(&claim, "/spec/terminationGracePeriod").filter(|_| !preset) {
        let by = now + SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
        let path = keyed("/metadata/annotations", TIMESTAMP);
        edit(&mut state.cluster, target, |claim| set(claim, &path, json!(second(by))));
    }
    let instance = text(&claim, "/status/providerID").rsplit('/').next().unwrap_or_default();
    let node = text(&claim, "/status/nodeName");
    let node = Some(node.to_owned()).filter(|node| state.cluster.find(NODE, node).is_some());
    if let Some(node) = &node {
        let node = Target::in_cluster(NODE, node);
        if state.cluster.get(&node).is_some_and(|node| !is_deleting(node)) {
            let deleted = state.cluster.delete(&caller, &node, &DeleteOptions::default());
            deleted.expect("a node that was looked at is there");
        }
        edit(&mut state.cluster, &node, taint);
    }
    (node, instance.to_owned())
}

fn taint(node: &mut Value) {
    let disrupted = disrupted();
    let mut taints = items(node, "/spec/taints").to_vec();
    if !taints.contains(&disrupted) {
        taints.push(disrupted);
    }
    node["spec"]["taints"] = Value::Array(taints);
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    set(node, &keyed("/metadata/labels", label), json!("karpenter"));
}

/// The taint of a node that Karpenter ends.
pub(super) fn disrupted() -> Value {
    json!({ "key": "karpenter.sh/disrupted", "effect": "NoSchedule" })
}

/// Returns once the instance is gone and the node called unready: nothing is left to drain.
async fn gone(world: &World, instance: String, node: &Target) {
    world
        .until(|state| {
            let taken = state
                .instances
                .get(&instance)
                .is_none_or(|instance| instance.state >= InstanceState::Terminated);
            let node = state.cluster.get(node);
            let ready = node.is_some_and(|node| condition(node, "Ready") == "True");
            (taken && !ready).then_some(())
        })
        .await;
}

/// Evicts group after group until nothing that counts is left.
async fn drain(world: &World, claim: &Target, node: &Target) {
    let began = world.now();
    loop {
        let left = world.update(|state| {
            let pods = counted(&state.cluster, &node.name);
            let by = state
                .cluster
                .get(claim)
                .and_then(|claim| time(claim, &keyed("/metadata/annotations", TIMESTAMP)));
            let first = pods.iter().map(|pod| group(pod)).min();
            for pod in pods.iter().filter(|pod| Some(group(pod)) == first) {
                end_pod(&mut state.cluster, pod, by);
            }
            pods.len()
        });
        let drained = world.now().duration_since(began).unsigned_abs();
        if left == 0 && drained >= MIN_DRAIN {
            world.update(|state| {
                let now = state.cluster.now();
                edit(&mut state.cluster, claim, |claim| {
                    set_condition(claim, Condition::plain("Drained", "True"), now);
                });
            });
            return;
        }
        world.update(|state| {
            let now = state.cluster.now();
            edit(&mut state.cluster, claim, |claim| {
                let (kind, status, reason) = ("Drained", "Unknown", "Draining");
                set_condition(claim, Condition { kind, status, reason, message: "" }, now);
            });
        });
        tokio::time::sleep(REQUEUE).await;
    }
}

/// Pods that the drain waits for.
fn counted(cluster: &Cluster, node: &str) -> Vec<Arc<Value>> {
    let now = cluster.now();
    let disrupted = disrupted();
    let here = cluster.list(POD).filter(|pod| text(pod, "/spec/nodeName") == node);
    let counted = here.filter(|pod| {
        let due = time(pod, "/metadata/deletionTimestamp");
        let stuck = due.is_some_and(|due| now.duration_since(due) > STUCK);
        !has_ended(pod) && !tolerates(pod, &disrupted) && !stuck
    });
    counted.cloned().collect()
}

/// 0 to 3: neither critical nor a daemon's, a daemon's, critical, both.
fn group(pod: &Value) -> u8 {
    let class = text(pod, "/spec/priorityClassName");
    let critical = ["system-cluster-critical", "system-node-critical"].contains(&class);
    let owners = items(pod, "/metadata/ownerReferences").iter();
    let daemon = owners.into_iter().any(|owner| text(owner, "/kind") == "DaemonSet");
    u8::from(critical) * 2 + u8::from(daemon)
}

/// Evicts a pod, or deletes it where the node's end leaves it no more than its grace.
fn end_pod(cluster: &mut Cluster, pod: &Value, by: Option<Timestamp>) {
    let caller = Caller::named("karpenter");
    let (target, now) = (Target::of(POD, pod), cluster.now());
    let grace = number(pod, "/spec/terminationGracePeriodSeconds").unwrap_or(30);
    if let Some(by) = by
        && now >= by - SignedDuration::from_secs(grace)
    {
        let left = by.duration_since(now).as_secs().clamp(1, grace.max(1));
        let mut options = DeleteOptions::of_uid(uid(pod));
        options.grace_seconds = Some(left);
        cluster.delete(&caller, &target, &options).expect("a pod that was listed is there");
        return;
    }
    if is_held(pod, now) || is_deleting(pod) {
        return;
    }
    if let Err(refusal) = cluster.evict(&caller, &target, &DeleteOptions::of_uid(uid(pod))) {
        tracing::debug!(pod = name(pod), "eviction refused: {}", refusal.message);
    }
}

/// Whether a pod is not to be disrupted: for good, or for so long after its start.
pub(super) fn is_held(pod: &Value, now: Timestamp) -> bool {
    let word = annotation(pod, DO_NOT_DISRUPT);
    let lasts = word.parse::<SignedDuration>().ok();
    let until = time(pod, "/status/startTime").zip(lasts).map(|(start, lasts)| start + lasts);
    word == "true" || until.is_some_and(|until| now < until)
}

/// Ends the instance, and waits until EC2 says it is going.
async fn terminate(world: &World, instance: String) {
    world.update(|state| {
        let now = state.cluster.now();
        state.instances.take(&instance, now);
    });
    world
        .until(|state| {
            let known = state.instances.get(&instance);
            known.is_none_or(|known| known.state >= InstanceState::Terminated).then_some(())
        })
        .await;
}

/// Lets an object go.
pub(super) fn release(cluster: &mut Cluster, target: &Target) {
    edit(cluster, target, |object| {
        let left = items(object, "/metadata/finalizers").iter();
        let left = left.filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
        object["metadata"]["finalizers"] = Value::Array(left);
    });
}

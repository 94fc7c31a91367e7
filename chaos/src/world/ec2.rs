//! EC2 and the node lifecycle: an instance is taken at its hour, and the cluster finds out.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::world::State;
use crate::world::World;
use crate::world::cluster::Caller;
use crate::world::cluster::Target;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::object::Condition;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::set_condition;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::POD;
use crate::world::cluster::write::Door;
use crate::world::instances::InstanceState;
use crate::world::scheduler::fit::has_ended;

/// How instances end, and how soon the cluster notices.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// From an instance's being taken to its processes' end.
    pub shutdown: Duration,
    /// From there until its node is called not ready.
    pub unready: Duration,
    /// From there until its node is deleted, where no Karpenter does it.
    pub forget: Duration,
    /// From there until its pods are.
    pub collect: Duration,
}

impl Default for Settings {
    /// Source: kube-controller-manager's defaults (grace 40 s, pod GC 40 s) and the cloud node
    /// lifecycle controller's (5 s).
    fn default() -> Self {
        Self {
            shutdown: Duration::from_secs(1),
            unready: Duration::from_secs(40),
            forget: Duration::from_secs(5),
            collect: Duration::from_secs(40),
        }
    }
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Take(String),
    Die(String),
    Unready(String),
    Forget(String),
    Collect(String),
}

/// Ends instances and tidies up after them for as long as it is polled.
pub async fn run(world: World, settings: Settings) {
    let mut since = Since::default();
    loop {
        since.look(&world);
        let next = world.read(|state| next(state, settings, &since));
        let now = world.now();
        match &next {
            Some((time, act)) if *time <= now => {
                world.update(|state| perform(state, act, now));
                continue;
            }
            _ => (),
        }
        let wait = next.as_ref().map(|(time, _)| time.duration_since(now).unsigned_abs());
        let changed = world.until(|state| {
            let stale = since.is_stale(state);
            (stale || self::next(state, settings, &since) != next).then_some(())
        });
        tokio::select! {
            biased;
            () = changed => (),
            () = rest(wait) => (),
        }
    }
}

/// Waits, or for ever.
async fn rest(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

/// Since when nodes have been unready, and pods without a node.
#[derive(Default)]
struct Since {
    unready: BTreeMap<String, Timestamp>,
    orphaned: BTreeMap<String, Timestamp>,
}

impl Since {
    fn look(&mut self, world: &World) {
        let now = world.now();
        world.read(|state| {
            for (kept, found) in
                [(&mut self.unready, unready(state)), (&mut self.orphaned, orphaned(state))]
            {
                kept.retain(|node, _| found.contains(node));
                for node in found {
                    kept.entry(node).or_insert(now);
                }
            }
        });
    }

    fn is_stale(&self, state: &State) -> bool {
        !self.unready.keys().eq(unready(state).iter())
            || !self.orphaned.keys().eq(orphaned(state).iter())
    }
}

/// Nodes of machines that are gone, once they are called unready.
fn unready(state: &State) -> Vec<String> {
    let nodes = state.cluster.list(NODE).filter(|node| condition(node, "Ready") == "Unknown");
    let mut names: Vec<String> = nodes.map(|node| name(node).to_owned()).collect();
    names.retain(|node| state.machines.get(node).is_some_and(|machine| !machine.alive));
    names.sort();
    names
}

/// Nodes that are not there, and to which pods are bound all the same. A pod that only its
/// finalizers keep is no longer one of them.
fn orphaned(state: &State) -> Vec<String> {
    let kept = state.cluster.list(POD).filter(|pod| !(is_deleting(pod) && has_ended(pod)));
    let bound = kept.map(|pod| text(pod, "/spec/nodeName"));
    let lost = bound.filter(|node| !node.is_empty() && state.cluster.find(NODE, node).is_none());
    let mut names: Vec<String> = lost.map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn next(state: &State, settings: Settings, since: &Since) -> Option<(Timestamp, Act)> {
    let after = |time: Timestamp, pause: Duration| {
        time + SignedDuration::try_from(pause).unwrap_or(SignedDuration::MAX)
    };
    let mut acts: Vec<(Timestamp, Act)> = Vec::new();
    for instance in state.instances.iter() {
        let id = instance.id.clone();
        if let Some(hour) = instance.hour() {
            acts.push((hour, Act::Take(id)));
        } else if instance.state == InstanceState::ShuttingDown {
            acts.push((after(instance.since, settings.shutdown), Act::Die(id)));
        }
    }
    for (node, machine) in state.machines.iter().filter(|(_, machine)| !machine.alive) {
        let there = state.cluster.find(NODE, node);
        let ready = there.is_some_and(|node| condition(node, "Ready") == "True");
        let died = state.instances.get(&machine.instance).map(|instance| instance.since);
        if let (true, Some(died)) = (ready, died) {
            acts.push((after(died, settings.unready), Act::Unready(node.to_owned())));
        }
    }
    for (node, time) in &since.unready {
        let there = state.cluster.find(NODE, node);
        if there.is_some_and(|node| !is_deleting(node)) {
            acts.push((after(*time, settings.forget), Act::Forget(node.clone())));
        }
    }
    let orphaned = since.orphaned.iter();
    acts.extend(
        orphaned.map(|(node, time)| (after(*time, settings.collect), Act::Collect(node.clone()))),
    );
    acts.into_iter().min()
}

fn perform(state: &mut State, act: &Act, now: Timestamp) {
    match act {
        Act::Take(instance) => drop(state.instances.take(instance, now)),
        Act::Die(instance) => {
            state.instances.terminated(instance, now);
            state.machines.die(instance);
        }
        Act::Unready(node) => unready_node(state, node, now),
        Act::Forget(node) => {
            let caller = Caller::named("cloud-node-lifecycle-controller");
            let target = Target::in_cluster(NODE, node);
            let deleted = state.cluster.delete(&caller, &target, &DeleteOptions::default());
            deleted.expect("a node that was listed is there");
        }
        Act::Collect(node) => collect(state, node, now),
    }
}

fn unready_node(state: &mut State, node: &str, now: Timestamp) {
    const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
    let caller = Caller::named("node-lifecycle-controller");
    let target = Target::in_cluster(NODE, node);
    let edited = state.cluster.edit(&caller, (&target, Door::Back), |node| {
        let (reason, message) = ("NodeStatusUnknown", "Kubelet stopped posting node status.");
        let (kind, status) = ("Ready", "Unknown");
        set_condition(node, Condition { kind, status, reason, message }, now);
        let mut taints = items(node, "/spec/taints").to_vec();
        for effect in ["NoSchedule", "NoExecute"] {
            taints.push(json!({ "key": UNREACHABLE, "effect": effect }));
        }
        node["spec"]["taints"] = Value::Array(taints);
    });
    edited.expect("a node that was listed is there");
}

/// The pod garbage collector: ends the pods of a node that is not there any more.
fn collect(state: &mut State, node: &str, now: Timestamp) {
    let caller = Caller::named("pod-garbage-collector");
    let bound = state.cluster.list(POD).filter(|pod| text(pod, "/spec/nodeName") == node);
    let bound: Vec<(Target, String)> =
        bound.map(|pod| (Target::of(POD, pod), uid(pod).to_owned())).collect();
    for (target, uid) in bound {
        let edited = state.cluster.edit(&caller, (&target, Door::Back), |pod| {
            let (kind, status) = ("DisruptionTarget", "True");
            let (reason, message) = ("DeletionByPodGC", "PodGC: node no longer exists");
            set_condition(pod, Condition { kind, status, reason, message }, now);
            if !has_ended(pod) {
                pod["status"]["phase"] = json!("Failed");
            }
        });
        edited.expect("a pod that was listed is there");
        let options = DeleteOptions::of_uid(&uid).with_grace(Duration::ZERO);
        state.cluster.delete(&caller, &target, &options).expect("a pod that was listed is there");
    }
}

//! Karpenter's claims: launched, registered as nodes, initialized; or deleted for lack of capacity.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use serde_json::json;
use tokio::task::JoinSet;

use crate::world::State;
use crate::world::World;
use crate::world::behave::follow;
use crate::world::build::NodeSpec;
use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::object::Condition;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::entries;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::items;
use crate::world::cluster::object::keyed;
use crate::world::cluster::object::label;
use crate::world::cluster::object::name;
use crate::world::cluster::object::set;
use crate::world::cluster::object::set_condition;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::cluster::resource::EVENT;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::NODE_CLAIM;
use crate::world::cluster::resource::NODE_OVERLAY;
use crate::world::cluster::selector::satisfies;
use crate::world::cluster::write::Door;
use crate::world::instances::Instance;
use crate::world::instances::InstanceState;
use crate::world::karpenter::Settings;
use crate::world::karpenter::terminate::release;
use crate::world::offerings::Offering;
use crate::world::scheduler::quantity::Amounts;
use crate::world::scheduler::quantity::amounts;

/// Keeps nodes and claims until their instance is gone.
pub(super) const FINALIZER: &str = "karpenter.sh/termination";

/// Says of a node that it may be used.
const INITIALIZED: &str = "karpenter.sh/initialized";

/// Launches and registers claims for as long as it is polled.
pub(super) async fn run(world: &World, settings: &Settings) {
    let mut lives = JoinSet::new();
    let mut known: BTreeSet<String> = BTreeSet::new();
    let initializing = follow(world, &[NODE, NODE_CLAIM], initialize);
    let mut initializing = std::pin::pin!(initializing);
    loop {
        let found = world.until(|state| {
            let claims = state.cluster.list(NODE_CLAIM);
            let new: Vec<Arc<Value>> = claims
                .filter(|claim| text(claim, "/status/providerID").is_empty() && !is_deleting(claim))
                .filter(|claim| !known.contains(uid(claim)))
                .cloned()
                .collect();
            (!new.is_empty()).then_some(new)
        });
        tokio::select! {
            biased;
            found = found => {
                for claim in found {
                    known.insert(uid(&claim).to_owned());
                    lives.spawn(live(world.clone(), settings.clone(), claim));
                }
            }
            Some(ended) = lives.join_next() => ended.expect("a claim's task does not panic"),
            () = initializing.as_mut() => (),
        }
    }
}

/// From a claim's making to its node.
async fn live(world: World, settings: Settings, claim: Arc<Value>) {
    let target = Target::of(NODE_CLAIM, &claim);
    world.update(|state| {
        edit(&mut state.cluster, &target, |claim| {
            let mut finalizers = items(claim, "/metadata/finalizers").to_vec();
            if !finalizers.iter().any(|known| known == FINALIZER) {
                finalizers.push(json!(FINALIZER));
            }
            claim["metadata"]["finalizers"] = Value::Array(finalizers);
        });
    });
    tokio::time::sleep(settings.launch).await;
    let launched = world.update(|state| launch(state, &target, &claim));
    let Some((instance, offering)) = launched else { return };
    tokio::time::sleep(settings.boot).await;
    world.update(|state| register(state, &settings, (&target, &instance), &offering));
}

/// Buys the instance, or deletes the claim as Karpenter does where there is no capacity.
fn launch(state: &mut State, target: &Target, claim: &Value) -> Option<(String, Offering)> {
    let now = state.cluster.now();
    let current = state.cluster.get(target).filter(|known| uid(known) == uid(claim))?;
    if is_deleting(current) {
        return None;
    }
    let requirements = items(claim, "/spec/requirements");
    let asked = amounts(claim.pointer("/spec/resources/requests"));
    let mut candidates = state.offerings.candidates(requirements, now);
    candidates.retain(|offering| fits(&offers(&state.cluster, claim, offering), &asked));
    let Some(offering) = state.offerings.buy(&candidates, now) else {
        refuse(&mut state.cluster, target, claim);
        return None;
    };
    let id = format!("i-{:017x}", state.random.u128(..) >> 60);
    state.instances.launch(&id, offering.order(), now);
    let provider = state.instances.get(&id).map(Instance::provider_id);
    edit(&mut state.cluster, target, |claim| {
        for (key, value) in offering.labels() {
            set(claim, &keyed("/metadata/labels", &key), json!(value));
        }
        set(claim, "/status/providerID", json!(provider));
        let physical = json!({ "nvidia.com/gpu": offering.gpus.to_string() });
        set(claim, "/status/capacity", physical.clone());
        set(claim, "/status/allocatable", physical);
        set_condition(claim, Condition::plain("Launched", "True"), now);
    });
    Some((id, offering))
}

/// What an offering has for a claim: overlays count only for a pool's own claims.
pub(super) fn offers(cluster: &Cluster, claim: &Value, offering: &Offering) -> Amounts {
    let mut has = offering.physical();
    if label(claim, "karpenter.sh/nodepool").is_empty() {
        return has;
    }
    let labels = offering.labels();
    for overlay in cluster.list(NODE_OVERLAY) {
        let applies = items(overlay, "/spec/requirements").iter().all(|requirement| {
            let key = text(requirement, "/key");
            let own = label(claim, key);
            let value = labels.get(key).map_or(own, String::as_str);
            satisfies(requirement, Some(value).filter(|value| !value.is_empty()))
        });
        if applies {
            has.extend(amounts(overlay.pointer("/spec/capacity")));
        }
    }
    has
}

/// Whether what is asked is there; of plain resources there is always enough.
pub(super) fn fits(has: &Amounts, asked: &Amounts) -> bool {
    asked.iter().all(|(resource, amount)| {
        !resource.contains('/') || has.get(resource).is_some_and(|has| has >= amount)
    })
}

fn refuse(cluster: &mut Cluster, target: &Target, claim: &Value) {
    let caller = Caller::named("karpenter");
    let event = json!({
        "metadata": { "generateName": format!("{}.", target.name), "namespace": "default" },
        "type": "Warning", "reason": "InsufficientCapacityError",
        "message": "no instance type satisfied the requirements or had capacity",
        "involvedObject": { "kind": "NodeClaim", "name": target.name, "uid": uid(claim) },
    });
    cluster.create(&caller, EVENT, event).expect("an event of ours is whole");
    let deleted = cluster.delete(&caller, target, &DeleteOptions::of_uid(uid(claim)));
    deleted.expect("a claim that was looked at is there");
    release(cluster, target);
}

/// The instance has booted: its kubelet registers the node.
fn register(
    state: &mut State,
    settings: &Settings,
    (target, instance): (&Target, &str),
    offering: &Offering,
) {
    let alive =
        state.instances.get(instance).is_some_and(|known| known.state == InstanceState::Running);
    let claim = state.cluster.get(target).filter(|claim| !is_deleting(claim)).cloned();
    let (Some(claim), true) = (claim, alive) else { return };
    let node = state.new_node_name();
    let now = state.cluster.now();
    let mut labels = offering.labels();
    let own: BTreeMap<String, String> = entries(&claim, "/metadata/labels")
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    labels.extend(own);
    labels.insert("karpenter.sh/registered".to_owned(), "true".to_owned());
    let taints = [items(&claim, "/spec/taints"), items(&claim, "/spec/startupTaints")].concat();
    let mut spec = NodeSpec::new(&node, instance, offering);
    spec.labels = labels;
    spec.taints = taints;
    spec.root = settings.machines.join(&node);
    spec.claim = Some(target.name.clone());
    spec.register(state);
    edit(&mut state.cluster, target, |claim| {
        set(claim, "/status/nodeName", json!(node));
        set_condition(claim, Condition::plain("Registered", "True"), now);
    });
}

/// A registered node is initialized when its startup taints are gone and its resources there.
fn initialize(state: &mut State) {
    let now = state.cluster.now();
    let waiting: Vec<Arc<Value>> = state
        .cluster
        .list(NODE_CLAIM)
        .filter(|claim| condition(claim, "Registered") == "True")
        .filter(|claim| condition(claim, "Initialized") != "True")
        .cloned()
        .collect();
    for claim in waiting {
        let Some(node) = state.cluster.find(NODE, text(&claim, "/status/nodeName")) else {
            continue;
        };
        let startup = items(&claim, "/spec/startupTaints");
        let tainted = items(node, "/spec/taints").iter().any(|taint| startup.contains(taint));
        let has = amounts(node.pointer("/status/allocatable"));
        let asked = amounts(claim.pointer("/spec/resources/requests"));
        let missing = asked.keys().any(|key| key.contains('/') && !has.contains_key(key));
        if tainted || missing || condition(node, "Ready") != "True" {
            continue;
        }
        let node = Target::in_cluster(NODE, name(node));
        let allocatable =
            state.cluster.get(&node).and_then(|node| node.pointer("/status/allocatable"));
        let allocatable = allocatable.cloned();
        edit(&mut state.cluster, &Target::of(NODE_CLAIM, &claim), |claim| {
            set(claim, "/status/allocatable", json!(allocatable));
            set_condition(claim, Condition::plain("Initialized", "True"), now);
            set_condition(claim, Condition::plain("Ready", "True"), now);
        });
        edit(&mut state.cluster, &node, |node| {
            set(node, &keyed("/metadata/labels", INITIALIZED), json!("true"));
        });
    }
}

/// Changes what is Karpenter's to change, if it is there.
pub(super) fn edit(cluster: &mut Cluster, target: &Target, change: impl FnOnce(&mut Value)) {
    if cluster.get(target).is_some() {
        let edited = cluster.edit(&Caller::named("karpenter"), (target, Door::Back), change);
        edited.expect("the object is there, and this door has no rules");
    }
}

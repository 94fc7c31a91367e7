//! Karpenter's provisioner: buys nodes for pods that fit nowhere, counting what is on its way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::world::State;
use crate::world::World;
use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::entries;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::items;
use crate::world::cluster::object::keyed;
use crate::world::cluster::object::name;
use crate::world::cluster::object::set;
use crate::world::cluster::object::text;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::NODE_CLAIM;
use crate::world::cluster::resource::NODE_POOL;
use crate::world::cluster::resource::POD;
use crate::world::karpenter::Provisions;
use crate::world::karpenter::claims::offers;
use crate::world::karpenter::count;
use crate::world::karpenter::terminate::disrupted;
use crate::world::karpenter::terminate::is_held;
use crate::world::offerings::Offering;
use crate::world::scheduler::fit::Room;
use crate::world::scheduler::fit::has_ended;
use crate::world::scheduler::fit::requests;
use crate::world::scheduler::fit::tolerates;
use crate::world::scheduler::pending;

/// How long it waits for more pods. Source: Karpenter's `BATCH_IDLE_DURATION`.
const BATCH: Duration = Duration::from_secs(1);

/// Buys nodes for as long as it is polled.
pub(super) async fn run(world: &World, provisions: Provisions) {
    if provisions == Provisions::OnlyClaims {
        return std::future::pending().await;
    }
    loop {
        let wanted = |state: &State| (!missing(state).is_empty()).then_some(());
        world.until(wanted).await;
        tokio::time::sleep(BATCH).await;
        let bought = world.update(provision);
        if bought == 0 {
            // Nothing on offer fits: look again when something has changed, or after a while.
            let generation = world.generation();
            tokio::select! {
                biased;
                () = world.changed_since(generation) => tokio::time::sleep(BATCH).await,
                () = tokio::time::sleep(BATCH * 10) => (),
            }
        }
    }
}

/// Pods that have no room on any node, nor on any that is on its way.
fn missing(state: &State) -> Vec<Arc<Value>> {
    let cluster = &state.cluster;
    let mut rooms: Vec<Room> = cluster
        .list(NODE)
        .filter(|node| condition(node, "Ready") == "True" && !is_deleting(node))
        .map(|node| Room::on(cluster, node))
        .collect();
    rooms.extend(cluster.list(NODE_CLAIM).filter_map(|claim| on_its_way(state, claim)));
    let mut missing = Vec::new();
    for pod in waiting(cluster) {
        match rooms.iter_mut().find(|room| room.takes(cluster, &pod)) {
            Some(room) => room.put(&pod),
            None => missing.push(pod),
        }
    }
    missing
}

/// Pods that were called unschedulable, and those of nodes that Karpenter ends, but for the held
/// ones: "pods that block disruption are not rescheduled".
fn waiting(cluster: &Cluster) -> Vec<Arc<Value>> {
    let unschedulable = pending(cluster).into_iter();
    let unschedulable = unschedulable.filter(|pod| condition(pod, "PodScheduled") == "False");
    let disrupted = disrupted();
    let ending = |pod: &&Arc<Value>| {
        let node = cluster.find(NODE, text(pod, "/spec/nodeName"));
        let owned = items(pod, "/metadata/ownerReferences").first();
        let owned = owned.is_some_and(|owner| text(owner, "/kind") != "DaemonSet");
        let held = is_held(pod, cluster.now());
        node.is_some_and(|node| items(node, "/spec/taints").contains(&disrupted))
            && owned
            && !held
            && !is_deleting(pod)
            && !has_ended(pod)
            && !tolerates(pod, &disrupted)
    };
    let ending: Vec<Arc<Value>> = cluster.list(POD).filter(ending).cloned().collect();
    unschedulable.chain(ending).collect()
}

/// The room of a claim whose node is not there yet.
fn on_its_way(state: &State, claim: &Value) -> Option<Room> {
    let registered = condition(claim, "Registered") == "True";
    if registered || is_deleting(claim) {
        return None;
    }
    let requirements = items(claim, "/spec/requirements");
    let now = state.cluster.now();
    let offering = if text(claim, "/status/providerID").is_empty() {
        state.offerings.candidates(requirements, now).into_iter().next()?
    } else {
        let labels: BTreeMap<&str, &str> = entries(claim, "/metadata/labels").collect();
        state
            .offerings
            .all
            .iter()
            .find(|offering| {
                offering
                    .labels()
                    .iter()
                    .all(|(key, value)| labels.get(key.as_str()) == Some(&value.as_str()))
            })?
            .clone()
    };
    Some(room(state, claim, &offering))
}

/// The room that a claim has on an offering. Slices count where a NodeOverlay or the claim's own
/// label says so; Karpenter itself knows only whole GPUs.
fn room(state: &State, claim: &Value, offering: &Offering) -> Room {
    let mut labels = offering.labels();
    for requirement in items(claim, "/spec/requirements") {
        if let ("In", [value]) = (text(requirement, "/operator"), items(requirement, "/values")) {
            let value = value.as_str().unwrap_or_default().to_owned();
            labels.insert(text(requirement, "/key").to_owned(), value);
        }
    }
    for (key, value) in entries(claim, "/metadata/labels") {
        labels.insert(key.to_owned(), value.to_owned());
    }
    let free = offers(&state.cluster, claim, offering);
    Room {
        name: name(claim).to_owned(),
        labels,
        taints: items(claim, "/spec/taints").to_vec(),
        free,
    }
}

/// Makes claims until every pod that can have room has some; answers how many.
fn provision(state: &mut State) -> usize {
    let mut bought = 0;
    let mut left = missing(state);
    while let Some(first) = left.first() {
        let made = claim_for(state, first)
            .map(|claim| state.cluster.create(&Caller::named("karpenter"), NODE_CLAIM, claim));
        if let Some(made) = made {
            made.expect("a pool of a scenario makes whole claims");
            bought += 1;
            let now_missing = missing(state);
            if now_missing.len() < left.len() {
                left = now_missing;
                continue;
            }
        }
        left.remove(0);
    }
    bought
}

/// A claim of the first pool that has room by its limits, and an offering for a pod.
fn claim_for(state: &State, pod: &Value) -> Option<Value> {
    let now = state.cluster.now();
    let pools: Vec<Arc<Value>> = state.cluster.list(NODE_POOL).cloned().collect();
    let mut pools = pools.iter().filter(|pool| count::has_room(&state.cluster, pool));
    pools.find_map(|pool| {
        let claim = template(pool, pod);
        let requirements = items(&claim, "/spec/requirements");
        let candidates = state.offerings.candidates(requirements, now);
        let fitting: Vec<&Offering> = candidates
            .iter()
            .filter(|offering| room(state, &claim, offering).takes(&state.cluster, pod))
            .collect();
        let zones = distinct(&fitting, |offering| &offering.zone);
        let types = distinct(&fitting, |offering| &offering.instance_type);
        let purchases = distinct(&fitting, |offering| offering.purchase.as_str());
        (!fitting.is_empty()).then(|| {
            let mut claim = claim.clone();
            for (key, values) in [
                ("topology.kubernetes.io/zone", zones),
                ("node.kubernetes.io/instance-type", types),
                ("karpenter.sh/capacity-type", purchases),
            ] {
                narrow(&mut claim, key, &values);
            }
            claim
        })
    })
}

fn distinct<'a>(
    offerings: &[&'a Offering],
    part: impl Fn(&'a Offering) -> &'a str,
) -> Vec<&'a str> {
    let mut values: Vec<&str> = offerings.iter().map(|offering| part(offering)).collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// What a pool's claims look like.
fn template(pool: &Value, pod: &Value) -> Value {
    let spec = pool.pointer("/spec/template/spec").cloned().unwrap_or_default();
    let labels = pool.pointer("/spec/template/metadata/labels").cloned();
    let mut claim = json!({
        "metadata": {
            "generateName": format!("{}-", name(pool)),
            "labels": labels.unwrap_or_else(|| json!({})),
            "annotations": { "karpenter.sh/nodepool-hash": "1" },
            "ownerReferences": [{
                "apiVersion": "karpenter.sh/v1", "kind": "NodePool", "name": name(pool),
                "uid": pool["metadata"]["uid"], "blockOwnerDeletion": true,
            }],
        },
        "spec": spec,
    });
    set(&mut claim, &keyed("/metadata/labels", "karpenter.sh/nodepool"), json!(name(pool)));
    // Both ways, as the real one: a single value is a label, and each label is a requirement.
    let mut requirements = items(&claim, "/spec/requirements").to_vec();
    for requirement in &requirements {
        let key = text(requirement, "/key");
        if let ("In", [value]) = (text(requirement, "/operator"), items(requirement, "/values"))
            && !Offering::resolves(key)
        {
            set(&mut claim, &keyed("/metadata/labels", key), value.clone());
        }
    }
    let labels: Vec<(String, String)> = entries(&claim, "/metadata/labels")
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for (key, value) in labels {
        requirements.retain(|requirement| text(requirement, "/key") != key);
        requirements.push(json!({ "key": key, "operator": "In", "values": [value] }));
    }
    set(&mut claim, "/spec/requirements", Value::Array(requirements));
    let requests: BTreeMap<String, String> = requests(pod)
        .into_iter()
        .map(|(resource, amount)| (resource, format!("{}", amount / 1000)))
        .collect();
    set(&mut claim, "/spec/resources/requests", json!(requests));
    claim
}

fn narrow(claim: &mut Value, key: &str, values: &[&str]) {
    let mut requirements = items(claim, "/spec/requirements").to_vec();
    requirements.retain(|requirement| text(requirement, "/key") != key);
    requirements.push(json!({ "key": key, "operator": "In", "values": values }));
    set(claim, "/spec/requirements", Value::Array(requirements));
}

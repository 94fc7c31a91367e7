//! The disruption controller: says how many pods each PodDisruptionBudget can spare.

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
use crate::world::cluster::object::is_true;
use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::number;
use crate::world::cluster::object::set_condition;
use crate::world::cluster::object::text;
use crate::world::cluster::resource::BUDGET;
use crate::world::cluster::resource::POD;
use crate::world::cluster::selector::selects;
use crate::world::cluster::write::Door;
use crate::world::scheduler::fit::has_ended;

/// Keeps the status of budgets for as long as it is polled.
pub async fn run(world: World) {
    follow(&world, &[POD, BUDGET], |state: &mut State| {
        let cluster = &mut state.cluster;
        let budgets: Vec<(Target, Value)> = cluster
            .list(BUDGET)
            .map(|budget| (Target::of(BUDGET, budget), status(cluster, budget)))
            .collect();
        for (target, status) in budgets {
            let caller = Caller::named("disruption-controller");
            let edited = cluster.edit(&caller, (&target, Door::Back), |budget| {
                budget["status"] = status;
            });
            edited.expect("a budget that was listed is there");
        }
    })
    .await;
}

fn status(cluster: &Cluster, budget: &Value) -> Value {
    let covered: Vec<&Value> = cluster
        .list(POD)
        .map(std::convert::AsRef::as_ref)
        .filter(|pod| namespace(pod) == namespace(budget) && !has_ended(pod))
        .filter(|pod| selects(budget.pointer("/spec/selector"), pod))
        .collect();
    let mut told = budget.clone();
    let Some((expected, desired)) = wanted(budget, &covered) else {
        let (kind, status, reason) = ("DisruptionAllowed", "False", "SyncFailed");
        let message = "a controller of these pods does not implement the scale subresource";
        set_condition(&mut told, Condition { kind, status, reason, message }, cluster.now());
        told["status"]["disruptionsAllowed"] = json!(0);
        return told["status"].take();
    };
    let disrupted = budget.pointer("/status/disruptedPods").and_then(Value::as_object);
    let disrupted = disrupted.into_iter().flatten().filter(|(disrupted, _)| {
        covered.iter().any(|pod| name(pod) == disrupted.as_str() && !is_deleting(pod))
    });
    let disrupted: Value =
        Value::Object(disrupted.map(|(name, time)| (name.clone(), time.clone())).collect());
    let healthy = covered.iter().filter(|pod| {
        let spared = disrupted.get(name(pod)).is_none() && !is_deleting(pod);
        spared && condition(pod, "Ready") == "True"
    });
    let healthy = i64::try_from(healthy.count()).unwrap_or(i64::MAX);
    let allowed = if expected == 0 { 0 } else { (healthy - desired).max(0) };
    told["status"] = json!({
        "observedGeneration": number(budget, "/metadata/generation"),
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": expected,
        "disruptionsAllowed": allowed,
        "disruptedPods": disrupted,
        "conditions": items(budget, "/status/conditions"),
    });
    let (status, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let condition = Condition { kind: "DisruptionAllowed", status, reason, message: "" };
    set_condition(&mut told, condition, cluster.now());
    told["status"].take()
}

/// How many pods there should be, and how many of them have to stay. Nothing where that takes to
/// know the scale of the pods' controllers, and one of them has none: a Job, or a `DaemonSet`.
fn wanted(budget: &Value, covered: &[&Value]) -> Option<(i64, i64)> {
    if let Some(least) = number(budget, "/spec/minAvailable") {
        return Some((i64::try_from(covered.len()).unwrap_or(i64::MAX), least));
    }
    let expected = scale(covered)?;
    if let Some(least) = portion(budget, "/spec/minAvailable", expected) {
        return Some((expected, least));
    }
    let spared = portion(budget, "/spec/maxUnavailable", expected).unwrap_or_default();
    Some((expected, (expected - spared).max(0)))
}

/// The pods that their controllers are to have; those without a controller don't count.
fn scale(covered: &[&Value]) -> Option<i64> {
    const SCALED: [&str; 3] = ["ReplicaSet", "ReplicationController", "StatefulSet"];
    let controllers = covered.iter().flat_map(|pod| {
        let owners = items(pod, "/metadata/ownerReferences").iter();
        owners.filter(|owner| is_true(owner, "/controller"))
    });
    let mut count = 0;
    for controller in controllers {
        if !SCALED.contains(&text(controller, "/kind")) {
            return None;
        }
        count += 1;
    }
    Some(count)
}

/// A number, or a percentage of `whole`, rounded up.
fn portion(budget: &Value, path: &str, whole: i64) -> Option<i64> {
    if let Some(number) = number(budget, path) {
        return Some(number);
    }
    let percent: i64 = text(budget, path).strip_suffix('%')?.parse().ok()?;
    Some((whole * percent + 99) / 100)
}

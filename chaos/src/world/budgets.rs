//! The disruption controller: says how many pods each PodDisruptionBudget can spare.

use serde_json::Value;
use serde_json::json;

use crate::world::State;
use crate::world::World;
use crate::world::behave::follow;
use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::number;
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
    let expected = i64::try_from(covered.len()).unwrap_or(i64::MAX);
    let desired = desired(budget, expected);
    json!({
        "observedGeneration": number(budget, "/metadata/generation"),
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": expected,
        "disruptionsAllowed": (healthy - desired).max(0),
        "disruptedPods": disrupted,
    })
}

/// How many pods have to stay.
fn desired(budget: &Value, expected: i64) -> i64 {
    if let Some(least) = portion(budget, "/spec/minAvailable", expected) {
        return least;
    }
    let spared = portion(budget, "/spec/maxUnavailable", expected).unwrap_or_default();
    (expected - spared).max(0)
}

/// A number, or a percentage of `whole`, rounded up.
fn portion(budget: &Value, path: &str, whole: i64) -> Option<i64> {
    if let Some(number) = number(budget, path) {
        return Some(number);
    }
    let percent: i64 = text(budget, path).strip_suffix('%')?.parse().ok()?;
    Some((whole * percent + 99) / 100)
}

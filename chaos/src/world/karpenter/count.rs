//! Karpenter's count of what a pool uses, which lags behind, and the pool's limits.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::world::State;
use crate::world::World;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::object::label;
use crate::world::cluster::object::name;
use crate::world::cluster::object::set;
use crate::world::cluster::resource::NODE_CLAIM;
use crate::world::cluster::resource::NODE_POOL;
use crate::world::karpenter::claims::edit;
use crate::world::scheduler::quantity::Amounts;
use crate::world::scheduler::quantity::add;
use crate::world::scheduler::quantity::amounts;

/// Between two counts. Source: `nodepool.counter` of Karpenter's core 1.14.1.
const EVERY: Duration = Duration::from_secs(5);
/// What a pool's limits and counts call its nodes.
const NODES: &str = "nodes";
const GPU: &str = "nvidia.com/gpu";

/// Counts for as long as it is polled.
pub(super) async fn run(world: &World) {
    loop {
        tokio::time::sleep(EVERY).await;
        world.update(count);
    }
}

/// Whether a pool's limits leave room for one more node of one GPU, beside all that it has asked for.
pub(super) fn has_room(cluster: &Cluster, pool: &Value) -> bool {
    let one = Amounts::from([(GPU.to_owned(), 1000)]);
    let mut taken = one.clone();
    add(&mut taken, &Amounts::from([(NODES.to_owned(), 1000)]));
    for claim in claims(cluster, pool) {
        add(&mut taken, &offered(claim).unwrap_or_else(|| one.clone()));
        add(&mut taken, &Amounts::from([(NODES.to_owned(), 1000)]));
    }
    let limits = amounts(pool.pointer("/spec/limits"));
    limits.iter().all(|(resource, limit)| taken.get(resource).is_none_or(|taken| taken <= limit))
}

/// Writes what the claims offer that were launched, and how many those are.
fn count(state: &mut State) {
    let pools: Vec<Arc<Value>> = state.cluster.list(NODE_POOL).cloned().collect();
    for pool in pools {
        let mut used = Amounts::from([(NODES.to_owned(), 0)]);
        for offered in claims(&state.cluster, &pool).filter_map(offered) {
            add(&mut used, &offered);
            add(&mut used, &Amounts::from([(NODES.to_owned(), 1000)]));
        }
        let resources: Map<String, Value> = used
            .into_iter()
            .map(|(resource, amount)| (resource, json!((amount / 1000).to_string())))
            .collect();
        let resources = Value::Object(resources);
        if pool.pointer("/status/resources") != Some(&resources) {
            edit(&mut state.cluster, &Target::of(NODE_POOL, &pool), |pool| {
                set(pool, "/status/resources", resources);
            });
        }
    }
}

fn claims<'a>(cluster: &'a Cluster, pool: &'a Value) -> impl Iterator<Item = &'a Arc<Value>> {
    let of_pool = |claim: &&Arc<Value>| label(claim, "karpenter.sh/nodepool") == name(pool);
    cluster.list(NODE_CLAIM).filter(of_pool)
}

/// What a claim became, once it is launched.
fn offered(claim: &Arc<Value>) -> Option<Amounts> {
    Some(amounts(claim.pointer("/status/capacity"))).filter(|offered| !offered.is_empty())
}

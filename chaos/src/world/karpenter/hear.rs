//! Karpenter's interruption controller: an instance that EC2 warned of loses its claim.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::world::State;
use crate::world::World;
use crate::world::cluster::Caller;
use crate::world::cluster::Target;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::text;
use crate::world::cluster::resource::NODE_CLAIM;
use crate::world::karpenter::Hears;

/// Deletes claims of interrupted instances for as long as it is polled.
pub(super) async fn run(world: &World, hears: Hears) {
    let Hears::After(delay) = hears else { return std::future::pending().await };
    let mut known = BTreeSet::new();
    loop {
        let warned = world.until(|state| {
            let new = |id: &String| !known.contains(id);
            state.instances.iter().find_map(|instance| {
                let notice = instance.notice.filter(|_| new(&instance.id))?;
                Some((instance.id.clone(), notice.at))
            })
        });
        let (instance, at) = warned.await;
        let due = delay.saturating_sub(since(world, at));
        tokio::time::sleep(due).await;
        world.update(|state| interrupted(state, &instance));
        known.insert(instance);
    }
}

fn since(world: &World, at: jiff::Timestamp) -> Duration {
    Duration::try_from(world.now().duration_since(at)).unwrap_or_default()
}

fn interrupted(state: &mut State, instance: &str) {
    if let Some(known) = state.instances.get(instance) {
        let offering = (known.instance_type.clone(), known.zone.clone());
        state.offerings.shun((&offering.0, &offering.1), state.cluster.now());
    }
    let own = |claim: &str| claim.rsplit('/').next() == Some(instance);
    let mut claims = state.cluster.list(NODE_CLAIM);
    let claim = claims.find(|claim| own(text(claim, "/status/providerID")) && !is_deleting(claim));
    let Some(target) = claim.map(|claim| Target::of(NODE_CLAIM, claim)) else { return };
    drop(claims);
    let caller = Caller::named("karpenter");
    let deleted = state.cluster.delete(&caller, &target, &DeleteOptions::default());
    deleted.expect("a claim that was listed is there");
}

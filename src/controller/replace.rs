//! The replacement's facts, and the claim that is made from a plan.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::replacement::Attempt;
use lifeboat_domain::replacement::Attempts;
use lifeboat_domain::replacement::ClaimCondition;
use lifeboat_domain::replacement::ClaimHold;
use lifeboat_domain::replacement::ClaimSpec;
use lifeboat_domain::replacement::Dying;
use lifeboat_domain::replacement::DyingClaim;
use lifeboat_domain::replacement::Fleet;
use lifeboat_domain::replacement::Limits;
use lifeboat_domain::replacement::Offerings;
use lifeboat_domain::replacement::Operator;
use lifeboat_domain::replacement::Overlay;
use lifeboat_domain::replacement::PodRequirements;
use lifeboat_domain::replacement::ReplacementFacts;
use lifeboat_domain::replacement::Requirement;
use lifeboat_domain::replacement::Used;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;

use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::claims;
use crate::adapters::cluster::claims::ClaimRow;
use crate::adapters::cluster::claims::NewClaim;
use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::adapters::cluster::marks;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::overlays;
use crate::adapters::cluster::pods;
use crate::adapters::cluster::pods::PodRow;
use crate::adapters::cluster::pools;
use crate::adapters::cluster::rows::Rows;
use crate::adapters::cluster::volumes;
use crate::controller::Deps;
use crate::controller::memory::Memory;
use crate::controller::memory::attempt_of;
use crate::crd::node_interruption::Claim;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// How long limits and overlays are believed.
const BELIEVED: Duration = Duration::from_secs(10);

/// Notes what the watch of claims shows.
pub fn remember(deps: &Deps, memory: &mut Memory, row: &InterruptionRow) {
    let now = deps.clock.now();
    match dying_claim(deps, row) {
        Some(claim) => {
            memory.dying_gone = None;
            memory.dying = Some(claim);
        }
        None if memory.dying.is_some() && deps.caches.claims.is_synced() => {
            memory.dying_gone.get_or_insert(now);
        }
        None => (),
    }
    for claim in deps.caches.claims.group(row.instance.as_str()) {
        let Some(attempt) = attempt_of(&claim.name) else { continue };
        let bound = is_bound(deps, &claim);
        let asked = memory.claims.entry(attempt).or_default();
        asked.bound |= bound;
        let record = asked.record.get_or_insert_with(|| asked_now(&claim.name, &claim, now));
        record.gone_at = None;
        if claim.is("Initialized") {
            let since = claim.conditions.get("Initialized").copied().flatten();
            record.ready_at.get_or_insert(since.unwrap_or(now));
        }
    }
}

/// Asks the server for what no watch shows.
pub async fn look(deps: &Deps, memory: &mut Memory, row: &InterruptionRow) {
    confirm_gone(deps, memory, row).await;
    // While one is alive, or nothing can be copied, nothing is asked for.
    let alive =
        deps.caches.claims.group(row.instance.as_str()).iter().any(|one| one.deleted_at.is_none());
    if alive || memory.dying.is_none() {
        return;
    }
    look_at_volumes(deps, memory).await;
    if !is_known(memory.limits.as_ref(), &Limits::Unknown) {
        memory.limits = Some((Instant::now(), limits(deps, memory).await));
    }
    if !is_known(memory.overlay.as_ref(), &Overlay::Unknown) {
        memory.overlay = Some((Instant::now(), overlay(deps, memory, row).await));
    }
}

/// What could not be read is read again at the next look; the rest is believed for a while.
fn is_known<T: PartialEq>(read: Option<&(Instant, T)>, unknown: &T) -> bool {
    read.is_some_and(|(at, found)| at.elapsed() < BELIEVED && found != unknown)
}

/// Notes the claims that there are: all of ours, and what those of the pool take of its limits.
///
/// Karpenter writes what a pool uses every five seconds, and at any moment some of its nodes may be
/// missing there (source: `nodepool.counter` of its core). Its claims are never behind by more than
/// our watch. The fleet is counted first: a claim that launches in between counts twice, not never.
pub fn count(deps: &Deps, memory: &Memory, fleet: Fleet, facts: &mut ReplacementFacts) {
    facts.fleet = fleet;
    let Limits::Known { in_use, .. } = &mut facts.limits else { return };
    let pool = memory.dying.as_ref().and_then(|claim| claim.labels.get(marks::NODE_POOL));
    for (resource, shown) in taken(&deps.caches.claims, pool) {
        let used = in_use.entry(resource).or_default();
        *used = shown.max(*used);
    }
}

/// What the claims of a pool offer that were launched, in sum, and their number as `nodes`.
fn taken(claims: &Rows<ClaimRow>, pool: Option<&String>) -> BTreeMap<String, u64> {
    let offered = claims.select(|claim| {
        let launched = claim.labels.get(marks::NODE_POOL) == pool && !claim.capacity.is_empty();
        launched.then(|| counted(&claim.capacity))
    });
    let mut taken = BTreeMap::from([("nodes".to_owned(), offered.len() as u64)]);
    for (resource, count) in offered.into_iter().flatten() {
        let sum = taken.entry(resource).or_default();
        *sum = sum.saturating_add(count);
    }
    taken
}

/// What the choice of a replacement looks at, but for what [`count`] adds when the plan is made.
pub fn facts(
    deps: &Deps,
    memory: &Memory,
    row: &InterruptionRow,
    node: Option<&NodeRow>,
) -> ReplacementFacts {
    ReplacementFacts {
        dying: dying(deps, memory, node),
        attempts: attempts(deps, memory, row),
        offerings: Offerings::Unknown,
        limits: memory.limits.as_ref().map_or(Limits::Unknown, |(_, limits)| limits.clone()),
        overlay: memory.overlay.map_or(Overlay::Unknown, |(_, overlay)| overlay),
        fleet: Fleet::default(),
    }
}

/// Where a pod can run.
pub fn requirements(memory: &Memory, pod: &PodRow) -> PodRequirements {
    let Some(placement) = &pod.placement else { return PodRequirements::default() };
    let selector = placement.node_selector.iter().map(|(key, value)| Requirement {
        key: key.clone(),
        operator: Operator::In,
        values: BTreeSet::from([value.clone()]),
        min_values: None,
    });
    let term = |rules: &Vec<pods::Requirement>| rules.iter().map(requirement).collect();
    PodRequirements {
        all: selector.collect(),
        one_of: placement.terms.iter().map(term).collect(),
        volume_zones: memory.volumes.get(&pod.uid).cloned().flatten(),
    }
}

/// The claim of a plan as it is sent: a copy of the dying one with the plan's requirements.
///
/// What Karpenter resolved on the dying one, as its type and zone, stands in labels too, and would
/// bind the copy to them. The labels of the NodePool stand in labels and requirements both; on a
/// claim that it did not make itself, Karpenter gives a node those of the labels only. Owner and
/// hashes are left out by `claims::create`.
pub fn new_claim(memory: &Memory, row: &InterruptionRow, claim: &ClaimSpec) -> Option<NewClaim> {
    let dying = memory.dying.as_ref().filter(|dying| dying.name == claim.copy_of.as_str())?;
    let labels = dying.labels.iter();
    let labels = labels.filter(|(key, _)| key.as_str() == marks::NODE_POOL || !is_resolved(key));
    let mut spec = dying.spec.clone();
    spec["requirements"] = claim.requirements.iter().map(requirement_to_wire).collect();
    Some(NewClaim {
        name: claim.name.to_string(),
        replaces: row.instance.to_string(),
        labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
        spec,
    })
}

/// What a claim leaves out of what the dying one was, for the record.
pub fn left_out(memory: &Memory, claim: &ClaimSpec) -> Option<String> {
    let dying = memory.dying.as_ref()?;
    [marks::INSTANCE_TYPE, marks::ZONE].into_iter().find_map(|key| {
        let was = dying.labels.get(key)?;
        let mut about = claim.requirements.iter().filter(|rule| rule.key == key);
        let excluded = about.any(|rule| match rule.operator {
            Operator::In => !rule.values.contains(was),
            Operator::NotIn => rule.values.contains(was),
            Operator::Exists
            | Operator::DoesNotExist
            | Operator::Gt
            | Operator::Lt
            | Operator::Gte
            | Operator::Lte
            | Operator::Unknown => false,
        });
        excluded.then(|| was.clone())
    })
}

fn dying_claim(deps: &Deps, row: &InterruptionRow) -> Option<ClaimRow> {
    let instance = row.instance.as_str();
    let is_it = |claim: &ClaimRow| claim.instance.as_deref() == Some(instance);
    deps.caches.claims.select(|claim| is_it(claim).then(|| claim.clone())).into_iter().next()
}

fn asked_now(name: &str, claim: &ClaimRow, now: Timestamp) -> Claim {
    Claim {
        name: name.to_owned(),
        asked_at: claim.created_at.unwrap_or(now),
        without: None,
        ready_at: None,
        gone_at: None,
    }
}

fn is_bound(deps: &Deps, claim: &ClaimRow) -> bool {
    let Some(node) = &claim.node else { return false };
    deps.caches.pods.group(node).iter().any(PodRow::is_protected)
}

/// The next claim is made only when the server itself shows the last one gone.
async fn confirm_gone(deps: &Deps, memory: &mut Memory, row: &InterruptionRow) {
    let shown = deps.caches.claims.group(row.instance.as_str());
    let shown: BTreeSet<u32> = shown.iter().filter_map(|claim| attempt_of(&claim.name)).collect();
    let now = deps.clock.now();
    for (attempt, asked) in &mut memory.claims {
        let missing = asked.record.as_mut().filter(|record| record.gone_at.is_none());
        let (false, Some(record)) = (shown.contains(attempt), missing) else { continue };
        match claims::read(&deps.cluster, &record.name, REQUEST_MAX).await {
            Ok(None) => record.gone_at = Some(now),
            Ok(Some(_)) => (),
            Err(error) => failed("claim", &error),
        }
    }
}

async fn look_at_volumes(deps: &Deps, memory: &mut Memory) {
    let pods: Vec<PodRow> = memory.pods.values().cloned().collect();
    for pod in pods {
        let claims = pod.placement.as_ref().map(|placement| placement.volume_claims.clone());
        if memory.volumes.contains_key(&pod.uid) {
            continue;
        }
        let mut zones: Option<BTreeSet<_>> = None;
        let mut complete = true;
        for claim in claims.unwrap_or_default() {
            let found = volumes::zones_of(&deps.cluster, &pod.namespace, &claim, REQUEST_MAX).await;
            match found {
                Ok(found) if found.is_empty() => (),
                Ok(found) => {
                    let found: BTreeSet<_> =
                        found.iter().filter_map(|zone| zone.parse().ok()).collect();
                    zones = Some(match zones {
                        Some(known) => known.intersection(&found).cloned().collect(),
                        None => found,
                    });
                }
                Err(error) => {
                    failed("volume", &error);
                    complete = false;
                }
            }
        }
        if complete {
            memory.volumes.insert(pod.uid, zones);
        }
    }
}

async fn limits(deps: &Deps, memory: &Memory) -> Limits {
    let pool = memory.dying.as_ref().and_then(|claim| claim.labels.get(marks::NODE_POOL));
    let Some(pool) = pool else { return Limits::None };
    match pools::read(&deps.cluster, pool, REQUEST_MAX).await {
        Ok(Some(pool)) if pool.spec.limits.is_empty() => Limits::None,
        Ok(Some(pool)) => Limits::Known {
            limits: counted(&pool.spec.limits),
            in_use: counted(&pool.status.resources),
        },
        Ok(None) => Limits::None,
        Err(error) => {
            failed("pool", &error);
            Limits::Unknown
        }
    }
}

async fn overlay(deps: &Deps, memory: &Memory, row: &InterruptionRow) -> Overlay {
    let sliced = sliced(deps, memory, row);
    if sliced.is_empty() {
        return Overlay::NotNeeded;
    }
    match overlays::list(&deps.cluster, REQUEST_MAX).await {
        Ok(all) => {
            let stated =
                |name: &String| all.iter().any(|overlay| overlay.spec.capacity.contains_key(name));
            if sliced.iter().all(stated) { Overlay::Stated } else { Overlay::Missing }
        }
        Err(error) => {
            failed("overlay", &error);
            Overlay::Unknown
        }
    }
}

/// Resources of the pods of which a GPU has several, so that Karpenter cannot count them by itself.
fn sliced(deps: &Deps, memory: &Memory, row: &InterruptionRow) -> BTreeSet<String> {
    let nodes = deps.caches.nodes.group(row.instance.as_str());
    let label = |key: &str| nodes.iter().find_map(|node| node.labels.get(key).cloned());
    let strategy = label("nvidia.com/gpu.sharing-strategy");
    let replicas = label("nvidia.com/gpu.replicas").and_then(|text| text.parse::<u32>().ok());
    let replicated = matches!(strategy.as_deref(), Some("time-slicing" | "mps"))
        || replicas.is_some_and(|replicas| replicas > 1);
    let bought = memory.dying.as_ref().map(|claim| counted(&claim.capacity)).unwrap_or_default();
    // The node offers more than its claim was bought for.
    let multiplied = |name: &str| {
        let offered = nodes.iter().filter_map(|node| node.extended.get(name)).max();
        matches!((offered, bought.get(name)), (Some(offered), Some(bought)) if offered > bought)
    };
    let names = memory.pods.values().flat_map(|pod| pod.extended.names());
    let of_nvidia = names.filter(|name| name.starts_with("nvidia.com/"));
    let is_sliced = |name: &&str| {
        replicated
            || name.ends_with(".shared")
            || name.starts_with("nvidia.com/mig-")
            || multiplied(name)
    };
    of_nvidia.filter(is_sliced).map(str::to_owned).collect()
}

fn dying(deps: &Deps, memory: &Memory, node: Option<&NodeRow>) -> Dying {
    let Some(claim) = &memory.dying else {
        let pooled = node.is_some_and(|node| node.labels.contains_key(marks::NODE_POOL));
        return if deps.caches.claims.is_synced() && !pooled {
            Dying::None
        } else {
            Dying::Unknown
        };
    };
    let Ok(name) = claim.name.parse() else { return Dying::Unknown };
    let rules = claim.spec["requirements"].as_array().into_iter().flatten();
    let requested = claim.spec["resources"]["requests"].as_object().into_iter().flatten();
    let requested = requested.map(|(name, _)| name.as_str()).filter(|name| name.contains('/'));
    let used = memory.pods.values().flat_map(|pod| pod.extended.names());
    let set = claim.annotations.as_ref().and_then(|all| all.get(marks::TERMINATION_TIMESTAMP));
    Dying::Claim(DyingClaim {
        name,
        requirements: rules.filter_map(requirement_from_wire).collect(),
        resources: requested.chain(used).map(str::to_owned).collect(),
        capacity: counted(&claim.capacity),
        termination_time: set.and_then(|at| at.parse().ok()),
    })
}

fn attempts(deps: &Deps, memory: &Memory, row: &InterruptionRow) -> Attempts {
    if !deps.caches.claims.is_synced() {
        return Attempts::Unknown;
    }
    let shown = deps.caches.claims.group(row.instance.as_str());
    let shown: BTreeMap<u32, ClaimRow> =
        shown.into_iter().filter_map(|claim| Some((attempt_of(&claim.name)?, claim))).collect();
    let numbers: BTreeSet<u32> = memory.claims.keys().chain(shown.keys()).copied().collect();
    let attempt = |number: &u32| match (shown.get(number), memory.claims.get(number)) {
        (Some(claim), _) if claim.deleted_at.is_some() => Attempt::Going,
        (Some(claim), asked) => alive(claim, asked.is_some_and(|asked| asked.bound)),
        (None, Some(asked)) => {
            let gone = asked.record.as_ref().and_then(|record| record.gone_at);
            gone.map_or(Attempt::Unknown, |at| Attempt::Gone { at })
        }
        (None, None) => Attempt::Unknown,
    };
    Attempts::Known { attempts: numbers.iter().map(|number| (*number, attempt(number))).collect() }
}

fn alive(claim: &ClaimRow, bound: bool) -> Attempt {
    let condition = if claim.is("Initialized") {
        ClaimCondition::Ready
    } else if claim.is("Registered") {
        ClaimCondition::Registered
    } else if claim.is("Launched") {
        ClaimCondition::Launched
    } else {
        ClaimCondition::Asked
    };
    let since = claim.conditions.get("Initialized").copied().flatten();
    Attempt::Alive {
        condition,
        used: if bound { Used::Bound } else { Used::Empty { since } },
        held: if claim.is_kept() { ClaimHold::Held } else { ClaimHold::Free },
    }
}

/// In the domain's units: cpu in millicores, memory and storage in bytes, the rest in pieces.
fn counted(quantities: &BTreeMap<String, Value>) -> BTreeMap<String, u64> {
    let count = |(name, quantity): (&String, &Value)| {
        let milli = pools::milli(quantity)?;
        let count = if name == "cpu" { milli } else { milli / 1000 };
        Some((name.clone(), u64::try_from(count).unwrap_or(u64::MAX)))
    };
    quantities.iter().filter_map(count).collect()
}

fn requirement(rule: &pods::Requirement) -> Requirement {
    Requirement {
        key: rule.key.clone(),
        operator: operator(&rule.operator),
        values: rule.values.iter().cloned().collect(),
        min_values: None,
    }
}

fn requirement_from_wire(rule: &Value) -> Option<Requirement> {
    let values = rule["values"].as_array().into_iter().flatten();
    Some(Requirement {
        key: rule["key"].as_str()?.to_owned(),
        operator: operator(rule["operator"].as_str()?),
        values: values.filter_map(|value| value.as_str()).map(str::to_owned).collect(),
        min_values: rule["minValues"].as_u64().and_then(|least| u32::try_from(least).ok()),
    })
}

fn requirement_to_wire(rule: &Requirement) -> Value {
    let mut wire = json!({"key": rule.key, "operator": rule.operator});
    match rule.operator {
        Operator::Exists | Operator::DoesNotExist => (),
        Operator::In
        | Operator::NotIn
        | Operator::Gt
        | Operator::Lt
        | Operator::Gte
        | Operator::Lte
        | Operator::Unknown => wire["values"] = json!(rule.values),
    }
    if let Some(least) = rule.min_values {
        wire["minValues"] = json!(least);
    }
    wire
}

fn operator(text: &str) -> Operator {
    serde_json::from_value(json!(text)).unwrap_or(Operator::Unknown)
}

/// Labels that say what an instance turned out to be, and ours.
///
/// Source: Karpenter, "NodePools", well-known labels. A pool's own may be in other parts of
/// Kubernetes' domain, as in `node-role.kubernetes.io`.
fn is_resolved(key: &str) -> bool {
    const OF_NODE: [&str; 5] = [
        "kubernetes.io",
        "node.kubernetes.io",
        "topology.kubernetes.io",
        "beta.kubernetes.io",
        "failure-domain.beta.kubernetes.io",
    ];
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let of = |parent: &str| domain == parent || domain.ends_with(&format!(".{parent}"));
    OF_NODE.contains(&domain)
        || of("k8s.aws")
        || of("lifeboat.dev")
        || domain.starts_with("karpenter.")
}

fn failed(what: &'static str, error: &crate::adapters::cluster::ClusterError) {
    metrics::error("cluster", error.label());
    tracing::warn!(what, error = %Chain(error), "not read");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_the_labels_of_its_pool_and_no_others() {
        let of_pool = ["team", "nvidia.com/gpu.present", "node-role.kubernetes.io/gpu"];
        assert!(!of_pool.into_iter().any(is_resolved));
        let resolved = [
            "topology.kubernetes.io/zone",
            "topology.k8s.aws/zone-id",
            "node.kubernetes.io/instance-type",
            "kubernetes.io/arch",
            "karpenter.sh/capacity-type",
            "karpenter.k8s.aws/instance-family",
            "karpenter.kwok.sh/instance-family",
            "lifeboat.dev/replaces",
        ];
        assert!(resolved.into_iter().all(is_resolved));
    }
}

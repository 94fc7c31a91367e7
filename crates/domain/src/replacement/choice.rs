//! Which claim is made next, by what was reclaimed, what the pods need and what the limits leave.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::time::Duration;

use jiff::Timestamp;

use crate::deadline::later;
use crate::policy::Asked;
use crate::policy::OnDemand;
use crate::policy::ReplacementPolicy;
use crate::replacement::Attempt;
use crate::replacement::Attempts;
use crate::replacement::CAPACITY_TYPE;
use crate::replacement::ClaimSpec;
use crate::replacement::Dying;
use crate::replacement::DyingClaim;
use crate::replacement::INSTANCE_TYPE;
use crate::replacement::Limits;
use crate::replacement::Need;
use crate::replacement::NoClaim;
use crate::replacement::Offering;
use crate::replacement::Offerings;
use crate::replacement::Operator;
use crate::replacement::Overlay;
use crate::replacement::PodRequirements;
use crate::replacement::ReplacementFacts;
use crate::replacement::Requirement;
use crate::replacement::ZONE;
use crate::replacement::claim_name;

/// How long Karpenter remembers that an offering was not to be had.
///
/// Source: Karpenter AWS provider, `pkg/cache/cache.go` (`UnavailableOfferingsTTL`).
pub const UNAVAILABLE_OFFERINGS: Duration = Duration::from_mins(3);

/// The claim to make now, or why none is made.
pub fn choose(
    facts: &ReplacementFacts,
    need: &Need,
    policy: &ReplacementPolicy,
    now: Timestamp,
) -> Result<ClaimSpec, NoClaim> {
    if policy.asked == Asked::Never {
        return Err(NoClaim::NotOurs);
    }
    if need.pods.is_empty() {
        return Err(NoClaim::NothingToMove);
    }
    let attempt = next_attempt(&facts.attempts, policy)?;
    let dying = match &facts.dying {
        Dying::Claim(dying) => dying,
        Dying::None => return Err(NoClaim::NoDyingClaim),
        Dying::Unknown => return Err(NoClaim::Unreadable),
    };
    let choices = choices(facts, dying, need, policy)?;
    let index = usize::try_from(attempt - 1).unwrap_or(usize::MAX);
    if index >= choices.len() && now < next_round(&facts.attempts) {
        return Err(NoClaim::Waiting);
    }
    let choice = choices.get(index % choices.len()).ok_or(NoClaim::NoOffering)?;
    within_limits(facts, dying, choice.market, policy)?;
    let name = claim_name(&need.instance, attempt).map_err(|_| NoClaim::Unreadable)?;
    let requirements = choice.requirements.clone();
    Ok(ClaimSpec { name, copy_of: dying.name.clone(), requirements })
}

/// When Karpenter may have forgotten that every choice was refused.
pub fn next_round(attempts: &Attempts) -> Timestamp {
    let gone = |attempt: &Attempt| match attempt {
        Attempt::Gone { at } => Some(*at),
        Attempt::Alive { .. } | Attempt::Going | Attempt::Unknown => None,
    };
    let last = match attempts {
        Attempts::Known { attempts } => attempts.values().filter_map(gone).max(),
        Attempts::Unknown => None,
    };
    last.map_or(Timestamp::MIN, |last| later(last, UNAVAILABLE_OFFERINGS))
}

/// One way to replace the node, the best first.
struct Choice {
    market: Market,
    requirements: Vec<Requirement>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Market {
    /// Spot, or capacity that is paid for already.
    Spot,
    OnDemand,
}

impl Market {
    const ALL: [Self; 2] = [Self::Spot, Self::OnDemand];

    fn capacity_types(self) -> &'static [&'static str] {
        match self {
            Self::Spot => &["reserved", "spot"],
            Self::OnDemand => &["on-demand"],
        }
    }
}

fn next_attempt(attempts: &Attempts, policy: &ReplacementPolicy) -> Result<u32, NoClaim> {
    let Attempts::Known { attempts } = attempts else { return Err(NoClaim::Unreadable) };
    let all_gone = attempts.values().all(|attempt| matches!(attempt, Attempt::Gone { .. }));
    if !all_gone {
        return Err(NoClaim::Alive);
    }
    let attempt = attempts.keys().last().map_or(1, |last| last.saturating_add(1));
    if attempt > policy.max_attempts {
        return Err(NoClaim::AttemptsSpent);
    }
    Ok(attempt.max(1))
}

fn choices(
    facts: &ReplacementFacts,
    dying: &DyingClaim,
    need: &Need,
    policy: &ReplacementPolicy,
) -> Result<Vec<Choice>, NoClaim> {
    match facts.overlay {
        Overlay::Stated | Overlay::NotNeeded => (),
        Overlay::Missing => return Err(NoClaim::NoOverlay),
        Overlay::Unknown => return Err(NoClaim::Unreadable),
    }
    let reclaimed = need.reclaimed.as_ref().ok_or(NoClaim::Unreadable)?;
    let wanted = wanted(dying, &need.pods)?;
    let on_demand = policy.on_demand_last == OnDemand::Last && policy.on_demand_max_nodes > 0;
    let choices: Vec<Choice> = Market::ALL
        .into_iter()
        .filter(|market| *market == Market::Spot || on_demand)
        .flat_map(|market| choices_in(market, &wanted, reclaimed, &facts.offerings))
        .collect();
    if choices.is_empty() { Err(NoClaim::NoOffering) } else { Ok(choices) }
}

/// The requirements of the dying claim and of all its pods, or none if they leave nothing.
fn wanted(dying: &DyingClaim, pods: &[PodRequirements]) -> Result<Vec<Requirement>, NoClaim> {
    let mut all = narrow(dying.requirements.clone()).ok_or(NoClaim::NoOffering)?;
    for pod in pods {
        let zones = pod.volume_zones.iter().map(|zones| Requirement {
            key: ZONE.to_owned(),
            operator: Operator::In,
            values: zones.iter().map(ToString::to_string).collect(),
            min_values: None,
        });
        let own = pod.all.iter().cloned().chain(zones);
        let with_own = narrow(all.iter().cloned().chain(own)).ok_or(NoClaim::NoOffering)?;
        all = if pod.one_of.is_empty() {
            with_own
        } else {
            let with = |term: &Vec<Requirement>| narrow(with_own.iter().chain(term).cloned());
            pod.one_of.iter().find_map(with).ok_or(NoClaim::NoOffering)?
        };
    }
    let readable = all.iter().all(|requirement| requirement.operator != Operator::Unknown);
    if readable { Ok(all) } else { Err(NoClaim::Unreadable) }
}

/// Without the reclaimed zone, and without the reclaimed type: what leaves more comes first.
///
/// Requirements are for one label each, so a pair can only be left out by one of its halves.
fn choices_in(
    market: Market,
    wanted: &[Requirement],
    reclaimed: &Offering,
    offerings: &Offerings,
) -> Vec<Choice> {
    let capacity = compare(CAPACITY_TYPE, Operator::In, market.capacity_types());
    let without_zone = compare(ZONE, Operator::NotIn, &[reclaimed.zone.as_str()]);
    let without_type = compare(INSTANCE_TYPE, Operator::NotIn, &[reclaimed.instance_type.as_str()]);
    let mut choices: Vec<(usize, Choice)> = [without_zone, without_type]
        .into_iter()
        .filter_map(|without| {
            let added = [capacity.clone(), without];
            let requirements = narrow(wanted.iter().cloned().chain(added))?;
            let offered = count(&requirements, offerings);
            (offered > 0).then_some((offered, Choice { market, requirements }))
        })
        .collect();
    choices.sort_by_key(|(offered, _)| Reverse(*offered));
    choices.into_iter().map(|(_, choice)| choice).collect()
}

fn compare(key: &str, operator: Operator, values: &[&str]) -> Requirement {
    let values = values.iter().map(ToString::to_string).collect();
    Requirement { key: key.to_owned(), operator, values, min_values: None }
}

/// How many offerings the requirements leave; a guess where we only know what they name.
fn count(requirements: &[Requirement], offerings: &Offerings) -> usize {
    match offerings {
        Offerings::Known { offerings } => offerings
            .iter()
            .filter(|offering| {
                allows(requirements, INSTANCE_TYPE, offering.instance_type.as_str())
                    && allows(requirements, ZONE, offering.zone.as_str())
            })
            .count(),
        Offerings::Unknown => named(requirements, INSTANCE_TYPE) * named(requirements, ZONE),
    }
}

fn allows(requirements: &[Requirement], key: &str, value: &str) -> bool {
    requirements.iter().filter(|requirement| requirement.key == key).all(|requirement| {
        match requirement.operator {
            Operator::In => requirement.values.contains(value),
            Operator::NotIn => !requirement.values.contains(value),
            Operator::DoesNotExist => false,
            Operator::Exists
            | Operator::Gt
            | Operator::Lt
            | Operator::Gte
            | Operator::Lte
            | Operator::Unknown => true,
        }
    })
}

/// Any type of a region, or any of its zones: more than one, less one for each that is excluded.
const NOT_NAMED: usize = 3;

fn named(requirements: &[Requirement], key: &str) -> usize {
    let of_key = || requirements.iter().filter(|requirement| requirement.key == key);
    let named = of_key().find(|requirement| requirement.operator == Operator::In);
    let excluded: usize = of_key()
        .filter(|requirement| requirement.operator == Operator::NotIn)
        .map(|requirement| requirement.values.len())
        .sum();
    named.map_or(NOT_NAMED.saturating_sub(excluded).max(1), |named| named.values.len())
}

/// Requirements that name one node, and so no other.
const OF_ONE_NODE: &str = "kubernetes.io/hostname";

/// All requirements that hold together, each label's lists of values made one; none if a list is
/// empty.
fn narrow(requirements: impl IntoIterator<Item = Requirement>) -> Option<Vec<Requirement>> {
    let mut included: BTreeMap<String, Requirement> = BTreeMap::new();
    let mut excluded: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut others = BTreeSet::new();
    for requirement in requirements {
        if requirement.key == OF_ONE_NODE {
            continue;
        }
        match requirement.operator {
            Operator::In => include(&mut included, requirement),
            Operator::NotIn => {
                excluded.entry(requirement.key).or_default().extend(requirement.values);
            }
            Operator::Exists
            | Operator::DoesNotExist
            | Operator::Gt
            | Operator::Lt
            | Operator::Gte
            | Operator::Lte
            | Operator::Unknown => {
                others.insert(requirement);
            }
        }
    }
    for requirement in included.values_mut() {
        let without = excluded.remove(&requirement.key).unwrap_or_default();
        requirement.values.retain(|value| !without.contains(value));
        let left = u32::try_from(requirement.values.len()).unwrap_or(u32::MAX);
        requirement.min_values = requirement.min_values.map(|least| least.min(left));
    }
    let holds = included.values().all(|requirement| !requirement.values.is_empty());
    let excluded = excluded.into_iter().map(|(key, values)| Requirement {
        key,
        operator: Operator::NotIn,
        values,
        min_values: None,
    });
    holds.then(|| included.into_values().chain(excluded).chain(others).collect())
}

fn include(included: &mut BTreeMap<String, Requirement>, requirement: Requirement) {
    match included.entry(requirement.key.clone()) {
        Entry::Vacant(place) => {
            place.insert(requirement);
        }
        Entry::Occupied(mut place) => {
            let known = place.get_mut();
            known.values.retain(|value| requirement.values.contains(value));
            known.min_values = known.min_values.max(requirement.min_values);
        }
    }
}

fn within_limits(
    facts: &ReplacementFacts,
    dying: &DyingClaim,
    market: Market,
    policy: &ReplacementPolicy,
) -> Result<(), NoClaim> {
    if facts.fleet.in_flight >= policy.max_in_flight {
        return Err(NoClaim::MaxInFlight);
    }
    if facts.fleet.in_last_hour >= policy.max_per_hour {
        return Err(NoClaim::MaxPerHour);
    }
    if market == Market::OnDemand && facts.fleet.on_demand >= policy.on_demand_max_nodes {
        return Err(NoClaim::OnDemandLimit);
    }
    match &facts.limits {
        Limits::None => Ok(()),
        Limits::Unknown => Err(NoClaim::Unreadable),
        Limits::Known { limits, in_use } => {
            // Those that the pool does not count yet are taken to be of the same size.
            let nodes = u64::from(facts.fleet.uncounted).saturating_add(1);
            let fits = limits.iter().all(|(resource, limit)| {
                let used = in_use.get(resource).copied().unwrap_or(0);
                let one_node = u64::from(resource == "nodes");
                let each = dying.capacity.get(resource).copied().unwrap_or(one_node);
                used.saturating_add(each.saturating_mul(nodes)) <= *limit
            });
            if fits { Ok(()) } else { Err(NoClaim::PoolLimits) }
        }
    }
}

#[cfg(test)]
mod tests;

//! What replaces a node that is being taken: which claim is made, with which requirements, or why
//! none is.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::deadline::later;
use crate::ids::ClaimName;
use crate::ids::InstanceId;
use crate::ids::InstanceType;
use crate::ids::NotAName;
use crate::ids::Zone;
use crate::policy::Asked;
use crate::policy::OnDemand;
use crate::policy::ReplacementPolicy;

/// Node label and requirement: the instance type.
pub const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
/// Node label and requirement: the zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Node label and requirement: `spot`, `on-demand` or `reserved`.
pub const CAPACITY_TYPE: &str = "karpenter.sh/capacity-type";

/// All that the choice of a replacement looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplacementFacts {
    /// The claim of the node that is being taken.
    pub dying: Dying,
    /// What became of our claims for this interruption.
    pub attempts: Attempts,
    /// What can be bought.
    pub offerings: Offerings,
    /// The limits of the NodePool.
    pub limits: Limits,
    /// Whether a NodeOverlay states the replicas of sliced resources.
    pub overlay: Overlay,
    /// Claims of ours in the whole cluster, those just asked for included.
    pub fleet: Fleet,
}

/// The claim of the node that is being taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Dying {
    /// It is known, also if it is gone by now.
    Claim(DyingClaim),
    /// There is none: the node is not Karpenter's.
    None,
    /// It could not be read.
    #[serde(other)]
    Unknown,
}

/// What is copied or looked at of the claim of the node that is being taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DyingClaim {
    /// Its name.
    pub name: ClaimName,
    /// `spec.requirements`.
    pub requirements: Vec<Requirement>,
    /// The extended resources among `spec.resources.requests` and the requests of its pods, such
    /// as `nvidia.com/gpu.shared`.
    pub resources: BTreeSet<String>,
    /// What its node has, in the units of [`Limits`].
    pub capacity: BTreeMap<String, u64>,
    /// `karpenter.sh/nodeclaim-termination-timestamp`, if somebody set it.
    pub termination_time: Option<Timestamp>,
}

/// One requirement of a claim or a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How its value is compared.
    pub operator: Operator,
    /// With what.
    pub values: BTreeSet<String>,
    /// Karpenter's `minValues`.
    #[serde(rename = "minValues")]
    pub min_values: Option<u32>,
}

/// How the value of a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Operator {
    /// It is one of the values.
    In,
    /// It is none of them.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
    /// It is a number greater than the value.
    Gt,
    /// It is a number less than the value.
    Lt,
    /// It is a number, and not less than the value.
    Gte,
    /// It is a number, and not greater than the value.
    Lte,
    /// One that only a later version knows; copied, and never looked at.
    #[serde(other)]
    Unknown,
}

/// Where a pod can run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRequirements {
    /// Its node selector, and all that its affinity requires of any node.
    pub all: Vec<Requirement>,
    /// The terms of its required node affinity, of which one must hold; empty for none.
    pub one_of: Vec<Vec<Requirement>>,
    /// The zones in which its bound volumes are; none for volumes that are nowhere in particular.
    pub volume_zones: Option<BTreeSet<Zone>>,
}

/// What became of our claims for one interruption, by the number of the attempt, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Attempts {
    /// These, and no others.
    Known {
        /// By number.
        #[serde(with = "pairs")]
        attempts: BTreeMap<u32, Attempt>,
    },
    /// They could not be read.
    #[serde(other)]
    Unknown,
}

/// One claim of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Attempt {
    /// It is there.
    Alive {
        /// How far it is.
        condition: ClaimCondition,
        /// Whether pods of ours are bound to its node.
        used: Used,
        /// Its `do-not-disrupt`.
        held: ClaimHold,
    },
    /// It is being deleted.
    Going,
    /// A consistent read showed that it is gone.
    Gone {
        /// When.
        at: Timestamp,
    },
    /// We do not know; it may be there.
    #[serde(other)]
    Unknown,
}

/// How far a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimCondition {
    /// Made, no more.
    Asked,
    /// Its instance is launched.
    Launched,
    /// Its node joined.
    Registered,
    /// Its node is initialized.
    Ready,
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// Whether pods of ours are bound to the node of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "used", rename_all = "kebab-case")]
pub enum Used {
    /// At least one is, or was.
    Bound,
    /// None is.
    Empty {
        /// Since when the node could have taken one; none while it could not.
        since: Option<Timestamp>,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// Whether a claim of ours is kept from disruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimHold {
    /// It is, by us.
    Held,
    /// It is not.
    Free,
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// What can be bought, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Offerings {
    /// These.
    Known {
        /// The offerings.
        offerings: BTreeSet<Offering>,
    },
    /// We only know what requirements name.
    #[serde(other)]
    Unknown,
}

/// An instance type in a zone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offering {
    /// The type.
    pub instance_type: InstanceType,
    /// The zone.
    pub zone: Zone,
}

/// The limits of the NodePool, cpu in millicores, memory and storage in bytes, the rest in pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Limits {
    /// It has these, and uses this much of them.
    Known {
        /// `spec.limits`.
        limits: BTreeMap<String, u64>,
        /// `status.resources`.
        in_use: BTreeMap<String, u64>,
    },
    /// There are none, or there is no NodePool.
    None,
    /// They could not be read.
    #[serde(other)]
    Unknown,
}

/// Whether a NodeOverlay states the replicas of the sliced resources that the pods ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlay {
    /// It does.
    Stated,
    /// It does not: Karpenter would buy a node for each pod.
    Missing,
    /// Nothing is sliced: whole GPUs, or none.
    NotNeeded,
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// How many claims of ours there are in the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fleet {
    /// Alive, and not yet Ready.
    pub in_flight: u32,
    /// Made within the last hour.
    pub in_last_hour: u32,
    /// Alive, and on demand.
    pub on_demand: u32,
}

/// The claim to make. Everything else is copied from the dying one: class, labels (the NodePool's
/// too), taints, startup taints, requests, `terminationGracePeriod`, `expireAfter`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSpec {
    /// `<instance>-<attempt>`.
    pub name: ClaimName,
    /// The claim to copy from.
    pub copy_of: ClaimName,
    /// Its requirements, all of them.
    pub requirements: Vec<Requirement>,
}

/// Why no replacement is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum NoClaim {
    /// The policy says so, or there is no Karpenter.
    NotOurs,
    /// No protected pod will need a node.
    NothingToMove,
    /// The node is not Karpenter's.
    NoDyingClaim,
    /// Claims, or what to copy, could not be read.
    Unreadable,
    /// One is alive, or may be.
    Alive,
    /// Every choice was tried as often as the policy allows.
    AttemptsSpent,
    /// Every choice was refused; the next round begins when Karpenter's memory of it is over.
    Waiting,
    /// Nothing else would fit the pods: the reclaimed pair is all there is.
    NoOffering,
    /// Sliced resources, and no NodeOverlay that states their replicas.
    NoOverlay,
    /// `replacement.maxInFlight` is reached.
    MaxInFlight,
    /// `replacement.maxPerHour` is reached.
    MaxPerHour,
    /// The NodePool's limits leave no room.
    PoolLimits,
    /// What is left is on demand, and `replacement.onDemandMaxNodes` is reached.
    OnDemandLimit,
}

impl NoClaim {
    /// Its name in metrics and records.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotOurs => "NotOurs",
            Self::NothingToMove => "NothingToMove",
            Self::NoDyingClaim => "NoDyingClaim",
            Self::Unreadable => "Unreadable",
            Self::Alive => "Alive",
            Self::AttemptsSpent => "AttemptsSpent",
            Self::Waiting => "Waiting",
            Self::NoOffering => "NoOffering",
            Self::NoOverlay => "NoOverlay",
            Self::MaxInFlight => "MaxInFlight",
            Self::MaxPerHour => "MaxPerHour",
            Self::PoolLimits => "PoolLimits",
            Self::OnDemandLimit => "OnDemandLimit",
        }
    }
}

/// What a replacement is wanted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The instance that is being taken; it names the claim.
    pub instance: InstanceId,
    /// What is not offered again.
    pub reclaimed: Option<Offering>,
    /// The pods that will move.
    pub pods: Vec<PodRequirements>,
}

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

/// The name of the claim of one attempt.
pub fn claim_name(instance: &InstanceId, attempt: u32) -> Result<ClaimName, NotAName> {
    format!("{instance}-{attempt}").parse()
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
            let fits = limits.iter().all(|(resource, limit)| {
                let used = in_use.get(resource).copied().unwrap_or(0);
                let one_node = u64::from(resource == "nodes");
                let added = dying.capacity.get(resource).copied().unwrap_or(one_node);
                used.saturating_add(added) <= *limit
            });
            if fits { Ok(()) } else { Err(NoClaim::PoolLimits) }
        }
    }
}

/// A map by number as a list of pairs: JSON has no numbers for keys, and a tagged enum cannot read
/// them back from text.
mod pairs {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serialize;
    use serde::Serializer;

    use super::Attempt;

    pub(super) fn serialize<S: Serializer>(
        attempts: &BTreeMap<u32, Attempt>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        attempts.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u32, Attempt>, D::Error> {
        Ok(Vec::<(u32, Attempt)>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;

//! What replaces a node that is being taken: which claim is made, with which requirements, or why
//! none is.

mod choice;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::ids::ClaimName;
use crate::ids::InstanceId;
use crate::ids::InstanceType;
use crate::ids::NotAName;
use crate::ids::Zone;

pub use choice::UNAVAILABLE_OFFERINGS;
pub use choice::choose;
pub use choice::next_round;

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
        /// `status.resources`, or what its claims offer in sum where that is more.
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
    /// Not launched yet, so that nothing says what they will take of a NodePool's limits.
    #[serde(default)]
    pub uncounted: u32,
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

/// The name of the claim of one attempt.
pub fn claim_name(instance: &InstanceId, attempt: u32) -> Result<ClaimName, NotAName> {
    format!("{instance}-{attempt}").parse()
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

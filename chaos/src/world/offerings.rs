//! What EC2 has to offer: instance types in zones, their prices, and what is sold out.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde_json::Value;

use crate::world::cluster::object::items;
use crate::world::cluster::object::text;
use crate::world::cluster::selector::satisfies;
use crate::world::instances;
use crate::world::instances::Purchase;
use crate::world::scheduler::quantity::Amounts;

/// How long Karpenter remembers that an offering was refused.
///
/// Source: karpenter-provider-aws, `pkg/cache/cache.go`.
const REMEMBERED: SignedDuration = SignedDuration::from_mins(3);

/// Everything on offer.
#[derive(Debug, Default)]
pub struct Offerings {
    /// What there is, sold out or not.
    pub all: Vec<Offering>,
    sold_out: BTreeSet<Key>,
    unavailable: BTreeMap<Key, Timestamp>,
}

/// One instance type in one zone, bought one way.
#[derive(Clone, Debug)]
pub struct Offering {
    /// Instance type.
    pub instance_type: String,
    /// Availability zone.
    pub zone: String,
    /// How it is bought.
    pub purchase: Purchase,
    /// Price of an hour, in ten-thousandths of a dollar.
    pub price: u32,
    /// Physical GPUs.
    pub gpus: u32,
    /// Extended resource that the device plugin offers each GPU under.
    pub resource: String,
    /// Time slices of each GPU.
    pub replicas: u32,
}

/// Type, zone, and whether it is Spot.
type Key = (String, String, bool);

impl Offering {
    /// A type with one whole GPU.
    pub fn whole(instance_type: &str, zone: &str, purchase: Purchase, price: u32) -> Self {
        Self {
            instance_type: instance_type.to_owned(),
            zone: zone.to_owned(),
            purchase,
            price,
            gpus: 1,
            resource: "nvidia.com/gpu".to_owned(),
            replicas: 1,
        }
    }

    /// The same, each GPU cut in slices.
    #[must_use]
    pub fn sliced(self, gpus: u32, replicas: u32) -> Self {
        Self { gpus, replicas, ..self }
    }

    /// Labels that a node of it has.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let family = self.instance_type.split('.').next().unwrap_or_default();
        let category: String = family.chars().take_while(char::is_ascii_alphabetic).collect();
        let count = self.gpus.to_string();
        let pairs = [
            ("node.kubernetes.io/instance-type", self.instance_type.as_str()),
            ("topology.kubernetes.io/zone", &self.zone),
            ("karpenter.sh/capacity-type", self.purchase.as_str()),
            ("karpenter.k8s.aws/instance-family", family),
            ("karpenter.k8s.aws/instance-category", &category),
            ("karpenter.k8s.aws/instance-gpu-count", &count),
            ("karpenter.k8s.aws/instance-gpu-manufacturer", "nvidia"),
            ("kubernetes.io/arch", "amd64"),
            ("kubernetes.io/os", "linux"),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// Whether the value of a label follows from what was bought.
    pub fn resolves(key: &str) -> bool {
        Self::whole("", "", Purchase::Spot, 0).labels().contains_key(key)
    }

    /// As EC2 takes the order.
    pub fn order(&self) -> instances::Offering<'_> {
        let Self { instance_type, zone, purchase, .. } = self;
        instances::Offering { instance_type, zone, purchase: *purchase }
    }

    /// Whether it satisfies the requirements of a claim or a pool; keys that it knows nothing of
    /// are labels of the claim's own.
    pub fn satisfies(&self, requirements: &[Value]) -> bool {
        let labels = self.labels();
        requirements.iter().all(|requirement| {
            let value = labels.get(text(requirement, "/key"));
            value.is_none_or(|value| satisfies(requirement, Some(value)))
        })
    }

    /// What it has before any slicing, in thousandths; more than enough of plain resources.
    pub fn physical(&self) -> Amounts {
        Amounts::from([("nvidia.com/gpu".to_owned(), i128::from(self.gpus) * 1000)])
    }

    fn key(&self) -> Key {
        let spot = self.purchase == Purchase::Spot;
        (self.instance_type.clone(), self.zone.clone(), spot)
    }
}

impl Offerings {
    /// EC2 refuses this one from now on.
    pub fn sell_out(&mut self, instance_type: &str, zone: &str, purchase: Purchase) {
        let spot = purchase == Purchase::Spot;
        self.sold_out.insert((instance_type.to_owned(), zone.to_owned(), spot));
    }

    /// EC2 has everything again.
    pub fn restock(&mut self) {
        self.sold_out.clear();
    }

    /// Karpenter takes an offering as unavailable for a while.
    pub fn shun(&mut self, (instance_type, zone): (&str, &str), now: Timestamp) {
        let key = (instance_type.to_owned(), zone.to_owned(), true);
        self.unavailable.insert(key, now + REMEMBERED);
    }

    /// What Karpenter would try for these requirements: cheapest first.
    pub fn candidates(&self, requirements: &[Value], now: Timestamp) -> Vec<Offering> {
        let shunned = |offering: &Offering| {
            self.unavailable.get(&offering.key()).is_some_and(|until| *until > now)
        };
        let fitting = self.all.iter().filter(|offering| offering.satisfies(requirements));
        let mut fitting: Vec<Offering> =
            fitting.filter(|offering| !shunned(offering)).cloned().collect();
        fitting.sort_by_key(|offering| (offering.price, offering.key()));
        fitting
    }

    /// Buys the cheapest of the candidates that EC2 has; the refused ones are remembered.
    pub fn buy(&mut self, candidates: &[Offering], now: Timestamp) -> Option<Offering> {
        for candidate in candidates {
            if !self.sold_out.contains(&candidate.key()) {
                return Some(candidate.clone());
            }
            self.unavailable.insert(candidate.key(), now + REMEMBERED);
        }
        None
    }
}

/// Requirements of a claim or a pool's template.
pub fn requirements(object: &Value, path: &str) -> Vec<Value> {
    items(object, path).to_vec()
}

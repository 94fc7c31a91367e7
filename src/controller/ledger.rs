//! Claims that were just asked for, so that a storm of interruptions keeps the limits before the
//! watch has shown any of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::cluster::plan::Action;
use lifeboat_domain::cluster::plan::Plan;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::replacement::Fleet;

use crate::adapters::cluster::claims::ClaimRow;
use crate::adapters::cluster::marks;
use crate::adapters::cluster::rows::Rows;

/// How long a claim counts against the rate.
const HOUR: Duration = Duration::from_hours(1);
/// How long the watch may take to show a claim that was made.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);

/// Claims by name, with when they were asked for.
#[derive(Debug, Default)]
pub struct Ledger {
    asked: Mutex<BTreeMap<String, Timestamp>>,
}

impl Ledger {
    /// Plans under the ledger's lock: no other task counts the fleet between the count and the
    /// reservation of what this plan asks for.
    pub fn plan(
        &self,
        claims: &Rows<ClaimRow>,
        now: Timestamp,
        plan: impl FnOnce(Fleet) -> Plan,
    ) -> Plan {
        let mut asked = self.lock();
        asked.retain(|_, at| elapsed(*at, now) < HOUR);
        let plan = plan(fleet(&asked, claims, now));
        for step in &plan.steps {
            if let Action::EnsureClaim { claim } = &step.action {
                asked.entry(claim.name.to_string()).or_insert(now);
            }
        }
        plan
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Timestamp>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fleet(asked: &BTreeMap<String, Timestamp>, claims: &Rows<ClaimRow>, now: Timestamp) -> Fleet {
    let ours = claims.select(|claim| claim.replaces.is_some().then(|| claim.clone()));
    let shown: BTreeMap<&str, &ClaimRow> =
        ours.iter().map(|claim| (claim.name.as_str(), claim)).collect();
    let unshown = asked.iter().filter(|(name, at)| {
        !shown.contains_key(name.as_str()) && elapsed(**at, now) < SHOWN_WITHIN
    });
    let unshown = unshown.count();
    let alive = || ours.iter().filter(|claim| claim.deleted_at.is_none());
    let in_flight = alive().filter(|claim| !claim.is("Initialized"));
    let uncounted = alive().filter(|claim| claim.capacity.is_empty());
    let on_demand = ours.iter().filter(|claim| is_on_demand(claim));
    let lately = |claim: &&ClaimRow| {
        claim.created_at.is_some_and(|at| elapsed(at, now) < HOUR)
            && !asked.contains_key(&claim.name)
    };
    Fleet {
        in_flight: count(in_flight.count() + unshown),
        uncounted: count(uncounted.count() + unshown),
        in_last_hour: count(asked.len() + ours.iter().filter(lately).count()),
        on_demand: count(on_demand.count()),
    }
}

/// What it was asked for, while it is not known what it became.
fn is_on_demand(claim: &ClaimRow) -> bool {
    if let Some(became) = claim.labels.get(marks::CAPACITY_TYPE) {
        return became == "on-demand";
    }
    let rules = claim.spec["requirements"].as_array().into_iter().flatten();
    let mut about = rules.filter(|rule| rule["key"] == marks::CAPACITY_TYPE);
    about.any(|rule| rule["values"].as_array().is_some_and(|values| values == &["on-demand"]))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

//! What the task of one interruption remembers: all of it can be found out again, some of it less
//! exactly.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::cluster::facts::Bucket;
use lifeboat_domain::cluster::facts::Eviction;
use lifeboat_domain::ids::Zone;
use lifeboat_domain::replacement::Limits;
use lifeboat_domain::replacement::Overlay;
use tokio::time::Instant;

use crate::adapters::cluster::claims::ClaimRow;
use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::adapters::cluster::pods::PodRow;
use crate::crd::node_interruption::Claim;
use crate::crd::node_interruption::Drain;
use crate::crd::node_interruption::Fence;

/// How long a step that went well is not taken again: the watch shows it meanwhile.
const SETTLING: Duration = Duration::from_secs(1);
/// Most passes that are kept for the record.
const PASSES_MAX: usize = 200;

/// What one task remembers. All maps of pods are by UID.
#[derive(Debug, Default)]
pub struct Memory {
    /// Protected pods that were seen on the node, as they were last seen.
    pub pods: BTreeMap<String, PodRow>,
    /// When a pod was first missed.
    pub gone: BTreeMap<String, Timestamp>,
    /// What our evictions came to.
    pub evictions: BTreeMap<String, Eviction>,
    /// How pods were ended, as it is recorded.
    pub drains: BTreeMap<String, Drain>,
    /// When pods were held.
    pub holds: BTreeMap<String, Timestamp>,
    /// The fence, once it was seen.
    pub fence: Option<Fence>,
    /// When the node was first missed.
    pub node_gone: Option<Timestamp>,
    /// The claim of the node, as it was last seen.
    pub dying: Option<ClaimRow>,
    /// When that claim was first missed.
    pub dying_gone: Option<Timestamp>,
    /// Our claims, by the number of their attempt.
    pub claims: BTreeMap<u32, Asked>,
    /// Why no claim was made, as the last plan said.
    pub no_claim: Option<&'static str>,
    /// The zones of each pod's volumes; `None` if they are nowhere in particular.
    pub volumes: BTreeMap<String, Option<BTreeSet<Zone>>>,
    /// What the bucket holds of each pod, and when it was looked at.
    pub bucket: BTreeMap<String, (Instant, Bucket)>,
    /// The pool's limits, and when they were looked at.
    pub limits: Option<(Instant, Limits)>,
    /// Whether an overlay states the slices, and when that was looked at.
    pub overlay: Option<(Instant, Overlay)>,
    /// Passes that took a step, and the first that had one, which first aid may have taken. As text:
    /// trees of it take five times the room.
    pub passes: Vec<Box<str>>,
    /// The parts of the record that we wrote last.
    pub written: Written,
    /// What the plan withheld, as it is told in a condition.
    pub withheld: Option<String>,
    settled: BTreeMap<String, Instant>,
}

/// One of our claims.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// As it is recorded.
    pub record: Option<Claim>,
    /// Whether pods of ours were ever bound to its node.
    pub bound: bool,
}

/// The parts of a record that we wrote last, to write only what differs.
#[derive(Debug, Default)]
pub struct Written {
    /// What is said of the whole.
    pub whole: Option<String>,
    /// When that was written.
    pub at: Option<Instant>,
    /// Whether something else is to be said of it by now.
    pub owed: bool,
    /// What is said of each pod.
    pub workloads: BTreeMap<String, String>,
}

impl Memory {
    /// Takes over what an earlier task wrote into the record.
    pub fn recall(&mut self, row: &InterruptionRow) {
        if self.fence.is_none() {
            self.fence.clone_from(&row.status.fence);
        }
        for (uid, at) in &row.status.holds {
            self.holds.entry(uid.clone()).or_insert(*at);
        }
        for (uid, workload) in &row.status.workloads {
            if let Some(drain) = &workload.drain {
                self.recall_drain(uid, drain);
            }
        }
        let claims = row.status.replacement.iter().flat_map(|one| &one.claims);
        for claim in claims {
            let Some(attempt) = attempt_of(&claim.name) else { continue };
            let asked = self.claims.entry(attempt).or_default();
            asked.record.get_or_insert_with(|| claim.clone());
        }
    }

    /// Whether this very step went well a moment ago.
    pub fn is_settling(&self, step: &str) -> bool {
        self.settled.get(step).is_some_and(|at| at.elapsed() < SETTLING)
    }

    /// Notes that this step went well.
    pub fn settle(&mut self, step: String) {
        self.settled.retain(|_, at| at.elapsed() < SETTLING);
        self.settled.insert(step, Instant::now());
    }

    /// Keeps a pass for the record.
    pub fn keep_pass(&mut self, pass: Box<str>) {
        if self.passes.len() < PASSES_MAX {
            self.passes.push(pass);
        }
    }

    fn recall_drain(&mut self, uid: &str, drain: &Drain) {
        if self.drains.contains_key(uid) {
            return;
        }
        self.drains.insert(uid.to_owned(), drain.clone());
        if let Some(at) = drain.gone_at {
            self.gone.entry(uid.to_owned()).or_insert(at);
        }
        let refusals = u32::try_from(drain.refusals).unwrap_or(u32::MAX);
        let eviction = match drain.evicted_at {
            Some(at) => Eviction::Accepted { at },
            None if refusals > 0 => Eviction::Refused { times: refusals, last: drain.decided },
            None => return,
        };
        self.evictions.entry(uid.to_owned()).or_insert(eviction);
    }
}

/// The number of the attempt in a claim's name, `<instance>-<attempt>`.
pub fn attempt_of(claim: &str) -> Option<u32> {
    claim.rsplit_once('-').and_then(|(_, attempt)| attempt.parse().ok())
}

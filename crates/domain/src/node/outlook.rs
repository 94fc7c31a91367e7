//! What is to be expected of each save: when it is stored, whether that is in time, and by which
//! rate that is reckoned. For people and workloads; the plan itself does not look at it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

use crate::budget::Expected;
use crate::budget::Fit;
use crate::budget::Rate;
use crate::budget::Waiting;
use crate::budget::eta;
use crate::budget::fit;
use crate::budget::turns;
use crate::deadline::Deadline;
use crate::ids::PodUid;
use crate::node::facts::Asked;
use crate::node::facts::NodeFacts;
use crate::node::facts::Workload;
use crate::node::moment::has_handed_over;
use crate::node::moment::is_leaving;
use crate::node::moment::waiting;
use crate::signal::NOTICE;

/// What of a notice is not there to save in: it is heard within seconds, and the manifest comes
/// after the last byte.
const LOST: Duration = Duration::from_secs(5);

/// What is left of a notice to end the step and to store the state.
pub const WINDOW: Duration = NOTICE.saturating_sub(LOST);

/// What is to be expected of one workload's save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// Of which save.
    pub of: Save,
    /// How many bytes are still to be stored.
    pub bytes: u64,
    /// How long until it is stored, its turn and the end of its step waited for.
    pub eta: Duration,
    /// Whether that is in time; unknown where there is no deadline.
    pub fit: Fit,
    /// The rate that this is reckoned by.
    pub rate: Expected,
}

/// Which save is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// The one that is under way.
    UnderWay {
        /// Until when it must be stored.
        deadline: Option<Deadline>,
    },
    /// The one that would be made if the node were interrupted now, all its workloads together.
    AtNotice,
}

impl Outlook {
    /// Whether it will not be stored in time, by all that is known.
    pub fn is_too_late(&self) -> bool {
        self.fit == Fit::WillNotFit
    }
}

impl fmt::Display for Outlook {
    /// Like `40.0 GiB are stored within 190 s, at 2.5 Gbit/s (baseline); there are 115 s`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = |count: u64, one: u64| {
            let tenths = u128::from(count) * 10 / u128::from(one);
            format!("{}.{}", tenths / 10, tenths % 10)
        };
        let size = tenths(self.bytes, 1 << 30);
        let rate = tenths(self.rate.bytes_per_second, 125_000_000);
        let (seconds, basis) = (self.eta.as_secs(), self.rate.basis.label());
        write!(formatter, "{size} GiB are stored within {seconds} s, at {rate} Gbit/s ({basis})")?;
        match (self.of, self.fit) {
            (Save::AtNotice, _) => write!(formatter, "; there are {} s", WINDOW.as_secs()),
            (Save::UnderWay { .. }, Fit::Fits { margin }) => {
                write!(formatter, ", {} s to spare", margin.as_secs())
            }
            (Save::UnderWay { .. }, Fit::WillNotFit) => write!(formatter, ", too late"),
            (Save::UnderWay { .. }, Fit::Unknown) => Ok(()),
        }
    }
}

/// What is to be expected of every workload whose size is known: of the saves under way, and while
/// nothing interrupts the node, of those that a notice would begin.
pub fn outlook(facts: &NodeFacts, now: Timestamp) -> BTreeMap<PodUid, Outlook> {
    let mut found = under_way(facts, now);
    if facts.signals.deadline().is_none() {
        found.extend(at_notice(facts));
    }
    found
}

fn under_way(facts: &NodeFacts, now: Timestamp) -> BTreeMap<PodUid, Outlook> {
    let states: Vec<Waiting> = saved_by_us(facts).filter_map(waiting).collect();
    let left = |workload: &Workload| deadline(workload).map(|deadline| deadline.left(now));
    let earliest = saved_by_us(facts).filter_map(left).min().unwrap_or(Duration::MAX);
    let rate = facts.rate.expected();
    reckon(facts, &states, (rate.bytes_per_second, earliest), |workload, bytes, eta| {
        let fit = left(workload).map_or(Fit::Unknown, |left| fit(Some(eta), left));
        Outlook { of: Save::UnderWay { deadline: deadline(workload) }, bytes, eta, fit, rate }
    })
}

fn at_notice(facts: &NodeFacts) -> BTreeMap<PodUid, Outlook> {
    let runs = |workload: &&Workload| {
        waiting(workload).is_none() && !is_leaving(workload) && workload.size.is_some()
    };
    let states: Vec<Waiting> = saved_by_us(facts)
        .filter(runs)
        .map(|workload| Waiting {
            uid: workload.pod.uid.clone(),
            namespace: workload.pod.namespace.clone(),
            pod_priority: workload.pod_priority,
            priority: workload.priority,
            remaining: workload.size,
        })
        .collect();
    let rate = facts.rate.expected();
    reckon(facts, &states, (rate.planned(), WINDOW), |_, bytes, eta| {
        let fit = fit(Some(eta), WINDOW);
        Outlook { of: Save::AtNotice, bytes, eta, fit, rate }
    })
}

/// A state is stored when its turn is over, and no sooner than its step and its own bytes take.
fn reckon(
    facts: &NodeFacts,
    states: &[Waiting],
    (bytes_per_second, left): (u64, Duration),
    told: impl Fn(&Workload, u64, Duration) -> Outlook,
) -> BTreeMap<PodUid, Outlook> {
    let mut found = BTreeMap::new();
    for turn in turns(states, Rate::Measured { bytes_per_second }, left) {
        let state = states.iter().find(|state| state.uid == turn.uid);
        let bytes = state.and_then(|state| state.remaining);
        let (Some(workload), Some(bytes), Some(queued)) =
            (facts.workloads.get(&turn.uid), bytes, turn.eta)
        else {
            continue;
        };
        let step = workload.step_time.filter(|_| !has_handed_over(workload)).unwrap_or_default();
        let own = eta(Some(bytes), turn.part).unwrap_or_default();
        let outlook = told(workload, bytes, queued.max(step.saturating_add(own)));
        found.insert(turn.uid, outlook);
    }
    found
}

fn saved_by_us(facts: &NodeFacts) -> impl Iterator<Item = &Workload> {
    facts.workloads.values().filter(|workload| workload.mode.is_saved_by_us())
}

fn deadline(workload: &Workload) -> Option<Deadline> {
    match workload.asked {
        Asked::Save { deadline, .. } => deadline,
        Asked::Nothing | Asked::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::Changed;
    use crate::samples::at;
    use crate::samples::handed_over;
    use crate::samples::node_facts;
    use crate::samples::served;
    use crate::signal::Signals;
    use crate::workload::Checkpoint;

    const MEBI: u64 = 1 << 20;

    /// Like `train-0 10s, 20s to spare` or `train-0 10s, too late`.
    #[track_caller]
    fn check(facts: &NodeFacts, second: i64, expected: &[&str]) {
        let found: Vec<String> = outlook(facts, at(second))
            .iter()
            .map(|(uid, outlook)| {
                let name = uid.as_str().trim_start_matches("uid-");
                let rest = match outlook.fit {
                    Fit::Fits { margin } => format!("{margin:?} to spare"),
                    Fit::Unknown => "no hurry".to_owned(),
                    Fit::WillNotFit => "too late".to_owned(),
                };
                format!("{name} {:?}, {rest}", outlook.eta)
            })
            .collect();
        assert_eq!(found, expected);
    }

    fn measured(facts: &mut NodeFacts) {
        facts.rate = Rate::Measured { bytes_per_second: 100 * MEBI };
    }

    #[test]
    fn what_is_under_way_is_reckoned_by_what_is_left_of_it_and_of_the_time() {
        let saving = handed_over("a", 1000).with(|one| {
            let (stored, total) = (400 * MEBI, Some(1000 * MEBI));
            one.report.checkpoint = Checkpoint::Saving { step: None, stored, total };
        });
        let facts = node_facts([saving, handed_over("b", 2000)]).with(measured);
        check(&facts, 20, &["a 6s, 94s to spare", "b 26s, 74s to spare"]);
        check(&facts, 100, &["a 6s, 14s to spare", "b 26s, too late"]);
    }

    #[test]
    fn whoever_has_not_handed_over_may_still_be_at_the_beginning_of_a_step() {
        let asked = handed_over("a", 0).with(|one| {
            one.session = crate::node::facts::Session::Open;
            (one.size, one.step_time) = (Some(1000 * MEBI), Some(Duration::from_mins(1)));
        });
        let facts = node_facts([asked]).with(measured);
        check(&facts, 0, &["a 70s, 50s to spare"]);
    }

    #[test]
    fn beforehand_all_states_of_the_node_are_reckoned_together_and_with_room() {
        let runs = |name, mebibytes: u64, step| {
            served(name).with(|one| {
                one.size = Some(mebibytes * MEBI);
                one.step_time = Some(Duration::from_secs(step));
            })
        };
        let facts = |seconds| {
            let all = [runs("a", 4250, 1), runs("b", 4250, seconds), served("unknown")];
            node_facts(all).with(measured).with(|facts| facts.signals = Signals::default())
        };
        check(&facts(1), 0, &["a 51s, 64s to spare", "b 100s, 15s to spare"]);
        check(&facts(66), 0, &["a 51s, 64s to spare", "b 116s, too late"]);
        let interrupted = node_facts([runs("a", 4250, 1)]).with(measured);
        check(&interrupted, 0, &[]);
    }

    #[test]
    fn before_anything_is_known_of_the_rate_the_smallest_node_is_assumed() {
        let size = Some(30_000_000_000);
        let large = served("a").with(|one| one.size = size);
        let facts = node_facts([large]).with(|facts| facts.signals = Signals::default());
        let told = outlook(&facts, at(0)).into_values().next().unwrap();
        assert_eq!(told.rate.basis.label(), "baseline");
        assert_eq!(told.eta, Duration::from_millis(112_941));
        let words = "27.9 GiB are stored within 112 s, at 2.5 Gbit/s (baseline); there are 115 s";
        assert_eq!(told.to_string(), words);
    }
}

//! How the time left is shared among the workloads that are still to be saved.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::ids::Namespace;
use crate::ids::PodUid;

/// What the slowest node with a GPU stores in a second, its credit for bursts spent.
///
/// Source: EC2 instance types, baseline bandwidth of g5.xlarge and g6.xlarge: 2.5 Gbit/s.
pub const BASELINE: u64 = 312_500_000;

/// What is kept of the time that is left when room is reckoned.
pub const ROOM_MARGIN: Duration = Duration::from_secs(5);

/// What one connection to the bucket carries, in bytes per second.
///
/// Source: AWS CRT, `aws-c-s3`, `s3_client.c`: "throughput per connection", 0.4 Gbit/s, by which
/// it plans how many it needs.
pub const CONNECTION: u64 = 50_000_000;

/// Fewest connections that are planned. Source: as [`CONNECTION`], its minimum.
pub const CONNECTIONS_MIN: usize = 10;

/// Most connections that are planned: 100 Gbit/s. Source: as [`CONNECTION`], 250 for that.
pub const CONNECTIONS_MAX: usize = 250;

/// A workload whose state is still to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its pod.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: Namespace,
    /// `spec.priority` of its pod.
    pub pod_priority: i32,
    /// Its place within its namespace.
    pub priority: i32,
    /// How many bytes are still to be stored, if known.
    pub remaining: Option<u64>,
}

/// How fast the node stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "known", rename_all = "kebab-case")]
pub enum Rate {
    /// By measurement.
    Measured {
        /// Bytes stored in a second.
        bytes_per_second: u64,
    },
    /// Nothing was stored yet; the operator says what the node's network carries.
    Configured {
        /// Bytes stored in a second.
        bytes_per_second: u64,
    },
    /// Nothing was stored yet.
    #[serde(other)]
    Unknown,
}

/// A rate to reckon with, and how it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Bytes stored in a second.
    pub bytes_per_second: u64,
    /// How that is known.
    pub basis: Basis,
}

/// How a rate is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// It was measured on this node.
    Measured,
    /// The operator said so.
    Configured,
    /// Nobody knows it: it is [`BASELINE`].
    Baseline,
}

impl Basis {
    /// Its name in records and log lines.
    pub fn label(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Configured => "configured",
            Self::Baseline => "baseline",
        }
    }
}

impl Rate {
    /// The rate to reckon with: before anything is known, [`BASELINE`].
    pub fn expected(self) -> Expected {
        let (bytes_per_second, basis) = match self {
            Self::Measured { bytes_per_second } => (bytes_per_second, Basis::Measured),
            Self::Configured { bytes_per_second } => (bytes_per_second, Basis::Configured),
            Self::Unknown => (BASELINE, Basis::Baseline),
        };
        Expected { bytes_per_second, basis }
    }
}

impl Expected {
    /// The part of it that is planned with, 0.85: a rate is not kept to the byte.
    pub fn planned(self) -> u64 {
        let part = u128::from(self.bytes_per_second) * 85 / 100;
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}

/// How many requests to the bucket a rate takes, each of which carries [`CONNECTION`].
pub fn connections(bytes_per_second: u64) -> usize {
    let wanted = usize::try_from(bytes_per_second.div_ceil(CONNECTION)).unwrap_or(usize::MAX);
    wanted.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// A workload's turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Its pod.
    pub uid: PodUid,
    /// The most it may store in a second while other namespaces wait; none if the rate is unknown.
    pub part: Option<u64>,
    /// How long until it is stored, when its turn has come and gone.
    pub eta: Option<Duration>,
    /// Whether that is in time.
    pub fit: Fit,
}

/// Whether a state can be stored in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// It can, with this much to spare.
    Fits {
        /// What is left when it is stored.
        margin: Duration,
    },
    /// We cannot tell.
    Unknown,
    /// It cannot. It is tried all the same, after those that can.
    WillNotFit,
}

/// The order in which states are stored: pod priority, then within a namespace its own priority,
/// then what can still finish, the smaller first. Namespaces take turns, in equal parts of the rate.
pub fn turns(waiting: &[Waiting], rate: Rate, left: Duration) -> Vec<Turn> {
    let mut namespaces: BTreeMap<&Namespace, Vec<&Waiting>> = BTreeMap::new();
    for one in waiting {
        namespaces.entry(&one.namespace).or_default().push(one);
    }
    let part = part(rate, namespaces.len());

    let mut ordered = Vec::with_capacity(waiting.len());
    for queue in namespaces.values_mut() {
        queue.sort_by_key(|one| {
            let alone = fit(eta(one.remaining, part), left);
            let too_late = alone == Fit::WillNotFit;
            let remaining = one.remaining.unwrap_or(u64::MAX);
            (Reverse(one.pod_priority), Reverse(one.priority), too_late, remaining, &one.uid)
        });
        let mut before = Some(0_u64);
        for (place, one) in queue.iter().enumerate() {
            before = before.zip(one.remaining).map(|(sum, bytes)| sum.saturating_add(bytes));
            let eta = eta(before, part);
            let turn = Turn { uid: one.uid.clone(), part, eta, fit: fit(eta, left) };
            ordered.push(((Reverse(one.pod_priority), place, &one.namespace), turn));
        }
    }
    ordered.sort_by_key(|(key, _)| *key);
    ordered.into_iter().map(|(_, turn)| turn).collect()
}

/// How many bytes can be stored in `left`, by 0.85 of the rate and with [`ROOM_MARGIN`] to spare.
///
/// Before anything is known of the rate it is taken for [`BASELINE`].
pub fn room(rate: Rate, left: Duration) -> u64 {
    let bytes_per_second = rate.expected().bytes_per_second;
    let milliseconds = left.saturating_sub(ROOM_MARGIN).as_millis();
    let bytes = u128::from(bytes_per_second).saturating_mul(milliseconds) * 85 / 100_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// How long it takes to store `bytes`; none if either is unknown, or nothing is ever stored.
pub fn eta(bytes: Option<u64>, bytes_per_second: Option<u64>) -> Option<Duration> {
    let (bytes, rate) = (bytes?, bytes_per_second?);
    if bytes == 0 {
        return Some(Duration::ZERO);
    }
    let milliseconds = u128::from(bytes).saturating_mul(1000).checked_div(u128::from(rate))?;
    Some(Duration::from_millis(u64::try_from(milliseconds).unwrap_or(u64::MAX)))
}

/// Whether what takes `eta` is done when `left` is over.
pub fn fit(eta: Option<Duration>, left: Duration) -> Fit {
    match eta {
        None => Fit::Unknown,
        Some(eta) => match left.checked_sub(eta) {
            Some(margin) => Fit::Fits { margin },
            None => Fit::WillNotFit,
        },
    }
}

fn part(rate: Rate, namespaces: usize) -> Option<u64> {
    match rate {
        Rate::Unknown => None,
        Rate::Measured { bytes_per_second } | Rate::Configured { bytes_per_second } => {
            let namespaces = u64::try_from(namespaces.max(1)).unwrap_or(u64::MAX);
            Some(bytes_per_second / namespaces)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBI: u64 = 1 << 20;
    const RATE: Rate = Rate::Measured { bytes_per_second: 100 * MEBI };

    fn waiting(name: &str, pod_priority: i32, priority: i32, mebibytes: u64) -> Waiting {
        let namespace = name.split('-').next().unwrap_or(name);
        Waiting {
            uid: name.parse().unwrap(),
            namespace: namespace.parse().unwrap(),
            pod_priority,
            priority,
            remaining: Some(mebibytes * MEBI),
        }
    }

    #[track_caller]
    fn check(waiting: &[Waiting], rate: Rate, expected: &[&str]) {
        let turns = turns(waiting, rate, Duration::from_mins(1));
        let told: Vec<String> = turns
            .iter()
            .map(|turn| match (turn.eta, turn.fit) {
                (Some(eta), Fit::Fits { .. }) => format!("{} {eta:?}", turn.uid),
                (_, Fit::WillNotFit) => format!("{} too late", turn.uid),
                (_, Fit::Unknown | Fit::Fits { .. }) => format!("{} ?", turn.uid),
            })
            .collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn the_pods_priority_goes_first() {
        let states = [waiting("a-1", 0, 9, 100), waiting("a-2", 5, 0, 1000)];
        check(&states, RATE, &["a-2 10s", "a-1 11s"]);
    }

    #[test]
    fn within_a_namespace_its_own_priority_goes_next() {
        let states = [waiting("a-1", 0, 0, 100), waiting("a-2", 0, 7, 1000)];
        check(&states, RATE, &["a-2 10s", "a-1 11s"]);
    }

    #[test]
    fn what_cannot_finish_comes_last() {
        let states =
            [waiting("a-1", 0, 0, 9000), waiting("a-2", 0, 0, 200), waiting("a-3", 0, 0, 100)];
        check(&states, RATE, &["a-3 1s", "a-2 3s", "a-1 too late"]);
    }

    #[test]
    fn namespaces_take_equal_parts_and_turns() {
        let states = [
            waiting("a-1", 0, 0, 100),
            waiting("a-2", 0, 0, 100),
            waiting("a-3", 0, 0, 100),
            waiting("b-1", 0, 0, 500),
        ];
        check(&states, RATE, &["a-1 2s", "b-1 10s", "a-2 4s", "a-3 6s"]);
    }

    #[test]
    fn room_is_a_part_of_what_the_rate_makes_of_the_time() {
        let seconds = Duration::from_secs;
        assert_eq!(room(Rate::Measured { bytes_per_second: 1000 }, seconds(15)), 8500);
        assert_eq!(room(RATE, seconds(5)), 0);
        assert_eq!(room(RATE, Duration::ZERO), 0);
        assert_eq!(room(Rate::Unknown, seconds(105)), BASELINE * 85);
        assert_eq!(room(Rate::Measured { bytes_per_second: u64::MAX }, Duration::MAX), u64::MAX);
    }

    #[test]
    fn connections_follow_the_bandwidth_within_bounds() {
        let gigabit = |gigabits: u64| gigabits * 1_000_000_000 / 8;
        let found = [0, 1, 4, 10, 25, 100, 400].map(|gigabits| connections(gigabit(gigabits)));
        assert_eq!(found, [10, 10, 10, 25, 63, 250, 250]);
    }

    #[test]
    fn a_rate_says_how_it_is_known() {
        let told = |rate: Rate| (rate.expected().bytes_per_second, rate.expected().basis.label());
        assert_eq!(told(RATE), (100 * MEBI, "measured"));
        assert_eq!(told(Rate::Configured { bytes_per_second: 7 }), (7, "configured"));
        assert_eq!(told(Rate::Unknown), (BASELINE, "baseline"));
        assert_eq!(Rate::Configured { bytes_per_second: 100 }.expected().planned(), 85);
    }

    #[test]
    fn without_a_rate_nothing_is_said_to_be_late() {
        check(&[waiting("a-1", 0, 0, 9000)], Rate::Unknown, &["a-1 ?"]);
        check(&[], RATE, &[]);
        check(&[waiting("a-1", 0, 0, 1)], Rate::Measured { bytes_per_second: 0 }, &["a-1 ?"]);
    }
}

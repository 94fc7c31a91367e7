//! How many requests to the bucket are made at a time: as many as the bandwidth takes, and fewer
//! once the bucket says "slow down".

use std::time::Duration;

use lifeboat_domain::budget;
use tokio::time::Instant;

/// What is aimed at while nothing is known of the network. Nodes with a GPU reach it for minutes
/// from their burst credit.
///
/// Source: AWS CRT, `aws-c-s3`, default target throughput: 10 Gbit/s.
const TARGET: u64 = 1_250_000_000;

/// How much more than was measured is aimed at, in hundredths: what was measured may be all that so
/// few requests carry.
const HEADROOM: u128 = 150;

/// Refusals within this time are one: requests that were already on their way meet the same wall.
const SETTLES: Duration = Duration::from_secs(1);

/// How many requests are made at a time.
#[derive(Debug)]
pub struct Concurrency {
    fixed: Option<usize>,
    bandwidth: Option<u64>,
    /// How often the bucket had said "slow down" at the last look.
    slowed: u64,
    /// What that has left, and since when.
    cap: Option<(usize, Instant)>,
}

impl Concurrency {
    /// `fixed` requests, or as many as `bandwidth` in bytes per second takes, or as what is measured
    /// does.
    pub fn new(fixed: Option<usize>, bandwidth: Option<u64>) -> Self {
        Self { fixed, bandwidth, slowed: 0, cap: None }
    }

    /// The most at this moment, given how often the bucket has said "slow down" by now, and the
    /// measured rate.
    ///
    /// Halved when it says so, and then an eighth more for each second in which it does not.
    pub fn most(&mut self, (slowed, measured): (u64, Option<u64>), now: Instant) -> usize {
        let planned = self.planned(measured);
        let refused = slowed > self.slowed;
        self.slowed = slowed;
        self.cap = match self.cap {
            None if refused => Some((halved(planned), now)),
            Some((cap, since)) if refused && now - since >= SETTLES => {
                Some((halved(cap.min(planned)), now))
            }
            Some((cap, since)) if !refused => Some(grown((cap, since), now)),
            unchanged => unchanged,
        };
        self.cap = self.cap.filter(|(cap, _)| *cap < planned);
        self.cap.map_or(planned, |(cap, _)| cap)
    }

    fn planned(&self, measured: Option<u64>) -> usize {
        if let Some(fixed) = self.fixed {
            return fixed.max(1);
        }
        let grown = measured.map(|rate| u128::from(rate) * HEADROOM / 100);
        let grown = grown.map(|rate| u64::try_from(rate).unwrap_or(u64::MAX));
        let known = self.bandwidth.max(grown);
        budget::connections(known.unwrap_or(TARGET))
    }
}

fn halved(count: usize) -> usize {
    (count / 2).max(1)
}

/// What has become of a cap that was set then.
fn grown((mut cap, mut since): (usize, Instant), now: Instant) -> (usize, Instant) {
    while now - since >= SETTLES && cap < budget::CONNECTIONS_MAX {
        cap += (cap / 8).max(1);
        since += SETTLES;
    }
    (cap, since)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIGABIT: u64 = 1_000_000_000 / 8;

    #[test]
    fn requests_follow_the_bandwidth_as_it_is_said_or_measured() {
        let most = |fixed, bandwidth, measured| {
            Concurrency::new(fixed, bandwidth).most((0, measured), Instant::now())
        };
        assert_eq!(most(Some(8), Some(25 * GIGABIT), Some(25 * GIGABIT)), 8);
        assert_eq!(most(None, None, None), 25);
        assert_eq!(most(None, Some(25 * GIGABIT), None), 63);
        // More than was said is measured while there is burst credit.
        assert_eq!(most(None, Some(2 * GIGABIT), Some(20 * GIGABIT)), 75);
        assert_eq!(most(None, None, Some(GIGABIT)), 10);
    }

    #[test]
    fn many_refusals_at_once_are_one_and_quiet_seconds_bring_it_back() {
        let mut concurrency = Concurrency::new(Some(40), None);
        let begin = Instant::now();
        let mut most = |slowed, millis| {
            concurrency.most((slowed, None), begin + Duration::from_millis(millis))
        };
        assert_eq!(most(0, 0), 40);
        assert_eq!(most(1, 10), 20);
        assert_eq!(most(9, 500), 20);
        assert_eq!(most(10, 1010), 10);
        assert_eq!(most(10, 2009), 10);
        assert_eq!(most(10, 2010), 11);
        assert_eq!(most(10, 4010), 13);
        assert_eq!(most(10, 60_000), 40);
    }

    #[test]
    fn one_request_is_always_made() {
        let mut concurrency = Concurrency::new(Some(2), None);
        let begin = Instant::now();
        for second in 0..5 {
            let at = begin + Duration::from_secs(second);
            assert!(concurrency.most((second + 1, None), at) >= 1);
        }
    }
}

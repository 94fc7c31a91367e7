//! When and how a pod on an interrupted node is ended.

use std::time::Duration;

use crate::grace::grace;
use crate::policy::DrainPolicy;
use crate::workload::Checkpoint;
use crate::workload::Mode;

/// How to end a pod now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Not yet.
    Wait,
    /// By the eviction API, which honours budgets.
    Evict {
        /// Its grace.
        grace: Duration,
    },
    /// By deleting it, budget or not: this is the last moment at which its grace fits.
    Delete {
        /// Its grace.
        grace: Duration,
    },
}

/// Decides how to end a pod `left` before the deadline, given the [`grace`](crate::grace::grace)
/// it would get.
pub fn drain(checkpoint: &Checkpoint, grace: Duration, margin: Duration, left: Duration) -> Drain {
    if left <= grace + margin {
        return Drain::Delete { grace };
    }
    match checkpoint {
        Checkpoint::Unknown | Checkpoint::Idle | Checkpoint::Asked | Checkpoint::Saving { .. } => {
            Drain::Wait
        }
        Checkpoint::Durable(_) | Checkpoint::Failed { .. } => Drain::Evict { grace },
    }
}

/// Decides how to end a pod whose clean exit is its save: at once, with all the grace that fits.
///
/// What it is refused for longer shrinks its grace. So a budget that refuses is honoured until the
/// pod's own grace no longer fits, which for a long one is the first refusal.
pub fn drain_self_saving(
    refusals: u32,
    own: Duration,
    policy: &DrainPolicy,
    left: Duration,
) -> Drain {
    let grace = grace(Mode::Sigterm, own, policy, left);
    let own_fits_no_longer = left <= own.saturating_add(policy.sigterm_margin);
    let last_moment = left <= own.min(policy.max_grace) + policy.margin;
    if last_moment || (refusals > 0 && own_fits_no_longer) {
        Drain::Delete { grace }
    } else {
        Drain::Evict { grace }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;
    use crate::policy::Policy;
    use crate::workload::FailReason;
    use crate::workload::Stored;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn durable() -> Checkpoint {
        let at = jiff::Timestamp::UNIX_EPOCH;
        Checkpoint::Durable(Stored { epoch: Epoch::FIRST, step: None, bytes: 1, at })
    }

    #[test]
    fn a_pod_is_ended_when_it_is_durable_or_at_its_last_moment() {
        let saving = Checkpoint::Saving { step: None, stored: 0, total: None };
        for own in [30, 115, 120, 600, 3600] {
            for checkpoint in
                [Checkpoint::Unknown, Checkpoint::Idle, Checkpoint::Asked, saving.clone()]
            {
                assert_eq!(decide(&checkpoint, own, 120), Drain::Wait);
                assert_eq!(decide(&checkpoint, own, 21), Drain::Wait);
                assert_eq!(decide(&checkpoint, own, 20), Drain::Delete { grace: seconds(15) });
                assert_eq!(decide(&checkpoint, own, 10), Drain::Delete { grace: seconds(5) });
            }
            for checkpoint in [durable(), Checkpoint::Failed { why: FailReason::Store }] {
                assert_eq!(decide(&checkpoint, own, 119), Drain::Evict { grace: seconds(15) });
                assert_eq!(decide(&checkpoint, own, 20), Drain::Delete { grace: seconds(15) });
            }
        }
    }

    #[track_caller]
    fn decide(checkpoint: &Checkpoint, own: u64, left: u64) -> Drain {
        let policy = Policy::standard().drain;
        let grace = grace(Mode::Sdk, seconds(own), &policy, seconds(left));
        drain(checkpoint, grace, policy.margin, seconds(left))
    }

    #[test]
    fn a_short_grace_leaves_more_time_to_save() {
        assert_eq!(decide(&Checkpoint::Idle, 3, 9), Drain::Wait);
        assert_eq!(decide(&Checkpoint::Idle, 3, 8), Drain::Delete { grace: seconds(3) });
    }

    #[test]
    fn a_pod_that_saves_itself_is_ended_at_once_and_outlasts_a_budget_only_while_its_grace_fits() {
        let rows = [
            (0, 30, 120, Drain::Evict { grace: seconds(30) }),
            (5, 30, 41, Drain::Evict { grace: seconds(30) }),
            (5, 30, 40, Drain::Delete { grace: seconds(30) }),
            (0, 3600, 120, Drain::Evict { grace: seconds(110) }),
            (1, 3600, 119, Drain::Delete { grace: seconds(109) }),
            (0, 3600, 20, Drain::Delete { grace: seconds(10) }),
            (0, 5, 11, Drain::Evict { grace: seconds(1) }),
            (0, 5, 10, Drain::Delete { grace: seconds(1) }),
        ];
        let policy = Policy::standard().drain;
        for (refusals, own, left, expected) in rows {
            let decided = drain_self_saving(refusals, seconds(own), &policy, seconds(left));
            assert_eq!(decided, expected, "own {own} s, {left} s left");
        }
    }
}

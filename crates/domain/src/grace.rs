//! How long a pod that we end may take.

use std::time::Duration;

use crate::policy::DrainPolicy;
use crate::workload::Mode;

/// Shortest grace we ever ask for.
///
/// Zero would remove the pod from etcd while its containers may still run, and break the rule
/// that at most one pod of an identity runs. Source: Kubernetes, "Pod Lifecycle", forced deletion.
pub const GRACE_MIN: Duration = Duration::from_secs(1);

/// Grace given to a pod that we end: computed, never copied from the pod.
///
/// A pod may ask for an hour; what it did with its time was to be saved, and that is over. A pod
/// that is not protected is ended like one that saves itself.
pub fn grace(mode: Mode, own: Duration, policy: &DrainPolicy, left: Duration) -> Duration {
    match mode {
        Mode::Sigterm | Mode::None => own.min(left.saturating_sub(policy.sigterm_margin)),
        Mode::Sdk | Mode::Http | Mode::Directory | Mode::Unknown => {
            own.min(policy.max_grace).min(left.saturating_sub(policy.margin))
        }
    }
    .max(GRACE_MIN)
}

/// The nearest whole number of seconds, which is all that Kubernetes takes.
pub fn whole_seconds(grace: Duration) -> Duration {
    let half = Duration::from_millis(500);
    Duration::from_secs(grace.saturating_add(half).as_secs()).max(GRACE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    #[track_caller]
    fn check(mode: Mode, own: u64, left: u64, expected: u64) {
        let policy = Policy::standard().drain;
        let (own, left) = (Duration::from_secs(own), Duration::from_secs(left));
        assert_eq!(grace(mode, own, &policy, left), Duration::from_secs(expected));
    }

    #[test]
    fn a_saved_pod_gets_what_it_needs_to_end() {
        for mode in [Mode::Sdk, Mode::Http, Mode::Directory, Mode::Unknown] {
            for own in [30, 115, 120, 600, 3600] {
                check(mode, own, 100, 15);
                check(mode, own, 20, 15);
                check(mode, own, 12, 7);
            }
            check(mode, 3, 100, 3);
        }
    }

    #[test]
    fn a_pod_that_saves_itself_gets_all_the_time_there_is() {
        for mode in [Mode::Sigterm, Mode::None] {
            check(mode, 30, 120, 30);
            check(mode, 115, 120, 110);
            check(mode, 120, 120, 110);
            check(mode, 3600, 120, 110);
            check(mode, 3600, 40, 30);
        }
    }

    #[test]
    fn no_grace_is_zero() {
        check(Mode::Sdk, 0, 100, 1);
        check(Mode::Sdk, 30, 0, 1);
        check(Mode::Sigterm, 30, 5, 1);
    }

    #[test]
    fn a_grace_is_whole_seconds() {
        assert_eq!(whole_seconds(Duration::from_millis(14_990)), Duration::from_secs(15));
        assert_eq!(whole_seconds(Duration::from_millis(14_400)), Duration::from_secs(14));
        assert_eq!(whole_seconds(Duration::from_millis(300)), GRACE_MIN);
    }
}

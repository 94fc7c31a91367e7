//! The operator's knobs after validation: whole, typed, no `Option` that means "default".

use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::signal::NOTICE;
use crate::workload::Hold;

/// Every knob that a decision looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Whether anything is done at all.
    pub mode: OperatingMode,
    /// Who else drains nodes.
    pub karpenter: KarpenterMode,
    /// When a pod is held that does not say so itself.
    pub hold: Hold,
    /// How pods are ended.
    pub drain: DrainPolicy,
    /// What replaces the node.
    pub replacement: ReplacementPolicy,
    /// What is done on a rebalance recommendation.
    pub rebalance: RebalancePolicy,
    /// What is saved while nothing is wrong.
    #[serde(default)]
    pub background: BackgroundPolicy,
}

/// Whether anything is done at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperatingMode {
    /// Act.
    Protect,
    /// Hear, plan, and record what would be done.
    Observe,
}

/// Who else drains nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KarpenterMode {
    /// Karpenter, with a queue of its own, beside us.
    Beside,
    /// Managed groups or Cluster Autoscaler: no hold exists, the replacement is the group's.
    None,
}

/// How pods are ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainPolicy {
    /// The longest grace of a pod whose state is saved.
    pub max_grace: Duration,
    /// What is kept between the end of that grace and the deadline.
    pub margin: Duration,
    /// What is kept between the end of the grace of a `sigterm` pod and the deadline.
    pub sigterm_margin: Duration,
    /// With this much left, a durable sharer no longer waits for the others.
    pub sharers_until: Duration,
    /// What is done with pods that are not protected, where Karpenter is not there to do it.
    pub others: Others,
}

/// What is done with pods that are not protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Others {
    /// They are left alone.
    Leave,
    /// Without Karpenter they are evicted at once.
    Drain,
}

/// What replaces the node, and what that may cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplacementPolicy {
    /// Whether we ask for one.
    pub asked: Asked,
    /// How many claims of ours may wait for their node at a time.
    pub max_in_flight: u32,
    /// How many claims we may make in an hour.
    pub max_per_hour: u32,
    /// Whether on-demand capacity is the last choice.
    pub on_demand_last: OnDemand,
    /// How many on-demand nodes of ours there may be at a time.
    pub on_demand_max_nodes: u32,
    /// How many claims are tried for one interruption.
    pub max_attempts: u32,
    /// How long a claim's node may stand ready without a pod of ours before it is given up.
    pub unused: Duration,
}

/// Whether we ask for a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// We do.
    ByUs,
    /// Karpenter alone replaces.
    Never,
}

/// Whether on-demand capacity may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDemand {
    /// After every Spot choice.
    Last,
    /// Never.
    Never,
}

/// What is done on a rebalance recommendation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RebalancePolicy {
    /// Whether anything is.
    pub prepare: Prepare,
    /// Whether a replacement is asked for.
    pub replace: Asked,
    /// When everything is taken back if no notice follows.
    pub lapse: Duration,
}

/// How a recommendation is prepared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prepare {
    /// It is only recorded.
    Nothing,
    /// The node is kept from new pods and from voluntary disruption.
    Node,
    /// That, and workloads are saved in case.
    NodeAndSave,
}

/// What is saved while nothing is wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "saves", rename_all = "kebab-case")]
pub enum BackgroundPolicy {
    /// Nothing.
    #[default]
    Never,
    /// Whatever can be taken without being held up for as long as an upload takes.
    Every {
        /// How long after the last save, at least.
        pause: Duration,
    },
}

/// Shortest time between two saves in the background.
pub const BACKGROUND_MIN: Duration = Duration::from_mins(10);

/// How many times as long as it stood still for its last save a workload runs before the next one in
/// the background: that costs it two hundredths of its time at most.
pub const STALL_SHARE: u32 = 50;

impl BackgroundPolicy {
    /// How long a workload runs between two saves in the background, given how long it stands still
    /// for one; none if there are none.
    pub fn pause(self, stall: Duration) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Every { pause } => {
                Some(pause.max(BACKGROUND_MIN).max(stall.saturating_mul(STALL_SHARE)))
            }
        }
    }
}

/// Two knobs, or a knob and a law of EC2, that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {value}. It may be {allowed}")]
pub struct PolicyFault {
    /// The knob.
    pub key: &'static str,
    /// What it is set to.
    pub value: String,
    /// What is allowed.
    pub allowed: String,
}

impl Policy {
    /// What holds where the operator says nothing.
    pub fn standard() -> Self {
        Self {
            mode: OperatingMode::Protect,
            karpenter: KarpenterMode::Beside,
            hold: Hold::Always,
            drain: DrainPolicy {
                max_grace: Duration::from_secs(15),
                margin: Duration::from_secs(5),
                sigterm_margin: Duration::from_secs(10),
                sharers_until: Duration::from_secs(35),
                others: Others::Leave,
            },
            replacement: ReplacementPolicy {
                asked: Asked::ByUs,
                max_in_flight: 10,
                max_per_hour: 60,
                on_demand_last: OnDemand::Never,
                on_demand_max_nodes: 0,
                max_attempts: 6,
                unused: Duration::from_mins(10),
            },
            rebalance: RebalancePolicy {
                prepare: Prepare::NodeAndSave,
                replace: Asked::Never,
                lapse: Duration::from_hours(1),
            },
            background: BackgroundPolicy::Never,
        }
    }

    /// Every fault, not just the first; empty if the policy holds together.
    pub fn faults(&self) -> Vec<PolicyFault> {
        let drain = &self.drain;
        let replacement = &self.replacement;
        let second = Duration::from_secs(1);
        let last_moment = drain.max_grace + drain.margin;
        let rows = [
            ("drain.maxGrace", drain.max_grace, second, NOTICE),
            ("drain.margin", drain.margin, second, NOTICE),
            ("drain.sigtermMargin", drain.sigterm_margin, second, NOTICE),
            ("drain.sharersUntil", drain.sharers_until, last_moment, NOTICE),
            ("replacement.unused", replacement.unused, second, Duration::from_hours(24)),
            ("rebalance.lapse", self.rebalance.lapse, second, Duration::from_hours(24)),
        ];
        let outside = rows.into_iter().filter(|(_, value, least, most)| {
            let within = least <= value && value <= most;
            !within
        });
        let durations = outside.map(|(key, value, least, most)| PolicyFault {
            key,
            value: format!("{value:?}"),
            allowed: format!("{least:?} to {most:?}"),
        });
        let last = (last_moment >= NOTICE).then(|| PolicyFault {
            key: "drain.maxGrace",
            value: format!("{:?}, and `drain.margin` {:?}", drain.max_grace, drain.margin),
            allowed: format!("less than {NOTICE:?} together"),
        });
        let attempts = (!(1..=20).contains(&replacement.max_attempts)).then(|| PolicyFault {
            key: "replacement.maxAttempts",
            value: replacement.max_attempts.to_string(),
            allowed: "1 to 20".to_owned(),
        });
        durations.chain(last).chain(attempts).collect()
    }
}

impl OperatingMode {
    /// Its name in configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Protect => "protect",
            Self::Observe => "observe",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_policy_holds_together() {
        assert_eq!(Policy::standard().faults(), []);
    }

    #[test]
    fn saves_in_the_background_cost_two_hundredths_of_the_time_at_most() {
        let every = BackgroundPolicy::Every { pause: Duration::from_mins(15) };
        let pause = |policy: BackgroundPolicy, seconds| policy.pause(Duration::from_secs(seconds));
        assert_eq!(pause(every, 0), Some(Duration::from_mins(15)));
        assert_eq!(pause(every, 18), Some(Duration::from_mins(15)));
        assert_eq!(pause(every, 60), Some(Duration::from_mins(50)));
        let often = BackgroundPolicy::Every { pause: Duration::ZERO };
        assert_eq!(pause(often, 0), Some(BACKGROUND_MIN));
        assert_eq!(pause(BackgroundPolicy::Never, 0), None);
    }

    #[test]
    fn every_fault_is_told() {
        let mut policy = Policy::standard();
        policy.drain.max_grace = Duration::from_secs(40);
        policy.drain.margin = Duration::ZERO;
        policy.replacement.max_attempts = 0;
        let told: Vec<String> = policy.faults().iter().map(ToString::to_string).collect();
        let expected = [
            "`drain.margin` is 0ns. It may be 1s to 120s",
            "`drain.sharersUntil` is 35s. It may be 40s to 120s",
            "`replacement.maxAttempts` is 0. It may be 1 to 20",
        ];
        assert_eq!(told, expected);
    }
}

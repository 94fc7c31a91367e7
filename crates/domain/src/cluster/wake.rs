//! When a plan could change though no fact does.

use std::time::Duration;

use jiff::Timestamp;

use crate::cluster::drain::rests_until;
use crate::cluster::facts::ClusterFacts;
use crate::cluster::facts::Gate;
use crate::cluster::facts::Node;
use crate::cluster::facts::Workload;
use crate::cluster::marks;
use crate::cluster::plan::Next;
use crate::cluster::stage::CLOSE_LATEST;
use crate::cluster::stage::CLOSE_UNREAD;
use crate::cluster::stage::Stage;
use crate::cluster::stage::certain_at;
use crate::deadline::Deadline;
use crate::deadline::earlier;
use crate::deadline::later;
use crate::policy::Policy;
use crate::replacement::Attempt;
use crate::replacement::Attempts;
use crate::replacement::ClaimHold;
use crate::replacement::Used;
use crate::replacement::next_round;
use crate::workload::SILENCE;

/// How soon a step that changed no fact is tried again, and what could not be read is read again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The first moment after `now` at which something becomes due.
pub(super) fn next(facts: &ClusterFacts, policy: &Policy, stage: Stage, now: Timestamp) -> Next {
    if stage == Stage::Closed && nothing_is_left(facts, stage) {
        return Next::Never;
    }
    let deadline = facts.signals.deadline();
    let by_deadline =
        deadline.into_iter().flat_map(|deadline| at_deadline(deadline, facts, policy));
    let by_pod = facts.workloads.values().flat_map(|workload| {
        rests_until(&workload.pod).into_iter().chain(certain_at(&workload.pod))
    });
    let others = facts.others.values().filter_map(rests_until);
    let by_advice = match stage {
        Stage::Advised { until } => Some(until),
        Stage::Quiet | Stage::Lapsed | Stage::Interrupted { .. } | Stage::Over | Stage::Closed => {
            None
        }
    };
    let unread = matches!(facts.node, Node::Unknown).then(|| later(now, LOOK_AGAIN));
    by_deadline
        .chain(by_pod.chain(others))
        .chain(by_advice)
        .chain(by_claim(facts, policy))
        .chain(unread)
        .filter(|moment| *moment > now)
        .min()
        .map_or(Next::OnChange, Next::At)
}

fn at_deadline(
    deadline: Deadline,
    facts: &ClusterFacts,
    policy: &Policy,
) -> impl Iterator<Item = Timestamp> {
    let drain = &policy.drain;
    let at = deadline.at();
    let own = facts.workloads.values().map(|workload| workload.pod.own_grace);
    let graces: Vec<Duration> = own.chain(facts.others.values().map(|pod| pod.own_grace)).collect();
    let last_moments = graces.into_iter().flat_map(move |own| {
        [own.min(drain.max_grace) + drain.margin, own.saturating_add(drain.sigterm_margin)]
    });
    let before = [drain.sharers_until].into_iter().chain(last_moments);
    let after = [Duration::ZERO, SILENCE, CLOSE_LATEST, CLOSE_UNREAD];
    before.map(move |lead| earlier(at, lead)).chain(after.map(move |wait| later(at, wait)))
}

fn by_claim(facts: &ClusterFacts, policy: &Policy) -> Vec<Timestamp> {
    let Attempts::Known { attempts } = &facts.replacement.attempts else { return Vec::new() };
    let unused = attempts.values().filter_map(|attempt| match attempt {
        Attempt::Alive { used: Used::Empty { since: Some(since) }, .. } => {
            Some(later(*since, policy.replacement.unused))
        }
        Attempt::Alive { .. } | Attempt::Going | Attempt::Gone { .. } | Attempt::Unknown => None,
    });
    unused.chain([next_round(&facts.replacement.attempts)]).collect()
}

/// Whether nothing of ours is there that is still to be taken back, and every gate is open.
fn nothing_is_left(facts: &ClusterFacts, stage: Stage) -> bool {
    let gates_open = facts.workloads.values().all(is_let_through);
    let node_read = !matches!(facts.node, Node::Unknown);
    let claims_settled = match &facts.replacement.attempts {
        Attempts::Unknown => false,
        Attempts::Known { attempts } => attempts.values().all(|attempt| match attempt {
            Attempt::Gone { .. }
            | Attempt::Alive { used: Used::Bound, held: ClaimHold::Free, .. } => true,
            Attempt::Alive { .. } | Attempt::Going | Attempt::Unknown => false,
        }),
    };
    let marks_off =
        marks::take_backs(facts, stage).is_empty() && marks::unholds(facts, stage).next().is_none();
    gates_open && node_read && claims_settled && marks_off
}

fn is_let_through(workload: &Workload) -> bool {
    workload.job_key.is_none() || matches!(workload.gate, Gate::Open { .. })
}

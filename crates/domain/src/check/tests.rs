//! Each rule, shown refusing a step that breaks it. The planners never make such steps, so they are
//! planted here.

use std::time::Duration;

use super::*;
use crate::cluster::facts::Fence;
use crate::cluster::facts::HoldMark;
use crate::cluster::facts::Mark;
use crate::cluster::facts::Node;
use crate::cluster::facts::NodeState;
use crate::cluster::facts::Pause;
use crate::cluster::facts::Workload;
use crate::cluster::plan::Action;
use crate::cluster::plan::Ours;
use crate::cluster::plan::Reason;
use crate::cluster::plan::Step;
use crate::cluster::plan::Target;
use crate::deadline::Deadline;
use crate::ids::PodRef;
use crate::node::plan as on_node;
use crate::policy::OperatingMode;
use crate::progress::Phase;
use crate::replacement::ClaimSpec;
use crate::samples;
use crate::samples::Changed;
use crate::samples::advice;
use crate::samples::at;
use crate::samples::ending;
use crate::samples::handed_over;
use crate::samples::node_facts;
use crate::samples::node_state;
use crate::samples::pod_ref;
use crate::samples::saving;
use crate::samples::served;
use crate::samples::stored;
use crate::samples::workload;
use crate::workload::Checkpoint;
use crate::workload::Ender;
use crate::workload::Mode;
use crate::workload::Proof;
use crate::workload::Purpose;
use crate::workload::Slices;

fn durable(name: &str) -> Workload {
    workload(name).with(|one| one.report.checkpoint = Checkpoint::Durable(stored(10)))
}

fn evict(name: &str, seconds: u64) -> Step {
    let action = Action::Evict { pod: pod_ref(name), grace: Duration::from_secs(seconds) };
    Step { action, reason: Reason::Durable }
}

fn delete(name: &str, reason: Reason) -> Step {
    let (pod, grace) = (pod_ref(name), Duration::from_secs(15));
    Step { action: Action::Delete { pod, grace, target: Target::SetFirst }, reason }
}

fn step(action: Action) -> Step {
    Step { action, reason: Reason::Interrupted }
}

fn claim(attempt: u32) -> Step {
    let name = format!("{}-{attempt}", samples::INSTANCE).parse().unwrap();
    let copy_of = "gpu-abcde".parse().unwrap();
    step(Action::EnsureClaim { claim: ClaimSpec { name, copy_of, requirements: Vec::new() } })
}

/// Judges `steps` at T+`seconds`, and expects the last one to break `rule`.
#[track_caller]
fn refuse(facts: &ClusterFacts, seconds: i64, steps: &[Step], rule: Rule) {
    let (_, refused) = cluster(steps.to_vec(), facts, &Policy::standard(), at(seconds));
    let expected = steps.last().cloned().map(|step| Refused { step, rule });
    assert_eq!(refused.last().cloned(), expected);
}

#[track_caller]
fn allow(facts: &ClusterFacts, seconds: i64, step: Step) {
    let (kept, refused) = cluster(vec![step], facts, &Policy::standard(), at(seconds));
    assert_eq!((kept.len(), refused), (1, vec![]));
}

#[test]
fn a_pod_that_is_not_saved_is_not_ended_before_its_last_moment() {
    for checkpoint in [Checkpoint::Unknown, Checkpoint::Idle, Checkpoint::Asked, saving()] {
        let facts = samples::facts([workload("a").with(|one| one.report.checkpoint = checkpoint)]);
        refuse(&facts, 99, &[evict("a", 15)], Rule::SavedFirst);
        refuse(&facts, 99, &[delete("a", Reason::OutOfTime)], Rule::SavedFirst);
        refuse(&facts, 100, &[delete("a", Reason::Durable)], Rule::SavedFirst);
        allow(&facts, 100, delete("a", Reason::OutOfTime));
    }
    allow(&samples::facts([durable("a")]), 20, evict("a", 15));
}

#[test]
fn a_sharer_is_not_ended_beside_one_that_is_not_saved() {
    let silent = workload("b").with(|one| one.report.slices = Slices::Unknown);
    let facts = samples::facts([durable("a"), silent]);
    refuse(&facts, 84, &[evict("a", 15)], Rule::SharersTogether);
    allow(&facts, 85, evict("a", 15));
}

#[test]
fn nothing_is_ended_after_the_deadline_or_on_advice() {
    let facts = samples::facts([durable("a")]);
    refuse(&facts, 120, &[evict("a", 1)], Rule::BeforeTheDeadline);
    let advised = facts.with(|facts| facts.signals = advice());
    refuse(&advised, 10, &[evict("a", 15)], Rule::AdviceKillsNothing);
    refuse(&advised, 10, &[step(Action::Hold { pod: pod_ref("a") })], Rule::AdviceKillsNothing);
}

#[test]
fn a_pod_is_ended_after_the_fence_and_the_claim() {
    let open = samples::facts([durable("a")]).with(|facts| {
        facts.node = Node::Present(NodeState { fence: Fence::Open, ..node_state() });
    });
    refuse(&open, 20, &[evict("a", 15)], Rule::FencedFirst);
    let unclaimed = samples::facts([durable("a")])
        .with(|facts| facts.replacement = samples::replacement(samples::no_attempts()));
    let (kept, refused) =
        cluster(vec![evict("a", 15), claim(1)], &unclaimed, &Policy::standard(), at(20));
    assert_eq!(kept, [claim(1)]);
    assert_eq!(refused[0].rule, Rule::ClaimedFirst);
}

#[test]
fn observe_mode_and_a_pause_refuse_what_does_not_only_record() {
    let facts = samples::facts([durable("a")]);
    let observe = Policy { mode: OperatingMode::Observe, ..Policy::standard() };
    let (_, refused) = cluster(vec![evict("a", 15)], &facts, &observe, at(20));
    assert_eq!(refused[0].rule, Rule::RecordOnly);
    let paused = facts.clone().with(|facts| facts.paused = Pause::On);
    refuse(&paused, 20, &[evict("a", 15)], Rule::RecordOnly);
    let namespace = samples::facts([durable("a").with(|one| one.paused = Pause::On)]);
    refuse(&namespace, 20, &[evict("a", 15)], Rule::RecordOnly);
}

#[test]
fn what_is_not_ours_is_not_taken_back() {
    let facts =
        samples::facts([workload("a").with(|one| one.hold = HoldMark::Others)]).with(|facts| {
            facts.node =
                Node::Present(NodeState { disruption_block: Mark::Others, ..node_state() });
        });
    let node = node_state().name;
    let rows = [
        Action::Unhold { pod: pod_ref("a") },
        Action::Hold { pod: pod_ref("a") },
        Action::TakeBack { ours: Ours::DisruptionBlock { node: node.clone() } },
        Action::TakeBack { ours: Ours::SoftTaint { node: node.clone() } },
        Action::TakeBack { ours: Ours::Fence { node } },
        Action::TakeBack { ours: Ours::ClaimHold { claim: "theirs".parse().unwrap() } },
        Action::DeleteClaim { claim: "theirs".parse().unwrap() },
    ];
    for action in rows {
        refuse(&facts, 20, &[step(action)], Rule::OnlyOurs);
    }
}

#[test]
fn only_pods_of_the_facts_are_touched() {
    let facts = samples::facts([durable("a"), workload("b").with(|one| one.mode = Mode::None)]);
    refuse(&facts, 20, &[evict("c", 15)], Rule::KnownPods);
    refuse(&facts, 20, &[evict("b", 15)], Rule::KnownPods);
    let renamed = PodRef { name: "other".parse().unwrap(), ..pod_ref("a") };
    let action = Action::Evict { pod: renamed, grace: Duration::from_secs(15) };
    refuse(&facts, 20, &[step(action)], Rule::KnownPods);
}

#[test]
fn a_grace_is_a_second_at_least_and_fits() {
    let facts = samples::facts([durable("a")]);
    refuse(&facts, 20, &[evict("a", 0)], Rule::GraceFits);
    refuse(&facts, 100, &[evict("a", 21)], Rule::GraceFits);
    allow(&facts, 119, evict("a", 1));
}

#[test]
fn at_most_one_claim_is_alive() {
    let alive = samples::facts([workload("a")]);
    refuse(&alive, 0, &[claim(2)], Rule::OneClaim);
    let none = alive.with(|facts| facts.replacement = samples::replacement(samples::no_attempts()));
    refuse(&none, 0, &[claim(2)], Rule::OneClaim);
    allow(&none, 0, claim(1));
}

#[test]
fn a_proof_is_a_fact() {
    let facts = samples::facts([durable("a")]);
    for proof in [
        Proof::Released,
        Proof::ContainersEnded,
        Proof::InstanceGone,
        Proof::NodeGone,
        Proof::PastDeadline,
        Proof::PodDeleted,
        Proof::Unknown,
    ] {
        let job_key = "job-a".parse().unwrap();
        let ended = step(Action::Ended { pod: pod_ref("a"), job_key, proof });
        refuse(&facts, 3000, &[ended], Rule::ProofFirst);
    }
}

#[test]
fn a_record_is_not_closed_while_the_instance_may_live() {
    let facts = samples::facts([durable("a")]);
    refuse(&facts, 149, &[step(Action::Close { phase: Phase::Saved })], Rule::ClosedLast);
}

/// Judges a step of the node's side at T+`seconds`.
#[track_caller]
fn refuse_on_node(facts: &NodeFacts, seconds: i64, action: on_node::Action, rule: Rule) {
    let step = on_node::Step { action, reason: on_node::Reason::Interrupted };
    let (_, refused) = node(vec![step.clone()], facts, &Policy::standard(), at(seconds));
    assert_eq!(refused, [Refused { step, rule }]);
}

fn ask(purpose: Purpose, deadline: Option<i64>) -> on_node::Action {
    let deadline = deadline.map(|seconds| Deadline::new(at(seconds)));
    on_node::Action::Ask { pod: pod_ref("a"), notice: on_node::Notice { purpose, deadline } }
}

#[test]
fn the_node_asks_in_time_and_for_a_reason() {
    let facts = node_facts([served("a")]);
    let interruption = ask(Purpose::Interruption, Some(120));
    refuse_on_node(&facts, 120, interruption.clone(), Rule::BeforeTheDeadline);
    refuse_on_node(&facts, 50, ask(Purpose::Ending, Some(40)), Rule::BeforeTheDeadline);
    refuse_on_node(&facts, 30, ask(Purpose::Ending, Some(40)), Rule::AdviceKillsNothing);
    refuse_on_node(&facts, 30, ask(Purpose::Unknown, None), Rule::AdviceKillsNothing);
    let advised = facts.clone().with(|facts| facts.signals = advice());
    refuse_on_node(&advised, 30, interruption.clone(), Rule::AdviceKillsNothing);
    let paused = facts.with(|facts| facts.paused = Pause::On);
    refuse_on_node(&paused, 0, interruption, Rule::RecordOnly);
}

#[test]
fn the_node_stores_and_freezes_only_what_is_there_to_be() {
    let facts = node_facts([served("a")]);
    let save = on_node::Action::Save { pod: pod_ref("a"), part: None, place: 0 };
    refuse_on_node(&facts, 10, save, Rule::SavedFirst);
    let freeze = on_node::Action::Freeze { pod: pod_ref("a") };
    refuse_on_node(&facts, 10, freeze.clone(), Rule::SavedFirst);
    let saved =
        handed_over("a", 1).with(|one| one.report.checkpoint = Checkpoint::Durable(stored(9)));
    refuse_on_node(&node_facts([saved.clone()]), 100, freeze.clone(), Rule::Thawed);
    let leaving = saved.with(|one| one.ending = ending(60, Ender::Us));
    refuse_on_node(&node_facts([leaving]), 50, freeze.clone(), Rule::Thawed);
    let unprotected = served("a").with(|one| one.mode = Mode::None);
    refuse_on_node(&node_facts([unprotected]), 10, freeze, Rule::KnownPods);
}

#[test]
fn the_node_lets_no_restore_through_without_proof() {
    let facts = node_facts([served("a")]);
    let allow = on_node::Action::AllowRestore { pod: pod_ref("a"), proof: Proof::Released };
    refuse_on_node(&facts, 10, allow, Rule::ProofFirst);
}

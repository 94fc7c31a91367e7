//! What the cluster's side does next, row by row.

use std::collections::BTreeMap;

use super::*;
use crate::cluster::facts::Bucket;
use crate::cluster::facts::DisruptionTarget;
use crate::cluster::facts::Eviction;
use crate::cluster::facts::Fate;
use crate::cluster::facts::Fence;
use crate::cluster::facts::HoldMark;
use crate::cluster::facts::Mark;
use crate::cluster::facts::Node;
use crate::cluster::facts::Presence;
use crate::cluster::facts::Ready;
use crate::cluster::facts::Record;
use crate::cluster::facts::SoftTaint;
use crate::cluster::facts::Workload;
use crate::gpu::Slice;
use crate::policy::Asked;
use crate::policy::KarpenterMode;
use crate::policy::Others;
use crate::policy::Prepare;
use crate::progress::phase_of;
use crate::replacement::Attempt;
use crate::replacement::Attempts;
use crate::replacement::ClaimCondition;
use crate::replacement::ClaimHold;
use crate::replacement::Dying;
use crate::replacement::Used;
use crate::samples::Changed;
use crate::samples::INSTANCE;
use crate::samples::advice;
use crate::samples::alive;
use crate::samples::at;
use crate::samples::ending;
use crate::samples::facts;
use crate::samples::no_attempts;
use crate::samples::node_state;
use crate::samples::notice;
use crate::samples::pod;
use crate::samples::released;
use crate::samples::replacement;
use crate::samples::saving;
use crate::samples::signal;
use crate::samples::stored;
use crate::samples::workload;
use crate::signal::Source;
use crate::workload::Checkpoint;
use crate::workload::Containers;
use crate::workload::Ender;
use crate::workload::FailReason;
use crate::workload::Mode;
use crate::workload::Slices;

fn told(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

/// The plan at T+`seconds`, under the standard policy.
#[track_caller]
fn check(facts: &ClusterFacts, seconds: i64, expected: &[&str]) {
    check_with(facts, &Policy::standard(), seconds, expected);
}

#[track_caller]
fn check_with(facts: &ClusterFacts, policy: &Policy, seconds: i64, expected: &[&str]) {
    let plan = plan(facts, policy, at(seconds));
    assert_eq!(plan.refused, []);
    assert_eq!(told(&plan.steps), expected);
}

fn durable(name: &str) -> Workload {
    workload(name).with(|one| one.report.checkpoint = Checkpoint::Durable(stored(10)))
}

fn open_node(facts: &mut ClusterFacts) {
    facts.node =
        Node::Present(crate::cluster::facts::NodeState { fence: Fence::Open, ..node_state() });
}

fn sharing(workload: Workload, replica: u32) -> Workload {
    let gpu = "GPU-shared".parse().unwrap();
    workload.with(|one| one.report.slices = Slices::of([Slice::TimeSliced { gpu, replica }]))
}

fn with_grace(workload: Workload, seconds: u64) -> Workload {
    workload.with(|one| one.pod.own_grace = Duration::from_secs(seconds))
}

fn refused(workload: Workload, seconds: i64) -> Workload {
    workload.with(|one| one.pod.eviction = Eviction::Refused { times: 1, last: at(seconds) })
}

const CLAIM: &str = "ensure-claim i-0123456789abcdef0-1 because Interrupted";

#[test]
fn the_node_is_fenced_before_any_pod_is_evicted() {
    let facts = facts([durable("train-0")]).with(open_node);
    check(&facts, 40, &["fence gpu-1 because Interrupted", "evict train-0 15s because Durable"]);
}

#[test]
fn a_claim_is_asked_for_before_any_pod_is_evicted() {
    let facts =
        facts([durable("train-0")]).with(|facts| facts.replacement = replacement(no_attempts()));
    check(&facts, 40, &[CLAIM, "evict train-0 15s because Durable"]);
}

#[test]
fn at_the_notice_all_that_cannot_wait_is_done_at_once() {
    let on_signal = workload("train-0").with(|one| one.hold = HoldMark::Absent);
    let facts = facts([on_signal, workload("train-1")])
        .with(open_node)
        .with(|facts| facts.replacement = replacement(no_attempts()));
    check(
        &facts,
        0,
        &["fence gpu-1 because Interrupted", "hold train-0 because Interrupted", CLAIM],
    );
}

#[test]
fn a_pod_is_ended_when_it_is_durable_or_at_its_last_moment() {
    for grace in [30, 115, 120, 600, 3600] {
        let idle = facts([with_grace(workload("train-0"), grace)]);
        check(&idle, 0, &[]);
        check(&idle, 99, &[]);
        check(&idle, 100, &["delete train-0 15s because OutOfTime"]);
        check(&idle, 119, &["delete train-0 1s because OutOfTime"]);
        check(&idle, 120, &[]);
        let under_way =
            with_grace(workload("train-0"), grace).with(|one| one.report.checkpoint = saving());
        check(&facts([under_way.clone()]), 99, &[]);
        check(&facts([under_way]), 100, &["delete train-0 15s because OutOfTime"]);
        let saved = facts([with_grace(durable("train-0"), grace)]);
        check(&saved, 11, &["evict train-0 15s because Durable"]);
        check(&saved, 100, &["delete train-0 15s because Durable"]);
        check(&saved, 120, &[]);
    }
}

#[test]
fn the_deadline_overrules_a_budget() {
    let held_back = refused(durable("train-0"), 40);
    check(&facts([held_back.clone()]), 41, &[]);
    check(&facts([held_back.clone()]), 42, &["evict train-0 15s because Durable"]);
    check(&facts([held_back.clone()]), 100, &["delete train-0 15s because BudgetOverruled"]);
    let plan = plan(&facts([held_back]), &Policy::standard(), at(100));
    let Action::Delete { target, .. } = &plan.steps[0].action else { panic!("{:?}", plan.steps) };
    assert_eq!(*target, Target::SetFirst);
}

#[test]
fn with_45_seconds_the_last_moment_comes_after_25() {
    let early = |facts: &mut ClusterFacts| {
        let kind = Kind::SpotInterruption { action: crate::signal::Action::Terminate };
        let mut from_imds = signal(Source::Imds, kind, 0);
        from_imds.named = Some(crate::deadline::Deadline::new(at(45)));
        facts.signals.hear(from_imds);
    };
    let facts = facts([refused(durable("train-0"), 20)]).with(early);
    let last = plan(&facts, &Policy::standard(), at(24));
    assert_eq!(told(&last.steps), ["evict train-0 15s because Durable"]);
    let waiting = plan(&facts, &Policy::standard(), at(21));
    assert_eq!(waiting.next, Next::At(at(22)));
    check(&facts, 25, &["delete train-0 15s because BudgetOverruled"]);
}

#[test]
fn a_budget_that_refuses_is_asked_less_and_less_often() {
    for (times, rests) in [(1, 2), (2, 4), (4, 8), (5, 10), (50, 10)] {
        let held_back = durable("train-0")
            .with(|one| one.pod.eviction = Eviction::Refused { times, last: at(20) });
        let facts = facts([held_back]);
        check(&facts, 19 + rests, &[]);
        assert_eq!(plan(&facts, &Policy::standard(), at(21)).next, Next::At(at(20 + rests)));
        check(&facts, 20 + rests, &["evict train-0 15s because Durable"]);
    }
}

#[test]
fn a_condition_that_is_there_is_not_set_again() {
    let marked = workload("train-0").with(|one| one.pod.target = DisruptionTarget::Set);
    let plan = plan(&facts([marked]), &Policy::standard(), at(101));
    let Action::Delete { target, .. } = &plan.steps[0].action else { panic!("{:?}", plan.steps) };
    assert_eq!(*target, Target::AlreadySet);
}

#[test]
fn sharers_wait_for_each_other_until_35_seconds_are_left() {
    let one = sharing(with_grace(durable("train-0"), 30), 0);
    let other = sharing(with_grace(workload("train-1"), 600), 1);
    let waiting = facts([one.clone(), other.clone()]);
    check(&waiting, 84, &[]);
    check(&waiting, 85, &["evict train-0 15s because Durable"]);
    for settled in [Checkpoint::Durable(stored(30)), Checkpoint::Failed { why: FailReason::Store }]
    {
        let settled = other.clone().with(|two| two.report.checkpoint = settled);
        let plan = plan(&facts([one.clone(), settled]), &Policy::standard(), at(40));
        assert_eq!(plan.steps.len(), 2);
    }
    let ended = other.with(|two| {
        two.pod.containers = Containers::Ended { at: at(3), code: Some(1) };
        two.gate = Gate::Open { proof: Proof::ContainersEnded };
    });
    check(&facts([one, ended]), 40, &["evict train-0 15s because Durable"]);
}

#[test]
fn one_whose_slices_are_not_known_may_share_with_anyone() {
    let silent = workload("train-1").with(|one| one.report = crate::workload::Report::unknown());
    let facts = facts([durable("train-0"), silent]);
    check(&facts, 84, &[]);
    check(&facts, 85, &["evict train-0 15s because Durable"]);
}

#[test]
fn mig_devices_do_not_wait_for_each_other() {
    let mig = |workload: Workload, device: &str| {
        let slice = Slice::parse("nvidia.com/gpu", device, crate::gpu::Sharing::None).unwrap();
        workload.with(|one| one.report.slices = Slices::of([slice]))
    };
    let one = mig(durable("train-0"), "MIG-GPU-1/1/0");
    let other = mig(workload("train-1"), "MIG-GPU-1/2/0");
    check(&facts([one, other]), 40, &["evict train-0 15s because Durable"]);
}

#[test]
fn a_pod_that_saves_itself_is_evicted_at_once_with_all_the_grace_that_fits() {
    let own = |grace: u64| {
        let one = with_grace(workload("train-0"), grace).with(|one| one.mode = Mode::Sigterm);
        sharing(one, 0)
    };
    let sharer = sharing(workload("train-1"), 1);
    check(&facts([own(30), sharer.clone()]), 0, &["evict train-0 30s because SavesItself"]);
    check(&facts([own(3600), sharer]), 0, &["evict train-0 110s because SavesItself"]);
    let held_back = refused(own(3600), 1);
    check(&facts([held_back]), 3, &["delete train-0 107s because BudgetOverruled"]);
    let short = refused(own(30), 76);
    check(&facts([short.clone()]), 79, &["evict train-0 30s because SavesItself"]);
    check(&facts([short]), 80, &["delete train-0 30s because BudgetOverruled"]);
}

#[test]
fn a_failed_save_is_evicted_and_said_to_be_one() {
    let failed = workload("train-0")
        .with(|one| one.report.checkpoint = Checkpoint::Failed { why: FailReason::NoAnswer });
    check(&facts([failed]), 40, &["evict train-0 15s because SaveFailed"]);
}

#[test]
fn what_the_bucket_holds_is_durable_though_the_agent_is_silent() {
    let silent = workload("train-0").with(|one| {
        one.report = crate::workload::Report::unknown();
        one.bucket = Bucket::Manifest(stored(30));
    });
    check(&facts([silent]), 40, &["evict train-0 15s because Durable"]);
}

#[test]
fn a_pod_that_others_end_is_left_to_end() {
    for checkpoint in [Checkpoint::Idle, saving()] {
        let leaving = with_grace(workload("train-0"), 3600).with(|one| {
            one.report.checkpoint = checkpoint;
            one.pod.ending = ending(3600, Ender::Others);
        });
        check(&facts([leaving.clone()]), 40, &[]);
        check(&facts([leaving]), 101, &[]);
    }
    let ends_soon = durable("train-0").with(|one| one.pod.ending = ending(50, Ender::Others));
    check(&facts([ends_soon]), 40, &[]);
}

#[test]
fn a_saved_pod_that_others_end_slowly_is_ended_sooner() {
    let slow = with_grace(durable("train-0"), 3600)
        .with(|one| one.pod.ending = ending(3600, Ender::Others));
    check(&facts([slow.clone()]), 40, &["delete train-0 15s because Durable"]);
    let cut = slow.with(|one| one.pod.ending = ending(56, Ender::Us));
    check(&facts([cut]), 41, &[]);
}

#[test]
fn an_eviction_that_was_taken_is_not_repeated_at_once() {
    let taken = durable("train-0").with(|one| one.pod.eviction = Eviction::Accepted { at: at(40) });
    check(&facts([taken.clone()]), 41, &[]);
    check(&facts([taken]), 42, &["evict train-0 15s because Durable"]);
}

#[test]
fn observe_mode_and_a_pause_do_nothing_but_record() {
    let wanted = ["fence gpu-1 because Interrupted", "evict train-0 15s because Durable"];
    let facts = facts([durable("train-0")]).with(open_node);
    let observe = Policy { mode: OperatingMode::Observe, ..Policy::standard() };
    let observed = plan(&facts, &observe, at(40));
    assert_eq!((told(&observed.steps), told(&observed.withheld)), (vec![], told_of(&wanted)));
    let paused = facts.clone().with(|facts| facts.paused = Pause::On);
    let waiting = plan(&paused, &Policy::standard(), at(40));
    assert_eq!((told(&waiting.steps), told(&waiting.withheld)), (vec![], told_of(&wanted)));
}

fn told_of(wanted: &[&str]) -> Vec<String> {
    wanted.iter().map(ToString::to_string).collect()
}

#[test]
fn a_paused_namespace_is_left_alone_and_holds_nobody_up() {
    let paused = sharing(workload("train-0"), 0).with(|one| one.paused = Pause::On);
    let facts = facts([paused, sharing(durable("train-1"), 1)]);
    check(&facts, 40, &["evict train-1 15s because Durable"]);
    check(&facts, 101, &["delete train-1 14s because Durable"]);
}

#[test]
fn without_karpenter_nothing_is_held_and_others_are_drained_if_wanted() {
    let mut policy = Policy { karpenter: KarpenterMode::None, ..Policy::standard() };
    let on_signal = workload("train-0").with(|one| one.hold = HoldMark::Absent);
    let facts = facts([on_signal]).with(|facts| {
        let web = pod("web-0");
        facts.others.insert(web.pod.uid.clone(), web);
        facts.replacement = replacement(no_attempts());
    });
    check_with(&facts, &policy, 0, &[]);
    assert_eq!(plan(&facts, &policy, at(0)).no_claim, Some(NoClaim::NotOurs));
    policy.drain.others = Others::Drain;
    check_with(&facts, &policy, 0, &["evict web-0 30s because Unprotected"]);
    policy.karpenter = KarpenterMode::Beside;
    let steps = plan(&facts, &policy, at(0)).steps;
    assert!(!told(&steps).iter().any(|step| step.contains("web-0")), "{steps:?}");
}

#[test]
fn advice_prepares_the_node_and_kills_nothing() {
    let advised = facts([workload("train-0")]).with(|facts| {
        facts.signals = advice();
        facts.replacement = replacement(no_attempts());
    });
    let taint = format!("soft-taint gpu-1 until {} because Advised", at(3600));
    let block = "block-disruption gpu-1 because Advised";
    check(&advised, 0, &[&taint, block]);
    let mut policy = Policy::standard();
    policy.rebalance.replace = Asked::ByUs;
    let claim = format!("ensure-claim {INSTANCE}-1 because Advised");
    check_with(&advised, &policy, 0, &[&taint, block, &claim]);
    policy.rebalance.replace = Asked::Never;
    policy.rebalance.prepare = Prepare::Nothing;
    check_with(&advised, &policy, 0, &[]);
}

fn prepared(facts: &mut ClusterFacts) {
    facts.signals = advice();
    facts.node = Node::Present(crate::cluster::facts::NodeState {
        soft_taint: SoftTaint::Until { expiry: at(3600) },
        disruption_block: Mark::Ours,
        fence: Fence::Open,
        ..node_state()
    });
}

#[test]
fn lapsed_advice_is_taken_back_and_a_notice_may_follow_hours_later() {
    let advised = facts([workload("train-0")]).with(prepared);
    check(&advised, 3599, &[]);
    assert_eq!(plan(&advised, &Policy::standard(), at(3599)).next, Next::At(at(3600)));
    let delete = format!("delete-claim {INSTANCE}-1 because Lapsed");
    let expected = [
        "take-back soft taint of gpu-1 because Lapsed",
        "take-back disruption block of gpu-1 because Lapsed",
        &delete,
    ];
    check(&advised, 3600, &expected);
    assert_eq!(phase_of(&advised, &Policy::standard(), at(3600)), Phase::Withdrawn);

    let noticed = advised.with(|facts| {
        facts.signals = facts
            .signals
            .clone()
            .merge([signal(Source::Imds, notice().kind(), 9000)].into_iter().collect());
    });
    check(&noticed, 9000, &["fence gpu-1 because Interrupted"]);
    assert_eq!(phase_of(&noticed, &Policy::standard(), at(9000)), Phase::Interrupted);
}

#[test]
fn what_others_set_is_never_taken_back() {
    let theirs =
        facts([workload("train-0").with(|one| one.hold = HoldMark::Others)]).with(|facts| {
            prepared(facts);
            facts.node = Node::Present(crate::cluster::facts::NodeState {
                disruption_block: Mark::Others,
                ..node_state()
            });
            facts.replacement = replacement(no_attempts());
        });
    check(&theirs, 3600, &[]);
}

#[test]
fn a_far_deadline_tells_karpenter_when_once() {
    let scheduled = |facts: &mut ClusterFacts| {
        let mut change = signal(Source::Queue, Kind::ScheduledChange, 0);
        change.named = Some(crate::deadline::Deadline::new(at(86_400)));
        facts.signals = [change].into_iter().collect();
    };
    let facts = facts([with_grace(workload("train-0"), 600)]).with(scheduled);
    let expected = format!("set-termination-time gpu-abcde {} because FarDeadline", at(86_985));
    check(&facts, 0, &[&expected]);
    let set = facts.with(|facts| {
        let Dying::Claim(claim) = &mut facts.replacement.dying else { panic!("no claim") };
        claim.termination_time = Some(at(9));
    });
    check(&set, 0, &[]);
}

#[test]
fn the_first_proof_opens_the_gate() {
    let gone = |one: &mut Workload| {
        one.pod.presence = Presence::Gone { at: at(50) };
        one.pod.ending = ending(50, Ender::Us);
    };
    let not_ready = Node::Present(crate::cluster::facts::NodeState {
        ready: Ready::No { since: at(110) },
        ..node_state()
    });
    let base = || facts([durable("train-0").with(gone)]);
    let of = |change: fn(&mut Workload)| facts([durable("train-0").with(change)]);
    check(&base(), 79, &[]);
    check(&base(), 80, &["ended train-0 PodDeleted because Proven"]);
    let released = of(|one| one.report.release = released(40));
    check(
        &released.with(|facts| facts.fate = Fate::Going),
        60,
        &["ended train-0 Released because Proven"],
    );
    let ended = of(|one| one.pod.containers = Containers::Ended { at: at(50), code: Some(143) });
    check(&ended, 60, &["ended train-0 ContainersEnded because Proven"]);
    let going = base().with(|facts| facts.fate = Fate::Going);
    check(&going, 60, &["ended train-0 InstanceGone because Proven"]);
    let node_gone = base().with(|facts| facts.node = Node::Gone { at: at(60) });
    check(&node_gone, 60, &["ended train-0 NodeGone because Proven", "close Saved because Over"]);
    let silent = facts([durable("train-0")]).with(|facts| facts.node = not_ready);
    check(&silent, 149, &[]);
    check(&silent, 150, &["ended train-0 PastDeadline because Proven"]);
}

#[test]
fn a_gate_is_opened_once_and_only_where_there_is_one() {
    for change in [
        |one: &mut Workload| one.gate = Gate::Open { proof: Proof::Released },
        |one: &mut Workload| one.gate = Gate::Unknown,
        |one: &mut Workload| one.job_key = None,
    ] {
        let facts = facts([durable("train-0").with(change)]).with(|facts| facts.fate = Fate::Going);
        check(&facts, 60, &[]);
    }
}

#[test]
fn an_end_without_an_interruption_is_proven_too() {
    let facts = |change: &dyn Fn(&mut Workload)| PodEndFacts {
        observed_at: at(0),
        node: Node::Present(node_state()),
        fate: Fate::Running,
        workload: durable("train-0")
            .with(|one| one.pod.ending = ending(30, Ender::Others))
            .with(change),
    };
    let running = pod_end(&facts(&|_| ()), at(70));
    assert_eq!(told(&running.steps), [""; 0]);
    let ended = |checkpoint: Checkpoint| {
        facts(&|one| {
            one.pod.containers = Containers::Ended { at: at(5), code: Some(143) };
            one.report.checkpoint = checkpoint.clone();
        })
    };
    let proven = ["ended train-0 ContainersEnded because Proven"];
    for settled in [Checkpoint::Durable(stored(6)), Checkpoint::Failed { why: FailReason::Store }] {
        assert_eq!(told(&pod_end(&ended(settled), at(6)).steps), proven);
    }
    // It was told to save when it was told to end, and what became of that nobody said yet.
    let unheard = ended(Checkpoint::Unknown);
    let waits = pod_end(&unheard, at(34));
    assert_eq!((told(&waits.steps), waits.next), (vec![], Next::At(at(35))));
    assert_eq!(told(&pod_end(&unheard, at(35)).steps), proven);
    let gone_unstored = |one: &mut Workload| {
        one.pod.presence = Presence::Gone { at: at(6) };
        one.report.checkpoint = saving();
    };
    assert_eq!(told(&pod_end(&facts(&gone_unstored), at(90)).steps), [""; 0]);
    let gone = |one: &mut Workload| one.pod.presence = Presence::Gone { at: at(6) };
    let early = pod_end(&facts(&gone), at(59));
    assert_eq!((told(&early.steps), early.next), (vec![], Next::At(at(60))));
    let late = pod_end(&facts(&gone), at(60));
    assert_eq!(told(&late.steps), ["ended train-0 PodDeleted because Proven"]);
}

fn over(one: &mut Workload) {
    one.pod.presence = Presence::Gone { at: at(60) };
    one.gate = Gate::Open { proof: Proof::InstanceGone };
}

fn instance_gone(facts: &mut ClusterFacts) {
    facts.fate = Fate::Gone { at: at(90) };
}

#[test]
fn a_record_closes_by_what_was_saved_and_seen() {
    let close = |one: Workload, expected: &str| {
        check(&facts([one.with(over)]).with(instance_gone), 90, &[expected]);
    };
    close(
        durable("a").with(|one| one.report.release = released(50)),
        "close Released because Over",
    );
    close(durable("a"), "close Saved because Over");
    close(workload("a").with(|one| one.bucket = Bucket::Nothing), "close Lost because Over");
    close(
        workload("a").with(|one| one.bucket = Bucket::Manifest(stored(60))),
        "close Saved because Over",
    );
    let failed = Checkpoint::Failed { why: FailReason::Store };
    close(workload("a").with(|one| one.report.checkpoint = failed), "close Lost because Over");
    let finished = Containers::Ended { at: at(5), code: Some(0) };
    close(workload("a").with(|one| one.pod.containers = finished), "close Saved because Over");
    let sigterm = |code: i32| {
        workload("a").with(|one| {
            one.mode = Mode::Sigterm;
            one.pod.containers = Containers::Ended { at: at(5), code: Some(code) };
        })
    };
    close(sigterm(143), "close Saved because Over");
    close(sigterm(137), "close Lost because Over");
    check(&facts([]).with(instance_gone), 90, &["close Released because Over"]);
}

#[test]
fn a_record_waits_for_the_bucket_but_not_for_ever() {
    let silent = facts([workload("train-0").with(over)]).with(instance_gone);
    check(&silent, 90, &[]);
    check(&silent, 719, &[]);
    check(&silent, 720, &["close Lost because Over"]);
    let looked = silent.clone().with(|facts| {
        facts.workloads.values_mut().for_each(|one| one.bucket = Bucket::Nothing);
    });
    check(&looked, 90, &["close Lost because Over"]);
    let nowhere = silent.with(|facts| {
        facts.workloads.values_mut().for_each(|one| one.job_key = None);
    });
    check(&nowhere, 90, &["close Lost because Over"]);
    let never_taken = facts([durable("train-0")]);
    check(&never_taken, 164, &[]);
    check(&never_taken, 165, &["close Saved because Over"]);
}

#[test]
fn advice_whose_instance_goes_without_a_notice_closes_as_withdrawn() {
    let gone = facts([durable("train-0").with(over)]).with(|facts| {
        facts.signals = advice();
        instance_gone(facts);
    });
    check(&gone, 90, &["close Withdrawn because Over"]);
}

#[test]
fn a_hold_of_an_interruption_does_not_outlive_it() {
    for (hold, expected) in [
        (HoldMark::ForInterruption, vec!["unhold train-0 because Outlived"]),
        (HoldMark::AtAdmission, vec![]),
        (HoldMark::Others, vec![]),
        (HoldMark::Unknown, vec![]),
    ] {
        let outlived = durable("train-0").with(|one| {
            one.hold = hold;
            one.gate = Gate::Open { proof: Proof::PastDeadline };
        });
        let closed = facts([outlived]).with(|facts| {
            facts.record = Record::Closed { at: at(165), phase: Phase::Saved };
        });
        check(&closed, 200, &expected);
    }
}

#[test]
fn claims_are_let_go_when_bound_and_deleted_when_unused() {
    let closed = |used: Used, held: ClaimHold| {
        let attempt = Attempt::Alive { condition: ClaimCondition::Ready, used, held };
        let attempts = Attempts::Known { attempts: BTreeMap::from([(1, attempt)]) };
        facts([durable("train-0").with(over)]).with(|facts| {
            instance_gone(facts);
            facts.record = Record::Closed { at: at(90), phase: Phase::Saved };
            facts.replacement = replacement(attempts);
        })
    };
    let bound = format!("take-back hold of {INSTANCE}-1 because Bound");
    check(&closed(Used::Bound, ClaimHold::Held), 100, &[&bound]);
    let done = closed(Used::Bound, ClaimHold::Free);
    check(&done, 100, &[]);
    assert_eq!(plan(&done, &Policy::standard(), at(200)).next, Next::Never);
    let empty = closed(Used::Empty { since: Some(at(100)) }, ClaimHold::Held);
    check(&empty, 699, &[]);
    assert_eq!(plan(&empty, &Policy::standard(), at(699)).next, Next::At(at(700)));
    let unused = format!("delete-claim {INSTANCE}-1 because Unused");
    check(&empty, 700, &[&unused]);
    check(&closed(Used::Empty { since: None }, ClaimHold::Held), 9000, &[]);
}

#[test]
fn a_refused_claim_is_followed_by_another() {
    let attempts = Attempts::Known { attempts: BTreeMap::from([(1, Attempt::Gone { at: at(3) })]) };
    let mut facts =
        facts([workload("train-0")]).with(|facts| facts.replacement = replacement(attempts));
    let second = format!("ensure-claim {INSTANCE}-2 because CapacityRefused");
    let Dying::Claim(claim) = &mut facts.replacement.dying else { panic!("no claim") };
    claim.requirements.clear();
    check(&facts, 4, &[&second]);
}

#[test]
fn nothing_is_decided_about_what_could_not_be_read() {
    let unread = facts([workload("train-0").with(|one| {
        one.hold = HoldMark::Unknown;
        one.report = crate::workload::Report::unknown();
        one.pod.presence = Presence::Unknown;
        one.pod.containers = Containers::Unknown;
        one.pod.eviction = Eviction::Unknown;
        one.gate = Gate::Unknown;
    })])
    .with(|facts| {
        facts.node = Node::Unknown;
        facts.fate = Fate::Unknown;
        facts.replacement = replacement(Attempts::Unknown);
    });
    check(&unread, 40, &[]);
    let plan = plan(&unread, &Policy::standard(), at(40));
    assert_eq!(plan.next, Next::At(at(41)));
    assert_eq!(plan.no_claim, Some(NoClaim::Unreadable));
    check(&unread, 101, &["delete train-0 14s because OutOfTime"]);
}

#[test]
fn an_instance_that_leaves_is_not_drained() {
    let going = facts([durable("train-0").with(|one| one.gate = Gate::Unknown)])
        .with(|facts| facts.fate = Fate::Going);
    check(&going, 40, &[]);
}

#[test]
fn a_wake_is_named_for_everything_that_comes_due_by_itself() {
    let alive = BTreeMap::from([(1, alive())]);
    let facts = facts([workload("train-0").with(|one| one.gate = Gate::Unknown)])
        .with(|facts| facts.replacement = replacement(Attempts::Known { attempts: alive }));
    let mut now = at(0);
    let mut wakes = Vec::new();
    while let Next::At(moment) = plan(&facts, &Policy::standard(), now).next {
        assert!(moment > now);
        now = moment;
        let since = now.duration_since(at(0)).as_secs();
        if since > 165 {
            break;
        }
        wakes.push(since);
    }
    let asked: Vec<i64> = wakes.iter().copied().filter(|second| *second <= 100).collect();
    assert_eq!(asked, [80, 85, 100]);
    assert!(wakes.contains(&120) && wakes.contains(&150) && wakes.contains(&165), "{wakes:?}");
}

#[test]
fn the_phase_is_named_by_the_facts() {
    let phase = |facts: &ClusterFacts, seconds| phase_of(facts, &Policy::standard(), at(seconds));
    assert_eq!(phase(&facts([workload("a")]), 1), Phase::Interrupted);
    let asked = workload("a").with(|one| one.report.checkpoint = Checkpoint::Asked);
    assert_eq!(phase(&facts([asked, workload("b")]), 1), Phase::Saving);
    let leaving = durable("a").with(|one| one.pod.ending = ending(55, Ender::Us));
    assert_eq!(phase(&facts([leaving, workload("b")]), 40), Phase::Draining);
    assert_eq!(phase(&facts([durable("a").with(over)]), 61), Phase::Confirming);
    let ended = facts([durable("a").with(over)]).with(instance_gone);
    assert_eq!(phase(&ended, 90), Phase::Saved);
    assert_eq!(progress::slack(&ended), Some(Duration::from_secs(110)));
    assert_eq!(phase(&facts([]).with(|facts| facts.signals = advice()), 1), Phase::Advised);
}

#[test]
fn every_label_is_its_own() {
    let labels: std::collections::BTreeSet<&str> =
        Reason::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(labels.len(), Reason::ALL.len());
}

//! What the node's side does next, row by row.

use std::time::Duration;

use super::*;
use crate::budget::Rate;
use crate::cluster::facts::Pause;
use crate::gpu::Release;
use crate::ids::Epoch;
use crate::node::facts::Asked;
use crate::node::facts::Quiet;
use crate::node::facts::Restore;
use crate::node::facts::Session;
use crate::node::facts::Told;
use crate::node::facts::Workload;
use crate::policy::BackgroundPolicy;
use crate::policy::OperatingMode;
use crate::policy::Prepare;
use crate::samples::Changed;
use crate::samples::advice;
use crate::samples::at;
use crate::samples::ending;
use crate::samples::handed_over;
use crate::samples::node_facts;
use crate::samples::notice;
use crate::samples::released;
use crate::samples::saving;
use crate::samples::served;
use crate::samples::signal;
use crate::samples::stored;
use crate::signal::Kind;
use crate::signal::Signals;
use crate::signal::Source;
use crate::workload::Checkpoint;
use crate::workload::Containers;
use crate::workload::Ender;
use crate::workload::FailReason;
use crate::workload::Mode;

fn told(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn check(facts: &NodeFacts, seconds: i64, expected: &[&str]) {
    let plan = plan(facts, &Policy::standard(), at(seconds));
    assert_eq!(plan.refused, []);
    assert_eq!(told(&plan.steps), expected);
}

/// With what it reports already told, so that no Report stands in the way.
fn known(workload: Workload) -> Workload {
    workload.with(|one| one.told = Told::Report { report: one.report.clone(), at: at(0) })
}

fn durable(name: &str) -> Workload {
    known(handed_over(name, 1).with(|one| {
        one.report.checkpoint = Checkpoint::Durable(stored(9));
    }))
}

fn quiet_node(facts: &mut NodeFacts) {
    facts.signals = Signals::default();
}

#[test]
fn every_protected_workload_is_asked_at_once() {
    let facts = node_facts([
        served("a"),
        served("b").with(|one| one.mode = Mode::Http),
        served("c").with(|one| one.mode = Mode::Sigterm),
        served("d").with(|one| one.mode = Mode::None),
        served("e").with(|one| one.session = Session::None),
        served("f").with(|one| one.mode = Mode::Unknown),
    ]);
    let expected =
        ["ask a because Interrupted", "ask b because Interrupted", "ask f because Interrupted"];
    check(&facts, 0, &expected);
    check(&facts, 119, &expected);
    check(&facts, 120, &[]);
}

#[test]
fn nobody_is_asked_twice_for_the_same_thing() {
    let asked = |deadline: i64| {
        known(handed_over("a", 1).with(|one| {
            one.session = Session::Open;
            let deadline = Some(Deadline::new(at(deadline)));
            one.asked = Asked::Save { purpose: Purpose::Interruption, deadline };
        }))
    };
    check(&node_facts([asked(120)]), 5, &[]);
    check(&node_facts([asked(121)]), 5, &[]);
    check(&node_facts([asked(130)]), 5, &["ask a because Tightened"]);
}

#[test]
fn a_graver_purpose_is_told() {
    let insured = known(served("a").with(|one| {
        one.asked = Asked::Save { purpose: Purpose::Insurance, deadline: None };
        one.report.checkpoint = saving();
    }));
    check(&node_facts([insured]), 5, &["ask a because Tightened"]);
}

#[test]
fn the_end_of_a_pod_is_a_signal() {
    let leaving = served("a").with(|one| one.ending = ending(30, Ender::Others));
    let facts = node_facts([leaving]).with(quiet_node);
    check(&facts, 0, &["ask a because Ending", "confirm-release a because Ending"]);
    let plan = plan(&facts, &Policy::standard(), at(0));
    let Action::Ask { notice, .. } = plan.steps[0].action else { panic!("{:?}", plan.steps) };
    assert_eq!(notice.deadline, Some(Deadline::new(at(30))));
    assert_eq!(plan.hand, Hand::Busy);
    check(&facts, 30, &["confirm-release a because Ending"]);
}

#[test]
fn an_end_within_an_interruption_tightens_the_deadline() {
    let leaving = known(handed_over("a", 1).with(|one| {
        one.session = Session::Open;
        one.ending = ending(115, Ender::Us);
        one.report.release = Release::Held;
    }));
    check(&node_facts([leaving]), 100, &["ask a because Tightened"]);
}

#[test]
fn what_is_handed_over_is_stored_in_the_order_of_the_budget() {
    let facts = node_facts([
        known(handed_over("a", 9000)),
        known(handed_over("b", 200)),
        known(handed_over("c", 9000).with(|one| one.priority = 5)),
        known(handed_over("d", 100).with(|one| one.report.checkpoint = saving())),
    ])
    .with(|facts| facts.rate = Rate::Measured { bytes_per_second: 100 << 20 });
    let expected =
        ["save c because HandedOver", "save b because HandedOver", "save a because WillNotFit"];
    check(&facts, 0, &expected);
    let plan = plan(&facts, &Policy::standard(), at(0));
    let parts: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|step| {
            let Action::Save { part, place, .. } = step.action else { return None };
            Some((part, place))
        })
        .collect();
    assert_eq!(parts, [(Some(100 << 20), 0), (Some(100 << 20), 1), (Some(100 << 20), 3)]);
}

#[test]
fn what_is_handed_over_is_stored_though_the_workload_died_or_the_deadline_passed() {
    let died = known(handed_over("a", 1).with(|one| {
        one.containers = Containers::Ended { at: at(20), code: Some(143) };
        one.report.release = Release::Held;
    }));
    check(&node_facts([died.clone()]), 21, &["save a because HandedOver"]);
    check(&node_facts([died.clone()]), 121, &["save a because HandedOver"]);
    let busy = plan(&node_facts([died]), &Policy::standard(), at(121));
    assert_eq!(busy.hand, Hand::Busy);
}

#[test]
fn who_is_saved_and_does_not_park_is_frozen_and_thawed_in_time() {
    let http = |quiet: Quiet| {
        durable("a").with(|one| {
            one.mode = Mode::Http;
            one.quiet = quiet;
        })
    };
    let at_work = node_facts([http(Quiet::Running)]);
    check(&at_work, 50, &["freeze a because Saved"]);
    check(&at_work, 100, &[]);
    check(&node_facts([durable("a").with(|one| one.quiet = Quiet::Running)]), 50, &[]);
    let frozen = node_facts([http(Quiet::Frozen)]);
    check(&frozen, 99, &[]);
    assert_eq!(plan(&frozen, &Policy::standard(), at(99)).next, next_at(100));
    check(&frozen, 100, &["thaw a because NearDeadline"]);
    let leaving = http(Quiet::Frozen).with(|one| {
        one.ending = ending(65, Ender::Us);
        one.report.release = Release::Held;
    });
    check(&node_facts([known(leaving)]), 50, &["thaw a because Ending"]);
    check(&node_facts([http(Quiet::FrozenBefore)]), 50, &["thaw a because AgentStarted"]);
    check(&node_facts([http(Quiet::Thawed)]), 50, &[]);
    let withdrawn = node_facts([http(Quiet::Frozen)]).with(quiet_node);
    check(&withdrawn, 50, &["thaw a because CalledOff"]);
}

fn next_at(seconds: i64) -> Next {
    Next::At(at(seconds))
}

#[test]
fn advice_saves_in_case_and_a_lapse_calls_it_off() {
    let advised =
        |workload: Workload| node_facts([workload]).with(|facts| facts.signals = advice());
    check(&advised(served("a")), 0, &["ask a because Advised"]);
    let insured = served("a").with(|one| one.report.insurance = Some(stored(9)));
    check(&advised(known(insured.clone())), 10, &[]);
    let old = insured.with(|one| one.report.insurance = Some(stored(-100)));
    check(&advised(known(old)), 10, &["ask a because Advised"]);
    let under_way = known(served("a").with(|one| {
        one.asked = Asked::Save { purpose: Purpose::Insurance, deadline: None };
        one.report.checkpoint = Checkpoint::Asked;
    }));
    check(&advised(under_way.clone()), 3599, &[]);
    check(&advised(under_way), 3600, &["call-off a because CalledOff"]);
    let mut policy = Policy::standard();
    policy.rebalance.prepare = Prepare::Node;
    assert_eq!(plan(&advised(served("a")), &policy, at(0)).steps, []);
    assert_eq!(plan(&advised(served("a")), &policy, at(0)).hand, Hand::Idle);
}

#[test]
fn time_alone_saves_in_the_background_where_policy_says_so() {
    let mut policy = Policy::standard();
    let facts = |workload: Workload| node_facts([workload]).with(quiet_node);
    let runs = known(served("a").with(|one| one.background_since = Some(at(0))));
    let steps = |workload: &Workload, policy: &Policy, second: i64| -> Vec<String> {
        let plan = plan(&facts(workload.clone()), policy, at(second));
        assert_eq!(plan.refused, []);
        plan.steps.iter().map(ToString::to_string).collect()
    };
    assert_eq!(steps(&runs, &policy, 86_400), [""; 0]);
    policy.background = BackgroundPolicy::Every { pause: Duration::from_mins(15) };
    assert_eq!(steps(&runs, &policy, 899), [""; 0]);
    assert_eq!(plan(&facts(runs.clone()), &policy, at(100)).next, next_at(900));
    assert_eq!(steps(&runs, &policy, 900), ["ask a because Background"]);
    assert_eq!(plan(&facts(runs.clone()), &policy, at(900)).hand, Hand::Idle);
    // Fifty times as long as it stands still for one.
    let slow = runs.clone().with(|one| one.stall = Some(Duration::from_mins(1)));
    assert_eq!(steps(&slow, &policy, 2999), [""; 0]);
    assert_eq!(steps(&slow, &policy, 3000), ["ask a because Background"]);
    let under_way = runs.clone().with(|one| {
        one.asked = Asked::Save { purpose: Purpose::Background, deadline: None };
        one.report.checkpoint = Checkpoint::Asked;
    });
    assert_eq!(steps(&under_way, &policy, 901), [""; 0]);
    assert_eq!(steps(&under_way, &Policy::standard(), 901), ["call-off a because CalledOff"]);
    // One that failed is tried again when its time has come again.
    let failed = under_way.with(|one| {
        one.report.checkpoint = Checkpoint::Idle;
        one.background_since = Some(at(950));
    });
    assert_eq!(steps(&failed, &policy, 1849), [""; 0]);
    assert_eq!(steps(&failed, &policy, 1850), ["ask a because Background"]);
    // Whoever goes through a ring is not asked, and whoever is on a node that is taken for another
    // reason.
    let ring = known(served("a"));
    assert_eq!(steps(&ring, &policy, 86_400), [""; 0]);
    let interrupted = plan(&node_facts([runs]), &policy, at(100));
    assert_eq!(interrupted.steps[0].reason, Reason::Interrupted);
}

#[test]
fn advice_and_a_notice_go_before_a_save_in_the_background() {
    let policy = Policy {
        background: BackgroundPolicy::Every { pause: Duration::from_mins(10) },
        ..Policy::standard()
    };
    let under_way = known(served("a").with(|one| {
        one.background_since = Some(at(-1000));
        one.asked = Asked::Save { purpose: Purpose::Background, deadline: None };
        one.report.checkpoint = saving();
    }));
    for signals in [advice(), notice()] {
        let facts = node_facts([under_way.clone()]).with(|facts| facts.signals = signals.clone());
        let steps = plan(&facts, &policy, at(5)).steps;
        assert_eq!(steps[0].to_string(), "ask a because Tightened");
    }
}

#[test]
fn an_old_insurance_does_not_count_when_the_notice_comes() {
    let insured = known(served("a").with(|one| one.report.insurance = Some(stored(-9))));
    let later = node_facts([insured]).with(|facts| {
        let noticed = signal(Source::Imds, notice().kind(), 9000);
        facts.signals = facts.signals.clone().merge([noticed].into_iter().collect());
        facts.signals =
            advice().merge([signal(Source::Imds, notice().kind(), 9000)].into_iter().collect());
    });
    check(&later, 9000, &["ask a because Interrupted"]);
}

#[test]
fn slices_are_watched_once_a_pod_ends() {
    let ended = |release: Release| {
        known(durable("a").with(|one| {
            one.containers = Containers::Ended { at: at(60), code: Some(143) };
            one.report.release = release;
        }))
    };
    check(&node_facts([ended(Release::NotWatched)]), 60, &["confirm-release a because Ending"]);
    check(&node_facts([ended(Release::Unknown)]), 60, &["confirm-release a because Ending"]);
    check(&node_facts([ended(Release::Held)]), 60, &[]);
    let quiet = node_facts([ended(released(61))]);
    check(&quiet, 62, &[]);
    assert_eq!(plan(&quiet, &Policy::standard(), at(62)).hand, Hand::Idle);
}

#[test]
fn the_first_proof_lets_a_restore_through() {
    let waiting = |proof: Option<Proof>, deadline: Option<i64>| {
        served("new").with(|one| {
            one.restore = Restore::Waiting {
                epoch: Epoch(2),
                from: "uid-old".parse().unwrap(),
                deadline: deadline.map(|seconds| Deadline::new(at(seconds))),
                proof,
            };
        })
    };
    let here = |workloads: Vec<Workload>| node_facts(workloads).with(quiet_node);
    let alone = here(vec![waiting(None, Some(120))]);
    check(&alone, 149, &[]);
    assert_eq!(plan(&alone, &Policy::standard(), at(149)).next, next_at(150));
    check(&alone, 150, &["allow-restore new PastDeadline because Proven"]);
    let told = here(vec![waiting(Some(Proof::Released), Some(120))]);
    check(&told, 60, &["allow-restore new Released because Proven"]);
    check(&here(vec![waiting(Some(Proof::Unknown), Some(120))]), 60, &[]);
    check(&here(vec![waiting(None, None)]), 9999, &[]);
    let old = known(served("old").with(|one| {
        one.containers = Containers::Ended { at: at(50), code: Some(1) };
        one.report.release = Release::Held;
    }));
    let both = here(vec![waiting(None, Some(120)), old.clone()]);
    check(&both, 60, &["allow-restore new ContainersEnded because Proven"]);
    let free = known(old.with(|one| one.report.release = released(55)));
    let both = here(vec![waiting(None, Some(120)), free]);
    check(&both, 60, &["allow-restore new Released because Proven"]);
}

#[test]
fn others_are_told_on_edges_and_of_progress_now_and_then() {
    let after = |told: Checkpoint, now: Checkpoint| {
        node_facts([handed_over("a", 1).with(|one| {
            one.session = Session::Open;
            one.report.checkpoint = told;
            one.told = Told::Report { report: one.report.clone(), at: at(10) };
            one.report.checkpoint = now;
        })])
    };
    let failed = Checkpoint::Failed { why: FailReason::Store };
    let rows = [
        (Checkpoint::Idle, Checkpoint::Asked, 11, Some("asked")),
        (Checkpoint::Asked, saving(), 11, None),
        (Checkpoint::Asked, saving(), 25, Some("saving")),
        (saving(), saving(), 90, None),
        (saving(), Checkpoint::Durable(stored(11)), 11, Some("durable")),
        (saving(), failed, 11, Some("failed")),
    ];
    for (told, now, seconds, expected) in rows {
        let facts = after(told, now);
        let plan = plan(&facts, &Policy::standard(), at(seconds));
        let reported = plan.steps.iter().find_map(|step| {
            let Action::Report { report, .. } = &step.action else { return None };
            Some(report.checkpoint.label())
        });
        assert_eq!(reported, expected, "{facts:?}");
    }
}

#[test]
fn without_an_interruption_only_what_is_stored_is_told() {
    let told_where = |workload: Workload| {
        let facts = node_facts([workload]).with(quiet_node);
        let plan = plan(&facts, &Policy::standard(), at(20));
        plan.steps.iter().find_map(|step| {
            let Action::Report { to, .. } = step.action else { return None };
            Some(to)
        })
    };
    assert_eq!(told_where(served("a")), None);
    assert_eq!(told_where(handed_over("a", 1)), None);
    let stored =
        handed_over("a", 1).with(|one| one.report.checkpoint = Checkpoint::Durable(stored(9)));
    assert_eq!(told_where(stored), Some(Records::Checkpoint));
}

#[test]
fn observe_mode_and_a_pause_ask_nothing_and_keep_nobody_waiting() {
    let waiting = served("b").with(|one| {
        one.restore = Restore::Waiting {
            epoch: Epoch(2),
            from: "uid-old".parse().unwrap(),
            deadline: None,
            proof: Some(Proof::NodeGone),
        };
        one.mode = Mode::Sigterm;
    });
    let facts = node_facts([served("a"), waiting]);
    let observe = Policy { mode: OperatingMode::Observe, ..Policy::standard() };
    let observed = plan(&facts, &observe, at(0));
    let expected = ["allow-restore b NodeGone because Proven"];
    assert_eq!(told(&observed.steps), expected);
    assert_eq!(told(&observed.withheld), ["ask a because Interrupted"]);
    assert_eq!(observed.hand, Hand::Idle);
    let paused = facts.clone().with(|facts| facts.paused = Pause::On);
    check(&paused, 0, &expected);
    let under_way = known(handed_over("a", 1)).with(|one| one.paused = Pause::On);
    check(&node_facts([under_way]), 5, &["call-off a because CalledOff"]);
}

#[test]
fn the_agent_stays_while_it_has_work_in_hand() {
    let hand = |workload: Workload, seconds: i64| {
        plan(&node_facts([workload]), &Policy::standard(), at(seconds)).hand
    };
    assert_eq!(hand(served("a"), 0), Hand::Busy);
    assert_eq!(hand(durable("a"), 20), Hand::Busy);
    let free = |told: bool| {
        durable("a").with(|one| {
            one.containers = Containers::Ended { at: at(30), code: Some(143) };
            if told {
                one.report.release = released(31);
                one.told = Told::Report { report: one.report.clone(), at: at(32) };
            } else {
                one.report.release = released(31);
            }
        })
    };
    assert_eq!(hand(free(true), 33), Hand::Idle);
    assert_eq!(hand(free(false), 33), Hand::Busy);
    assert_eq!(hand(free(false), 42), Hand::Idle);
    let quiet = node_facts([served("a")]).with(|facts| facts.signals = Signals::default());
    assert_eq!(plan(&quiet, &Policy::standard(), at(0)).hand, Hand::Idle);
    let running = signal(Source::Queue, Kind::RebalanceRecommendation, 0);
    assert_eq!(running.deadline(), None);
}

//! What holds of every plan, whatever the facts.
#![allow(clippy::unwrap_used)] // Clippy sees tests only in functions that are marked so.

#[path = "../src/samples.rs"]
mod samples;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::cluster;
use lifeboat_domain::cluster::facts::Bucket;
use lifeboat_domain::cluster::facts::ClusterFacts;
use lifeboat_domain::cluster::facts::Eviction;
use lifeboat_domain::cluster::facts::Fate;
use lifeboat_domain::cluster::facts::Fence;
use lifeboat_domain::cluster::facts::Gate;
use lifeboat_domain::cluster::facts::HoldMark;
use lifeboat_domain::cluster::facts::Mark;
use lifeboat_domain::cluster::facts::Node;
use lifeboat_domain::cluster::facts::NodeState;
use lifeboat_domain::cluster::facts::Pause;
use lifeboat_domain::cluster::facts::Presence;
use lifeboat_domain::cluster::facts::Ready;
use lifeboat_domain::cluster::facts::Record;
use lifeboat_domain::cluster::facts::SoftTaint;
use lifeboat_domain::cluster::plan::Next;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::gpu::Release;
use lifeboat_domain::gpu::Slice;
use lifeboat_domain::ids::Epoch;
use lifeboat_domain::node;
use lifeboat_domain::node::facts::Asked;
use lifeboat_domain::node::facts::NodeFacts;
use lifeboat_domain::node::facts::Quiet;
use lifeboat_domain::node::facts::Restore;
use lifeboat_domain::node::facts::Session;
use lifeboat_domain::node::facts::Told;
use lifeboat_domain::policy;
use lifeboat_domain::policy::KarpenterMode;
use lifeboat_domain::policy::OperatingMode;
use lifeboat_domain::policy::Others;
use lifeboat_domain::policy::Policy;
use lifeboat_domain::progress::Phase;
use lifeboat_domain::progress::phase_of;
use lifeboat_domain::replacement::Attempt;
use lifeboat_domain::replacement::Attempts;
use lifeboat_domain::replacement::ClaimCondition;
use lifeboat_domain::replacement::ClaimHold;
use lifeboat_domain::replacement::Dying;
use lifeboat_domain::replacement::Used;
use lifeboat_domain::signal::Action;
use lifeboat_domain::signal::InstanceState;
use lifeboat_domain::signal::Kind;
use lifeboat_domain::signal::Signal;
use lifeboat_domain::signal::Signals;
use lifeboat_domain::signal::Source;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::Containers;
use lifeboat_domain::workload::Ender;
use lifeboat_domain::workload::Ending;
use lifeboat_domain::workload::FailReason;
use lifeboat_domain::workload::Mode;
use lifeboat_domain::workload::Proof;
use lifeboat_domain::workload::Purpose;
use lifeboat_domain::workload::Report;
use lifeboat_domain::workload::Slices;
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::prop_assert;
use proptest::prop_assert_eq;
use proptest::proptest;
use samples::Changed;
use samples::at;

proptest! {
    #![proptest_config(proptest::test_runner::Config {
        cases: 4000, failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn a_deadline_tightens_in_any_order(one in -500i64..500, two in -500i64..500, three in -500i64..500) {
        let [one, two, three] = [one, two, three].map(|seconds| Deadline::new(at(seconds)));
        prop_assert_eq!(one.tighten(two), two.tighten(one));
        prop_assert_eq!(one.tighten(two).tighten(three), one.tighten(two.tighten(three)));
        prop_assert_eq!(one.tighten(one), one);
        prop_assert!(one.tighten(two) <= one);
    }

    #[test]
    fn signals_merge_in_any_order(bytes in vec(any::<u8>(), 0..90)) {
        let mut choices = Choices::new(&bytes);
        let [one, two, three] = [(), (), ()].map(|()| choices.signals());
        prop_assert_eq!(one.clone().merge(two.clone()), two.clone().merge(one.clone()));
        prop_assert_eq!(
            one.clone().merge(two.clone()).merge(three.clone()),
            one.clone().merge(two.merge(three))
        );
        prop_assert_eq!(one.clone().merge(one.clone()), one);
    }

    #[test]
    fn what_is_heard_never_moves_the_deadline_later(bytes in vec(any::<u8>(), 0..60)) {
        let mut choices = Choices::new(&bytes);
        let mut signals = choices.signals();
        let before = signals.deadline();
        signals.hear(choices.signal());
        prop_assert!(before.is_none_or(|before| signals.deadline() <= Some(before)));
        prop_assert!(before.is_none() || signals.deadline().is_some());
    }

    #[test]
    fn every_plan_of_the_cluster_keeps_the_rules(bytes in vec(any::<u8>(), 0..160)) {
        let mut choices = Choices::new(&bytes);
        let (facts, policy, now) = (choices.cluster_facts(), choices.policy(), choices.now());
        let plan = cluster::plan(&facts, &policy, now);
        prop_assert_eq!(&plan.refused, &[]);
        prop_assert_eq!(&cluster::plan(&facts, &policy, now), &plan);
        if let Next::At(moment) = plan.next {
            prop_assert!(moment > now);
        }
        let quiet = policy.mode == OperatingMode::Observe || facts.paused == Pause::On;
        for step in &plan.steps {
            prop_assert!(!quiet || step.action.only_records(), "{step}");
            let ends = matches!(step.action.label(), "evict" | "delete");
            let deadline = facts.signals.deadline();
            prop_assert!(!ends || deadline.is_some_and(|deadline| !deadline.has_passed(now)), "{step}");
        }
        let phase = phase_of(&facts, &policy, now);
        prop_assert!(phase != Phase::Unknown);
        let text = serde_json::to_string(&facts).unwrap();
        let read: ClusterFacts = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(read, facts);
    }

    #[test]
    fn every_plan_of_the_node_keeps_the_rules(bytes in vec(any::<u8>(), 0..160)) {
        let mut choices = Choices::new(&bytes);
        let (facts, policy, now) = (choices.node_facts(), choices.policy(), choices.now());
        let plan = node::plan(&facts, &policy, now);
        prop_assert_eq!(&plan.refused, &[]);
        prop_assert_eq!(&node::plan(&facts, &policy, now), &plan);
        if let Next::At(moment) = plan.next {
            prop_assert!(moment > now);
        }
        let quiet = policy.mode == OperatingMode::Observe || facts.paused == Pause::On;
        for step in &plan.steps {
            prop_assert!(!quiet || step.action.is_always_allowed(), "{step}");
            let asks = step.action.label() == "ask";
            let passed = facts.signals.deadline().is_some_and(|deadline| deadline.has_passed(now));
            prop_assert!(!asks || !passed, "{step}");
        }
        let text = serde_json::to_string(&facts).unwrap();
        let read: NodeFacts = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(read, facts);
    }

    #[test]
    fn time_alone_changes_no_plan_before_it_is_due(bytes in vec(any::<u8>(), 0..160), share in 0u32..100) {
        let mut choices = Choices::new(&bytes);
        let (facts, policy, now) = (choices.cluster_facts(), choices.policy(), choices.now());
        let plan = cluster::plan(&facts, &policy, now);
        let Next::At(due) = plan.next else { return Ok(()) };
        let ahead = Duration::try_from(due.duration_since(now)).unwrap();
        let between = now.checked_add(ahead.saturating_sub(Duration::from_millis(1)) * share / 100).unwrap();
        let kinds = |steps: &[cluster::plan::Step]| -> BTreeSet<(String, &str)> {
            let about = |step: &cluster::plan::Step| step.action.pod().map(ToString::to_string);
            steps.iter().map(|step| (about(step).unwrap_or_default(), step.action.label())).collect()
        };
        let later = cluster::plan(&facts, &policy, between);
        if later.next != Next::Never {
            prop_assert_eq!(kinds(&later.steps), kinds(&plan.steps));
        }
    }
}

/// Facts drawn from bytes, so that a failure shrinks to the plainest ones: a byte that is not
/// there chooses the first.
struct Choices<'a> {
    bytes: std::slice::Iter<'a, u8>,
}

impl<'a> Choices<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.iter() }
    }

    fn pick<T: Clone>(&mut self, options: &[T]) -> T {
        let byte = self.bytes.next().copied().unwrap_or(0);
        options[usize::from(byte) % options.len()].clone()
    }

    fn seconds(&mut self) -> i64 {
        self.pick(&[0, 1, 30, 40, 60, 84, 85, 86, 99, 100, 101, 119, 120, 149, 150, 164, 165, 3600])
    }

    fn now(&mut self) -> Timestamp {
        let millis = self.pick(&[0, 1, 500, 999]);
        at(self.seconds()).checked_add(Duration::from_millis(millis)).unwrap()
    }

    fn moment(&mut self) -> Timestamp {
        at(self.seconds())
    }

    fn signals(&mut self) -> Signals {
        let count = self.pick(&[1, 1, 2, 3, 0]);
        (0..count).map(|_| self.signal()).collect()
    }

    fn signal(&mut self) -> Signal {
        let kind = self.pick(&[
            Kind::SpotInterruption { action: Action::Terminate },
            Kind::RebalanceRecommendation,
            Kind::ScheduledChange,
            Kind::SpotInterruption { action: Action::Hibernate },
            Kind::CapacityReservation,
            Kind::StateChange { state: InstanceState::ShuttingDown },
            Kind::StateChange { state: InstanceState::Running },
            Kind::Unknown,
        ]);
        let source = self.pick(&[Source::Queue, Source::Imds]);
        let seconds = self.pick(&[0, 0, 1, 30, -3500, 3000]);
        let mut signal = samples::signal(source, kind, seconds);
        signal.heard_at = at(self.pick(&[0, 0, 5, 9]));
        signal.named =
            self.pick(&[None, Some(45), Some(86_400)]).map(|second| Deadline::new(at(second)));
        signal
    }

    fn policy(&mut self) -> Policy {
        let mut policy = Policy::standard();
        policy.mode =
            self.pick(&[OperatingMode::Protect, OperatingMode::Protect, OperatingMode::Observe]);
        policy.karpenter =
            self.pick(&[KarpenterMode::Beside, KarpenterMode::Beside, KarpenterMode::None]);
        policy.drain.others = self.pick(&[Others::Leave, Others::Drain]);
        policy.rebalance.replace = self.pick(&[policy::Asked::Never, policy::Asked::ByUs]);
        policy
    }

    fn pause(&mut self) -> Pause {
        self.pick(&[Pause::Off, Pause::Off, Pause::Off, Pause::On, Pause::Unknown])
    }

    fn cluster_facts(&mut self) -> ClusterFacts {
        let names = ["train-0", "train-1", "train-2"];
        let count = self.pick(&[2, 1, 3, 0]);
        let workloads: Vec<_> =
            names.iter().take(count).map(|name| self.cluster_workload(name)).collect();
        samples::facts(workloads).with(|facts| {
            facts.signals = self.signals();
            facts.paused = self.pause();
            facts.node = self.node();
            let moment = self.moment();
            facts.fate =
                self.pick(&[Fate::Running, Fate::Unknown, Fate::Going, Fate::Gone { at: moment }]);
            let closed = Record::Closed { at: moment, phase: Phase::Saved };
            facts.record = self.pick(&[Record::Open, Record::Open, Record::Open, closed]);
            let attempts = self.attempts();
            facts.replacement = samples::replacement(attempts);
            if self.pick(&[true, true, false]) {
                let Dying::Claim(claim) = &mut facts.replacement.dying else { return };
                claim.requirements.clear();
            }
            let web = self.pod("web-0");
            facts.others.insert(web.pod.uid.clone(), web);
        })
    }

    fn node(&mut self) -> Node {
        let moment = self.moment();
        let state = NodeState {
            fence: self.pick(&[Fence::Fenced, Fence::Open, Fence::Unknown]),
            ready: self.pick(&[Ready::Yes, Ready::No { since: moment }, Ready::Unknown]),
            soft_taint: self.pick(&[
                SoftTaint::Absent,
                SoftTaint::Until { expiry: moment },
                SoftTaint::Unknown,
            ]),
            disruption_block: self.mark(),
            ..samples::node_state()
        };
        let present = Node::Present(state);
        self.pick(&[
            present.clone(),
            present.clone(),
            present,
            Node::Gone { at: moment },
            Node::Unknown,
        ])
    }

    fn mark(&mut self) -> Mark {
        self.pick(&[Mark::Absent, Mark::Ours, Mark::Others, Mark::Unknown])
    }

    fn attempts(&mut self) -> Attempts {
        if self.pick(&[false, false, true]) {
            return Attempts::Unknown;
        }
        let count = self.pick(&[0, 1, 2, 6]);
        let attempts = (1..=count).map(|number| {
            let moment = self.moment();
            let alive = Attempt::Alive {
                condition: ClaimCondition::Ready,
                used: self.pick(&[
                    Used::Empty { since: None },
                    Used::Empty { since: Some(moment) },
                    Used::Bound,
                    Used::Unknown,
                ]),
                held: self.pick(&[ClaimHold::Held, ClaimHold::Free, ClaimHold::Unknown]),
            };
            let last = number == count;
            let gone = Attempt::Gone { at: moment };
            let attempt = self.pick(&[alive, gone.clone(), Attempt::Going, Attempt::Unknown]);
            (number, if last { attempt } else { gone })
        });
        Attempts::Known { attempts: attempts.collect() }
    }

    fn pod(&mut self, name: &str) -> cluster::facts::PodFacts {
        let moment = self.moment();
        let mut pod = samples::pod(name);
        pod.own_grace = Duration::from_secs(self.pick(&[30, 0, 1, 115, 120, 600, 3600]));
        pod.presence = self.pick(&[
            Presence::Present,
            Presence::Present,
            Presence::Gone { at: moment },
            Presence::Unknown,
        ]);
        pod.containers = self.containers();
        pod.ending = self.ending();
        pod.eviction = self.pick(&[
            Eviction::Untried,
            Eviction::Refused { times: 2, last: moment },
            Eviction::Accepted { at: moment },
            Eviction::Unknown,
        ]);
        pod
    }

    fn containers(&mut self) -> Containers {
        let moment = self.moment();
        let code = self.pick(&[Some(143), Some(0), Some(137), None]);
        let ended = Containers::Ended { at: moment, code };
        self.pick(&[Containers::Running, Containers::Running, ended, Containers::Unknown])
    }

    fn ending(&mut self) -> Ending {
        let ends_at = self.moment();
        let by = |who| Ending::By { ends_at, who };
        self.pick(&[Ending::No, Ending::No, by(Ender::Us), by(Ender::Others), Ending::Unknown])
    }

    fn mode(&mut self) -> Mode {
        self.pick(&[
            Mode::Sdk,
            Mode::Sdk,
            Mode::Http,
            Mode::Directory,
            Mode::Sigterm,
            Mode::Unknown,
            Mode::None,
        ])
    }

    fn cluster_workload(&mut self, name: &str) -> cluster::facts::Workload {
        samples::workload(name).with(|one| {
            one.pod = self.pod(name);
            one.mode = self.mode();
            one.hold = self.pick(&[
                HoldMark::AtAdmission,
                HoldMark::Absent,
                HoldMark::ForInterruption,
                HoldMark::Others,
                HoldMark::Unknown,
            ]);
            one.paused = self.pause();
            one.report = self.report();
            let stored = samples::stored(20);
            one.bucket = self.pick(&[Bucket::Unknown, Bucket::Nothing, Bucket::Manifest(stored)]);
            let open = Gate::Open { proof: Proof::Released };
            one.gate = self.pick(&[Gate::Closed, open, Gate::Unknown]);
        })
    }

    fn checkpoint(&mut self) -> Checkpoint {
        self.pick(&[
            Checkpoint::Idle,
            Checkpoint::Asked,
            samples::saving(),
            Checkpoint::Durable(samples::stored(20)),
            Checkpoint::Failed { why: FailReason::NoAnswer },
            Checkpoint::Unknown,
        ])
    }

    fn report(&mut self) -> Report {
        let gpu = "GPU-shared".parse().unwrap();
        let shared = Slices::of([Slice::TimeSliced { gpu, replica: 0 }]);
        Report {
            checkpoint: self.checkpoint(),
            insurance: self.pick(&[None, Some(samples::stored(-9))]),
            release: self.pick(&[
                Release::NotWatched,
                Release::Held,
                Release::SeenEmpty { at: at(50) },
                samples::released(60),
                Release::Unknown,
            ]),
            slices: self.pick(&[shared, Slices::Unknown, Slices::of([])]),
        }
    }

    fn node_facts(&mut self) -> NodeFacts {
        let names = ["train-0", "train-1", "train-2"];
        let count = self.pick(&[2, 1, 3, 0]);
        let workloads: Vec<_> =
            names.iter().take(count).map(|name| self.node_workload(name)).collect();
        samples::node_facts(workloads).with(|facts| {
            facts.signals = self.signals();
            facts.paused = self.pause();
        })
    }

    fn node_workload(&mut self, name: &str) -> node::facts::Workload {
        samples::served(name).with(|one| {
            one.mode = self.mode();
            one.paused = self.pause();
            one.report = self.report();
            one.session = self.pick(&[
                Session::Open,
                Session::None,
                Session::HandedOver { bytes: Some(1 << 30) },
                Session::HandedOver { bytes: None },
                Session::Unknown,
            ]);
            let purpose = self.pick(&[Purpose::Interruption, Purpose::Ending, Purpose::Insurance]);
            let deadline =
                self.pick(&[None, Some(Deadline::new(at(120))), Some(Deadline::new(at(45)))]);
            let asked = Asked::Save { purpose, deadline };
            one.asked = self.pick(&[Asked::Nothing, asked, Asked::Unknown]);
            one.quiet = self.pick(&[
                Quiet::Running,
                Quiet::Parked,
                Quiet::Frozen,
                Quiet::FrozenBefore,
                Quiet::Thawed,
                Quiet::Unknown,
            ]);
            one.ending = self.ending();
            one.containers = self.containers();
            let waiting = Restore::Waiting {
                epoch: Epoch(2),
                from: samples::pod_ref("train-0").uid,
                deadline,
                proof: self.pick(&[None, Some(Proof::NodeGone), Some(Proof::Unknown)]),
            };
            one.restore = self.pick(&[Restore::No, waiting, Restore::Unknown]);
            let told = Told::Report { report: self.report(), at: self.moment() };
            one.told = self.pick(&[Told::Nothing, told, Told::Unknown]);
        })
    }
}

//! Facts to begin a test with: valid ones, of which the test changes one thing.
#![allow(dead_code)] // Each test binary takes what it needs.
#![allow(clippy::unwrap_used)] // Clippy does not see that this is only for tests.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::budget::Rate;
use lifeboat_domain::cluster::facts::Bucket;
use lifeboat_domain::cluster::facts::ClusterFacts;
use lifeboat_domain::cluster::facts::DisruptionTarget;
use lifeboat_domain::cluster::facts::Eviction;
use lifeboat_domain::cluster::facts::Fate;
use lifeboat_domain::cluster::facts::Fence;
use lifeboat_domain::cluster::facts::Gate;
use lifeboat_domain::cluster::facts::HoldMark;
use lifeboat_domain::cluster::facts::Mark;
use lifeboat_domain::cluster::facts::Node;
use lifeboat_domain::cluster::facts::NodeState;
use lifeboat_domain::cluster::facts::Pause;
use lifeboat_domain::cluster::facts::PodFacts;
use lifeboat_domain::cluster::facts::Presence;
use lifeboat_domain::cluster::facts::Ready;
use lifeboat_domain::cluster::facts::Record;
use lifeboat_domain::cluster::facts::SoftTaint;
use lifeboat_domain::cluster::facts::Workload;
use lifeboat_domain::gpu::Release;
use lifeboat_domain::gpu::Slice;
use lifeboat_domain::ids::Epoch;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::ids::Step;
use lifeboat_domain::node::facts as node;
use lifeboat_domain::node::facts::Asked;
use lifeboat_domain::node::facts::NodeFacts;
use lifeboat_domain::node::facts::Quiet;
use lifeboat_domain::node::facts::Restore;
use lifeboat_domain::node::facts::Session;
use lifeboat_domain::node::facts::Told;
use lifeboat_domain::replacement::Attempt;
use lifeboat_domain::replacement::Attempts;
use lifeboat_domain::replacement::ClaimCondition;
use lifeboat_domain::replacement::ClaimHold;
use lifeboat_domain::replacement::Dying;
use lifeboat_domain::replacement::DyingClaim;
use lifeboat_domain::replacement::Fleet;
use lifeboat_domain::replacement::Limits;
use lifeboat_domain::replacement::Offerings;
use lifeboat_domain::replacement::Operator;
use lifeboat_domain::replacement::Overlay;
use lifeboat_domain::replacement::PodRequirements;
use lifeboat_domain::replacement::ReplacementFacts;
use lifeboat_domain::replacement::Requirement;
use lifeboat_domain::replacement::Used;
use lifeboat_domain::signal::Action;
use lifeboat_domain::signal::Kind;
use lifeboat_domain::signal::Signal;
use lifeboat_domain::signal::Signals;
use lifeboat_domain::signal::Source;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::Containers;
use lifeboat_domain::workload::Ender;
use lifeboat_domain::workload::Ending;
use lifeboat_domain::workload::Mode;
use lifeboat_domain::workload::Purpose;
use lifeboat_domain::workload::Report;
use lifeboat_domain::workload::Slices;
use lifeboat_domain::workload::Stored;

pub(crate) const INSTANCE: &str = "i-0123456789abcdef0";

/// So many seconds after the notice.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + seconds).unwrap()
}

pub(crate) fn signal(source: Source, kind: Kind, seconds: i64) -> Signal {
    Signal {
        source,
        kind,
        time: at(seconds),
        named: None,
        heard_at: at(seconds),
        heard_by: "controller".to_owned(),
        detail: None,
    }
}

/// A Spot notice at T+0, so that the deadline is T+120.
pub(crate) fn notice() -> Signals {
    let kind = Kind::SpotInterruption { action: Action::Terminate };
    [signal(Source::Queue, kind, 0)].into_iter().collect()
}

/// A rebalance recommendation at T+0, which lapses at T+3600.
pub(crate) fn advice() -> Signals {
    [signal(Source::Queue, Kind::RebalanceRecommendation, 0)].into_iter().collect()
}

/// A node that is being taken, not fenced yet, with a claim asked for.
pub(crate) fn facts(workloads: impl IntoIterator<Item = Workload>) -> ClusterFacts {
    let by_uid = |workload: Workload| (workload.pod.pod.uid.clone(), workload);
    ClusterFacts {
        observed_at: at(0),
        instance: INSTANCE.parse().unwrap(),
        signals: notice(),
        paused: Pause::Off,
        node: Node::Present(node_state()),
        fate: Fate::Running,
        workloads: workloads.into_iter().map(by_uid).collect(),
        others: BTreeMap::new(),
        replacement: replacement(Attempts::Known { attempts: BTreeMap::from([(1, alive())]) }),
        record: Record::Open,
    }
}

pub(crate) fn node_state() -> NodeState {
    NodeState {
        name: "gpu-1".parse().unwrap(),
        zone: Some("us-east-2a".parse().unwrap()),
        instance_type: Some("g5.12xlarge".parse().unwrap()),
        ready: Ready::Yes,
        fence: Fence::Fenced,
        soft_taint: SoftTaint::Absent,
        disruption_block: Mark::Absent,
    }
}

pub(crate) fn replacement(attempts: Attempts) -> ReplacementFacts {
    let claim = DyingClaim {
        name: "gpu-abcde".parse().unwrap(),
        requirements: vec![one_of("node.kubernetes.io/instance-type", &["g5.12xlarge"])],
        resources: BTreeSet::new(),
        capacity: BTreeMap::new(),
        termination_time: None,
    };
    ReplacementFacts {
        dying: Dying::Claim(claim),
        attempts,
        offerings: Offerings::Unknown,
        limits: Limits::None,
        overlay: Overlay::NotNeeded,
        fleet: Fleet::default(),
    }
}

pub(crate) fn no_attempts() -> Attempts {
    Attempts::Known { attempts: BTreeMap::new() }
}

pub(crate) fn alive() -> Attempt {
    Attempt::Alive {
        condition: ClaimCondition::Asked,
        used: Used::Empty { since: None },
        held: ClaimHold::Held,
    }
}

fn one_of(key: &str, values: &[&str]) -> Requirement {
    Requirement {
        key: key.to_owned(),
        operator: Operator::In,
        values: values.iter().map(ToString::to_string).collect(),
        min_values: None,
    }
}

/// An SDK workload that runs on a GPU of its own, with a grace of 30 s, held at admission.
pub(crate) fn workload(name: &str) -> Workload {
    let gpu = format!("GPU-{name}").parse().unwrap();
    Workload {
        pod: pod(name),
        mode: Mode::Sdk,
        hold: HoldMark::AtAdmission,
        paused: Pause::Off,
        job_key: Some(format!("job-{name}").parse().unwrap()),
        report: Report {
            checkpoint: Checkpoint::Idle,
            insurance: None,
            release: Release::NotWatched,
            slices: Slices::of([Slice::Whole { gpu }]),
        },
        bucket: Bucket::Unknown,
        gate: Gate::Closed,
        requirements: PodRequirements::default(),
    }
}

pub(crate) fn pod_ref(name: &str) -> PodRef {
    PodRef {
        namespace: "team-a".parse().unwrap(),
        name: name.parse().unwrap(),
        uid: format!("uid-{name}").parse().unwrap(),
    }
}

pub(crate) fn pod(name: &str) -> PodFacts {
    PodFacts {
        pod: pod_ref(name),
        own_grace: Duration::from_secs(30),
        presence: Presence::Present,
        containers: Containers::Running,
        ending: Ending::No,
        eviction: Eviction::Untried,
        target: DisruptionTarget::Absent,
    }
}

pub(crate) fn stored(seconds: i64) -> Stored {
    Stored { epoch: Epoch(2), step: Some(Step(8412)), bytes: 1 << 30, at: at(seconds) }
}

pub(crate) fn saving() -> Checkpoint {
    Checkpoint::Saving { step: Some(Step(8412)), stored: 1 << 20, total: Some(1 << 30) }
}

pub(crate) fn released(seconds: i64) -> Release {
    Release::Released { first: at(seconds), second: at(seconds + 1) }
}

pub(crate) fn ending(seconds: i64, who: Ender) -> Ending {
    Ending::By { ends_at: at(seconds), who }
}

/// A node that is being taken.
pub(crate) fn node_facts(workloads: impl IntoIterator<Item = node::Workload>) -> NodeFacts {
    let by_uid = |workload: node::Workload| (workload.pod.uid.clone(), workload);
    NodeFacts {
        observed_at: at(0),
        node: "gpu-1".parse().unwrap(),
        signals: notice(),
        paused: Pause::Off,
        rate: Rate::Unknown,
        workloads: workloads.into_iter().map(by_uid).collect(),
    }
}

/// The agent's side of [`workload`]: it said hello, and was asked nothing.
pub(crate) fn served(name: &str) -> node::Workload {
    let workload = workload(name);
    node::Workload {
        pod: workload.pod.pod,
        job_key: workload.job_key,
        mode: workload.mode,
        own_grace: workload.pod.own_grace,
        pod_priority: 0,
        priority: 0,
        paused: Pause::Off,
        session: Session::Open,
        asked: Asked::Nothing,
        report: workload.report,
        size: None,
        step_time: None,
        stall: None,
        background_since: None,
        quiet: Quiet::Running,
        ending: Ending::No,
        containers: Containers::Running,
        restore: Restore::No,
        told: Told::Nothing,
    }
}

/// One that was asked at the notice and has handed over `mebibytes`.
pub(crate) fn handed_over(name: &str, mebibytes: u64) -> node::Workload {
    served(name).with(|one| {
        let deadline = notice().deadline();
        one.asked = Asked::Save { purpose: Purpose::Interruption, deadline };
        one.report.checkpoint = Checkpoint::Asked;
        one.session = Session::HandedOver { bytes: Some(mebibytes << 20) };
        one.quiet = Quiet::Parked;
    })
}

impl Changed for Workload {}

impl Changed for node::Workload {}

impl Changed for NodeFacts {}

/// Changes one thing of what a test begins with.
pub(crate) trait Changed: Sized {
    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Changed for ClusterFacts {}

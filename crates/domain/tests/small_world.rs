//! A small world explored in full: two workloads share one GPU while its instance is taken. In
//! every order of events no rule is broken, and both planners together always reach an end.
#![allow(clippy::unwrap_used)] // Clippy sees tests only in functions that are marked so.

#[path = "../src/samples.rs"]
mod samples;

use std::collections::BTreeSet;

use lifeboat_domain::cluster;
use lifeboat_domain::cluster::facts::Bucket;
use lifeboat_domain::cluster::facts::ClusterFacts;
use lifeboat_domain::cluster::facts::Eviction;
use lifeboat_domain::cluster::facts::Fate;
use lifeboat_domain::cluster::facts::Fence;
use lifeboat_domain::cluster::facts::Gate;
use lifeboat_domain::cluster::facts::Node;
use lifeboat_domain::cluster::facts::NodeState;
use lifeboat_domain::cluster::facts::Record;
use lifeboat_domain::cluster::plan::Action;
use lifeboat_domain::cluster::plan::Reason;
use lifeboat_domain::gpu::Release;
use lifeboat_domain::gpu::Slice;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::node;
use lifeboat_domain::node::facts::Asked;
use lifeboat_domain::node::facts::NodeFacts;
use lifeboat_domain::node::facts::Session;
use lifeboat_domain::node::facts::Told;
use lifeboat_domain::policy::Policy;
use lifeboat_domain::progress::Phase;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::Containers;
use lifeboat_domain::workload::Ender;
use lifeboat_domain::workload::FailReason;
use lifeboat_domain::workload::Purpose;
use lifeboat_domain::workload::Slices;
use samples::Changed;
use samples::at;

/// Seconds after the notice; every moment that means something.
const TIMES: [i64; 7] = [0, 84, 85, 100, 120, 150, 165];
const NAMES: [&str; 2] = ["train-0", "train-1"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    time: usize,
    pods: [Pod; 2],
    fenced: bool,
    claimed: bool,
    gone: bool,
    closed: Option<Phase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pod {
    save: Save,
    /// What the controller was last told; of the second pod it always knows.
    told: Save,
    life: Life,
    /// A budget refused.
    refused: bool,
    release: Free,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Save {
    Idle,
    Asked,
    HandedOver,
    Saving,
    Durable,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Running,
    EndedByOthersSlowly,
    EndedByUs,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Free {
    NotWatched,
    Watched,
    Released,
}

#[test]
fn every_order_of_events_keeps_the_rules_and_comes_to_an_end() {
    let pod = Pod {
        save: Save::Idle,
        told: Save::Idle,
        life: Life::Running,
        refused: false,
        release: Free::NotWatched,
    };
    let start =
        World { time: 0, pods: [pod; 2], fenced: false, claimed: false, gone: false, closed: None };
    let mut seen = BTreeSet::from([start]);
    let mut waiting = vec![start];
    let mut ends = BTreeSet::new();
    while let Some(world) = waiting.pop() {
        let after = world.after_controller().chain(world.after_agent()).chain(world.events());
        waiting.extend(after.filter(|next| seen.insert(*next)));
        if world.time == TIMES.len() - 1 {
            ends.insert(world.runs_to_its_end());
        }
    }
    assert!(seen.len() > 10_000, "only {} worlds were explored", seen.len());
    assert_eq!(ends, BTreeSet::from([Phase::Released, Phase::Saved, Phase::Lost]));
}

impl World {
    /// What the controller's whole plan makes of the world, or its first step if it crashed then.
    fn after_controller(self) -> impl Iterator<Item = Self> {
        let now = at(TIMES[self.time]);
        let facts = self.cluster_facts();
        let plan = cluster::plan(&facts, &Policy::standard(), now);
        assert_eq!(plan.refused, [], "{self:?}");
        for step in &plan.steps {
            self.judge(step);
        }
        let crashed = plan.steps.first().map(|step| self.act(step, Answer::Yes));
        let all = |answer| plan.steps.iter().fold(self, |world, step| world.act(step, answer));
        [Some(all(Answer::Yes)), Some(all(Answer::Refused)), crashed].into_iter().flatten()
    }

    /// The world by its own truth, not by what the facts say of it.
    fn judge(&self, step: &cluster::plan::Step) {
        let Some((index, _)) = step.action.pod().and_then(|pod| self.pod_of(pod)) else { return };
        let (pod, other) = (self.pods[index], self.pods[1 - index]);
        if matches!(step.action, Action::Evict { .. } | Action::Delete { .. }) {
            assert!(TIMES[self.time] < 120, "{step} after the deadline: {self:?}");
            let settled = |pod: Pod| matches!(pod.save, Save::Durable | Save::Failed);
            let late = TIMES[self.time] >= 100 && step.reason == Reason::OutOfTime;
            assert!(settled(pod) || late, "{step} too early: {self:?}");
            let alone = settled(other) || other.life == Life::Over;
            assert!(alone || TIMES[self.time] >= 85, "{step} harms the sharer: {self:?}");
        }
        if matches!(step.action, Action::Ended { .. }) {
            assert!(pod.life == Life::Over || self.gone, "{step} unproven: {self:?}");
        }
    }

    fn act(self, step: &cluster::plan::Step, answer: Answer) -> Self {
        let pod = step.action.pod().and_then(|pod| self.pod_of(pod)).map(|(index, _)| index);
        let mut world = self;
        match (&step.action, pod) {
            (Action::Fence { .. }, _) => world.fenced = true,
            (Action::EnsureClaim { .. }, _) => world.claimed = true,
            (Action::Close { phase }, _) => world.closed = Some(*phase),
            (Action::Evict { .. }, Some(0)) if answer == Answer::Refused => {
                world.pods[0].refused = true;
            }
            (Action::Evict { .. } | Action::Delete { .. }, Some(index)) => {
                world.pods[index].life = Life::EndedByUs;
            }
            _ => (),
        }
        world
    }

    fn after_agent(self) -> impl Iterator<Item = Self> {
        let facts = self.node_facts();
        let plan = node::plan(&facts, &Policy::standard(), at(TIMES[self.time]));
        assert_eq!(plan.refused, [], "{self:?}");
        (!self.gone).then(|| plan.steps.iter().fold(self, Self::act_on_node)).into_iter()
    }

    fn act_on_node(mut self, step: &node::plan::Step) -> Self {
        let Some((index, _)) = self.pod_of(step.action.pod()) else { return self };
        let pod = &mut self.pods[index];
        match step.action {
            node::plan::Action::Ask { .. } if pod.save == Save::Idle => pod.save = Save::Asked,
            node::plan::Action::Save { .. } => pod.save = Save::Saving,
            node::plan::Action::ConfirmRelease { .. } => pod.release = Free::Watched,
            node::plan::Action::Report { .. } => pod.told = pod.save,
            node::plan::Action::Ask { .. }
            | node::plan::Action::CallOff { .. }
            | node::plan::Action::Freeze { .. }
            | node::plan::Action::Thaw { .. }
            | node::plan::Action::AllowRestore { .. } => (),
        }
        self.pods[1].told = self.pods[1].save;
        self
    }

    /// Everything that can happen without us.
    fn events(self) -> impl Iterator<Item = Self> {
        let tick = (self.time + 1 < TIMES.len()).then(|| Self { time: self.time + 1, ..self });
        let taken = (self.time > 0 && !self.gone).then_some(Self { gone: true, ..self });
        let alive = !self.gone;
        let pods = (0..2).filter(move |_| alive).flat_map(move |index| {
            self.pods[index].events().into_iter().map(move |pod| {
                let mut world = self;
                world.pods[index] = pod;
                world.pods[1].told = world.pods[1].save;
                world
            })
        });
        [tick, taken].into_iter().flatten().chain(pods)
    }

    /// Once the controller runs undisturbed, the record closes as what truly happened.
    fn runs_to_its_end(self) -> Phase {
        let mut world = self;
        for _ in 0..5 {
            let plan = cluster::plan(&world.cluster_facts(), &Policy::standard(), at(165));
            world = plan.steps.iter().fold(world, |world, step| world.act(step, Answer::Yes));
        }
        let phase = world.closed.expect("a record closes 45 s after the deadline");
        let durable = world.pods.iter().all(|pod| pod.save == Save::Durable);
        let released = world.pods.iter().all(|pod| pod.release == Free::Released);
        if self.closed.is_none() && self.gone {
            assert_eq!(phase == Phase::Lost, !durable, "{self:?}");
        }
        assert!(phase != Phase::Released || (durable && released), "{self:?}");
        phase
    }

    fn cluster_facts(&self) -> ClusterFacts {
        let workloads = [0, 1].map(|index| self.cluster_workload(index));
        samples::facts(workloads).with(|facts| {
            let fence = if self.fenced { Fence::Fenced } else { Fence::Open };
            facts.node = Node::Present(NodeState { fence, ..samples::node_state() });
            if self.gone {
                facts.fate = Fate::Gone { at: at(TIMES[self.time]) };
            }
            if !self.claimed {
                facts.replacement = samples::replacement(samples::no_attempts());
            }
            if let Some(phase) = self.closed {
                facts.record = Record::Closed { at: at(TIMES[self.time]), phase };
            }
        })
    }

    fn cluster_workload(&self, index: usize) -> cluster::facts::Workload {
        let pod = self.pods[index];
        samples::workload(NAMES[index]).with(|one| {
            one.report.slices = slices(index);
            one.report.checkpoint = checkpoint(pod.told);
            one.report.release = release(pod.release);
            one.pod.containers = containers(pod.life);
            one.gate = Gate::Closed;
            match pod.life {
                Life::Running | Life::Over => (),
                Life::EndedByUs => one.pod.ending = samples::ending(118, Ender::Us),
                Life::EndedByOthersSlowly => one.pod.ending = samples::ending(600, Ender::Others),
            }
            if pod.refused {
                one.pod.eviction = Eviction::Refused { times: 1, last: at(0) };
            }
            if self.gone || TIMES[self.time] >= 120 {
                let saved = pod.save == Save::Durable;
                let manifest = Bucket::Manifest(samples::stored(30));
                one.bucket = if saved { manifest } else { Bucket::Nothing };
            }
        })
    }

    fn node_facts(&self) -> NodeFacts {
        samples::node_facts([0, 1].map(|index| {
            let pod = self.pods[index];
            samples::served(NAMES[index]).with(|one| {
                one.report.slices = slices(index);
                one.report.checkpoint = checkpoint(pod.save);
                one.report.release = release(pod.release);
                one.containers = containers(pod.life);
                let deadline = samples::notice().deadline();
                if pod.save != Save::Idle {
                    one.asked = Asked::Save { purpose: Purpose::Interruption, deadline };
                }
                if matches!(pod.save, Save::HandedOver | Save::Saving) {
                    one.session = Session::HandedOver { bytes: Some(1 << 30) };
                }
                let mut told = one.report.clone();
                told.checkpoint = checkpoint(pod.told);
                one.told = Told::Report { report: told, at: at(0) };
            })
        }))
    }

    fn pod_of(&self, pod: &PodRef) -> Option<(usize, Pod)> {
        let index = NAMES.iter().position(|name| *name == pod.name.as_str())?;
        Some((index, self.pods[index]))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Yes,
    Refused,
}

impl Pod {
    fn events(self) -> Vec<Self> {
        let mut events = Vec::new();
        let mut happen = |change: fn(&mut Self)| {
            let mut pod = self;
            change(&mut pod);
            events.push(pod);
        };
        match self.save {
            Save::Asked if self.life != Life::Over => happen(|pod| pod.save = Save::HandedOver),
            Save::Saving => {
                happen(|pod| pod.save = Save::Durable);
                happen(|pod| pod.save = Save::Failed);
            }
            Save::Idle | Save::Asked if self.life == Life::Over => {
                happen(|pod| pod.save = Save::Failed);
            }
            Save::Idle | Save::Asked | Save::HandedOver | Save::Durable | Save::Failed => (),
        }
        match self.life {
            Life::Running => {
                happen(|pod| pod.life = Life::Over);
                happen(|pod| pod.life = Life::EndedByOthersSlowly);
            }
            Life::EndedByOthersSlowly | Life::EndedByUs => happen(|pod| pod.life = Life::Over),
            Life::Over if self.release == Free::Watched => {
                happen(|pod| pod.release = Free::Released);
            }
            Life::Over => (),
        }
        events
    }
}

fn slices(index: usize) -> Slices {
    let replica = u32::try_from(index).unwrap();
    Slices::of([Slice::TimeSliced { gpu: "GPU-shared".parse().unwrap(), replica }])
}

fn checkpoint(save: Save) -> Checkpoint {
    match save {
        Save::Idle => Checkpoint::Idle,
        Save::Asked | Save::HandedOver => Checkpoint::Asked,
        Save::Saving => samples::saving(),
        Save::Durable => Checkpoint::Durable(samples::stored(30)),
        Save::Failed => Checkpoint::Failed { why: FailReason::Store },
    }
}

fn release(free: Free) -> Release {
    match free {
        Free::NotWatched => Release::NotWatched,
        Free::Watched => Release::Held,
        Free::Released => samples::released(60),
    }
}

fn containers(life: Life) -> Containers {
    match life {
        Life::Running | Life::EndedByOthersSlowly | Life::EndedByUs => Containers::Running,
        Life::Over => Containers::Ended { at: at(60), code: Some(143) },
    }
}

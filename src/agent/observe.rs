//! What is true of this node at one moment, put together from what is already known: nothing here
//! waits.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use jiff::Timestamp;
use lifeboat_domain::cluster::facts::Pause;
use lifeboat_domain::deadline::later;
use lifeboat_domain::gpu::Cgroup;
use lifeboat_domain::gpu::Sharing;
use lifeboat_domain::gpu::Slice;
use lifeboat_domain::ids::NodeName;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::facts::Asked;
use lifeboat_domain::node::facts::NodeFacts;
use lifeboat_domain::node::facts::Quiet;
use lifeboat_domain::node::facts::Restore;
use lifeboat_domain::node::facts::Session;
use lifeboat_domain::node::facts::Workload;
use lifeboat_domain::signal::Signals;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::Containers;
use lifeboat_domain::workload::Ender;
use lifeboat_domain::workload::Ending;
use lifeboat_domain::workload::Report;
use lifeboat_domain::workload::Slices;
use lifeboat_domain::workload::Wishes;

use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::adapters::cluster::pods::PodRow;
use crate::agent::listen::Ears;
use crate::agent::listen::objects::Objects;
use crate::agent::listen::objects::Server;
use crate::agent::pods::Pod;
use crate::agent::pods::Pods;
use crate::agent::pods::Presence;
use crate::agent::pods::Volume;
use crate::agent::proofs::Proofs;
use crate::agent::records::Device;
use crate::agent::report::Reporter;
use crate::agent::senses::Gpus;
use crate::agent::senses::Senses;
use crate::agent::workloads::Known;
use crate::agent::workloads::Workloads;
use crate::clock::Clock;

/// Everybody who knows a part of it.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The node.
    pub node: NodeName,
    /// The time.
    pub clock: Clock,
    /// What EC2 said.
    pub ears: Ears,
    /// The node's pods.
    pub pods: Pods,
    /// What the API server says.
    pub objects: Objects,
    /// What kubelet, NVML and cgroups say.
    pub senses: Senses,
    /// What the workloads say.
    pub workloads: Workloads,
    /// What lets restores through.
    pub proofs: Proofs,
    /// What others were told.
    pub reporter: Reporter,
}

/// Puts facts together, with the little that only this life of the agent can know.
#[derive(Debug)]
pub struct Observer {
    sources: Sources,
    motions: BTreeMap<PodUid, Quiet>,
    ended: BTreeMap<PodUid, Timestamp>,
}

impl Observer {
    /// Of `sources`; `frozen` are the pods that were frozen when this life began.
    pub fn new(sources: Sources, frozen: BTreeSet<PodUid>) -> Self {
        let motions = frozen.into_iter().map(|pod| (pod, Quiet::FrozenBefore)).collect();
        Self { sources, motions, ended: BTreeMap::new() }
    }

    /// The facts of this moment.
    pub fn observe(&mut self) -> NodeFacts {
        let now = self.sources.clock.now();
        let sources = self.sources.clone();
        let record = sources.objects.interruption(sources.ears.instance().as_ref());
        let told = record.as_ref().map_or_else(Signals::default, |row| row.signals.clone());
        let mut known: BTreeMap<PodUid, Known> = BTreeMap::new();
        for one in sources.workloads.workloads() {
            known.insert(one.pod.uid.clone(), one);
        }
        let mut workloads = BTreeMap::new();
        for pod in sources.pods.all() {
            let wishes = pod.record.wishes();
            if wishes.mode.is_protected() {
                let uid = pod.record.pod.uid.clone();
                let seen = Seen { wishes, known: known.get(&uid), record: record.as_ref(), now };
                let workload = self.workload(&pod, &seen);
                workloads.insert(uid, workload);
            }
        }
        NodeFacts {
            observed_at: now,
            node: sources.node.clone(),
            signals: sources.ears.signals().merge(told),
            paused: sources.objects.paused(),
            rate: sources.workloads.rate(),
            workloads,
        }
    }

    /// When a pod's containers were first seen to have ended.
    pub fn ended_at(&self, pod: &PodUid) -> Option<Timestamp> {
        self.ended.get(pod).copied()
    }

    /// Takes note that a pod was frozen or thawed by us.
    pub fn moved(&mut self, pod: &PodUid, quiet: Quiet) {
        self.motions.insert(pod.clone(), quiet);
    }

    /// Forgets a pod that is over.
    pub fn forget(&mut self, pod: &PodUid) {
        self.motions.remove(pod);
        self.ended.remove(pod);
        self.sources.senses.forget(pod);
    }

    fn workload(&mut self, pod: &Pod, seen: &Seen<'_>) -> Workload {
        let (sources, record) = (&self.sources, &pod.record);
        let uid = &record.pod.uid;
        let row = sources.objects.pod(uid.as_str());
        let containers = containers(pod, row.as_ref(), seen, sources.senses.cgroup(uid));
        let containers = match containers {
            Containers::Ended { at, code } => {
                let at = *self.ended.entry(uid.clone()).or_insert(at);
                Containers::Ended { at, code }
            }
            Containers::Running | Containers::Unknown => containers,
        };
        let known = seen.known;
        Workload {
            pod: record.pod.clone(),
            job_key: seen.wishes.job_key.clone(),
            mode: seen.wishes.mode,
            own_grace: record.grace(),
            pod_priority: record.pod_priority(),
            priority: seen.wishes.priority,
            paused: paused(sources, record.pod.namespace.as_str()),
            session: known.map_or(Session::None, |known| known.session),
            asked: known.map_or(Asked::Nothing, |known| known.asked),
            report: Report {
                checkpoint: known.map_or(Checkpoint::Idle, |known| known.checkpoint.clone()),
                insurance: known.and_then(|known| known.insurance),
                release: sources.senses.release(uid),
                slices: slices(sources, pod),
            },
            size: known.and_then(|known| known.size),
            step_time: known.and_then(|known| known.step_time),
            stall: known.and_then(|known| known.stall),
            background_since: known.and_then(|known| known.background_since),
            quiet: self.quiet(uid, known, &containers),
            ending: ending(pod, seen, sources.objects.server()),
            containers,
            restore: restore(sources, known),
            told: sources.reporter.told(uid),
        }
    }

    /// What has no session is quiet by our doing only.
    fn quiet(&self, uid: &PodUid, known: Option<&Known>, containers: &Containers) -> Quiet {
        let said = match known.map(|known| known.quiet) {
            Some(Quiet::Unknown) | None if *containers == Containers::Running => Quiet::Running,
            Some(said) => said,
            None => Quiet::Unknown,
        };
        match self.motions.get(uid) {
            Some(motion @ (Quiet::Frozen | Quiet::FrozenBefore | Quiet::Thawed)) => *motion,
            Some(Quiet::Running | Quiet::Parked | Quiet::Unknown) | None => said,
        }
    }
}

/// What was looked up for one pod.
struct Seen<'a> {
    wishes: Wishes,
    known: Option<&'a Known>,
    record: Option<&'a InterruptionRow>,
    now: Timestamp,
}

fn paused(sources: &Sources, namespace: &str) -> Pause {
    sources.objects.paused_in(namespace)
}

/// What kubelet gave the pod, and what its processes were seen on besides.
fn slices(sources: &Sources, pod: &Pod) -> Slices {
    let used = sources.senses.used_by(&pod.record.pod.uid);
    let Some(devices) = &pod.record.devices else {
        return match sources.senses.gpus() {
            Gpus::None => Slices::of([]),
            Gpus::Some | Gpus::Unknown => Slices::Unknown,
        };
    };
    let sharing = sources.objects.sharing();
    let mut held: BTreeSet<Slice> =
        devices.iter().filter_map(|device| slice(device, sharing)).collect();
    if held.is_empty() {
        held.extend(used.into_iter().map(|gpu| Slice::Whole { gpu }));
    }
    Slices::of(held)
}

/// A device of another make is none of ours; one of NVIDIA's that we cannot read is some slice.
fn slice(device: &Device, sharing: Sharing) -> Option<Slice> {
    match Slice::parse(&device.resource, &device.id, sharing) {
        Ok(slice) => Some(slice),
        Err(_) if device.resource.starts_with("nvidia.com/") => Some(Slice::Unknown),
        Err(_) => None,
    }
}

fn containers(pod: &Pod, row: Option<&PodRow>, seen: &Seen<'_>, cgroup: Cgroup) -> Containers {
    if let Some((at, code)) = row.and_then(PodRow::ended) {
        return Containers::Ended { at: at.unwrap_or(seen.now), code: Some(code) };
    }
    // A pod that has only just been mounted has no processes yet either.
    let was_ending = pod.record.ends_at.is_some() || pod.presence == Presence::Gone;
    let by_cgroup = was_ending && cgroup == Cgroup::Empty;
    // One that was deleted by force may run on: while its volume is there, only its processes tell.
    let by_server = pod.presence == Presence::Gone && pod.volume == Volume::Absent;
    if pod.volume == Volume::Unmounted || by_cgroup || by_server {
        return Containers::Ended { at: seen.now, code: None };
    }
    let is_open = seen.known.is_some_and(|known| known.session != Session::None);
    if row.is_some() || is_open || cgroup == Cgroup::Populated {
        Containers::Running
    } else {
        Containers::Unknown
    }
}

/// By the API server's word, or by SIGTERM, which the SDK sees when the API server is away.
fn ending(pod: &Pod, seen: &Seen<'_>, server: Server) -> Ending {
    let terminating = seen.known.and_then(|known| known.terminating);
    let by_signal = terminating.map(|at| later(at, pod.record.grace()));
    let ends_at = [pod.record.ends_at, by_signal].into_iter().flatten().min();
    let Some(ends_at) = ends_at else {
        return match (server, pod.presence) {
            (Server::There, Presence::Present) => Ending::No,
            (Server::There | Server::Away, _) => Ending::Unknown,
        };
    };
    let drain = |row: &InterruptionRow| {
        let told = row.status.workloads.get(pod.record.pod.uid.as_str());
        told.is_some_and(|told| told.drain.is_some())
    };
    let who = match seen.record {
        Some(row) if drain(row) => Ender::Us,
        Some(_) => Ender::Others,
        None if server == Server::There => Ender::Others,
        None => Ender::Unknown,
    };
    Ending::By { ends_at, who }
}

fn restore(sources: &Sources, known: Option<&Known>) -> Restore {
    let Some(known) = known else { return Restore::No };
    match &known.restore {
        Restore::Waiting { epoch, from, deadline, proof } => Restore::Waiting {
            epoch: *epoch,
            from: from.clone(),
            deadline: *deadline,
            proof: proof.or_else(|| sources.proofs.proof(from)),
        },
        other @ (Restore::No | Restore::Allowed { .. } | Restore::Unknown) => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lifeboat_domain::ids::PodRef;

    use super::*;
    use crate::agent::records::PodRecord;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(volume: Volume, presence: Presence, ends_at: Option<i64>) -> Pod {
        let pod = PodRef {
            namespace: "ml".parse().unwrap(),
            name: "train-0".parse().unwrap(),
            uid: "8f7a".parse().unwrap(),
        };
        let record =
            PodRecord { ends_at: ends_at.map(at), grace_seconds: Some(30), ..PodRecord::new(pod) };
        Pod { record, volume, presence }
    }

    fn known(terminating: Option<i64>) -> Known {
        let pod = pod(Volume::Mounted, Presence::Unknown, None).record.pod;
        Known {
            pod,
            session: Session::Open,
            asked: Asked::Nothing,
            checkpoint: Checkpoint::Idle,
            insurance: None,
            finished: None,
            size: None,
            step_time: None,
            stall: None,
            background_since: None,
            quiet: Quiet::Running,
            terminating: terminating.map(at),
            restore: Restore::No,
            pids: BTreeSet::new(),
            step: None,
        }
    }

    fn seen(known: Option<&Known>) -> Seen<'_> {
        let wishes = pod(Volume::Absent, Presence::Unknown, None).record.wishes();
        Seen { wishes, known, record: None, now: at(100) }
    }

    #[test]
    fn containers_have_ended_by_kubelets_word_the_servers_or_the_kernels() {
        use Cgroup::Empty;
        use Cgroup::Populated;
        use Cgroup::Unknown;
        use Presence::Gone;
        use Presence::Present;
        let rows = [
            (pod(Volume::Mounted, Present, None), Empty, "unknown"),
            (pod(Volume::Mounted, Present, None), Populated, "running"),
            (pod(Volume::Mounted, Present, Some(90)), Populated, "running"),
            (pod(Volume::Mounted, Present, Some(90)), Empty, "ended"),
            (pod(Volume::Mounted, Present, Some(90)), Unknown, "unknown"),
            (pod(Volume::Mounted, Gone, None), Populated, "running"),
            (pod(Volume::Mounted, Gone, None), Unknown, "unknown"),
            (pod(Volume::Absent, Gone, None), Unknown, "ended"),
            (pod(Volume::Unmounted, Presence::Unknown, None), Unknown, "ended"),
        ];
        for (pod, cgroup, expected) in rows {
            let found = match containers(&pod, None, &seen(None), cgroup) {
                Containers::Running => "running",
                Containers::Ended { .. } => "ended",
                Containers::Unknown => "unknown",
            };
            assert_eq!(found, expected, "{pod:?} {cgroup:?}");
        }
    }

    #[test]
    fn a_pod_is_being_ended_by_the_servers_word_or_by_sigterm_whichever_is_sooner() {
        use Presence::Present;
        let told = known(Some(50));
        let silent = known(None);
        let rows = [
            (Some(95), &silent, Server::There, Some(at(95))),
            (Some(95), &told, Server::There, Some(at(80))),
            (None, &told, Server::Away, Some(at(80))),
            (None, &silent, Server::There, None),
            (None, &silent, Server::Away, None),
        ];
        for (ends_at, known, server, expected) in rows {
            let pod = pod(Volume::Mounted, Present, ends_at);
            let found = ending(&pod, &seen(Some(known)), server);
            assert_eq!(found.ends_at(), expected);
        }
        let pod = pod(Volume::Mounted, Present, None);
        assert_eq!(ending(&pod, &seen(Some(&silent)), Server::There), Ending::No);
        assert_eq!(ending(&pod, &seen(Some(&silent)), Server::Away), Ending::Unknown);
        assert_eq!(pod.record.grace(), Duration::from_secs(30));
    }
}

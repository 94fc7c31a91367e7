//! Looks at kubelet, NVML and cgroups on its own time, so that a slow answer delays no save.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat_domain::gpu::Cgroup;
use lifeboat_domain::gpu::Release;
use lifeboat_domain::ids::GpuUuid;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::facts::NodeFacts;
use lifeboat_domain::workload::Slices;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::adapters::kubelet::Holding;
use crate::adapters::kubelet::KubeletError;
use crate::adapters::kubelet::PodResourcesClient;
use crate::agent::bell::Bell;
use crate::agent::pods::Pod;
use crate::agent::pods::Pods;
use crate::agent::pods::Presence;
use crate::agent::pods::Volume;
use crate::agent::records::Device;
use crate::agent::release::Eyes;
use crate::agent::release::Watches;
use crate::clock::Clock;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// Between two looks while a slice is to come free.
const CLOSE_LOOK: Duration = Duration::from_millis(200);

/// Between two looks otherwise: for who uses a GPU without having asked for one.
const IDLE_LOOK: Duration = Duration::from_secs(5);

/// What is sensed, shared with the loop.
#[derive(Debug, Clone)]
pub struct Senses {
    sensed: Arc<Mutex<Sensed>>,
    clock: Clock,
    bell: Bell,
    wanted: Bell,
}

/// What the looks go through.
#[derive(Debug)]
pub struct Organs {
    /// Kubelet.
    pub kubelet: PodResourcesClient,
    /// NVML and cgroups.
    pub eyes: Eyes,
    /// The pods that are looked for.
    pub pods: Pods,
}

#[derive(Debug, Default)]
struct Sensed {
    watches: Watches,
    used: BTreeMap<PodUid, BTreeSet<GpuUuid>>,
    cgroups: BTreeMap<PodUid, Cgroup>,
    gpus: Gpus,
}

/// Whether this node has GPUs, as far as NVML says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gpus {
    /// Not known.
    #[default]
    Unknown,
    /// It has none.
    None,
    /// It has.
    Some,
}

impl Senses {
    /// Nothing sensed yet.
    pub fn new(clock: Clock, bell: Bell) -> Self {
        Self { sensed: Arc::default(), clock, bell, wanted: Bell::new() }
    }

    /// Begins to watch the slices of a pod.
    pub fn watch(&self, pod: &PodUid, slices: &Slices) {
        let now = self.clock.now();
        self.sensed().watches.begin(pod, slices, now);
        self.wanted.ring();
    }

    /// Takes in what is now known of the slices that are watched: a watch may begin before kubelet
    /// has said which they are.
    pub fn know(&self, facts: &NodeFacts) {
        let mut sensed = self.sensed();
        for pod in sensed.watches.open() {
            if let Some(workload) = facts.workloads.get(&pod) {
                sensed.watches.begin(&pod, &workload.report.slices, facts.observed_at);
            }
        }
    }

    /// How far the release of a pod's slices is.
    pub fn release(&self, pod: &PodUid) -> Release {
        self.sensed().watches.release(pod)
    }

    /// The GPUs on which a pod was seen.
    pub fn used_by(&self, pod: &PodUid) -> BTreeSet<GpuUuid> {
        self.sensed().used.get(pod).cloned().unwrap_or_default()
    }

    /// Whether a pod has processes, as last counted.
    pub fn cgroup(&self, pod: &PodUid) -> Cgroup {
        self.sensed().cgroups.get(pod).copied().unwrap_or(Cgroup::Unknown)
    }

    /// Whether this node has GPUs.
    pub fn gpus(&self) -> Gpus {
        self.sensed().gpus
    }

    /// Forgets a pod that is over.
    pub fn forget(&self, pod: &PodUid) {
        let mut sensed = self.sensed();
        sensed.watches.forget(pod);
        sensed.used.remove(pod);
        sensed.cgroups.remove(pod);
    }

    /// Looks again and again, for ever.
    pub async fn run(&self, mut organs: Organs) {
        let (mut wanted, mut met) = (self.wanted.ear(), organs.pods.ear());
        let mut listed = BTreeSet::new();
        let mut trouble = None;
        let mut list_at = Instant::now();
        loop {
            let known: BTreeSet<PodUid> = uids(&organs.pods.all());
            if known != listed || Instant::now() >= list_at {
                trouble = list(&organs, trouble).await;
                listed = known;
                list_at = Instant::now() + IDLE_LOOK;
            }
            self.look(&mut organs).await;
            let pause =
                if self.sensed().watches.open().is_empty() { IDLE_LOOK } else { CLOSE_LOOK };
            tokio::select! {
                biased;
                () = wanted.rung() => (),
                () = met.rung() => (),
                () = tokio::time::sleep(pause) => (),
            }
        }
    }

    async fn look(&self, organs: &mut Organs) {
        let view = organs.eyes.look().await;
        let pods = uids(&organs.pods.all());
        let open = self.sensed().watches.open();
        let mut cgroups = BTreeMap::new();
        for pod in pods.iter().chain(&open) {
            cgroups.insert(pod.clone(), organs.eyes.cgroup(pod).await);
        }
        let now = self.clock.now();
        let mut sensed = self.sensed();
        for pod in &pods {
            sensed.used.entry(pod.clone()).or_default().extend(view.used_by(pod));
        }
        sensed.gpus = view.gpus();
        sensed.watches.see(&view, &cgroups, now);
        let news = sensed.cgroups != cgroups || !open.is_empty();
        sensed.cgroups = cgroups;
        drop(sensed);
        if news {
            self.bell.ring();
        }
    }

    fn sensed(&self) -> MutexGuard<'_, Sensed> {
        // Nothing that can panic runs under the lock.
        self.sensed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uids(pods: &[Pod]) -> BTreeSet<PodUid> {
    pods.iter().map(|pod| pod.record.pod.uid.clone()).collect()
}

/// Asks kubelet who holds what, and logs the beginning and the end of its silence.
async fn list(organs: &Organs, before: Option<&'static str>) -> Option<&'static str> {
    match organs.kubelet.list().await {
        Ok(holdings) => {
            give(&organs.pods, &holdings);
            if before.is_some() {
                info!("kubelet lists its pod resources again");
            }
            None
        }
        Err(error) => {
            metrics::error("kubelet", error.label());
            note(before, &error);
            Some(error.label())
        }
    }
}

fn note(before: Option<&'static str>, error: &KubeletError) {
    if before != Some(error.label()) {
        warn!(error = %Chain(error), "slices go by what was last known");
    }
}

/// Gives each pod what kubelet says it holds. Kubelet names no UID, so of two pods of one name only
/// the one that runs can be meant; and it lists no pod that has ended, which takes nothing away.
fn give(pods: &Pods, holdings: &[Holding]) {
    let runs = |pod: &&Pod| pod.volume != Volume::Unmounted && pod.presence != Presence::Gone;
    let all = pods.all();
    for pod in all.iter().filter(runs) {
        let name = |pod: &Pod| pod.record.pod.to_string();
        if all.iter().filter(runs).filter(|other| name(other) == name(pod)).count() > 1 {
            continue;
        }
        let own = |holding: &&Holding| {
            holding.namespace == pod.record.pod.namespace.as_str()
                && holding.pod == pod.record.pod.name.as_str()
        };
        let devices: BTreeSet<Device> = holdings.iter().filter(own).map(device).collect();
        if !devices.is_empty() || pod.record.devices.is_none() {
            pods.holds(&pod.record.pod.uid, &devices);
        }
    }
}

fn device(holding: &Holding) -> Device {
    Device { resource: holding.resource.clone(), id: holding.device.clone() }
}

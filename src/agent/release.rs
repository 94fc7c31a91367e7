//! Who is on which GPU, and when a pod's slices have come free.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::gpu::Cgroup;
use lifeboat_domain::gpu::Listed;
use lifeboat_domain::gpu::MigDevice;
use lifeboat_domain::gpu::Owner;
use lifeboat_domain::gpu::Release;
use lifeboat_domain::gpu::ReleaseWatch;
use lifeboat_domain::gpu::Sighting;
use lifeboat_domain::gpu::Slice;
use lifeboat_domain::gpu::look;
use lifeboat_domain::ids::GpuUuid;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::workload::Slices;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::adapters::nvml::Gpu;
use crate::adapters::nvml::List;
use crate::adapters::nvml::Lists;
use crate::adapters::nvml::Nvml;
use crate::adapters::nvml::NvmlError;
use crate::adapters::proc::Membership;
use crate::adapters::proc::Population;
use crate::adapters::proc::Proc;
use crate::agent::senses::Gpus;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;
use crate::offload::Offload;

/// How long one look at the GPUs may take; a driver in trouble does not answer.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Pause between two tries to load the library: a driver may be installed later.
const LOAD_PAUSE: Duration = Duration::from_secs(5);

/// The GPUs, as far as they can be seen.
#[derive(Debug)]
pub struct Eyes {
    library: Option<PathBuf>,
    offload: Offload,
    proc: Proc,
    nvml: Loaded,
}

/// What is on the GPUs at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    gpus: Sight,
    owners: BTreeMap<u32, Owner>,
}

/// Whether the GPUs were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sight {
    /// All of them.
    Seen(Vec<Gpu>),
    /// There is no library: this node has none.
    NoGpu,
    /// The library told us nothing.
    Blind,
}

/// The watches over pods whose slices are to come free.
#[derive(Debug, Default)]
pub struct Watches {
    by_pod: BTreeMap<PodUid, Watch>,
}

#[derive(Debug)]
struct Watch {
    state: ReleaseWatch,
    slices: BTreeSet<Slice>,
    since: Timestamp,
}

#[derive(Debug)]
enum Loaded {
    Not { again: Instant, label: Option<&'static str> },
    Yes(Nvml),
}

impl Eyes {
    /// Sees through `library`, or the one that the loader finds.
    pub fn new(library: Option<PathBuf>, proc: Proc, offload: Offload) -> Self {
        let nvml = Loaded::Not { again: Instant::now(), label: None };
        Self { library, offload, proc, nvml }
    }

    /// Looks once.
    pub async fn look(&mut self) -> View {
        let gpus = self.gpus().await;
        let mut owners = BTreeMap::new();
        if let Sight::Seen(gpus) = &gpus {
            let pids: BTreeSet<u32> =
                gpus.iter().flat_map(Gpu::processes).map(|process| process.pid).collect();
            for pid in pids {
                owners.insert(pid, self.owner(pid).await);
            }
        }
        View { gpus, owners }
    }

    /// Whether a pod still has processes.
    pub async fn cgroup(&self, pod: &PodUid) -> Cgroup {
        match self.proc.population(pod).await {
            Ok(Population::Empty) => Cgroup::Empty,
            Ok(Population::Processes(_)) => Cgroup::Populated,
            Err(error) => {
                metrics::error("proc", error.label());
                warn!(pod = %pod, error = %Chain(&error), "processes of a pod not counted");
                Cgroup::Unknown
            }
        }
    }

    async fn gpus(&mut self) -> Sight {
        self.load().await;
        let nvml = match &self.nvml {
            Loaded::Yes(nvml) => nvml,
            Loaded::Not { label: Some("absent"), .. } => return Sight::NoGpu,
            Loaded::Not { .. } => return Sight::Blind,
        };
        match tokio::time::timeout(LOOK_MAX, nvml.look()).await {
            Ok(Ok(gpus)) => Sight::Seen(gpus),
            Ok(Err(error)) => {
                metrics::error("nvml", error.label());
                warn!(error = %Chain(&error), "GPUs not seen");
                Sight::Blind
            }
            Err(_) => {
                metrics::error("nvml", "late");
                warn!(bound = ?LOOK_MAX, "GPUs not seen in time");
                Sight::Blind
            }
        }
    }

    async fn load(&mut self) {
        let Loaded::Not { again, label } = &self.nvml else { return };
        let label = *label;
        if Instant::now() < *again {
            return;
        }
        match Nvml::load(self.library.as_deref(), self.offload).await {
            Ok(nvml) => {
                let driver = nvml.driver().await;
                info!(driver, "GPUs are watched through NVML");
                self.nvml = Loaded::Yes(nvml);
            }
            Err(error) => {
                note(label, &error);
                let again = Instant::now() + LOAD_PAUSE;
                self.nvml = Loaded::Not { again, label: Some(error.label()) };
            }
        }
    }

    /// A process that is gone may have left the GPU or not: nobody can be told from it.
    async fn owner(&self, pid: u32) -> Owner {
        match self.proc.membership(pid).await {
            Ok(Membership::Pod { pod, .. }) => Owner::Pod(pod),
            Ok(Membership::Host) => Owner::Host,
            Ok(Membership::Gone) => Owner::Unknown,
            Err(error) => {
                metrics::error("proc", error.label());
                Owner::Unknown
            }
        }
    }
}

impl View {
    /// Whether this node has GPUs.
    pub fn gpus(&self) -> Gpus {
        match &self.gpus {
            Sight::Seen(_) => Gpus::Some,
            Sight::NoGpu => Gpus::None,
            Sight::Blind => Gpus::Unknown,
        }
    }

    /// The GPUs that a pod's processes are on, whether it asked for them or not.
    pub fn used_by(&self, pod: &PodUid) -> BTreeSet<GpuUuid> {
        let Sight::Seen(gpus) = &self.gpus else { return BTreeSet::new() };
        let own = |pid: &u32| matches!(self.owners.get(pid), Some(Owner::Pod(uid)) if uid == pod);
        let used = gpus.iter().filter(|gpu| gpu.processes().any(|process| own(&process.pid)));
        used.filter_map(|gpu| gpu.uuid.parse().ok()).collect()
    }

    /// What is on the device of `slice`.
    pub fn sighting(&self, slice: &Slice) -> Sighting {
        match self.lists(slice) {
            Some(lists) => Sighting {
                compute: self.listed(&lists.compute),
                graphics: self.listed(&lists.graphics),
                mps: self.listed(&lists.mps),
            },
            None => Sighting {
                compute: Listed::Unknown,
                graphics: Listed::Unknown,
                mps: Listed::Unknown,
            },
        }
    }

    fn lists(&self, slice: &Slice) -> Option<&Lists> {
        let Sight::Seen(gpus) = &self.gpus else { return None };
        let by_uuid = |gpu: &GpuUuid| gpus.iter().find(|seen| seen.uuid == gpu.as_str());
        match slice {
            Slice::Whole { gpu } | Slice::TimeSliced { gpu, .. } | Slice::Mps { gpu, .. } => {
                by_uuid(gpu).map(|gpu| &gpu.lists)
            }
            Slice::Mig { device: MigDevice::Uuid(uuid), .. } => {
                let mut parts = gpus.iter().flat_map(|gpu| &gpu.mig);
                parts.find(|part| part.uuid == *uuid).map(|part| &part.lists)
            }
            Slice::Mig {
                device: MigDevice::Instance { gpu, gpu_instance, compute_instance },
                ..
            } => {
                let place = (*gpu_instance, *compute_instance);
                let mut parts = by_uuid(gpu)?.mig.iter();
                let found = parts.find(|part| (part.gpu_instance, part.compute_instance) == place);
                found.map(|part| &part.lists)
            }
            Slice::Unknown => None,
        }
    }

    fn listed(&self, list: &List) -> Listed {
        match list {
            List::Processes(processes) => {
                let owner = |pid| self.owners.get(&pid).cloned().unwrap_or(Owner::Unknown);
                let found = processes.iter().map(|process| (process.pid, owner(process.pid)));
                Listed::Processes(found.collect())
            }
            List::NotSupported => Listed::NotSupported,
            List::Unread => Listed::Unknown,
        }
    }
}

impl Watches {
    /// Begins to watch the slices of a pod, unless that has begun. While it is not known which
    /// they are, nothing is ever seen empty.
    pub fn begin(&mut self, pod: &PodUid, slices: &Slices, now: Timestamp) {
        let slices = match slices {
            Slices::Held { slices } => slices.clone(),
            Slices::Unknown => BTreeSet::from([Slice::Unknown]),
        };
        let begun = Watch { state: ReleaseWatch::Watching, slices: BTreeSet::new(), since: now };
        let watch = self.by_pod.entry(pod.clone()).or_insert(begun);
        let over = matches!(watch.state, ReleaseWatch::Released { .. });
        if !over && watch.slices != slices {
            // What was seen empty were others.
            watch.state = ReleaseWatch::Watching;
            watch.slices = slices;
        }
    }

    /// Ends the watch over a pod that is forgotten.
    pub fn forget(&mut self, pod: &PodUid) {
        self.by_pod.remove(pod);
    }

    /// The pods that are watched and not yet released.
    pub fn open(&self) -> Vec<PodUid> {
        let open = self.by_pod.iter();
        let open = open.filter(|(_, watch)| !watch.state.release().is_released());
        open.map(|(pod, _)| pod.clone()).collect()
    }

    /// Takes in one look at everything that is watched.
    pub fn see(&mut self, view: &View, cgroups: &BTreeMap<PodUid, Cgroup>, now: Timestamp) {
        for (pod, watch) in &mut self.by_pod {
            let Some(cgroup) = cgroups.get(pod) else { continue };
            let sightings: Vec<Sighting> =
                watch.slices.iter().map(|slice| view.sighting(slice)).collect();
            let before = watch.state;
            watch.state = before.on(look(pod, &sightings, *cgroup), now);
            if watch.state != before {
                watch.tell(pod, now);
            }
        }
    }

    /// How far the release of a pod's slices is.
    pub fn release(&self, pod: &PodUid) -> Release {
        self.by_pod.get(pod).map_or(Release::NotWatched, |watch| watch.state.release())
    }
}

impl Watch {
    fn tell(&self, pod: &PodUid, now: Timestamp) {
        let slices: Vec<String> = self.slices.iter().map(ToString::to_string).collect();
        let release = self.state.release();
        info!(pod = %pod, slices = slices.join(" "), state = release.label(), "slices looked at");
        if release.is_released() {
            let kind = self.slices.first().map_or("none", Slice::label);
            let took = lifeboat_domain::deadline::elapsed(self.since, now);
            metrics::gpu_released(kind, took);
        }
    }
}

/// Logs the library's absence once, and any other trouble when it changes.
fn note(before: Option<&'static str>, error: &NvmlError) {
    if before == Some(error.label()) {
        return;
    }
    match error {
        NvmlError::Absent { .. } => info!(error = %Chain(error), "no GPU on this node"),
        NvmlError::NoDriver { .. }
        | NvmlError::NotStarted { .. }
        | NvmlError::Device { .. }
        | NvmlError::Count { .. } => warn!(error = %Chain(error), "no GPU seen on this node"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::nvml;

    const POD: &str = "8f7a";

    fn processes(pids: &[u32]) -> List {
        let process =
            |pid: &u32| nvml::Process { pid: *pid, gpu_instance: None, compute_instance: None };
        List::Processes(pids.iter().map(process).collect())
    }

    fn lists(compute: &[u32], mps: List) -> Lists {
        Lists { compute: processes(compute), graphics: List::NotSupported, mps }
    }

    fn view(gpu: Lists, part: Lists) -> View {
        let part = nvml::MigDevice {
            uuid: "MIG-1".into(),
            gpu_instance: 7,
            compute_instance: 0,
            lists: part,
        };
        let name = String::new();
        let gpu = Gpu { uuid: "GPU-1".into(), name, lists: gpu, mig: vec![part] };
        let owners = BTreeMap::from([
            (1, Owner::Pod(POD.parse().unwrap())),
            (2, Owner::Pod("other".parse().unwrap())),
            (3, Owner::Host),
        ]);
        View { gpus: Sight::Seen(vec![gpu]), owners }
    }

    #[track_caller]
    fn check(view: &View, device: &str, cgroup: Cgroup, expected: &str) {
        let pod: PodUid = POD.parse().unwrap();
        let sharing = lifeboat_domain::gpu::Sharing::Unknown;
        let slice = Slice::parse("nvidia.com/gpu", device, sharing).unwrap();
        let mut watches = Watches::default();
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        watches.begin(&pod, &Slices::of([slice]), at(0));
        let cgroups = BTreeMap::from([(pod.clone(), cgroup)]);
        watches.see(view, &cgroups, at(100));
        watches.see(view, &cgroups, at(300));
        assert_eq!(watches.release(&pod).label(), expected);
    }

    #[test]
    fn a_slice_is_released_when_every_list_of_its_device_is_free_of_the_pod() {
        let nobody = || lists(&[], processes(&[]));
        let free = view(lists(&[2, 3], processes(&[2])), nobody());
        check(&free, "GPU-1::0", Cgroup::Empty, "released");
        check(&free, "GPU-1", Cgroup::Populated, "held");
        check(&free, "GPU-1", Cgroup::Unknown, "held");
        check(&free, "GPU-2", Cgroup::Empty, "held");

        check(&view(lists(&[1], processes(&[])), nobody()), "GPU-1", Cgroup::Empty, "held");
        check(&view(lists(&[], processes(&[1])), nobody()), "GPU-1::1", Cgroup::Empty, "held");
        check(&view(lists(&[], List::Unread), nobody()), "GPU-1", Cgroup::Empty, "held");
        check(&view(lists(&[9], processes(&[])), nobody()), "GPU-1", Cgroup::Empty, "held");
    }

    #[test]
    fn a_watch_over_unknown_slices_waits_until_they_are_known() {
        let pod: PodUid = POD.parse().unwrap();
        let free = view(lists(&[], processes(&[])), lists(&[], processes(&[])));
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let cgroups = BTreeMap::from([(pod.clone(), Cgroup::Empty)]);
        let mut watches = Watches::default();
        watches.begin(&pod, &Slices::Unknown, at(0));
        for millis in [100, 300, 500] {
            watches.see(&free, &cgroups, at(millis));
        }
        assert_eq!(watches.release(&pod).label(), "held");
        let gpu = "GPU-1".parse().unwrap();
        watches.begin(&pod, &Slices::of([Slice::Whole { gpu }]), at(600));
        watches.see(&free, &cgroups, at(700));
        assert_eq!(watches.release(&pod).label(), "seen-empty");
        watches.see(&free, &cgroups, at(900));
        assert_eq!(watches.release(&pod).label(), "released");
        assert!(watches.open().is_empty());
    }

    #[test]
    fn a_mig_device_is_found_under_both_its_names() {
        let busy = view(lists(&[], processes(&[])), lists(&[1], processes(&[])));
        let free = view(lists(&[], processes(&[])), lists(&[2], processes(&[])));
        for device in ["MIG-1", "MIG-GPU-1/7/0", "MIG-1::3"] {
            check(&busy, device, Cgroup::Empty, "held");
            check(&free, device, Cgroup::Empty, "released");
        }
        check(&free, "MIG-GPU-1/8/0", Cgroup::Empty, "held");
    }

    #[test]
    fn whoever_is_on_a_gpu_is_found_by_process() {
        let busy = view(lists(&[], processes(&[])), lists(&[1], processes(&[])));
        let used = busy.used_by(&POD.parse().unwrap());
        assert_eq!(used, BTreeSet::from(["GPU-1".parse().unwrap()]));
        let none = View { gpus: Sight::NoGpu, owners: BTreeMap::new() };
        assert!(none.used_by(&POD.parse().unwrap()).is_empty());
    }
}

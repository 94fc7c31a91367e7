//! Slices of GPUs: who holds which, who shares a fault domain, and when one is released.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::deadline::elapsed;
use crate::ids::GpuUuid;
use crate::ids::NotAName;
use crate::ids::PodUid;

/// The part of a GPU that a pod holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Slice {
    /// All of it.
    Whole {
        /// The GPU.
        gpu: GpuUuid,
    },
    /// A replica under time-slicing, of `nvidia.com/gpu` or `nvidia.com/gpu.shared`.
    TimeSliced {
        /// The GPU.
        gpu: GpuUuid,
        /// Which replica.
        replica: u32,
    },
    /// A replica under the multi-process service.
    Mps {
        /// The GPU.
        gpu: GpuUuid,
        /// Which replica.
        replica: u32,
    },
    /// A MIG device, or a replica of one.
    Mig {
        /// The MIG device.
        device: MigDevice,
        /// Its profile; known from the resource's name in the mixed strategy only.
        profile: Option<MigProfile>,
        /// Which replica, where the device itself is time-sliced.
        replica: Option<u32>,
    },
    /// One that only a later version knows.
    #[serde(other)]
    Unknown,
}

/// How NVML finds a MIG device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MigDevice {
    /// By its own UUID, `MIG-<uuid>` (driver R470 and later).
    Uuid(String),
    /// By GPU, GPU instance and compute instance, `MIG-GPU-<uuid>/<gi>/<ci>`.
    Instance {
        /// The GPU it is a part of.
        gpu: GpuUuid,
        /// The GPU instance.
        gpu_instance: u32,
        /// The compute instance in it.
        compute_instance: u32,
    },
}

/// A MIG profile, such as `1g.5gb`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigProfile(String);

/// How the device plugin shares the GPUs of a node, by GFD's label
/// `nvidia.com/gpu.sharing-strategy`.
///
/// Time-slicing and MPS use the same resource names and device ids, so nothing else tells them
/// apart. Source: NVIDIA k8s-device-plugin, "Shared Access to GPUs".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// Not at all.
    None,
    /// In time slices.
    TimeSlicing,
    /// By the multi-process service.
    Mps,
    /// The label is missing, or says something else.
    #[serde(other)]
    Unknown,
}

/// What goes down together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultDomain {
    /// A physical GPU.
    Gpu(GpuUuid),
    /// A MIG device, which is isolated from its neighbours.
    Mig(MigDevice),
}

/// Why a device that kubelet names is no slice we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device `{device}` of resource `{resource}` is not a slice of a GPU")]
pub struct NotASlice {
    /// The resource, cut to 80 characters.
    pub resource: String,
    /// The device id, cut to 80 characters.
    pub device: String,
}

impl Slice {
    /// Reads what kubelet's pod-resources API says: a resource name and a device id.
    pub fn parse(resource: &str, device: &str, sharing: Sharing) -> Result<Self, NotASlice> {
        let cut = |text: &str| text.chars().take(80).collect::<String>();
        let refuse = || NotASlice { resource: cut(resource), device: cut(device) };
        let kind = resource.strip_prefix("nvidia.com/").ok_or_else(refuse)?;
        let kind = kind.strip_suffix(".shared").unwrap_or(kind);
        let (device, replica) = split_replica(device).ok_or_else(refuse)?;

        if device.starts_with("MIG-") {
            let profile = match kind.strip_prefix("mig-") {
                Some(profile) => Some(profile.parse().map_err(|_| refuse())?),
                None => None,
            };
            let device = device.parse().map_err(|_| refuse())?;
            return Ok(Self::Mig { device, profile, replica });
        }
        if kind != "gpu" {
            return Err(refuse());
        }
        let gpu = device.parse().map_err(|_| refuse())?;
        Ok(match (replica, sharing) {
            (None, _) => Self::Whole { gpu },
            (Some(replica), Sharing::Mps) => Self::Mps { gpu, replica },
            (Some(replica), Sharing::None | Sharing::TimeSlicing | Sharing::Unknown) => {
                Self::TimeSliced { gpu, replica }
            }
        })
    }

    /// What goes down with it; none if we do not know what it is.
    pub fn fault_domain(&self) -> Option<FaultDomain> {
        match self {
            Self::Whole { gpu } | Self::TimeSliced { gpu, .. } | Self::Mps { gpu, .. } => {
                Some(FaultDomain::Gpu(gpu.clone()))
            }
            Self::Mig { device, .. } => Some(FaultDomain::Mig(device.clone())),
            Self::Unknown => None,
        }
    }

    /// Whether ending a holder of the one may harm a holder of the other.
    ///
    /// "If one workload crashes, they all do": true of time slices and MPS, not of MIG devices.
    /// Source: NVIDIA k8s-device-plugin, "Shared Access to GPUs".
    pub fn shares_with(&self, other: &Self) -> bool {
        match (self.fault_domain(), other.fault_domain()) {
            (Some(mine), Some(theirs)) => mine == theirs,
            (None, _) | (_, None) => true,
        }
    }

    /// Its name in metrics and records.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Whole { .. } => "whole",
            Self::TimeSliced { .. } => "time-sliced",
            Self::Mps { .. } => "mps",
            Self::Mig { .. } => "mig",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Slice {
    /// The device as NVML knows it, and the replica.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole { gpu } => write!(formatter, "{gpu}"),
            Self::TimeSliced { gpu, replica } | Self::Mps { gpu, replica } => {
                write!(formatter, "{gpu}::{replica}")
            }
            Self::Mig { device, replica: Some(replica), .. } => {
                write!(formatter, "{device}::{replica}")
            }
            Self::Mig { device, replica: None, .. } => write!(formatter, "{device}"),
            Self::Unknown => formatter.write_str("unknown"),
        }
    }
}

impl Sharing {
    /// Reads GFD's label.
    pub fn read(label: Option<&str>) -> Self {
        match label {
            Some("none") => Self::None,
            Some("time-slicing") => Self::TimeSlicing,
            Some("mps") => Self::Mps,
            Some(_) | None => Self::Unknown,
        }
    }
}

impl FromStr for MigDevice {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let refuse = || NotAName {
            noun: "a MIG device",
            text: text.chars().take(80).collect(),
            rule: "`MIG-` and a UUID, or `MIG-GPU-`, a UUID, and two numbers after slashes",
        };
        let rest = text.strip_prefix("MIG-").ok_or_else(refuse)?;
        if !rest.starts_with("GPU-") {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            let valid = !rest.is_empty() && rest.len() <= 64 && rest.bytes().all(plain);
            return if valid { Ok(Self::Uuid(text.to_owned())) } else { Err(refuse()) };
        }
        let mut parts = rest.split('/');
        let mut next = || parts.next().ok_or_else(refuse);
        let gpu = next()?.parse().map_err(|_| refuse())?;
        let gpu_instance = next()?.parse().map_err(|_| refuse())?;
        let compute_instance = next()?.parse().map_err(|_| refuse())?;
        match parts.next() {
            Some(_) => Err(refuse()),
            None => Ok(Self::Instance { gpu, gpu_instance, compute_instance }),
        }
    }
}

impl TryFrom<String> for MigDevice {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<MigDevice> for String {
    fn from(device: MigDevice) -> Self {
        device.to_string()
    }
}

impl fmt::Display for MigDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => formatter.write_str(uuid),
            Self::Instance { gpu, gpu_instance, compute_instance } => {
                write!(formatter, "MIG-{gpu}/{gpu_instance}/{compute_instance}")
            }
        }
    }
}

impl MigProfile {
    /// The profile as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MigProfile {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let valid = text.starts_with(|first: char| first.is_ascii_digit())
            && text.len() <= 32
            && text.bytes().all(plain);
        if valid {
            return Ok(Self(text.to_owned()));
        }
        Err(NotAName {
            noun: "a MIG profile",
            text: text.chars().take(80).collect(),
            rule: "like `1g.5gb`",
        })
    }
}

impl TryFrom<String> for MigProfile {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<MigProfile> for String {
    fn from(profile: MigProfile) -> Self {
        profile.0
    }
}

impl fmt::Display for MigProfile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Whether the slices of a pod are free, as told to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Release {
    /// Nobody watches yet.
    NotWatched,
    /// Watched, and not seen empty.
    Held,
    /// Seen empty once.
    SeenEmpty {
        /// When.
        at: Timestamp,
    },
    /// Seen empty twice in a row.
    Released {
        /// When for the first time.
        first: Timestamp,
        /// When for the second time.
        second: Timestamp,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

impl Release {
    /// Whether the slices are known to be free.
    pub fn is_released(&self) -> bool {
        matches!(self, Self::Released { .. })
    }

    /// Its name in records.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotWatched => "not-watched",
            Self::Held => "held",
            Self::SeenEmpty { .. } => "seen-empty",
            Self::Released { .. } => "released",
            Self::Unknown => "unknown",
        }
    }
}

/// Two looks closer than this are one look.
pub const LOOK_GAP: Duration = Duration::from_millis(100);

/// The watch over the slices of one pod: released once all were seen empty twice in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseWatch {
    /// Not seen empty, or busy again since.
    Watching,
    /// Seen empty once.
    SeenEmpty {
        /// When.
        first: Timestamp,
    },
    /// Seen empty twice in a row. Nothing changes that any more.
    Released {
        /// When for the first time.
        first: Timestamp,
        /// When for the second time.
        second: Timestamp,
    },
}

/// What one look at the slices of a pod showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// No process of the pod on any of its slices, and none in its cgroup.
    Empty,
    /// A process of the pod is left.
    Busy,
    /// Something could not be read, or not be attributed.
    Unreadable,
}

impl ReleaseWatch {
    /// The watch after one more look.
    #[must_use]
    pub fn on(self, look: Look, at: Timestamp) -> Self {
        match (self, look) {
            (Self::Watching, Look::Empty) => Self::SeenEmpty { first: at },
            (Self::SeenEmpty { first }, Look::Empty) if elapsed(first, at) >= LOOK_GAP => {
                Self::Released { first, second: at }
            }
            (Self::SeenEmpty { .. }, Look::Empty)
            | (Self::Released { .. }, Look::Empty | Look::Busy | Look::Unreadable) => self,
            (Self::Watching | Self::SeenEmpty { .. }, Look::Busy | Look::Unreadable) => {
                Self::Watching
            }
        }
    }

    /// What it says to others.
    pub fn release(self) -> Release {
        match self {
            Self::Watching => Release::Held,
            Self::SeenEmpty { first } => Release::SeenEmpty { at: first },
            Self::Released { first, second } => Release::Released { first, second },
        }
    }
}

/// A list of processes on a device, by pid, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// Read, each process with whom it belongs to.
    Processes(BTreeMap<u32, Owner>),
    /// The driver has no such list for this device.
    NotSupported,
    /// It could not be read.
    Unknown,
}

/// Whom a process belongs to, by its cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A pod.
    Pod(PodUid),
    /// The host: no pod at all, such as the MPS server.
    Host,
    /// We could not tell.
    Unknown,
}

/// What NVML lists for the device of one slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Compute processes.
    pub compute: Listed,
    /// Graphics processes.
    pub graphics: Listed,
    /// Clients of the multi-process service.
    pub mps: Listed,
}

/// The processes in the cgroup of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroup {
    /// None, or the cgroup is gone.
    Empty,
    /// At least one.
    Populated,
    /// It could not be read.
    Unknown,
}

/// What one look shows: the sightings of all slices of `pod`, and its cgroup.
///
/// A pod whose state is checkpointed by the driver is absent from NVML's lists while its process
/// lives, which is why the cgroup counts as much. Source: NVIDIA cuda-checkpoint, README.
pub fn look<'a>(
    pod: &PodUid,
    sightings: impl IntoIterator<Item = &'a Sighting>,
    cgroup: Cgroup,
) -> Look {
    let on_devices = sightings.into_iter().flat_map(|sighting| {
        [&sighting.compute, &sighting.graphics, &sighting.mps].map(|list| look_at(pod, list))
    });
    let in_cgroup = match cgroup {
        Cgroup::Empty => Look::Empty,
        Cgroup::Populated => Look::Busy,
        Cgroup::Unknown => Look::Unreadable,
    };
    on_devices.fold(in_cgroup, worse)
}

fn look_at(pod: &PodUid, list: &Listed) -> Look {
    match list {
        Listed::NotSupported => Look::Empty,
        Listed::Unknown => Look::Unreadable,
        Listed::Processes(processes) => processes
            .values()
            .map(|owner| match owner {
                Owner::Pod(uid) if uid == pod => Look::Busy,
                Owner::Pod(_) | Owner::Host => Look::Empty,
                Owner::Unknown => Look::Unreadable,
            })
            .fold(Look::Empty, worse),
    }
}

fn worse(one: Look, other: Look) -> Look {
    match (one, other) {
        (Look::Busy, _) | (_, Look::Busy) => Look::Busy,
        (Look::Unreadable, _) | (_, Look::Unreadable) => Look::Unreadable,
        (Look::Empty, Look::Empty) => Look::Empty,
    }
}

fn split_replica(device: &str) -> Option<(&str, Option<u32>)> {
    match device.split_once("::") {
        Some((device, replica)) => Some((device, Some(replica.parse().ok()?))),
        None => Some((device, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "nvidia.com/gpu";

    fn parse(resource: &str, device: &str, sharing: Sharing) -> String {
        match Slice::parse(resource, device, sharing) {
            Ok(slice) => format!("{} {slice}", slice.label()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_way_to_slice_is_read() {
        let none = Sharing::None;
        let sliced = Sharing::TimeSlicing;
        let rows = [
            (WHOLE, "GPU-1", none, "whole GPU-1"),
            (WHOLE, "GPU-1::3", sliced, "time-sliced GPU-1::3"),
            (WHOLE, "GPU-1::3", Sharing::Unknown, "time-sliced GPU-1::3"),
            ("nvidia.com/gpu.shared", "GPU-1::0", sliced, "time-sliced GPU-1::0"),
            (WHOLE, "GPU-1::2", Sharing::Mps, "mps GPU-1::2"),
            (WHOLE, "MIG-0a-1", none, "mig MIG-0a-1"),
            ("nvidia.com/mig-1g.5gb", "MIG-GPU-1/7/0", none, "mig MIG-GPU-1/7/0"),
            ("nvidia.com/mig-1g.5gb.shared", "MIG-0a::1", sliced, "mig MIG-0a::1"),
        ];
        for (resource, device, sharing, expected) in rows {
            assert_eq!(parse(resource, device, sharing), expected);
        }
    }

    #[test]
    fn what_is_no_slice_is_refused() {
        let rows = [
            ("amd.com/gpu", "GPU-1"),
            (WHOLE, "GPU-1::x"),
            (WHOLE, "0"),
            (WHOLE, "MIG-GPU-1/7"),
            (WHOLE, "MIG-GPU-1/7/0/1"),
            (WHOLE, "MIG-"),
            ("nvidia.com/mig-", "MIG-1"),
            ("nvidia.com/nvswitch", "GPU-1"),
        ];
        for (resource, device) in rows {
            Slice::parse(resource, device, Sharing::None).unwrap_err();
        }
    }

    #[test]
    fn slices_of_one_gpu_share_and_mig_devices_do_not() {
        let slice = |device, sharing| Slice::parse(WHOLE, device, sharing).unwrap();
        let rows = [
            ("GPU-1::0", "GPU-1::1", Sharing::TimeSlicing, true),
            ("GPU-1::0", "GPU-2::0", Sharing::TimeSlicing, false),
            ("GPU-1::0", "GPU-1::1", Sharing::Mps, true),
            ("MIG-GPU-1/1/0", "MIG-GPU-1/2/0", Sharing::None, false),
            ("MIG-a::0", "MIG-a::1", Sharing::TimeSlicing, true),
        ];
        for (one, other, sharing, expected) in rows {
            assert_eq!(slice(one, sharing).shares_with(&slice(other, sharing)), expected);
        }
        assert!(Slice::Unknown.shares_with(&slice("GPU-1", Sharing::None)));
    }

    #[test]
    fn a_slice_survives_its_record() {
        for device in ["GPU-1", "GPU-1::0", "MIG-GPU-1/1/0", "MIG-a::1"] {
            let slice = Slice::parse(WHOLE, device, Sharing::Mps).unwrap();
            let text = serde_json::to_string(&slice).unwrap();
            assert_eq!(serde_json::from_str::<Slice>(&text).unwrap(), slice, "{text}");
        }
        let later = serde_json::from_str::<Slice>(r#"{"kind": "dra", "claim": "x"}"#).unwrap();
        assert_eq!(later, Slice::Unknown);
    }

    #[test]
    fn only_two_empty_looks_in_a_row_release() {
        use Look::Busy;
        use Look::Empty;
        use Look::Unreadable;
        let rows: [(&[Look], &str); 8] = [
            (&[], "held"),
            (&[Busy], "held"),
            (&[Unreadable], "held"),
            (&[Empty], "seen-empty"),
            (&[Empty, Busy, Empty], "seen-empty"),
            (&[Empty, Unreadable, Empty], "seen-empty"),
            (&[Empty, Empty], "released"),
            (&[Empty, Empty, Busy, Unreadable, Empty], "released"),
        ];
        for (looks, expected) in rows {
            let watch = looks.iter().zip(0..).fold(ReleaseWatch::Watching, |watch, (look, n)| {
                watch.on(*look, Timestamp::from_millisecond(n * 100).unwrap())
            });
            assert_eq!(watch.release().label(), expected, "{looks:?}");
        }
    }

    #[test]
    fn two_looks_at_one_moment_are_one() {
        let at = Timestamp::UNIX_EPOCH;
        let watch = ReleaseWatch::Watching.on(Look::Empty, at).on(Look::Empty, at);
        assert_eq!(watch, ReleaseWatch::SeenEmpty { first: at });
    }

    #[test]
    fn a_slice_is_empty_only_if_every_list_is() {
        let pod: PodUid = "mine".parse().unwrap();
        let listed = |owner: &Owner| Listed::Processes(BTreeMap::from([(7, owner.clone())]));
        let empty = || Listed::Processes(BTreeMap::new());
        let other = Owner::Pod("other".parse().unwrap());
        let rows = [
            (empty(), Cgroup::Empty, Look::Empty),
            (Listed::NotSupported, Cgroup::Empty, Look::Empty),
            (listed(&other), Cgroup::Empty, Look::Empty),
            (listed(&Owner::Host), Cgroup::Empty, Look::Empty),
            (listed(&Owner::Pod(pod.clone())), Cgroup::Empty, Look::Busy),
            (listed(&Owner::Unknown), Cgroup::Empty, Look::Unreadable),
            (Listed::Unknown, Cgroup::Empty, Look::Unreadable),
            (empty(), Cgroup::Populated, Look::Busy),
            (empty(), Cgroup::Unknown, Look::Unreadable),
        ];
        for (mps, cgroup, expected) in rows {
            let sighting = Sighting { compute: empty(), graphics: Listed::NotSupported, mps };
            assert_eq!(look(&pod, [&sighting], cgroup), expected, "{sighting:?} {cgroup:?}");
        }
    }
}

//! Slices of GPUs: who holds which, who shares a fault domain, and when one is released.

mod release;

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::ids::GpuUuid;
use crate::ids::NotAName;

pub use release::Cgroup;
pub use release::LOOK_GAP;
pub use release::Listed;
pub use release::Look;
pub use release::Owner;
pub use release::Release;
pub use release::ReleaseWatch;
pub use release::Sighting;
pub use release::look;

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
}

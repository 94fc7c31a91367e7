//! When the slices of a pod count as released: seen empty twice in a row.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::deadline::elapsed;
use crate::ids::PodUid;

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

#[cfg(test)]
mod tests {
    use super::*;

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

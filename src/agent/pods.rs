//! The pods of this node that the agent has met: kept on disk, each with its socket.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat_domain::ids::PodRef;
use lifeboat_domain::ids::PodUid;
use tracing::info;
use tracing::warn;

use crate::adapters::cluster::pods::PodRow;
use crate::agent::bell::Bell;
use crate::agent::bell::Ear;
use crate::agent::csi::AGENT_SOCKET;
use crate::agent::csi::Host;
use crate::agent::csi::ours;
use crate::agent::csi::socket;
use crate::agent::csi::socket::Access;
use crate::agent::records::Device;
use crate::agent::records::PodRecord;
use crate::agent::records::Records;
use crate::agent::workloads::PodEntry;
use crate::agent::workloads::Workloads;
use crate::error::Chain;

/// Pause after a record was not written.
const PAUSE: Duration = Duration::from_secs(1);

/// The pods, shared by kubelet's side, the API server's side and the loop.
#[derive(Debug, Clone)]
pub struct Pods {
    table: Arc<Mutex<Table>>,
    bell: Bell,
    dirty: Bell,
    records: Records,
    workloads: Workloads,
}

/// A pod and what of it is only true in this life of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// What is kept of it.
    pub record: PodRecord,
    /// Whether its socket is there.
    pub volume: Volume,
    /// Whether the API server still has it.
    pub presence: Presence,
}

/// Whether a pod has its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// Not made in this life, or never asked for.
    Absent,
    /// Made, and listened to.
    Mounted,
    /// Taken away by kubelet: the pod's containers have ended.
    Unmounted,
}

/// Whether the API server has a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Not asked, or no answer yet.
    Unknown,
    /// It has.
    Present,
    /// It had, and no more.
    Gone,
}

#[derive(Debug, Default)]
struct Table {
    pods: BTreeMap<PodUid, Pod>,
    unwritten: BTreeSet<PodUid>,
}

impl Pods {
    /// The pods that were kept on disk.
    pub async fn load(records: Records, workloads: Workloads, bell: Bell) -> Self {
        let kept = records.pods().await;
        let pods = kept.into_iter().map(|record| (record.pod.uid.clone(), Pod::new(record)));
        let table = Table { pods: pods.collect(), unwritten: BTreeSet::new() };
        Self { table: Arc::new(Mutex::new(table)), bell, dirty: Bell::new(), records, workloads }
    }

    /// Makes the sockets again that a life before this one had made: kubelet would have them made
    /// too, but only after up to a minute.
    pub fn mount_again(&self, host: &Host) {
        for pod in self.all() {
            let Some(target) = &pod.record.target else { continue };
            let target = host.path(target);
            if !target.is_dir() {
                continue;
            }
            let again = self.mounted(pod.record.clone(), &target.join(AGENT_SOCKET));
            if let Err(error) = again {
                warn!(pod = %pod.record.pod, error = %Chain(&error), "socket not made again");
            }
        }
    }

    /// Takes in a pod whose volume is wanted, and makes its socket unless it is there.
    pub fn mounted(&self, record: PodRecord, at: &Path) -> io::Result<()> {
        let uid = record.pod.uid.clone();
        let record = match self.one(&uid) {
            Some(known) => {
                PodRecord { target: record.target, attributes: record.attributes, ..known.record }
            }
            None => record,
        };
        let pod = self.put(record);
        if pod.volume == Volume::Mounted && at.exists() {
            return Ok(());
        }
        let listener = socket::listen(at, Access::Everybody)?;
        info!(pod = %pod.record.pod, mode = pod.record.wishes().mode.label(), "socket made");
        self.workloads.publish(entry(&pod.record), listener);
        self.change(&uid, |pod| pod.volume = Volume::Mounted);
        Ok(())
    }

    /// Takes note that the volume at `target`, as kubelet names it, is wanted no more.
    pub fn unmounted(&self, target: &str) {
        let is_at = |pod: &Pod| pod.record.target.as_deref() == Some(target);
        let found = self.all().into_iter().find(is_at);
        let Some(pod) = found else { return };
        self.workloads.unpublish(&pod.record.pod.uid);
        self.change(&pod.record.pod.uid, |pod| pod.volume = Volume::Unmounted);
    }

    /// Takes in what the API server says of a pod, if it is protected or known.
    pub fn seen(&self, row: &PodRow) {
        let Some(pod) = reference(row) else { return };
        let known = self.one(&pod.uid);
        if known.is_none() && !row.is_protected() {
            return;
        }
        let mut record = known.map_or_else(|| PodRecord::new(pod), |pod| pod.record);
        record.annotations = Some(ours(&row.annotations.to_map()));
        record.grace_seconds = Some(row.grace.as_secs());
        record.priority = Some(row.priority);
        // A deletion's end can be moved earlier by a second deletion, and never later.
        record.ends_at = row.deletion.map(|(at, _)| at).or(record.ends_at);
        let uid = record.pod.uid.clone();
        self.put(record);
        self.change(&uid, |pod| pod.presence = Presence::Present);
    }

    /// Takes note that the API server has a pod no more.
    pub fn gone(&self, uid: &str) {
        if let Ok(uid) = uid.parse() {
            self.change(&uid, |pod| pod.presence = Presence::Gone);
        }
    }

    /// Takes note that the API server has these pods and no others of this node.
    pub fn only(&self, uids: &[String]) {
        let has = |pod: &Pod| uids.iter().any(|uid| uid == pod.record.pod.uid.as_str());
        for pod in self.all().iter().filter(|pod| !has(pod)) {
            self.gone(pod.record.pod.uid.as_str());
        }
    }

    /// Takes in which devices kubelet gave to a pod.
    pub fn holds(&self, uid: &PodUid, devices: &BTreeSet<Device>) {
        let known = self.one(uid).filter(|pod| pod.record.devices.as_ref() != Some(devices));
        if let Some(pod) = known {
            self.put(PodRecord { devices: Some(devices.clone()), ..pod.record });
        }
    }

    /// Forgets a pod that is over.
    pub fn forget(&self, uid: &PodUid) {
        let removed = self.table().pods.remove(uid);
        if removed.is_some() {
            self.write(uid);
        }
    }

    /// Every pod, in the order of UIDs.
    pub fn all(&self) -> Vec<Pod> {
        self.table().pods.values().cloned().collect()
    }

    /// Hears when a pod has come or gone, or what is kept of one has changed.
    pub fn ear(&self) -> Ear {
        self.dirty.ear()
    }

    /// Writes what changed, for ever: the one writer of these records.
    pub async fn keep(&self) {
        let mut dirty = self.dirty.ear();
        loop {
            let next = self.table().unwritten.pop_first();
            let Some(uid) = next else {
                dirty.rung().await;
                continue;
            };
            let written = match self.one(&uid) {
                Some(pod) => self.records.keep(&pod.record).await,
                None => self.records.forget(&uid).await,
            };
            if let Err(error) = written {
                warn!(uid = %uid, error = %Chain(&error), "record of a pod not written");
                self.table().unwritten.insert(uid);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn one(&self, uid: &PodUid) -> Option<Pod> {
        self.table().pods.get(uid).cloned()
    }

    /// Puts a record over what was known, and gives back the whole.
    fn put(&self, record: PodRecord) -> Pod {
        let uid = record.pod.uid.clone();
        let known = self.one(&uid);
        let pod = match &known {
            Some(known) => Pod { record, ..known.clone() },
            None => Pod::new(record),
        };
        self.table().pods.insert(uid.clone(), pod.clone());
        if known.is_none_or(|known| known.record != pod.record) {
            self.workloads.update(entry(&pod.record));
            self.write(&uid);
        }
        pod
    }

    fn change(&self, uid: &PodUid, change: impl FnOnce(&mut Pod)) {
        if let Some(pod) = self.table().pods.get_mut(uid) {
            change(pod);
        }
        self.bell.ring();
    }

    fn write(&self, uid: &PodUid) {
        self.table().unwritten.insert(uid.clone());
        self.dirty.ring();
        self.bell.ring();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing that can panic runs under the lock, and a table is whole between any two lines.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pod {
    fn new(record: PodRecord) -> Self {
        Self { record, volume: Volume::Absent, presence: Presence::Unknown }
    }
}

/// The pod of a row, if its names are such as the API server allows.
fn reference(row: &PodRow) -> Option<PodRef> {
    Some(PodRef {
        namespace: row.namespace.parse().ok()?,
        name: row.name.parse().ok()?,
        uid: row.uid.parse().ok()?,
    })
}

/// What the registry of workloads is told of a pod.
fn entry(record: &PodRecord) -> PodEntry {
    PodEntry {
        pod: record.pod.clone(),
        wishes: record.wishes(),
        grace: record.grace(),
        pod_priority: record.pod_priority(),
    }
}

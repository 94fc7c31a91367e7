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
use lifeboat_domain::workload::Mode;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::adapters::cluster::pods::PodRow;
use crate::adapters::pod_http::Address;
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
use crate::agent::workloads::Fill;
use crate::agent::workloads::Occupied;
use crate::agent::workloads::PodEntry;
use crate::agent::workloads::Workloads;
use crate::error::Chain;

/// Pause after a record was not written.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the annotations of a pod may take to be known. Without them it is served a socket.
const ANNOTATIONS: Duration = Duration::from_secs(5);

/// How long one call of kubelet's waits for a folder; it calls again, and gives up each after two
/// minutes.
const FILL_WAIT: Duration = Duration::from_secs(90);

/// How long a volume stays for a state that was asked for and not handed over yet.
const HAND_OVER: Duration = Duration::from_secs(20);

/// How long the volume of a pod that is being ended stays until its state is asked for.
const ASKED_WITHIN: Duration = Duration::from_secs(1);

/// How often what nobody tells is looked at.
const LOOK: Duration = Duration::from_millis(50);

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
    /// The one that is being written.
    writing: Option<PodUid>,
    /// Folders that are being filled, or were.
    fills: BTreeMap<PodUid, watch::Receiver<Fill>>,
    /// Those that are called.
    called: BTreeSet<PodUid>,
}

impl Pods {
    /// The pods that were kept on disk.
    pub async fn load(records: Records, workloads: Workloads, bell: Bell) -> Self {
        let kept = records.pods().await;
        let pods = kept.into_iter().map(|record| (record.pod.uid.clone(), Pod::new(record)));
        let table = Table { pods: pods.collect(), ..Table::default() };
        Self { table: Arc::new(Mutex::new(table)), bell, dirty: Bell::new(), records, workloads }
    }

    /// Makes the sockets again that a life before this one had made: kubelet would have them made
    /// too, but only after up to a minute.
    pub fn mount_again(&self, host: &Host) {
        for pod in self.all() {
            self.call_where_it_wants(&pod.record.pod.uid);
            let Some(target) = &pod.record.target else { continue };
            let target = host.path(target);
            if !target.is_dir() {
                continue;
            }
            if pod.record.filled {
                self.occupy(&pod.record, (&target, host), Occupied::Filled);
                continue;
            }
            // Kubelet asks again for a folder that was never whole.
            if pod.record.wishes().mode == Mode::Directory {
                continue;
            }
            let again = self.mounted(pod.record.clone(), &target.join(AGENT_SOCKET));
            if let Err(error) = again {
                warn!(pod = %pod.record.pod, error = %Chain(&error), "socket not made again");
            }
        }
    }

    /// What a pod's volume is to be, once its annotations are known, or could have been.
    pub async fn mode_of(&self, record: &PodRecord) -> Mode {
        let mut ear = self.bell.ear();
        let until = Instant::now() + ANNOTATIONS;
        loop {
            let record = self.merged(record.clone());
            let mode = record.wishes().mode;
            let is_open = mode == Mode::None && record.annotations.is_none();
            if !is_open || tokio::time::timeout_at(until, ear.rung()).await.is_err() {
                return mode;
            }
        }
    }

    /// Takes in a pod whose volume is a folder, has it filled, and says how far that is. It may be
    /// used once it is done, and the agent will know that it was.
    pub async fn occupied(
        &self,
        record: PodRecord,
        (at, host): (&Path, &Host),
    ) -> io::Result<Fill> {
        let record = self.put(self.merged(record)).record;
        let uid = record.pod.uid.clone();
        if !record.filled {
            std::fs::create_dir_all(at)?;
            let mut filling = self.filling(&record, (at, host));
            let settled = filling.wait_for(|fill| !matches!(fill, Fill::UnderWay(_)));
            let settled = tokio::time::timeout(FILL_WAIT, settled).await;
            // Who fills is gone only with the agent.
            drop(settled.map(|settled| settled.map(drop)));
            let fill = filling.borrow().clone();
            if fill != Fill::Done {
                return Ok(fill);
            }
            self.put(PodRecord { filled: true, ..self.merged(record) });
        } else if self.one(&uid).is_none_or(|pod| pod.volume != Volume::Mounted) {
            self.occupy(&record, (at, host), Occupied::Filled);
        }
        self.change(&uid, |pod| pod.volume = Volume::Mounted);
        self.written(&uid).await;
        Ok(Fill::Done)
    }

    /// Lets the folder of the volume at `target` go: returns once what its workload was asked for
    /// is handed over, or could have been.
    pub async fn vacated(&self, target: &str) {
        let Some(pod) = self.at(target).filter(|pod| pod.record.filled) else { return };
        let uid = pod.record.pod.uid;
        // The plan may not have seen yet that the pod ends.
        let soon = Instant::now() + ASKED_WITHIN;
        let ends = pod.record.ends_at.is_some();
        while ends && !self.workloads.is_asked(&uid) && Instant::now() < soon {
            tokio::time::sleep(LOOK).await;
        }
        self.workloads.vacate(&uid);
        let until = Instant::now() + HAND_OVER;
        while self.workloads.is_to_hand_over(&uid) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn filling(&self, record: &PodRecord, place: (&Path, &Host)) -> watch::Receiver<Fill> {
        let uid = &record.pod.uid;
        let before = self.table().fills.get(uid).cloned();
        let goes_on = before.filter(|fill| !matches!(*fill.borrow(), Fill::Failed(_)));
        goes_on.unwrap_or_else(|| self.occupy(record, place, Occupied::Empty))
    }

    fn occupy(
        &self,
        record: &PodRecord,
        (at, host): (&Path, &Host),
        occupied: Occupied,
    ) -> watch::Receiver<Fill> {
        let place = (at.to_owned(), host.root().to_owned());
        let fill = self.workloads.occupy(entry(record), place, occupied);
        self.table().fills.insert(record.pod.uid.clone(), fill.clone());
        if occupied == Occupied::Filled {
            self.change(&record.pod.uid, |pod| pod.volume = Volume::Mounted);
        }
        fill
    }

    /// Returns when what is kept of a pod is on disk.
    async fn written(&self, uid: &PodUid) {
        let is_written = || {
            let table = self.table();
            !table.unwritten.contains(uid) && table.writing.as_ref() != Some(uid)
        };
        while !is_written() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A volume's record, with what else is known of its pod.
    fn merged(&self, record: PodRecord) -> PodRecord {
        match self.one(&record.pod.uid) {
            Some(known) => {
                PodRecord { target: record.target, attributes: record.attributes, ..known.record }
            }
            None => record,
        }
    }

    fn at(&self, target: &str) -> Option<Pod> {
        let is_at = |pod: &Pod| pod.record.target.as_deref() == Some(target);
        self.all().into_iter().find(is_at)
    }

    /// Takes in a pod whose volume is wanted, and makes its socket unless it is there.
    pub fn mounted(&self, record: PodRecord, at: &Path) -> io::Result<()> {
        let uid = record.pod.uid.clone();
        let pod = self.put(self.merged(record));
        if pod.volume == Volume::Mounted && at.exists() {
            return Ok(());
        }
        if pod.record.wishes().mode == Mode::Http {
            // It is called, and connects to nothing.
            std::fs::create_dir_all(at.parent().unwrap_or(at))?;
            self.change(&uid, |pod| pod.volume = Volume::Mounted);
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
        let Some(pod) = self.at(target) else { return };
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
        record.address = row.address.as_deref().copied().or(record.address);
        let uid = record.pod.uid.clone();
        self.put(record);
        self.change(&uid, |pod| pod.presence = Presence::Present);
        self.call_where_it_wants(&uid);
    }

    /// Calls a pod in http mode from now on, once its address is known.
    fn call_where_it_wants(&self, uid: &PodUid) {
        let Some(pod) = self.one(uid) else { return };
        let wishes = pod.record.wishes();
        let (Some(target), Some(own)) = (&wishes.http, pod.record.address) else { return };
        if wishes.mode != Mode::Http || !self.table().called.insert(uid.clone()) {
            return;
        }
        match Address::new(own, target) {
            Ok(address) => self.workloads.call(entry(&pod.record), address),
            Err(error) => warn!(pod = %pod.record.pod, error = %Chain(&error), "pod not called"),
        }
    }

    /// Takes note that the API server has a pod no more.
    pub fn gone(&self, uid: &str) {
        if let Ok(uid) = uid.parse() {
            self.change(&uid, |pod| pod.presence = Presence::Gone);
            if self.table().called.contains(&uid) {
                self.workloads.unpublish(&uid);
            }
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
        self.table().fills.remove(uid);
        self.table().called.remove(uid);
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
            let next = {
                let mut table = self.table();
                table.writing = table.unwritten.pop_first();
                table.writing.clone()
            };
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

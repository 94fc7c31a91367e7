//! The protected workloads of a node: their sockets, their saves and their restores.
//!
//! [`Workloads`] is the handle that the agent's loop holds; [`Driver`] is the one task that does
//! the work. Dropping the driver ends all of it.

mod facts;
mod frames;
mod hello;
mod life;
mod line;
mod lives;
mod look;
mod registry;
mod restoring;
mod saving;
mod session;
mod stand_in;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::budget::Rate;
use lifeboat_domain::ids::JobKey;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::ids::Step;
use lifeboat_domain::node::facts::Asked;
use lifeboat_domain::node::facts::Quiet;
use lifeboat_domain::node::facts::Restore;
use lifeboat_domain::node::facts::Session;
use lifeboat_domain::node::outlook::Outlook;
use lifeboat_domain::node::plan::Notice;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::Proof;
use lifeboat_domain::workload::Stored;
use lifeboat_domain::workload::Wishes;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tracing::error;

use crate::adapters::pod_http::Address;
use crate::adapters::store::Store;
use crate::agent::workloads::registry::Registry;
use crate::agent::workloads::stand_in::Coming;
use crate::clock::Clock;
use crate::data::scheduler::Direction;
use crate::data::scheduler::Scheduler;
use crate::data::spool::Spool;
use crate::offload::Offload;

/// Orders that may wait to be taken up.
const ORDERS_MAX: usize = 4096;

/// Who this agent is, for the manifests it writes.
#[derive(Clone, Debug)]
pub struct Place {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: String,
    /// Its EC2 instance, where known.
    pub instance: Option<String>,
    /// What every path in the bucket begins with.
    pub prefix: String,
    /// Bytes of a chunk, which is also what a slot of a ring holds.
    pub chunk: u64,
    /// Bytes read and not yet stored, at most: so many are kept warm.
    pub in_flight: u64,
}

/// What the registry works with.
#[derive(Clone, Debug)]
pub struct Means {
    /// The bucket.
    pub store: Store,
    /// Whose bytes are moved next.
    pub scheduler: Scheduler,
    /// The time.
    pub clock: Clock,
    /// Where hashing runs.
    pub offload: Offload,
    /// Who this agent is.
    pub place: Place,
    /// Where memory is put that is saved in the background; none where it is not.
    pub spool: Option<Spool>,
}

/// A pod whose socket is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEntry {
    /// The pod.
    pub pod: PodRef,
    /// What its annotations ask for.
    pub wishes: Wishes,
    /// `terminationGracePeriodSeconds`.
    pub grace: Duration,
    /// `spec.priority`.
    pub pod_priority: i32,
}

/// What is known of one pod's workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The pod.
    pub pod: PodRef,
    /// Whether it can be asked.
    pub session: Session,
    /// What it was last asked.
    pub asked: Asked,
    /// How far its saving is.
    pub checkpoint: Checkpoint,
    /// The newest save that was made in case.
    pub insurance: Option<Stored>,
    /// The job key whose work is done, and the epoch that says so: for the index alone.
    pub finished: Option<(JobKey, Stored)>,
    /// How many bytes a save of it takes.
    pub size: Option<u64>,
    /// How long a step of it takes, if it counts steps and said so.
    pub step_time: Option<Duration>,
    /// How long it stood still for the last save after which it went on.
    pub stall: Option<Duration>,
    /// When it was last saved, or that was tried, or since when it runs; none if its state cannot
    /// be taken in the background, or nobody knows that it can.
    pub background_since: Option<Timestamp>,
    /// Whether it does anything.
    pub quiet: Quiet,
    /// When its SDK saw SIGTERM.
    pub terminating: Option<Timestamp>,
    /// Whether it waits in `restore()`. Which proof there is, others know.
    pub restore: Restore,
    /// Its processes, as the node numbers them.
    pub pids: BTreeSet<u32>,
    /// Steps completed, as it last said.
    pub step: Option<Step>,
}

/// The registry of the node's workloads. Clones share it.
#[derive(Clone, Debug)]
pub struct Workloads {
    orders: mpsc::Sender<Order>,
    known: watch::Receiver<Arc<Vec<Known>>>,
    scheduler: Scheduler,
}

/// Does the work of the registry, for as long as it is run.
#[derive(Debug)]
pub struct Driver {
    orders: mpsc::Receiver<Order>,
    known: watch::Sender<Arc<Vec<Known>>>,
    means: Means,
}

/// How far the filling of a pod's folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fill {
    /// It goes on, or waits for this.
    UnderWay(String),
    /// Everything is there: the containers may start.
    Done,
    /// It will not be, for this reason.
    Failed(String),
}

/// A pod's folder, whose content was filled in an earlier life of the agent, or is still to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupied {
    /// It is still to be filled.
    Empty,
    /// It was filled, and its workload has used it since.
    Filled,
}

/// What the registry is told of a pod's folder.
#[derive(Debug)]
struct FolderVolume {
    path: PathBuf,
    host_root: PathBuf,
    coming: Coming,
    tell: watch::Sender<Fill>,
}

/// What the registry is told to do.
#[derive(Debug)]
enum Order {
    Publish(PodEntry, UnixListener),
    Occupy(PodEntry, FolderVolume),
    Vacate(PodUid),
    Call(PodEntry, Address),
    Update(PodEntry),
    Unpublish(PodUid),
    Ask(PodUid, Notice),
    Save(PodUid),
    CallOff(PodUid),
    Expect(PodUid, Outlook),
    AllowRestore(PodUid, Proof),
}

/// An empty registry, and what drives it.
pub fn registry(means: Means) -> (Workloads, Driver) {
    let (tell, orders) = mpsc::channel(ORDERS_MAX);
    let (publish, known) = watch::channel(Arc::default());
    let scheduler = means.scheduler.clone();
    (Workloads { orders: tell, known, scheduler }, Driver { orders, known: publish, means })
}

impl Workloads {
    /// Serves a pod on its socket; of a pod that is served already, it takes the new socket.
    pub fn publish(&self, entry: PodEntry, listener: UnixListener) {
        self.order(Order::Publish(entry, listener));
    }

    /// Speaks for a pod that has nothing but a folder at `path`, below the host's root. The folder
    /// may be used once that is filled.
    pub fn occupy(
        &self,
        entry: PodEntry,
        (path, host_root): (PathBuf, PathBuf),
        occupied: Occupied,
    ) -> watch::Receiver<Fill> {
        let coming = match occupied {
            Occupied::Empty => Coming::First,
            Occupied::Filled => Coming::Again,
        };
        let (tell, told) = watch::channel(Fill::UnderWay("the history is read".to_owned()));
        let volume = FolderVolume { path, host_root, coming, tell };
        self.order(Order::Occupy(entry, volume));
        told
    }

    /// Calls a pod there when it is to be saved.
    pub fn call(&self, entry: PodEntry, address: Address) {
        self.order(Order::Call(entry, address));
    }

    /// Takes note that nobody writes in a pod's folder any more: its containers have ended.
    pub fn vacate(&self, uid: &PodUid) {
        self.order(Order::Vacate(uid.clone()));
    }

    /// Whether a pod was asked for its state.
    pub fn is_asked(&self, uid: &PodUid) -> bool {
        let known = self.known.borrow();
        let found = known.iter().find(|known| known.pod.uid == *uid);
        found.is_some_and(|known| matches!(known.asked, Asked::Save { .. }))
    }

    /// Whether a pod was asked for its state and has not handed it over: its folder must stay.
    pub fn is_to_hand_over(&self, uid: &PodUid) -> bool {
        let known = self.known.borrow();
        let found = known.iter().find(|known| known.pod.uid == *uid);
        found.is_some_and(|known| {
            let asked = matches!(known.asked, Asked::Save { .. });
            asked
                && matches!(known.checkpoint, Checkpoint::Asked | Checkpoint::Idle)
                && known.session == Session::Open
        })
    }

    /// Takes in what is now known of a pod.
    pub fn update(&self, entry: PodEntry) {
        self.order(Order::Update(entry));
    }

    /// Ends the service of a pod: kubelet says that its containers have ended.
    pub fn unpublish(&self, uid: &PodUid) {
        self.order(Order::Unpublish(uid.clone()));
    }

    /// Tells a workload to hand its state over at its next safe point.
    ///
    /// Asked again, it is told a tighter deadline or a graver purpose.
    pub fn ask(&self, uid: &PodUid, notice: Notice) {
        self.order(Order::Ask(uid.clone(), notice));
    }

    /// Stores what a workload hands over.
    pub fn save(&self, uid: &PodUid) {
        self.order(Order::Save(uid.clone()));
    }

    /// Tells a workload to go on, and forgets what it handed over.
    pub fn call_off(&self, uid: &PodUid) {
        self.order(Order::CallOff(uid.clone()));
    }

    /// Tells a workload what is to be expected of its save.
    pub fn expect(&self, uid: &PodUid, outlook: Outlook) {
        self.order(Order::Expect(uid.clone(), outlook));
    }

    /// Lets the `restore()` of a pod return: its predecessor has ended.
    pub fn allow_restore(&self, uid: &PodUid, proof: Proof) {
        self.order(Order::AllowRestore(uid.clone(), proof));
    }

    /// What is known of every pod that is served, in the order of UIDs.
    pub fn workloads(&self) -> Vec<Known> {
        let mut known = self.known.borrow().as_ref().clone();
        for one in &mut known {
            if let Checkpoint::Saving { stored, total, .. } = &mut one.checkpoint
                && let Some(moved) = self.scheduler.moved(&one.pod.uid, Direction::is_save)
            {
                (*stored, *total) = (moved.done, Some(moved.total));
            }
        }
        known
    }

    /// The pods whose work is done, with its job key and the epoch that says so.
    pub fn ends(&self) -> Vec<(PodRef, JobKey, Stored)> {
        let known = self.known.borrow();
        let end = |one: &Known| {
            let (job_key, stored) = one.finished.clone()?;
            Some((one.pod.clone(), job_key, stored))
        };
        known.iter().filter_map(end).collect()
    }

    /// How fast the node stores.
    pub fn rate(&self) -> Rate {
        self.scheduler.rate()
    }

    /// Returns when something other than the number of stored bytes has changed since this handle
    /// last returned from here.
    pub async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            // The driver is gone, so nothing will change any more.
            std::future::pending::<()>().await;
        }
    }

    fn order(&self, order: Order) {
        if let Err(refused) = self.orders.try_send(order) {
            error!(error = %refused, "order to the workloads' registry lost");
        }
    }
}

impl Driver {
    /// Works until it is dropped.
    pub async fn run(self) {
        let Self { orders, known, means } = self;
        Registry::new(means).run(orders, known).await;
    }
}

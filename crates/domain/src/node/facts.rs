//! All that the node's side may look at to decide, taken at one moment.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::budget::Rate;
use crate::cluster::facts::Pause;
use crate::deadline::Deadline;
use crate::ids::Epoch;
use crate::ids::JobKey;
use crate::ids::NodeName;
use crate::ids::PodRef;
use crate::ids::PodUid;
use crate::signal::Signals;
use crate::workload::Containers;
use crate::workload::Ending;
use crate::workload::Mode;
use crate::workload::Proof;
use crate::workload::Purpose;
use crate::workload::Report;

/// What is true of one node, as its agent can know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFacts {
    /// The one moment of all of it.
    pub observed_at: Timestamp,
    /// The node.
    pub node: NodeName,
    /// Everything that was told about its instance, by IMDS or by the record.
    pub signals: Signals,
    /// Whether the node, or all of Lifeboat, is paused, as far as the agent can tell.
    pub paused: Pause,
    /// How fast it stores.
    pub rate: Rate,
    /// The protected pods that are or were on it, and those that wait to restore.
    pub workloads: BTreeMap<PodUid, Workload>,
}

/// One protected pod on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// The pod.
    pub pod: PodRef,
    /// What its checkpoint belongs to.
    pub job_key: Option<JobKey>,
    /// How it is saved.
    pub mode: Mode,
    /// `terminationGracePeriodSeconds`.
    pub own_grace: Duration,
    /// `spec.priority`.
    pub pod_priority: i32,
    /// Its place within its namespace.
    pub priority: i32,
    /// Whether its namespace is paused.
    pub paused: Pause,
    /// Whether it can be asked.
    pub session: Session,
    /// What it was last asked; nothing before the first time, and after a save for insurance.
    pub asked: Asked,
    /// How far its saving is, what it holds, and whether that is free.
    pub report: Report,
    /// How many bytes a save of it takes, by the last one or by what it holds.
    pub size: Option<u64>,
    /// How long a step of it takes, if it counts steps and said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_time: Option<Duration>,
    /// How long it stood still for the last save after which it went on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<Duration>,
    /// When it was last saved, or that was tried, or since when it runs; none if its state cannot
    /// be taken in the background, or nobody knows that it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background_since: Option<Timestamp>,
    /// Whether it does anything.
    pub quiet: Quiet,
    /// Whether its pod is being ended: a deletion timestamp, or SIGTERM seen by its SDK.
    pub ending: Ending,
    /// Whether its containers run.
    pub containers: Containers,
    /// Whether it waits in `restore()`.
    pub restore: Restore,
    /// What others were last told of it.
    pub told: Told,
}

/// Whether a workload can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Session {
    /// Nobody said hello, and there is nobody to call.
    None,
    /// It can be told. So can a directory or http workload, which says no hello.
    Open,
    /// It handed its state over, or is ready to: `save` may begin.
    HandedOver {
        /// How many bytes, if known.
        bytes: Option<u64>,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// What a workload was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// To save.
    Save {
        /// Why.
        purpose: Purpose,
        /// Until when; none if there is no hurry.
        deadline: Option<Deadline>,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// Whether a workload does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quiet {
    /// It runs.
    Running,
    /// It is parked in `step()`.
    Parked,
    /// We froze it.
    Frozen,
    /// It is frozen since before this agent started.
    FrozenBefore,
    /// We thawed it, and leave it so.
    Thawed,
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// Whether a workload waits to go on from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Restore {
    /// It does not.
    No,
    /// It does, for the end of who made the checkpoint.
    Waiting {
        /// What it restores.
        epoch: Epoch,
        /// The pod that made it.
        from: PodUid,
        /// The deadline that stands in the manifest.
        deadline: Option<Deadline>,
        /// The proof in `WorkloadCheckpoint.status.ended`, if it is there.
        proof: Option<Proof>,
    },
    /// It was let through.
    Allowed {
        /// By what.
        proof: Proof,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

/// What others were last told of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Told {
    /// Nothing.
    Nothing,
    /// This.
    Report {
        /// What.
        report: Report,
        /// When.
        at: Timestamp,
    },
    /// We do not know.
    #[serde(other)]
    Unknown,
}

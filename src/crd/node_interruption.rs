//! `NodeInterruption`: the record of one interruption, named by its instance.
#![allow(clippy::duplicated_attributes, reason = "each printer column has a name and a type")]
#![expect(unreachable_pub, reason = "the derive repeats the type inside a function")]

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::CustomResource;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use super::schema::Count;
use super::schema::Time;
use super::schema::open_enum;

/// What EC2 said about one instance.
///
/// Each writer applies its own entry of `signals` under its own field manager; an entry never
/// changes and never goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "lifeboat.dev",
    version = "v1alpha1",
    kind = "NodeInterruption",
    status = "NodeInterruptionStatus",
    shortname = "ni",
    category = "lifeboat",
    derive = "PartialEq",
    selectable = ".spec.node",
    doc = "One interruption of one EC2 instance: what was heard, what was done, and what was saved. Named by the instance id.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Deadline", type_ = "string", json_path = ".status.deadline"),
    printcolumn(name = "Slack", type_ = "string", json_path = ".status.slack"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.bytes"),
    printcolumn(name = "Closed", type_ = "date", json_path = ".status.closedAt"),
    printcolumn(name = "Zone", type_ = "string", json_path = ".spec.zone", priority = "1"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.instanceType", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeInterruptionSpec {
    /// The node's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = ("self == oldSelf", "the node of an interruption never changes"))]
    pub node: String,
    /// The availability zone.
    #[schemars(length(max = 63))]
    #[x_kube(validation = ("self == oldSelf", "the zone of an interruption never changes"))]
    pub zone: String,
    /// The instance type, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub instance_type: Option<String>,
    /// What was heard, by `<source>-<kind>`.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 16))]
    #[x_kube(validation = (
        "oldSelf.all(key, key in self && self[key] == oldSelf[key])",
        "a signal that was recorded never changes",
    ))]
    pub signals: BTreeMap<String, Signal>,
}

/// One thing that was heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Signal {
    /// Who told: `queue`, `imds`, …
    #[schemars(length(max = 63))]
    pub source: String,
    /// What was told: `interruption`, `rebalance`, …
    #[schemars(length(max = 63))]
    pub kind: String,
    /// When EC2 said it.
    #[schemars(with = "Time")]
    pub time: Timestamp,
    /// When the instance may be gone, where that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub deadline: Option<Timestamp>,
    /// When we heard it.
    #[schemars(with = "Time")]
    pub heard_at: Timestamp,
    /// Which of us heard it: the pod's name.
    #[schemars(length(max = 253))]
    pub heard_by: String,
    /// What becomes of the instance, where that was said: `terminate`, `stop` or `hibernate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub action: Option<String>,
    /// The state that the instance changed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub state: Option<String>,
    /// What else was said, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub detail: Option<String>,
}

/// What was done about it. Phase, deadline and conditions are derived on writing, and read by
/// nobody but people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeInterruptionStatus {
    /// Where it stands, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub phase: Option<String>,
    /// The earliest deadline of all signals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub deadline: Option<Timestamp>,
    /// For `kubectl wait`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map"))]
    #[schemars(extend("x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// What became of each protected pod, by its UID.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub workloads: BTreeMap<String, Workload>,
    /// Whether and when the node was fenced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// When each pod was held, by its UID.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, Time>")]
    pub holds: BTreeMap<String, Timestamp>,
    /// The replacement that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<Replacement>,
    /// When the record closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub closed_at: Option<Timestamp>,
    /// What was left when the last protected pod was durable, like `82s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub slack: Option<String>,
    /// Bytes saved, of all workloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Count>")]
    pub bytes: Option<u64>,
}

/// A condition as Kubernetes has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is or is not.
    #[schemars(length(max = 63))]
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(length(max = 7))]
    pub status: String,
    /// Why, in one word.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// Why, in a sentence.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Since when.
    #[schemars(with = "Time")]
    pub last_transition_time: Timestamp,
}

/// What became of one protected pod: `save`, `insurance`, `slices` and `release` are the agent's,
/// `drain` the controller's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// The pod's namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// The pod's name.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// The name under which it is saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub job_key: Option<String>,
    /// How it is saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub mode: Option<String>,
    /// How far its checkpoint is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save: Option<Save>,
    /// The newest save that was made in case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insurance: Option<Save>,
    /// The slices that it holds or held, where that is known: who shares one waits for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub slices: Option<Vec<HeldSlice>>,
    /// Whether its slice is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    /// How it was ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
}

open_enum! {
    /// How far a checkpoint is.
    SaveState {
        /// Nothing was asked yet.
        Idle = "Idle",
        /// The workload was told.
        Asked = "Asked",
        /// Its state is being stored.
        Saving = "Saving",
        /// Its manifest is committed.
        Durable = "Durable",
        /// It will not be saved.
        Failed = "Failed",
    }
}

/// How far a pod's checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Save {
    /// How far it is.
    pub state: SaveState,
    /// The number of its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Count>")]
    pub epoch: Option<u64>,
    /// The number of steps that were done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Count>")]
    pub step: Option<u64>,
    /// Bytes that are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Count>")]
    pub bytes: Option<u64>,
    /// Bytes that there are to store, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Count>")]
    pub of_bytes: Option<u64>,
    /// When the workload was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub started_at: Option<Timestamp>,
    /// When the manifest was committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub durable_at: Option<Timestamp>,
    /// What is to be expected of it, while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub error: Option<String>,
    /// When the agent last said so, in the index of a job key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub told_at: Option<Timestamp>,
}

/// What is to be expected of a save: an estimate, and by what it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    /// When it will be stored.
    #[schemars(with = "Time")]
    pub at: Timestamp,
    /// What will be left then, like `82s`, or `will not fit`; absent where there is no deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub margin: Option<String>,
    /// Bytes stored in a second.
    #[schemars(with = "Count")]
    pub bytes_per_second: u64,
    /// How that rate is known: `measured`, `configured`, or `baseline`, which is what the smallest
    /// node has.
    #[schemars(length(max = 63))]
    pub by: String,
}

/// A part of a GPU that a pod holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeldSlice {
    /// The device as NVML knows it, and the replica: `GPU-<uuid>::<n>`.
    #[schemars(length(max = 253))]
    pub device: String,
    /// `whole`, `time-sliced`, `mps` or `mig`.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// The MIG profile, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub profile: Option<String>,
}

/// That nothing of a pod is left on its slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// The device id that kubelet gave.
    #[schemars(length(max = 253))]
    pub slice: String,
    /// Whole, time-sliced, mps or mig.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// When it was first seen empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub first: Option<Timestamp>,
    /// When it was seen empty again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub second: Option<Timestamp>,
    /// When it was called released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub released_at: Option<Timestamp>,
}

open_enum! {
    /// How a pod was ended.
    DrainBy {
        /// By eviction.
        Evict = "Evict",
        /// By deletion, with the condition `DisruptionTarget` first.
        Delete = "Delete",
    }
}

/// How a pod was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// When it was decided.
    #[schemars(with = "Time")]
    pub decided: Timestamp,
    /// By eviction or deletion.
    pub by: DrainBy,
    /// Why, as the plan said.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// The grace it was given, in seconds.
    #[schemars(with = "Count")]
    pub grace: u64,
    /// When the API server agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub evicted_at: Option<Timestamp>,
    /// When the pod was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub gone_at: Option<Timestamp>,
    /// How often a budget refused.
    #[serde(default)]
    #[schemars(with = "Count")]
    pub refusals: u64,
}

/// How the node was closed to new pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fence {
    /// When.
    #[schemars(with = "Time")]
    pub at: Timestamp,
    /// The taint's value.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// Whether somebody else had cordoned the node before.
    #[serde(default)]
    pub cordoned_before: bool,
}

/// The replacement that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Replacement {
    /// Each claim in the order of asking.
    #[serde(default)]
    pub claims: Vec<Claim>,
    /// Why none was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub none: Option<String>,
}

/// One claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The claim's name: `<instance>-<attempt>`.
    #[schemars(length(max = 253))]
    pub name: String,
    /// When it was asked for.
    #[schemars(with = "Time")]
    pub asked_at: Timestamp,
    /// What it leaves out: the type, or the zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub without: Option<String>,
    /// When it had a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub ready_at: Option<Timestamp>,
    /// When it was gone, for lack of capacity or of use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Time>")]
    pub gone_at: Option<Timestamp>,
}

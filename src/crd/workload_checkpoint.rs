//! `WorkloadCheckpoint`: the index of what is saved under one job key. The manifest in the bucket
//! is the truth.
#![allow(clippy::duplicated_attributes, reason = "each printer column has a name and a type")]
#![expect(unreachable_pub, reason = "the derive repeats the type inside a function")]

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::CustomResource;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::node_interruption::Save;
use super::node_interruption::SaveState;
use super::schema::Count;
use super::schema::Time;
use super::schema::open_enum;

/// What is saved under one job key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "lifeboat.dev",
    version = "v1alpha1",
    kind = "WorkloadCheckpoint",
    namespaced,
    status = "WorkloadCheckpointStatus",
    shortname = "wc",
    category = "lifeboat",
    derive = "PartialEq",
    doc = "What is saved under one job key. An index: the manifest in the bucket is the truth.",
    printcolumn(name = "Key", type_ = "string", json_path = ".spec.jobKey"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.newest.epoch"),
    printcolumn(name = "Step", type_ = "integer", json_path = ".status.newest.step"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.newest.bytes"),
    printcolumn(name = "Durable", type_ = "date", json_path = ".status.newest.durableAt"),
    printcolumn(name = "Fits", type_ = "boolean", json_path = ".status.outlook.fits"),
    printcolumn(
        name = "Needed",
        type_ = "integer",
        json_path = ".status.outlook.needed",
        priority = "1"
    ),
    printcolumn(
        name = "Window",
        type_ = "integer",
        json_path = ".status.outlook.window",
        priority = "1"
    ),
    printcolumn(name = "Finished", type_ = "boolean", json_path = ".status.finished"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadCheckpointSpec {
    /// The job key.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = ("self == oldSelf", "the job key of a checkpoint never changes"))]
    pub job_key: String,
}

/// What is saved, and who has ended. `newest`, `saves` and `outlook` are the agent's, `ended` the
/// controller's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadCheckpointStatus {
    /// The newest committed manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<Newest>,
    /// How far the saves of pods are, or went, that were ended without an interruption of their
    /// node, by pod UID. One under way is told again every 15 s: who waits for it takes it for
    /// given up a minute after the last word.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 1024))]
    pub saves: BTreeMap<String, Save>,
    /// Which pods have ended, and how we know, by pod UID: what lets a restore through.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 1024))]
    pub ended: BTreeMap<String, Ended>,
    /// Whether the work is done, so that nothing is restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<bool>,
    /// That its state could not be saved if its node were interrupted, or could again; absent where
    /// nothing was ever amiss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlook: Option<Outlook>,
}

/// Whether a state could be saved if its node were interrupted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outlook {
    /// Whether it could.
    pub fits: bool,
    /// The pod.
    #[schemars(length(max = 253))]
    pub pod: String,
    /// Its node, whose network and other workloads count.
    #[schemars(length(max = 253))]
    pub node: String,
    /// When that was found.
    #[schemars(with = "Time")]
    pub at: Timestamp,
    /// Bytes to store.
    #[schemars(with = "Count")]
    pub bytes: u64,
    /// How long a notice would leave, in seconds.
    #[schemars(with = "Count")]
    pub window: u64,
    /// How long its step and all that is stored before it would take, and it itself, in seconds.
    #[schemars(with = "Count")]
    pub needed: u64,
    /// Bytes stored in a second.
    #[schemars(with = "Count")]
    pub bytes_per_second: u64,
    /// How that rate is known: `measured`, `configured`, or `baseline`, which is what the smallest
    /// node has.
    #[schemars(length(max = 63))]
    pub by: String,
}

/// The newest committed manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Newest {
    /// Its number.
    #[schemars(with = "Count")]
    pub epoch: u64,
    /// The number of steps that were done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Count>")]
    pub step: Option<u64>,
    /// The bytes it names.
    #[serde(default)]
    #[schemars(with = "Count")]
    pub bytes: u64,
    /// When it was committed.
    #[schemars(with = "Time")]
    pub durable_at: Timestamp,
    /// The pod that was saved.
    #[schemars(length(max = 63))]
    pub pod_uid: String,
    /// The node it was on.
    #[schemars(length(max = 253))]
    pub node: String,
    /// How long it stood still for it, where it went on afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Count>")]
    pub stall_milliseconds: Option<u64>,
}

open_enum! {
    /// How we know that a pod has ended.
    Proof {
        /// The agent saw its slice free, twice in a row.
        Released = "Released",
        /// kubelet says that its containers ended.
        ContainersEnded = "ContainersEnded",
        /// EC2 says that its instance is going or gone.
        InstanceGone = "InstanceGone",
        /// Its node is gone, or not ready 30 s past the deadline.
        NodeGone = "NodeGone",
        /// 30 s past the deadline that stands in its manifest.
        PastDeadline = "PastDeadline",
        /// The pod is gone from the API server, its grace over.
        PodDeleted = "PodDeleted",
    }
}

/// That a pod has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// The manifest it left, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Count>")]
    pub epoch: Option<u64>,
    /// How we know.
    pub proof: Proof,
    /// When we knew.
    #[schemars(with = "Time")]
    pub at: Timestamp,
}

/// Entries of an index that stay, of each kind; the schema takes four times as many.
pub const KEPT: usize = 256;

impl WorkloadCheckpointStatus {
    /// The entries that are to go, as a merge patch of the status: the oldest beyond [`KEPT`], and
    /// of the saves only those of which nothing more will come. None if there are none.
    pub fn surplus(&self) -> Option<Value> {
        let settled = |save: &Save| match save.state {
            SaveState::Durable | SaveState::Failed => true,
            SaveState::Idle | SaveState::Asked | SaveState::Saving | SaveState::Unknown => false,
        };
        let saves = self.saves.iter().filter(|(_, save)| settled(save));
        let saves = saves.map(|(uid, save)| (save.told_at.or(save.durable_at), uid));
        let ended = self.ended.iter().map(|(uid, ended)| (Some(ended.at), uid));
        let (saves, ended) = (oldest(saves, self.saves.len()), oldest(ended, self.ended.len()));
        let patch = json!({"saves": saves, "ended": ended});
        (!saves.is_empty() || !ended.is_empty()).then_some(patch)
    }
}

/// The oldest of these, so that no more than [`KEPT`] of `all` stay, each as what removes it.
fn oldest<'a>(
    entries: impl Iterator<Item = (Option<Timestamp>, &'a String)>,
    all: usize,
) -> Map<String, Value> {
    let mut entries: Vec<_> = entries.collect();
    entries.sort();
    let beyond = entries.into_iter().take(all.saturating_sub(KEPT));
    beyond.map(|(_, uid)| (uid.clone(), Value::Null)).collect()
}

/// The name of the index of `job_key`: its own letters where Kubernetes takes them, and a hash, so
/// that two keys never share a name.
pub fn name_of(job_key: &str) -> String {
    let plain: String = job_key
        .chars()
        .map(|letter| letter.to_ascii_lowercase())
        .map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' })
        .take(40)
        .collect();
    let hash = blake3::hash(job_key.as_bytes()).to_hex();
    match plain.trim_matches('-') {
        "" => hash[..16].to_owned(),
        plain => format!("{plain}-{}", &hash[..10]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_by_kubernetes_and_by_one_key_only() {
        let names =
            ["train", "Train", "train/0", "train-0", "…", "-", &"x".repeat(300)].map(name_of);
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        for name in &names {
            let inside = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
            assert!(name.len() <= 63, "{name}");
            assert!(name.starts_with(inside) && name.ends_with(inside), "{name}");
            assert!(name.chars().all(|letter| inside(letter) || letter == '-'), "{name}");
        }
    }

    #[test]
    fn the_oldest_that_are_settled_go_and_what_is_under_way_stays() {
        let at = |second: usize| Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
        let proof = Proof::ContainersEnded;
        let mut status = WorkloadCheckpointStatus::default();
        for place in 0..KEPT {
            let ended = Ended { epoch: None, proof, at: at(place) };
            status.ended.insert(format!("pod-{place}"), ended);
        }
        assert_eq!(status.surplus(), None);
        let newest = Ended { epoch: None, proof, at: at(KEPT) };
        status.ended.insert("another".to_owned(), newest);
        for place in 0..KEPT + 2 {
            let state = if place == 0 { "Saving" } else { "Durable" };
            let told = json!({"state": state, "toldAt": at(place).to_string()});
            status.saves.insert(format!("pod-{place}"), serde_json::from_value(told).unwrap());
        }
        let expected = json!({"saves": {"pod-1": null, "pod-2": null}, "ended": {"pod-0": null}});
        assert_eq!(status.surplus(), Some(expected));
    }

    #[test]
    fn a_proof_of_a_later_release_is_unknown_and_no_error() {
        let ended: Ended = serde_json::from_str(
            r#"{"epoch":3,"proof":"Witnessed","at":"2026-01-01T00:00:00Z","more":1}"#,
        )
        .unwrap();
        assert_eq!(ended.proof, Proof::Unknown);
    }
}

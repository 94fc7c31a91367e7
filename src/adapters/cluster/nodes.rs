//! Nodes: rows, and the guarded patches that fence them and take the fence back.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::Write;
use crate::adapters::cluster::marks;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::rows::Row;
use crate::crd::marks as our;

/// How often a guarded patch is tried: each time on what was read anew.
const TRIES: usize = 3;

/// What we read of a node.
#[derive(Clone, Debug)]
pub struct Nodes;

/// A node's wanted state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    #[serde(default, rename = "providerID")]
    provider_id: Option<String>,
    #[serde(default)]
    unschedulable: Option<bool>,
    /// Kept as it came: a guarded patch must repeat it to the letter.
    #[serde(default)]
    taints: Option<Vec<Value>>,
}

/// A node's actual state.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
    #[serde(default)]
    allocatable: BTreeMap<String, Value>,
}

/// A condition of any object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for why.
    #[serde(default)]
    pub reason: Option<String>,
    /// Since when.
    #[serde(default)]
    pub last_transition_time: Option<Timestamp>,
}

/// A node, as far as an interruption needs it.
#[derive(Clone, Debug)]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The EC2 instance that it is; the row's group.
    pub instance: Option<String>,
    /// Its zone, from the label or the provider id.
    pub zone: Option<String>,
    /// Whether it is cordoned, by anyone.
    pub unschedulable: Option<bool>,
    /// Its taints as they came.
    pub taints: Option<Vec<Value>>,
    /// All its labels: what a replacement must offer too.
    pub labels: BTreeMap<String, String>,
    /// Ours, and Karpenter's do-not-disrupt; `None` if it has no annotations at all.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Whether kubelet reports it ready, and since when.
    pub ready: Option<(bool, Option<Timestamp>)>,
    /// When its deletion was asked for.
    pub deleted_at: Option<Timestamp>,
    /// Extended resources that it offers, as `nvidia.com/gpu`.
    pub extended: BTreeMap<String, u64>,
}

/// Our fence, as the node shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// When it was put up.
    pub at: Option<Timestamp>,
    /// Whether somebody had cordoned the node before us: then it stays so.
    pub cordoned_before: bool,
}

/// Something that we set on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours {
    /// The taint of an interruption, and the cordon if nobody had cordoned before.
    Fence,
    /// The soft taint.
    SoftTaint,
    /// Karpenter's do-not-disrupt with our mark beside it.
    Block,
    /// The taint that a new node comes with, by its pool's wish.
    StartupTaint,
}

/// What a fence or a soft taint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patched {
    /// It was not so, and is now.
    Done,
    /// It was so already.
    Already,
    /// There is no such node.
    NoNode,
}

impl Kind for Nodes {
    type Spec = NodeSpec;
    type Status = NodeStatus;
    type Scope = kube::core::ClusterResourceScope;
    const KIND: &'static str = "Node";
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "nodes";
}

impl Row for NodeRow {
    type Kind = Nodes;
    type Key = String;

    fn read(object: &Object<Nodes>) -> Option<(String, Self)> {
        let row = Self::from_object(object);
        Some((row.name.clone(), row))
    }

    fn group(&self) -> Option<&str> {
        self.instance.as_deref()
    }
}

impl NodeRow {
    fn from_object(object: &Object<Nodes>) -> Self {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let place = object.spec.provider_id.as_deref().and_then(provider);
        let zone = labels.get(marks::ZONE).cloned();
        let ready = object.status.conditions.iter().find(|condition| condition.kind == "Ready");
        Self {
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
            instance: place.map(|(_, instance)| instance.to_owned()),
            zone: zone.or_else(|| place.map(|(zone, _)| zone.to_owned())),
            unschedulable: object.spec.unschedulable,
            taints: object.spec.taints.clone(),
            annotations: object.metadata.annotations.as_ref().map(kept_annotations),
            ready: ready.map(|ready| (ready.status == "True", ready.last_transition_time)),
            deleted_at: object.deleted_at(),
            extended: extended(&object.status.allocatable),
            labels,
        }
    }

    /// Whether one of its taints has this key.
    pub fn has_taint(&self, key: &str) -> bool {
        self.taint(key).is_some()
    }

    /// The value of the taint with this key.
    pub fn taint(&self, key: &str) -> Option<&str> {
        let taint = self.taints.iter().flatten().find(|taint| taint["key"] == key)?;
        Some(taint["value"].as_str().unwrap_or_default())
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Our fence; `None` without its mark.
    pub fn fence(&self) -> Option<Fence> {
        let cordoned_before = self.annotation(our::CORDONED)? == "true";
        let taint = self.taints.iter().flatten().find(|taint| taint["key"] == our::INTERRUPTED);
        let at = taint.and_then(|taint| taint["timeAdded"].as_str()?.parse().ok());
        Some(Fence { at, cordoned_before })
    }
}

/// The API of nodes, for a watch.
pub fn api(cluster: &Cluster) -> Api<Object<Nodes>> {
    Api::all(cluster.watch_client())
}

/// Reads one node from the server itself.
pub async fn read(
    cluster: &Cluster,
    name: &str,
    bound: Duration,
) -> Result<Option<NodeRow>, ClusterError> {
    let object: Option<Object<Nodes>> = cluster.read(&path(name), bound).await?;
    Ok(object.map(|object| NodeRow::from_object(&object)))
}

/// Taints and cordons in one guarded patch, starting from what is known of the node.
///
/// The taints are one atomic list, so the whole new list is written, and `test` guards it with the
/// old one: what somebody else adds meanwhile makes the patch fail, and it is built anew.
pub async fn fence(
    cluster: &Cluster,
    known: &NodeRow,
    kind: &str,
    now: Timestamp,
) -> Result<Patched, ClusterError> {
    guarded(cluster, known, |row| fence_patch(row, kind, now)).await
}

/// Puts the soft taint and the block on voluntary disruption on a node at risk.
pub async fn mark_at_risk(
    cluster: &Cluster,
    known: &NodeRow,
    until: Timestamp,
) -> Result<Patched, ClusterError> {
    guarded(cluster, known, |row| at_risk_patch(row, until)).await
}

/// Blocks Karpenter's voluntary disruption of a node, unless somebody else has.
pub async fn block_disruption(cluster: &Cluster, known: &NodeRow) -> Result<Patched, ClusterError> {
    guarded(cluster, known, block_patch).await
}

/// Takes back whatever we set on a node, and nothing that anybody else did.
pub async fn take_back(cluster: &Cluster, known: &NodeRow) -> Result<Patched, ClusterError> {
    let mut any = Patched::Already;
    for ours in [Ours::Fence, Ours::SoftTaint, Ours::Block, Ours::StartupTaint] {
        match take_back_one(cluster, known, ours).await? {
            Patched::Done => any = Patched::Done,
            Patched::Already => (),
            Patched::NoNode => return Ok(Patched::NoNode),
        }
    }
    Ok(any)
}

/// Takes back one thing that we set on a node, and nothing that anybody else did.
pub async fn take_back_one(
    cluster: &Cluster,
    known: &NodeRow,
    ours: Ours,
) -> Result<Patched, ClusterError> {
    guarded(cluster, known, |row| take_back_patch(row, ours)).await
}

async fn guarded(
    cluster: &Cluster,
    known: &NodeRow,
    build: impl Fn(&NodeRow) -> Option<Vec<Value>>,
) -> Result<Patched, ClusterError> {
    let bound = REQUEST_MAX;
    let mut fresh = None;
    for left in (0..TRIES).rev() {
        let Some(patch) = build(fresh.as_ref().unwrap_or(known)) else {
            return Ok(Patched::Already);
        };
        let write = Write::JsonPatch(Value::Array(patch));
        match cluster.write(&path(&known.name), write, bound).await {
            Ok(_) => return Ok(Patched::Done),
            Err(ClusterError::NotFound { .. }) => return Ok(Patched::NoNode),
            // A `test` that does not hold is answered with 422, not 409.
            Err(ClusterError::Rejected { .. } | ClusterError::Conflict { .. }) if left > 0 => {
                match read(cluster, &known.name, bound).await? {
                    Some(read) if read.uid == known.uid => fresh = Some(read),
                    _ => return Ok(Patched::NoNode),
                }
            }
            Err(error) => return Err(error),
        }
    }
    unreachable!("the last try returns")
}

fn fence_patch(row: &NodeRow, kind: &str, now: Timestamp) -> Option<Vec<Value>> {
    if row.has_taint(our::INTERRUPTED) && row.unschedulable == Some(true) {
        return None;
    }
    let before = row.fence().map(|fence| fence.cordoned_before);
    let cordoned_before = before.unwrap_or(row.unschedulable == Some(true));
    // Seconds, as Kubernetes writes times.
    let taint = json!({
        "key": our::INTERRUPTED,
        "value": kind,
        "effect": "NoSchedule",
        "timeAdded": format!("{now:.0}"),
    });
    let mut patch = taints_patch(row, |key| key == our::INTERRUPTED, Some(taint));
    patch.push(test("/spec/unschedulable", json!(row.unschedulable)));
    patch.push(add("/spec/unschedulable", json!(true)));
    patch.extend(annotate(row, &[(our::CORDONED, cordoned_before.to_string())]));
    Some(patch)
}

fn at_risk_patch(row: &NodeRow, until: Timestamp) -> Option<Vec<Value>> {
    let value = until.as_second().to_string();
    if row.taint(our::AT_RISK) == Some(&value) {
        return None;
    }
    let taint = json!({"key": our::AT_RISK, "value": value, "effect": "PreferNoSchedule"});
    Some(taints_patch(row, |key| key == our::AT_RISK, Some(taint)))
}

fn block_patch(row: &NodeRow) -> Option<Vec<Value>> {
    if row.annotation(our::DO_NOT_DISRUPT).is_some() {
        return None;
    }
    let at = format!("/metadata/annotations/{}", marks::pointer(our::DO_NOT_DISRUPT));
    let mut patch = Vec::new();
    if row.annotations.is_some() {
        patch.push(test(&at, Value::Null));
    }
    let values = [(our::DO_NOT_DISRUPT, "true".to_owned()), (our::BLOCKED, "true".to_owned())];
    patch.extend(annotate(row, &values));
    Some(patch)
}

fn take_back_patch(row: &NodeRow, ours: Ours) -> Option<Vec<Value>> {
    let patch = match ours {
        Ours::Fence => unfence_patch(row),
        Ours::SoftTaint if row.has_taint(our::AT_RISK) => {
            taints_patch(row, |key| key == our::AT_RISK, None)
        }
        Ours::Block if row.annotation(our::BLOCKED).is_some() => {
            strip(row, &[our::BLOCKED, our::DO_NOT_DISRUPT])
        }
        Ours::StartupTaint if row.has_taint(our::AGENT_NOT_READY) => {
            taints_patch(row, |key| key == our::AGENT_NOT_READY, None)
        }
        Ours::SoftTaint | Ours::Block | Ours::StartupTaint => Vec::new(),
    };
    (!patch.is_empty()).then_some(patch)
}

fn unfence_patch(row: &NodeRow) -> Vec<Value> {
    let mut patch = Vec::new();
    if row.has_taint(our::INTERRUPTED) {
        patch.extend(taints_patch(row, |key| key == our::INTERRUPTED, None));
    }
    if row.fence().is_some_and(|fence| !fence.cordoned_before) && row.unschedulable == Some(true) {
        patch.push(test("/spec/unschedulable", json!(true)));
        patch.push(remove("/spec/unschedulable"));
    }
    patch.extend(strip(row, &[our::CORDONED]));
    patch
}

/// Takes annotations away that are as we know them.
fn strip(row: &NodeRow, keys: &[&str]) -> Vec<Value> {
    let mut patch = Vec::new();
    for key in keys {
        if let Some(value) = row.annotation(key) {
            let at = format!("/metadata/annotations/{}", marks::pointer(key));
            patch.push(test(&at, json!(value)));
            patch.push(remove(&at));
        }
    }
    patch
}

/// The whole list without those that `replaced` names, and with `new` at its end.
fn taints_patch(row: &NodeRow, replaced: fn(&str) -> bool, new: Option<Value>) -> Vec<Value> {
    let kept = row.taints.iter().flatten();
    let kept = kept.filter(|taint| !replaced(taint["key"].as_str().unwrap_or_default()));
    let list: Vec<Value> = kept.cloned().chain(new).collect();
    let guard = test("/spec/taints", json!(row.taints));
    if list.is_empty() {
        return vec![guard, remove("/spec/taints")];
    }
    vec![guard, add("/spec/taints", Value::Array(list))]
}

/// Adds annotations one by one, or the whole map where there is none to add to.
fn annotate(row: &NodeRow, values: &[(&str, String)]) -> Vec<Value> {
    if row.annotations.is_none() {
        let map: BTreeMap<&str, &str> =
            values.iter().map(|(key, value)| (*key, value.as_str())).collect();
        return vec![
            test("/metadata/annotations", Value::Null),
            add("/metadata/annotations", json!(map)),
        ];
    }
    let at = |key: &str| format!("/metadata/annotations/{}", marks::pointer(key));
    values.iter().map(|(key, value)| add(&at(key), json!(value))).collect()
}

/// An operation that makes the patch fail unless the value is this; null stands for none.
pub(super) fn test(path: &str, value: impl Into<Value>) -> Value {
    json!({"op": "test", "path": path, "value": value.into()})
}

/// An operation that adds or replaces a value.
pub(super) fn add(path: &str, value: impl Into<Value>) -> Value {
    json!({"op": "add", "path": path, "value": value.into()})
}

/// An operation that takes a value away.
pub(super) fn remove(path: &str) -> Value {
    json!({"op": "remove", "path": path})
}

/// Zone and instance of `aws:///<zone>/<instance>`.
pub(super) fn provider(id: &str) -> Option<(&str, &str)> {
    id.strip_prefix("aws:///")?.split_once('/')
}

fn path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

/// Ours and Karpenter's do-not-disrupt: the rest of a node's annotations is nobody's business here.
fn kept_annotations(all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let kept = |key: &str| key.starts_with(marks::OURS) || key == our::DO_NOT_DISRUPT;
    let kept = all.iter().filter(|(key, _)| kept(key));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Resources with a domain in their name, which are counted in whole numbers.
fn extended(resources: &BTreeMap<String, Value>) -> BTreeMap<String, u64> {
    let count = |value: &Value| match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_u64(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let named = resources.iter().filter(|(name, _)| name.contains('/'));
    named.filter_map(|(name, value)| Some((name.clone(), count(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn row(node: Value) -> NodeRow {
        NodeRow::from_object(&serde_json::from_value(node).unwrap())
    }

    fn bare() -> Value {
        json!({"metadata": {"name": "gpu-1", "uid": "u1", "annotations": {"x": "y"}}})
    }

    #[test]
    fn a_fence_repeats_the_taints_of_others_and_guards_them() {
        let dedicated = json!({"key": "dedicated", "value": "gpu", "effect": "NoSchedule"});
        let mut node = bare();
        node["spec"] = json!({"taints": [dedicated]});

        let patch = fence_patch(&row(node), "spot-interruption", NOW).unwrap();

        let ours = json!({
            "key": "lifeboat.dev/interrupted", "value": "spot-interruption",
            "effect": "NoSchedule", "timeAdded": "1970-01-01T00:00:00Z",
        });
        let expected = [
            test("/spec/taints", json!([dedicated])),
            add("/spec/taints", json!([dedicated, ours])),
            test("/spec/unschedulable", Value::Null),
            add("/spec/unschedulable", json!(true)),
            add("/metadata/annotations/lifeboat.dev~1cordoned", json!("false")),
        ];
        assert_eq!(patch, expected);
    }

    #[test]
    fn a_fenced_node_is_left_as_it_is() {
        let mut node = bare();
        let ours = json!({"key": "lifeboat.dev/interrupted", "value": "x", "effect": "NoSchedule"});
        node["spec"] = json!({"taints": [ours], "unschedulable": true});
        assert_eq!(fence_patch(&row(node), "x", NOW), None);
    }

    #[test]
    fn the_startup_taint_goes_and_those_of_others_stay() {
        let mut node = bare();
        let startup = json!({"key": "lifeboat.dev/agent-not-ready", "effect": "NoSchedule"});
        let other = json!({"key": "node.cilium.io/agent-not-ready", "effect": "NoExecute"});
        node["spec"] = json!({"taints": [startup, other]});
        let patch = take_back_patch(&row(node), Ours::StartupTaint).unwrap();
        let expected =
            [test("/spec/taints", json!([startup, other])), add("/spec/taints", json!([other]))];
        assert_eq!(patch, expected);
        assert_eq!(take_back_patch(&row(bare()), Ours::StartupTaint), None);
    }

    #[test]
    fn a_cordon_of_somebody_else_is_not_taken_back() {
        let mut node = bare();
        let ours = json!({"key": "lifeboat.dev/interrupted", "value": "x", "effect": "NoSchedule"});
        node["spec"] = json!({"taints": [ours], "unschedulable": true});
        node["metadata"]["annotations"] = json!({"lifeboat.dev/cordoned": "true"});

        let patch = take_back_patch(&row(node), Ours::Fence).unwrap();

        let expected = [
            test("/spec/taints", json!([ours])),
            remove("/spec/taints"),
            test("/metadata/annotations/lifeboat.dev~1cordoned", json!("true")),
            remove("/metadata/annotations/lifeboat.dev~1cordoned"),
        ];
        assert_eq!(patch, expected);
    }

    #[test]
    fn a_block_of_somebody_else_is_neither_set_nor_taken_back() {
        let mut node = bare();
        node["metadata"]["annotations"] = json!({"karpenter.sh/do-not-disrupt": "true"});
        assert_eq!(block_patch(&row(node.clone())), None);
        assert_eq!(take_back_patch(&row(node), Ours::Block), None);
    }

    #[test]
    fn the_instance_and_the_zone_are_read_from_the_provider_id() {
        let mut node = bare();
        node["spec"] = json!({"providerID": "aws:///us-east-2a/i-0123456789abcdef0"});
        let row = row(node);
        assert_eq!(row.instance.as_deref(), Some("i-0123456789abcdef0"));
        assert_eq!(row.zone.as_deref(), Some("us-east-2a"));
    }
}

//! Karpenter's NodeClaims: rows, and those that we make and take away.

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
use crate::adapters::cluster::nodes::Condition;
use crate::adapters::cluster::nodes::add;
use crate::adapters::cluster::nodes::provider;
use crate::adapters::cluster::nodes::test;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::rows::Row;
use crate::crd::marks as our;

/// What we read of a NodeClaim.
#[derive(Clone, Debug)]
pub struct Claims;

/// A claim's actual state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimStatus {
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default, rename = "providerID")]
    provider_id: Option<String>,
    #[serde(default)]
    capacity: BTreeMap<String, Value>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

/// A NodeClaim, as far as an interruption needs it.
#[derive(Clone, Debug)]
pub struct ClaimRow {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The instance whose replacement it is, if it is one of ours; the row's group.
    pub replaces: Option<String>,
    /// The instance that it became.
    pub instance: Option<String>,
    /// The node that it became.
    pub node: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations: few on a claim, and a copy leaves out those that are hashes.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Its whole wanted state, as a copy needs it.
    pub spec: Value,
    /// What it offers.
    pub capacity: BTreeMap<String, Value>,
    /// Conditions that are `True`, and since when.
    pub conditions: BTreeMap<String, Option<Timestamp>>,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// When its deletion was asked for.
    pub deleted_at: Option<Timestamp>,
}

/// A claim to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewClaim {
    /// Its name: `<instance>-<attempt>`.
    pub name: String,
    /// The instance whose replacement it is.
    pub replaces: String,
    /// Its labels, beside ours.
    pub labels: BTreeMap<String, String>,
    /// Its wanted state.
    pub spec: Value,
}

/// What asking for a claim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is new.
    Created,
    /// It was there already.
    Already,
}

impl Kind for Claims {
    type Spec = Value;
    type Status = ClaimStatus;
    type Scope = kube::core::ClusterResourceScope;
    const KIND: &'static str = "NodeClaim";
    const GROUP: &'static str = "karpenter.sh";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "nodeclaims";
}

impl Row for ClaimRow {
    type Kind = Claims;
    type Key = String;

    fn read(object: &Object<Claims>) -> Option<(String, Self)> {
        let row = Self::from_object(object);
        Some((row.name.clone(), row))
    }

    fn group(&self) -> Option<&str> {
        self.replaces.as_deref()
    }
}

impl ClaimRow {
    fn from_object(object: &Object<Claims>) -> Self {
        let status = &object.status;
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let instance = status.provider_id.as_deref().and_then(provider);
        let conditions = status.conditions.iter().filter(|one| one.status == "True");
        Self {
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
            replaces: labels.get(our::REPLACES).cloned(),
            instance: instance.map(|(_, instance)| instance.to_owned()),
            node: status.node_name.clone(),
            annotations: object.metadata.annotations.clone(),
            spec: object.spec.clone(),
            capacity: status.capacity.clone(),
            conditions: conditions
                .map(|one| (one.kind.clone(), one.last_transition_time))
                .collect(),
            created_at: object.created_at(),
            deleted_at: object.deleted_at(),
            labels,
        }
    }

    /// Whether a condition is `True`.
    pub fn is(&self, condition: &str) -> bool {
        self.conditions.contains_key(condition)
    }

    /// Whether Karpenter keeps its node from voluntary disruption.
    pub fn is_kept(&self) -> bool {
        let annotations = self.annotations.as_ref();
        annotations.is_some_and(|all| all.contains_key(our::DO_NOT_DISRUPT))
    }
}

/// The API of claims, for a watch.
pub fn api(cluster: &Cluster) -> Api<Object<Claims>> {
    Api::all(cluster.watch_client())
}

/// Reads one claim from the server itself: the next is made only when this shows the last one gone.
pub async fn read(
    cluster: &Cluster,
    name: &str,
    bound: Duration,
) -> Result<Option<ClaimRow>, ClusterError> {
    let object: Option<Object<Claims>> = cluster.read(&path(name), bound).await?;
    Ok(object.map(|object| ClaimRow::from_object(&object)))
}

/// Asks Karpenter for a node.
///
/// It has no owner, so that nothing collects it with the claim that it replaces, and no hash
/// annotations, so that it does not drift. Nobody else deletes it.
pub async fn create(cluster: &Cluster, claim: &NewClaim) -> Result<Made, ClusterError> {
    let write = Write::Create(body(claim));
    match cluster.write(COLLECTION, write, REQUEST_MAX).await {
        Ok(_) => Ok(Made::Created),
        Err(ClusterError::Conflict { .. }) => Ok(Made::Already),
        Err(error) => Err(error),
    }
}

/// Deletes a claim of ours, and with it its node; one that is gone is no error.
pub async fn delete(cluster: &Cluster, claim: &ClaimRow) -> Result<(), ClusterError> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": claim.uid},
    });
    match cluster.write(&path(&claim.name), Write::Delete(body), REQUEST_MAX).await {
        Ok(_) | Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets Karpenter consolidate a claim of ours again: its pods are bound.
pub async fn unblock(cluster: &Cluster, claim: &ClaimRow) -> Result<(), ClusterError> {
    let patch = json!({"metadata": {"annotations": {our::DO_NOT_DISRUPT: null}}});
    match cluster.write(&path(&claim.name), Write::MergePatch(patch), REQUEST_MAX).await {
        Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sets the hour for which Karpenter ends every pod, unless one is set: it is never moved.
pub async fn set_termination_time(
    cluster: &Cluster,
    claim: &ClaimRow,
    at: Timestamp,
) -> Result<(), ClusterError> {
    let Some(patch) = termination_patch(claim, at) else { return Ok(()) };
    match cluster.write(&path(&claim.name), Write::JsonPatch(patch), REQUEST_MAX).await {
        // Somebody set one meanwhile, or it is gone.
        Ok(_) | Err(ClusterError::NotFound { .. } | ClusterError::Rejected { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn body(claim: &NewClaim) -> Value {
    let mut labels = claim.labels.clone();
    labels.insert(our::REPLACES.to_owned(), claim.replaces.clone());
    json!({
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {
            "name": claim.name,
            "labels": labels,
            "annotations": {our::DO_NOT_DISRUPT: "true"},
        },
        "spec": claim.spec,
    })
}

fn termination_patch(claim: &ClaimRow, at: Timestamp) -> Option<Value> {
    let value = format!("{at:.0}");
    let Some(annotations) = &claim.annotations else {
        let map = json!({marks::TERMINATION_TIMESTAMP: value});
        let absent = test("/metadata/annotations", Value::Null);
        return Some(json!([absent, add("/metadata/annotations", map)]));
    };
    if annotations.contains_key(marks::TERMINATION_TIMESTAMP) {
        return None;
    }
    let key = marks::pointer(marks::TERMINATION_TIMESTAMP);
    let at = format!("/metadata/annotations/{key}");
    Some(json!([test(&at, Value::Null), add(&at, json!(value))]))
}

const COLLECTION: &str = "/apis/karpenter.sh/v1/nodeclaims";

fn path(name: &str) -> String {
    format!("{COLLECTION}/{name}")
}

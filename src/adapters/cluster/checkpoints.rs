//! `WorkloadCheckpoint`: rows, and the proof that a pod has ended.

use std::time::Duration;

use kube::Api;
use serde_json::Value;
use serde_json::json;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::MANAGER;
use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::Write;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::rows::Row;
use crate::crd::convert;
use crate::crd::node_interruption::Save;
use crate::crd::workload_checkpoint::Ended;
use crate::crd::workload_checkpoint::Newest;
use crate::crd::workload_checkpoint::Outlook;
use crate::crd::workload_checkpoint::WorkloadCheckpointStatus;
use crate::crd::workload_checkpoint::name_of;

/// What we read of a WorkloadCheckpoint.
#[derive(Clone, Debug)]
pub struct Checkpoints;

/// The index of one job key.
#[derive(Clone, Debug)]
pub struct CheckpointRow {
    /// Its namespace.
    pub namespace: String,
    /// The job key.
    pub job_key: String,
    /// What is saved, and who has ended.
    pub status: WorkloadCheckpointStatus,
}

impl Kind for Checkpoints {
    /// Read part by part: a release later may have written it.
    type Spec = Value;
    type Status = Value;
    type Scope = kube::core::NamespaceResourceScope;
    const KIND: &'static str = "WorkloadCheckpoint";
    const GROUP: &'static str = "lifeboat.dev";
    const VERSION: &'static str = "v1alpha1";
    const PLURAL: &'static str = "workloadcheckpoints";
}

impl Row for CheckpointRow {
    type Kind = Checkpoints;
    /// Namespace and job key.
    type Key = (String, String);

    fn read(object: &Object<Checkpoints>) -> Option<(Self::Key, Self)> {
        let job_key = object.spec["jobKey"].as_str()?.to_owned();
        let namespace = object.namespace().to_owned();
        let status = status(&object.status);
        Some(((namespace.clone(), job_key.clone()), Self { namespace, job_key, status }))
    }

    fn group(&self) -> Option<&str> {
        None
    }
}

/// The API of all indexes, for a watch.
pub fn api(cluster: &Cluster) -> Api<Object<Checkpoints>> {
    Api::all(cluster.watch_client())
}

/// The API of one namespace's indexes, for a watch.
pub fn api_in(cluster: &Cluster, namespace: &str) -> Api<Object<Checkpoints>> {
    Api::namespaced(cluster.watch_client(), namespace)
}

/// Reads one index from the server itself.
pub async fn read(
    cluster: &Cluster,
    namespace: &str,
    job_key: &str,
    bound: Duration,
) -> Result<Option<CheckpointRow>, ClusterError> {
    let object: Option<Object<Checkpoints>> =
        cluster.read(&path(namespace, job_key), bound).await?;
    Ok(object.and_then(|object| CheckpointRow::read(&object)).map(|(_, row)| row))
}

/// Writes how we know that a pod has ended: what lets its successor's restore through.
pub async fn record_ended(
    cluster: &Cluster,
    index: (&str, &str),
    pod_uid: &str,
    ended: &Ended,
) -> Result<(), ClusterError> {
    let manager = format!("{MANAGER}-{pod_uid}");
    apply_status(cluster, index, &manager, json!({"ended": {pod_uid: ended}})).await
}

/// Writes how far the save of a pod is that is ended without an interruption of its node.
pub async fn record_save(
    cluster: &Cluster,
    index: (&str, &str),
    manager: &str,
    (pod_uid, save): (&str, &Save),
) -> Result<(), ClusterError> {
    apply_status(cluster, index, manager, json!({"saves": {pod_uid: save}})).await
}

/// Writes whether a state could be saved if its node were interrupted.
pub async fn record_outlook(
    cluster: &Cluster,
    index: (&str, &str),
    manager: &str,
    outlook: &Outlook,
) -> Result<(), ClusterError> {
    apply_status(cluster, index, manager, json!({"outlook": outlook})).await
}

/// Takes entries out of an index, by a merge patch of its status.
pub async fn trim(
    cluster: &Cluster,
    row: &CheckpointRow,
    surplus: Value,
) -> Result<(), ClusterError> {
    let at = format!("{}/status", path(&row.namespace, &row.job_key));
    match cluster.write(&at, Write::MergePatch(json!({"status": surplus})), REQUEST_MAX).await {
        Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes the newest manifest, and whether the work is done.
pub async fn record_newest(
    cluster: &Cluster,
    index: (&str, &str),
    manager: &str,
    status: (&Newest, Option<bool>),
) -> Result<(), ClusterError> {
    let (newest, finished) = status;
    let mut part = json!({"newest": newest});
    if let Some(finished) = finished {
        part["finished"] = json!(finished);
    }
    apply_status(cluster, index, manager, part).await
}

/// Applies a part of the status, making the index first if it is not there.
async fn apply_status(
    cluster: &Cluster,
    (namespace, job_key): (&str, &str),
    manager: &str,
    part: Value,
) -> Result<(), ClusterError> {
    let path = path(namespace, job_key);
    let at = format!("{path}/status");
    let mut body = object(namespace, job_key);
    body["status"] = part;
    match cluster.write(&at, Write::ApplyForced(manager, body.clone()), REQUEST_MAX).await {
        Ok(_) => return Ok(()),
        Err(ClusterError::NotFound { .. }) => (),
        Err(error) => return Err(error),
    }
    let mut index = object(namespace, job_key);
    index["spec"] = json!({"jobKey": job_key});
    // Both programs may make it: the key is the same, so taking it over changes nothing.
    cluster.write(&path, Write::ApplyForced("lifeboat", index), REQUEST_MAX).await?;
    cluster.write(&at, Write::ApplyForced(manager, body), REQUEST_MAX).await?;
    Ok(())
}

fn object(namespace: &str, job_key: &str) -> Value {
    json!({
        "apiVersion": "lifeboat.dev/v1alpha1",
        "kind": "WorkloadCheckpoint",
        "metadata": {"namespace": namespace, "name": name_of(job_key)},
    })
}

/// Each part by itself: one that cannot be read hides no other.
fn status(value: &Value) -> WorkloadCheckpointStatus {
    WorkloadCheckpointStatus {
        newest: serde_json::from_value(value["newest"].clone()).ok(),
        saves: convert::readable(&value["saves"]),
        ended: convert::readable(&value["ended"]),
        finished: value["finished"].as_bool(),
        outlook: serde_json::from_value(value["outlook"].clone()).ok(),
    }
}

fn path(namespace: &str, job_key: &str) -> String {
    let name = name_of(job_key);
    format!("/apis/lifeboat.dev/v1alpha1/namespaces/{namespace}/workloadcheckpoints/{name}")
}

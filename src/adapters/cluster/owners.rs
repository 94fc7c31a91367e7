//! Who stands above an object that a pod belongs to.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;

/// The controller of an object, as its `ownerReferences` name it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Group and version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Owner {
    /// Its API group; empty for the core.
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }
}

/// The controller that an object names.
pub fn of(object: &Value) -> Option<Owner> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    Owner::deserialize(owner).ok()
}

/// Reads the controller of a Job; none if nobody made it.
pub async fn of_job(
    cluster: &Cluster,
    (namespace, name): (&str, &str),
    bound: Duration,
) -> Result<Option<Owner>, ClusterError> {
    let path = format!("/apis/batch/v1/namespaces/{namespace}/jobs/{name}");
    read(cluster, path, bound).await
}

/// Reads the controller of a RayCluster; none if nobody made it.
pub async fn of_ray_cluster(
    cluster: &Cluster,
    (namespace, name): (&str, &str),
    bound: Duration,
) -> Result<Option<Owner>, ClusterError> {
    let path = format!("/apis/ray.io/v1/namespaces/{namespace}/rayclusters/{name}");
    read(cluster, path, bound).await
}

async fn read(
    cluster: &Cluster,
    path: String,
    bound: Duration,
) -> Result<Option<Owner>, ClusterError> {
    match cluster.read::<Value>(&path, bound).await? {
        Some(object) => Ok(of(&object)),
        None => Err(ClusterError::NotFound { path }),
    }
}

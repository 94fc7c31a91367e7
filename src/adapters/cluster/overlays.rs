//! Karpenter's NodeOverlays: whether Karpenter knows how many slices a node has.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Nothing;
use crate::adapters::cluster::objects::Object;

/// What we read of a NodeOverlay.
#[derive(Clone, Debug)]
pub struct Overlays;

/// An overlay's wanted state.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct OverlaySpec {
    /// What it adds to the capacity of the nodes it is about.
    #[serde(default)]
    pub capacity: BTreeMap<String, Value>,
    /// Which nodes it is about.
    #[serde(default)]
    pub requirements: Vec<Value>,
}

impl Kind for Overlays {
    type Spec = OverlaySpec;
    type Status = Nothing;
    type Scope = kube::core::ClusterResourceScope;
    const KIND: &'static str = "NodeOverlay";
    const GROUP: &'static str = "karpenter.sh";
    const VERSION: &'static str = "v1alpha1";
    const PLURAL: &'static str = "nodeoverlays";
}

#[derive(Deserialize)]
struct List {
    items: Vec<Object<Overlays>>,
}

/// All overlays; none where the cluster has no such kind, as before Karpenter 1.7.
pub async fn list(
    cluster: &Cluster,
    bound: Duration,
) -> Result<Vec<Object<Overlays>>, ClusterError> {
    let path = "/apis/karpenter.sh/v1alpha1/nodeoverlays?limit=500";
    let list: Option<List> = cluster.read(path, bound).await?;
    Ok(list.map(|list| list.items).unwrap_or_default())
}

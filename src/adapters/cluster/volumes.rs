//! `PersistentVolume`s: only the zone that one ties its pod to.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::marks;

/// The zones in which a claim's volume can be mounted; empty if it is bound to none.
pub async fn zones_of(
    cluster: &Cluster,
    namespace: &str,
    claim: &str,
    bound: Duration,
) -> Result<Vec<String>, ClusterError> {
    let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}");
    let Some(claim) = cluster.read::<VolumeClaim>(&path, bound).await? else {
        return Ok(Vec::new());
    };
    let Some(name) = claim.spec.volume_name.filter(|name| !name.is_empty()) else {
        return Ok(Vec::new());
    };
    let path = format!("/api/v1/persistentvolumes/{name}");
    let volume: Option<Volume> = cluster.read(&path, bound).await?;
    Ok(volume.map(|volume| zones(&volume.spec.node_affinity)).unwrap_or_default())
}

#[derive(Deserialize)]
struct VolumeClaim {
    #[serde(default)]
    spec: VolumeClaimSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeClaimSpec {
    #[serde(default)]
    volume_name: Option<String>,
}

#[derive(Deserialize)]
struct Volume {
    #[serde(default)]
    spec: VolumeSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeSpec {
    #[serde(default)]
    node_affinity: Value,
}

/// EBS volumes carry their zone under the driver's key or the well-known one.
///
/// Source: aws-ebs-csi-driver, "Parameters", topology.
fn zones(affinity: &Value) -> Vec<String> {
    let terms = affinity["required"]["nodeSelectorTerms"].as_array().into_iter().flatten();
    let rules = terms.filter_map(|term| term["matchExpressions"].as_array()).flatten();
    let about_zone = |rule: &&Value| {
        let key = rule["key"].as_str().unwrap_or_default();
        key == marks::ZONE || key == "topology.ebs.csi.aws.com/zone"
    };
    let values = rules.filter(about_zone).filter_map(|rule| rule["values"].as_array()).flatten();
    let mut zones: Vec<String> =
        values.filter_map(|zone| zone.as_str()).map(str::to_owned).collect();
    zones.sort();
    zones.dedup();
    zones
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_zone_of_an_ebs_volume_is_found_under_either_key() {
        let affinity = json!({"required": {"nodeSelectorTerms": [
            {"matchExpressions": [
                {"key": "topology.ebs.csi.aws.com/zone", "operator": "In", "values": ["us-east-2a"]},
                {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["us-east-2a"]},
            ]},
        ]}});
        assert_eq!(zones(&affinity), ["us-east-2a"]);
        assert_eq!(zones(&json!(null)), Vec::<String>::new());
    }
}

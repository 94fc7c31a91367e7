//! The Lease: who may do what must be done once.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::Write;
use crate::adapters::cluster::from_value;

/// Which Lease, and who we are to it.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who we are: another value after every start.
    pub identity: String,
    /// How long it is ours after each renewal.
    pub duration: Duration,
}

/// A Lease as the server last showed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Whose it is; empty for nobody's.
    pub holder: String,
    /// How often it changed hands.
    pub transitions: i32,
    version: String,
}

#[derive(Deserialize)]
struct LeaseObject {
    metadata: LeaseMetadata,
    #[serde(default)]
    spec: LeaseSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseMetadata {
    resource_version: String,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct LeaseSpec {
    #[serde(default)]
    holder_identity: Option<String>,
    #[serde(default)]
    lease_transitions: Option<i32>,
}

impl Held {
    /// Whether it is the same write as another: nobody has renewed it in between.
    ///
    /// A Lease's own times are those of its writer's clock, so only their change means anything.
    pub fn is_same_write(&self, other: &Self) -> bool {
        self.version == other.version
    }
}

/// Reads the Lease; `None` if nobody has ever made it.
pub async fn read(
    cluster: &Cluster,
    seat: &Seat,
    bound: Duration,
) -> Result<Option<Held>, ClusterError> {
    let object: Option<LeaseObject> = cluster.read(&seat.path(), bound).await?;
    Ok(object.map(held))
}

/// Takes the Lease, or renews it, over what was last read; somebody else's write in between is a
/// [`ClusterError::Conflict`].
pub async fn take(
    cluster: &Cluster,
    seat: &Seat,
    last: Option<&Held>,
    now: Timestamp,
) -> Result<Held, ClusterError> {
    let bound = crate::adapters::cluster::REQUEST_MAX;
    let answer = match last {
        None => {
            let body = Write::Create(seat.body(&Held::default(), &seat.identity, now));
            cluster.write(&seat.collection(), body, bound).await?
        }
        Some(last) => {
            let body = Write::Replace(seat.body(last, &seat.identity, now));
            cluster.write(&seat.path(), body, bound).await?
        }
    };
    Ok(held(from_value(&seat.path(), answer)?))
}

/// Gives the Lease back, so that the other replica need not wait for it to run out.
pub async fn release(
    cluster: &Cluster,
    seat: &Seat,
    last: &Held,
    now: Timestamp,
) -> Result<(), ClusterError> {
    let body = Write::Replace(seat.body(last, "", now));
    cluster.write(&seat.path(), body, crate::adapters::cluster::REQUEST_MAX).await?;
    Ok(())
}

impl Seat {
    fn body(&self, last: &Held, holder: &str, now: Timestamp) -> Value {
        let changed = !holder.is_empty() && last.holder != holder;
        // MicroTime: exactly six digits. Source: Kubernetes API, Lease v1.
        let now = format!("{now:.6}");
        let mut body = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self.duration.as_secs().max(1),
                "leaseTransitions": last.transitions + i32::from(changed),
                "renewTime": now,
            },
        });
        if changed {
            body["spec"]["acquireTime"] = json!(now);
        }
        if !last.version.is_empty() {
            body["metadata"]["resourceVersion"] = json!(last.version);
        }
        body
    }

    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }
}

fn held(object: LeaseObject) -> Held {
    Held {
        holder: object.spec.holder_identity.unwrap_or_default(),
        transitions: object.spec.lease_transitions.unwrap_or_default(),
        version: object.metadata.resource_version,
    }
}

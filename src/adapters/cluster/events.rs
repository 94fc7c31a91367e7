//! Kubernetes Events: what an operator sees in `kubectl describe`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::Write;
use crate::adapters::cluster::pods::PodRow;

/// What an Event is about.
#[derive(Clone, Debug)]
pub struct About {
    /// `Node`, `Pod` or `NodeInterruption`.
    pub kind: &'static str,
    /// The `apiVersion` of that kind.
    pub api_version: &'static str,
    /// Its namespace; empty for cluster scope.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl About {
    /// A pod.
    pub fn pod(pod: &PodRow) -> Self {
        Self {
            kind: "Pod",
            api_version: "v1",
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        }
    }
}

/// One Event.
#[derive(Clone, Debug)]
pub struct Note {
    /// What it is about.
    pub about: About,
    /// Whether someone may have to act.
    pub warning: Tone,
    /// One word in `PascalCase`.
    pub reason: &'static str,
    /// A sentence for a person.
    pub message: String,
}

/// How an Event is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// All is well.
    Normal,
    /// Someone may have to act.
    Warning,
}

/// Writes an Event.
///
/// Its name is made of what it says and of its subject, so that the same said twice is one Event.
pub async fn create(cluster: &Cluster, note: &Note, now: Timestamp) -> Result<(), ClusterError> {
    // Events about objects of cluster scope live in `default`, where kubectl looks for them.
    let namespace = if note.about.namespace.is_empty() { "default" } else { &note.about.namespace };
    let name = format!(
        "{}.lifeboat-{}-{:x}",
        note.about.name,
        note.reason.to_ascii_lowercase(),
        now.as_millisecond(),
    );
    let body = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": name},
        "involvedObject": {
            "apiVersion": note.about.api_version,
            "kind": note.about.kind,
            "namespace": note.about.namespace,
            "name": note.about.name,
            "uid": note.about.uid,
        },
        "type": match note.warning {
            Tone::Normal => "Normal",
            Tone::Warning => "Warning",
        },
        "reason": note.reason,
        "message": note.message,
        "source": {"component": "lifeboat-controller"},
        "reportingComponent": "lifeboat-controller",
        "reportingInstance": "",
        "firstTimestamp": now.to_string(),
        "lastTimestamp": now.to_string(),
        "count": 1,
    });
    let path = format!("/api/v1/namespaces/{namespace}/events");
    match cluster.write(&path, Write::Create(body), Duration::MAX).await {
        Ok(_) | Err(ClusterError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

//! `NodeInterruption`: rows, and the parts of it that each of us applies.

use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::signal::Signal;
use lifeboat_domain::signal::Signals;
use serde_json::Value;
use serde_json::json;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::Write;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::rows::Row;
use crate::crd::convert;
use crate::crd::node_interruption::NodeInterruptionStatus;
use crate::crd::node_interruption::Workload;

/// What we read of a NodeInterruption.
#[derive(Clone, Debug)]
pub struct Interruptions;

/// A record, read part by part: what a later release wrote hides nothing else.
#[derive(Clone, Debug)]
pub struct InterruptionRow {
    /// The instance: the record's name.
    pub instance: InstanceId,
    /// Its UID.
    pub uid: String,
    /// The node; the row's group.
    pub node: String,
    /// The zone.
    pub zone: String,
    /// The instance type, where known.
    pub instance_type: Option<String>,
    /// What was told.
    pub signals: Signals,
    /// The keys of `spec.signals`, also of those that we do not understand.
    pub keys: Vec<String>,
    /// What was done.
    pub status: NodeInterruptionStatus,
    /// When the record was made.
    pub created_at: Option<Timestamp>,
}

/// What is interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The instance.
    pub instance: InstanceId,
    /// Its node.
    pub node: String,
    /// Its zone; empty where nobody knows it.
    pub zone: String,
    /// Its type, where known.
    pub instance_type: Option<String>,
}

impl Kind for Interruptions {
    type Spec = Value;
    type Status = Value;
    type Scope = kube::core::ClusterResourceScope;
    const KIND: &'static str = "NodeInterruption";
    const GROUP: &'static str = "lifeboat.dev";
    const VERSION: &'static str = "v1alpha1";
    const PLURAL: &'static str = "nodeinterruptions";
}

impl Row for InterruptionRow {
    type Kind = Interruptions;
    type Key = InstanceId;

    fn read(object: &Object<Interruptions>) -> Option<(InstanceId, Self)> {
        let instance: InstanceId = object.name().parse().ok()?;
        let spec = &object.spec;
        let text = |key: &str| spec[key].as_str().unwrap_or_default().to_owned();
        let signals = convert::readable(&spec["signals"]);
        let row = Self {
            instance: instance.clone(),
            uid: object.uid().to_owned(),
            node: text("node"),
            zone: text("zone"),
            instance_type: spec["instanceType"].as_str().map(str::to_owned),
            signals: convert::signals_from_wire(signals.values()),
            keys: spec["signals"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key.clone())
                .collect(),
            status: status(&object.status),
            created_at: object.created_at(),
        };
        Some((instance, row))
    }

    fn group(&self) -> Option<&str> {
        Some(&self.node)
    }
}

impl InterruptionRow {
    /// A record that does not exist yet, and says nothing.
    pub fn new(subject: &Subject) -> Self {
        Self {
            instance: subject.instance.clone(),
            uid: String::new(),
            node: subject.node.clone(),
            zone: subject.zone.clone(),
            instance_type: subject.instance_type.clone(),
            signals: Signals::default(),
            keys: Vec::new(),
            status: NodeInterruptionStatus::default(),
            created_at: None,
        }
    }

    /// Whether this very source and kind was recorded.
    pub fn has(&self, signal: &Signal) -> bool {
        let key = signal.key().to_string();
        self.keys.contains(&key)
    }

    /// Whether it has been closed.
    pub fn is_closed(&self) -> bool {
        self.status.closed_at.is_some()
    }

    /// What it is about.
    pub fn subject(&self) -> Subject {
        Subject {
            instance: self.instance.clone(),
            node: self.node.clone(),
            zone: self.zone.clone(),
            instance_type: self.instance_type.clone(),
        }
    }
}

/// The API of all records, for a watch.
pub fn api(cluster: &Cluster) -> Api<Object<Interruptions>> {
    Api::all(cluster.watch_client())
}

/// Reads one record from the server itself.
pub async fn read(
    cluster: &Cluster,
    instance: &InstanceId,
    bound: Duration,
) -> Result<Option<InterruptionRow>, ClusterError> {
    let object: Option<Object<Interruptions>> = cluster.read(&path(instance), bound).await?;
    Ok(object.and_then(|object| InterruptionRow::read(&object)).map(|(_, row)| row))
}

/// Records a signal, making the record if it is the first. `by` is `controller` or `agent`.
///
/// Entries never change. One that is there already, told by whomever, is as good as ours: then the
/// server refuses the second telling, and a look shows that it is there.
pub async fn record(
    cluster: &Cluster,
    subject: &Subject,
    signal: &Signal,
    by: &str,
) -> Result<(), ClusterError> {
    let manager = format!("lifeboat-{by}-{}", signal.key());
    let write = Write::Apply(&manager, signal_body(subject, signal));
    let refusal = match cluster.write(&path(&subject.instance), write, REQUEST_MAX).await {
        Ok(_) => return Ok(()),
        Err(error @ (ClusterError::Rejected { .. } | ClusterError::Conflict { .. })) => error,
        Err(error) => return Err(error),
    };
    match read(cluster, &subject.instance, REQUEST_MAX).await? {
        Some(row) if row.has(signal) => Ok(()),
        Some(_) | None => Err(refusal),
    }
}

/// Applies what the holder of the Lease says of the whole record: everything at once, since what
/// is left out is taken away.
pub async fn apply_status(
    cluster: &Cluster,
    instance: &InstanceId,
    manager: &str,
    part: Value,
) -> Result<(), ClusterError> {
    let mut body = object(instance);
    body["status"] = part;
    let at = format!("{}/status", path(instance));
    cluster.write(&at, Write::ApplyForced(manager, body), REQUEST_MAX).await?;
    Ok(())
}

/// Applies one side's part of one workload. `by` is `controller` or `agent`.
pub async fn apply_workload(
    cluster: &Cluster,
    instance: &InstanceId,
    by: &str,
    workload: (&str, &Workload),
) -> Result<(), ClusterError> {
    let (uid, part) = workload;
    let manager = format!("lifeboat-{by}-{uid}");
    apply_status(cluster, instance, &manager, json!({"workloads": {uid: part}})).await
}

/// Deletes a record; one that is gone is no error.
pub async fn delete(cluster: &Cluster, row: &InterruptionRow) -> Result<(), ClusterError> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": row.uid},
    });
    match cluster.write(&path(&row.instance), Write::Delete(body), REQUEST_MAX).await {
        Ok(_) | Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn signal_body(subject: &Subject, signal: &Signal) -> Value {
    let mut body = object(&subject.instance);
    body["spec"] = json!({
        "node": subject.node,
        "zone": subject.zone,
        "signals": {signal.key().to_string(): convert::signal_to_wire(signal)},
    });
    if let Some(instance_type) = &subject.instance_type {
        body["spec"]["instanceType"] = json!(instance_type);
    }
    body
}

fn object(instance: &InstanceId) -> Value {
    json!({
        "apiVersion": "lifeboat.dev/v1alpha1",
        "kind": "NodeInterruption",
        "metadata": {"name": instance},
    })
}

/// Each part by itself: one that cannot be read hides no other.
fn status(value: &Value) -> NodeInterruptionStatus {
    NodeInterruptionStatus {
        phase: part(&value["phase"]),
        deadline: part(&value["deadline"]),
        conditions: part(&value["conditions"]).unwrap_or_default(),
        workloads: convert::readable(&value["workloads"]),
        fence: part(&value["fence"]),
        holds: convert::readable(&value["holds"]),
        replacement: part(&value["replacement"]),
        closed_at: part(&value["closedAt"]),
        slack: part(&value["slack"]),
        bytes: part(&value["bytes"]),
    }
}

fn part<T: serde::de::DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

fn path(instance: &InstanceId) -> String {
    format!("/apis/lifeboat.dev/v1alpha1/nodeinterruptions/{instance}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lifeboat_domain::signal::Action;
    use lifeboat_domain::signal::Kind as Told;
    use lifeboat_domain::signal::Source;

    fn signal() -> Signal {
        Signal {
            source: Source::Queue,
            kind: Told::SpotInterruption { action: Action::Terminate },
            time: Timestamp::UNIX_EPOCH,
            named: None,
            heard_at: Timestamp::UNIX_EPOCH,
            heard_by: "controller-0".to_owned(),
            detail: None,
        }
    }

    fn subject() -> Subject {
        Subject {
            instance: "i-0123456789abcdef0".parse().unwrap(),
            node: "gpu-1".to_owned(),
            zone: "us-east-2a".to_owned(),
            instance_type: Some("g5.12xlarge".to_owned()),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let object = serde_json::from_value(signal_body(&subject(), &signal())).unwrap();
        let (_, row) = InterruptionRow::read(&object).unwrap();
        assert!(row.has(&signal()));
        assert_eq!(row.subject(), subject());
        assert_eq!(row.signals, [signal()].into_iter().collect());
    }

    #[test]
    fn what_a_later_release_wrote_hides_nothing() {
        let mut body = signal_body(&subject(), &signal());
        body["spec"]["signals"]["queue-solar-flare"] = json!({"strength": 9});
        body["status"] = json!({
            "phase": "Sinking",
            "workloads": {"u1": {"namespace": "ml", "pod": "a", "mood": 1}, "u2": 17},
            "fence": "yes",
        });
        let object = serde_json::from_value(body).unwrap();
        let (_, row) = InterruptionRow::read(&object).unwrap();
        assert_eq!(row.signals, [signal()].into_iter().collect());
        assert_eq!(row.status.workloads.len(), 1);
        assert_eq!(row.status.fence, None);
    }
}

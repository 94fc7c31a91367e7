//! Pods: rows, the hold, and the two ways to end one.

use std::collections::BTreeMap;
use std::net::IpAddr;
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
use crate::adapters::cluster::nodes::remove;
use crate::adapters::cluster::nodes::test;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::pairs::Pairs;
use crate::adapters::cluster::rows::Row;
use crate::crd::DRIVER;
use crate::crd::marks as our;

/// Grace of a pod that names none.
///
/// Source: Kubernetes, "Pod Lifecycle", termination of pods.
const GRACE_DEFAULT: Duration = Duration::from_secs(30);

/// The agent's DaemonSet, as the chart calls it.
const AGENT: &str = "lifeboat-agent";

/// What we read of a pod.
#[derive(Clone, Debug)]
pub struct Pods;

/// A pod's wanted state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    #[serde(default)]
    node_name: Option<String>,
    #[serde(default)]
    termination_grace_period_seconds: Option<u64>,
    #[serde(default)]
    priority: Option<i32>,
    #[serde(default)]
    restart_policy: Option<String>,
    #[serde(default)]
    containers: Vec<ContainerSpec>,
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
    #[serde(default)]
    affinity: Option<Value>,
    #[serde(default)]
    volumes: Vec<VolumeSpec>,
}

/// A pod's actual state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    #[serde(default)]
    phase: Option<String>,
    #[serde(default)]
    conditions: Option<Vec<Condition>>,
    #[serde(default)]
    container_statuses: Vec<ContainerStatus>,
    #[serde(default, rename = "podIP")]
    pod_ip: Option<IpAddr>,
    #[serde(default, rename = "hostIP")]
    host_ip: Option<IpAddr>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct ContainerSpec {
    #[serde(default)]
    resources: Resources,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Resources {
    #[serde(default)]
    limits: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeSpec {
    #[serde(default)]
    persistent_volume_claim: Option<ClaimSource>,
    #[serde(default)]
    csi: Option<DriverSource>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct DriverSource {
    #[serde(default)]
    driver: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSource {
    #[serde(default)]
    claim_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "containerID")]
    container_id: Option<String>,
    #[serde(default)]
    restart_count: u32,
    #[serde(default)]
    state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct ContainerState {
    #[serde(default)]
    terminated: Option<Terminated>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Terminated {
    #[serde(default)]
    exit_code: i32,
    #[serde(default)]
    finished_at: Option<Timestamp>,
}

/// A pod, as far as an interruption needs it.
#[derive(Clone, Debug)]
pub struct PodRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node it is bound to; the row's group.
    pub node: Option<String>,
    /// The kind and UID of the controller above it.
    pub controller: Option<(String, String)>,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// The grace it asks for.
    pub grace: Duration,
    /// Its priority to the scheduler.
    pub priority: i32,
    /// Annotations of ours.
    pub annotations: Pairs<Box<str>>,
    /// Whether it has any annotations at all, anybody's.
    pub annotated: bool,
    /// Karpenter's do-not-disrupt, whoever set it.
    pub do_not_disrupt: Option<String>,
    /// When its grace is over and how long it was, if its deletion was asked for.
    pub deletion: Option<(Timestamp, Duration)>,
    /// Whether kubelet starts containers of it again that end.
    pub restarts: bool,
    /// Whether the condition `DisruptionTarget` is set; `None` if it has no conditions at all.
    pub disruption_target: Option<bool>,
    /// Extended resources that its containers may use, as `nvidia.com/gpu`, added up.
    pub extended: Pairs<u64>,
    /// Its containers, as kubelet reports them.
    pub containers: Vec<ContainerRow>,
    /// Whether it has a volume that our agent serves.
    pub has_volume: bool,
    /// Whether it is an agent's, by the name of its DaemonSet alone: look at its namespace, too.
    pub agent: AgentPod,
    /// Its own address, if it has one that is not its node's; kept for protected pods alone.
    pub address: Option<Box<IpAddr>>,
    /// What it asks of the node it runs on; kept for protected pods alone.
    pub placement: Option<Box<Placement>>,
}

/// Whether a pod is an agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentPod {
    /// It is not.
    Other,
    /// It is, and serves nobody yet.
    Starting,
    /// It is, and serves.
    Ready,
}

/// A container, as kubelet reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRow {
    /// Its name.
    pub name: String,
    /// The runtime's id, without the runtime's name.
    pub id: Option<String>,
    /// How often it was started again.
    pub restarts: u32,
    /// When its process ended and with what, if it is not running or about to.
    pub ended: Option<(Option<Timestamp>, i32)>,
}

/// What a pod asks of the node it runs on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    /// Its node selector.
    pub node_selector: BTreeMap<String, String>,
    /// The terms of its required node affinity: any one of them will do.
    pub terms: Vec<Vec<Requirement>>,
    /// The `PersistentVolumeClaim`s that it mounts.
    pub volume_claims: Vec<String>,
}

/// One requirement on a node's labels, with Kubernetes' operators.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    /// What it is compared with.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What asking for a pod's end came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is being ended.
    Accepted,
    /// A PodDisruptionBudget does not allow it now.
    RefusedByBudget,
    /// The pod with that UID is gone.
    Gone,
}

impl Kind for Pods {
    type Spec = PodSpec;
    type Status = PodStatus;
    type Scope = kube::core::NamespaceResourceScope;
    const KIND: &'static str = "Pod";
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "pods";
}

impl Row for PodRow {
    type Kind = Pods;
    /// The UID: a name may be taken by the next incarnation before the last one is swept.
    type Key = String;

    fn read(object: &Object<Pods>) -> Option<(String, Self)> {
        let row = Self::from_object(object);
        (!row.uid.is_empty()).then(|| (row.uid.clone(), row))
    }

    fn group(&self) -> Option<&str> {
        self.node.as_deref()
    }
}

impl PodRow {
    fn from_object(object: &Object<Pods>) -> Self {
        let all = object.metadata.annotations.as_ref();
        let annotations = all.into_iter().flatten();
        let annotations = annotations.filter(|(key, _)| key.starts_with(marks::OURS));
        let seconds = object.spec.termination_grace_period_seconds;
        let conditions = object.status.conditions.as_ref();
        let mut row = Self {
            namespace: object.namespace().to_owned(),
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
            node: object.spec.node_name.clone(),
            controller: object.controller().map(|owner| (owner.kind.clone(), owner.uid.clone())),
            phase: object.status.phase.clone().unwrap_or_default(),
            grace: seconds.map_or(GRACE_DEFAULT, Duration::from_secs),
            priority: object.spec.priority.unwrap_or_default(),
            annotations: annotations
                .map(|(key, value)| (key.as_str(), Box::from(&**value)))
                .collect(),
            annotated: all.is_some(),
            do_not_disrupt: object.annotation(our::DO_NOT_DISRUPT).map(str::to_owned),
            deletion: deletion(object),
            restarts: object.spec.restart_policy.as_deref() != Some("Never"),
            disruption_target: conditions.map(|all| all.iter().any(is_disruption_target)),
            extended: extended(&object.spec.containers),
            containers: object.status.container_statuses.iter().map(container).collect(),
            has_volume: object.spec.volumes.iter().any(is_ours),
            agent: agent(object),
            address: None,
            placement: None,
        };
        if row.is_protected() {
            let own = object.status.pod_ip.filter(|own| Some(*own) != object.status.host_ip);
            row.address = own.map(Box::new);
            row.placement = Some(Box::new(placement(&object.spec)));
        }
        row
    }

    /// The value of one of our annotations.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(|value| &**value)
    }

    /// Whether it carries a checkpoint mode other than `none`.
    pub fn is_protected(&self) -> bool {
        self.annotation(our::CHECKPOINT).is_some_and(|mode| mode != "none")
    }

    /// Whether Karpenter will leave it where it is.
    pub fn is_held(&self) -> bool {
        self.do_not_disrupt.as_deref() == Some("true")
    }

    /// Whether the hold on it is one that we set for this interruption.
    pub fn is_held_for(&self, instance: &str) -> bool {
        self.annotation(our::HELD) == Some(instance)
    }

    /// Whether nothing of it runs any more or will again: then when the last container ended, if
    /// that is known, and the first exit code that is not 0.
    pub fn ended(&self) -> Option<(Option<Timestamp>, i32)> {
        let over = matches!(self.phase.as_str(), "Succeeded" | "Failed");
        let final_ends = over || self.deletion.is_some() || !self.restarts;
        let ends: Vec<_> = self.containers.iter().filter_map(|one| one.ended).collect();
        let all_ended = !self.containers.is_empty() && ends.len() == self.containers.len();
        if !(over || final_ends && all_ended) {
            return None;
        }
        let at = ends.iter().filter_map(|(at, _)| *at).max();
        let code = ends.iter().map(|(_, code)| *code).find(|code| *code != 0);
        Some((at, code.unwrap_or_default()))
    }
}

fn is_ours(volume: &VolumeSpec) -> bool {
    volume.csi.as_ref().is_some_and(|csi| csi.driver == DRIVER)
}

fn agent(object: &Object<Pods>) -> AgentPod {
    let is_ours =
        object.controller().is_some_and(|owner| owner.kind == "DaemonSet" && owner.name == AGENT);
    let ready = |one: &Condition| one.kind == "Ready" && one.status == "True";
    if !is_ours {
        AgentPod::Other
    } else if object.status.conditions.iter().flatten().any(ready) {
        AgentPod::Ready
    } else {
        AgentPod::Starting
    }
}

/// The API of all pods, for a watch.
pub fn api(cluster: &Cluster) -> Api<Object<Pods>> {
    Api::all(cluster.watch_client())
}

/// Reads one pod from the server itself.
pub async fn read(
    cluster: &Cluster,
    pod: &PodRow,
    bound: Duration,
) -> Result<Option<PodRow>, ClusterError> {
    let object: Option<Object<Pods>> = cluster.read(&path(pod), bound).await?;
    let row = object.map(|object| PodRow::from_object(&object));
    Ok(row.filter(|row| row.uid == pod.uid))
}

/// Sets Karpenter's do-not-disrupt with our mark beside it, unless anybody has set it already.
///
/// Answers whether the pod is held now, by whomever; a pod that is gone is not.
pub async fn hold(cluster: &Cluster, pod: &PodRow, instance: &str) -> Result<bool, ClusterError> {
    let mut fresh = None;
    for left in (0..3_usize).rev() {
        let row = fresh.as_ref().unwrap_or(pod);
        let Some(patch) = hold_patch(row, instance) else { return Ok(row.is_held()) };
        match cluster.write(&path(pod), Write::JsonPatch(patch), REQUEST_MAX).await {
            Ok(_) => return Ok(true),
            Err(ClusterError::NotFound { .. }) => return Ok(false),
            Err(ClusterError::Rejected { .. } | ClusterError::Conflict { .. }) if left > 0 => {
                match read(cluster, pod, REQUEST_MAX).await? {
                    Some(read) => fresh = Some(read),
                    None => return Ok(false),
                }
            }
            Err(error) => return Err(error),
        }
    }
    unreachable!("the last try returns")
}

/// Takes off a hold that carries our mark for this interruption, and no other.
pub async fn unhold(cluster: &Cluster, pod: &PodRow, instance: &str) -> Result<(), ClusterError> {
    let patch = json!([
        test("/metadata/uid", json!(pod.uid)),
        test(&annotation_path(our::HELD), json!(instance)),
        remove(&annotation_path(our::HELD)),
        remove(&annotation_path(our::DO_NOT_DISRUPT)),
    ]);
    match cluster.write(&path(pod), Write::JsonPatch(patch), REQUEST_MAX).await {
        // Gone, or the mark is: either way nothing of ours holds it.
        Ok(_) | Err(ClusterError::NotFound { .. } | ClusterError::Rejected { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Asks for a pod's eviction with this grace, for this UID only.
///
/// kube's `Api::evict` 5.0.0 writes `delete_options`, which the server ignores: the grace is lost.
pub async fn evict(
    cluster: &Cluster,
    pod: &PodRow,
    grace: Duration,
    bound: Duration,
) -> Result<Ending, ClusterError> {
    let body = eviction(pod, grace);
    ending(cluster.write(&format!("{}/eviction", path(pod)), Write::Create(body), bound).await)
}

/// Deletes a pod past its budget, for this UID only.
///
/// The condition comes first: a Job's failure policy counts on it to not count the failure.
pub async fn delete(
    cluster: &Cluster,
    pod: &PodRow,
    grace: Duration,
    bound: Duration,
) -> Result<Ending, ClusterError> {
    let body = json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": whole_seconds(grace),
        "preconditions": {"uid": pod.uid},
    });
    ending(cluster.write(&path(pod), Write::Delete(body), bound).await)
}

/// Sets the condition `DisruptionTarget` on a pod that is about to be deleted.
pub async fn mark_disruption_target(
    cluster: &Cluster,
    pod: &PodRow,
    now: Timestamp,
) -> Result<(), ClusterError> {
    let Some(patch) = disruption_patch(pod, now) else { return Ok(()) };
    let at = format!("{}/status", path(pod));
    match cluster.write(&at, Write::JsonPatch(patch), REQUEST_MAX).await {
        Ok(_) | Err(ClusterError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn eviction(pod: &PodRow, grace: Duration) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod.name, "namespace": pod.namespace},
        "deleteOptions": {
            "gracePeriodSeconds": whole_seconds(grace),
            "preconditions": {"uid": pod.uid},
        },
    })
}

fn ending(answer: Result<Value, ClusterError>) -> Result<Ending, ClusterError> {
    match answer {
        Ok(_) => Ok(Ending::Accepted),
        // Another UID is another pod: ours is gone.
        Err(ClusterError::NotFound { .. } | ClusterError::Conflict { .. }) => Ok(Ending::Gone),
        Err(error) if error.is_budget() => Ok(Ending::RefusedByBudget),
        Err(error) => Err(error),
    }
}

fn hold_patch(pod: &PodRow, instance: &str) -> Option<Value> {
    if pod.do_not_disrupt.is_some() {
        return None;
    }
    let guard = test("/metadata/uid", json!(pod.uid));
    if !pod.annotated {
        let map = json!({our::DO_NOT_DISRUPT: "true", our::HELD: instance});
        let absent = test("/metadata/annotations", Value::Null);
        return Some(json!([guard, absent, add("/metadata/annotations", map)]));
    }
    Some(json!([
        guard,
        test(&annotation_path(our::DO_NOT_DISRUPT), Value::Null),
        add(&annotation_path(our::DO_NOT_DISRUPT), json!("true")),
        add(&annotation_path(our::HELD), json!(instance)),
    ]))
}

fn disruption_patch(pod: &PodRow, now: Timestamp) -> Option<Value> {
    let condition = json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "SpotInterruption",
        "message": "lifeboat ends this pod before EC2 takes its node",
        "lastTransitionTime": now.to_string(),
    });
    let guard = test("/metadata/uid", json!(pod.uid));
    match pod.disruption_target {
        Some(true) => None,
        Some(false) => Some(json!([guard, add("/status/conditions/-", condition)])),
        None => Some(json!([guard, add("/status/conditions", json!([condition]))])),
    }
}

fn is_disruption_target(condition: &Condition) -> bool {
    condition.kind == "DisruptionTarget" && condition.status == "True"
}

fn deletion(object: &Object<Pods>) -> Option<(Timestamp, Duration)> {
    let grace = object.metadata.deletion_grace_period_seconds.unwrap_or_default();
    let grace = Duration::from_secs(u64::try_from(grace).unwrap_or_default());
    object.deleted_at().map(|at| (at, grace))
}

fn extended(containers: &[ContainerSpec]) -> Pairs<u64> {
    let mut sum: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, value) in containers.iter().flat_map(|container| &container.resources.limits) {
        let count = value.as_str().and_then(|text| text.parse().ok()).or_else(|| value.as_u64());
        if let (true, Some(count)) = (name.contains('/'), count) {
            *sum.entry(name).or_insert(0) += count;
        }
    }
    sum.into_iter().collect()
}

fn container(status: &ContainerStatus) -> ContainerRow {
    let id = status.container_id.as_deref();
    ContainerRow {
        name: status.name.clone(),
        id: id.map(|id| id.rsplit('/').next().unwrap_or(id).to_owned()),
        restarts: status.restart_count,
        ended: status.state.terminated.as_ref().map(|end| (end.finished_at, end.exit_code)),
    }
}

fn placement(spec: &PodSpec) -> Placement {
    let claims = spec.volumes.iter().filter_map(|volume| volume.persistent_volume_claim.as_ref());
    Placement {
        node_selector: spec.node_selector.clone(),
        terms: spec.affinity.as_ref().map(affinity_terms).unwrap_or_default(),
        volume_claims: claims.map(|claim| claim.claim_name.clone()).collect(),
    }
}

fn affinity_terms(affinity: &Value) -> Vec<Vec<Requirement>> {
    let terms = &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    let terms = terms.as_array().into_iter().flatten();
    let read = |term: &Value| serde_json::from_value(term["matchExpressions"].clone()).ok();
    terms.filter_map(read).collect()
}

fn annotation_path(key: &str) -> String {
    format!("/metadata/annotations/{}", marks::pointer(key))
}

/// Rounded up, so that a grace never becomes the zero that removes a pod whose containers run.
fn whole_seconds(grace: Duration) -> u64 {
    grace.as_secs() + u64::from(grace.subsec_nanos() > 0)
}

fn path(pod: &PodRow) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pod: Value) -> PodRow {
        PodRow::from_object(&serde_json::from_value(pod).unwrap())
    }

    fn train() -> Value {
        json!({
            "metadata": {
                "namespace": "ml", "name": "train-0", "uid": "u1",
                "annotations": {"lifeboat.dev/checkpoint": "sdk", "x": "y"},
            },
            "spec": {"nodeName": "gpu-1", "terminationGracePeriodSeconds": 600},
        })
    }

    #[test]
    fn an_eviction_carries_its_grace_and_its_uid_where_the_server_reads_them() {
        let body = eviction(&row(train()), Duration::from_secs(15));
        assert_eq!(body["deleteOptions"]["gracePeriodSeconds"], 15);
        assert_eq!(body["deleteOptions"]["preconditions"]["uid"], "u1");
        assert_eq!(body["apiVersion"], "policy/v1");
    }

    #[test]
    fn a_grace_is_never_rounded_to_zero() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(15)), 15);
    }

    #[test]
    fn a_hold_of_somebody_else_is_left_alone() {
        let mut pod = train();
        pod["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = json!("30m");
        assert_eq!(hold_patch(&row(pod), "i-1"), None);
    }

    #[test]
    fn a_hold_is_guarded_by_uid_and_absence() {
        let patch = hold_patch(&row(train()), "i-1").unwrap();
        let expected = json!([
            test("/metadata/uid", json!("u1")),
            test("/metadata/annotations/karpenter.sh~1do-not-disrupt", Value::Null),
            add("/metadata/annotations/karpenter.sh~1do-not-disrupt", json!("true")),
            add("/metadata/annotations/lifeboat.dev~1held", json!("i-1")),
        ]);
        assert_eq!(patch, expected);
    }

    #[test]
    fn an_agent_is_known_by_its_daemon_set_and_serves_when_it_is_ready() {
        let mut pod = train();
        assert_eq!(row(pod.clone()).agent, AgentPod::Other);
        let owner = |kind: &str, name: &str| {
            json!([{
                "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true,
            }])
        };
        pod["metadata"]["ownerReferences"] = owner("ReplicaSet", "lifeboat-agent");
        assert_eq!(row(pod.clone()).agent, AgentPod::Other);
        pod["metadata"]["ownerReferences"] = owner("DaemonSet", "lifeboat-agent");
        assert_eq!(row(pod.clone()).agent, AgentPod::Starting);
        pod["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        assert_eq!(row(pod).agent, AgentPod::Ready);
    }

    #[test]
    fn a_volume_of_ours_is_known_by_its_driver() {
        let mut pod = train();
        pod["spec"]["volumes"] = json!([{"name": "lifeboat", "csi": {"driver": "other.dev"}}]);
        assert!(!row(pod.clone()).has_volume);
        pod["spec"]["volumes"] = json!([{"name": "x", "csi": {"driver": "lifeboat.dev"}}]);
        assert!(row(pod).has_volume);
    }

    #[test]
    fn none_means_the_same_as_no_annotation() {
        let mut pod = train();
        assert!(row(pod.clone()).is_protected());
        pod["metadata"]["annotations"]["lifeboat.dev/checkpoint"] = json!("none");
        assert!(!row(pod.clone()).is_protected());
        pod["metadata"]["annotations"] = json!({});
        assert!(!row(pod).is_protected());
    }

    #[test]
    fn a_pod_is_ended_when_all_its_containers_are_for_good() {
        let mut pod = train();
        pod["status"] = json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "containerID": "containerd://abc",
             "state": {"terminated": {"exitCode": 143, "finishedAt": "2026-11-22T12:00:00Z"}}},
            {"name": "b", "state": {"running": {}}},
        ]});
        pod["spec"]["restartPolicy"] = json!("Never");
        assert_eq!(row(pod.clone()).ended(), None);
        pod["status"]["containerStatuses"][1]["state"] = json!({"terminated": {"exitCode": 0}});
        let at = "2026-11-22T12:00:00Z".parse().ok();
        assert_eq!(row(pod.clone()).ended(), Some((at, 143)));
        assert_eq!(row(pod.clone()).containers[0].id.as_deref(), Some("abc"));
        pod["spec"]["restartPolicy"] = json!("Always");
        assert_eq!(row(pod.clone()).ended(), None);
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-22T12:00:30Z");
        assert_eq!(row(pod).ended(), Some((at, 143)));
    }
}

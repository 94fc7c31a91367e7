//! The kinds that the simulated API server knows, and how each of them behaves.

use std::fmt;

/// One kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Version of the group.
    pub version: &'static str,
    /// Kind in objects.
    pub kind: &'static str,
    /// Whether its objects live in a namespace.
    pub scope: Scope,
    /// Whether it has a status subresource.
    pub status: Status,
    /// Whether Kubernetes itself or a CRD defines it: a CRD has no strategic merge.
    pub origin: Origin,
}

/// Where objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// In the cluster.
    Cluster,
    /// In a namespace.
    Namespace,
}

/// Whether status is written by an endpoint of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// It is: the main endpoint ignores status, and the status endpoint everything else.
    Apart,
    /// There is none.
    Absent,
}

/// Who defines a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Kubernetes.
    Kubernetes,
    /// A `CustomResourceDefinition`.
    Custom,
}

impl Resource {
    const fn built_in(group: &'static str, plural: &'static str, kind: &'static str) -> Self {
        let (scope, status, origin) = (Scope::Namespace, Status::Absent, Origin::Kubernetes);
        Self { group, plural, version: "v1", kind, scope, status, origin }
    }

    const fn custom(group: &'static str, plural: &'static str, kind: &'static str) -> Self {
        let (scope, status, origin) = (Scope::Cluster, Status::Apart, Origin::Custom);
        Self { group, plural, version: "v1", kind, scope, status, origin }
    }

    const fn in_cluster(self) -> Self {
        Self { scope: Scope::Cluster, ..self }
    }

    const fn in_namespace(self) -> Self {
        Self { scope: Scope::Namespace, ..self }
    }

    const fn with_status(self) -> Self {
        Self { status: Status::Apart, ..self }
    }

    const fn of_version(self, version: &'static str) -> Self {
        Self { version, ..self }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            return self.version.to_owned();
        }
        format!("{}/{}", self.group, self.version)
    }

    /// Its kind with its group, as refusals name it.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() {
            return self.kind.to_owned();
        }
        format!("{}.{}", self.kind, self.group)
    }

    /// The kind that a path names.
    pub fn named(group: &str, version: &str, plural: &str) -> Option<Self> {
        let same = |known: &&Self| {
            known.group == group && known.version == version && known.plural == plural
        };
        RESOURCES.iter().find(same).copied()
    }

    /// The kind that an object says it is.
    pub fn of_kind(api_version: &str, kind: &str) -> Option<Self> {
        let same = |known: &&Self| known.kind == kind && known.api_version() == api_version;
        RESOURCES.iter().find(same).copied()
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            return formatter.write_str(self.plural);
        }
        write!(formatter, "{}.{}", self.plural, self.group)
    }
}

/// Pods.
pub const POD: Resource = Resource::built_in("", "pods", "Pod").with_status();
/// Nodes.
pub const NODE: Resource = Resource::built_in("", "nodes", "Node").in_cluster().with_status();
/// Namespaces.
pub const NAMESPACE: Resource =
    Resource::built_in("", "namespaces", "Namespace").in_cluster().with_status();
/// Events of the core group.
pub const EVENT: Resource = Resource::built_in("", "events", "Event");
/// Events of their own group, as kube's recorder writes them.
pub const EVENTS_EVENT: Resource = Resource::built_in("events.k8s.io", "events", "Event");
/// `ConfigMaps`.
pub const CONFIG_MAP: Resource = Resource::built_in("", "configmaps", "ConfigMap");
/// `PersistentVolumes`.
pub const VOLUME: Resource =
    Resource::built_in("", "persistentvolumes", "PersistentVolume").in_cluster().with_status();
/// `PersistentVolumeClaims`.
pub const VOLUME_CLAIM: Resource =
    Resource::built_in("", "persistentvolumeclaims", "PersistentVolumeClaim").with_status();
/// `Deployments`.
pub const DEPLOYMENT: Resource =
    Resource::built_in("apps", "deployments", "Deployment").with_status();
/// `DaemonSets`.
pub const DAEMON_SET: Resource =
    Resource::built_in("apps", "daemonsets", "DaemonSet").with_status();
/// `StatefulSets`.
pub const STATEFUL_SET: Resource =
    Resource::built_in("apps", "statefulsets", "StatefulSet").with_status();
/// Jobs.
pub const JOB: Resource = Resource::built_in("batch", "jobs", "Job").with_status();
/// `PodDisruptionBudgets`.
pub const BUDGET: Resource =
    Resource::built_in("policy", "poddisruptionbudgets", "PodDisruptionBudget").with_status();
/// Leases.
pub const LEASE: Resource = Resource::built_in("coordination.k8s.io", "leases", "Lease");
/// `PriorityClasses`.
pub const PRIORITY_CLASS: Resource =
    Resource::built_in("scheduling.k8s.io", "priorityclasses", "PriorityClass").in_cluster();
/// CSI drivers.
pub const CSI_DRIVER: Resource =
    Resource::built_in("storage.k8s.io", "csidrivers", "CSIDriver").in_cluster();
/// `CustomResourceDefinitions`.
pub const DEFINITION: Resource = Resource::built_in(
    "apiextensions.k8s.io",
    "customresourcedefinitions",
    "CustomResourceDefinition",
)
.in_cluster()
.with_status();
/// Our record of one interruption.
pub const INTERRUPTION: Resource =
    Resource::custom("lifeboat.dev", "nodeinterruptions", "NodeInterruption")
        .of_version("v1alpha1");
/// Our index of what is saved.
pub const CHECKPOINT: Resource =
    Resource::custom("lifeboat.dev", "workloadcheckpoints", "WorkloadCheckpoint")
        .of_version("v1alpha1")
        .in_namespace();
/// Karpenter's claims.
pub const NODE_CLAIM: Resource = Resource::custom("karpenter.sh", "nodeclaims", "NodeClaim");
/// Karpenter's pools.
pub const NODE_POOL: Resource = Resource::custom("karpenter.sh", "nodepools", "NodePool");
/// Karpenter's overlays.
pub const NODE_OVERLAY: Resource =
    Resource::custom("karpenter.sh", "nodeoverlays", "NodeOverlay").of_version("v1alpha1");
/// Karpenter's node classes on EC2.
pub const NODE_CLASS: Resource =
    Resource::custom("karpenter.k8s.aws", "ec2nodeclasses", "EC2NodeClass");

/// Every kind there is.
pub const RESOURCES: &[Resource] = &[
    POD,
    NODE,
    NAMESPACE,
    EVENT,
    EVENTS_EVENT,
    CONFIG_MAP,
    VOLUME,
    VOLUME_CLAIM,
    DEPLOYMENT,
    DAEMON_SET,
    STATEFUL_SET,
    JOB,
    BUDGET,
    LEASE,
    PRIORITY_CLASS,
    CSI_DRIVER,
    DEFINITION,
    INTERRUPTION,
    CHECKPOINT,
    NODE_CLAIM,
    NODE_POOL,
    NODE_OVERLAY,
    NODE_CLASS,
];

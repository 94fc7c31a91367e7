//! Names of Karpenter's and Kubernetes' own that we read or set, beside ours in [`crate::crd::marks`].

/// Karpenter ends every pod of the claim in time for this hour.
///
/// Source: Karpenter, "Disruption", terminationGracePeriod.
pub const TERMINATION_TIMESTAMP: &str = "karpenter.sh/nodeclaim-termination-timestamp";
/// Which pool a node or claim belongs to.
pub const NODE_POOL: &str = "karpenter.sh/nodepool";
/// `spot`, `on-demand` or `reserved`.
pub const CAPACITY_TYPE: &str = "karpenter.sh/capacity-type";
/// A node's instance type.
pub const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
/// A node's zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Prefix of every annotation of ours.
pub const OURS: &str = "lifeboat.dev/";

/// Writes a key as a part of a JSON pointer.
///
/// Source: RFC 6901, section 3.
pub fn pointer(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

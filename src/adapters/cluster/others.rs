//! What others run in the cluster, read whole: `lifeboat doctor` looks at it, and nobody else.

use serde_json::Value;

use crate::adapters::cluster::objects::Kind;

/// One kind whose objects are read as they come.
macro_rules! whole {
    ($(#[$about:meta])* $name:ident: $kind:literal, $group:literal, $plural:literal, $scope:ident) => {
        $(#[$about])*
        #[derive(Clone, Debug)]
        pub struct $name;

        impl Kind for $name {
            type Spec = Value;
            type Status = Value;
            type Scope = kube::core::$scope;
            const KIND: &'static str = $kind;
            const GROUP: &'static str = $group;
            const VERSION: &'static str = "v1";
            const PLURAL: &'static str = $plural;
        }
    };
}

whole! {
    /// Jobs: whether an interruption counts against them.
    Jobs: "Job", "batch", "jobs", NamespaceResourceScope
}
whole! {
    /// Deployments: Karpenter, and aws-node-termination-handler reading a queue.
    Deployments: "Deployment", "apps", "deployments", NamespaceResourceScope
}
whole! {
    /// `DaemonSet`s: our agents, and aws-node-termination-handler on each node.
    DaemonSets: "DaemonSet", "apps", "daemonsets", NamespaceResourceScope
}
whole! {
    /// Karpenter's classes of EC2 nodes: how their metadata service answers.
    NodeClasses: "EC2NodeClass", "karpenter.k8s.aws", "ec2nodeclasses", ClusterResourceScope
}

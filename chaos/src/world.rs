//! The one mutable truth of a simulated cluster and cloud.

pub mod bucket;
pub mod cluster;
pub mod instances;
pub mod karpenter;
pub mod kubelet;
pub mod queue;
pub mod workloads;

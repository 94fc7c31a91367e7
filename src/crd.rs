//! Wire types of our resources, and the marks that we leave on others'.

pub mod convert;
pub mod node_interruption;
pub mod workload_checkpoint;

mod schema;

/// The API group and the version of both records.
pub const GROUP: &str = "lifeboat.dev";
/// The driver of the volume that agents serve, as pods name it.
pub const DRIVER: &str = GROUP;

/// Names of the marks: labels, taints and annotations.
pub mod marks {
    /// Taint of a node that is being taken: `<kind>:NoSchedule`.
    pub const INTERRUPTED: &str = "lifeboat.dev/interrupted";
    /// Soft taint on advice: `<expiry, UTC seconds>:PreferNoSchedule`.
    pub const AT_RISK: &str = "lifeboat.dev/at-risk";
    /// Startup taint until the agent answers.
    pub const AGENT_NOT_READY: &str = "lifeboat.dev/agent-not-ready";
    /// Node annotation beside our cordon: whether the node was cordoned before us.
    pub const CORDONED: &str = "lifeboat.dev/cordoned";
    /// Node annotation beside our block of voluntary disruption.
    pub const BLOCKED: &str = "lifeboat.dev/disruption-blocked";
    /// Pod annotation beside our hold: the instance id it was set for, or `admission`.
    pub const HELD: &str = "lifeboat.dev/held";
    /// What [`HELD`] says of a hold that was set when the pod was admitted.
    pub const AT_ADMISSION: &str = "admission";
    /// Pod annotation: what could not be added when the pod was admitted.
    pub const NOT_INJECTED: &str = "lifeboat.dev/not-injected";
    /// Attribute of a pod's volume: its own grace in seconds.
    pub const GRACE_ATTRIBUTE: &str = "lifeboat.dev/grace";
    /// Attribute of a pod's volume: its priority to the scheduler.
    pub const POD_PRIORITY_ATTRIBUTE: &str = "lifeboat.dev/pod-priority";
    /// Node and namespace annotation that stops everything but recording.
    pub const PAUSED: &str = "lifeboat.dev/paused";
    /// Label of a replacement claim: the instance it is for.
    pub const REPLACES: &str = "lifeboat.dev/replaces";
    /// How a pod is saved: `sdk`, `directory`, `http`, `sigterm` or `none`.
    pub const CHECKPOINT: &str = "lifeboat.dev/checkpoint";
    /// Where the volume is mounted, in directory mode.
    pub const CHECKPOINT_PATH: &str = "lifeboat.dev/checkpoint-path";
    /// Port and path to call, in http mode.
    pub const CHECKPOINT_HTTP: &str = "lifeboat.dev/checkpoint-http";
    /// The name under which checkpoints are kept.
    pub const JOB_KEY: &str = "lifeboat.dev/job-key";
    /// Which checkpoint is restored.
    pub const RESTORE: &str = "lifeboat.dev/restore";
    /// Order within a namespace.
    pub const PRIORITY: &str = "lifeboat.dev/priority";
    /// When the pod is held: `always` or `on-signal`.
    pub const HOLD: &str = "lifeboat.dev/hold";
    /// Karpenter's own hold, on pods and nodes.
    pub const DO_NOT_DISRUPT: &str = "karpenter.sh/do-not-disrupt";
}

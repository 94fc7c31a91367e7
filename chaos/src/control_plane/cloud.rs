//! The stand-in cloud below Karpenter: how tests steer it, and what was asked of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;

use super::ControlPlaneError;
use super::layout;

/// A folder that the cloud reads before each purchase, and writes what it was asked for to.
#[derive(Clone, Debug)]
pub struct Cloud {
    folder: PathBuf,
}

/// How the cloud behaves from now on.
#[derive(Clone, Debug, Default)]
pub struct Behavior {
    /// What it has no capacity for, which Karpenter learns when it asks.
    pub refused: Vec<Pool>,
    /// What it has no capacity for, and Karpenter knows it, as after an interruption.
    pub unavailable: Vec<Pool>,
    /// What nodes of an instance type say that they have beyond the type's own resources, as a
    /// device plugin does that makes slices: type, resource, quantity.
    pub reports: BTreeMap<String, BTreeMap<String, String>>,
    /// How long a purchase takes.
    pub launch: Duration,
    /// How long after the purchase its node is there.
    pub registration: Duration,
    /// How long an instance goes on after Karpenter asked for its end.
    pub termination: Duration,
}

/// Offerings; what is `None` is any.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The instance type.
    pub instance_type: Option<String>,
    /// The zone.
    pub zone: Option<String>,
    /// `spot` or `on-demand`.
    pub capacity_type: Option<String>,
}

/// Something that Karpenter asked the cloud for.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// When.
    pub time: Timestamp,
    /// `launch`, `refuse` or `terminate`.
    pub what: String,
    /// The NodeClaim.
    #[serde(default)]
    pub claim: String,
    /// The instance, as in `i-0123456789abcdef0`; empty where none was bought.
    #[serde(default)]
    pub instance: String,
    /// The node; empty where none was bought.
    #[serde(default)]
    pub node: String,
    /// The instance type; empty where none was left.
    #[serde(default)]
    pub instance_type: String,
    /// The zone; empty where none was left.
    #[serde(default)]
    pub zone: String,
    /// `spot` or `on-demand`.
    #[serde(default)]
    pub capacity_type: String,
}

impl Cloud {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Makes the cloud behave so for everything asked from now on.
    pub fn behave(&self, behavior: &Behavior) -> Result<(), ControlPlaneError> {
        let text = json!({
            "refused": behavior.refused,
            "unavailable": behavior.unavailable,
            "reports": behavior.reports,
            "launchMilliseconds": milliseconds(behavior.launch),
            "registrationMilliseconds": milliseconds(behavior.registration),
            "terminationMilliseconds": milliseconds(behavior.termination),
        });
        // It is read while we write: it finds the old one or the new one, whole.
        let (new, path) = (self.folder.join("behavior.new"), self.folder.join("behavior.json"));
        layout::write(&new, &format!("{text:#}\n"))?;
        std::fs::rename(&new, &path).map_err(|source| ControlPlaneError::File { path, source })
    }

    /// Ends an instance, as EC2 does when it reclaims one: the cloud no longer knows it.
    pub fn reclaim(&self, instance: &str) -> Result<(), ControlPlaneError> {
        layout::write(&self.folder.join(format!("gone-{instance}")), "")
    }

    /// What Karpenter asked for so far, in order.
    pub fn asked(&self) -> Result<Vec<Asked>, ControlPlaneError> {
        let path = self.folder.join("asked.jsonl");
        let text = if path.exists() { layout::read(&path)? } else { String::new() };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let parse = |line| {
            let unreadable = |error: serde_json::Error| ControlPlaneError::Unreadable {
                path: path.clone(),
                why: error.to_string(),
            };
            serde_json::from_str(line).map_err(unreadable)
        };
        whole.lines().map(parse).collect()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

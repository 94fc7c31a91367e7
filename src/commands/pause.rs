//! `lifeboat pause`: stops everything but recording, for a node, a namespace or all.

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use serde_json::Value;
use serde_json::json;

use crate::commands::CommandError;
use crate::crd::marks;

/// What is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Everything: the mark is on our own namespace, named here.
    All(String),
    /// The pods of one namespace.
    Namespace(String),
    /// One node.
    Node(String),
}

/// What the mark should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Only record from now on.
    Pause,
    /// Act again.
    Resume,
}

/// Sets or takes away the mark, and says so.
pub async fn set(client: &Client, target: &Target, wish: Wish) -> Result<String, CommandError> {
    let value = match wish {
        Wish::Pause => json!("true"),
        Wish::Resume => Value::Null,
    };
    let patch = Patch::Merge(json!({"metadata": {"annotations": {marks::PAUSED: value}}}));
    let patch = &patch;
    let manager = Some("lifeboat-pause".to_owned());
    let options = &PatchParams { field_manager: manager, ..PatchParams::default() };
    let changed = match target {
        Target::All(name) | Target::Namespace(name) => Api::<Namespace>::all(client.clone())
            .patch_metadata(name, options, patch)
            .await
            .map(drop),
        Target::Node(name) => {
            Api::<Node>::all(client.clone()).patch_metadata(name, options, patch).await.map(drop)
        }
    };
    match changed {
        Ok(()) => Ok(said(target, wish)),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            Err(CommandError::Missing { what: named(target) })
        }
        Err(error) => Err(CommandError::Write { what: named(target), source: error.into() }),
    }
}

fn said(target: &Target, wish: Wish) -> String {
    let scope = match target {
        Target::All(_) => "everything".to_owned(),
        Target::Namespace(_) | Target::Node(_) => named(target),
    };
    match wish {
        Wish::Pause => {
            format!("{scope} is paused: interruptions are recorded, and nothing is done\n")
        }
        Wish::Resume => format!("{scope} is protected again\n"),
    }
}

fn named(target: &Target) -> String {
    match target {
        Target::All(name) | Target::Namespace(name) => format!("namespace `{name}`"),
        Target::Node(name) => format!("node `{name}`"),
    }
}

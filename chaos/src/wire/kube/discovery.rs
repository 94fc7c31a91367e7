//! What the API server says about itself: version, health, the kinds it has, and access reviews.

use std::collections::BTreeSet;

use http::Method;
use serde_json::Value;
use serde_json::json;

use crate::world::cluster::resource::RESOURCES;
use crate::world::cluster::resource::Resource;
use crate::world::cluster::resource::Scope;
use crate::world::cluster::resource::Status;

/// The answer, if the request is of this sort.
pub(super) fn answer(method: &Method, path: &str, body: &[u8]) -> Option<Value> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match (method, parts.as_slice()) {
        (&Method::GET, ["version"]) => Some(json!({
            "major": "1", "minor": "35", "gitVersion": "v1.35.4", "gitCommit": "", "buildDate": "",
            "gitTreeState": "clean", "goVersion": "", "compiler": "gc", "platform": "linux/amd64",
        })),
        (&Method::GET, ["livez" | "readyz" | "healthz"]) => Some(json!("ok")),
        (&Method::GET, ["api"]) => Some(json!({
            "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
        })),
        (&Method::GET, ["apis"]) => Some(json!({
            "kind": "APIGroupList", "apiVersion": "v1", "groups": groups(),
        })),
        (&Method::GET, ["apis", named]) => {
            groups().into_iter().find(|group| group["name"] == *named)
        }
        (&Method::GET, ["api", version]) => kinds("", version),
        (&Method::GET, ["apis", group, version]) => kinds(group, version),
        (&Method::POST, ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"]) => {
            let mut review: Value = serde_json::from_slice(body).ok()?;
            review["status"] = json!({ "allowed": true });
            Some(review)
        }
        (&Method::POST, ["apis", "authentication.k8s.io", "v1", "selfsubjectreviews"]) => {
            let mut review: Value = serde_json::from_slice(body).ok()?;
            let who = "system:serviceaccount:lifeboat-system:lifeboat-controller";
            review["status"] = json!({ "userInfo": { "username": who } });
            Some(review)
        }
        _ => None,
    }
}

fn groups() -> Vec<Value> {
    let known = RESOURCES.iter().filter(|resource| !resource.group.is_empty());
    let names: BTreeSet<&str> = known.map(|resource| resource.group).collect();
    names.into_iter().map(group).collect()
}

fn group(name: &str) -> Value {
    let of_group = RESOURCES.iter().filter(|resource| resource.group == name);
    let served: BTreeSet<&str> = of_group.map(|resource| resource.version).collect();
    let entry =
        |version: &&str| json!({ "groupVersion": format!("{name}/{version}"), "version": version });
    let versions: Vec<Value> = served.iter().map(entry).collect();
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions,
        "preferredVersion": versions.first(),
    })
}

fn kinds(group: &str, version: &str) -> Option<Value> {
    let of_version =
        RESOURCES.iter().filter(|known| known.group == group && known.version == version);
    let kinds: Vec<Value> = of_version.flat_map(kind).collect();
    let group_version =
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!kinds.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
            "resources": kinds,
        })
    })
}

fn kind(resource: &Resource) -> Vec<Value> {
    const VERBS: [&str; 7] = ["create", "delete", "get", "list", "patch", "update", "watch"];
    let entry = |name: String, verbs: &[&str]| {
        let singular =
            if name.contains('/') { String::new() } else { resource.kind.to_lowercase() };
        json!({
            "name": name, "singularName": singular, "kind": resource.kind,
            "namespaced": resource.scope == Scope::Namespace, "verbs": verbs,
        })
    };
    let mut kinds = vec![entry(resource.plural.to_owned(), &VERBS)];
    if resource.status == Status::Apart {
        kinds.push(entry(format!("{}/status", resource.plural), &["get", "patch", "update"]));
    }
    kinds
}

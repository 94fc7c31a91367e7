//! Getting, listing and watching.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::Asked;
use super::View;
use super::shown;
use super::watch;
use super::watch::Bookmarks;
use super::watch::Start;
use super::watch::Watch;
use crate::world::World;
use crate::world::cluster::Cluster;
use crate::world::cluster::Key;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::number;
use crate::world::cluster::object::text;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::Origin;
use crate::world::cluster::resource::Resource;

/// How long the server lets a watch run that names no time of its own.
const WATCH: Duration = Duration::from_mins(30);

pub(super) fn get(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    let Some(target) = asked.address.target() else { return Err(Refusal::bad_request("no name")) };
    if !["", "status"].contains(&asked.address.subresource.as_str()) {
        return Err(Refusal::unsupported(format!("get of {}", asked.address.counted())));
    }
    let object = world.read(|state| state.cluster.expect(&target))?;
    Ok(Answer::Object(StatusCode::OK, Value::clone(&shown(&object, asked.metadata_only))))
}

pub(super) fn list(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    let view = asked.view()?;
    let range = Range::read(asked)?;
    let resource = asked.address.resource;
    world.read(|state| {
        let (version, objects) = range.objects(&state.cluster, resource)?;
        let rest: Vec<&Arc<Value>> = objects.iter().filter(|object| view.sees(object)).collect();
        let items: Vec<Value> =
            rest.iter().take(range.limit).map(|object| listed(&view, object)).collect();
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if let Some(last) = rest.get(items.len().saturating_sub(1))
            && rest.len() > items.len()
        {
            metadata["continue"] = json!(token(version, last));
            // What a selector leaves out cannot be counted without being read.
            if !asked.selects() {
                metadata["remainingItemCount"] = json!(rest.len() - items.len());
            }
        }
        let (kind, api_version) = if asked.metadata_only {
            ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned())
        } else {
            (format!("{}List", resource.kind), resource.api_version())
        };
        let list = json!({
            "kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items,
        });
        Ok(Answer::Object(StatusCode::OK, list))
    })
}

/// An object as a list holds it: Kubernetes' own kinds don't say again what they are.
fn listed(view: &View, object: &Arc<Value>) -> Value {
    let mut item = Value::clone(&view.shown(object));
    if view.address.resource.origin == Origin::Kubernetes
        && !view.metadata_only
        && let Some(map) = item.as_object_mut()
    {
        map.remove("kind");
        map.remove("apiVersion");
    }
    item
}

/// Which part of a list is wanted, and of which version. All pages are of the version of the first,
/// so that a watch from there tells again what changed while they were read.
struct Range {
    limit: usize,
    start: String,
    at: Version,
}

/// The version that a list is of.
enum Version {
    /// The newest, which must not be older than this one.
    NotOlder(u64),
    /// This one.
    Exact(u64),
    /// Any: what goes on after its first pages were forgotten.
    Any,
}

impl Range {
    fn read(asked: &Asked) -> Result<Self, Refusal> {
        let limit = asked.query.number("limit")?.filter(|limit| *limit > 0);
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let version = asked.query.number("resourceVersion")?;
        let matched = asked.query.text("resourceVersionMatch");
        let goes_on = asked.query.text("continue");
        check_match(version, matched)?;
        if !goes_on.is_empty() {
            if version.is_some_and(|version| version > 0) {
                const WHY: &str = "specifying resource version is not allowed when using continue";
                return Err(Refusal::bad_request(WHY));
            }
            return Self::of_token(goes_on, limit);
        }
        // A list of any version comes from the cache, and whole.
        let limit = if version == Some(0) { usize::MAX } else { limit };
        let at = match (version, matched) {
            (Some(version), "Exact") => Version::Exact(version),
            (version, _) => Version::NotOlder(version.unwrap_or_default()),
        };
        Ok(Self { limit, start: String::new(), at })
    }

    fn of_token(token: &str, limit: usize) -> Result<Self, Refusal> {
        let invalid = || Refusal::bad_request("continue key is not valid");
        let token = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
        let token: Value = serde_json::from_slice(&token).map_err(|_| invalid())?;
        let start = text(&token, "/start").trim_end_matches('\0').to_owned();
        let at = match number(&token, "/rv").ok_or_else(invalid)? {
            ..0 => Version::Any,
            version => Version::Exact(version.unsigned_abs()),
        };
        Ok(Self { limit, start, at })
    }

    fn objects(
        &self,
        cluster: &Cluster,
        resource: Resource,
    ) -> Result<(u64, Vec<Arc<Value>>), Refusal> {
        let newest = cluster.version();
        let wanted = match self.at {
            Version::NotOlder(version) | Version::Exact(version) if version > newest => {
                return Err(Refusal::too_large(version, newest));
            }
            Version::Exact(version) => version,
            Version::NotOlder(_) | Version::Any => newest,
        };
        if wanted < cluster.oldest() {
            return Err(match self.start.as_str() {
                "" => Refusal::expired(wanted, cluster.oldest()),
                start => Refusal::list_expired(written(-1, start)),
            });
        }
        Ok((wanted, cluster.list_at(resource, wanted, self.after().as_ref())))
    }

    /// The last object of the page before, by namespace and name.
    fn after(&self) -> Option<Key> {
        if self.start.is_empty() {
            return None;
        }
        let (namespace, name) = self.start.split_once('/').unwrap_or(("", &self.start));
        Some((namespace.to_owned(), name.to_owned()))
    }
}

fn check_match(version: Option<u64>, matched: &str) -> Result<(), Refusal> {
    let refused = |why: &str| Err(Refusal::options("ListOptions", "resourceVersionMatch", why));
    match (matched, version) {
        ("", _) | ("NotOlderThan" | "Exact", Some(_)) => Ok(()),
        (_, None) => refused(
            "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (strange, Some(_)) => refused(&format!("Unsupported value: \"{strange}\"")),
    }
}

/// A token as the real server writes it.
fn token(version: u64, last: &Value) -> String {
    let version = i64::try_from(version).unwrap_or(i64::MAX);
    written(version, &place(last))
}

fn written(version: i64, start: &str) -> String {
    let token = json!({ "v": "meta.k8s.io/v1", "rv": version, "start": format!("{start}\0") });
    URL_SAFE_NO_PAD.encode(token.to_string())
}

/// Where an object lies among the others of its kind.
fn place(object: &Value) -> String {
    match (namespace(object), name(object)) {
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

pub(super) fn watch(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    let view = asked.view()?;
    let version = asked.query.number("resourceVersion")?.unwrap_or_default();
    let listed = asked.query.is_set("sendInitialEvents");
    if listed && asked.query.text("resourceVersionMatch") != "NotOlderThan" {
        let why = "Forbidden: resourceVersionMatch=NotOlderThan is required for sendInitialEvents";
        return Err(Refusal::options("ListOptions", "resourceVersionMatch", why));
    }
    let start = match version {
        _ if listed => Start::Listed,
        0 => Start::Now,
        version => Start::After(version),
    };
    let bookmarks =
        if asked.query.is_set("allowWatchBookmarks") { Bookmarks::Sent } else { Bookmarks::Absent };
    let ends = asked.query.number("timeoutSeconds")?.map_or(WATCH, Duration::from_secs);
    let watch = Watch { view, start, bookmarks, ends };
    Ok(Answer::Stream(watch::body(world.clone(), watch)))
}

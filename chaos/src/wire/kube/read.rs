//! Getting, listing and watching.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::Asked;
use super::shown;
use super::watch;
use super::watch::Bookmarks;
use super::watch::Start;
use super::watch::Watch;
use crate::world::World;
use crate::world::cluster::Target;
use crate::world::cluster::refusal::Refusal;

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
    let limit = asked.query.number("limit")?.filter(|limit| *limit > 0);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let wanted = asked.query.number("resourceVersion")?.unwrap_or_default();
    let resource = asked.address.resource;
    world.read(|state| {
        let cluster = &state.cluster;
        if wanted > cluster.version() {
            return Err(too_large(wanted, cluster.version()));
        }
        if asked.query.text("resourceVersionMatch") == "Exact" && wanted != cluster.version() {
            return Err(Refusal::unsupported("list of an exact version that is not the newest"));
        }
        let page = Page::read(asked.query.text("continue"), cluster.version())?;
        if page.version < cluster.oldest() {
            return Err(Refusal::expired(page.version, cluster.oldest()));
        }
        let seen = cluster.list(resource).filter(|object| view.sees(object));
        let rest: Vec<&Arc<Value>> = seen.filter(|object| page.is_before(object)).collect();
        let items: Vec<Value> =
            rest.iter().take(limit).map(|object| Value::clone(&view.shown(object))).collect();
        let mut metadata = json!({ "resourceVersion": page.version.to_string() });
        if rest.len() > items.len()
            && let Some(last) = items.last()
        {
            metadata["continue"] = json!(page.after(last));
            metadata["remainingItemCount"] = json!(rest.len() - items.len());
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

/// Where a list goes on. All pages carry the version of the first, so that a watch from there
/// tells again what changed while they were read.
struct Page {
    version: u64,
    after: Option<(String, String)>,
}

impl Page {
    fn read(token: &str, newest: u64) -> Result<Self, Refusal> {
        if token.is_empty() {
            return Ok(Self { version: newest, after: None });
        }
        let mut parts = token.split('_');
        let version = parts.next().and_then(|version| version.parse().ok());
        match (version, parts.next(), parts.next()) {
            (Some(version), Some(namespace), Some(name)) => {
                let after = Some((namespace.to_owned(), name.to_owned()));
                Ok(Self { version, after })
            }
            _ => Err(Refusal::bad_request("continue key is not valid")),
        }
    }

    fn is_before(&self, object: &Value) -> bool {
        let target = |object| Target::of(crate::world::cluster::resource::POD, object);
        let Target { namespace, name, .. } = target(object);
        self.after.as_ref().is_none_or(|after| *after < (namespace, name))
    }

    fn after(&self, last: &Value) -> String {
        let namespace = crate::world::cluster::object::namespace(last);
        let name = crate::world::cluster::object::name(last);
        format!("{}_{namespace}_{name}", self.version)
    }
}

fn too_large(wanted: u64, newest: u64) -> Refusal {
    let message = format!("Too large resource version: {wanted}, current: {newest}");
    Refusal::new(504, "Timeout", message)
}

pub(super) fn watch(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    let view = asked.view()?;
    let version = asked.query.number("resourceVersion")?.unwrap_or_default();
    let newest = world.read(|state| state.cluster.version());
    if version > newest {
        return Err(too_large(version, newest));
    }
    let start = match version {
        _ if asked.query.is_set("sendInitialEvents") => Start::Listed,
        0 => Start::Now,
        version => Start::After(version),
    };
    let bookmarks =
        if asked.query.is_set("allowWatchBookmarks") { Bookmarks::Sent } else { Bookmarks::Absent };
    let ends = asked.query.number("timeoutSeconds")?.map_or(WATCH, Duration::from_secs);
    let watch = Watch { view, start, bookmarks, ends };
    Ok(Answer::Stream(watch::body(world.clone(), watch)))
}

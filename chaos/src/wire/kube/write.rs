//! Creating, replacing, patching, deleting and evicting.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;
use serde_json::json;

use super::Answer;
use super::Asked;
use crate::world::World;
use crate::world::cluster::Target;
use crate::world::cluster::apply::Conflicts;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::delete::Deleted;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::text;
use crate::world::cluster::patch::json_patch;
use crate::world::cluster::patch::merge_patch;
use crate::world::cluster::patch::strategic_patch;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::Origin;
use crate::world::cluster::resource::POD;
use crate::world::cluster::resource::Scope;
use crate::world::cluster::resource::Status;
use crate::world::cluster::write::Door;

/// Content type of server-side apply.
pub(super) const APPLY: &str = "application/apply-patch+yaml";

pub(super) fn create(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    if asked.address.name.is_some() && asked.address.subresource.is_empty() {
        return Err(not_allowed());
    }
    if asked.address.name.is_some() {
        return Err(Refusal::unsupported(format!("create of {}", asked.address.counted())));
    }
    let mut object = body(asked)?;
    if asked.address.resource.origin == Origin::Custom {
        check_named_kind(&object)?;
    }
    let resource = asked.address.resource;
    if resource.scope == Scope::Namespace {
        let wanted = asked.address.namespace.as_deref().unwrap_or_default();
        let given = namespace(&object);
        if !given.is_empty() && given != wanted {
            const WHY: &str = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Refusal::bad_request(WHY));
        }
        object["metadata"]["namespace"] = json!(wanted);
    }
    let made = world.update(|state| state.cluster.create(&asked.caller, resource, object))?;
    Ok(Answer::Object(StatusCode::CREATED, Value::clone(&made)))
}

pub(super) fn update(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    let (target, door) = (target(asked)?, door(asked)?);
    let object = body(asked)?;
    check_name(&target, &object)?;
    let caller = &asked.caller;
    world.update(|state| {
        let cluster = &mut state.cluster;
        let there = cluster.get(&target).is_some();
        let done = cluster.update(caller, (&target, door), object)?;
        let status = if there { StatusCode::OK } else { StatusCode::CREATED };
        Ok(Answer::Object(status, Value::clone(&done)))
    })
}

pub(super) fn patch(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    let (target, door) = (target(asked)?, door(asked)?);
    let patch = body(asked)?;
    let caller = &asked.caller;
    if asked.content_type == APPLY {
        if asked.query.text("fieldManager").is_empty() {
            let why = "Required value: is required for apply patch";
            return Err(Refusal::options("PatchOptions", "fieldManager", why));
        }
        check_named_kind(&patch)?;
        check_name(&target, &patch)?;
        let force = asked.query.is_set("force");
        let conflicts = if force { Conflicts::Force } else { Conflicts::Refuse };
        return world.update(|state| {
            let cluster = &mut state.cluster;
            let there = cluster.get(&target).is_some();
            let done = cluster.apply(caller, (&target, door, conflicts), patch)?;
            let status = if there { StatusCode::OK } else { StatusCode::CREATED };
            Ok(Answer::Object(status, Value::clone(&done)))
        });
    }
    let custom = target.resource.origin == Origin::Custom;
    let done: Arc<Value> = world.update(|state| {
        let cluster = &mut state.cluster;
        let old = cluster.expect(&target)?;
        let new = match asked.content_type.as_str() {
            "application/json-patch+json" => json_patch(&old, &patch)?,
            "application/merge-patch+json" => merge_patch(&old, &patch),
            "application/strategic-merge-patch+json" if !custom => strategic_patch(&old, &patch),
            other => {
                let message = format!("the body of the request was in an unknown format - {other}");
                return Err(Refusal::new(415, "UnsupportedMediaType", message));
            }
        };
        cluster.commit(caller, (&target, door, "patch"), (&old, new))
    })?;
    Ok(Answer::Object(StatusCode::OK, Value::clone(&done)))
}

pub(super) fn delete(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    let target = target(asked)?;
    if !asked.address.subresource.is_empty() {
        return Err(Refusal::unsupported(format!("delete of {}", asked.address.counted())));
    }
    let options = if asked.body.is_empty() { json!({}) } else { body(asked)? };
    check_options(&options)?;
    let mut options = DeleteOptions::read(&options);
    if let Some(grace) = asked.query.number("gracePeriodSeconds")?
        && asked.body.is_empty()
    {
        options.grace_seconds = i64::try_from(grace).ok();
    }
    let caller = &asked.caller;
    let deleted = world.update(|state| state.cluster.delete(caller, &target, &options))?;
    Ok(Answer::Object(
        StatusCode::OK,
        match deleted {
            Deleted::Going(object) => Value::clone(&object),
            Deleted::Gone(object) if target.resource == POD => Value::clone(&object),
            Deleted::Gone(object) => success(&target, &object),
        },
    ))
}

pub(super) fn evict(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    let target = target(asked)?;
    let eviction = body(asked)?;
    let version = text(&eviction, "/apiVersion");
    if target.resource != POD || !["", "policy/v1"].contains(&version) {
        return Err(Refusal::bad_request(format!("no kind \"Eviction\" in version \"{version}\"")));
    }
    check_name(&target, &eviction)?;
    let options = eviction.get("deleteOptions").cloned().unwrap_or_else(|| json!({}));
    check_options(&options)?;
    let (caller, options) = (&asked.caller, DeleteOptions::read(&options));
    world.update(|state| state.cluster.evict(caller, &target, &options))?;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    Ok(Answer::Object(StatusCode::CREATED, status))
}

fn body(asked: &Asked) -> Result<Value, Refusal> {
    let wrong = |error| Refusal::bad_request(format!("the body is not JSON: {error}"));
    serde_json::from_slice(&asked.body).map_err(wrong)
}

fn target(asked: &Asked) -> Result<Target, Refusal> {
    asked.address.target().ok_or_else(not_allowed)
}

fn not_allowed() -> Refusal {
    const WHY: &str = "the server does not allow this method on the requested resource";
    Refusal::new(405, "MethodNotAllowed", WHY)
}

/// An object that no type reads has to say what it is.
fn check_named_kind(object: &Value) -> Result<(), Refusal> {
    match ["apiVersion", "kind"].iter().find(|field| text(object, &format!("/{field}")).is_empty())
    {
        Some(field) => Err(Refusal::bad_request(format!("Object '{field}' is missing"))),
        None => Ok(()),
    }
}

fn door(asked: &Asked) -> Result<Door, Refusal> {
    let apart = asked.address.resource.status == Status::Apart;
    match asked.address.subresource.as_str() {
        "" => Ok(Door::Main),
        "status" if apart => Ok(Door::Status),
        _ => Err(Refusal::unsupported(format!("write to {}", asked.address.counted()))),
    }
}

fn check_name(target: &Target, object: &Value) -> Result<(), Refusal> {
    let given = name(object);
    if given.is_empty() || given == target.name {
        return Ok(());
    }
    let message = format!(
        "the name of the object ({given}) does not match the name on the URL ({})",
        target.name
    );
    Err(Refusal::bad_request(message))
}

fn check_options(options: &Value) -> Result<(), Refusal> {
    match options.get("dryRun") {
        Some(Value::Array(list)) if !list.is_empty() => Err(Refusal::unsupported("dry run")),
        _ => Ok(()),
    }
}

fn success(target: &Target, object: &Value) -> Value {
    let mut details = json!({
        "name": target.name, "kind": target.resource.plural, "uid": object["metadata"]["uid"],
    });
    if !target.resource.group.is_empty() {
        details["group"] = json!(target.resource.group);
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details,
    })
}

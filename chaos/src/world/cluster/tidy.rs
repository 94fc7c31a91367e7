//! What the real server leaves out of what it stores: empty maps, `false`, fractions of seconds.

use jiff::Timestamp;
use serde_json::Value;

use crate::world::cluster::object::items;
use crate::world::cluster::object::remove;
use crate::world::cluster::object::second;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::Origin;
use crate::world::cluster::resource::Resource;

/// Times that Kubernetes' own kinds hold in whole seconds.
const SECONDS: [&str; 9] = [
    "completionTime",
    "finishedAt",
    "firstTimestamp",
    "lastHeartbeatTime",
    "lastTimestamp",
    "lastTransitionTime",
    "startTime",
    "startedAt",
    "timeAdded",
];

/// Leaves out what the types of the real server do not hold.
pub(super) fn tidy(resource: Resource, object: &mut Value) {
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let given = object["metadata"].get(field);
        if given.is_some_and(is_nothing) {
            remove(object, &format!("/metadata/{field}"));
        }
    }
    if resource.origin == Origin::Custom {
        return;
    }
    if resource == NODE {
        if items(object, "/spec/taints").is_empty() {
            remove(object, "/spec/taints");
        }
        if object.pointer("/spec/unschedulable") != Some(&Value::Bool(true)) {
            remove(object, "/spec/unschedulable");
        }
    }
    whole_seconds(object);
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn whole_seconds(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match inner {
                    Value::String(text) if SECONDS.contains(&key.as_str()) => {
                        if let Ok(time) = text.parse::<Timestamp>() {
                            *text = second(time);
                        }
                    }
                    inner => whole_seconds(inner),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(whole_seconds),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (),
    }
}

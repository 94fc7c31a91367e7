//! Reading and writing fields of an object by their path.

use std::time::Duration;

use jiff::SignedDuration;
use jiff::Timestamp;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

/// A text at a path; empty where there is none.
pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// A whole number at a path.
pub fn number(object: &Value, path: &str) -> Option<i64> {
    object.pointer(path).and_then(Value::as_i64)
}

/// Whether a path holds `true`.
pub fn is_true(object: &Value, path: &str) -> bool {
    object.pointer(path).and_then(Value::as_bool).unwrap_or_default()
}

/// The items of a list at a path; none where there is no list.
pub fn items<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    object.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The entries of a map of texts at a path, in order.
pub fn entries<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let map = object.pointer(path).and_then(Value::as_object);
    let entries = map.into_iter().flatten();
    entries.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
}

/// A time at a path.
pub fn time(object: &Value, path: &str) -> Option<Timestamp> {
    text(object, path).parse().ok()
}

/// A duration at a path, as Kubernetes writes it (`90s`, `1h0m0s`).
pub fn duration(object: &Value, path: &str) -> Option<Duration> {
    let written: SignedDuration = text(object, path).parse().ok()?;
    written.try_into().ok()
}

/// The name.
pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// The namespace; empty for what lives in the cluster.
pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// The UID.
pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// The value of a label; empty where it is not set.
pub fn label<'a>(object: &'a Value, key: &str) -> &'a str {
    field(object, "/metadata/labels", key)
}

/// The value of an annotation; empty where it is not set.
pub fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    field(object, "/metadata/annotations", key)
}

fn field<'a>(object: &'a Value, path: &str, key: &str) -> &'a str {
    let map = object.pointer(path);
    map.and_then(|map| map.get(key)).and_then(Value::as_str).unwrap_or_default()
}

/// Whether the object is being deleted.
pub fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|at| !at.is_null())
}

/// The status of a condition: `True`, `False`, `Unknown`, or empty.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = items(object, "/status/conditions").iter();
    let found = conditions.into_iter().find(|condition| text(condition, "/type") == kind);
    found.map_or("", |condition| text(condition, "/status"))
}

/// Sets a condition; its transition time moves only when its status does.
pub fn set_condition(object: &mut Value, condition: Condition<'_>, now: Timestamp) {
    let Condition { kind, status, reason, message } = condition;
    let mut conditions = items(object, "/status/conditions").to_vec();
    let time = second(now);
    let mut entry = json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": time,
    });
    match conditions.iter_mut().find(|known| text(known, "/type") == kind) {
        Some(known) => {
            if text(known, "/status") == status {
                entry["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = entry;
        }
        None => conditions.push(entry),
    }
    set(object, "/status/conditions", Value::Array(conditions));
}

/// What [`set_condition`] writes.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'a> {
    /// Its type.
    pub kind: &'a str,
    /// `True`, `False` or `Unknown`.
    pub status: &'a str,
    /// Why, in one word.
    pub reason: &'a str,
    /// Why, for people.
    pub message: &'a str,
}

impl<'a> Condition<'a> {
    /// A condition that needs no reason.
    pub fn plain(kind: &'a str, status: &'a str) -> Self {
        Self { kind, status, reason: "", message: "" }
    }
}

/// Sets a path, making the maps on the way. Lists on the way are not entered.
pub fn set(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for part in path.split('/').skip(1) {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        let part = part.replace("~1", "/").replace("~0", "~");
        place = &mut place[part];
    }
    *place = value;
}

/// Removes a path, if it is there.
pub fn remove(object: &mut Value, path: &str) {
    let Some((parent, last)) = path.rsplit_once('/') else { return };
    if let Some(Value::Object(map)) = object.pointer_mut(parent) {
        map.remove(&last.replace("~1", "/").replace("~0", "~"));
    }
}

/// A path whose last part is a key with slashes in it, as a label's.
pub fn keyed(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// A time as Kubernetes writes it, in whole seconds.
pub fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

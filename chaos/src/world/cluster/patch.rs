//! The patches of Kubernetes: JSON patch, merge patch, strategic merge.

use serde_json::Value;

use crate::world::cluster::fields::ListKind;
use crate::world::cluster::fields::list_kind;
use crate::world::cluster::fields::same_item;
use crate::world::cluster::object::text;
use crate::world::cluster::refusal::Refusal;

/// Applies an RFC 6902 patch.
///
/// # Errors
/// 422 where a `test` does not hold or a path is not there, 400 where it is no patch.
pub fn json_patch(object: &Value, patch: &Value) -> Result<Value, Refusal> {
    let Value::Array(operations) = patch else {
        return Err(Refusal::bad_request(
            "json: cannot unmarshal object into Go value of type jsonpatch.Patch",
        ));
    };
    let mut object = object.clone();
    for operation in operations {
        one_operation(&mut object, operation)?;
    }
    Ok(object)
}

fn one_operation(object: &mut Value, operation: &Value) -> Result<(), Refusal> {
    let Some(path) = operation.get("path").and_then(Value::as_str) else {
        return Err(unprocessable());
    };
    let value = operation.get("value").cloned().unwrap_or_default();
    let taken = |object: &mut Value, path: &str| remove_at(object, path).ok_or_else(unprocessable);
    match text(operation, "/op") {
        "add" => add_at(object, path, value),
        "remove" => taken(object, path).map(drop),
        "replace" => {
            // The real server's library asks only that the map around it is there.
            if parent(object, path).is_some_and(Value::is_array) {
                taken(object, path)?;
            }
            add_at(object, path, value)
        }
        "test" => {
            // Null stands for what is not in a map, but not for what is below nothing.
            let found = match (object.pointer(path), parent(object, path)) {
                (Some(found), _) => found,
                (None, Some(Value::Object(_))) => &Value::Null,
                (None, _) => return Err(unprocessable()),
            };
            if *found == value { Ok(()) } else { Err(unprocessable()) }
        }
        "move" => {
            let moved = taken(object, text(operation, "/from"))?;
            add_at(object, path, moved)
        }
        "copy" => {
            let from = text(operation, "/from");
            let around = parent(object, from).ok_or_else(unprocessable)?;
            let nothing = around.is_object().then_some(&Value::Null);
            let copied = object.pointer(from).or(nothing).cloned().ok_or_else(unprocessable)?;
            add_at(object, path, copied)
        }
        _ => Err(unprocessable()),
    }
}

/// What the last part of a path is looked up in.
fn parent<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    object.pointer(path.rsplit_once('/')?.0)
}

fn unprocessable() -> Refusal {
    let message = "the server rejected our request due to an error in our request";
    Refusal::new(422, "Invalid", message)
}

fn add_at(object: &mut Value, path: &str, value: Value) -> Result<(), Refusal> {
    if path.is_empty() {
        *object = value;
        return Ok(());
    }
    let missing = unprocessable;
    let (above, key) = path.rsplit_once('/').ok_or_else(missing)?;
    match object.pointer_mut(above).ok_or_else(missing)? {
        Value::Object(map) => {
            map.insert(unescaped(key), value);
            Ok(())
        }
        Value::Array(items) => {
            let index = if key == "-" { Some(items.len()) } else { key.parse().ok() };
            let index = index.filter(|index| *index <= items.len()).ok_or_else(missing)?;
            items.insert(index, value);
            Ok(())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Err(missing()),
    }
}

fn remove_at(object: &mut Value, path: &str) -> Option<Value> {
    let (above, key) = path.rsplit_once('/')?;
    match object.pointer_mut(above)? {
        Value::Object(map) => map.remove(&unescaped(key)),
        Value::Array(items) => {
            let index = key.parse().ok().filter(|index: &usize| *index < items.len())?;
            Some(items.remove(index))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn unescaped(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

/// Applies an RFC 7386 patch: maps merge, null removes, lists are replaced.
pub fn merge_patch(object: &Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else { return patch.clone() };
    let mut merged = object.as_object().cloned().unwrap_or_default();
    for (key, change) in changes {
        if change.is_null() {
            merged.remove(key);
            continue;
        }
        let old = merged.get(key).unwrap_or(&Value::Null);
        let new = merge_patch(old, change);
        merged.insert(key.clone(), new);
    }
    Value::Object(merged)
}

/// Applies a strategic merge patch: as a merge patch, but lists with keys merge by them, and a set
/// grows. `spec.taints` has no patch strategy, so it is replaced whole.
pub fn strategic_patch(object: &Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else { return patch.clone() };
    if text(patch, "/$patch") == "replace" {
        let kept = changes.iter().filter(|(key, _)| *key != "$patch");
        return kept.map(|(key, value)| (key.clone(), value.clone())).collect();
    }
    let mut merged = object.as_object().cloned().unwrap_or_default();
    let ours = |key: &str| !key.starts_with('$') || key.starts_with("$deleteFrom");
    for (key, change) in changes.iter().filter(|(key, _)| ours(key)) {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = change.as_array().cloned().unwrap_or_default();
            if let Some(Value::Array(list)) = merged.get_mut(field) {
                list.retain(|item| !gone.contains(item));
            }
        } else if change.is_null() || text(change, "/$patch") == "delete" {
            merged.remove(key);
        } else {
            let old = merged.get(key).cloned().unwrap_or_default();
            merged.insert(key.clone(), strategic_field(key, old, change));
        }
    }
    Value::Object(merged)
}

fn strategic_field(key: &str, old: Value, change: &Value) -> Value {
    let Value::Array(changes) = change else { return strategic_patch(&old, change) };
    let kind = list_kind(key);
    if kind == ListKind::Atomic || changes.iter().any(|item| text(item, "/$patch") == "replace") {
        let kept = changes.iter().filter(|item| item.get("$patch").is_none());
        return kept.cloned().collect();
    }
    let Value::Array(mut list) = old else { return change.clone() };
    // What is new comes first, as the real server has it.
    let mut added = Vec::new();
    for item in changes {
        let place = list.iter().position(|known| same_item(kind, known, item));
        match place {
            Some(index) if text(item, "/$patch") == "delete" => drop(list.remove(index)),
            Some(index) => list[index] = strategic_patch(&list[index], item),
            None if text(item, "/$patch") == "delete" => (),
            None => added.push(item.clone()),
        }
    }
    added.extend(list);
    Value::Array(added)
}

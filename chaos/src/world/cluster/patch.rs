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
    let path = text(operation, "/path");
    let value = operation.get("value").cloned();
    let given = || value.clone().ok_or_else(|| Refusal::bad_request("operation without value"));
    let taken = |object: &mut Value, path: &str| {
        remove_at(object, path)
            .ok_or_else(|| unprocessable(&format!("remove: path {path} is missing")))
    };
    match text(operation, "/op") {
        "add" => add_at(object, path, given()?),
        "remove" => taken(object, path).map(drop),
        "replace" => {
            let place = object.pointer_mut(path);
            *place.ok_or_else(|| unprocessable(&format!("replace: path {path} is missing")))? =
                given()?;
            Ok(())
        }
        "test" => {
            let found = object.pointer(path).unwrap_or(&Value::Null);
            let holds = *found == value.unwrap_or_default();
            let why = || unprocessable(&format!("testing value {path} failed"));
            if holds { Ok(()) } else { Err(why()) }
        }
        "move" => {
            let moved = taken(object, text(operation, "/from"))?;
            add_at(object, path, moved)
        }
        "copy" => {
            let from = text(operation, "/from");
            let copied = object.pointer(from).cloned();
            let missing = || unprocessable(&format!("copy: path {from} is missing"));
            add_at(object, path, copied.ok_or_else(missing)?)
        }
        other => Err(Refusal::bad_request(format!("no such JSON patch operation: `{other}`"))),
    }
}

fn unprocessable(why: &str) -> Refusal {
    let message = "the server rejected our request due to an error in our request";
    Refusal::new(422, "Invalid", format!("{message}: {why}"))
}

fn add_at(object: &mut Value, path: &str, value: Value) -> Result<(), Refusal> {
    if path.is_empty() {
        *object = value;
        return Ok(());
    }
    let missing = || unprocessable(&format!("add: path {path} is missing"));
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
    for item in changes {
        let place = list.iter().position(|known| same_item(kind, known, item));
        match place {
            Some(index) if text(item, "/$patch") == "delete" => drop(list.remove(index)),
            Some(index) => list[index] = strategic_patch(&list[index], item),
            None if text(item, "/$patch") == "delete" => (),
            None => list.push(item.clone()),
        }
    }
    Value::Array(list)
}

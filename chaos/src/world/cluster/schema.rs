//! The schemas of our own definitions: what they don't know is dropped, what breaks them refused.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use jiff::Timestamp;
use kube::CustomResourceExt;
use lifeboat::crd::node_interruption::NodeInterruption;
use lifeboat::crd::workload_checkpoint::WorkloadCheckpoint;
use serde_json::Value;

use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::number;
use crate::world::cluster::object::text;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::Resource;

/// The schema of a kind, if it is one of ours.
pub fn schema(resource: Resource) -> Option<&'static Value> {
    static SCHEMAS: OnceLock<BTreeMap<String, Value>> = OnceLock::new();
    let schemas = SCHEMAS.get_or_init(|| {
        let definitions = [NodeInterruption::crd(), WorkloadCheckpoint::crd()];
        let schemas = definitions.iter().map(|definition| {
            let written = serde_json::to_value(definition).expect("a definition is JSON");
            let path = "/spec/versions/0/schema/openAPIV3Schema";
            let schema = written.pointer(path).cloned().unwrap_or_default();
            (text(&written, "/spec/names/plural").to_owned(), schema)
        });
        schemas.collect()
    });
    schemas.get(resource.plural)
}

/// Drops the fields that the schema of a kind doesn't know.
pub(super) fn prune(resource: Resource, object: &mut Value) {
    let Some(schema) = schema(resource) else { return };
    for part in ["spec", "status"] {
        if let (Some(schema), Some(value)) =
            (schema.pointer(&format!("/properties/{part}")), object.get_mut(part))
        {
            prune_value(schema, value);
        }
    }
}

fn prune_value(schema: &Value, value: &mut Value) {
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let others = schema.get("additionalProperties").filter(|others| others.is_object());
            map.retain(|key, value| {
                let own = properties.and_then(|properties| properties.get(key)).or(others);
                if let Some(own) = own {
                    prune_value(own, value);
                }
                own.is_some()
            });
        }
        Value::Array(list) => list.iter_mut().for_each(|item| prune_value(&schema["items"], item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (),
    }
}

/// Checks an object against the schema of its kind.
///
/// # Errors
/// 422, naming the first field that breaks it.
pub(super) fn check(resource: Resource, object: &Value) -> Result<(), Refusal> {
    let Some(schema) = schema(resource) else { return Ok(()) };
    let fault = ["spec", "status"].iter().find_map(|part| {
        let own = schema.pointer(&format!("/properties/{part}"))?;
        if let Some(value) = object.get(part) {
            return fault(own, value, part);
        }
        let required = items(schema, "/required").iter().any(|field| field == part);
        required.then(|| ((*part).to_owned(), "Required value".to_owned()))
    });
    match fault {
        Some((field, why)) => Err(Refusal::invalid(resource.kind, name(object), &field, &why)),
        None => Ok(()),
    }
}

/// The first field that breaks a schema, and how.
fn fault(schema: &Value, value: &Value, path: &str) -> Option<(String, String)> {
    let broken = |why: String| Some((path.to_owned(), why));
    if value.is_null() && schema["nullable"] == true {
        return None;
    }
    let wanted = text(schema, "/type");
    let fits = match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => true,
    };
    if !fits {
        return broken(format!("Invalid value: must be of type {wanted}: {value}"));
    }
    let listed = items(schema, "/enum");
    if !listed.is_empty() && !listed.contains(value) {
        return broken(format!("Unsupported value: {value}"));
    }
    bound_fault(schema, value).and_then(broken).or_else(|| inner_fault(schema, value, path))
}

fn bound_fault(schema: &Value, value: &Value) -> Option<String> {
    let (least, most, size) = match value {
        Value::String(text) => ("/minLength", "/maxLength", text.chars().count()),
        Value::Array(list) => ("/minItems", "/maxItems", list.len()),
        Value::Object(map) => ("/minProperties", "/maxProperties", map.len()),
        Value::Number(number) => {
            let (least, most) = (&schema["minimum"], &schema["maximum"]);
            let number = number.as_f64()?;
            let low = least.as_f64().is_some_and(|least| number < least);
            let high = most.as_f64().is_some_and(|most| number > most);
            return (low || high).then(|| format!("Invalid value: {number} is out of its range"));
        }
        Value::Null | Value::Bool(_) => return None,
    };
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let low = number(schema, least).is_some_and(|least| size < least);
    let high = number(schema, most).is_some_and(|most| size > most);
    if low || high {
        return Some(format!("Too long or too short: {size}"));
    }
    let time = text(schema, "/format") == "date-time";
    let told = value.as_str().is_some_and(|text| text.parse::<Timestamp>().is_ok());
    (time && !told).then(|| format!("Invalid value: {value}: must be of type date-time"))
}

fn inner_fault(schema: &Value, value: &Value, path: &str) -> Option<(String, String)> {
    match value {
        Value::Object(map) => {
            let mut required = items(schema, "/required").iter().filter_map(Value::as_str);
            if let Some(missing) = required.find(|field| !map.contains_key(*field)) {
                return Some((format!("{path}.{missing}"), "Required value".to_owned()));
            }
            map.iter().find_map(|(key, value)| {
                let own = schema["properties"].get(key).or(schema.get("additionalProperties"))?;
                fault(own, value, &format!("{path}.{key}"))
            })
        }
        Value::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(index, item)| fault(&schema["items"], item, &format!("{path}[{index}]"))),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

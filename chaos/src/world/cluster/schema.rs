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

/// Drops the fields that the schema of a kind doesn't know, and fills in its defaults.
pub(super) fn complete(resource: Resource, object: &mut Value) {
    const OF_ALL: [&str; 3] = ["apiVersion", "kind", "metadata"];
    let Some(schema) = schema(resource) else { return };
    let known = |key: &str| OF_ALL.contains(&key) || schema["properties"].get(key).is_some();
    if let Some(map) = object.as_object_mut() {
        map.retain(|key, _| known(key));
    }
    for part in ["spec", "status"] {
        if let (Some(schema), Some(value)) =
            (schema.pointer(&format!("/properties/{part}")), object.get_mut(part))
        {
            prune_value(schema, value);
            fill(schema, value);
        }
    }
}

/// Fills in what is left out, or is null where it may not be, and has a default.
fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            for (key, own) in properties.into_iter().flatten() {
                let kept = |given: &&Value| !given.is_null() || own["nullable"] == true;
                if let (Some(default), None) = (own.get("default"), map.get(key).filter(kept)) {
                    map.insert(key.clone(), default.clone());
                }
                if let Some(inner) = map.get_mut(key) {
                    fill(own, inner);
                }
            }
            let others = schema.get("additionalProperties").filter(|others| others.is_object());
            if let Some(others) = others {
                map.values_mut().for_each(|inner| fill(others, inner));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| fill(&schema["items"], item)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (),
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
    let mut faults = Vec::new();
    for part in ["spec", "status"] {
        let Some(own) = schema.pointer(&format!("/properties/{part}")) else { continue };
        let required = items(schema, "/required").iter().any(|field| field == part);
        match object.get(part) {
            Some(value) => fault(own, value, part, &mut faults),
            None if required => faults.push((part.to_owned(), "Required value".to_owned())),
            None => (),
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(Refusal::faults(resource, name(object), &faults))
}

/// A field and what is wrong with it.
type Fault = (String, String);

/// The fields that break a schema, and how.
fn fault(schema: &Value, value: &Value, path: &str, faults: &mut Vec<Fault>) {
    let mut broken = |why: String| faults.push((path.to_owned(), why));
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let wanted = text(schema, "/type");
    let fits = match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => true,
    };
    if !fits {
        return broken(format!("Invalid type: {value}: must be of type {wanted}"));
    }
    let listed = items(schema, "/enum");
    if !listed.is_empty() && !listed.contains(value) {
        return broken(format!("Unsupported value: {value}"));
    }
    match bound_fault(schema, value) {
        Some(why) => broken(why),
        None => inner_faults(schema, (value, path), faults),
    }
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
    if low {
        return Some(format!("Invalid value: {value}: should be longer"));
    }
    if high {
        let much = if value.is_string() { "Too long" } else { "Too many" };
        return Some(format!("{much}: {size}: must have less"));
    }
    let time = text(schema, "/format") == "date-time";
    let told = value.as_str().is_some_and(|text| text.parse::<Timestamp>().is_ok());
    (time && !told).then(|| format!("Invalid type: {value}: must be of type date-time"))
}

fn inner_faults(schema: &Value, (value, path): (&Value, &str), faults: &mut Vec<Fault>) {
    match value {
        Value::Object(map) => {
            let required = items(schema, "/required").iter().filter_map(Value::as_str);
            for missing in required.filter(|field| map.get(*field).is_none_or(Value::is_null)) {
                faults.push((format!("{path}.{missing}"), "Required value".to_owned()));
            }
            for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
                let own = schema["properties"].get(key).or(schema.get("additionalProperties"));
                if let Some(own) = own {
                    fault(own, value, &format!("{path}.{key}"), faults);
                }
            }
        }
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                fault(&schema["items"], item, &format!("{path}[{index}]"), faults);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (),
    }
}

//! Who owns which field of an object: the sets of field paths behind `managedFields`.

use std::collections::BTreeSet;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::world::cluster::object::items;
use crate::world::cluster::object::text;

/// A path as `FieldsV1` writes it: `f:<field>`, `k:<keys>` for a list item, `v:<value>` in a set.
pub type Path = Vec<String>;

/// A set of paths.
pub type FieldSet = BTreeSet<Path>;

/// How a list is merged and owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Taken over whole.
    Atomic,
    /// Items are told apart by these fields.
    Keyed(&'static [&'static str]),
    /// Items are plain values, each there once.
    Set,
}

/// One entry of `managedFields`.
#[derive(Clone, Debug)]
pub struct Managed {
    /// Who.
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: Operation,
    /// The subresource it was written through; empty for the object itself.
    pub subresource: String,
    /// When, in whole seconds.
    pub time: String,
    /// What.
    pub fields: FieldSet,
}

/// How fields came to be owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By anything else.
    Update,
}

/// The kind of a list, by the name of the field that holds it.
pub fn list_kind(field: &str) -> ListKind {
    match field {
        "conditions" | "addresses" => ListKind::Keyed(&["type"]),
        "containers" | "initContainers" | "env" | "volumes" | "imagePullSecrets" => {
            ListKind::Keyed(&["name"])
        }
        "volumeMounts" => ListKind::Keyed(&["mountPath"]),
        "ownerReferences" => ListKind::Keyed(&["uid"]),
        "finalizers" => ListKind::Set,
        _ => ListKind::Atomic,
    }
}

/// The paths of all fields of an object that somebody can own.
pub fn fields_of(object: &Value) -> FieldSet {
    const UNOWNED: [&str; 2] = ["apiVersion", "kind"];
    let mut fields = FieldSet::new();
    for (key, value) in object.as_object().into_iter().flatten() {
        if key == "metadata" {
            metadata(value, &mut fields);
        } else if !UNOWNED.contains(&key.as_str()) {
            collect(&mut vec![format!("f:{key}")], key, value, &mut fields);
        }
    }
    fields
}

fn metadata(metadata: &Value, fields: &mut FieldSet) {
    const OWNED: [&str; 4] = ["labels", "annotations", "finalizers", "ownerReferences"];
    for key in OWNED {
        if let Some(value) = metadata.get(key) {
            collect(&mut vec!["f:metadata".to_owned(), format!("f:{key}")], key, value, fields);
        }
    }
}

fn collect(path: &mut Path, field: &str, value: &Value, fields: &mut FieldSet) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, inner) in map {
                path.push(format!("f:{key}"));
                collect(path, key, inner, fields);
                path.pop();
            }
        }
        Value::Array(list) => match list_kind(field) {
            ListKind::Atomic => drop(fields.insert(path.clone())),
            kind @ (ListKind::Keyed(_) | ListKind::Set) => {
                for item in list {
                    path.push(element(kind, item));
                    fields.insert(path.clone());
                    if item.is_object() {
                        collect(path, "", item, fields);
                    }
                    path.pop();
                }
            }
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            fields.insert(path.clone());
        }
    }
}

fn element(kind: ListKind, item: &Value) -> String {
    match kind {
        ListKind::Keyed(keys) => {
            let keys = keys.iter().map(|key| ((*key).to_owned(), item[*key].clone()));
            format!("k:{}", Value::Object(keys.collect()))
        }
        ListKind::Set | ListKind::Atomic => format!("v:{item}"),
    }
}

/// Whether two items of a list are the same one.
pub fn same_item(kind: ListKind, left: &Value, right: &Value) -> bool {
    element(kind, left) == element(kind, right)
}

/// What stands at a path.
pub fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    let mut place = object;
    for part in path {
        place = if let Some(key) = part.strip_prefix("f:") {
            place.get(key)?
        } else {
            let kind = kind_of(part);
            let mut list = place.as_array()?.iter();
            list.find(|item| element_like(part, kind, item))?
        };
    }
    Some(place)
}

/// Takes away what stands at a path, and every map that is empty then and that nobody owns.
pub fn take(object: &mut Value, path: &[String], owned: &impl Fn(&[String]) -> bool) {
    take_below(object, path, 0, owned);
}

fn take_below(
    object: &mut Value,
    path: &[String],
    depth: usize,
    owned: &impl Fn(&[String]) -> bool,
) {
    let Some(part) = path.get(depth) else { return };
    let is_last = depth + 1 == path.len();
    match (part.split_at(2), object) {
        (("f:", key), Value::Object(map)) => {
            let Some(inner) = map.get_mut(key) else { return };
            if !is_last {
                take_below(inner, path, depth + 1, owned);
            }
            if is_last || (is_empty(inner) && !owned(&path[..=depth])) {
                map.remove(key);
            }
        }
        (_, Value::Array(list)) => {
            let kind = kind_of(part);
            let Some(index) = list.iter().position(|item| element_like(part, kind, item)) else {
                return;
            };
            if is_last {
                list.remove(index);
            } else {
                take_below(&mut list[index], path, depth + 1, owned);
            }
        }
        _ => (),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn kind_of(part: &str) -> ListKind {
    if part.starts_with("k:") { ListKind::Keyed(&[]) } else { ListKind::Set }
}

fn element_like(part: &str, kind: ListKind, item: &Value) -> bool {
    let wanted: Value = serde_json::from_str(&part[2..]).unwrap_or_default();
    match kind {
        ListKind::Keyed(_) => {
            let mut keys = wanted.as_object().into_iter().flatten();
            keys.all(|(key, value)| item.get(key) == Some(value))
        }
        ListKind::Set | ListKind::Atomic => *item == wanted,
    }
}

/// Reads `managedFields` of an object.
pub fn managed(object: &Value) -> Vec<Managed> {
    let entries = items(object, "/metadata/managedFields").iter();
    let read = entries.map(|entry| {
        let mut fields = FieldSet::new();
        if let Some(tree) = entry.get("fieldsV1") {
            decode(tree, &mut Vec::new(), &mut fields);
        }
        let apply = text(entry, "/operation") == "Apply";
        Managed {
            manager: text(entry, "/manager").to_owned(),
            operation: if apply { Operation::Apply } else { Operation::Update },
            subresource: text(entry, "/subresource").to_owned(),
            time: text(entry, "/time").to_owned(),
            fields,
        }
    });
    read.collect()
}

fn decode(tree: &Value, path: &mut Path, fields: &mut FieldSet) {
    let Value::Object(map) = tree else { return };
    if map.is_empty() && !path.is_empty() {
        fields.insert(path.clone());
    }
    for (key, inner) in map {
        if key == "." {
            fields.insert(path.clone());
            continue;
        }
        path.push(key.clone());
        decode(inner, path, fields);
        path.pop();
    }
}

/// Writes `managedFields` of an object; entries that own nothing are left out.
pub fn set_managed(object: &mut Value, api_version: &str, entries: &[Managed]) {
    let entries = entries.iter().filter(|entry| !entry.fields.is_empty());
    let written: Vec<Value> = entries.map(|entry| written(entry, api_version)).collect();
    object["metadata"]["managedFields"] = Value::Array(written);
}

fn written(entry: &Managed, api_version: &str) -> Value {
    let operation = match entry.operation {
        Operation::Apply => "Apply",
        Operation::Update => "Update",
    };
    let mut value = json!({
        "manager": entry.manager, "operation": operation, "apiVersion": api_version,
        "time": entry.time, "fieldsType": "FieldsV1", "fieldsV1": encoded(&entry.fields),
    });
    if !entry.subresource.is_empty() {
        value["subresource"] = json!(entry.subresource);
    }
    value
}

fn encoded(fields: &FieldSet) -> Value {
    let mut tree = Map::new();
    for path in fields {
        grow(&mut tree, path);
    }
    trim(&mut tree);
    Value::Object(tree)
}

fn grow(tree: &mut Map<String, Value>, path: &[String]) {
    let Some((first, rest)) = path.split_first() else {
        tree.insert(".".to_owned(), json!({}));
        return;
    };
    if let Value::Object(inner) = tree.entry(first.clone()).or_insert_with(|| json!({})) {
        grow(inner, rest);
    }
}

/// A path with nothing below it needs no dot.
fn trim(tree: &mut Map<String, Value>) {
    if tree.len() == 1 {
        tree.remove(".");
    }
    tree.values_mut().filter_map(Value::as_object_mut).for_each(trim);
}

//! Server-side apply: what a manager says is merged, and what it no longer says is taken away.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::fields::FieldSet;
use crate::world::cluster::fields::ListKind;
use crate::world::cluster::fields::Managed;
use crate::world::cluster::fields::Operation;
use crate::world::cluster::fields::Path;
use crate::world::cluster::fields::at;
use crate::world::cluster::fields::fields_of;
use crate::world::cluster::fields::list_kind;
use crate::world::cluster::fields::managed;
use crate::world::cluster::fields::same_item;
use crate::world::cluster::fields::set_managed;
use crate::world::cluster::fields::take;
use crate::world::cluster::object::items;
use crate::world::cluster::object::second;
use crate::world::cluster::object::text;
use crate::world::cluster::refusal::Cause;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::Status;
use crate::world::cluster::write::Door;
use crate::world::cluster::write::prepare;

/// What an apply does about fields that others own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflicts {
    /// It is refused with 409.
    Refuse,
    /// It takes them.
    Force,
}

impl Cluster {
    /// Applies a configuration; an object that isn't there is created.
    ///
    /// # Errors
    /// 409 where another manager owns a field that would change, 422 where a rule is broken.
    pub fn apply(
        &mut self,
        caller: &Caller,
        (target, door, conflicts): (&Target, Door, Conflicts),
        mut wanted: Value,
    ) -> Result<Arc<Value>, Refusal> {
        if !items(&wanted, "/metadata/managedFields").is_empty() {
            return Err(Refusal::bad_request("metadata.managedFields must be nil"));
        }
        if target.resource.status == Status::Apart {
            narrow(&mut wanted, door);
        }
        let Some(old) = self.get(target).cloned() else {
            return self.create_applied(caller, (target, door), wanted);
        };
        let mut entries = managed(&old);
        if entries.is_empty() {
            entries.push(before_first_apply(&old));
        }
        let says = fields_of(&wanted);
        if let Some(why) = key_fault(&wanted, "") {
            return Err(Refusal::internal(format!("failed to create typed patch object: {why}")));
        }
        let clashes = clashes(&entries, (caller, door), (&says, &wanted, &old));
        if conflicts == Conflicts::Refuse && !clashes.is_empty() {
            return Err(conflict(&clashes, &entries, &target.resource.api_version()));
        }
        for (index, path) in &clashes {
            entries[*index].fields.remove(path);
        }
        let mut new = merge(&old, &wanted, "");
        let before = replace_entry(&mut entries, (caller, door), (says, second(self.now)));
        take_away(&mut new, &entries, &before);
        self.commit_applied(caller, (target, door), (&old, new, entries))
    }

    fn create_applied(
        &mut self,
        caller: &Caller,
        (target, door): (&Target, Door),
        wanted: Value,
    ) -> Result<Arc<Value>, Refusal> {
        if door == Door::Status {
            return Err(Refusal::not_found(target.resource, &target.name));
        }
        let says = fields_of(&wanted);
        let mut object = wanted;
        object["metadata"]["name"] = json!(target.name);
        if !target.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(target.namespace);
        }
        let made = self.create(caller, target.resource, object)?;
        let mut object = Value::clone(&made);
        let entry = Managed {
            manager: caller.manager.clone(),
            operation: Operation::Apply,
            subresource: String::new(),
            time: second(self.now),
            fields: says,
        };
        set_managed(&mut object, &target.resource.api_version(), &[entry]);
        // The same creation, with its owner put right: watchers of one version see it so.
        Ok(self.amend(target, object))
    }

    fn commit_applied(
        &mut self,
        caller: &Caller,
        (target, door): (&Target, Door),
        (old, new, entries): (&Arc<Value>, Value, Vec<Managed>),
    ) -> Result<Arc<Value>, Refusal> {
        let mut new = prepare(target, door, (old, new))?;
        let api_version = target.resource.api_version();
        let mut untimed = entries.clone();
        for (entry, known) in untimed.iter_mut().zip(managed(old)) {
            entry.time = known.time;
        }
        set_managed(&mut new, &api_version, &untimed);
        if new == **old {
            return Ok(Arc::clone(old));
        }
        set_managed(&mut new, &api_version, &entries);
        Ok(self.settle(caller, (target, "apply"), new))
    }

    /// Puts the last change of an object right without making a version of it.
    fn amend(&mut self, target: &Target, object: Value) -> Arc<Value> {
        let object = Arc::new(object);
        if let Some(objects) = self.objects.get_mut(&target.resource) {
            objects.insert(target.key(), Arc::clone(&object));
        }
        if let Some(change) = self.changes.back_mut() {
            change.object = Arc::clone(&object);
        }
        object
    }
}

/// Who owns what was there before anybody's fields were told apart.
fn before_first_apply(object: &Value) -> Managed {
    Managed {
        manager: "before-first-apply".to_owned(),
        operation: Operation::Update,
        subresource: String::new(),
        time: text(object, "/metadata/creationTimestamp").to_owned(),
        fields: fields_of(object),
    }
}

/// Leaves only what this door writes.
fn narrow(wanted: &mut Value, door: Door) {
    let Some(map) = wanted.as_object_mut() else { return };
    match door {
        Door::Main => drop(map.remove("status")),
        Door::Status => {
            map.retain(|key, _| {
                ["apiVersion", "kind", "metadata", "status"].contains(&key.as_str())
            });
            if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
                for owned in ["labels", "annotations", "finalizers", "ownerReferences"] {
                    metadata.remove(owned);
                }
            }
        }
        Door::Back => (),
    }
}

/// The fields of others that would change: the place of their entry, and the path.
fn clashes(
    entries: &[Managed],
    (caller, door): (&Caller, Door),
    (says, wanted, old): (&FieldSet, &Value, &Value),
) -> Vec<(usize, Path)> {
    let mut clashes = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if is_own(entry, caller, door) {
            continue;
        }
        let shared = entry.fields.intersection(says);
        let differ = shared.filter(|path| !is_member(path) && at(wanted, path) != at(old, path));
        clashes.extend(differ.map(|path| (index, path.clone())));
    }
    clashes
}

/// Whether a path only says that a list has an item.
fn is_member(path: &Path) -> bool {
    path.last().is_some_and(|part| !part.starts_with("f:"))
}

fn is_own(entry: &Managed, caller: &Caller, door: Door) -> bool {
    entry.manager == caller.manager
        && entry.operation == Operation::Apply
        && entry.subresource == subresource(door)
}

fn subresource(door: Door) -> &'static str {
    match door {
        Door::Status => "status",
        Door::Main | Door::Back => "",
    }
}

fn conflict(clashes: &[(usize, Path)], entries: &[Managed], api_version: &str) -> Refusal {
    let mut by_manager: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (index, path) in clashes {
        let manager = told_manager(&entries[*index], api_version);
        by_manager.entry(manager).or_default().push(written(path));
    }
    let (count, conflicts) = plural(clashes.len());
    let mut message = format!("Apply failed with {count} {conflicts}: ");
    for (manager, paths) in &by_manager {
        let (_, conflicts) = plural(paths.len());
        let paths = match paths.as_slice() {
            [one] => format!(" {one}"),
            many => format!("\n- {}", many.join("\n- ")),
        };
        message = format!("{message}{conflicts} with {manager}:{paths}");
    }
    let mut refusal = Refusal::new(409, "Conflict", message);
    let causes = by_manager
        .into_iter()
        .flat_map(|(manager, paths)| paths.into_iter().map(move |path| cause(&manager, path)));
    refusal.causes = causes.collect();
    refusal
}

fn plural(count: usize) -> (usize, &'static str) {
    (count, if count == 1 { "conflict" } else { "conflicts" })
}

fn told_manager(entry: &Managed, api_version: &str) -> String {
    let through = match entry.subresource.as_str() {
        "" => String::new(),
        subresource => format!(" with subresource {subresource:?}"),
    };
    let using = match entry.operation {
        Operation::Apply => String::new(),
        Operation::Update => format!(" using {api_version}"),
    };
    format!("{:?}{through}{using}", entry.manager)
}

/// A path as people read it: `.status.conditions[type="Ready"].status`.
fn written(path: &Path) -> String {
    let part = |part: &String| match (part.strip_prefix("f:"), part.strip_prefix("k:")) {
        (Some(field), _) => format!(".{field}"),
        (None, Some(keys)) => {
            let keys: Value = serde_json::from_str(keys).unwrap_or_default();
            let keys = keys.as_object().into_iter().flatten();
            let keys: Vec<String> = keys.map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        (None, None) => format!("[={}]", part.trim_start_matches("v:")),
    };
    path.iter().map(part).collect()
}

fn cause(manager: &str, path: String) -> Cause {
    Cause {
        reason: "FieldManagerConflict".to_owned(),
        message: format!("conflict with {manager}"),
        field: Some(path),
    }
}

/// Where a list with keys has an item without them, or two of the same.
fn key_fault(wanted: &Value, field: &str) -> Option<String> {
    match wanted {
        Value::Object(map) => map.iter().find_map(|(key, inner)| key_fault(inner, key)),
        Value::Array(list) => {
            let kind = list_kind(field);
            if let ListKind::Keyed(keys) = kind {
                let whole = |item: &Value| keys.iter().all(|key| item.get(*key).is_some());
                if !list.iter().all(whole) {
                    return Some(format!(".{field}: an item has no value for the key field"));
                }
            }
            let twice = kind != ListKind::Atomic
                && (1..list.len())
                    .any(|end| list[..end].iter().any(|known| same_item(kind, known, &list[end])));
            twice.then(|| format!(".{field}: duplicate entries for key"))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// Puts the manager's entry in place and gives back the fields that it had and no longer says.
fn replace_entry(
    entries: &mut Vec<Managed>,
    (caller, door): (&Caller, Door),
    (says, time): (FieldSet, String),
) -> FieldSet {
    let Some(index) = entries.iter().position(|entry| is_own(entry, caller, door)) else {
        entries.push(Managed {
            manager: caller.manager.clone(),
            operation: Operation::Apply,
            subresource: subresource(door).to_owned(),
            time,
            fields: says,
        });
        return FieldSet::new();
    };
    let entry = &mut entries[index];
    let dropped = with_parents(&entry.fields).difference(&with_parents(&says)).cloned().collect();
    entry.fields = says;
    entry.time = time;
    dropped
}

/// A set of paths with all that they are below: a map goes as a whole when its last owner does,
/// with what the server had filled in.
fn with_parents(fields: &FieldSet) -> FieldSet {
    const LEAST: usize = 2;
    let parents = fields.iter().flat_map(|path| {
        let least = if path.first().is_some_and(|first| first == "f:metadata") { LEAST } else { 1 };
        (least..=path.len()).map(|length| path[..length].to_vec())
    });
    parents.collect()
}

/// Takes away what was dropped and nobody else owns: items of lists first, as long as they can be found
/// by their keys, and only when nothing of others is in them; then longest paths first.
fn take_away(object: &mut Value, entries: &[Managed], dropped: &FieldSet) {
    let owned = |path: &[String]| {
        entries.iter().any(|entry| entry.fields.iter().any(|field| field.starts_with(path)))
    };
    let items = dropped.iter().filter(|path| is_member(path));
    let fields = dropped.iter().rev().filter(|path| !is_member(path));
    for path in items.chain(fields) {
        if !owned(path) {
            take(object, path, &owned);
        }
    }
}

/// Lays `wanted` over `live`; `field` is the name of the field that holds them.
fn merge(live: &Value, wanted: &Value, field: &str) -> Value {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            let mut merged = live.clone();
            for (key, value) in wanted {
                let old = live.get(key).unwrap_or(&Value::Null);
                merged.insert(key.clone(), merge(old, value, key));
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(wanted)) => {
            Value::Array(merge_list(live, wanted, list_kind(field)))
        }
        (_, wanted) => wanted.clone(),
    }
}

fn merge_list(live: &[Value], wanted: &[Value], kind: ListKind) -> Vec<Value> {
    if kind == ListKind::Atomic {
        return wanted.to_vec();
    }
    let mut merged = live.to_vec();
    for item in wanted {
        match merged.iter_mut().find(|known| same_item(kind, known, item)) {
            Some(known) => *known = merge(known, item, ""),
            None => merged.push(item.clone()),
        }
    }
    merged
}

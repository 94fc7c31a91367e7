//! Creating and changing objects, with the rules that hold for every kind.

use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::admission;
use crate::world::cluster::audit::Write;
use crate::world::cluster::fields::FieldSet;
use crate::world::cluster::fields::Managed;
use crate::world::cluster::fields::Operation;
use crate::world::cluster::fields::at;
use crate::world::cluster::fields::fields_of;
use crate::world::cluster::fields::managed;
use crate::world::cluster::fields::set_managed;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::number;
use crate::world::cluster::object::second;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::LEASE;
use crate::world::cluster::resource::NAMESPACE;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::Origin;
use crate::world::cluster::resource::Resource;
use crate::world::cluster::resource::Scope;
use crate::world::cluster::resource::Status;
use crate::world::cluster::resource::VOLUME;
use crate::world::cluster::resource::VOLUME_CLAIM;
use crate::world::cluster::rules;
use crate::world::cluster::schema;
use crate::world::cluster::tidy::tidy;

/// Metadata that only the server writes.
const OF_SERVER: [&str; 7] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "name",
    "namespace",
];

/// Kinds with a status whose generations nobody counts.
const UNCOUNTED: [Resource; 4] = [NODE, NAMESPACE, VOLUME, VOLUME_CLAIM];

/// Through which door an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The object itself: its status stays as it is.
    Main,
    /// Its status: all else stays as it is.
    Status,
    /// Both, and past the rules of its kind: only the cluster's own parts come in here.
    Back,
}

impl Cluster {
    /// Creates an object.
    ///
    /// # Errors
    /// 400, 404 (no such namespace), 409 or 422, as the real server.
    pub fn create(
        &mut self,
        caller: &Caller,
        resource: Resource,
        mut object: Value,
    ) -> Result<Arc<Value>, Refusal> {
        check_kind(resource, &mut object)?;
        if !text(&object, "/metadata/resourceVersion").is_empty() {
            const WHY: &str = "resourceVersion should not be set on objects to be created";
            return Err(Refusal::internal(WHY));
        }
        self.name(resource, &mut object)?;
        let target = Target::of(resource, &object);
        if self.get(&target).is_some() {
            return Err(Refusal::already_exists(resource, &target.name));
        }
        self.enter(resource, &mut object);
        admission::taint(resource, &mut object);
        admission::default(self, resource, &mut object)?;
        schema::complete(resource, &mut object);
        tidy(resource, &mut object);
        rules::check(resource, None, &object)?;
        let entry = Managed {
            manager: caller.manager.clone(),
            operation: Operation::Update,
            subresource: String::new(),
            time: second(self.now),
            fields: fields_of(&object),
        };
        set_managed(&mut object, &resource.api_version(), &[entry]);
        let stored = self.store(resource, object);
        self.wrote(caller, "create", &target);
        Ok(stored)
    }

    /// Puts an object there for a scenario, past all rules but naming; it replaces one of its name.
    ///
    /// # Panics
    /// Where the object has no name and no `generateName`.
    pub fn put(&mut self, resource: Resource, mut object: Value) -> Arc<Value> {
        object["apiVersion"] = json!(resource.api_version());
        object["kind"] = json!(resource.kind);
        if resource.scope == Scope::Namespace && namespace(&object).is_empty() {
            object["metadata"]["namespace"] = json!("default");
        }
        self.name(resource, &mut object).expect("an object of a scenario has a name");
        let status = object.get("status").cloned();
        self.enter(resource, &mut object);
        if let Some(status) = status {
            object["status"] = status;
        }
        if resource == NODE {
            admission::host(&mut object);
        }
        admission::default(self, resource, &mut object).expect("an object of a scenario is whole");
        tidy(resource, &mut object);
        self.store(resource, object)
    }

    /// Changes an object as the whole of `new`.
    ///
    /// # Errors
    /// 404, 409 where `new` was made from an older version or another object, 422.
    pub fn update(
        &mut self,
        caller: &Caller,
        (target, door): (&Target, Door),
        new: Value,
    ) -> Result<Arc<Value>, Refusal> {
        let versioned = !text(&new, "/metadata/resourceVersion").is_empty();
        let must = target.resource.origin == Origin::Custom || target.resource == LEASE;
        let there = self.get(target).is_some();
        if must && !versioned && door != Door::Back && (there || target.resource == LEASE) {
            return Err(unversioned(target));
        }
        if !there && target.resource == LEASE {
            return self.create_by_update(caller, target, new);
        }
        let old = self.expect(target)?;
        check_uid(target, (&old, &new))?;
        self.commit(caller, (target, door, "update"), (&old, new))
    }

    /// A Lease that is not there is made by an update, whatever version that names.
    fn create_by_update(
        &mut self,
        caller: &Caller,
        target: &Target,
        mut new: Value,
    ) -> Result<Arc<Value>, Refusal> {
        if let Some(metadata) = new["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
            metadata.insert("name".to_owned(), json!(target.name));
            metadata.insert("namespace".to_owned(), json!(target.namespace));
        }
        self.create(caller, target.resource, new)
    }

    /// Changes an object by what `change` makes of it; the cluster's own parts write so.
    ///
    /// # Errors
    /// 404, 422.
    pub fn edit(
        &mut self,
        caller: &Caller,
        (target, door): (&Target, Door),
        change: impl FnOnce(&mut Value),
    ) -> Result<Arc<Value>, Refusal> {
        let old = self.expect(target)?;
        let mut new = Value::clone(&old);
        change(&mut new);
        self.commit(caller, (target, door, "patch"), (&old, new))
    }

    /// Stores `new` in place of `old`, and works out who owns which field then.
    ///
    /// # Errors
    /// 409, 422.
    pub fn commit(
        &mut self,
        caller: &Caller,
        (target, door, verb): (&Target, Door, &'static str),
        (old, new): (&Arc<Value>, Value),
    ) -> Result<Arc<Value>, Refusal> {
        let mut new = prepare(target, door, (old, new))?;
        if same(old, &new) {
            return Ok(Arc::clone(old));
        }
        let mut entries = managed(old);
        self.own(caller, door, (&mut entries, old, &new));
        set_managed(&mut new, &target.resource.api_version(), &entries);
        Ok(self.settle(caller, (target, verb), new))
    }

    /// Stores what was prepared; an object that only its finalizers kept goes with the last of them.
    pub(super) fn settle(
        &mut self,
        caller: &Caller,
        (target, verb): (&Target, &'static str),
        new: Value,
    ) -> Arc<Value> {
        let finished = is_deleting(&new)
            && items(&new, "/metadata/finalizers").is_empty()
            && number(&new, "/metadata/deletionGracePeriodSeconds").unwrap_or_default() == 0;
        let mut stored = self.store(target.resource, new);
        if finished && let Some(last) = self.erase(target) {
            stored = last;
        }
        self.wrote(caller, verb, target);
        stored
    }

    pub(super) fn wrote(&mut self, caller: &Caller, verb: &'static str, target: &Target) {
        self.audit.wrote(Write {
            at: self.now,
            caller: caller.clone(),
            verb,
            target: target.clone(),
            version: self.version,
        });
    }

    /// Who changes a field owns it, and nobody else does any more.
    fn own(
        &self,
        caller: &Caller,
        door: Door,
        (entries, old, new): (&mut Vec<Managed>, &Value, &Value),
    ) {
        let (before, after) = (fields_of(old), fields_of(new));
        let changed: FieldSet =
            after.iter().filter(|path| at(old, path) != at(new, path)).cloned().collect();
        for entry in entries.iter_mut() {
            entry.fields.retain(|path| after.contains(path) || !before.contains(path));
            entry.fields.retain(|path| !changed.contains(path));
        }
        let subresource = if door == Door::Status { "status" } else { "" };
        let mine = entries.iter_mut().find(|entry| {
            entry.manager == caller.manager
                && entry.operation == Operation::Update
                && entry.subresource == subresource
        });
        let time = second(self.now);
        match mine {
            Some(entry) => {
                entry.fields.extend(changed);
                entry.time = time;
            }
            None => entries.push(Managed {
                manager: caller.manager.clone(),
                operation: Operation::Update,
                subresource: subresource.to_owned(),
                time,
                fields: changed,
            }),
        }
    }

    fn name(&mut self, resource: Resource, object: &mut Value) -> Result<(), Refusal> {
        if name(object).is_empty() {
            let prefix = text(object, "/metadata/generateName").to_owned();
            if prefix.is_empty() {
                let why = "Required value: name or generateName is required";
                return Err(Refusal::invalid(resource, "", "metadata.name", why));
            }
            object["metadata"]["name"] = json!(format!("{prefix}{}", self.suffix()));
        }
        let namespace = namespace(object).to_owned();
        match resource.scope {
            Scope::Cluster if namespace.is_empty() => Ok(()),
            Scope::Cluster => Err(Refusal::bad_request("namespace on a kind of the cluster")),
            Scope::Namespace if self.find(NAMESPACE, &namespace).is_some() => Ok(()),
            Scope::Namespace => Err(Refusal::not_found(NAMESPACE, &namespace)),
        }
    }

    /// Gives a new object what only the server gives.
    fn enter(&mut self, resource: Resource, object: &mut Value) {
        let uid = self.new_uid();
        let now = second(self.now);
        let Some(metadata) = object["metadata"].as_object_mut() else { return };
        metadata.insert("uid".to_owned(), json!(uid));
        metadata.insert("creationTimestamp".to_owned(), json!(now));
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"] {
            metadata.remove(field);
        }
        if resource.status == Status::Apart && !UNCOUNTED.contains(&resource) {
            metadata.insert("generation".to_owned(), json!(1));
        } else {
            metadata.remove("generation");
        }
        if resource.status == Status::Apart
            && resource != NODE
            && let Some(object) = object.as_object_mut()
        {
            object.remove("status");
        }
    }

    /// Five letters that make a generated name one's own.
    fn suffix(&mut self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let letters = (0..5).map(|_| LETTERS[self.random.usize(..LETTERS.len())]);
        letters.map(char::from).collect()
    }

    /// A new UID.
    pub fn new_uid(&mut self) -> String {
        let bits = self.random.u128(..);
        let bits = bits & !(0xf << 76) | (4 << 76);
        let bits = bits & !(0b11 << 62) | (0b10 << 62);
        let text = format!("{bits:032x}");
        let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
        parts.join("-")
    }
}

/// Checks what is to be stored, and takes from `old` what this door doesn't change.
pub(super) fn prepare(
    target: &Target,
    door: Door,
    (old, mut new): (&Value, Value),
) -> Result<Value, Refusal> {
    let resource = target.resource;
    check_kind(resource, &mut new)?;
    check_versions(target, (old, &new))?;
    let mut new = match door {
        Door::Status => {
            let mut kept = old.clone();
            keep(&mut kept, &new, "status");
            if resource.origin == Origin::Kubernetes {
                keep(&mut kept["metadata"], &new["metadata"], "labels");
                keep(&mut kept["metadata"], &new["metadata"], "annotations");
            }
            kept
        }
        Door::Main | Door::Back => new,
    };
    if door == Door::Main && resource.status == Status::Apart {
        keep(&mut new, old, "status");
    }
    for field in OF_SERVER {
        keep(&mut new["metadata"], &old["metadata"], field);
    }
    keep(&mut new["metadata"], &old["metadata"], "managedFields");
    if door != Door::Back {
        schema::complete(resource, &mut new);
    }
    tidy(resource, &mut new);
    if spec_of(old) != spec_of(&new) && number(old, "/metadata/generation").is_some() {
        let generation = number(old, "/metadata/generation").unwrap_or_default() + 1;
        new["metadata"]["generation"] = json!(generation);
    }
    if door != Door::Back {
        // What the store holds is pruned, too, when it is read.
        let mut old = old.clone();
        schema::complete(resource, &mut old);
        rules::check(resource, Some(&old), &new)?;
    }
    Ok(new)
}

/// An object is of the kind that its address says; what it leaves out is filled in.
fn check_kind(resource: Resource, object: &mut Value) -> Result<(), Refusal> {
    if !object.is_object() {
        return Err(Refusal::bad_request("the object is not a map"));
    }
    let wanted = [("apiVersion", resource.api_version()), ("kind", resource.kind.to_owned())];
    for (field, wanted) in wanted {
        let given = text(object, &format!("/{field}"));
        if !given.is_empty() && given != wanted {
            let why = format!("{field} in the data ({given}) does not match the expected {wanted}");
            return Err(Refusal::bad_request(why));
        }
        object[field] = json!(wanted);
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    Ok(())
}

fn check_versions(target: &Target, (old, new): (&Value, &Value)) -> Result<(), Refusal> {
    let version = text(new, "/metadata/resourceVersion");
    if !version.is_empty() && version != text(old, "/metadata/resourceVersion") {
        return Err(Refusal::stale(target.resource, &target.name));
    }
    let given = name(new);
    if !given.is_empty() && given != target.name {
        let why = "the name of the object does not match the name on the URL";
        return Err(Refusal::bad_request(why));
    }
    for field in ["uid", "deletionTimestamp"] {
        let (given, known) = (new["metadata"].get(field), old["metadata"].get(field));
        let given = given.filter(|given| !given.is_null());
        // What is going stays so; nobody makes it go by writing the time.
        if given.is_some() && given != known && (field == "uid" || known.is_none()) {
            let given = given.unwrap_or(&Value::Null);
            let why = format!("Invalid value: {given}: field is immutable");
            let field = format!("metadata.{field}");
            return Err(Refusal::invalid(target.resource, &target.name, &field, &why));
        }
    }
    Ok(())
}

fn unversioned(target: &Target) -> Refusal {
    let (resource, name) = (target.resource, target.name.as_str());
    let why = "Invalid value: 0: must be specified for an update";
    let mut refusal = Refusal::invalid(resource, name, "metadata.resourceVersion", why);
    refusal.message = format!("{resource} \"{name}\" is invalid: metadata.resourceVersion: {why}");
    refusal.about(resource, resource.plural, name)
}

/// A replacement of another UID meets the precondition of the storage.
fn check_uid(target: &Target, (old, new): (&Value, &Value)) -> Result<(), Refusal> {
    let given = uid(new);
    if !given.is_empty() && given != uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {given}, UID in object meta: {}",
            uid(old)
        );
        return Err(Refusal::conflict(target.resource, &target.name, &why));
    }
    Ok(())
}

/// Takes a field of `new` back to what it is in `old`.
fn keep(new: &mut Value, old: &Value, field: &str) {
    let Value::Object(map) = new else { return };
    match old.get(field) {
        Some(value) => drop(map.insert(field.to_owned(), value.clone())),
        None => drop(map.remove(field)),
    }
}

/// Everything whose change makes a new generation.
fn spec_of(object: &Value) -> Vec<(&String, &Value)> {
    let fields = object.as_object().into_iter().flatten();
    fields.filter(|(key, _)| *key != "metadata" && *key != "status").collect()
}

/// Whether storing would change nothing.
fn same(old: &Value, new: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
            metadata.remove("resourceVersion");
        }
        object
    };
    rest(old) == rest(new)
}

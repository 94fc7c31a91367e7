//! Why the simulated API server refused a request, in the words of the real one.

use serde_json::Value;
use serde_json::json;

use crate::world::cluster::resource::Resource;

/// A refusal: what the client gets as a `Status` object.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// Machine-readable reason, as `Conflict`; empty where the real server gives none.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// `details.causes`: reason, message, field.
    pub causes: Vec<Cause>,
    /// `Retry-After`, in seconds.
    pub retry_after_seconds: Option<u32>,
    /// What it is about, and how to go on.
    pub about: Box<About>,
}

/// What a refusal is about; empty parts are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// API group.
    pub group: String,
    /// The plural of paths, or the kind of objects: the real server has no rule for it.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// The token with which a list may go on all the same.
    pub go_on: String,
}

/// One cause of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable reason, as `FieldManagerConflict`.
    pub reason: String,
    /// What a person reads.
    pub message: String,
    /// The field it is about, where there is one.
    pub field: Option<String>,
}

impl Refusal {
    /// A refusal without causes.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let (causes, retry_after_seconds) = (Vec::new(), None);
        let about = Box::default();
        Self { code, reason, message: message.into(), causes, retry_after_seconds, about }
    }

    /// The same, saying what it is about.
    #[must_use]
    pub fn about(self, resource: Resource, kind: &str, name: &str) -> Self {
        let (group, kind, name) = (resource.group.to_owned(), kind.to_owned(), name.to_owned());
        let about = About { group, kind, name, go_on: String::new() };
        Self { about: Box::new(about), ..self }
    }

    /// The object isn't there.
    pub fn not_found(resource: Resource, name: &str) -> Self {
        let refusal = Self::new(404, "NotFound", format!("{resource} \"{name}\" not found"));
        refusal.about(resource, resource.plural, name)
    }

    /// An object of that name is there already.
    pub fn already_exists(resource: Resource, name: &str) -> Self {
        let message = format!("{resource} \"{name}\" already exists");
        Self::new(409, "AlreadyExists", message).about(resource, resource.plural, name)
    }

    /// The caller's view is older than the object.
    pub fn conflict(resource: Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::new(409, "Conflict", message).about(resource, resource.plural, name)
    }

    /// A precondition of a deletion does not hold.
    pub fn precondition(resource: Resource, name: &str, why: &str) -> Self {
        let kind = resource.qualified_kind();
        let message = format!("Operation cannot be fulfilled on {kind} \"{name}\": {why}");
        Self::new(409, "Conflict", message).about(resource, resource.kind, name)
    }

    /// A stale `resourceVersion`.
    pub fn stale(resource: Resource, name: &str) -> Self {
        const WHY: &str = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, WHY)
    }

    /// The object breaks a rule of its kind.
    pub fn invalid(resource: Resource, name: &str, field: &str, why: &str) -> Self {
        Self::faults(resource, name, &[(field.to_owned(), why.to_owned())])
    }

    /// The object breaks several rules of its kind, each by a field and what is wrong with it.
    pub fn faults(resource: Resource, name: &str, faults: &[(String, String)]) -> Self {
        let told: Vec<String> =
            faults.iter().map(|(field, why)| format!("{field}: {why}")).collect();
        let told = match told.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let kind = resource.qualified_kind();
        let message = format!("{kind} \"{name}\" is invalid: {told}");
        let mut refusal = Self::new(422, "Invalid", message).about(resource, resource.kind, name);
        refusal.causes.extend(faults.iter().map(|(field, why)| Cause::of_field(field, why)));
        refusal
    }

    /// The options of a request do not go together.
    pub fn options(kind: &str, field: &str, why: &str) -> Self {
        let message = format!("{kind}.meta.k8s.io \"\" is invalid: {field}: {why}");
        let mut refusal = Self::new(422, "Invalid", message);
        "meta.k8s.io".clone_into(&mut refusal.about.group);
        kind.clone_into(&mut refusal.about.kind);
        refusal.causes.push(Cause::of_field(field, why));
        refusal
    }

    /// The server does not know what to make of it.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// What was asked exists in Kubernetes, but not here; see [`super::audit::Audit::unsupported`].
    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(501, "NotImplemented", format!("the simulated API server has no {what}"))
    }

    /// The version asked for is no longer known.
    pub fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// The version that a list began with is no longer known; `go_on` is the token with which the
    /// rest can be read as it is now.
    pub fn list_expired(go_on: String) -> Self {
        const WHY: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
        let mut refusal = Self::new(410, "Expired", WHY);
        refusal.about.go_on = go_on;
        refusal
    }

    /// The version asked for is still to come.
    pub fn too_large(asked: u64, newest: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {newest}");
        let mut refusal = Self::new(504, "Timeout", message);
        refusal.retry_after_seconds = Some(1);
        refusal.causes.push(Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: None,
        });
        refusal
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let causes: Vec<Value> = self.causes.iter().map(Cause::value).collect();
        let mut details = json!({});
        let about =
            [("group", &self.about.group), ("kind", &self.about.kind), ("name", &self.about.name)];
        for (part, told) in about.into_iter().filter(|(_, told)| !told.is_empty()) {
            details[part] = json!(told);
        }
        if !causes.is_empty() {
            details["causes"] = Value::Array(causes);
        }
        if let Some(seconds) = self.retry_after_seconds {
            details["retryAfterSeconds"] = json!(seconds);
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "details": details, "code": self.code,
        });
        if !self.about.go_on.is_empty() {
            status["metadata"]["continue"] = json!(self.about.go_on);
        }
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        status
    }
}

impl Cause {
    /// A field and what is wrong with it; the words say which reason it is.
    fn of_field(field: &str, why: &str) -> Self {
        const REASONS: [(&str, &str); 7] = [
            ("Required value", "FieldValueRequired"),
            ("Duplicate value", "FieldValueDuplicate"),
            ("Unsupported value", "FieldValueNotSupported"),
            ("Forbidden", "FieldValueForbidden"),
            ("Too long", "FieldValueTooLong"),
            ("Too many", "FieldValueTooMany"),
            ("Invalid type", "FieldValueTypeInvalid"),
        ];
        let known = REASONS.iter().find(|(words, _)| why.starts_with(words));
        let reason = known.map_or("FieldValueInvalid", |(_, reason)| reason).to_owned();
        // The real server says `Invalid value` for a wrong type too.
        let message = why.replacen("Invalid type", "Invalid value", 1);
        Self { reason, message, field: Some(field.to_owned()) }
    }

    fn value(&self) -> Value {
        let mut cause = json!({ "reason": self.reason, "message": self.message });
        if let Some(field) = &self.field {
            cause["field"] = json!(field);
        }
        cause
    }
}

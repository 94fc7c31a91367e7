//! Why the simulated API server refused a request, in the words of the real one.

use serde_json::Value;
use serde_json::json;

use crate::world::cluster::resource::Resource;

/// A refusal: what the client gets as a `Status` object.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// Machine-readable reason, as `Conflict`.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// `details.causes`: reason, message, field.
    pub causes: Vec<Cause>,
    /// `Retry-After`, in seconds.
    pub retry_after_seconds: Option<u32>,
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
        Self { code, reason, message: message.into(), causes, retry_after_seconds }
    }

    /// The object isn't there.
    pub fn not_found(resource: Resource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found"))
    }

    /// An object of that name is there already.
    pub fn already_exists(resource: Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists"))
    }

    /// The caller's view is older than the object.
    pub fn conflict(resource: Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::new(409, "Conflict", message)
    }

    /// A stale `resourceVersion`.
    pub fn stale(resource: Resource, name: &str) -> Self {
        const WHY: &str = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, WHY)
    }

    /// The object breaks a rule of its kind.
    pub fn invalid(kind: &str, name: &str, field: &str, why: &str) -> Self {
        let mut refusal =
            Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {field}: {why}"));
        refusal.causes.push(Cause {
            reason: "FieldValueInvalid".to_owned(),
            message: why.to_owned(),
            field: Some(field.to_owned()),
        });
        refusal
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

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let causes: Vec<Value> = self.causes.iter().map(Cause::value).collect();
        let mut details = json!({});
        if !causes.is_empty() {
            details["causes"] = Value::Array(causes);
        }
        if let Some(seconds) = self.retry_after_seconds {
            details["retryAfterSeconds"] = json!(seconds);
        }
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "details": details, "code": self.code,
        })
    }
}

impl Cause {
    fn value(&self) -> Value {
        let mut cause = json!({ "reason": self.reason, "message": self.message });
        if let Some(field) = &self.field {
            cause["field"] = json!(field);
        }
        cause
    }
}

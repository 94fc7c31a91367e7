//! The audit log of the API server: who asked for what, when, and how it ended.

use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::ControlPlaneError;
use super::layout;

/// A request that came to its end, or a watch that began.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When the request came, to the microsecond.
    pub received: Timestamp,
    /// When it was answered.
    pub answered: Timestamp,
    /// `ResponseStarted` for watches that begin, `ResponseComplete`, or `Panic`.
    pub stage: String,
    /// Who asked, as in `system:serviceaccount:lifeboat:lifeboat-controller`.
    pub user: String,
    /// What its client calls itself.
    pub user_agent: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// The path and the query.
    pub uri: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The kind of object, plural, as in `pods`.
    pub resource: String,
    /// As in `status` or `eviction`; empty for the object itself.
    pub subresource: String,
    /// The namespace; empty for what has none.
    pub namespace: String,
    /// The object's name; empty for lists, and for names that the server made up.
    pub name: String,
    /// The HTTP status of the answer.
    pub code: u16,
    /// What was sent, where the log holds it.
    pub sent: Option<Value>,
}

impl Entry {
    /// Whether it would change something.
    pub fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// Every entry of the log at `path`; a last line that is not whole yet is left out.
pub fn read(path: &Path) -> Result<Vec<Entry>, ControlPlaneError> {
    let text = if path.exists() { layout::read(path)? } else { String::new() };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| parse(line, path)).collect()
}

fn parse(line: &str, path: &Path) -> Result<Entry, ControlPlaneError> {
    let unreadable = |error: serde_json::Error| ControlPlaneError::Unreadable {
        path: path.to_owned(),
        why: error.to_string(),
    };
    Ok(serde_json::from_str::<Line>(line).map_err(unreadable)?.into())
}

/// A line as the API server writes it: `audit.k8s.io/v1`, kind `Event`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stage: String,
    #[serde(rename = "requestURI")]
    uri: String,
    verb: String,
    user: User,
    #[serde(default)]
    user_agent: String,
    #[serde(default)]
    object_ref: Object,
    #[serde(default)]
    response_status: Status,
    request_object: Option<Value>,
    request_received_timestamp: Timestamp,
    stage_timestamp: Timestamp,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Object {
    resource: String,
    namespace: String,
    name: String,
    api_group: String,
    subresource: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
}

impl From<Line> for Entry {
    fn from(line: Line) -> Self {
        Self {
            received: line.request_received_timestamp,
            answered: line.stage_timestamp,
            stage: line.stage,
            user: line.user.username,
            user_agent: line.user_agent,
            verb: line.verb,
            uri: line.uri,
            group: line.object_ref.api_group,
            resource: line.object_ref.resource,
            subresource: line.object_ref.subresource,
            namespace: line.object_ref.namespace,
            name: line.object_ref.name,
            code: line.response_status.code,
            sent: line.request_object,
        }
    }
}

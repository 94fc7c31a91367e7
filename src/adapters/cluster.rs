//! The Kubernetes API, one module for each kind of object.
//!
//! Reads are watches folded into light rows ([`rows`]); writes are single requests whose whole body
//! stands in the source. kube's typed calls are not used for writes: `Api::evict` of 5.0.0 loses
//! the grace period, and a body that can be read here can be checked in a test.

use std::time::Duration;

use http::Method;
use http::Request;
use http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use tower::BoxError;

use crate::adapters::cluster::slots::Urgency;
use crate::error::Class;
use crate::error::Classify;

pub mod admission;
pub mod checkpoints;
pub mod claims;
pub mod events;
pub mod interruptions;
pub mod lease;
pub mod marks;
pub mod namespaces;
pub mod nodes;
pub mod objects;
pub mod others;
pub mod overlays;
pub mod owners;
pub mod pairs;
pub mod pods;
pub mod pools;
pub mod rows;
pub mod slots;
pub mod volumes;

pub use slots::Slots;

/// Longest that one request may take, whatever is left.
pub const REQUEST_MAX: Duration = Duration::from_secs(2);
/// Longest that an urgent request waits for its turn in a storm: half of the notice. What could not
/// be sent by then is tried again by whoever asked, on what is known then.
const TURN_MAX: Duration = Duration::from_mins(1);

/// Longest that a list or a watch may take to begin its answer.
///
/// kube's watcher has no limit here: a request that hangs would end the watch for good.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// Our field manager for what only the holder of the Lease writes.
pub const MANAGER: &str = "lifeboat-controller";

/// The API server, behind a limit on requests in flight.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
    slots: Slots,
    urgency: Urgency,
}

/// What a write sends.
#[derive(Debug)]
pub enum Write<'a> {
    /// Creates an object below a collection, or posts to a subresource.
    Create(Value),
    /// Replaces a whole object; its `resourceVersion` guards it.
    Replace(Value),
    /// A guarded list of operations (RFC 6902).
    JsonPatch(Value),
    /// A merge of maps (RFC 7386), never used where a list could be lost.
    MergePatch(Value),
    /// Server-side apply by a field manager of ours; a conflict is refused.
    Apply(&'a str, Value),
    /// Server-side apply that takes fields over: only for parts that are ours alone.
    ApplyForced(&'a str, Value),
    /// Deletes, with the options in the body.
    Delete(Value),
}

/// Why a request to the API server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No answer within the time that the request had.
    #[error("`{path}` was not answered within {bound:?}")]
    Late {
        /// The request's path.
        path: String,
        /// The time it had.
        bound: Duration,
    },
    /// The object is not there.
    #[error("`{path}` is not there")]
    NotFound {
        /// The request's path.
        path: String,
    },
    /// Somebody else was first: it exists, has changed, or has another UID.
    #[error("`{path}` was changed by somebody else")]
    Conflict {
        /// The request's path.
        path: String,
        /// What the server said.
        source: Box<kube::core::Status>,
    },
    /// The server does not accept the content, as when a patch's `test` does not hold.
    #[error("`{path}` does not accept what was sent")]
    Rejected {
        /// The request's path.
        path: String,
        /// What the server said.
        source: Box<kube::core::Status>,
    },
    /// A budget, or the server's own limits, do not allow it now.
    #[error("`{path}` was refused for now")]
    TooMany {
        /// The request's path.
        path: String,
        /// What the server said.
        source: Box<kube::core::Status>,
    },
    /// We have no right to it.
    #[error("`{path}` is forbidden to us")]
    Forbidden {
        /// The request's path.
        path: String,
        /// What the server said.
        source: Box<kube::core::Status>,
    },
    /// The server is not well, or nobody answers.
    #[error("`{path}` was not reached")]
    Away {
        /// The request's path.
        path: String,
        /// What the client said.
        source: Box<kube::Error>,
    },
    /// The answer has another shape than this kind of object has.
    #[error("the answer of `{path}` is not readable")]
    Unreadable {
        /// The request's path.
        path: String,
        /// Where it differs.
        source: serde_json::Error,
    },
}

impl Cluster {
    /// A handle that takes any of the slots, before routine does.
    pub fn first_aid(client: kube::Client, slots: &Slots) -> Self {
        Self { client, slots: slots.clone(), urgency: Urgency::FirstAid }
    }

    /// A handle that leaves first aid its own slots.
    pub fn routine(client: kube::Client, slots: &Slots) -> Self {
        Self { client, slots: slots.clone(), urgency: Urgency::Routine }
    }

    /// The same, for fences: they go before everything else.
    #[must_use]
    pub fn for_fences(&self) -> Self {
        Self { urgency: Urgency::Fence, ..self.clone() }
    }

    /// A client for watches: they take no slot, and their answer must begin within [`HEAD_MAX`].
    pub fn watch_client(&self) -> kube::Client {
        let client = self.client.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let client = client.clone();
            async move {
                match tokio::time::timeout(HEAD_MAX, client.send(request)).await {
                    Ok(answer) => answer.map_err(BoxError::from),
                    Err(elapsed) => Err(BoxError::from(elapsed)),
                }
            }
        });
        kube::Client::new(service, self.client.default_namespace())
    }

    /// Reads one object; `None` if it is not there.
    pub async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        bound: Duration,
    ) -> Result<Option<T>, ClusterError> {
        match self.send(path, request(Method::GET, path, None), bound).await {
            Ok(text) => parse(path, &text).map(Some),
            Err(ClusterError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for the server's version, which everybody may: all that counts is that it answers.
    pub async fn ask_version(&self) -> Result<(), ClusterError> {
        let path = "/version";
        self.send(path, request(Method::GET, path, None), REQUEST_MAX).await.map(drop)
    }

    /// Sends one write, and gives back the object that the server answered with.
    pub async fn write(
        &self,
        path: &str,
        write: Write<'_>,
        bound: Duration,
    ) -> Result<Value, ClusterError> {
        let text = self.send(path, write.request(path), bound).await?;
        parse(path, &text)
    }

    async fn send(
        &self,
        path: &str,
        request: Request<Vec<u8>>,
        bound: Duration,
    ) -> Result<String, ClusterError> {
        let bound = bound.min(REQUEST_MAX);
        // In a storm the urgent wait for one another: giving up would only begin the wait anew.
        let patience = match self.urgency {
            Urgency::Fence | Urgency::FirstAid => TURN_MAX,
            Urgency::Routine => bound,
        };
        let until = Instant::now() + patience;
        let path = path.to_owned();
        let Ok(_slot) = tokio::time::timeout_at(until, self.slots.take(self.urgency)).await else {
            return Err(ClusterError::Late { path, bound: patience });
        };
        let until = match self.urgency {
            Urgency::Fence | Urgency::FirstAid => Instant::now() + bound,
            Urgency::Routine => until,
        };
        // Boxed now that its turn has come: thousands wait in a storm, and each would bring the room
        // for a request with it.
        let answer = Box::pin(self.client.request_text(request));
        match tokio::time::timeout_at(until, answer).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(ClusterError::from_client(path, error)),
            Err(_) => Err(ClusterError::Late { path, bound }),
        }
    }
}

impl Write<'_> {
    /// The request that it is. Only its bytes wait for their turn, a tenth of the tree.
    fn request(self, path: &str) -> Request<Vec<u8>> {
        let uri = match &self {
            Self::Apply(manager, _) => format!("{path}?fieldManager={manager}&force=false"),
            Self::ApplyForced(manager, _) => format!("{path}?fieldManager={manager}&force=true"),
            Self::Create(_) | Self::Replace(_) | Self::JsonPatch(_) | Self::MergePatch(_) => {
                format!("{path}?fieldManager={MANAGER}")
            }
            Self::Delete(_) => path.to_owned(),
        };
        let (method, content_type, body) = match self {
            Self::Create(body) => (Method::POST, "application/json", body),
            Self::Replace(body) => (Method::PUT, "application/json", body),
            Self::JsonPatch(body) => (Method::PATCH, "application/json-patch+json", body),
            Self::MergePatch(body) => (Method::PATCH, "application/merge-patch+json", body),
            Self::Apply(_, body) | Self::ApplyForced(_, body) => {
                (Method::PATCH, "application/apply-patch+yaml", body)
            }
            Self::Delete(body) => (Method::DELETE, "application/json", body),
        };
        request(method, &uri, Some((content_type, &body)))
    }
}

impl ClusterError {
    /// Sorts what kube's client reports by what the caller can do about it.
    pub fn from_client(path: String, error: kube::Error) -> Self {
        let kube::Error::Api(source) = error else {
            return Self::Away { path, source: Box::new(error) };
        };
        match source.code {
            404 => Self::NotFound { path },
            409 => Self::Conflict { path, source },
            400 | 405 | 413 | 415 | 422 => Self::Rejected { path, source },
            429 => Self::TooMany { path, source },
            401 | 403 => Self::Forbidden { path, source },
            _ => Self::Away { path, source: Box::new(kube::Error::Api(source)) },
        }
    }

    /// Whether a PodDisruptionBudget said no, and not the server's own flow control.
    pub fn is_budget(&self) -> bool {
        let Self::TooMany { source, .. } = self else {
            return false;
        };
        let causes = source.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == "DisruptionBudget")
    }
}

impl Classify for ClusterError {
    fn class(&self) -> Class {
        match self {
            Self::Late { .. } | Self::TooMany { .. } | Self::Away { .. } => Class::Transient,
            Self::Conflict { .. } => Class::Superseded,
            Self::NotFound { .. }
            | Self::Rejected { .. }
            | Self::Forbidden { .. }
            | Self::Unreadable { .. } => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Late { .. } => "late",
            Self::NotFound { .. } => "not_found",
            Self::Conflict { .. } => "conflict",
            Self::Rejected { .. } => "rejected",
            Self::TooMany { .. } => "too_many",
            Self::Forbidden { .. } => "forbidden",
            Self::Away { .. } => "away",
            Self::Unreadable { .. } => "unreadable",
        }
    }
}

/// Reads a domain type out of an object that the server answered with.
pub fn from_value<T: DeserializeOwned>(path: &str, value: Value) -> Result<T, ClusterError> {
    serde_json::from_value(value)
        .map_err(|source| ClusterError::Unreadable { path: path.to_owned(), source })
}

fn parse<T: DeserializeOwned>(path: &str, text: &str) -> Result<T, ClusterError> {
    serde_json::from_str(text)
        .map_err(|source| ClusterError::Unreadable { path: path.to_owned(), source })
}

fn request(method: Method, uri: &str, body: Option<(&str, &Value)>) -> Request<Vec<u8>> {
    let builder = Request::builder().method(method).uri(uri);
    let request = match body {
        Some((content_type, body)) => {
            builder.header(CONTENT_TYPE, content_type).body(body.to_string().into_bytes())
        }
        None => builder.body(Vec::new()),
    };
    request.expect("paths are built from parsed names and constant parts")
}

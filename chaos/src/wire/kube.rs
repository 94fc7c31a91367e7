//! The Kubernetes API over the world: the verbs that Lifeboat uses, as the real server answers them.
//!
//! What it has not, it refuses with 501 and counts (`Audit::unsupported`).

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use http::StatusCode;
use http::header::USER_AGENT;
use serde_json::Value;
use serde_json::json;

use crate::wire;
use crate::wire::BoxError;
use crate::wire::Response;
use crate::wire::Wire;
use crate::wire::collect;
use crate::wire::kube::request::Address;
use crate::wire::kube::request::Query;
use crate::wire::kube::request::verb;
use crate::world::World;
use crate::world::cluster::Caller;
use crate::world::cluster::audit;
use crate::world::cluster::object::namespace;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::selector::Selector;

mod discovery;
mod read;
mod request;
mod watch;
mod write;

/// The API server. `caller` names the program at the other end in counters and in the list of
/// writes; if it is empty, the user agent does.
pub fn wire(world: &World, caller: &str) -> Wire {
    let (world, caller) = (world.clone(), caller.to_owned());
    wire::wire(move |request: wire::Request| {
        let (world, caller) = (world.clone(), caller.clone());
        async move { serve(&world, &caller, request).await }
    })
}

/// A request with its body at hand.
struct Asked {
    method: Method,
    address: Address,
    query: Query,
    caller: Caller,
    content_type: String,
    metadata_only: bool,
    body: Bytes,
}

/// Which objects a list or a watch sees, and how much of each.
struct View {
    address: Address,
    selector: Selector,
    metadata_only: bool,
}

/// What is answered: a status and an object, or a body that goes on.
enum Answer {
    Object(StatusCode, Value),
    Stream(wire::Body),
}

async fn serve(world: &World, caller: &str, request: wire::Request) -> Result<Response, BoxError> {
    let (head, body) = request.into_parts();
    let body = collect(body).await?;
    if let Some(found) = discovery::answer(&head.method, head.uri.path(), &body) {
        let made = head.method == Method::POST;
        return Ok(written(if made { StatusCode::CREATED } else { StatusCode::OK }, &found));
    }
    let agent = if caller.is_empty() { agent(&head.headers) } else { caller.to_owned() };
    let asked = match asked(&head, &agent, body) {
        Ok(asked) => asked,
        Err(refusal) => {
            let what = format!("{} {}: {}", head.method, head.uri.path(), refusal.message);
            world.audit(|audit| audit.count_unsupported(&what));
            return Ok(refused(&refusal));
        }
    };
    let answer = answer(world, &asked);
    let code = match &answer {
        Ok(Answer::Object(status, _)) => status.as_u16(),
        Ok(Answer::Stream(_)) => StatusCode::OK.as_u16(),
        Err(refusal) => refusal.code,
    };
    count(world, &asked, code);
    Ok(match answer {
        Ok(Answer::Object(status, object)) => written(status, &object),
        Ok(Answer::Stream(body)) => {
            let mut response = http::Response::new(body);
            let json = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(http::header::CONTENT_TYPE, json);
            response
        }
        Err(refusal) => refused(&refusal),
    })
}

fn answer(world: &World, asked: &Asked) -> Result<Answer, Refusal> {
    match verb(&asked.method, &asked.address, &asked.query) {
        "get" => read::get(world, asked),
        "list" => read::list(world, asked),
        "watch" => read::watch(world, asked),
        "create" => write::create(world, asked),
        "update" => write::update(world, asked),
        "patch" => write::patch(world, asked),
        "delete" => write::delete(world, asked),
        "evict" => write::evict(world, asked),
        other => Err(Refusal::unsupported(format!("verb {other} for {}", asked.address.counted()))),
    }
}

fn count(world: &World, asked: &Asked, code: u16) {
    let resource = asked.address.counted();
    let verb = match verb(&asked.method, &asked.address, &asked.query) {
        "patch" if asked.content_type == write::APPLY => "apply",
        verb => verb,
    };
    let agent = asked.caller.agent.clone();
    world.audit(|audit| {
        if code == StatusCode::NOT_IMPLEMENTED {
            audit.count_unsupported(&format!("{verb} {resource}"));
        }
        audit.count(audit::Request { agent, verb, resource, code });
    });
}

fn asked(head: &http::request::Parts, agent: &str, body: Bytes) -> Result<Asked, Refusal> {
    let header = |name: http::HeaderName| {
        let value = head.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    };
    let query = Query::parse(&head.uri)?;
    let content_type = header(http::header::CONTENT_TYPE).split(';').next().unwrap_or_default();
    let accept = header(http::header::ACCEPT);
    if accept.contains("as=Table") && !accept.contains("application/json,") {
        return Err(Refusal::new(406, "NotAcceptable", "only JSON objects are served"));
    }
    let manager = match query.text("fieldManager") {
        "" => agent.to_owned(),
        named => named.to_owned(),
    };
    Ok(Asked {
        method: head.method.clone(),
        address: Address::parse(head.uri.path())?,
        query,
        caller: Caller { agent: agent.to_owned(), manager },
        content_type: content_type.trim().to_owned(),
        metadata_only: accept.contains("as=PartialObjectMetadata"),
        body,
    })
}

fn agent(headers: &http::HeaderMap) -> String {
    let agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let agent = agent.split(['/', ' ']).next().unwrap_or_default();
    if agent.is_empty() { "unknown".to_owned() } else { agent.to_owned() }
}

impl Asked {
    /// Whether only some of the objects are wanted.
    fn selects(&self) -> bool {
        ["labelSelector", "fieldSelector"].iter().any(|key| !self.query.text(key).is_empty())
    }

    fn view(&self) -> Result<View, Refusal> {
        let labels = self.query.text("labelSelector");
        let fields = self.query.text("fieldSelector");
        let selector = Selector::parse(self.address.resource, labels, fields)?;
        let address = self.address.clone();
        Ok(View { address, selector, metadata_only: self.metadata_only })
    }
}

impl View {
    fn sees(&self, object: &Value) -> bool {
        let here =
            self.address.namespace.as_deref().is_none_or(|wanted| wanted == namespace(object));
        here && self.selector.matches(object)
    }

    fn shown(&self, object: &Arc<Value>) -> Arc<Value> {
        shown(object, self.metadata_only)
    }
}

/// An object, or only its metadata where that is all that was asked for.
fn shown(object: &Arc<Value>, metadata_only: bool) -> Arc<Value> {
    if !metadata_only {
        return Arc::clone(object);
    }
    Arc::new(json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    }))
}

fn refused(refusal: &Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = written(status, &refusal.status());
    if let Some(seconds) = refusal.retry_after_seconds {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}

fn written(status: StatusCode, object: &Value) -> Response {
    wire::answer(status, "application/json", object.to_string())
}

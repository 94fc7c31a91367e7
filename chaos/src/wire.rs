//! Protocols over the world, each a `tower::Service` from HTTP request to HTTP response.
//!
//! Every wire has the same type, [`Wire`], so that one fault layer fits in front of any of them and
//! one server serves any of them. An `Err` is no answer at all: a connection that broke.

use std::future::Future;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::StatusCode;
use http_body_util::BodyExt;
use http_body_util::Empty;
use http_body_util::Full;
use http_body_util::combinators::BoxBody;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

pub mod imds;
pub mod kube;
pub mod kubelet;
pub mod s3;
pub mod sqs;

/// What a broken connection or body says.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of every request and answer; may stream.
pub type Body = BoxBody<Bytes, BoxError>;

/// A request as every wire takes it.
pub type Request = http::Request<Body>;

/// An answer as every wire gives it.
pub type Response = http::Response<Body>;

/// A protocol over the world.
pub type Wire = BoxCloneSyncService<Request, Response, BoxError>;

/// Makes a wire of an async function.
pub fn wire<F, Answer>(answer: F) -> Wire
where
    F: Fn(Request) -> Answer + Clone + Send + Sync + 'static,
    Answer: Future<Output = Result<Response, BoxError>> + Send + 'static,
{
    BoxCloneSyncService::new(tower::service_fn(answer))
}

/// Sends one request over a wire.
pub fn call(wire: &Wire, request: Request) -> BoxFuture<'static, Result<Response, BoxError>> {
    Box::pin(wire.clone().oneshot(request))
}

/// A body of known bytes, not copied.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body without a byte.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// All bytes of a body; a body of one frame is not copied.
pub async fn collect<B>(body: B) -> Result<Bytes, BoxError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    Ok(body.collect().await.map_err(Into::into)?.to_bytes())
}

/// An answer of one status, one content type and known bytes.
pub fn answer(status: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(full(bytes));
    *response.status_mut() = status;
    let value = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    response
}

//! HTTPS for the API server: short requests, few connections, each for a while.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Request;
use http::Response;
use http::StatusCode;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::ResolvesServerCert;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::error::Chain;

/// Where pods are sent to.
pub const PATH: &str = "/pods";
/// Connections served at a time; an API server keeps a few.
const CONNECTIONS_MAX: usize = 256;
/// How long a connection may take to be made, and a request to be sent: the API server's own limit.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection is kept: whoever opens it and asks nothing keeps nobody out for longer.
const KEPT: Duration = Duration::from_mins(2);
/// Longest review: an object has 1.5 MiB at most, and comes once.
const BODY_MAX: usize = 4 << 20;

/// Serves `answer`, from the body of a review to that of its answer, until dropped.
pub async fn serve<A, F>(listener: TcpListener, shown: Arc<dyn ResolvesServerCert>, answer: A)
where
    A: Fn(Bytes) -> F + Clone,
    F: Future<Output = Option<String>>,
{
    let acceptor = TlsAcceptor::from(Arc::new(tls(shown)));
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = connections.next() => (),
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.push(connection(acceptor.clone(), stream, answer.clone()));
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "connection to the webhook not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// HTTP/1.1 alone: no request of the API server's waits on a connection for another.
fn tls(shown: Arc<dyn ResolvesServerCert>) -> ServerConfig {
    let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has suites of both versions");
    let mut config = versions.with_no_client_auth().with_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

async fn connection<A, F>(acceptor: TlsAcceptor, stream: TcpStream, answer: A)
where
    A: Fn(Bytes) -> F + Clone,
    F: Future<Output = Option<String>>,
{
    let shaken = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await;
    let stream = match shaken.unwrap_or_else(|late| Err(io::Error::other(late))) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(error = %Chain(&error), "connection to the webhook not made");
            return;
        }
    };
    let service = service_fn(|request| {
        let answer = answer.clone();
        async { Ok::<_, Infallible>(respond(request, answer).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(KEPT);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        biased;
        ended = served.as_mut() => ended,
        () = tokio::time::sleep(KEPT) => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(PATIENCE, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %Chain(&error), "connection to the webhook broke");
    }
}

async fn respond<A, F>(request: Request<Incoming>, answer: A) -> Response<Full<Bytes>>
where
    A: Fn(Bytes) -> F,
    F: Future<Output = Option<String>>,
{
    if request.uri().path() != PATH {
        return empty(StatusCode::NOT_FOUND);
    }
    if request.method() != http::Method::POST {
        return empty(StatusCode::METHOD_NOT_ALLOWED);
    }
    let announced = request.body().size_hint().lower();
    if announced > BODY_MAX as u64 {
        return empty(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let body = Limited::new(request.into_body(), BODY_MAX).collect();
    let Ok(read) = tokio::time::timeout(PATIENCE, body).await else {
        return empty(StatusCode::REQUEST_TIMEOUT);
    };
    let Ok(body) = read else { return empty(StatusCode::PAYLOAD_TOO_LARGE) };
    match answer(body.to_bytes()).await {
        Some(text) => {
            let mut response = Response::new(Full::from(text));
            let json = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(http::header::CONTENT_TYPE, json);
            response
        }
        None => empty(StatusCode::BAD_REQUEST),
    }
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

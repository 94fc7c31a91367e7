//! gRPC over a Unix socket, for a handful of methods with one answer each.

use std::future::Future;
use std::pin::Pin;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic_prost::ProstCodec;
use tracing::debug;
use tracing::warn;

use crate::agent::csi::authority::Readable;
use crate::error::Chain;

/// Connections served at a time; kubelet makes one for each call.
const CONNECTIONS_MAX: usize = 64;

/// A request as it came in.
pub type Request = http::Request<Incoming>;

/// An answer as it goes out.
pub type Response = http::Response<Body>;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves `answer` on `listener` until dropped. Nothing of it outlives the returned future, so
/// that an agent that ends has truly ended.
pub async fn serve<A, F>(listener: UnixListener, answer: A)
where
    A: Fn(Request) -> F + Clone + Send + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    serve_through(listener, answer, std::convert::identity).await;
}

/// The same for a registration socket, whose calls are no good HTTP/2; see [`Readable`].
pub async fn serve_registration<A, F>(listener: UnixListener, answer: A)
where
    A: Fn(Request) -> F + Clone + Send + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    serve_through(listener, answer, Readable::new).await;
}

async fn serve_through<A, F, S>(listener: UnixListener, answer: A, through: fn(UnixStream) -> S)
where
    A: Fn(Request) -> F + Clone + Send + 'static,
    F: Future<Output = Response> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = connections.next() => (),
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => connections.push(connection(through(stream), answer.clone())),
                Err(error) => {
                    warn!(error = %Chain(&error), "connection from kubelet not accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// Answers one method that has to wait for nothing: decodes, asks `method`, encodes.
pub async fn unary<In, Out, M>(request: Request, method: M) -> Response
where
    In: prost::Message + Default + 'static,
    Out: prost::Message + Default + 'static,
    M: Fn(&In) -> Result<Out, Status>,
{
    unary_later(request, |asked: In| std::future::ready(method(&asked))).await
}

/// Answers one method that may have to wait.
pub async fn unary_later<In, Out, M, F>(request: Request, method: M) -> Response
where
    In: prost::Message + Default + 'static,
    Out: prost::Message + Default + 'static,
    M: Fn(In) -> F,
    F: Future<Output = Result<Out, Status>>,
{
    let service = tower::service_fn(|request: tonic::Request<In>| {
        let answer = method(request.into_inner());
        async { answer.await.map(tonic::Response::new) }
    });
    let codec: ProstCodec<Out, In> = ProstCodec::default();
    tonic::server::Grpc::new(codec).unary(service, request).await
}

async fn connection<A, F, S>(stream: S, answer: A)
where
    A: Fn(Request) -> F + Clone + Send + 'static,
    F: Future<Output = Response> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (inside, mut spawned) = mpsc::unbounded_channel();
    let service = hyper::service::service_fn(move |request: Request| {
        let answer = answer(request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(Inside(inside))
        .max_concurrent_streams(16)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut streams: FuturesUnordered<Work> = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    debug!(error = %Chain(&error), "connection from kubelet ended early");
                }
                return;
            }
            Some(stream) = spawned.recv() => streams.push(stream),
            Some(()) = streams.next() => (),
        }
    }
}

/// Runs a connection's streams within the connection's own future. Bounded by the number of
/// streams that it allows.
#[derive(Clone)]
struct Inside(mpsc::UnboundedSender<Work>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Inside {
    fn execute(&self, stream: F) {
        // It fails only when the connection is gone, and its streams with it.
        drop(self.0.send(Box::pin(stream)));
    }
}

//! Wires on loopback for real processes, and wires handed to the real clients in virtual time.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::wire::BoxError;
use crate::wire::Response;
use crate::wire::Wire;
use crate::wire::call;

mod clients;
mod listener;
pub mod tls;

pub use clients::REGION;
pub use clients::bytes_service;
pub use clients::kube_client;
pub use clients::s3_builder;
pub use clients::s3_http;
pub use clients::s3_store;
pub use clients::sqs_client;
use listener::Address;
use listener::Listener;
use listener::Stream;

/// Between two attempts to open a port again that another program took meanwhile.
const REBIND: Duration = Duration::from_millis(50);

/// How a served wire treats those who connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Connections are taken and requests answered.
    Open,
    /// The port is closed and all connections are broken: `connection refused`.
    Closed,
    /// Connections are taken, and nothing is ever answered.
    Silent,
}

/// A wire that is being served on loopback; dropping it ends the server.
#[derive(Debug)]
pub struct Served {
    address: SocketAddr,
    scheme: &'static str,
    server: Server,
}

/// A wire that is being served on a Unix socket; dropping it ends the server.
#[derive(Debug)]
pub struct ServedSocket {
    server: Server,
}

/// Serves a wire on a free port of loopback, HTTP/1.1 and HTTP/2 by prior knowledge.
pub async fn serve(wire: Wire) -> std::io::Result<Served> {
    serve_at(wire, SocketAddr::from(([127, 0, 0, 1], 0))).await
}

/// Serves a wire on one address.
pub async fn serve_at(wire: Wire, address: SocketAddr) -> std::io::Result<Served> {
    serve_behind(Front { wire, tls: None }, address).await
}

/// Serves a wire on a free port of loopback under TLS, HTTP/1.1 alone as S3 does.
pub async fn serve_tls(wire: Wire, identity: &tls::Identity) -> std::io::Result<Served> {
    let front = Front { wire, tls: Some(identity.acceptor()) };
    serve_behind(front, SocketAddr::from(([127, 0, 0, 1], 0))).await
}

async fn serve_behind(front: Front, address: SocketAddr) -> std::io::Result<Served> {
    let scheme = if front.tls.is_some() { "https" } else { "http" };
    let listener = Listener::bind(&Address::Port(address)).await?;
    let address = listener.port()?;
    let server = Server::start(front, listener, Address::Port(address));
    Ok(Served { address, scheme, server })
}

/// Serves a wire on a Unix socket, whose folder is made and whose old file is replaced.
///
/// The path may be longer than the 107 bytes that a socket's address holds.
pub async fn serve_socket(wire: Wire, path: &Path) -> std::io::Result<ServedSocket> {
    let address = Address::Socket(path.to_owned());
    let listener = Listener::bind(&address).await?;
    Ok(ServedSocket { server: Server::start(Front { wire, tls: None }, listener, address) })
}

impl Served {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as a URL, without a trailing slash.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Opens, closes or silences it; connections that were open before are broken at once.
    pub fn set(&self, door: Door) {
        self.server.door.send_replace(door);
    }
}

impl ServedSocket {
    /// Opens, closes or silences it; connections that were open before are broken at once.
    pub fn set(&self, door: Door) {
        self.server.door.send_replace(door);
    }
}

/// What whoever connects meets.
#[derive(Clone)]
struct Front {
    wire: Wire,
    tls: Option<TlsAcceptor>,
}

#[derive(Debug)]
struct Server {
    door: watch::Sender<Door>,
    task: JoinHandle<()>,
}

impl Server {
    fn start(front: Front, listener: Listener, address: Address) -> Self {
        let (door, seen) = watch::channel(Door::Open);
        Self { door, task: tokio::spawn(run(front, listener, address, seen)) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(front: Front, listener: Listener, address: Address, mut door: watch::Receiver<Door>) {
    let mut listener = Some(listener);
    loop {
        let now = *door.borrow_and_update();
        match (now, listener.take()) {
            (Door::Closed, _) => {
                address.remove();
                if door.changed().await.is_err() {
                    return;
                }
            }
            (Door::Open | Door::Silent, None) => match Listener::bind(&address).await {
                Ok(bound) => listener = Some(bound),
                Err(_) => tokio::time::sleep(REBIND).await,
            },
            (Door::Open | Door::Silent, Some(open)) => {
                if accept(&front, &open, &mut door).await.is_err() {
                    return;
                }
                listener = Some(open);
            }
        }
    }
}

/// Takes connections until the door moves; those it took are broken then.
async fn accept(
    front: &Front,
    listener: &Listener,
    door: &mut watch::Receiver<Door>,
) -> Result<(), watch::error::RecvError> {
    let silent = *door.borrow() == Door::Silent;
    let mut held = Vec::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            moved = door.changed() => return moved,
            Some(_) = connections.join_next() => (),
            taken = listener.accept() => match taken {
                Ok(stream) if silent => held.push(stream),
                Ok(stream) => drop(connections.spawn(connection(front.clone(), stream))),
                Err(_) => tokio::task::yield_now().await,
            },
        }
    }
}

async fn connection(Front { wire, tls }: Front, stream: Stream) {
    let stream = match tls {
        None => stream,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => Box::new(stream),
            Err(error) => return tracing::debug!(%error, "no TLS agreed on"),
        },
    };
    let service = service_fn(move |request| respond(wire.clone(), request));
    let server = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "connection broken");
    }
}

async fn respond(wire: Wire, request: http::Request<Incoming>) -> Result<Response, BoxError> {
    let request = request.map(|body| body.map_err(BoxError::from).boxed());
    call(&wire, request).await
}

//! Wires on loopback for real processes, and wires handed to the real clients in virtual time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::JoinSet;

use crate::wire::BoxError;
use crate::wire::Response;
use crate::wire::Wire;
use crate::wire::call;

mod clients;

pub use clients::REGION;
pub use clients::bytes_service;
pub use clients::kube_client;
pub use clients::s3_builder;
pub use clients::s3_store;
pub use clients::sqs_client;

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
    door: watch::Sender<Door>,
    task: JoinHandle<()>,
}

impl Served {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as a plain HTTP URL, without a trailing slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Opens, closes or silences it; connections of another mode are broken at once.
    pub fn set(&self, door: Door) {
        self.door.send_replace(door);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves a wire on a free port of loopback, HTTP/1.1 and HTTP/2 by prior knowledge.
pub async fn serve(wire: Wire) -> io::Result<Served> {
    serve_at(wire, SocketAddr::from(([127, 0, 0, 1], 0))).await
}

/// Serves a wire on one address.
pub async fn serve_at(wire: Wire, address: SocketAddr) -> io::Result<Served> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let (door, seen) = watch::channel(Door::Open);
    let task = tokio::spawn(run(wire, listener, seen));
    Ok(Served { address, door, task })
}

async fn run(wire: Wire, listener: TcpListener, mut door: watch::Receiver<Door>) {
    let Ok(address) = listener.local_addr() else { return };
    let mut listener = Some(listener);
    loop {
        let now = *door.borrow_and_update();
        match (now, listener.take()) {
            (Door::Closed, _) => {
                if door.changed().await.is_err() {
                    return;
                }
            }
            (Door::Open | Door::Silent, None) => {
                listener = TcpListener::bind(address).await.ok();
                if listener.is_none() {
                    tokio::time::sleep(REBIND).await;
                }
            }
            (Door::Open | Door::Silent, Some(open)) => {
                if accept(&wire, &open, &mut door).await.is_err() {
                    return;
                }
                listener = Some(open);
            }
        }
    }
}

/// Takes connections until the door moves; those it took are broken then.
async fn accept(
    wire: &Wire,
    listener: &TcpListener,
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
                Ok((stream, _)) if silent => held.push(stream),
                Ok((stream, _)) => drop(connections.spawn(connection(wire.clone(), stream))),
                Err(_) => tokio::task::yield_now().await,
            },
        }
    }
}

async fn connection(wire: Wire, stream: TcpStream) {
    let service = service_fn(move |request| respond(wire.clone(), request));
    let server = auto::Builder::new(TokioExecutor::new());
    if stream.set_nodelay(true).is_err() {
        return;
    }
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "connection broken");
    }
}

async fn respond(wire: Wire, request: http::Request<Incoming>) -> Result<Response, BoxError> {
    let request = request.map(|body| body.map_err(BoxError::from).boxed());
    call(&wire, request).await
}

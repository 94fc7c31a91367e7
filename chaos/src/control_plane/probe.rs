//! Asks a program whether it is ready.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Part;
use super::identity;
use super::layout::Layout;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// How a program is asked.
pub(super) enum Probe {
    /// By a path of a plain HTTP server on this port.
    Http(u16, &'static str),
    /// By `/readyz` of the API server that this kubeconfig names.
    Api(std::path::PathBuf),
    /// By a connection to this port.
    Port(u16),
}

/// How `part` is asked.
pub(super) fn of(layout: &Layout, part: Part) -> Probe {
    match part {
        Part::Etcd => Probe::Http(layout.ports.etcd, "/health"),
        Part::ApiServer => Probe::Api(layout.kubeconfig()),
        Part::ControllerManager => Probe::Port(layout.ports.controller_manager),
        Part::Scheduler => Probe::Port(layout.ports.scheduler),
        Part::Kwok => Probe::Http(layout.ports.kwok, "/healthz"),
        Part::Karpenter => Probe::Http(layout.ports.karpenter_health, "/readyz"),
    }
}

impl Probe {
    /// Whether the answer is yes.
    pub(super) async fn answers(&self) -> bool {
        let asked = async {
            match self {
                Self::Http(port, path) => says_ok(*port, path).await.unwrap_or(false),
                Self::Api(kubeconfig) => is_ready(kubeconfig).await,
                Self::Port(port) => TcpStream::connect(("127.0.0.1", *port)).await.is_ok(),
            }
        };
        tokio::time::timeout(ANSWER, asked).await.unwrap_or(false)
    }
}

async fn says_ok(port: u16, path: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(64).read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1);
    Ok(status == Some("200"))
}

async fn is_ready(kubeconfig: &std::path::Path) -> bool {
    let Ok(client) = identity::client(kubeconfig).await else { return false };
    let request = http::Request::get("/readyz").body(Vec::new());
    let request = request.expect("a constant path is a request");
    client.request_text(request).await.is_ok()
}

//! The API server's end of the line: HTTPS by rustls alone, trusting what the webhook's bundle names.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::ClientConnection;
use rustls::RootCertStore;
use rustls::StreamOwned;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;

/// What the API server waits at most.
const PATIENCE: Duration = Duration::from_secs(2);

/// Posts `body`, and gives back the status and the body of the answer. Blocks.
pub(crate) fn post(
    port: u16,
    (name, authorities): (&str, &[u8]),
    (path, body): (&str, &str),
) -> io::Result<(u16, String)> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {name}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    say(port, (name, authorities), &format!("{head}{body}"))
}

/// Says this, and gives back the status and the body of the answer. Blocks.
pub(crate) fn say(
    port: u16,
    (name, authorities): (&str, &[u8]),
    request: &str,
) -> io::Result<(u16, String)> {
    let mut line = open(port, name, authorities)?;
    line.write_all(request.as_bytes())?;
    let mut answer = String::new();
    // A server may close without a last word of TLS.
    match line.read_to_string(&mut answer) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        Ok(_) | Err(_) => (),
    }
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

/// Whether whoever listens there shows a certificate for `name` that these authorities signed.
pub(crate) fn is_trusted(port: u16, name: &str, authorities: &[u8]) -> bool {
    let shaken = open(port, name, authorities).and_then(|mut line| line.flush());
    shaken.is_ok()
}

fn open(
    port: u16,
    name: &str,
    authorities: &[u8],
) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(authorities) {
        roots.add(authority.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let client = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut line = StreamOwned::new(client, socket);
    while line.conn.is_handshaking() {
        line.conn.complete_io(&mut line.sock)?;
    }
    Ok(line)
}

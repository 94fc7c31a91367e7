//! What the machine can do at best: copying, hashing, checking, and talking to itself.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use crc_fast::CrcAlgorithm;
use rustls::ClientConfig;
use rustls::ClientConnection;
use rustls::ServerConnection;
use rustls::StreamOwned;
use serde::Serialize;
use tokio::time::Instant;

use crate::serve::tls::Identity;

/// Bytes that each is measured over: more than a cache holds.
const BYTES: usize = 256 << 20;
/// Bytes written to a socket at a time.
const BLOCK: usize = 1 << 20;

/// 10⁹ bytes for each second of one processor.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Limits {
    memcpy: f64,
    blake3: f64,
    crc64nvme: f64,
    /// One connection, and a thread at each end.
    loopback: f64,
    /// The same under TLS.
    tls: f64,
}

/// Measures them, each the best of three.
pub(super) fn measure() -> Limits {
    let mut from = vec![0_u8; BYTES];
    fastrand::Rng::with_seed(1).fill(&mut from);
    let mut to = vec![1_u8; BYTES];
    Limits {
        memcpy: best(|| to.copy_from_slice(&from)),
        blake3: best(|| {
            std::hint::black_box(blake3::hash(&from));
        }),
        crc64nvme: best(|| {
            std::hint::black_box(crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &from));
        }),
        loopback: best(|| loopback(&from).unwrap_or_default()),
        tls: best(|| tls(&from).unwrap_or_default()),
    }
}

impl Limits {
    /// As a person reads it.
    pub(super) fn line(&self) -> String {
        format!(
            "this machine, GB/s: memcpy {:.1}, BLAKE3 {:.1}, CRC64NVME {:.1}, one loopback \
             connection {:.1}, under TLS {:.1}",
            self.memcpy, self.blake3, self.crc64nvme, self.loopback, self.tls
        )
    }
}

fn best(mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let begun = Instant::now();
        work();
        begun.elapsed()
    };
    let shortest = (0..3).map(once).min().unwrap_or(Duration::MAX);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let bytes = BYTES as f64;
    bytes / 1e9 / shortest.as_secs_f64()
}

fn loopback(bytes: &[u8]) -> std::io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let out = TcpStream::connect(listener.local_addr()?)?;
    let (back, _) = listener.accept()?;
    carry(bytes, out, back)
}

fn tls(bytes: &[u8]) -> anyhow::Result<()> {
    let identity = Identity::new()?;
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(identity.roots()?)
        .with_no_client_auth();
    let client = ClientConnection::new(Arc::new(client), "localhost".try_into()?)?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let out = StreamOwned::new(client, TcpStream::connect(listener.local_addr()?)?);
    let (back, _) = listener.accept()?;
    let back = StreamOwned::new(ServerConnection::new(identity.server())?, back);
    Ok(carry(bytes, out, back)?)
}

/// Sends all of it, while another thread takes it.
fn carry(bytes: &[u8], mut out: impl Write, mut back: impl Read + Send) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; BLOCK];
            while back.read(&mut buffer).is_ok_and(|count| count > 0) {}
        });
        for block in bytes.chunks(BLOCK) {
            out.write_all(block)?;
        }
        drop(out);
        Ok(())
    })
}

//! Ports and Unix sockets behind one face.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::UnixListener;

/// Where a server listens.
#[derive(Clone, Debug)]
pub(super) enum Address {
    /// On a port.
    Port(SocketAddr),
    /// On a socket in the file system.
    Socket(PathBuf),
}

/// What takes connections.
#[derive(Debug)]
pub(super) enum Listener {
    /// On a port.
    Port(TcpListener),
    /// On a socket in the file system.
    Socket(UnixListener),
}

/// A connection of either kind.
pub(super) type Stream = Box<dyn Io>;

/// What a connection can do.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Address {
    /// Takes the socket's file away, so that nobody connects any more.
    pub(super) fn remove(&self) {
        let Self::Socket(path) = self else { return };
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!(%error, path = %path.display(), "socket not removed");
        }
    }
}

impl Listener {
    pub(super) async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Port(address) => Ok(Self::Port(TcpListener::bind(address).await?)),
            Address::Socket(path) => bind_socket(path).map(Self::Socket),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Port(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Socket(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }

    pub(super) fn port(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Port(listener) => listener.local_addr(),
            Self::Socket(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Binds through the folder's descriptor, since a socket's address holds 107 bytes only.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    let nowhere = || io::Error::from(io::ErrorKind::InvalidInput);
    let folder = path.parent().ok_or_else(nowhere)?;
    let name = path.file_name().ok_or_else(nowhere)?;
    fs::create_dir_all(folder)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => (),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    UnixListener::bind(short)
}

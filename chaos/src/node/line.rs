//! Lines out of a node's network, which has no other: what is sent to an address in it arrives at a
//! port of this machine's loopback.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::path::PathBuf;
use std::thread;

use rustix::thread::LinkNameSpaceType;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// From an address in a node's network to one outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it begins.
    pub inside: SocketAddr,
    /// Where it ends.
    pub outside: SocketAddr,
}

/// Carries what is sent over these lines, for as long as `tasks` are there. `network` is the namespace
/// as `/proc` names it.
pub(super) fn lay(network: &Path, lines: &[Line], tasks: &mut JoinSet<()>) -> io::Result<()> {
    for line in lines {
        let listener = TcpListener::from_std(bind(network, line.inside)?)?;
        tasks.spawn(carry(listener, line.outside));
    }
    Ok(())
}

/// A socket stays in the network that it was made in; a thread of its own goes there to make it.
fn bind(network: &Path, address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let network = PathBuf::from(network);
    #[expect(
        clippy::disallowed_methods,
        reason = "no virtual time here, and its network is its own"
    )]
    let made = thread::spawn(move || {
        let namespace = File::open(network)?;
        let kind = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    made.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
}

async fn carry(listener: TcpListener, outside: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => (),
            taken = listener.accept() => match taken {
                Ok((stream, _)) => drop(connections.spawn(connect(stream, outside))),
                Err(_) => tokio::task::yield_now().await,
            },
        }
    }
}

async fn connect(mut inside: TcpStream, outside: SocketAddr) {
    let both = async {
        let mut outside = TcpStream::connect(outside).await?;
        inside.set_nodelay(true)?;
        outside.set_nodelay(true)?;
        tokio::io::copy_bidirectional(&mut inside, &mut outside).await
    };
    if let Err(error) = both.await {
        tracing::debug!(%error, %outside, "line broken");
    }
}

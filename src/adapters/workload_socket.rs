//! The agent's end of a workload's socket: frames with descriptors, bounded, and never blocking.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lifeboat_protocol::fd;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::wire;
use lifeboat_protocol::wire::Inbox;
use lifeboat_protocol::wire::WireError;
use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::net::UnixStream;

use crate::error::Class;
use crate::error::Classify;

/// Bytes taken from a socket at a time.
const BUFFER: usize = 64 << 10;

/// What a workload says: this end receives.
#[derive(Debug)]
pub struct Receiver {
    stream: Arc<UnixStream>,
    inbox: Inbox,
    buffer: Vec<u8>,
}

/// What the agent says: this end sends.
#[derive(Clone, Debug)]
pub struct Sender {
    stream: Arc<UnixStream>,
}

/// A workload that has connected, and both ends of its line.
#[derive(Debug)]
pub struct Connection {
    /// Its process, as the kernel names it on this node; none if it has none here.
    pub pid: Option<u32>,
    /// What it says.
    pub receiver: Receiver,
    /// What it is told.
    pub sender: Sender,
}

/// Why a connection cannot go on. It is an error for that workload alone.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The socket.
    #[error("the workload's socket was not {what}")]
    Socket {
        /// What was done: accepted, read or written.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The workload says what no workload says.
    #[error("the workload's frame was refused")]
    Frame {
        /// What is wrong with it.
        source: WireError,
    },
}

impl Classify for SocketError {
    fn class(&self) -> Class {
        match self {
            Self::Socket { .. } => Class::Transient,
            Self::Frame { .. } => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Socket { .. } => "socket",
            Self::Frame { .. } => "frame",
        }
    }
}

/// Waits for the next workload that connects.
pub async fn accept(listener: &UnixListener) -> Result<Connection, SocketError> {
    let (stream, _) = listener.accept().await.map_err(failed("accepted"))?;
    let peer = stream.peer_cred().map_err(failed("accepted"))?;
    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    let stream = Arc::new(stream);
    let sender = Sender { stream: Arc::clone(&stream) };
    let receiver = Receiver { stream, inbox: Inbox::new(), buffer: vec![0; BUFFER] };
    Ok(Connection { pid, receiver, sender })
}

impl Receiver {
    /// The next frame, with its descriptors; none when the workload has closed its end.
    ///
    /// Dropped while it waits, nothing is lost.
    pub async fn receive(&mut self) -> Result<Option<(FromWorkload, Vec<OwnedFd>)>, SocketError> {
        loop {
            let next = self.inbox.take();
            if let Some(frame) = next.map_err(|source| SocketError::Frame { source })? {
                return Ok(Some(frame));
            }
            self.stream.readable().await.map_err(failed("read"))?;
            let mut descriptors = Vec::new();
            let receive = || fd::receive(self.stream.as_fd(), &mut self.buffer, &mut descriptors);
            match self.stream.try_io(Interest::READABLE, receive) {
                Ok(0) => return Ok(None),
                Ok(count) => self.inbox.push(&self.buffer[..count], descriptors),
                Err(error) if may_be_repeated(&error) => (),
                Err(source) => return Err(failed("read")(source)),
            }
        }
    }
}

impl Sender {
    /// Sends a frame, and a descriptor beside it.
    ///
    /// To be awaited to its end: dropped in between, the line is broken.
    pub async fn send(
        &self,
        frame: &ToWorkload,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), SocketError> {
        let encoded = wire::encode(frame, usize::from(descriptor.is_some()));
        let bytes = encoded.map_err(|source| SocketError::Frame { source })?;
        let mut beside = descriptor.as_slice();
        let mut done = 0;
        while done < bytes.len() {
            self.stream.writable().await.map_err(failed("written"))?;
            let send = || fd::send(self.stream.as_fd(), &bytes[done..], beside);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Ok(count) => {
                    done += count;
                    beside = &[];
                }
                Err(error) if may_be_repeated(&error) => (),
                Err(source) => return Err(failed("written")(source)),
            }
        }
        Ok(())
    }
}

fn may_be_repeated(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> SocketError {
    move |source| SocketError::Socket { what, source }
}

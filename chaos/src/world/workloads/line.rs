//! One connection of a virtual workload: frames and descriptors over a Unix socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;

use lifeboat_protocol::fd;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::wire;
use lifeboat_protocol::wire::Inbox;
use serde::Serialize;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// A connection to the agent.
pub struct Line {
    stream: UnixStream,
    inbox: Inbox,
    waiting: VecDeque<(ToWorkload, Vec<OwnedFd>)>,
}

impl Line {
    /// Connects to the agent's socket.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        // A node's folder may be deeper than a socket's address may be long.
        let folder = std::fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
        let name = socket.file_name().unwrap_or_default();
        let short = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder));
        let stream = UnixStream::connect(Path::new(&short).join(name)).await?;
        Ok(Self { stream, inbox: Inbox::new(), waiting: VecDeque::new() })
    }

    /// Says a frame, with descriptors beside it.
    pub async fn say(
        &mut self,
        frame: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let bytes = wire::encode(frame, descriptors.len()).map_err(io::Error::other)?;
        let (mut sent, mut beside) = (0, descriptors);
        while sent < bytes.len() {
            self.stream.writable().await?;
            let write = || fd::send(self.stream.as_fd(), &bytes[sent..], beside);
            match self.stream.try_io(Interest::WRITABLE, write) {
                Ok(count) => {
                    sent += count;
                    beside = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next frame. Nothing is lost when this is dropped while it waits.
    pub async fn hear(&mut self) -> io::Result<(ToWorkload, Vec<OwnedFd>)> {
        loop {
            if let Some(frame) = self.waiting.pop_front() {
                return Ok(frame);
            }
            self.stream.readable().await?;
            let (mut buffer, mut descriptors) = (vec![0; 64 << 10], Vec::new());
            let receive = || fd::receive(self.stream.as_fd(), &mut buffer, &mut descriptors);
            let count = match self.stream.try_io(Interest::READABLE, receive) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            self.inbox.push(&buffer[..count], descriptors);
            while let Some(frame) = self.inbox.take().map_err(io::Error::other)? {
                self.waiting.push_back(frame);
            }
        }
    }
}

//! Bytes and descriptors over a Unix socket: one `sendmsg` or `recvmsg` at a time.
//!
//! None of these calls waits longer than the socket itself does: on a non-blocking one they end
//! with `WouldBlock`, so they work inside tokio's `try_io`.

use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::ReturnFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;

/// Most descriptors beside one frame.
pub const DESCRIPTORS_MAX: usize = 16;

/// Sends bytes, and descriptors beside the first of them; says how many bytes went.
///
/// If fewer went than were given, the descriptors went, and only the rest of the bytes is to be
/// sent. Never raises `SIGPIPE`.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let bytes = [IoSlice::new(bytes)];
    Ok(rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL)?)
}

/// Sends all bytes over a blocking socket, and descriptors beside the first of them.
pub fn send_all(
    socket: impl AsFd,
    mut bytes: &[u8],
    mut descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(&socket, bytes, descriptors) {
            Ok(sent) => {
                bytes = &bytes[sent..];
                descriptors = &[];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives bytes into `buffer` and descriptors into `descriptors`; 0 bytes are the end.
///
/// Descriptors are closed on exec. If more came than fit, the system dropped some: that is an
/// error, and what came is closed.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [IoSliceMut::new(buffer)];
    let received =
        rustix::net::recvmsg(socket, &mut buffer, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut came = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            came.extend(rights);
        }
    }
    // The space is rounded up, so that one more may fit than was meant.
    if received.flags.contains(ReturnFlags::CTRUNC) || came.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors were cut off"));
    }
    descriptors.append(&mut came);
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_beside_the_first_byte() {
        let (one, other) = UnixStream::pair().unwrap();
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        send_all(&one, b"hello", &[file.as_fd(), file.as_fd()]).unwrap();
        let (mut buffer, mut descriptors) = ([0; 2], Vec::new());
        assert_eq!(receive(&other, &mut buffer, &mut descriptors).unwrap(), 2);
        assert_eq!((&buffer, descriptors.len()), (b"he", 2));
        let flags = rustix::io::fcntl_getfd(&descriptors[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn too_many_descriptors_are_refused_on_both_sides() {
        let (one, other) = UnixStream::pair().unwrap();
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let many = vec![file.as_fd(); DESCRIPTORS_MAX + 1];
        assert_eq!(send(&one, b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);

        let mut space = vec![MaybeUninit::uninit(); 4096];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let bytes = [IoSlice::new(b"x")];
        rustix::net::sendmsg(&one, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
        let refused = receive(&other, &mut [0; 8], &mut Vec::new()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_socket_that_does_not_wait_says_so() {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        let empty = receive(&one, &mut [0; 8], &mut Vec::new()).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        let full = std::iter::repeat_with(|| send(&one, &[0; 4096], &[])).find_map(Result::err);
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(other);
        assert_eq!(send(&one, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

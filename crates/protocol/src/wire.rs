//! Frames as bytes: a header, then JSON. Does no IO.
//!
//! The header is eight bytes: length of the JSON (u32, big-endian), number of descriptors beside
//! the frame (u16, big-endian), two bytes of zero. Descriptors travel beside the first byte of
//! their frame, so when a frame is whole they are there.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fd::DESCRIPTORS_MAX;

/// Largest frame, without its header.
pub const FRAME_MAX: usize = 8 << 20;
const HEADER_BYTES: usize = 8;

/// Why the line cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A frame is larger than any we send.
    #[error("frame has {bytes} bytes. At most {FRAME_MAX} are taken.")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A frame has more descriptors beside it than we send.
    #[error("frame has {count} descriptors. At most {DESCRIPTORS_MAX} are taken.")]
    TooManyDescriptors {
        /// How many.
        count: usize,
    },
    /// Descriptors came without a frame, or a frame without its descriptors.
    #[error("frame and descriptors do not match")]
    Descriptors,
    /// A frame is not what it says it is.
    #[error("frame cannot be read")]
    Unreadable(#[source] serde_json::Error),
}

/// A frame as bytes to send, with so many descriptors beside them.
pub fn encode(frame: &impl Serialize, descriptors: usize) -> Result<Vec<u8>, WireError> {
    let mut bytes = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut bytes, frame).map_err(WireError::Unreadable)?;
    let length = bytes.len() - HEADER_BYTES;
    let header = Header { length, descriptors };
    header.check()?;
    bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    Ok(bytes)
}

/// What was received and is not yet a frame.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// How much of `bytes` was read.
    read: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Inbox {
    /// An empty one, for a new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what came from the socket.
    pub fn push(&mut self, bytes: &[u8], descriptors: impl IntoIterator<Item = OwnedFd>) {
        self.bytes.drain(..self.read);
        self.read = 0;
        self.bytes.extend_from_slice(bytes);
        self.descriptors.extend(descriptors);
    }

    /// The next whole frame, with its descriptors.
    ///
    /// To be called until there is none, after each push: that bounds what is held.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        let unread = &self.bytes[self.read..];
        let Some((header, rest)) = unread.split_first_chunk::<HEADER_BYTES>() else {
            return self.wait();
        };
        let header = Header::from_bytes(*header);
        header.check()?;
        let Some(text) = rest.get(..header.length) else { return self.wait() };
        let frame = serde_json::from_slice(text).map_err(WireError::Unreadable)?;
        if header.descriptors > self.descriptors.len() {
            return Err(WireError::Descriptors);
        }
        self.read += HEADER_BYTES + header.length;
        Ok(Some((frame, self.descriptors.drain(..header.descriptors).collect())))
    }

    fn wait<T>(&self) -> Result<Option<T>, WireError> {
        if self.descriptors.len() > DESCRIPTORS_MAX {
            return Err(WireError::Descriptors);
        }
        Ok(None)
    }
}

struct Header {
    length: usize,
    descriptors: usize,
}

impl Header {
    fn check(&self) -> Result<(), WireError> {
        if self.length > FRAME_MAX {
            return Err(WireError::TooLarge { bytes: self.length });
        }
        if self.descriptors > DESCRIPTORS_MAX {
            return Err(WireError::TooManyDescriptors { count: self.descriptors });
        }
        Ok(())
    }

    /// Of a header that was checked.
    fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let length = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        let descriptors = u16::try_from(self.descriptors).unwrap_or(u16::MAX).to_be_bytes();
        let [a, b, c, d] = length;
        let [e, f] = descriptors;
        [a, b, c, d, e, f, 0, 0]
    }

    fn from_bytes([a, b, c, d, e, f, _, _]: [u8; HEADER_BYTES]) -> Self {
        let length = u32::from_be_bytes([a, b, c, d]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Self { length, descriptors: usize::from(u16::from_be_bytes([e, f])) }
    }
}

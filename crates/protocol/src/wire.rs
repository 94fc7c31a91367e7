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
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&length);
        header[4..6].copy_from_slice(&descriptors);
        header
    }

    fn from_bytes([len0, len1, len2, len3, fds0, fds1, _, _]: [u8; HEADER_BYTES]) -> Self {
        let length = u32::from_be_bytes([len0, len1, len2, len3]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Self { length, descriptors: usize::from(u16::from_be_bytes([fds0, fds1])) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::MemfdFlags;
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::frame::FromWorkload;
    use crate::frame::Lend;
    use crate::frame::Prepare;
    use crate::frame::ToWorkload;
    use crate::ring::Shape;

    fn bytes_of(frames: &[Value]) -> Vec<u8> {
        frames.iter().flat_map(|frame| encode(frame, 0).unwrap()).collect()
    }

    fn descriptor() -> OwnedFd {
        rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn a_frame_is_these_bytes() {
        let frame = FromWorkload::SaveEnd(crate::frame::SaveEnd { save: 1, bytes: 21 });
        let bytes = encode(&frame, 2).unwrap();
        assert_eq!(bytes[..8], [0, 0, 0, 40, 0, 2, 0, 0]);
        assert_eq!(&bytes[8..], br#"{"frame":"save-end","save":1,"bytes":21}"#);
        let lend = ToWorkload::Lend(Lend { ring: 1, shape: Shape::new(8, 4096).unwrap() });
        let text = r#"{"frame":"lend","ring":1,"slots":8,"slot_bytes":4096}"#;
        assert_eq!(&encode(&lend, 1).unwrap()[8..], text.as_bytes());
        assert_eq!(serde_json::from_str::<ToWorkload>(text).unwrap(), lend);
    }

    #[test]
    fn what_another_minor_version_says_is_understood_as_far_as_it_is_known() {
        let mut inbox = Inbox::new();
        inbox.push(
            &bytes_of(&[
                json!({"frame": "shrug", "depth": [1, {"a": null}]}),
                json!({"frame": "prepare", "save": 7, "cause": "comet", "color": "red"}),
                json!({"frame": "prepare"}),
            ]),
            [],
        );
        let mut next = || inbox.take::<ToWorkload>().unwrap().unwrap().0;
        assert_eq!(next(), ToWorkload::Unknown);
        assert_eq!(next(), ToWorkload::Prepare(Prepare { save: 7, ..Prepare::default() }));
        assert_eq!(next(), ToWorkload::Prepare(Prepare::default()));
    }

    #[test]
    fn a_known_frame_that_is_not_what_it_says_is_refused() {
        for frame in [json!({"frame": "prepare", "save": "x"}), json!({}), json!([1])] {
            let mut inbox = Inbox::new();
            inbox.push(&bytes_of(&[frame]), []);
            assert!(matches!(inbox.take::<ToWorkload>(), Err(WireError::Unreadable(_))));
        }
        let mut inbox = Inbox::new();
        let lend = json!({"frame": "lend", "ring": 1, "slots": 4_000_000, "slot_bytes": 4096});
        inbox.push(&bytes_of(&[lend]), []);
        assert!(matches!(inbox.take::<ToWorkload>(), Err(WireError::Unreadable(_))));
    }

    #[test]
    fn a_header_out_of_bounds_is_refused_before_its_frame_comes() {
        let mut inbox = Inbox::new();
        inbox.push(&[1, 0, 0, 0, 0, 0, 0, 0], []);
        assert!(matches!(inbox.take::<ToWorkload>(), Err(WireError::TooLarge { .. })));
        let mut inbox = Inbox::new();
        inbox.push(&[0, 0, 0, 2, 0, 17, 0, 0], []);
        assert!(matches!(inbox.take::<ToWorkload>(), Err(WireError::TooManyDescriptors { .. })));
        let large = FromWorkload::Decline(crate::frame::Decline {
            restore: 1,
            reason: "x".repeat(FRAME_MAX),
        });
        assert!(matches!(encode(&large, 0), Err(WireError::TooLarge { .. })));
    }

    #[test]
    fn descriptors_go_to_the_frame_that_names_them() {
        let frame = json!({"frame": "unknown"});
        let mut bytes = encode(&frame, 0).unwrap();
        bytes.extend(encode(&frame, 2).unwrap());
        let mut inbox = Inbox::new();
        inbox.push(&bytes, [descriptor(), descriptor()]);
        let mut next = || inbox.take::<FromWorkload>().unwrap().map(|(_, with)| with.len());
        assert_eq!((next(), next(), next()), (Some(0), Some(2), None));
    }

    #[test]
    fn descriptors_that_no_frame_names_are_not_kept() {
        let mut inbox = Inbox::new();
        inbox.push(&[], (0..=DESCRIPTORS_MAX).map(|_| descriptor()));
        assert!(matches!(inbox.take::<FromWorkload>(), Err(WireError::Descriptors)));
        let mut inbox = Inbox::new();
        inbox.push(&encode(&json!({"frame": "given"}), 1).unwrap(), []);
        assert!(matches!(inbox.take::<FromWorkload>(), Err(WireError::Descriptors)));
    }

    #[test]
    fn frames_and_descriptors_pass_a_socket() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = descriptor();
        let frame = FromWorkload::Given(crate::frame::Given { save: 3, pieces: vec![] });
        for _ in 0..3 {
            crate::fd::send_all(&one, &encode(&frame, 1).unwrap(), &[file.as_fd()]).unwrap();
        }
        drop(one);
        let (mut inbox, mut buffer, mut found) = (Inbox::new(), [0; 7], 0);
        loop {
            let mut descriptors = Vec::new();
            let length = crate::fd::receive(&other, &mut buffer, &mut descriptors).unwrap();
            if length == 0 {
                break;
            }
            inbox.push(&buffer[..length], descriptors);
            while let Some((read, with)) = inbox.take::<FromWorkload>().unwrap() {
                assert_eq!((read, with.len()), (frame.clone(), 1));
                found += 1;
            }
        }
        assert_eq!(found, 3);
    }

    proptest::proptest! {
        #[test]
        fn frames_may_be_torn_anywhere(
            texts in proptest::collection::vec(".{0,40}", 1..6),
            sizes in proptest::collection::vec(1_usize..30, 1..10),
        ) {
            let frames: Vec<Value> =
                texts.iter().map(|reason| json!({"frame": "save-refused", "reason": reason})).collect();
            let bytes = bytes_of(&frames);
            let (mut inbox, mut found, mut rest) = (Inbox::new(), Vec::new(), bytes.as_slice());
            for size in sizes.iter().cycle() {
                let (now, later) = rest.split_at((*size).min(rest.len()));
                inbox.push(now, []);
                while let Some((frame, _)) = inbox.take::<FromWorkload>().unwrap() {
                    let FromWorkload::SaveRefused(refused) = frame else { panic!() };
                    found.push(refused.reason);
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            proptest::prop_assert_eq!(found, texts);
        }

        #[test]
        fn any_bytes_are_an_error_or_a_wait_and_never_a_panic(bytes: Vec<u8>) {
            let mut inbox = Inbox::new();
            inbox.push(&bytes, []);
            while let Ok(Some(_)) = inbox.take::<FromWorkload>() {}
        }
    }
}

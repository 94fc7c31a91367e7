//! Kubelet's calls to a plugin's registration socket, made fit to be read.
//!
//! Kubelet gives gRPC's Go library the socket's path as its target, which the library then sends,
//! percent-encoded, as `:authority`. No URI has such an authority, and the library that reads HTTP/2 for
//! us refuses the call with `PROTOCOL_ERROR` before we see it. So what stands there is written over on
//! its way in, byte for byte; nobody looks at it.
//!
//! Only for connections of a few calls: the header table of the other side remembers another length.

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::UnixStream;

/// What a client of HTTP/2 says first.
///
/// Source: RFC 9113, section 3.4.
const PREFACE: usize = 24;
/// Length, type, flags and stream of a frame.
///
/// Source: RFC 9113, section 4.1.
const FRAME_HEADER: usize = 9;
/// The longest frame that a client may send unless it is told otherwise.
const FRAME_MAX: usize = 16_384;
/// The type of a frame with headers, and its flags.
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in the table that all sides know.
///
/// Source: RFC 7541, appendix A.
const AUTHORITY: usize = 1;

/// A connection of kubelet's, read as it should have been sent.
#[derive(Debug)]
pub struct Readable {
    stream: UnixStream,
    /// What was read of the frame that is not whole yet.
    half: Vec<u8>,
    /// What may be read.
    whole: Vec<u8>,
    begun: bool,
}

impl Readable {
    /// A connection of which nothing was read yet.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, half: Vec::new(), whole: Vec::new(), begun: false }
    }

    /// Moves all whole frames to what may be read.
    fn advance(&mut self) -> io::Result<()> {
        if !self.begun && self.half.len() >= PREFACE {
            self.whole.extend(self.half.drain(..PREFACE));
            self.begun = true;
        }
        while self.begun && self.half.len() >= FRAME_HEADER {
            let [first, second, third, kind, flags, ..] = self.half[..] else { break };
            let length =
                usize::from(first) * 65_536 + usize::from(second) * 256 + usize::from(third);
            if length > FRAME_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
            }
            let end = FRAME_HEADER + length;
            if self.half.len() < end {
                break;
            }
            if kind == HEADERS {
                overwrite(fragment(&mut self.half[FRAME_HEADER..end], flags));
            }
            self.whole.extend(self.half.drain(..end));
        }
        Ok(())
    }
}

impl AsyncRead for Readable {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        while own.whole.is_empty() {
            let mut buffer = [0; 4096];
            let mut read = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut own.stream).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            own.half.extend_from_slice(read.filled());
            own.advance()?;
        }
        let most = own.whole.len().min(into.remaining());
        into.put_slice(&own.whole[..most]);
        own.whole.drain(..most);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Readable {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// The headers in a frame's payload, without padding and priority.
fn fragment(payload: &mut [u8], flags: u8) -> &mut [u8] {
    let padding = match payload.first() {
        Some(length) if flags & PADDED != 0 => 1 + usize::from(*length),
        Some(_) | None => 0,
    };
    let begin = usize::from(padding > 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let end = payload.len().saturating_sub(padding.saturating_sub(1));
    payload.get_mut(begin..end.max(begin)).unwrap_or_default()
}

/// Writes over the value of `:authority`, where headers spell it out.
fn overwrite(headers: &mut [u8]) {
    let mut at = 0;
    while let Some(first) = headers.get(at).copied() {
        // An entry of the table, a new one, the table's size, or one that is not to be kept.
        let (bits, spelled) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let Some((name, after)) = integer(headers, at, bits) else { return };
        at = after;
        if !spelled {
            continue;
        }
        if name == 0 {
            let Some((length, text)) = integer(headers, at, 7) else { return };
            at = text + length;
        }
        let coded = headers.get(at).is_some_and(|first| first & 0x80 != 0);
        let Some((length, text)) = integer(headers, at, 7) else { return };
        at = text + length;
        let Some(value) = headers.get_mut(text..at) else { return };
        if name == AUTHORITY {
            if coded {
                zeros(value);
            } else {
                value.fill(b'0');
            }
        }
    }
}

/// `0` is five zero bits in the code of RFC 7541, appendix B; what is left of a byte is filled with ones.
fn zeros(value: &mut [u8]) {
    let left = value.len() * 8 % 5;
    value.fill(0);
    if let Some(last) = value.last_mut() {
        *last = (1 << left) - 1;
    }
}

/// An integer that begins in the last `bits` of a byte, and where the next thing begins.
///
/// Source: RFC 7541, section 5.1.
fn integer(headers: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    /// More than any of these headers needs.
    const BYTES: usize = 3;
    let most = (1 << bits) - 1;
    let mut value = usize::from(*headers.get(at)?) & most;
    if value < most {
        return Some((value, at + 1));
    }
    for place in 0..BYTES {
        let byte = usize::from(*headers.get(at + 1 + place)?);
        value += (byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, at + 2 + place));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_written_over_and_nothing_else() {
        // `:method: POST`, `:authority: %2f` as it is, `x: %2f`.
        let mut headers = *b"\x83\x41\x03%2f\x40\x01x\x03%2f";
        overwrite(&mut headers);
        assert_eq!(&headers, b"\x83\x41\x03000\x40\x01x\x03%2f");
    }

    #[test]
    fn a_coded_authority_stays_a_coded_one() {
        let mut headers = *b"\x41\x83abc\x83";
        overwrite(&mut headers);
        // Four zeros, and four ones to fill the last byte.
        assert_eq!(&headers, b"\x41\x83\x00\x00\x0f\x83");
    }

    #[test]
    fn what_is_cut_short_is_left_alone() {
        for text in [&b"\x41"[..], b"\x41\x05ab", b"\x41\xff\xff\xff\xff", b"\x40\x7f"] {
            let mut headers = text.to_vec();
            overwrite(&mut headers);
            assert_eq!(headers, text);
        }
    }

    #[test]
    fn padding_and_priority_are_no_headers() {
        assert_eq!(fragment(&mut [1, 2, 3], 0), [1, 2, 3]);
        assert_eq!(fragment(&mut [2, 9, 8, 0, 0], PADDED), [9, 8]);
        assert_eq!(fragment(&mut [0, 0, 0, 0, 1, 9], PRIORITY), [9]);
        assert_eq!(fragment(&mut [1, 0, 0, 0, 0, 1, 9, 0], PADDED | PRIORITY), [9]);
        assert!(fragment(&mut [200, 9], PADDED).is_empty());
    }
}

//! The agent's own buffers: reused, and bounded in number of bytes.
//!
//! Fresh pages cost ten times what warm ones do, so a buffer that was sent is taken again.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use bytes::Bytes;
use bytes::BytesMut;

/// Buffers that were used and can be used again.
#[derive(Clone, Debug)]
pub struct Buffers {
    free: Arc<Mutex<Vec<BytesMut>>>,
    keep: usize,
}

impl Buffers {
    /// Keeps at most `keep` buffers warm.
    pub fn new(keep: usize) -> Self {
        Self { free: Arc::new(Mutex::new(Vec::with_capacity(keep))), keep }
    }

    /// A buffer of `bytes` bytes, of any content.
    pub fn take(&self, bytes: usize) -> BytesMut {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let warm = free.iter().position(|buffer| buffer.capacity() >= bytes);
        let mut buffer =
            warm.map_or_else(|| BytesMut::with_capacity(bytes), |at| free.swap_remove(at));
        drop(free);
        buffer.resize(bytes, 0);
        buffer
    }

    /// Takes a buffer back once nobody else reads it; otherwise it is simply dropped.
    pub fn give(&self, bytes: Bytes) {
        let Ok(buffer) = bytes.try_into_mut() else { return };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.keep {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_was_sent_is_taken_again() {
        let buffers = Buffers::new(1);
        let sent = buffers.take(4096).freeze();
        let address = sent.as_ptr();
        buffers.give(sent);
        assert_eq!(buffers.take(1024).as_ptr(), address);
    }

    #[test]
    fn a_buffer_that_somebody_still_reads_is_not_reused() {
        let buffers = Buffers::new(1);
        let sent = buffers.take(16).freeze();
        let reader = sent.clone();
        buffers.give(sent);
        assert_ne!(buffers.take(16).as_ptr(), reader.as_ptr());
    }
}

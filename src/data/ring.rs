//! A ring that was lent: memory of the agent's own, for one hand-over with one workload.
//!
//! The agent never maps it: it reads with `pread` into buffers of its own and writes with `pwrite`.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lifeboat_protocol::ring::HEADER_BYTES;
use lifeboat_protocol::ring::RingError;
use lifeboat_protocol::ring::Shape;
use rustix::fs::FallocateFlags;

/// Bytes that are read and looked at before the next ones come.
const PIECE: usize = 256 << 10;

/// Memory lent to a workload.
///
/// When the last clone is dropped its pages are given back, even if the workload keeps the
/// descriptor: what it touches from then on is charged to itself.
#[derive(Clone, Debug)]
pub struct Ring {
    memory: Arc<Memory>,
    shape: Shape,
}

#[derive(Debug)]
struct Memory {
    descriptor: OwnedFd,
    bytes: u64,
}

impl Ring {
    /// Makes and allocates a ring. Blocks while the kernel clears the pages.
    pub fn allocate(shape: Shape) -> Result<Self, RingError> {
        let descriptor = lifeboat_protocol::ring::create("lifeboat-ring", shape)?;
        Ok(Self { memory: Arc::new(Memory { descriptor, bytes: shape.bytes() }), shape })
    }

    /// Number and size of its slots.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Reads the first bytes of a slot, and has each piece looked at as soon as it is there.
    ///
    /// A piece is small enough to be still in the processor's cache then.
    pub fn read(
        &self,
        slot: u32,
        buffer: &mut [u8],
        mut look: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut offset = self.offset(slot, buffer.len())?;
        for piece in buffer.chunks_mut(PIECE) {
            read_exact_at(self, piece, offset)?;
            look(piece);
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes the first bytes of a slot.
    pub fn write(&self, slot: u32, bytes: &[u8]) -> io::Result<()> {
        write_all_at(self, bytes, self.offset(slot, bytes.len())?)
    }

    fn offset(&self, slot: u32, bytes: usize) -> io::Result<u64> {
        let fits = bytes as u64 <= self.shape.slot_bytes();
        self.shape.offset(slot).filter(|_| fits).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.descriptor.as_fd()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = rustix::fs::fallocate(&self.descriptor, flags, 0, self.bytes) {
            tracing::warn!(%error, "ring not given back before its descriptor closed");
        }
    }
}

/// Reads exactly `buffer` from `offset` on; less is an error, since a workload may have shrunk it.
pub fn read_exact_at(source: impl AsFd, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(&source, &mut buffer[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(rustix::io::Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn write_all_at(target: impl AsFd, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(&target, &bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(rustix::io::Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The shape of a ring for a state of `state_bytes`: slots no larger than the state needs.
///
/// At most `slots` slots of at most `slot_bytes`, and never less than one page.
pub fn shape_for(state_bytes: u64, slots: u32, slot_bytes: u64) -> Result<Shape, RingError> {
    let page = lifeboat_protocol::ring::SLOT_ALIGNMENT;
    let slot = state_bytes.min(slot_bytes).max(1).next_multiple_of(page);
    let needed = u32::try_from(state_bytes.div_ceil(slot)).unwrap_or(u32::MAX);
    Shape::new(needed.clamp(1, slots.max(1)), slot)
}

/// Bytes that a ring of this shape takes of the budget: its slots, without the header.
pub fn budget_bytes(shape: Shape) -> u64 {
    shape.bytes() - HEADER_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring {
        Ring::allocate(Shape::new(2, 4096).unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_no_slot_lies_outside() {
        let ring = ring();
        ring.write(1, b"state").unwrap();
        let mut buffer = [0; 5];
        ring.read(1, &mut buffer, |_| ()).unwrap();
        assert_eq!(&buffer, b"state");
        assert!(ring.read(2, &mut buffer, |_| ()).is_err());
        assert!(ring.read(0, &mut [0; 4097], |_| ()).is_err());
    }

    #[test]
    fn what_is_looked_at_piece_by_piece_is_what_is_read() {
        let ring = Ring::allocate(Shape::new(2, 1 << 20).unwrap()).unwrap();
        let state: Vec<u8> = (0..700_001_u32).map(|place| place.to_le_bytes()[0]).collect();
        ring.write(1, &state).unwrap();
        let (mut buffer, mut seen) = (vec![0; state.len()], Vec::new());
        ring.read(1, &mut buffer, |piece| seen.extend_from_slice(piece)).unwrap();
        assert!(buffer == state && seen == state);
    }

    #[test]
    fn a_dropped_ring_holds_no_memory_though_the_workload_keeps_it() {
        let ring = ring();
        let kept = ring.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(rustix::fs::fstat(&kept).unwrap().st_blocks, 24);
        drop(ring);
        assert_eq!(rustix::fs::fstat(&kept).unwrap().st_blocks, 0);
    }

    #[test]
    fn a_small_state_gets_a_small_ring() {
        let check = |state, slots, slot| {
            let shape = shape_for(state, slots, slot).unwrap();
            (shape.slots(), shape.slot_bytes())
        };
        assert_eq!(check(0, 4, 1 << 20), (1, 4096));
        assert_eq!(check(5000, 4, 1 << 20), (1, 8192));
        assert_eq!(check(3 << 20, 4, 1 << 20), (3, 1 << 20));
        assert_eq!(check(9 << 20, 4, 1 << 20), (4, 1 << 20));
    }
}

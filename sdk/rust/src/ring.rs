//! The ring that the agent lent, mapped: the one place of the SDK that touches raw memory.
#![expect(unsafe_code, reason = "memory that another process lends has to be mapped")]

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::PoisonError;

use lifeboat_protocol::ring;
use lifeboat_protocol::ring::RingError;
use lifeboat_protocol::ring::Shape;
use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

/// A mapped ring. Unmapped when dropped.
pub(crate) struct Ring {
    id: u64,
    shape: Shape,
    /// Held while a slot is looked at, so that no two borrow the same bytes.
    base: Mutex<Mapping>,
}

/// Why a ring cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("ring was not mapped")]
    Map(#[source] io::Error),
}

struct Mapping {
    base: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process and not to a thread, and nothing else has its address.
unsafe impl Send for Mapping {}

impl Ring {
    /// Maps a ring, and touches its pages now rather than when there is no time.
    pub(crate) fn map(id: u64, shape: Shape, memory: impl AsFd) -> Result<Self, MapError> {
        ring::check(&memory, shape)?;
        let bytes = usize::try_from(shape.bytes()).map_err(|_| ring_too_large(shape))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the address is chosen by the system, so no other mapping is replaced.
        let base = unsafe {
            rustix::mm::mmap(ptr::null_mut(), bytes, protection, MapFlags::SHARED, memory, 0)
        };
        let base = base.map_err(|error| MapError::Map(error.into()))?;
        let base = NonNull::new(base).ok_or_else(|| MapError::Map(io::ErrorKind::Other.into()))?;
        // SAFETY: the range is the one just mapped; populating it changes no byte. Old kernels
        // refuse, and then the pages are touched when they are used.
        let _touched =
            unsafe { rustix::mm::madvise(base.as_ptr(), bytes, Advice::LinuxPopulateWrite) };
        Ok(Self { id, shape, base: Mutex::new(Mapping { base, bytes }) })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// Calls `look` with the first `bytes` of a slot, unless there are none such.
    ///
    /// To be called only for a slot that is the program's by the protocol. (If the agent writes
    /// to it all the same, the bytes are any bytes: it does so through the kernel.)
    pub(crate) fn slot<T>(
        &self,
        slot: u32,
        bytes: u64,
        look: impl FnOnce(&mut [u8]) -> T,
    ) -> Option<T> {
        let offset = self.shape.offset(slot)?;
        if bytes > self.shape.slot_bytes() {
            return None;
        }
        let (offset, bytes) = (usize::try_from(offset).ok()?, usize::try_from(bytes).ok()?);
        let mapping = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: offset + bytes ≤ the size of the ring by the two checks above, and that is what
        // is mapped, of a memfd whose size is sealed. The lock makes the slice the only one in
        // this process; the agent does not map the ring, and touches the slot only once it was
        // told to.
        let slice = unsafe {
            std::slice::from_raw_parts_mut(mapping.base.as_ptr().cast::<u8>().add(offset), bytes)
        };
        Some(look(slice))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this size, and no slice of it is alive.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can be unmapped");
    }
}

fn ring_too_large(shape: Shape) -> RingError {
    RingError::Shape { slots: shape.slots(), slot_bytes: shape.slot_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_into_a_slot_is_read_through_the_descriptor() {
        let shape = Shape::new(2, 4096).unwrap();
        let memory = ring::create("test", shape).unwrap();
        let ring = Ring::map(1, shape, &memory).unwrap();
        ring.slot(1, 5, |bytes| bytes.copy_from_slice(b"state")).unwrap();
        let mut read = [0; 5];
        rustix::io::pread(&memory, &mut read, shape.offset(1).unwrap()).unwrap();
        assert_eq!(&read, b"state");
        rustix::io::pwrite(&memory, b"STATE", shape.offset(0).unwrap()).unwrap();
        assert_eq!(ring.slot(0, 5, |bytes| bytes.to_vec()).unwrap(), b"STATE");
    }

    #[test]
    fn nothing_beyond_a_slot_can_be_reached() {
        let shape = Shape::new(2, 4096).unwrap();
        let memory = ring::create("test", shape).unwrap();
        let ring = Ring::map(1, shape, &memory).unwrap();
        assert!(ring.slot(2, 1, |_| ()).is_none());
        assert!(ring.slot(1, 4097, |_| ()).is_none());
        assert!(ring.slot(1, 4096, |bytes| bytes.fill(1)).is_some());
    }

    #[test]
    fn what_is_no_ring_is_not_mapped() {
        let shape = Shape::new(2, 4096).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(shape.bytes()).unwrap();
        assert!(matches!(Ring::map(1, shape, &file), Err(MapError::Ring(_))));
    }
}

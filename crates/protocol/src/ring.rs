//! The ring: memory of the agent's own that it lends to a workload, slot by slot.
//!
//! It is a sealed memfd: one page of header, then slots of equal size. The agent makes it, so that
//! it is charged to the agent and never to the pod, and reads and writes it with `pread` and
//! `pwrite` only. The workload maps it. Who may touch a slot is said by frames alone: a slot
//! belongs to whoever was told of it last.

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use rustix::fs::FallocateFlags;
use rustix::fs::MemfdFlags;
use rustix::fs::SealFlags;
use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

/// Where the first slot begins. The header is reserved, and zero.
pub const HEADER_BYTES: u64 = 4096;
/// A slot is a multiple of this.
pub const SLOT_ALIGNMENT: u64 = 4096;
/// Most slots of a ring.
pub const SLOTS_MAX: u32 = 1024;
/// Largest slot.
pub const SLOT_BYTES_MAX: u64 = 64 << 20;

/// Size and number of a ring's slots. Only [`Shape::new`] makes one, so it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ShapeText", into = "ShapeText")]
pub struct Shape {
    slots: u32,
    slot_bytes: u64,
}

/// Why a ring cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// No ring has this shape.
    #[error(
        "ring of {slots} slots of {slot_bytes} bytes is none. It has 1 to {SLOTS_MAX} slots of \
         1 to {SLOT_BYTES_MAX} bytes, in multiples of {SLOT_ALIGNMENT}."
    )]
    Shape {
        /// How many slots.
        slots: u32,
        /// How large.
        slot_bytes: u64,
    },
    /// The descriptor is not a memfd of that size whose size is sealed.
    #[error("descriptor is not a sealed ring of {expected} bytes, but has {found}")]
    NotARing {
        /// The size of such a ring.
        expected: u64,
        /// The size found.
        found: u64,
    },
    /// The system refused.
    #[error("ring was not {what}")]
    System {
        /// What was being done: `made`, `sized`, `allocated`, `sealed`, `looked at`.
        what: &'static str,
        /// Why.
        source: Errno,
    },
}

impl Shape {
    /// A shape within the bounds.
    pub fn new(slots: u32, slot_bytes: u64) -> Result<Self, RingError> {
        let fits = (1..=SLOTS_MAX).contains(&slots)
            && (1..=SLOT_BYTES_MAX).contains(&slot_bytes)
            && slot_bytes.is_multiple_of(SLOT_ALIGNMENT);
        if !fits {
            return Err(RingError::Shape { slots, slot_bytes });
        }
        Ok(Self { slots, slot_bytes })
    }

    /// How many slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Size of a slot.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Size of the ring with its header.
    pub fn bytes(&self) -> u64 {
        HEADER_BYTES + u64::from(self.slots) * self.slot_bytes
    }

    /// Where a slot begins, if there is one of that number.
    pub fn offset(&self, slot: u32) -> Option<u64> {
        (slot < self.slots).then(|| HEADER_BYTES + u64::from(slot) * self.slot_bytes)
    }
}

/// Makes a ring: allocated, and sealed so that nobody can change its size.
///
/// Costs the touching of all its pages.
pub fn create(name: &str, shape: Shape) -> Result<OwnedFd, RingError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let ring = rustix::fs::memfd_create(name, flags).map_err(failed("made"))?;
    rustix::fs::ftruncate(&ring, shape.bytes()).map_err(failed("sized"))?;
    rustix::fs::fallocate(&ring, FallocateFlags::empty(), 0, shape.bytes())
        .map_err(failed("allocated"))?;
    rustix::fs::fcntl_add_seals(&ring, sealed()).map_err(failed("sealed"))?;
    Ok(ring)
}

/// Checks that a descriptor is a ring of that shape, so that mapping it can never fault.
pub fn check(ring: impl AsFd, shape: Shape) -> Result<(), RingError> {
    let found = rustix::fs::fstat(&ring).map_err(failed("looked at"))?.st_size;
    let found = u64::try_from(found).unwrap_or(0);
    let seals = rustix::fs::fcntl_get_seals(&ring).unwrap_or(SealFlags::empty());
    if found == shape.bytes() && seals.contains(sealed()) {
        return Ok(());
    }
    Err(RingError::NotARing { expected: shape.bytes(), found })
}

fn sealed() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW
}

fn failed(what: &'static str) -> impl Fn(Errno) -> RingError {
    move |source| RingError::System { what, source }
}

#[derive(Serialize, Deserialize)]
struct ShapeText {
    slots: u32,
    slot_bytes: u64,
}

impl TryFrom<ShapeText> for Shape {
    type Error = RingError;

    fn try_from(text: ShapeText) -> Result<Self, RingError> {
        Self::new(text.slots, text.slot_bytes)
    }
}

impl From<Shape> for ShapeText {
    fn from(shape: Shape) -> Self {
        Self { slots: shape.slots, slot_bytes: shape.slot_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_lie_one_after_the_other() {
        let shape = Shape::new(3, 8192).unwrap();
        assert_eq!(shape.bytes(), 4096 + 3 * 8192);
        assert_eq!(shape.offset(0), Some(4096));
        assert_eq!(shape.offset(2), Some(4096 + 2 * 8192));
        assert_eq!(shape.offset(3), None);
    }

    #[test]
    fn a_shape_out_of_bounds_is_refused() {
        for (slots, slot_bytes) in [(0, 4096), (1025, 4096), (1, 0), (1, 4097), (1, 128 << 20)] {
            assert!(Shape::new(slots, slot_bytes).is_err());
            let text = format!(r#"{{"slots":{slots},"slot_bytes":{slot_bytes}}}"#);
            assert!(serde_json::from_str::<Shape>(&text).is_err());
        }
    }

    #[test]
    fn nobody_can_change_the_size_of_a_ring() {
        let shape = Shape::new(2, 4096).unwrap();
        let ring = create("test", shape).unwrap();
        assert_eq!(check(&ring, shape), Ok(()));
        assert_eq!(rustix::fs::ftruncate(&ring, 0), Err(Errno::PERM));
        let other = Shape::new(3, 4096).unwrap();
        assert!(matches!(check(&ring, other), Err(RingError::NotARing { .. })));
        let unsealed = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&unsealed, shape.bytes()).unwrap();
        assert!(matches!(check(&unsealed, shape), Err(RingError::NotARing { .. })));
    }
}

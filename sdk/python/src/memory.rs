//! Memory that a Python object holds: copied without the interpreter, or by the object itself.
#![expect(unsafe_code, reason = "bytes of a Python buffer are reached by pointer, files by number")]

use std::ffi::c_char;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use lifeboat_sdk::Busy;
use lifeboat_sdk::Dtype;
use lifeboat_sdk::Memory;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::errors::Fault;

/// What a region is made of.
pub(crate) struct Kind {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
}

/// What will be done with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

/// The memory of an object: a buffer of bytes, or something that copies its own.
pub(crate) fn of(
    object: &Bound<'_, PyAny>,
    kind: Kind,
    usage: Use,
    fault: &Fault,
) -> PyResult<Arc<dyn Memory>> {
    if object.hasattr("read_into")? {
        let fault = fault.clone();
        return Ok(Arc::new(Device { kind, object: object.clone().unbind(), fault }));
    }
    let buffer = PyBuffer::<u8>::get(object)?;
    if !buffer.is_c_contiguous() || (usage == Use::Write && buffer.readonly()) {
        return Err(PyBufferError::new_err("bytes are scattered, or cannot be written to"));
    }
    let (length, base) = (buffer.len_bytes(), NonNull::new(buffer.buf_ptr().cast::<u8>()));
    Ok(Arc::new(Host { kind, base, length, usage, _export: buffer }))
}

/// A file to put bytes into.
pub(crate) fn of_file(file: File, kind: Kind, fault: &Fault) -> Arc<dyn Memory> {
    Arc::new(OnDisk { kind, file, fault: fault.clone() })
}

/// The file of a descriptor that Python holds, as one of our own.
pub(crate) fn duplicate(number: RawFd) -> io::Result<File> {
    // SAFETY: Python's object holds it open for as long as this call, in which it is not used by
    // anybody else's leave.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned().map(File::from)
}

/// Bytes in this process's memory.
struct Host {
    kind: Kind,
    base: Option<NonNull<u8>>,
    length: usize,
    usage: Use,
    /// While it is held the object neither moves nor frees its bytes.
    _export: PyBuffer<u8>,
}

// SAFETY: the pointer is the buffer's, which may be sent and shared; access is by copies only.
unsafe impl Send for Host {}
// SAFETY: as above. Two threads that copy from the same bytes do no harm, and the boat writes only
// on the one thread that restores.
unsafe impl Sync for Host {}

impl Host {
    /// The first of `length` bytes at `offset`, if there are so many.
    fn at(&self, offset: u64, length: usize) -> Result<*mut u8, Busy> {
        let offset = usize::try_from(offset).map_err(|_| Busy)?;
        let fits = offset.checked_add(length).is_some_and(|end| end <= self.length);
        let base = self.base.filter(|_| fits).ok_or(Busy)?;
        // SAFETY: within the buffer, by the check before.
        Ok(unsafe { base.as_ptr().add(offset) })
    }
}

impl Memory for Host {
    fn dtype(&self) -> Dtype {
        self.kind.dtype.clone()
    }

    fn shape(&self) -> Vec<u64> {
        self.kind.shape.clone()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Busy> {
        if into.is_empty() {
            return Ok(());
        }
        let from = self.at(offset, into.len())?;
        // SAFETY: `at` checked that so many bytes are there; `into` is a slot of the ring or a
        // buffer of the SDK, which no Python object holds. The program's thread is in here, so
        // nobody writes to its state; if another thread does, the bytes are any bytes.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Busy> {
        if from.is_empty() {
            return Ok(());
        }
        let into = self.at(offset, from.len()).and_then(|into| match self.usage {
            Use::Write => Ok(into),
            Use::Read => Err(Busy),
        })?;
        // SAFETY: as in `read`, the other way; that it may be written to was checked.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }
}

/// Bytes of a file.
struct OnDisk {
    kind: Kind,
    file: File,
    fault: Fault,
}

impl OnDisk {
    fn done(&self, result: io::Result<()>) -> Result<(), Busy> {
        result.map_err(|error| {
            self.fault.keep(error.into());
            Busy
        })
    }
}

impl Memory for OnDisk {
    fn dtype(&self) -> Dtype {
        self.kind.dtype.clone()
    }

    fn shape(&self) -> Vec<u64> {
        self.kind.shape.clone()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Busy> {
        self.done(self.file.read_exact_at(into, offset))
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Busy> {
        self.done(self.file.write_all_at(from, offset))
    }
}

/// Bytes that the object copies, as those of a GPU.
struct Device {
    kind: Kind,
    object: Py<PyAny>,
    fault: Fault,
}

impl Device {
    /// Calls a method of the object with bytes that are its own for as long as the call.
    fn copy(
        &self,
        method: &str,
        offset: u64,
        view: impl Fn(Python<'_>) -> *mut ffi::PyObject,
    ) -> Result<(), Busy> {
        let copied = Python::attach(|py| {
            // SAFETY: a new reference, or null with an exception set.
            let view = unsafe { Bound::from_owned_ptr_or_err(py, view(py)) }?;
            let done = self.object.bind(py).call_method1(method, (offset, &view));
            // Whoever kept it would see memory that is another's by then.
            let released = view.call_method0("release");
            done.and(released).map(drop)
        });
        copied.map_err(|error| {
            self.fault.keep(error);
            Busy
        })
    }
}

impl Memory for Device {
    fn dtype(&self) -> Dtype {
        self.kind.dtype.clone()
    }

    fn shape(&self) -> Vec<u64> {
        self.kind.shape.clone()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Busy> {
        let (base, length) = (into.as_mut_ptr().cast::<c_char>(), into.len());
        // SAFETY: the bytes are there until the view is released, which is before we return.
        let view = |_: Python<'_>| unsafe {
            ffi::PyMemoryView_FromMemory(base, length.cast_signed(), ffi::PyBUF_WRITE)
        };
        self.copy("read_into", offset, view)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Busy> {
        let (base, length) = (from.as_ptr().cast_mut().cast::<c_char>(), from.len());
        // SAFETY: as above; and the view is read-only.
        let view = |_: Python<'_>| unsafe {
            ffi::PyMemoryView_FromMemory(base, length.cast_signed(), ffi::PyBUF_READ)
        };
        self.copy("write_from", offset, view)
    }
}

//! The codes that calls of the library answer with.

use std::ffi::CStr;

/// An answer of NVML; anything but [`Code::SUCCESS`] is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Code(pub u32);

impl Code {
    /// It was done.
    pub const SUCCESS: Self = Self(0);
    /// The library was not started.
    pub const UNINITIALIZED: Self = Self(1);
    /// An argument makes no sense.
    pub const INVALID_ARGUMENT: Self = Self(2);
    /// This device cannot do that.
    pub const NOT_SUPPORTED: Self = Self(3);
    /// There is no such thing.
    pub const NOT_FOUND: Self = Self(6);
    /// The caller's buffer is too small.
    pub const INSUFFICIENT_SIZE: Self = Self(7);
    /// There is a library and no driver.
    pub const DRIVER_NOT_LOADED: Self = Self(9);
    /// Nothing happened in that time.
    pub const TIMEOUT: Self = Self(10);
    /// The GPU fell off the bus.
    pub const GPU_IS_LOST: Self = Self(15);
    /// A struct has another version than this library knows.
    pub const ARGUMENT_VERSION_MISMATCH: Self = Self(25);
    /// Something else.
    pub const UNKNOWN: Self = Self(999);

    /// What `nvmlErrorString` says.
    pub fn text(self) -> &'static CStr {
        match self {
            Self::SUCCESS => c"The operation was successful",
            Self::UNINITIALIZED => c"Uninitialized",
            Self::INVALID_ARGUMENT => c"Invalid Argument",
            Self::NOT_SUPPORTED => c"Not Supported",
            Self::NOT_FOUND => c"Not Found",
            Self::INSUFFICIENT_SIZE => c"Insufficient Size",
            Self::DRIVER_NOT_LOADED => c"Driver Not Loaded",
            Self::TIMEOUT => c"Timeout",
            Self::GPU_IS_LOST => c"GPU is lost",
            Self::ARGUMENT_VERSION_MISMATCH => c"Argument version mismatch",
            _ => c"Unknown Error",
        }
    }
}

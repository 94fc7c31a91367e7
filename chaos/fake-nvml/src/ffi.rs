//! The symbols that the library exports, as NVIDIA's `nvml.h` declares them.
#![expect(unsafe_code, reason = "a C library is called with pointers")]

use std::env;
use std::ffi::CStr;
use std::ffi::OsStr;
use std::ffi::c_char;
use std::ffi::c_int;
use std::ffi::c_uint;
use std::ffi::c_ulonglong;
use std::ffi::c_void;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;
use std::ptr;

use crate::Code;
use crate::ProcessKind;
use crate::STATE;
use crate::library;
use crate::library::Device;
use crate::library::Handle;

/// A device handle: never followed, only a number in the shape of a pointer.
type Pointer = *mut c_void;

/// Of an Xid error.
const EVENT_TYPE_XID: c_ulonglong = 8;

/// Single-bit, double-bit and Xid errors.
const EVENT_TYPES: c_ulonglong = 8 | 2 | 1;

#[repr(C)]
struct ProcessEntry {
    pid: c_uint,
    memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[repr(C)]
struct MemoryEntry {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
struct UtilizationEntry {
    gpu: c_uint,
    memory: c_uint,
}

#[repr(C)]
struct EventEntry {
    device: Pointer,
    kind: c_ulonglong,
    data: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// The state file of this very copy of the library.
pub(crate) fn state_file() -> PathBuf {
    if let Some(file) = env::var_os("FAKE_NVML_STATE") {
        return file.into();
    }
    let mut found = mem::MaybeUninit::<libc::Dl_info>::uninit();
    let here: fn() -> PathBuf = state_file;
    // SAFETY: the address is one of this function, and `dladdr` fills the struct if it returns
    // other than zero; the name it gives lives as long as the library is loaded, and this runs.
    let library = unsafe {
        if libc::dladdr(here as *const c_void, found.as_mut_ptr()) == 0 {
            return PathBuf::from(STATE);
        }
        CStr::from_ptr(found.assume_init().dli_fname)
    };
    Path::new(OsStr::from_bytes(library.to_bytes())).with_file_name(STATE)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> Code {
    code(library::start("nvmlInit_v2"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    code(library::start("nvmlInitWithFlags"))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> Code {
    code(library::stop())
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: c_int) -> *const c_char {
    Code(u32::try_from(code).unwrap_or(u32::MAX)).text().as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(text: *mut c_char, length: c_uint) -> Code {
    // SAFETY: the caller gives a buffer of that length.
    let put = |version: &str| unsafe { put(version, text, length) };
    code(library::state("nvmlSystemGetDriverVersion").and_then(|state| put(&state.driver)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetNVMLVersion(text: *mut c_char, length: c_uint) -> Code {
    // SAFETY: the caller gives a buffer of that length.
    let put = |version: String| unsafe { put(&version, text, length) };
    let state = library::state("nvmlSystemGetNVMLVersion");
    code(state.and_then(|state| put(format!("13.{}", state.driver))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Code {
    let gpus = library::state("nvmlDeviceGetCount_v2").map(|state| state.gpus.len());
    // SAFETY: the caller gives a place for the count, or null.
    code(gpus.and_then(|gpus| unsafe { store(count, c_uint::try_from(gpus).unwrap_or(0)) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut Pointer) -> Code {
    let state = library::state("nvmlDeviceGetHandleByIndex_v2");
    let handle = state.and_then(|state| state.by_index(index));
    // SAFETY: the caller gives a place for the handle, or null.
    code(handle.and_then(|handle| unsafe { store(device, pointer(handle)) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut Pointer) -> Code {
    if uuid.is_null() {
        return Code::INVALID_ARGUMENT;
    }
    // SAFETY: the caller gives a text that ends with zero.
    let uuid = unsafe { CStr::from_ptr(uuid) }.to_string_lossy();
    let state = library::state("nvmlDeviceGetHandleByUUID");
    let handle = state.and_then(|state| state.by_uuid(&uuid));
    // SAFETY: the caller gives a place for the handle, or null.
    code(handle.and_then(|handle| unsafe { store(device, pointer(handle)) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(device: Pointer, text: *mut c_char, length: c_uint) -> Code {
    // SAFETY: the caller gives a buffer of that length.
    on("nvmlDeviceGetUUID", device, |device| unsafe { put(device.uuid(), text, length) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(device: Pointer, text: *mut c_char, length: c_uint) -> Code {
    // SAFETY: the caller gives a buffer of that length.
    on("nvmlDeviceGetName", device, |device| unsafe { put(&device.gpu.name, text, length) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Pointer, memory: *mut MemoryEntry) -> Code {
    on("nvmlDeviceGetMemoryInfo_v2", device, |device| {
        let version = c_uint::try_from(mem::size_of::<MemoryEntry>()).unwrap_or(0) | (2 << 24);
        // SAFETY: the caller gives a struct whose version it has set, or null.
        if memory.is_null() || unsafe { (*memory).version } != version {
            return Err(Code::ARGUMENT_VERSION_MISMATCH);
        }
        let (total, used) = (device.memory(), device.used().min(device.memory()));
        let entry = MemoryEntry { version, total, reserved: 0, free: total - used, used };
        // SAFETY: as above.
        unsafe { store(memory, entry) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: Pointer,
    rates: *mut UtilizationEntry,
) -> Code {
    on("nvmlDeviceGetUtilizationRates", device, |device| {
        if device.part.is_some() {
            return Err(Code::NOT_SUPPORTED);
        }
        // SAFETY: the caller gives a place for the rates, or null.
        unsafe { store(rates, UtilizationEntry { gpu: device.gpu.utilization, memory: 0 }) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Pointer,
    count: *mut c_uint,
    list: *mut ProcessEntry,
) -> Code {
    on("nvmlDeviceGetComputeRunningProcesses_v3", device, |device| {
        // SAFETY: the caller gives a list of `*count` entries, or null.
        unsafe { put_processes(device, ProcessKind::Compute, count, list) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: Pointer,
    count: *mut c_uint,
    list: *mut ProcessEntry,
) -> Code {
    on("nvmlDeviceGetGraphicsRunningProcesses_v3", device, |device| {
        // SAFETY: the caller gives a list of `*count` entries, or null.
        unsafe { put_processes(device, ProcessKind::Graphics, count, list) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: Pointer,
    count: *mut c_uint,
    list: *mut ProcessEntry,
) -> Code {
    on("nvmlDeviceGetMPSComputeRunningProcesses_v3", device, |device| {
        // SAFETY: the caller gives a list of `*count` entries, or null.
        unsafe { put_processes(device, ProcessKind::Mps, count, list) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: Pointer,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Code {
    on("nvmlDeviceGetMigMode", device, |device| {
        if device.gpu.mig.is_empty() {
            return Err(Code::NOT_SUPPORTED);
        }
        // SAFETY: the caller gives a place for each, or null.
        unsafe { store(current, 1).and_then(|()| store(pending, 1)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: Pointer, count: *mut c_uint) -> Code {
    // SAFETY: the caller gives a place for the count, or null.
    on("nvmlDeviceGetMaxMigDeviceCount", device, |device| unsafe {
        store(count, device.most_parts())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: Pointer,
    place: c_uint,
    part: *mut Pointer,
) -> Code {
    on("nvmlDeviceGetMigDeviceHandleByIndex", device, |found| {
        if !found.gpu.mig.contains_key(&place) {
            return Err(Code::NOT_FOUND);
        }
        let handle = Handle::of_number(device.addr())?.part(place);
        // SAFETY: the caller gives a place for the handle, or null.
        unsafe { store(part, pointer(handle)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    device: Pointer,
    parent: *mut Pointer,
) -> Code {
    on("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", device, |_| {
        let handle = Handle::of_number(device.addr())?.parent()?;
        // SAFETY: the caller gives a place for the handle, or null.
        unsafe { store(parent, pointer(handle)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(device: Pointer, answer: *mut c_uint) -> Code {
    // SAFETY: the caller gives a place for the answer, or null.
    on("nvmlDeviceIsMigDeviceHandle", device, |device| unsafe {
        store(answer, c_uint::from(device.part.is_some()))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGpuInstanceId(device: Pointer, id: *mut c_uint) -> Code {
    on("nvmlDeviceGetGpuInstanceId", device, |device| {
        let part = device.part.ok_or(Code::NOT_SUPPORTED)?;
        // SAFETY: the caller gives a place for the id, or null.
        unsafe { store(id, part.gpu_instance) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeInstanceId(device: Pointer, id: *mut c_uint) -> Code {
    on("nvmlDeviceGetComputeInstanceId", device, |device| {
        let part = device.part.ok_or(Code::NOT_SUPPORTED)?;
        // SAFETY: the caller gives a place for the id, or null.
        unsafe { store(id, part.compute_instance) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: Pointer,
    types: *mut c_ulonglong,
) -> Code {
    // SAFETY: the caller gives a place for the types, or null.
    on("nvmlDeviceGetSupportedEventTypes", device, |_| unsafe { store(types, EVENT_TYPES) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetCreate(set: *mut Pointer) -> Code {
    let only = ptr::without_provenance_mut(1);
    // SAFETY: the caller gives a place for the set, or null.
    code(library::state("nvmlEventSetCreate").and_then(|_| unsafe { store(set, only) }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(_set: Pointer) -> Code {
    Code::SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(
    device: Pointer,
    _types: c_ulonglong,
    _set: Pointer,
) -> Code {
    on("nvmlDeviceRegisterEvents", device, |_| Ok(()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(
    _set: Pointer,
    entry: *mut EventEntry,
    milliseconds: c_uint,
) -> Code {
    code(library::next_event("nvmlEventSetWait_v2", milliseconds).and_then(|event| {
        let told = EventEntry {
            device: pointer(Handle::of_gpu(event.gpu)),
            kind: EVENT_TYPE_XID,
            data: event.xid,
            gpu_instance: event.gpu_instance.unwrap_or(u32::MAX),
            compute_instance: event.compute_instance.unwrap_or(u32::MAX),
        };
        // SAFETY: the caller gives a place for the event, or null.
        unsafe { store(entry, told) }
    }))
}

/// Answers a call about one device.
fn on(symbol: &str, device: Pointer, act: impl FnOnce(&Device<'_>) -> Result<(), Code>) -> Code {
    let answer = || {
        let state = library::state(symbol)?;
        act(&state.device(Handle::of_number(device.addr())?)?)
    };
    code(answer())
}

fn code(answer: Result<(), Code>) -> Code {
    answer.err().unwrap_or(Code::SUCCESS)
}

fn pointer(handle: Handle) -> Pointer {
    ptr::without_provenance_mut(handle.number())
}

/// Writes a list in NVML's two steps: called without room for it, it tells how long it is.
///
/// # Safety
///
/// `count` is null or a place, `list` is null or has room for `*count` entries.
unsafe fn put_processes(
    device: &Device<'_>,
    kind: ProcessKind,
    count: *mut c_uint,
    list: *mut ProcessEntry,
) -> Result<(), Code> {
    if count.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    let processes = device.processes(kind);
    // SAFETY: it is not null, see above.
    let room = unsafe { *count } as usize;
    // SAFETY: as above.
    unsafe { store(count, c_uint::try_from(processes.len()).unwrap_or(c_uint::MAX)) }?;
    if processes.is_empty() {
        return Ok(());
    }
    if list.is_null() || room < processes.len() {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    for (index, process) in processes.into_iter().enumerate() {
        let entry = ProcessEntry {
            pid: process.pid,
            memory: process.memory.unwrap_or(u64::MAX),
            gpu_instance: process.gpu_instance.unwrap_or(u32::MAX),
            compute_instance: process.compute_instance.unwrap_or(u32::MAX),
        };
        // SAFETY: there is room for `room` entries, and no more are written.
        unsafe { store(list.add(index), entry) }?;
    }
    Ok(())
}

/// Writes a text that ends with zero.
///
/// # Safety
///
/// `buffer` is null or has room for `length` bytes.
unsafe fn put(text: &str, buffer: *mut c_char, length: c_uint) -> Result<(), Code> {
    if buffer.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    // SAFETY: the text and its zero fit, see above.
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, text.len());
        buffer.add(text.len()).write(0);
    }
    Ok(())
}

/// Writes one value.
///
/// # Safety
///
/// `place` is null or may be written to.
unsafe fn store<T>(place: *mut T, value: T) -> Result<(), Code> {
    if place.is_null() {
        return Err(Code::INVALID_ARGUMENT);
    }
    // SAFETY: it is not null, and whoever gives a place gives one that may be written to.
    unsafe { place.write(value) };
    Ok(())
}

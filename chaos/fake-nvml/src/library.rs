//! What each call answers, without a pointer in it.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use crate::Code;
use crate::Event;
use crate::Gpu;
use crate::MigDevice;
use crate::Process;
use crate::ProcessKind;
use crate::State;
use crate::ffi;

/// The most MIG devices of one GPU.
///
/// Source: NVIDIA Multi-Instance GPU User Guide, "Supported MIG Profiles".
const MIG_MAX: u32 = 7;

/// Between two looks for an event.
const LOOK: Duration = Duration::from_millis(20);

/// What this copy of the library remembers between calls.
struct Memory {
    started: u32,
    told: usize,
}

static MEMORY: Mutex<Memory> = Mutex::new(Memory { started: 0, told: 0 });

/// A device as a handle names it: its GPU by index, and the place of its MIG device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    gpu: usize,
    place: Option<u32>,
}

/// A device found.
pub(crate) struct Device<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) part: Option<&'a MigDevice>,
}

pub(crate) fn start(symbol: &str) -> Result<(), Code> {
    let state = State::read(&ffi::state_file()).map_err(|_| Code::DRIVER_NOT_LOADED)?;
    refuse(&state, symbol)?;
    memory().started += 1;
    Ok(())
}

pub(crate) fn stop() -> Result<(), Code> {
    let mut memory = memory();
    memory.started = memory.started.checked_sub(1).ok_or(Code::UNINITIALIZED)?;
    Ok(())
}

/// The state as it is now, unless this call is one that fails.
pub(crate) fn state(symbol: &str) -> Result<State, Code> {
    if memory().started == 0 {
        return Err(Code::UNINITIALIZED);
    }
    let state = State::read(&ffi::state_file()).map_err(|_| Code::UNKNOWN)?;
    refuse(&state, symbol)?;
    Ok(state)
}

/// The next event that was not told yet, waited for.
pub(crate) fn next_event(symbol: &str, milliseconds: u32) -> Result<Event, Code> {
    let looks = u128::from(milliseconds) / LOOK.as_millis();
    for look in 0..=looks {
        let state = state(symbol)?;
        let mut memory = memory();
        if let Some(event) = state.events.get(memory.told) {
            memory.told += 1;
            return Ok(event.clone());
        }
        drop(memory);
        if look < looks {
            thread::sleep(LOOK);
        }
    }
    Err(Code::TIMEOUT)
}

fn refuse(state: &State, symbol: &str) -> Result<(), Code> {
    let code = state.errors.get(symbol).or_else(|| state.errors.get("*"));
    code.filter(|code| **code != 0).map_or(Ok(()), |code| Err(Code(*code)))
}

fn memory() -> MutexGuard<'static, Memory> {
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(crate) fn by_index(&self, index: u32) -> Result<Handle, Code> {
        let gpu = usize::try_from(index).map_err(|_| Code::INVALID_ARGUMENT)?;
        let found = self.gpus.get(gpu).ok_or(Code::INVALID_ARGUMENT)?;
        if found.lost { Err(Code::GPU_IS_LOST) } else { Ok(Handle { gpu, place: None }) }
    }

    pub(crate) fn by_uuid(&self, uuid: &str) -> Result<Handle, Code> {
        let parts = |(gpu, found): (usize, &Gpu)| {
            let whole = (found.uuid == uuid).then_some(Handle { gpu, place: None });
            let part = found.mig.iter().find(|(_, part)| part.uuid == uuid);
            whole.or(part.map(|(place, _)| Handle { gpu, place: Some(*place) }))
        };
        self.gpus.iter().enumerate().find_map(parts).ok_or(Code::NOT_FOUND)
    }

    pub(crate) fn device(&self, handle: Handle) -> Result<Device<'_>, Code> {
        let gpu = self.gpus.get(handle.gpu).ok_or(Code::INVALID_ARGUMENT)?;
        if gpu.lost {
            return Err(Code::GPU_IS_LOST);
        }
        let part = handle.place.map(|place| gpu.mig.get(&place).ok_or(Code::NOT_FOUND));
        Ok(Device { gpu, part: part.transpose()? })
    }
}

impl Device<'_> {
    pub(crate) fn uuid(&self) -> &str {
        self.part.map_or(&self.gpu.uuid, |part| &part.uuid)
    }

    pub(crate) fn memory(&self) -> u64 {
        self.part.map_or(self.gpu.memory, |part| part.memory)
    }

    pub(crate) fn used(&self) -> u64 {
        let held = |process: &&Process| self.holds(process);
        self.gpu.processes.iter().filter(held).filter_map(|process| process.memory).sum()
    }

    pub(crate) fn processes(&self, kind: ProcessKind) -> Vec<&Process> {
        let listed = |process: &&Process| process.kind == kind && self.holds(process);
        self.gpu.processes.iter().filter(listed).collect()
    }

    pub(crate) fn most_parts(&self) -> u32 {
        if self.gpu.mig.is_empty() { 0 } else { MIG_MAX }
    }

    fn holds(&self, process: &Process) -> bool {
        self.part.is_none_or(|part| {
            process.gpu_instance == Some(part.gpu_instance)
                && process.compute_instance == Some(part.compute_instance)
        })
    }
}

impl Handle {
    /// As a number that is never zero, and 0 for no device: the GPU's index and the place.
    pub(crate) fn number(self) -> usize {
        let place = self.place.map_or(0, |place| place as usize + 1);
        (place << 16) | (self.gpu + 1)
    }

    pub(crate) fn of_number(number: usize) -> Result<Self, Code> {
        let gpu = (number & 0xffff).checked_sub(1).ok_or(Code::INVALID_ARGUMENT)?;
        let place = (number >> 16).checked_sub(1).map(u32::try_from);
        let place = place.transpose().map_err(|_| Code::INVALID_ARGUMENT)?;
        Ok(Self { gpu, place })
    }

    pub(crate) fn of_gpu(gpu: usize) -> Self {
        Self { gpu, place: None }
    }

    pub(crate) fn part(self, place: u32) -> Self {
        Self { place: Some(place), ..self }
    }

    pub(crate) fn parent(self) -> Result<Self, Code> {
        self.place.map(|_| Self { place: None, ..self }).ok_or(Code::INVALID_ARGUMENT)
    }
}

//! NVIDIA's management library: which processes are on which GPU, slice by slice.

use std::ffi::OsStr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use nvml_wrapper::Device;
use nvml_wrapper::error::NvmlError as LibraryError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use tracing::debug;

use crate::error::Chain;
use crate::error::Class;
use crate::error::Classify;
use crate::offload::Offload;

/// The library's name where the configuration names none; the loader searches for it.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// A list may grow between the question for its length and the question for its entries.
const LIST_ATTEMPTS: u32 = 4;

/// The management library, loaded and started.
#[derive(Debug, Clone)]
pub struct Nvml {
    library: Arc<nvml_wrapper::Nvml>,
    offload: Offload,
}

/// A physical GPU and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// `GPU-<uuid>`.
    pub uuid: String,
    /// Its product name.
    pub name: String,
    /// What is on it.
    pub lists: Lists,
    /// Its MIG devices; empty if it is not partitioned.
    pub mig: Vec<MigDevice>,
}

/// The lists of processes on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lists {
    /// Processes with a compute context. Under MPS the clients are not here, their server is.
    pub compute: List,
    /// Processes with a graphics context.
    pub graphics: List,
    /// Clients of MPS.
    pub mps: List,
}

/// A list of processes, as far as the library gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum List {
    /// Read.
    Processes(Vec<Process>),
    /// The device has no such list.
    NotSupported,
    /// Not read: what is on it is unknown.
    Unread,
}

/// A MIG device and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigDevice {
    /// `MIG-<uuid>`.
    pub uuid: String,
    /// Its GPU instance.
    pub gpu_instance: u32,
    /// Its compute instance within that.
    pub compute_instance: u32,
    /// What is on it.
    pub lists: Lists,
}

/// A process on a GPU, by its number in the host's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The GPU instance that it uses, under MIG.
    pub gpu_instance: Option<u32>,
    /// The compute instance that it uses, under MIG.
    pub compute_instance: Option<u32>,
}

/// Why the library told us nothing. What it did not tell is unknown, never free.
#[derive(Debug, thiserror::Error)]
pub enum NvmlError {
    /// There is no such library: not a GPU node, or its driver is not mounted here.
    #[error("library `{}` is not here; this node counts as one without GPUs", library.display())]
    Absent {
        /// The library.
        library: PathBuf,
        /// Why.
        source: LibraryError,
    },
    /// The library is there, and the driver is not.
    #[error("library `{}` found no driver; this node counts as one without GPUs", library.display())]
    NoDriver {
        /// The library.
        library: PathBuf,
        /// Why.
        source: LibraryError,
    },
    /// The library did not start.
    #[error("library `{}` did not start", library.display())]
    NotStarted {
        /// The library.
        library: PathBuf,
        /// Why.
        source: LibraryError,
    },
    /// A device was not read.
    #[error("GPU {index} was not read: {what}")]
    Device {
        /// Its place in the library's order.
        index: u32,
        /// What was asked for.
        what: &'static str,
        /// Why.
        source: LibraryError,
    },
    /// The devices were not counted.
    #[error("GPUs were not counted")]
    Count {
        /// Why.
        source: LibraryError,
    },
}

/// What of a device was not read, and why.
type Missing = (&'static str, LibraryError);

impl Nvml {
    /// Loads `library`, or what the loader finds by the usual name, and starts it.
    pub async fn load(library: Option<&Path>, offload: Offload) -> Result<Self, NvmlError> {
        let path = library.map_or_else(|| PathBuf::from(LIBRARY), Path::to_owned);
        let library = offload.run(move || start(&path)).await?;
        Ok(Self { library: Arc::new(library), offload })
    }

    /// What is on every GPU now. A GPU that is not found fails the look; a list does not.
    pub async fn look(&self) -> Result<Vec<Gpu>, NvmlError> {
        let library = Arc::clone(&self.library);
        self.offload.run(move || look(&library)).await
    }

    /// The driver's version, where it tells.
    pub async fn driver(&self) -> Option<String> {
        let library = Arc::clone(&self.library);
        self.offload.run(move || library.sys_driver_version().ok()).await
    }
}

impl Classify for NvmlError {
    fn class(&self) -> Class {
        match self {
            Self::Absent { .. } => Class::Permanent,
            Self::NoDriver { .. }
            | Self::NotStarted { .. }
            | Self::Device { .. }
            | Self::Count { .. } => Class::Transient,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Absent { .. } => "absent",
            Self::NoDriver { .. } => "no_driver",
            Self::NotStarted { .. } => "not_started",
            Self::Device { source: LibraryError::GpuLost, .. } => "gpu_lost",
            Self::Device { .. } => "device",
            Self::Count { .. } => "count",
        }
    }
}

impl Gpu {
    /// Every process on the GPU, whatever it does there.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.lists.processes().chain(self.mig.iter().flat_map(|part| part.lists.processes()))
    }
}

impl Lists {
    /// Every process on one of the lists.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        [&self.compute, &self.graphics, &self.mps].into_iter().flat_map(|list| match list {
            List::Processes(processes) => processes.as_slice(),
            List::NotSupported | List::Unread => &[],
        })
    }
}

fn start(path: &Path) -> Result<nvml_wrapper::Nvml, NvmlError> {
    let path: &OsStr = path.as_os_str();
    nvml_wrapper::Nvml::builder().lib_path(path).init().map_err(|source| {
        let library = PathBuf::from(path);
        if matches!(source, LibraryError::LibloadingError(_) | LibraryError::LibraryNotFound) {
            NvmlError::Absent { library, source }
        } else if matches!(source, LibraryError::DriverNotLoaded) {
            NvmlError::NoDriver { library, source }
        } else {
            NvmlError::NotStarted { library, source }
        }
    })
}

fn look(library: &nvml_wrapper::Nvml) -> Result<Vec<Gpu>, NvmlError> {
    let count = library.device_count().map_err(|source| NvmlError::Count { source })?;
    (0..count)
        .map(|index| {
            let read = |device| gpu(library, &device);
            let found = library.device_by_index(index).map_err(|error| ("its handle", error));
            found.and_then(read).map_err(|(what, source)| NvmlError::Device { index, what, source })
        })
        .collect()
}

fn gpu(library: &nvml_wrapper::Nvml, device: &Device<'_>) -> Result<Gpu, Missing> {
    Ok(Gpu {
        uuid: device.uuid().map_err(|error| ("its UUID", error))?,
        name: device.name().unwrap_or_default(),
        lists: lists(device),
        mig: mig_devices(library, device)?,
    })
}

/// The library tells the largest number there could be, and says `NotFound` for those that are
/// not there; places may be free between them.
fn mig_devices(
    library: &nvml_wrapper::Nvml,
    device: &Device<'_>,
) -> Result<Vec<MigDevice>, Missing> {
    let most = match device.mig_device_count() {
        Ok(most) => most,
        Err(error) if not_for_this_gpu(&error) => 0,
        Err(error) => return Err(("its number of MIG devices", error)),
    };
    let mut found = Vec::new();
    for index in 0..most {
        match device.mig_device_by_index(index) {
            Ok(part) => found.push(mig_device(library, &part)?),
            Err(LibraryError::NotFound) => (),
            Err(error) if not_for_this_gpu(&error) => break,
            Err(error) => return Err(("a MIG device", error)),
        }
    }
    Ok(found)
}

fn mig_device(library: &nvml_wrapper::Nvml, part: &Device<'_>) -> Result<MigDevice, Missing> {
    let uuid = part.uuid().map_err(|error| ("a MIG device's UUID", error))?;
    Ok(MigDevice {
        uuid,
        gpu_instance: gpu_instance(library, part)
            .map_err(|e| ("a MIG device's GPU instance", e))?,
        compute_instance: compute_instance(library, part)
            .map_err(|e| ("a MIG device's compute instance", e))?,
        lists: lists(part),
    })
}

#[expect(unsafe_code, reason = "the wrapper has no function for it")]
fn gpu_instance(library: &nvml_wrapper::Nvml, part: &Device<'_>) -> Result<u32, LibraryError> {
    let symbol = library.lib().nvmlDeviceGetGpuInstanceId.as_ref();
    let ask = symbol.map_err(|error| LibraryError::FailedToLoadSymbol(error.to_string()))?;
    let mut id = 0;
    // SAFETY: the symbol has the published type, the handle is of a device that `library` gave
    // and outlives the call, and `id` is where the library may write one unsigned integer.
    let code = unsafe { ask(part.handle(), &raw mut id) };
    nvml_wrapper::error::nvml_try(code).map(|()| id)
}

#[expect(unsafe_code, reason = "the wrapper has no function for it")]
fn compute_instance(library: &nvml_wrapper::Nvml, part: &Device<'_>) -> Result<u32, LibraryError> {
    let symbol = library.lib().nvmlDeviceGetComputeInstanceId.as_ref();
    let ask = symbol.map_err(|error| LibraryError::FailedToLoadSymbol(error.to_string()))?;
    let mut id = 0;
    // SAFETY: as in `gpu_instance`.
    let code = unsafe { ask(part.handle(), &raw mut id) };
    nvml_wrapper::error::nvml_try(code).map(|()| id)
}

fn lists(device: &Device<'_>) -> Lists {
    Lists {
        compute: list("compute", || device.running_compute_processes()),
        graphics: list("graphics", || device.running_graphics_processes()),
        mps: list("mps", || device.mps_running_compute_processes()),
    }
}

/// A list, asked for again if it grew meanwhile.
fn list(what: &str, ask: impl Fn() -> Result<Vec<ProcessInfo>, LibraryError>) -> List {
    let mut answer = ask();
    for _ in 1..LIST_ATTEMPTS {
        if !matches!(answer, Err(LibraryError::InsufficientSize(_))) {
            break;
        }
        answer = ask();
    }
    match answer {
        Ok(found) => List::Processes(found.iter().map(process).collect()),
        Err(error) if not_for_this_gpu(&error) => List::NotSupported,
        Err(error) => {
            debug!(list = what, error = %Chain(&error), "processes of a GPU not read");
            List::Unread
        }
    }
}

fn not_for_this_gpu(error: &LibraryError) -> bool {
    matches!(error, LibraryError::NotSupported)
}

fn process(found: &ProcessInfo) -> Process {
    Process {
        pid: found.pid,
        gpu_instance: found.gpu_instance_id,
        compute_instance: found.compute_instance_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_without_the_library_is_a_normal_node() {
        let absent = Path::new("/nonexistent/libnvidia-ml.so.1");
        let error = Nvml::load(Some(absent), Offload::Inline).await.unwrap_err();
        assert_eq!(error.class(), Class::Permanent);
        assert_eq!(error.label(), "absent");
    }
}

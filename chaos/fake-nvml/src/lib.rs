//! A shared library that stands in for `libnvidia-ml.so.1`, and the types of the file it answers from.
//!
//! The library reads `nvml-state.json` in the folder that it was itself loaded from, anew on each
//! call, so that a test releases a GPU by writing a file, and several nodes, each with a copy of
//! its own, live in one process. `FAKE_NVML_STATE` names another file.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

mod code;
mod ffi;
mod library;

pub use code::Code;

/// The state file's name.
pub const STATE: &str = "nvml-state.json";

/// The name that programs load the library by.
pub const LIBRARY: &str = "libnvidia-ml.so.1";

/// The name that cargo builds it under.
const BUILT: &str = "libfake_nvml.so";

/// What the library of one node tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// The driver's version.
    #[serde(default)]
    pub driver: String,
    /// The node's GPUs, in the order of their index.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// Calls that fail, each by the symbol's name, or all by `*`, with the code they answer.
    #[serde(default)]
    pub errors: BTreeMap<String, u32>,
    /// Xid errors, in the order in which they are told; each is told once per loaded library.
    #[serde(default)]
    pub events: Vec<Event>,
}

/// A physical GPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gpu {
    /// `GPU-…`.
    pub uuid: String,
    /// Its product name.
    pub name: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// How busy it is, in percent.
    #[serde(default)]
    pub utilization: u32,
    /// It fell off the bus: every call about it fails.
    #[serde(default)]
    pub lost: bool,
    /// The processes on it, those on its MIG devices too.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// Its MIG devices by their place; a GPU without any is not partitioned.
    #[serde(default)]
    pub mig: BTreeMap<u32, MigDevice>,
}

/// A process on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// Its number in the host's namespace.
    pub pid: u32,
    /// GPU memory that it holds; absent where the driver does not tell.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Which list it is in.
    #[serde(default)]
    pub kind: ProcessKind,
    /// The GPU instance it runs on, under MIG.
    #[serde(default)]
    pub gpu_instance: Option<u32>,
    /// The compute instance it runs on, under MIG.
    #[serde(default)]
    pub compute_instance: Option<u32>,
}

/// Which of the library's lists a process is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProcessKind {
    /// It has a compute context; the MPS server has one too.
    #[default]
    Compute,
    /// It has a graphics context.
    Graphics,
    /// It is a client of MPS.
    Mps,
}

/// A MIG device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MigDevice {
    /// `MIG-…`.
    pub uuid: String,
    /// Its GPU instance.
    pub gpu_instance: u32,
    /// Its compute instance within that.
    pub compute_instance: u32,
    /// Its memory in bytes.
    pub memory: u64,
}

/// An Xid error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// The index of the GPU that had it.
    pub gpu: usize,
    /// Its number.
    pub xid: u64,
    /// The GPU instance that had it, under MIG.
    #[serde(default)]
    pub gpu_instance: Option<u32>,
    /// The compute instance that had it, under MIG.
    #[serde(default)]
    pub compute_instance: Option<u32>,
}

impl State {
    /// Writes the state file of the library in this folder, so that no reader sees half of it.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let half = folder.join(format!("{STATE}.half"));
        fs::write(&half, serde_json::to_vec(self)?)?;
        fs::rename(half, folder.join(STATE))
    }

    /// Reads a state file.
    pub fn read(file: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(file)?)?)
    }
}

/// Puts a copy of the library into a folder, under the name that programs load; returns its path.
///
/// An older copy is replaced, never written over: a program may have it loaded.
pub fn install(folder: &Path) -> io::Result<PathBuf> {
    let (half, whole) = (folder.join(format!("{LIBRARY}.half")), folder.join(LIBRARY));
    fs::create_dir_all(folder)?;
    fs::copy(built()?, &half)?;
    fs::rename(half, &whole)?;
    Ok(whole)
}

/// The library as cargo built it: beside this program, or in `deps` there.
pub fn built() -> io::Result<PathBuf> {
    let program = env::current_exe()?;
    let folders = program.ancestors().skip(1).take(2);
    // In `deps` first: what lies beside a program is only renewed when this package itself is built.
    let places = folders.flat_map(|folder| [folder.join("deps").join(BUILT), folder.join(BUILT)]);
    places.into_iter().find(|place| place.is_file()).ok_or_else(|| {
        let text = format!("`{BUILT}` does not lie beside `{}`", program.display());
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}

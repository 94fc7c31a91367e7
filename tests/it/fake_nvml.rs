//! The library that stands in for NVIDIA's, asked by the real `nvml-wrapper`.
#![allow(unsafe_code, reason = "two ids of MIG devices are not wrapped")]

use std::collections::BTreeMap;
use std::path::Path;

use fake_nvml::Event;
use fake_nvml::Gpu;
use fake_nvml::MigDevice;
use fake_nvml::Process;
use fake_nvml::ProcessKind;
use fake_nvml::State;
use nvml_wrapper::Device;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use tempfile::TempDir;

const UUID: &str = "GPU-11111111-1111-1111-1111-111111111111";

fn process(pid: u32, kind: ProcessKind) -> Process {
    Process { pid, memory: Some(1 << 30), kind, gpu_instance: None, compute_instance: None }
}

fn state(processes: Vec<Process>) -> State {
    let gpu = Gpu {
        uuid: UUID.to_owned(),
        name: "NVIDIA A10G".to_owned(),
        memory: 24 << 30,
        utilization: 70,
        lost: false,
        processes,
        mig: BTreeMap::new(),
    };
    State { driver: "580.65.06".to_owned(), gpus: vec![gpu], ..State::default() }
}

fn load(folder: &Path) -> Result<Nvml, NvmlError> {
    let library = fake_nvml::install(folder).unwrap();
    Nvml::builder().lib_path(library.as_os_str()).init()
}

fn node(state: &State) -> (TempDir, Nvml) {
    let folder = tempfile::tempdir().unwrap();
    state.write(folder.path()).unwrap();
    let nvml = load(folder.path()).unwrap();
    (folder, nvml)
}

fn pids(device: &Device<'_>) -> Vec<u32> {
    device.running_compute_processes().unwrap().into_iter().map(|process| process.pid).collect()
}

#[test]
fn a_gpu_tells_what_it_is() {
    let (_folder, nvml) = node(&state(vec![process(10, ProcessKind::Compute)]));
    assert_eq!(nvml.sys_driver_version().unwrap(), "580.65.06");
    assert_eq!(nvml.device_count().unwrap(), 1);
    let device = nvml.device_by_uuid(UUID).unwrap();
    assert_eq!(device.uuid().unwrap(), UUID);
    assert_eq!(device.name().unwrap(), "NVIDIA A10G");
    assert_eq!(device.utilization_rates().unwrap().gpu, 70);
    let memory = device.memory_info().unwrap();
    assert_eq!((memory.total, memory.used, memory.free), (24 << 30, 1 << 30, 23 << 30));
    assert!(matches!(nvml.device_by_index(1), Err(NvmlError::InvalidArg)));
    assert!(matches!(nvml.device_by_uuid("GPU-none"), Err(NvmlError::NotFound)));
}

#[test]
fn a_process_is_in_one_list_and_leaves_it_when_the_file_says_so() {
    let (folder, nvml) = node(&state(vec![
        process(10, ProcessKind::Compute),
        process(11, ProcessKind::Compute),
        process(12, ProcessKind::Graphics),
        process(13, ProcessKind::Mps),
    ]));
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(pids(&device), [10, 11]);
    assert_eq!(device.running_graphics_processes().unwrap()[0].pid, 12);
    assert_eq!(device.mps_running_compute_processes().unwrap()[0].pid, 13);
    state(vec![process(11, ProcessKind::Compute)]).write(folder.path()).unwrap();
    assert_eq!(pids(&device), [11]);
    state(Vec::new()).write(folder.path()).unwrap();
    assert!(pids(&device).is_empty());
    assert!(device.mps_running_compute_processes().unwrap().is_empty());
}

#[test]
fn memory_that_the_driver_does_not_tell_is_unavailable() {
    let untold = Process { memory: None, ..process(10, ProcessKind::Compute) };
    let (_folder, nvml) = node(&state(vec![untold]));
    let list = nvml.device_by_index(0).unwrap().running_compute_processes().unwrap();
    assert_eq!(list[0].used_gpu_memory, UsedGpuMemory::Unavailable);
    assert_eq!((list[0].gpu_instance_id, list[0].compute_instance_id), (None, None));
}

#[test]
fn mig_devices_are_found_by_place_with_their_own_processes() {
    let part = |gpu_instance: u32| MigDevice {
        uuid: format!("MIG-{gpu_instance}"),
        gpu_instance,
        compute_instance: 0,
        memory: 10 << 30,
    };
    let on = |pid, gpu_instance| Process {
        gpu_instance: Some(gpu_instance),
        compute_instance: Some(0),
        ..process(pid, ProcessKind::Compute)
    };
    let mut state = state(vec![on(10, 3), on(11, 9)]);
    state.gpus[0].mig = BTreeMap::from([(0, part(3)), (2, part(9))]);
    let (_folder, nvml) = node(&state);
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.mig_device_count().unwrap(), 7);
    assert_eq!(device.mig_mode().unwrap().current, 1);
    assert!(matches!(device.mig_device_by_index(1), Err(NvmlError::NotFound)));
    let second = device.mig_device_by_index(2).unwrap();
    assert_eq!((second.uuid().unwrap(), pids(&second)), ("MIG-9".to_owned(), vec![11]));
    assert_eq!((instance(&nvml, &second), instance(&nvml, &device)), (Some(9), None));
    assert_eq!(second.mig_parent_device().unwrap().uuid().unwrap(), UUID);
    assert_eq!(nvml.device_by_uuid("MIG-3").unwrap().memory_info().unwrap().total, 10 << 30);
    assert!(matches!(second.utilization_rates(), Err(NvmlError::NotSupported)));
    assert_eq!(pids(&device), [10, 11]);
}

fn instance(nvml: &Nvml, device: &Device<'_>) -> Option<u32> {
    let mut id = 0;
    // SAFETY: the handle is the library's own, and the place for the id lives.
    let code = unsafe { nvml.lib().nvmlDeviceGetGpuInstanceId(device.handle(), &raw mut id) };
    (code == 0).then_some(id)
}

#[test]
fn a_gpu_that_is_not_partitioned_has_no_mig_devices() {
    let (_folder, nvml) = node(&state(Vec::new()));
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.mig_device_count().unwrap(), 0);
    assert!(matches!(device.mig_mode(), Err(NvmlError::NotSupported)));
}

#[test]
fn no_library_and_no_driver_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("none.so");
    let none = Nvml::builder().lib_path(none.as_os_str()).init();
    assert!(matches!(none, Err(NvmlError::LibloadingError(_))));
    assert!(matches!(load(folder.path()), Err(NvmlError::DriverNotLoaded)));
}

#[test]
fn any_call_can_be_made_to_fail_and_a_gpu_can_be_lost() {
    let mut state = state(vec![process(10, ProcessKind::Compute)]);
    let (folder, nvml) = node(&state);
    let device = nvml.device_by_index(0).unwrap();
    state.errors = BTreeMap::from([("nvmlDeviceGetComputeRunningProcesses_v3".to_owned(), 999)]);
    state.write(folder.path()).unwrap();
    assert!(matches!(device.running_compute_processes(), Err(NvmlError::Unknown)));
    assert_eq!(device.uuid().unwrap(), UUID);
    state.errors = BTreeMap::from([("*".to_owned(), 17)]);
    state.write(folder.path()).unwrap();
    assert!(matches!(device.uuid(), Err(NvmlError::OperatingSystem)));
    state.errors.clear();
    state.gpus[0].lost = true;
    state.write(folder.path()).unwrap();
    assert!(matches!(device.running_compute_processes(), Err(NvmlError::GpuLost)));
    std::fs::remove_file(folder.path().join(fake_nvml::STATE)).unwrap();
    assert!(matches!(device.uuid(), Err(NvmlError::Unknown)));
}

#[test]
fn two_nodes_in_one_process_have_two_states() {
    let (_one, first) = node(&state(vec![process(10, ProcessKind::Compute)]));
    let (_two, second) = node(&state(vec![process(20, ProcessKind::Compute)]));
    assert_eq!(pids(&first.device_by_index(0).unwrap()), [10]);
    assert_eq!(pids(&second.device_by_index(0).unwrap()), [20]);
    drop(first);
    assert_eq!(pids(&second.device_by_index(0).unwrap()), [20]);
}

#[test]
fn an_xid_error_is_told_once() {
    let mut state = state(Vec::new());
    let event = Event { gpu: 0, xid: 79, gpu_instance: None, compute_instance: None };
    state.events = vec![event];
    let (_folder, nvml) = node(&state);
    let device = nvml.device_by_index(0).unwrap();
    assert!(device.supported_event_types().unwrap().contains(EventTypes::CRITICAL_XID_ERROR));
    let set = nvml.create_event_set().unwrap();
    let set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).unwrap();
    let event = set.wait(1000).unwrap();
    assert!(format!("{event:?}").contains("79"), "{event:?}");
    assert!(matches!(set.wait(1), Err(NvmlError::Timeout)));
}

//! The agent's NVML adapter over the library that stands in for NVIDIA's.

use std::collections::BTreeMap;

use fake_nvml::MigDevice;
use fake_nvml::Process;
use fake_nvml::ProcessKind;
use fake_nvml::State;
use lifeboat::adapters::nvml::Gpu;
use lifeboat::adapters::nvml::List;
use lifeboat::adapters::nvml::Nvml;
use lifeboat::error::Classify;
use lifeboat::offload::Offload;
use tempfile::TempDir;

const UUID: &str = "GPU-11111111-1111-1111-1111-111111111111";

fn process(pid: u32, kind: ProcessKind) -> Process {
    Process { pid, memory: Some(1 << 30), kind, gpu_instance: None, compute_instance: None }
}

fn state(processes: Vec<Process>) -> State {
    let gpu = fake_nvml::Gpu {
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

async fn node(state: &State) -> (TempDir, Nvml) {
    let folder = tempfile::tempdir().unwrap();
    state.write(folder.path()).unwrap();
    let library = fake_nvml::install(folder.path()).unwrap();
    let nvml = Nvml::load(Some(&library), Offload::Inline).await.unwrap();
    (folder, nvml)
}

fn pids(list: &List) -> Vec<u32> {
    let List::Processes(processes) = list else { panic!("{list:?}") };
    processes.iter().map(|process| process.pid).collect()
}

#[tokio::test]
async fn each_list_of_a_gpu_is_read_apart() {
    let (folder, nvml) = node(&state(vec![
        process(10, ProcessKind::Compute),
        process(11, ProcessKind::Compute),
        process(12, ProcessKind::Graphics),
        process(13, ProcessKind::Mps),
    ]))
    .await;
    assert_eq!(nvml.driver().await.as_deref(), Some("580.65.06"));
    let gpus = nvml.look().await.unwrap();
    assert_eq!((gpus.len(), gpus[0].uuid.as_str()), (1, UUID));
    assert_eq!(pids(&gpus[0].lists.compute), [10, 11]);
    assert_eq!(pids(&gpus[0].lists.graphics), [12]);
    assert_eq!(pids(&gpus[0].lists.mps), [13]);
    assert_eq!(gpus.iter().flat_map(Gpu::processes).count(), 4);

    state(Vec::new()).write(folder.path()).unwrap();
    assert_eq!(nvml.look().await.unwrap()[0].processes().count(), 0);
}

#[tokio::test]
async fn mig_devices_are_found_with_their_instances_and_their_own_processes() {
    let part = |gpu_instance: u32| MigDevice {
        uuid: format!("MIG-{gpu_instance}"),
        gpu_instance,
        compute_instance: 1,
        memory: 10 << 30,
    };
    let on = |pid, gpu_instance| Process {
        gpu_instance: Some(gpu_instance),
        compute_instance: Some(1),
        ..process(pid, ProcessKind::Compute)
    };
    let mut state = state(vec![on(10, 3), on(11, 9)]);
    state.gpus[0].mig = BTreeMap::from([(0, part(3)), (2, part(9))]);
    let (_folder, nvml) = node(&state).await;
    let gpus = nvml.look().await.unwrap();
    let [first, second] = gpus[0].mig.as_slice() else { panic!("{gpus:?}") };
    assert_eq!((first.uuid.as_str(), first.gpu_instance, first.compute_instance), ("MIG-3", 3, 1));
    assert_eq!(pids(&first.lists.compute), [10]);
    assert_eq!(pids(&second.lists.compute), [11]);
}

#[tokio::test]
async fn a_gpu_that_fell_off_the_bus_fails_the_look() {
    let mut state = state(Vec::new());
    let (folder, nvml) = node(&state).await;
    state.gpus[0].lost = true;
    state.write(folder.path()).unwrap();
    assert_eq!(nvml.look().await.unwrap_err().label(), "gpu_lost");
}

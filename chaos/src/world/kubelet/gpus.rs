//! Shows a machine's GPUs to whoever loads the fake NVML of that machine.

use std::path::PathBuf;

use fake_nvml::Process;
use fake_nvml::ProcessKind;

use crate::world::World;
use crate::world::machines::Machine;

/// Memory of every simulated GPU.
const MEMORY: u64 = 24 << 30;

/// Writes the state file in `folder` whenever something on the GPUs has changed.
pub(super) async fn show(world: World, node: String, folder: PathBuf) {
    std::fs::create_dir_all(&folder).expect("a machine's folder can be written");
    let mut shown = None;
    loop {
        let state = world
            .until(|state| {
                let now = state.machines.get(&node).map(state_of)?;
                (shown.as_ref() != Some(&now)).then_some(now)
            })
            .await;
        state.write(&folder).expect("a machine's folder can be written");
        shown = Some(state);
    }
}

/// What the library tells of a machine. Faults of the library itself are a test's own to write.
pub fn state_of(machine: &Machine) -> fake_nvml::State {
    let gpus = machine.gpus.iter().map(|gpu| {
        let on_it = machine.processes.iter().filter(|(_, process)| process.gpu == gpu.uuid);
        let processes = on_it.map(|(pid, process)| Process {
            pid: *pid,
            memory: Some(process.bytes),
            kind: ProcessKind::Compute,
            gpu_instance: None,
            compute_instance: None,
        });
        fake_nvml::Gpu {
            uuid: gpu.uuid.clone(),
            name: "NVIDIA A10G".to_owned(),
            memory: MEMORY,
            utilization: 0,
            lost: false,
            processes: processes.collect(),
            mig: std::collections::BTreeMap::new(),
        }
    });
    fake_nvml::State {
        driver: "580.65.06".to_owned(),
        gpus: gpus.collect(),
        ..fake_nvml::State::default()
    }
}

//! What the fake of NVIDIA's library shows on a real node: every process that was given a slice.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::node::plugin::GIVEN;
use crate::world::kubelet::gpus::state_of;
use crate::world::machines::Gpu;
use crate::world::machines::GpuProcess;
use crate::world::machines::Machine;
use crate::world::machines::physical;

/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(100);
/// What each process holds.
const CONTEXT_BYTES: u64 = 512 << 20;

/// Writes the state file in `folder` whenever a process came or went, for as long as it is polled.
/// Whose processes they are is told by `group`, which stands in their control groups.
pub(super) async fn show(gpus: Vec<Gpu>, group: String, folder: PathBuf) {
    let mut machine = Machine {
        instance: String::new(),
        root: PathBuf::new(),
        gpus,
        assignments: Vec::new(),
        processes: BTreeMap::new(),
        alive: true,
    };
    let mut shown = None;
    loop {
        machine.processes = processes(&group);
        let state = state_of(&machine);
        if shown.as_ref() != Some(&state) {
            if let Err(error) = state.write(&folder) {
                tracing::warn!(%error, "the GPUs are not shown");
            }
            shown = Some(state);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The processes on GPUs, by their numbers on the node.
fn processes(group: &str) -> BTreeMap<u32, GpuProcess> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter_map(|process| on_gpu(&process, group)).collect()
}

fn on_gpu(process: &Path, group: &str) -> Option<(u32, GpuProcess)> {
    let groups = fs::read_to_string(process.join("cgroup")).ok()?;
    if !groups.contains(group) {
        return None;
    }
    let variables = fs::read(process.join("environ")).ok()?;
    let name = format!("{GIVEN}=");
    let mut variables = variables.split(|byte| *byte == 0);
    let given = variables.find_map(|one| one.strip_prefix(name.as_bytes()))?;
    let given = std::str::from_utf8(given).ok()?;
    // The agent is given all, and uses none.
    let gpu = physical(given.split(',').next().filter(|first| first.starts_with("GPU-"))?);
    let status = fs::read_to_string(process.join("status")).ok()?;
    let number = number_on_node(&status)?;
    let on_it = GpuProcess { gpu: gpu.to_owned(), pod: String::new(), bytes: CONTEXT_BYTES };
    Some((number, on_it))
}

/// A process has a number in each namespace around it: this machine's first, then the node's.
fn number_on_node(status: &str) -> Option<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_as_its_node_does() {
        assert_eq!(number_on_node("Name:\ttrainer\nNSpid:\t4711\t94\t1\nThreads:\t1\n"), Some(94));
        assert_eq!(number_on_node("NSpid:\t4711\n"), None);
    }
}

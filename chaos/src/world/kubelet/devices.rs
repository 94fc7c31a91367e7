//! Which container gets which device: what a device plugin offers, and kubelet gives.

use serde_json::Value;

use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::machines::Assignment;
use crate::world::machines::Gpu;
use crate::world::machines::Machine;
use crate::world::scheduler::quantity::amounts;

/// Gives a pod its devices; nothing, and no device, if there are too few.
pub(super) fn allocate(machine: &mut Machine, pod: &Value) -> Option<()> {
    let kept = machine.assignments.len();
    for container in items(pod, "/spec/containers") {
        for (resource, thousandths) in amounts(container.pointer("/resources/limits")) {
            if !machine.gpus.iter().any(|gpu| gpu.resource == resource) {
                continue;
            }
            let count = usize::try_from(thousandths / 1000).unwrap_or_default();
            let mut free = free(machine, &resource);
            if free.len() < count {
                machine.assignments.truncate(kept);
                return None;
            }
            free.truncate(count);
            machine.assignments.push(Assignment {
                namespace: namespace(pod).to_owned(),
                pod: name(pod).to_owned(),
                uid: uid(pod).to_owned(),
                container: text(container, "/name").to_owned(),
                resource,
                devices: free,
            });
        }
    }
    Some(())
}

/// Devices that nobody holds, in the order of their GPUs: sharers come together.
fn free(machine: &Machine, resource: &str) -> Vec<String> {
    let offered = machine.gpus.iter().filter(|gpu| gpu.resource == resource);
    let taken = |device: &String| {
        machine.assignments.iter().any(|assignment| assignment.devices.contains(device))
    };
    offered.flat_map(Gpu::device_ids).filter(|device| !taken(device)).collect()
}

/// The devices of one container.
pub(super) fn of(machine: &Machine, pod: &str, container: &str) -> Vec<String> {
    let own = machine.assignments.iter();
    let own = own.filter(|given| given.uid == pod && given.container == container);
    own.flat_map(|given| given.devices.iter().cloned()).collect()
}

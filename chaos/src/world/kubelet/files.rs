//! What a kubelet and its container runtime leave in a machine's folder: control groups, `/proc`.
//!
//! All of it is as systemd's driver and cgroup v2 have it. A machine's folder is a temporary one
//! that nobody else writes: what cannot be written there ends the simulation.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Where all pods have their groups.
const PODS: &str = "kubepods.slice/kubepods-burstable.slice";

/// Makes the folders that a node has before its first pod.
pub(super) fn prepare(root: &Path) {
    for folder in [
        "proc",
        "sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice",
        "var/lib/kubelet/pod-resources",
        "var/lib/kubelet/plugins/lifeboat.dev",
        "var/lib/kubelet/plugins_registry",
        "var/lib/kubelet/pods",
        "var/lib/lifeboat/pods",
    ] {
        fs::create_dir_all(root.join(folder)).expect("a machine's folder can be written");
    }
    write(&root.join("sys/fs/cgroup/cgroup.controllers"), "cpu io memory pids\n");
}

/// The control group of a container, with its processes in it.
pub(super) struct Group {
    id: String,
    folder: PathBuf,
    processes: Vec<(u32, PathBuf)>,
}

impl Group {
    /// Makes it.
    pub(super) fn make(root: &Path, pod: &str, id: String, pids: Vec<u32>) -> Self {
        let inside = format!("{}/cri-containerd-{id}.scope", pod_group(pod));
        let slice = root.join("sys/fs/cgroup").join(pod_group(pod));
        let folder = root.join("sys/fs/cgroup").join(&inside);
        fs::create_dir_all(&folder).expect("a machine's folder can be written");
        if !slice.join("cgroup.freeze").exists() {
            write(&slice.join("cgroup.freeze"), "0\n");
            write(&slice.join("cgroup.procs"), "");
        }
        write(&folder.join("cgroup.freeze"), "0\n");
        let mut listed = Vec::new();
        let mut processes = Vec::new();
        for pid in pids {
            let own = root.join("proc").join(pid.to_string());
            fs::create_dir_all(&own).expect("a machine's folder can be written");
            write(&own.join("cgroup"), &format!("0::/{inside}\n"));
            listed.push(format!("{pid}\n"));
            processes.push((pid, own));
        }
        write(&folder.join("cgroup.procs"), &listed.concat());
        Self { id, folder, processes }
    }

    /// The container's id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Its processes.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(|(pid, _)| *pid).collect()
    }

    /// All processes have ended.
    pub(super) fn leave(&self) {
        for (_, folder) in &self.processes {
            remove(folder);
        }
        remove(&self.folder);
    }
}

/// Removes what is left of a pod.
pub(super) fn remove_pod(root: &Path, pod: &str) {
    remove(&root.join("sys/fs/cgroup").join(pod_group(pod)));
    remove(&root.join("var/lib/kubelet/pods").join(pod));
}

/// Whether a pod is frozen.
pub fn is_frozen(root: &Path, pod: &str) -> bool {
    let file = root.join("sys/fs/cgroup").join(pod_group(pod)).join("cgroup.freeze");
    fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
}

fn pod_group(pod: &str) -> String {
    format!("{PODS}/kubepods-burstable-pod{}.slice", pod.replace('-', "_"))
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).expect("a machine's folder can be written");
}

fn remove(folder: &Path) {
    // It may never have been made, and a folder that a test took away is gone as wanted.
    drop(fs::remove_dir_all(folder));
}

//! A real node: kubelet, containerd and runc in namespaces of their own, without Docker, systemd or an
//! image registry.
//!
//! It joins a control plane on this machine's loopback. Nothing of it is seen outside but its control
//! groups, which bear its name and go with it, and its folder. Only its GPUs are not there: a device
//! plugin offers them, and the fake of NVIDIA's library shows who is on them.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use anyhow::ensure;
use rustix::process::geteuid;
use serde_json::Value;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::control_plane;
use crate::control_plane::child::Child;
use crate::control_plane::child::Program;
use crate::node::line::Line;
use crate::world::machines::Gpu;

mod gpus;
pub mod image;
pub mod line;
mod plugin;

/// The runtime class of containers that see NVIDIA's library.
pub const NVIDIA: &str = "nvidia";
/// The image that holds a pod's namespaces.
const PAUSE: &str = "lifeboat.test/pause:1";
/// The API server, as every pod is told of it.
const API_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The instance metadata service.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Where programs look for NVIDIA's library, whatever else they are linked with.
const LIBRARIES: &str = "/usr/lib";
/// What the control groups of nodes begin with; the process that made them follows.
const GROUP: &str = "lifeboat-node-";
/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";
/// How long the first process may take to make the node's network.
const NETWORK: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// How often control groups are tried to be removed whose last process is ending.
const REMOVALS: usize = 200;

/// A node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder that `tests/cluster/node/build` filled; see [`binaries`].
    pub binaries: PathBuf,
    /// The folder that everything lies in; made where it is not there.
    pub state: PathBuf,
    /// Its name.
    pub name: String,
    /// Its address, of which the last number is its own.
    pub address: Ipv4Addr,
    /// As `aws:///<zone>/<instance>`.
    pub provider_id: String,
    /// Labels that kubelet gives it.
    pub labels: BTreeMap<String, String>,
    /// Taints that it is registered with.
    pub taints: Vec<Value>,
    /// Its GPUs.
    pub gpus: Vec<Gpu>,
    /// Archives of the images that are there.
    pub images: Vec<PathBuf>,
    /// A kubeconfig of its own, which names the API server as this machine sees it.
    pub kubeconfig: PathBuf,
    /// The instance metadata service, on this machine's loopback.
    pub metadata: SocketAddr,
    /// Other ports of this machine's loopback, by the port of [`Settings::address`] that leads there.
    pub services: BTreeMap<u16, SocketAddr>,
}

/// A running node; dropping it ends everything on it at once, as EC2 does.
pub struct Node {
    settings: Settings,
    group: String,
    child: Option<Child>,
    tasks: JoinSet<()>,
}

/// Why no node can run here; nothing where one can.
pub fn missing() -> Option<String> {
    if !geteuid().is_root() {
        return Some("a real node needs root".to_owned());
    }
    for program in ["unshare", "ip", "mount", "ldd", "setpriv"] {
        let found = Command::new(program).arg("--version").output();
        if found.is_err() {
            return Some(format!("a real node needs `{program}`"));
        }
    }
    let words = ["--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "true"];
    let shared = Command::new("unshare").args(words).status();
    if !shared.is_ok_and(|status| status.success()) {
        return Some("a real node needs namespaces of its own, and none can be made".to_owned());
    }
    let group = format!("{GROUP}{}-try", std::process::id());
    let tried = hierarchies().into_iter().map(|hierarchy| hierarchy.join(&group));
    let failed = tried.filter_map(|group| {
        fs::create_dir(&group)
            .and_then(|()| fs::remove_dir(&group))
            .err()
            .map(|error| (group, error))
    });
    let failed: Vec<String> =
        failed.map(|(group, error)| format!("`{}`: {error}", group.display())).collect();
    let first = failed.first()?;
    Some(format!("a real node needs control groups of its own, and none can be made: {first}"))
}

/// The folder of a node's programs; `None` where they were not built.
pub fn binaries() -> Option<PathBuf> {
    let built = control_plane::cache()?.join("node");
    built.join("complete").exists().then(|| built.canonicalize().unwrap_or(built))
}

impl Node {
    /// Starts everything; kubelet says by itself when the node is ready.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        // Nodes of two control planes may have one name.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let group = format!("{GROUP}{}-{number}", std::process::id());
        forget_the_dead();
        settings.write(&group)?;
        let child = settings.spawn(&group)?;
        let pid = child.pid();
        let mut node = Self { settings, group, child: Some(child), tasks: JoinSet::new() };
        node.until_there_is_a_network().await?;
        let network = Path::new("/proc").join(pid.to_string()).join("ns/net");
        line::lay(&network, &node.settings.lines()?, &mut node.tasks)?;
        let kubelet = node.settings.state.join("kubelet");
        if !node.settings.gpus.is_empty() {
            let gpus = node.settings.gpus.clone();
            let offered = plugin::offer(kubelet.join("device-plugins"), gpus.clone());
            let shown =
                gpus::show(gpus, format!("/{}/", node.group), node.settings.state.join("nvml"));
            node.tasks.spawn(offered);
            node.tasks.spawn(shown);
        }
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// Its folder: logs of containerd and kubelet, kubelet's own folder, logs of pods.
    pub fn state(&self) -> &Path {
        &self.settings.state
    }

    /// The words that a command begins with which is to run on it.
    pub fn enter(&self) -> anyhow::Result<Vec<String>> {
        let first = self.child.as_ref().and_then(|child| child_of(child.pid()));
        let first = first.context("the node is gone")?.to_string();
        let words = ["nsenter", "-t", &first, "-m", "-n", "-p", "-u", "-i", "--"];
        Ok(words.map(str::to_owned).to_vec())
    }

    /// What the containers of each pod wrote, without what the runtime put before each line.
    pub fn said(&self) -> BTreeMap<String, Vec<String>> {
        let pods = fs::read_dir(self.settings.state.join("pods")).into_iter().flatten().flatten();
        let named = pods.filter_map(|entry| {
            let folder = entry.file_name().to_string_lossy().into_owned();
            Some((folder.split('_').nth(1)?.to_owned(), lines_below(&entry.path())))
        });
        named.collect()
    }

    async fn until_there_is_a_network(&self) -> anyhow::Result<()> {
        let until = Instant::now() + NETWORK;
        while !self.settings.state.join("network").exists() {
            let said = || fs::read_to_string(self.settings.log()).unwrap_or_default();
            ensure!(Instant::now() < until, "node `{}` has no network: {}", self.name(), said());
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.child.take());
        for hierarchy in hierarchies() {
            remove_group(&hierarchy.join(&self.group));
        }
    }
}

impl Settings {
    fn log(&self) -> PathBuf {
        self.state.join("machine.log")
    }

    fn spawn(&self, group: &str) -> anyhow::Result<Child> {
        let words = ["-m", "-n", "-p", "-u", "-i", "-f", "--kill-child", "bash", "machine.sh"];
        let listed = |paths: &[PathBuf]| {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            paths.join(" ")
        };
        let labels: Vec<String> =
            self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut images = vec![self.state.join("pause.tar")];
        images.extend(self.images.clone());
        let program = Program {
            path: find("unshare").context("`unshare` is not there")?,
            arguments: words.iter().map(Into::into).collect(),
            environment: vec![
                ("NODE", self.name.clone().into()),
                ("STATE", self.state.clone().into()),
                ("BINARIES", self.binaries.clone().into()),
                ("CGROUP", group.into()),
                ("ADDRESS", self.address.to_string().into()),
                ("IMAGES", listed(&images).into()),
                ("LABELS", labels.join(",").into()),
            ],
            folder: self.state.clone(),
        };
        Ok(Child::spawn("node", program, &self.log())?)
    }

    /// What the programs read at their start.
    fn write(&self, group: &str) -> anyhow::Result<()> {
        let state = &self.state;
        for folder in ["cni", "nvml"] {
            fs::create_dir_all(state.join(folder))?;
        }
        fs::write(state.join("machine.sh"), include_str!("node/machine.sh"))?;
        fs::write(state.join("cni/10-bridge.conflist"), network().to_string())?;
        fs::write(state.join("containerd.toml"), self.runtime())?;
        fs::write(state.join("kubelet.yaml"), self.kubelet(group).to_string())?;
        fs::write(state.join("kubeconfig"), self.kubeconfig()?)?;
        fs::write(state.join("nvidia.json"), self.nvidia()?)?;
        fake_nvml::install(&state.join("nvml"))?;
        let pause = image::Image::of(PAUSE, &self.binaries.join("pause"))?;
        pause.write(&state.join("pause.tar"))
    }

    fn runtime(&self) -> String {
        let state = self.state.display();
        let binaries = self.binaries.display();
        format!(
            r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
# Where nobody may lower it, runc would fail.
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{binaries}/cni"]
conf_dir = "{state}/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{binaries}/runc"
SystemdCgroup = false
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{NVIDIA}]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{state}/nvidia.json"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{NVIDIA}.options]
BinaryName = "{binaries}/runc"
SystemdCgroup = false
"#
        )
    }

    fn kubelet(&self, group: &str) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "healthzPort": 0,
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{group}"),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            // Nobody but this node reaches its network.
            "authorization": { "mode": "AlwaysAllow" },
            "failSwapOn": false,
            "providerID": self.provider_id,
            "registerWithTaints": self.taints,
            "podLogsDir": "/var/log/pods",
            "resolvConf": "",
            "shutdownGracePeriod": "0s",
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "2s",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%",
            },
        })
    }

    /// The kubeconfig that was given, with the API server as the node sees it.
    fn kubeconfig(&self) -> anyhow::Result<String> {
        let mut config: Value = serde_yaml_ng::from_str(&fs::read_to_string(&self.kubeconfig)?)?;
        config["clusters"][0]["cluster"]["server"] = json!(format!("https://{API_SERVER}"));
        Ok(config.to_string())
    }

    /// A container as the runtime makes it by itself, with NVIDIA's library in it.
    fn nvidia(&self) -> anyhow::Result<String> {
        let asked = Command::new(self.binaries.join("ctr")).args(["oci", "spec"]).output()?;
        let mut spec: Value = serde_json::from_slice(&asked.stdout).context("`ctr oci spec`")?;
        let folder = self.state.join("nvml");
        let mounts = spec["mounts"].as_array_mut().context("`ctr oci spec` has no mounts")?;
        mounts.push(json!({
            "destination": LIBRARIES, "type": "bind", "source": folder,
            "options": ["bind", "ro"],
        }));
        Ok(spec.to_string())
    }

    fn lines(&self) -> anyhow::Result<Vec<Line>> {
        let config: Value = serde_yaml_ng::from_str(&fs::read_to_string(&self.kubeconfig)?)?;
        let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap_or_default();
        let server = server.trim_start_matches("https://").parse::<SocketAddr>();
        let server = server.context("the kubeconfig names no API server on loopback")?;
        let mut lines = vec![
            Line { inside: (API_SERVER, 443).into(), outside: server },
            Line { inside: (METADATA, 80).into(), outside: self.metadata },
        ];
        let services = self.services.iter();
        lines.extend(services.map(|(port, outside)| Line {
            inside: (self.address, *port).into(),
            outside: *outside,
        }));
        Ok(lines)
    }
}

/// A bridge for the pods, which can reach the node and nobody else.
fn network() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
                "ipam": {
                    "type": "host-local", "dataDir": "/run/cni",
                    "ranges": [[{ "subnet": "10.98.0.0/24" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "loopback" },
        ],
    })
}

/// The lines of the logs in a pod's folder: one folder for each container, a file for each start.
fn lines_below(pod: &Path) -> Vec<String> {
    let containers = fs::read_dir(pod).into_iter().flatten().flatten();
    let logs = containers.flat_map(|one| fs::read_dir(one.path()).into_iter().flatten().flatten());
    let mut logs: Vec<PathBuf> = logs.map(|log| log.path()).collect();
    logs.sort();
    let texts = logs.iter().filter_map(|log| fs::read_to_string(log).ok());
    texts.flat_map(|text| text.lines().map(plain).collect::<Vec<_>>()).collect()
}

/// A line of a container's log: `<time> stdout F <text>`.
fn plain(line: &str) -> String {
    line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned()
}

fn find(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.exists())
}

/// The first process in the namespaces, which the one that made them waits for.
fn child_of(parent: u32) -> Option<u32> {
    let all = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        after_name.split(' ').nth(1).and_then(|word| word.parse().ok()) == Some(parent)
    })
}

/// The hierarchies of control groups: one under version 2, one for each controller before.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(GROUPS);
    if root.join("cgroup.controllers").exists() {
        return vec![root];
    }
    let all = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let real = all.filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists());
    real.collect()
}

/// Takes out what nodes left whose process was killed.
fn forget_the_dead() {
    for hierarchy in hierarchies() {
        let groups = fs::read_dir(&hierarchy).into_iter().flatten().flatten();
        for group in groups {
            let name = group.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(GROUP).and_then(|rest| rest.split('-').next());
            let lives = |owner: &str| Path::new("/proc").join(owner).exists();
            if owner.is_some_and(|owner| !lives(owner)) {
                remove_group(&group.path());
            }
        }
    }
}

/// Removes a control group and those below it, waiting for its last processes, which are being ended.
fn remove_group(group: &Path) {
    for _ in 0..REMOVALS {
        remove_tree(group);
        if !group.exists() {
            return;
        }
        std::thread::sleep(LOOK);
    }
    tracing::warn!(group = %group.display(), "control group not removed");
}

fn remove_tree(group: &Path) {
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    if let Err(error) = fs::remove_dir(group) {
        tracing::trace!(%error, group = %group.display(), "control group is in use");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runtime_puts_before_a_line_is_taken_off() {
        assert_eq!(
            plain("2026-11-22T20:10:46.65Z stdout F {\"event\": \"a b\"}"),
            "{\"event\": \"a b\"}"
        );
    }
}

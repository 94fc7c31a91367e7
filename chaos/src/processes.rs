//! Containers as real processes on this machine, for the demo and the process tier.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;

use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::process::Pid;
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Child;
use tokio::process::Command;

use crate::world::World;
use crate::world::cluster::object;
use crate::world::runtime::Container;
use crate::world::runtime::KILLED;
use crate::world::runtime::Launch;
use crate::world::runtime::Runtime;

/// Exit code of a container whose program is not there.
const NOT_STARTED: i32 = 127;
/// A shell's way to say that a signal ended a program: 128 + the signal.
const BY_SIGNAL: i32 = 128;

/// Runs each container's command as a child process, whose output goes to a file of its own.
pub struct Processes {
    logs: PathBuf,
}

impl Processes {
    /// Containers log to `<pod>-<container>-<restarts>.log` in this folder.
    pub fn new(logs: &Path) -> Self {
        Self { logs: logs.to_owned() }
    }

    fn spawn(&self, launch: &Launch) -> std::io::Result<Child> {
        let container = container(launch);
        let words: Vec<&str> = ["/command", "/args"]
            .iter()
            .flat_map(|path| object::items(container, path))
            .filter_map(Value::as_str)
            .collect();
        let name =
            format!("{}-{}-{}", object::name(&launch.pod), launch.container, launch.restarts);
        let log = File::create(self.logs.join(format!("{name}.log")))?;
        let (program, arguments) = words.split_first().unwrap_or((&"", &[]));
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        for variable in object::items(container, "/env") {
            let value = on_host(object::text(variable, "/value"), &launch.mounts);
            command.env(object::text(variable, "/name"), value);
        }
        command.kill_on_drop(true).spawn()
    }
}

impl Runtime for Processes {
    fn start(&self, _: &World, launch: Launch) -> Box<dyn Container> {
        let uses_gpu = !launch.devices.is_empty();
        match self.spawn(&launch) {
            Ok(child) => {
                let pid = child.id();
                Box::new(Running { child: Some(child), pid, uses_gpu, ended: None })
            }
            Err(error) => {
                tracing::error!(%error, container = launch.container, "container was not started");
                let ended = Some(NOT_STARTED);
                Box::new(Running { child: None, pid: None, uses_gpu, ended })
            }
        }
    }
}

fn container(launch: &Launch) -> &Value {
    object::items(&launch.pod, "/spec/containers")
        .iter()
        .find(|container| object::text(container, "/name") == launch.container)
        .unwrap_or(&Value::Null)
}

/// A path in the container as it is on this machine: what lies below a mount is in its folder.
fn on_host(value: &str, mounts: &BTreeMap<String, PathBuf>) -> PathBuf {
    mounts
        .iter()
        .find_map(|(mount, folder)| Some(folder.join(Path::new(value).strip_prefix(mount).ok()?)))
        .unwrap_or_else(|| PathBuf::from(value))
}

/// A child process.
struct Running {
    child: Option<Child>,
    pid: Option<u32>,
    uses_gpu: bool,
    ended: Option<i32>,
}

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = self.pid.filter(|_| self.ended.is_none());
        let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let Some(pid) = pid else { return };
        if let Err(error) = rustix::process::kill_process(pid, signal) {
            tracing::debug!(%error, "process was gone before its signal");
        }
    }
}

impl Container for Running {
    fn pids(&self) -> Vec<u32> {
        self.pid.into_iter().collect()
    }

    fn gpu_processes(&self) -> BTreeMap<u32, u64> {
        const CONTEXT_BYTES: u64 = 512 << 20;
        self.pid.filter(|_| self.uses_gpu).map(|pid| (pid, CONTEXT_BYTES)).into_iter().collect()
    }

    fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    fn exited(&mut self) -> BoxFuture<'_, i32> {
        async {
            if let (None, Some(child)) = (self.ended, self.child.as_mut()) {
                let status = child.wait().await;
                self.ended = Some(status.map_or(KILLED, |status| {
                    use std::os::unix::process::ExitStatusExt;
                    let by_signal = status.signal().map(|signal| BY_SIGNAL + signal);
                    status.code().or(by_signal).unwrap_or(KILLED)
                }));
            }
            self.ended.unwrap_or(NOT_STARTED)
        }
        .boxed()
    }
}

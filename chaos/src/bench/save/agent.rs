//! The agent as a process of its own, with nothing but a store and one pod's socket: the API server
//! and the metadata service are down, as a save must bear.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::process::Child;
use tokio::process::Command;
use tokio::time::Instant;

use crate::bench::program::Taken;
use crate::bench::save::Setting;
use crate::bench::save::Store;
use crate::bench::save::bound::Bound;
use crate::crew::ApiServer;
use crate::crew::Crew;
use crate::crew::Metadata;
use crate::world::kubelet::csi;
use crate::world::kubelet::csi::Publish;

/// Memory that the agent may lend, in MiB, unless said otherwise.
pub(in crate::bench) const RING_MIB: u64 = 512;
/// An address at which nobody listens.
const NOBODY: &str = "http://127.0.0.1:9";
/// How long the agent may take until it serves a socket.
const START: Duration = Duration::from_secs(20);
/// The pod.
const POD: &str = "bench";

/// A running agent that serves one pod.
pub(in crate::bench) struct Agent {
    _child: Child,
    pid: u32,
    root: TempDir,
    bound: Option<Bound>,
}

impl Agent {
    /// Starts the program, and returns once the pod's socket is there.
    pub(in crate::bench) async fn start(
        program: &Path,
        store: &Store,
        setting: &Setting,
    ) -> anyhow::Result<Self> {
        let root = tempfile::tempdir()?;
        let log = File::create(root.path().join("agent.log"))?;
        let bound = setting.limit_mib.map(Bound::new).transpose()?;
        let command = match &bound {
            Some(bound) => bound.command(program),
            None => std::process::Command::new(program),
        };
        let child = Command::from(command)
            .arg("agent")
            .envs(environment(root.path(), store, setting))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{} was not started", program.display()))?;
        let pid = child.id().context("the agent ended at once")?;
        let agent = Self { _child: child, pid, root, bound };
        agent.publish().await?;
        Ok(agent)
    }

    /// Where the workload finds it.
    pub(in crate::bench) fn socket(&self) -> PathBuf {
        self.root.path().join(target().trim_start_matches('/')).join("agent.sock")
    }

    /// What it has taken so far.
    pub(in crate::bench) fn taken(&self) -> Taken {
        Taken::of(self.pid)
    }

    /// The most memory that its cgroup was ever charged, in MiB; none without one.
    pub(in crate::bench) fn charged_mib(&self) -> anyhow::Result<Option<f64>> {
        self.bound.as_ref().map(Bound::peak_mib).transpose()
    }

    async fn publish(&self) -> anyhow::Result<()> {
        let said = [
            ("csi.storage.k8s.io/pod.name", POD),
            ("csi.storage.k8s.io/pod.namespace", "bench"),
            ("csi.storage.k8s.io/pod.uid", POD),
            ("lifeboat.dev/checkpoint", "sdk"),
            ("lifeboat.dev/job-key", "bench"),
        ];
        let asked = Publish {
            driver: "lifeboat.dev".to_owned(),
            id: "boat".to_owned(),
            target: target(),
            read_only: false,
            context: said.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        };
        let until = Instant::now() + START;
        while let Err(error) = csi::publish(self.root.path(), &asked).await {
            if Instant::now() > until {
                let log = std::fs::read_to_string(self.root.path().join("agent.log"));
                let log = log.unwrap_or_default();
                return Err(error).with_context(|| format!("the agent made no socket:\n{log}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

fn target() -> String {
    format!("/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~csi/boat/mount")
}

fn environment(root: &Path, store: &Store, setting: &Setting) -> BTreeMap<String, String> {
    let crew = Crew {
        programs: PathBuf::new(),
        cluster: "bench".to_owned(),
        store: store.endpoint.clone(),
        chunk: format!("{}MiB", setting.chunk_mib),
        settings: BTreeMap::new(),
        metadata: Metadata::default(),
    };
    let mut environment = crew.common(&ApiServer::Plain(NOBODY.to_owned()));
    let in_flight = setting.chunk_mib * setting.connections as u64;
    let own = [
        ("LIFEBOAT_AGENT_NODE_NAME", "bench".to_owned()),
        ("LIFEBOAT_AGENT_HOST_ROOT", root.display().to_string()),
        ("LIFEBOAT_AGENT_IMDS_ENDPOINT", NOBODY.to_owned()),
        ("LIFEBOAT_AGENT_RING_BUDGET", format!("{}MiB", setting.ring_mib)),
        ("LIFEBOAT_AGENT_SLOT", format!("{}MiB", setting.chunk_mib)),
        ("LIFEBOAT_STORE_CONNECTIONS", setting.connections.to_string()),
        ("LIFEBOAT_STORE_IN_FLIGHT", format!("{in_flight}MiB")),
    ];
    environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
    environment.extend(store.trusts());
    environment
}

//! The real control plane as child processes: etcd, the API server, its controllers, kwok, Karpenter.
//!
//! Everything listens on free ports of loopback and lies in one folder. The children end with this
//! process, however it ends.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::control_plane::audit::Entry;
use crate::control_plane::child::Child;
use crate::control_plane::identity::Identity;
use crate::control_plane::layout::Layout;

pub mod audit;
pub(crate) mod child;
pub mod cloud;
pub mod identity;
pub mod stages;

mod certificates;
mod commands;
mod definitions;
mod layout;
mod probe;

/// The annotation by which a node is kwok's, and its pods with it.
pub const FAKE_NODE: (&str, &str) = ("kwok.x-k8s.io/node", "fake");

/// What is started, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder that `tests/cluster/build` filled; see [`binaries`].
    pub binaries: PathBuf,
    /// The folder that everything lies in; made where it is not there.
    pub state: PathBuf,
    /// Whether etcd waits for the disk.
    pub durability: Durability,
    /// How often nodes renew their leases.
    pub nodes: Nodes,
    /// What the audit log holds.
    pub audit: Audit,
    /// How many requests the API server takes at a time; its own 600 without.
    pub seats: Option<u32>,
    /// Karpenter, if it is there.
    pub karpenter: Option<KarpenterSettings>,
}

/// Whether etcd waits for the disk before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As in production: figures of latency count only so.
    Fsync,
    /// Faster, and enough for what is right or wrong.
    NoFsync,
}

/// How nodes of kwok say that they live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// As kubelets do: a lease of 40 s, renewed each 10 s.
    Lively,
    /// Hardly ever: a thousand nodes' leases take a third of a small API server.
    Quiet,
}

/// What the audit log holds of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// Nothing: for benches.
    Off,
    /// Who asked for what, and how it ended.
    Metadata,
    /// What was sent, too.
    Requests,
}

/// The real Karpenter over a stand-in cloud.
#[derive(Clone, Debug)]
pub struct KarpenterSettings {
    /// The instance types; without it those that lie beside the programs.
    pub instance_types: Option<PathBuf>,
    /// How long pods are gathered before nodes are bought: `BATCH_IDLE_DURATION`.
    pub batch_idle: Duration,
    /// Options beyond these, by the names that they have in its environment.
    pub environment: BTreeMap<&'static str, String>,
}

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// etcd.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// kwok, which plays kubelets.
    Kwok,
    /// Karpenter.
    Karpenter,
}

/// Why there is no control plane.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// A program is not there.
    #[error("program `{}` is not there. `make cluster-up` builds it", .0.display())]
    NotBuilt(PathBuf),
    /// A file was not read or written.
    #[error("file `{}` was not read or written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No port was free, or none could be asked for.
    #[error("no port of loopback was free")]
    Ports(#[source] std::io::Error),
    /// A certificate was not made.
    #[error("the certificates were not made")]
    Certificates(#[from] rcgen::Error),
    /// A program was not started.
    #[error("`{part}` was not started")]
    Spawn {
        /// The program.
        part: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A program ended before it was ready.
    #[error("`{part}` ended before it was ready: {last}. All of it is in `{}`", log.display())]
    Ended {
        /// The program.
        part: &'static str,
        /// The last line that it wrote.
        last: String,
        /// Where the rest is.
        log: PathBuf,
    },
    /// A program was not ready in time.
    #[error("`{part}` was not ready within {seconds} s. What it says is in `{}`", log.display())]
    NotReady {
        /// The program.
        part: &'static str,
        /// How long it was waited for.
        seconds: u64,
        /// Its log.
        log: PathBuf,
    },
    /// The API server refused, or did not answer.
    #[error("{what} was not done by the API server")]
    Api {
        /// What was asked of it.
        what: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A client was not made from a kubeconfig.
    #[error("the client of `{}` was not made", .0.display())]
    Client(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// A definition or a line of a log is not what it should be.
    #[error("`{}` is not to be read: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// A running control plane; dropping it ends it.
pub struct ControlPlane {
    settings: Settings,
    layout: Layout,
    children: BTreeMap<Part, Child>,
    client: kube::Client,
}

impl ControlPlane {
    /// Starts everything and waits until it answers.
    ///
    /// When it returns, our definitions and Karpenter's are established, and the default service
    /// account is there, so that pods can be made. Nothing is left running if it fails.
    pub async fn start(settings: Settings) -> Result<Self, ControlPlaneError> {
        let layout = Layout::prepare(&settings)?;
        let mut children = BTreeMap::new();
        for part in [Part::Etcd, Part::ApiServer] {
            children.insert(part, launch(&settings, &layout, part).await?);
        }
        let client = identity::client(&layout.kubeconfig()).await?;
        let mut plane = Self { settings, layout, children, client };
        for part in [Part::ControllerManager, Part::Scheduler, Part::Kwok] {
            plane.launch(part).await?;
        }
        definitions::apply(&plane.client, &plane.settings).await?;
        definitions::wait_for_default_account(&plane.client, &plane.layout).await?;
        if plane.settings.karpenter.is_some() {
            identity::karpenter(&plane.client, &plane.layout).await?;
            plane.launch(Part::Karpenter).await?;
        }
        Ok(plane)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// A kubeconfig of somebody else, whose token is good for a day.
    pub async fn kubeconfig_of(&self, who: &Identity) -> Result<PathBuf, ControlPlaneError> {
        identity::kubeconfig_of(&self.client, &self.layout, who).await
    }

    /// The kubeconfig of a kubelet: `node-0`, `node-1` or `node-2`, which are its nodes' names.
    pub fn kubeconfig_of_node(&self, node: &str) -> PathBuf {
        self.layout.kubeconfig_of(node)
    }

    /// A client of somebody else.
    pub async fn client_of(&self, who: &Identity) -> Result<kube::Client, ControlPlaneError> {
        identity::client(&self.kubeconfig_of(who).await?).await
    }

    /// The administrator's client.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Applies Karpenter's definitions, for a Karpenter that somebody else starts.
    pub async fn define_karpenter(&self) -> Result<(), ControlPlaneError> {
        definitions::apply_karpenters(&self.client, &self.settings).await
    }

    /// Where the API server is, as in `https://127.0.0.1:41234`.
    pub fn server(&self) -> String {
        self.layout.server()
    }

    /// Where etcd's clients are served, as in `http://127.0.0.1:41233`.
    pub fn etcd(&self) -> String {
        self.layout.etcd()
    }

    /// The file that requests are written to.
    pub fn audit_log(&self) -> PathBuf {
        self.layout.audit_log()
    }

    /// Every request so far, in the order of their ends.
    pub fn audit(&self) -> Result<Vec<Entry>, ControlPlaneError> {
        audit::read(&self.audit_log())
    }

    /// What a program wrote.
    pub fn log(&self, part: Part) -> PathBuf {
        self.layout.log(part)
    }

    /// The stand-in cloud's folder, by which tests steer it and see what was asked of it.
    pub fn cloud(&self) -> cloud::Cloud {
        cloud::Cloud::new(self.layout.cloud())
    }

    /// The process of a program that runs.
    pub fn pid(&self, part: Part) -> Option<u32> {
        self.children.get(&part).map(Child::pid)
    }

    /// Starts a program that was ended, on the ports that it had, and waits until it answers.
    pub async fn launch(&mut self, part: Part) -> Result<(), ControlPlaneError> {
        if part == Part::Kwok {
            definitions::forget_leases(&self.client).await?;
        }
        let child = launch(&self.settings, &self.layout, part).await?;
        self.children.insert(part, child);
        Ok(())
    }

    /// Asks a program to end, and kills it when it has not ended after ten seconds.
    pub async fn end(&mut self, part: Part) {
        if let Some(child) = self.children.remove(&part) {
            child.end().await;
        }
    }

    /// Kills a program at once.
    pub fn kill(&mut self, part: Part) {
        drop(self.children.remove(&part));
    }

    /// Kills a program and starts it again.
    pub async fn restart(&mut self, part: Part) -> Result<(), ControlPlaneError> {
        self.kill(part);
        self.launch(part).await
    }

    /// Stops a program where it stands, without ending it.
    pub fn freeze(&self, part: Part) {
        self.signal(part, Signal::STOP);
    }

    /// Lets a frozen program go on.
    pub fn thaw(&self, part: Part) {
        self.signal(part, Signal::CONT);
    }

    fn signal(&self, part: Part, signal: Signal) {
        if let Some(child) = self.children.get(&part) {
            child.signal(signal);
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Who leans on others first.
        while let Some((_, child)) = self.children.pop_last() {
            drop(child);
        }
    }
}

impl Settings {
    /// What most tests want: no Karpenter, no waiting for the disk, who did what in the audit log.
    pub fn new(binaries: &Path, state: &Path) -> Self {
        Self {
            binaries: binaries.to_owned(),
            state: state.to_owned(),
            durability: Durability::NoFsync,
            nodes: Nodes::Lively,
            audit: Audit::Metadata,
            seats: None,
            karpenter: None,
        }
    }

    /// The same with Karpenter.
    #[must_use]
    pub fn with_karpenter(self) -> Self {
        Self { karpenter: Some(KarpenterSettings::new()), ..self }
    }
}

impl KarpenterSettings {
    /// The types that lie beside the programs, and Karpenter's own pace.
    #[expect(clippy::new_without_default, reason = "a pace is no empty value")]
    pub fn new() -> Self {
        Self {
            instance_types: None,
            batch_idle: Duration::from_secs(1),
            environment: BTreeMap::new(),
        }
    }
}

impl Part {
    /// Every part, in the order of their start.
    pub const ALL: [Self; 6] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kwok,
        Self::Karpenter,
    ];

    /// The name of its program.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kwok => "kwok",
            Self::Karpenter => "karpenter",
        }
    }
}

/// The folder of the programs: `LIFEBOAT_CLUSTER_BIN`, or what `tests/cluster/build` built last.
///
/// `None` where they were not built.
pub fn binaries() -> Option<PathBuf> {
    let named = std::env::var_os("LIFEBOAT_CLUSTER_BIN").map(PathBuf::from);
    named
        .or_else(|| Some(cache()?.join("current")))
        .filter(|folder| folder.join(Part::ApiServer.name()).exists())
}

/// The folder of all that is built from Go modules: `LIFEBOAT_CLUSTER_CACHE`, or `target/cluster`.
pub fn cache() -> Option<PathBuf> {
    let named = std::env::var_os("LIFEBOAT_CLUSTER_CACHE").map(PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    named.or_else(|| Some(root?.join("target/cluster")))
}

async fn launch(
    settings: &Settings,
    layout: &Layout,
    part: Part,
) -> Result<Child, ControlPlaneError> {
    let command = commands::command(settings, layout, part);
    let mut child = Child::spawn(part.name(), command, &layout.log(part))?;
    layout::write(&layout.pid(part), &child.pid().to_string())?;
    child.wait_until(&probe::of(layout, part)).await?;
    Ok(child)
}

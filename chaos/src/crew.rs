//! Our programs as processes: what their environment tells them, and how they are started.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use anyhow::Context;
use futures::FutureExt;
use tokio::process::Child;
use tokio::process::Command;

use crate::programs;
use crate::serve;
use crate::serve::Served;
use crate::wire;
use crate::world::World;
use crate::world::kubelet::Side;
use crate::world::runtime::Launch;

/// The metadata services of the instances, by node.
pub type Metadata = Arc<Mutex<BTreeMap<String, Served>>>;

/// How a program reaches an API server.
#[derive(Clone, Debug)]
pub enum ApiServer {
    /// A simulated one, in the clear, at this URL.
    Plain(String),
    /// The one that a kubeconfig names.
    Kubeconfig(PathBuf),
}

/// A queue as a program is told of it.
#[derive(Clone, Debug)]
pub struct QueueAddress {
    /// Where SQS answers.
    pub endpoint: String,
    /// The account that the queue is in.
    pub account: String,
}

/// What our programs are started with, whichever they are.
#[derive(Clone)]
pub struct Crew {
    /// The folder that the programs lie in.
    pub programs: PathBuf,
    /// The name of the cluster.
    pub cluster: String,
    /// Where S3 answers.
    pub store: String,
    /// Size of a chunk and of a slot.
    pub chunk: String,
    /// Settings beyond these, as the environment carries them.
    pub settings: BTreeMap<String, String>,
    /// Where the metadata services answer.
    pub metadata: Metadata,
}

/// The folder of our programs as cargo builds them for a test, two above it.
///
/// # Errors
/// What is not built, and what builds it.
pub fn built() -> Result<PathBuf, String> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = test.ancestors().nth(2).ok_or("a test lies in no target folder")?.to_owned();
    for program in ["lifeboat", "examples/trainer"] {
        if !folder.join(program).exists() {
            return Err(format!("`{program}` is not built (`make build` does it)"));
        }
    }
    Ok(folder)
}

/// Starts a controller with this environment, whose output is added to a file.
pub fn start_controller(
    program: &Path,
    environment: impl IntoIterator<Item = (String, String)>,
    log: &Path,
) -> anyhow::Result<Child> {
    start(Command::new(program).arg("controller").envs(environment), log)
}

/// Starts a program that ends with this process, and whose output is added to a file.
pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let started = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn();
    started.with_context(|| format!("{} was not started", command.as_std().get_program().display()))
}

impl Crew {
    /// Starts one replica of the controller; it ends with what is returned.
    pub fn controller(
        &self,
        (identity, server): (&str, &ApiServer),
        queue: &QueueAddress,
        log: &Path,
    ) -> anyhow::Result<Child> {
        let QueueAddress { endpoint, account } = queue;
        let mut environment = self.common(server);
        environment.extend([
            ("LIFEBOAT_LEASE_IDENTITY".to_owned(), identity.to_owned()),
            ("LIFEBOAT_QUEUE_URL".to_owned(), format!("{endpoint}/{account}/{}", programs::QUEUE)),
            ("LIFEBOAT_QUEUE_ENDPOINT".to_owned(), endpoint.clone()),
        ]);
        environment.extend(self.settings.clone());
        start_controller(&self.programs.join("lifeboat"), environment, log)
    }

    /// The command and the environment of the agent in a container.
    pub fn agent(
        &self,
        launch: &Launch,
        server: &ApiServer,
    ) -> (Vec<String>, BTreeMap<String, String>) {
        let metadata = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = metadata.get(&launch.node).map(Served::url).unwrap_or_default();
        let library = launch.root.join(programs::NVML).join("libnvidia-ml.so.1");
        let mut environment = self.common(server);
        let own = [
            ("LIFEBOAT_AGENT_NODE_NAME", launch.node.clone()),
            ("LIFEBOAT_AGENT_HOST_ROOT", launch.root.display().to_string()),
            ("LIFEBOAT_AGENT_IMDS_ENDPOINT", endpoint),
            ("LIFEBOAT_AGENT_NVML_LIBRARY", library.display().to_string()),
            ("LIFEBOAT_AGENT_RING_BUDGET", "512MiB".to_owned()),
            ("LIFEBOAT_AGENT_SLOT", self.chunk.clone()),
        ];
        environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
        environment.extend(self.settings.clone());
        let program = self.programs.join("lifeboat").display().to_string();
        (vec![program, "agent".to_owned()], environment)
    }

    /// Settings that controller and agent share, as the environment carries them.
    pub(crate) fn common(&self, server: &ApiServer) -> BTreeMap<String, String> {
        let server = match server {
            ApiServer::Plain(url) => ("LIFEBOAT_KUBERNETES_SERVER", url.clone()),
            ApiServer::Kubeconfig(path) => ("KUBECONFIG", path.display().to_string()),
        };
        let shared = [
            server,
            ("LIFEBOAT_STORE_CHUNK", self.chunk.clone()),
            ("LIFEBOAT_CLUSTER", self.cluster.clone()),
            ("LIFEBOAT_REGION", serve::REGION.to_owned()),
            ("LIFEBOAT_STORE_BUCKET", programs::BUCKET.to_owned()),
            ("LIFEBOAT_STORE_ENDPOINT", self.store.clone()),
            ("LIFEBOAT_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
            ("LIFEBOAT_LOG_FORMAT", "text".to_owned()),
            ("AWS_ACCESS_KEY_ID", "demo".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "demo".to_owned()),
        ];
        shared.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Serves each instance's metadata beside its kubelet, and notes where.
pub fn metadata(all: &Metadata) -> Side {
    let all = Arc::clone(all);
    Arc::new(move |world, node, _| serve_metadata(world, node, Arc::clone(&all)).boxed())
}

/// The metadata service of a node's instance, for as long as the node lives.
async fn serve_metadata(world: World, node: String, all: Metadata) {
    let instance = world.read(|state| state.machines.get(&node).map(|it| it.instance.clone()));
    let Some(instance) = instance else { return };
    match serve::serve(wire::imds::imds(world, &instance)).await {
        Ok(served) => {
            all.lock().unwrap_or_else(PoisonError::into_inner).insert(node, served);
            std::future::pending::<()>().await;
        }
        Err(error) => tracing::error!(%error, node, "the metadata service is not served"),
    }
}

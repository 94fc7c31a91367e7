//! The programs of the comparison: where they lie, what is missing, and how each is started.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;
use tokio::process::Command;

use crate::bench::beside_us;
use crate::bench::peers::subject::Subject;
use crate::bench::peers::subject::Who;
use crate::control_plane;
use crate::programs;
use crate::serve;

/// Where NTH looks for who it is; it takes no kubeconfig.
const ACCOUNT: &str = "/run/secrets/kubernetes.io/serviceaccount";

/// Puts the account's files where they are looked for, in a file system that nobody else sees, and
/// becomes the program.
const IN_CLUSTER: &str = r#"set -e
mount -t tmpfs none /run
mkdir -p "$ACCOUNT"
printf %s "$ACCOUNT_TOKEN" >"$ACCOUNT/token"
printf %s "$ACCOUNT_AUTHORITY" >"$ACCOUNT/ca.crt"
printf %s lifeboat-system >"$ACCOUNT/namespace"
unset ACCOUNT ACCOUNT_TOKEN ACCOUNT_AUTHORITY
exec "$0""#;

/// Where the programs lie.
pub(super) struct Programs {
    lifeboat: PathBuf,
    /// The folder that `tests/cluster/peers/build` filled.
    peers: PathBuf,
    /// The folder that `tests/cluster/build` filled.
    cluster: PathBuf,
}

/// What a program that is measured needs to know of the world.
pub(super) struct Surroundings<'a> {
    /// Who it is for the API server.
    pub(super) kubeconfig: &'a Path,
    /// Our controller's environment for queue and bucket.
    pub(super) doors: BTreeMap<&'static str, String>,
    /// Where SQS and EC2 are served, as `http://127.0.0.1:4566`.
    pub(super) aws: String,
    /// The account that the queue is of.
    pub(super) account: String,
    /// A folder for what it reads.
    pub(super) folder: &'a Path,
}

impl Programs {
    /// Finds them; what is missing is said in one line, with what to do.
    pub(super) fn find(subjects: &[Subject]) -> anyhow::Result<Self> {
        let cluster = control_plane::binaries();
        let cluster = cluster.context("the control plane is not built: `make cluster-build`")?;
        let cache = std::env::var_os("LIFEBOAT_CLUSTER_CACHE").map(PathBuf::from);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let cache = cache.or_else(|| Some(root?.join("target/cluster")));
        let cached = || Some(cache?.join("peers"));
        let named = std::env::var_os("LIFEBOAT_PEERS_BIN").map(PathBuf::from);
        let peers = named.or_else(cached).context("this program lies in no repository")?;
        let found = Self { lifeboat: beside_us("lifeboat")?, peers, cluster };
        for who in subjects.iter().map(|subject| subject.who) {
            let program = found.program(who);
            if !program.exists() {
                anyhow::bail!("`{}` is not there: {}", program.display(), cure(who));
            }
        }
        Ok(found)
    }

    fn program(&self, who: Who) -> PathBuf {
        match who {
            // The bare loop is within this program, and measured on the control plane.
            Who::Floor => self.cluster.clone(),
            Who::Lifeboat => self.lifeboat.clone(),
            Who::Nth => self.peers.join("nth"),
            Who::Karpenter => self.peers.join("karpenter"),
        }
    }

    /// The command of one replica.
    pub(super) fn command(
        &self,
        subject: Subject,
        around: &Surroundings<'_>,
    ) -> anyhow::Result<Command> {
        let program = self.program(subject.who);
        let mut command = match subject.who {
            Who::Floor => anyhow::bail!("the bare loop is no program"),
            Who::Lifeboat => lifeboat(&program, around),
            Who::Nth => handler(&program, around)?,
            Who::Karpenter => karpenter(&program, around, &self.types(around)?),
        };
        command.envs(subject.settings());
        Ok(command)
    }

    /// The instance types of the stand-in cloud, in the zones of our nodes.
    fn types(&self, around: &Surroundings<'_>) -> anyhow::Result<PathBuf> {
        let from = self.cluster.join("instance-types.json");
        let types = fs::read_to_string(&from).with_context(|| from.display().to_string())?;
        let to = around.folder.join("instance-types.json");
        fs::write(&to, types.replace("us-east-1", serve::REGION))?;
        Ok(to)
    }
}

fn cure(who: Who) -> &'static str {
    let go = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("go").is_file()));
    match who {
        Who::Floor => "`make cluster-build` builds it",
        Who::Lifeboat => "`make build` builds it",
        Who::Nth | Who::Karpenter if go => "`make peers-build` builds it, in some minutes",
        Who::Nth | Who::Karpenter => "install Go, then `make peers-build` builds it",
    }
}

fn lifeboat(program: &Path, around: &Surroundings<'_>) -> Command {
    let mut command = Command::new(program);
    command.arg("controller").envs(&around.doors).env("KUBECONFIG", around.kubeconfig).envs([
        ("LIFEBOAT_CLUSTER", "bench"),
        ("LIFEBOAT_ADMIN_LISTEN", "127.0.0.1:0"),
        ("LIFEBOAT_LEASE_IDENTITY", "controller-0"),
    ]);
    command
}

fn handler(program: &Path, around: &Surroundings<'_>) -> anyhow::Result<Command> {
    let config: Value = serde_json::from_str(&fs::read_to_string(around.kubeconfig)?)?;
    let cluster = &config["clusters"][0]["cluster"];
    let server = cluster["server"].as_str().and_then(|url| url.strip_prefix("https://"));
    let (host, port) = server.and_then(|at| at.split_once(':')).context("the server's port")?;
    let authority = cluster["certificate-authority"].as_str().context("the authority")?;
    let token = config["users"][0]["user"]["token"].as_str().context("the account's token")?;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", IN_CLUSTER]).arg(program);
    command.envs(aws(around)).envs([
        ("ACCOUNT", ACCOUNT.to_owned()),
        ("ACCOUNT_TOKEN", token.to_owned()),
        ("ACCOUNT_AUTHORITY", fs::read_to_string(authority)?),
        ("KUBERNETES_SERVICE_HOST", host.to_owned()),
        ("KUBERNETES_SERVICE_PORT", port.to_owned()),
        ("NODE_NAME", "bench".to_owned()),
        ("ENABLE_SQS_TERMINATION_DRAINING", "true".to_owned()),
        ("QUEUE_URL", format!("{}/{}/{}", around.aws, around.account, programs::QUEUE)),
        ("AWS_ENDPOINT", around.aws.clone()),
    ]);
    Ok(command)
}

fn karpenter(program: &Path, around: &Surroundings<'_>, types: &Path) -> Command {
    let mut command = Command::new(program);
    let cloud: OsString = around.folder.join("cloud").into();
    command.envs(aws(around)).env("KUBECONFIG", around.kubeconfig).env("CLOUD", cloud);
    command.env("INSTANCE_TYPES", types).env("AWS_ENDPOINT_URL_SQS", &around.aws).envs([
        ("CLUSTER_NAME", "bench"),
        ("INTERRUPTION_QUEUE", programs::QUEUE),
        ("KARPENTER_SERVICE", "karpenter"),
        ("SYSTEM_NAMESPACE", "lifeboat-system"),
        ("DISABLE_LEADER_ELECTION", "true"),
        ("METRICS_PORT", "0"),
        ("HEALTH_PROBE_PORT", "0"),
    ]);
    command
}

/// What AWS's libraries ask for.
fn aws(around: &Surroundings<'_>) -> BTreeMap<&'static str, String> {
    let region = serve::REGION.to_owned();
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let mut all: BTreeMap<_, _> = keys.map(|key| (key, around.account.clone())).into();
    all.insert("AWS_REGION", region);
    all
}

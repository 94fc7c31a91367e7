//! The folder of a control plane: its ports, files, certificates and tokens.

use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;

use serde_json::json;

use super::Audit;
use super::ControlPlaneError;
use super::Part;
use super::Settings;
use super::certificates;
use super::stages;

/// Where everything of one control plane lies.
pub(super) struct Layout {
    state: PathBuf,
    pub(super) ports: Ports,
}

/// Ports of loopback, one for each listener.
pub(super) struct Ports {
    pub(super) etcd: u16,
    pub(super) etcd_peers: u16,
    pub(super) api_server: u16,
    pub(super) controller_manager: u16,
    pub(super) scheduler: u16,
    pub(super) kwok: u16,
    pub(super) karpenter_metrics: u16,
    pub(super) karpenter_health: u16,
}

/// Who has a token of its own that the API server reads at its start.
const STATIC: &[(&str, &str, &str)] = &[
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    // It stands for kubelets of any number, which no flow control holds back as one.
    ("kwok", "kwok", "system:masters"),
    ("node-0", "system:node:node-0", "system:nodes"),
    ("node-1", "system:node:node-1", "system:nodes"),
    ("node-2", "system:node:node-2", "system:nodes"),
];

impl Layout {
    /// Makes the folder, and writes what the programs read at their start.
    pub(super) fn prepare(settings: &Settings) -> Result<Self, ControlPlaneError> {
        let state = &settings.state;
        make(&state.join("log"))?;
        make(&state.join("pki"))?;
        make(&state.join("cloud"))?;
        make(&state.join("pids"))?;
        let state = state.canonicalize().map_err(|source| at(state, source))?;
        let layout = Self { state, ports: Ports::free().map_err(ControlPlaneError::Ports)? };
        certificates::write(&layout.pki())?;
        layout.write_tokens()?;
        write(&layout.audit_policy(), &policy(settings.audit))?;
        write(&layout.stages(), &stages::configuration(&settings.binaries)?)?;
        Ok(layout)
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of("admin")
    }

    pub(super) fn kubeconfig_of(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.kubeconfig"))
    }

    pub(super) fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.api_server)
    }

    pub(super) fn etcd(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.etcd)
    }

    pub(super) fn etcd_data(&self) -> PathBuf {
        self.state.join("etcd")
    }

    pub(super) fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    pub(super) fn tokens(&self) -> PathBuf {
        self.state.join("tokens.csv")
    }

    pub(super) fn audit_policy(&self) -> PathBuf {
        self.state.join("audit-policy.json")
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.state.join("audit.log")
    }

    pub(super) fn stages(&self) -> PathBuf {
        self.state.join("stages.yaml")
    }

    pub(super) fn cloud(&self) -> PathBuf {
        self.state.join("cloud")
    }

    pub(super) fn log(&self, part: Part) -> PathBuf {
        self.state.join("log").join(format!("{}.log", part.name()))
    }

    pub(super) fn pid(&self, part: Part) -> PathBuf {
        self.state.join("pids").join(part.name())
    }

    /// Where programs are started: by it they are told from others.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// Writes a kubeconfig with this token, as `<name>.kubeconfig`.
    pub(super) fn write_kubeconfig(
        &self,
        name: &str,
        token: &str,
    ) -> Result<PathBuf, ControlPlaneError> {
        let authority = self.pki().join("ca.crt");
        let cluster = json!({"server": self.server(), "certificate-authority": authority});
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lifeboat",
            "clusters": [{"name": "lifeboat", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "lifeboat", "context": {"cluster": "lifeboat", "user": name}}],
        });
        let path = self.kubeconfig_of(name);
        write(&path, &format!("{text:#}\n"))?;
        Ok(path)
    }

    fn write_tokens(&self) -> Result<(), ControlPlaneError> {
        let mut lines = Vec::new();
        for (number, (name, user, group)) in STATIC.iter().enumerate() {
            let token = format!("{:032x}", fastrand::u128(..));
            self.write_kubeconfig(name, &token)?;
            lines.push(format!("{token},{user},{number},\"{group}\"\n"));
        }
        write(&self.tokens(), &lines.concat())
    }
}

impl Ports {
    /// Asks for all of them before any is given back, so that no two are the same.
    fn free() -> std::io::Result<Self> {
        let mut held = Vec::new();
        let mut next = || {
            let listener = bind()?;
            let port = listener.local_addr()?.port();
            held.push(listener);
            std::io::Result::Ok(port)
        };
        Ok(Self {
            etcd: next()?,
            etcd_peers: next()?,
            api_server: next()?,
            controller_manager: next()?,
            scheduler: next()?,
            kwok: next()?,
            karpenter_metrics: next()?,
            karpenter_health: next()?,
        })
    }
}

/// Binds a free port below those that the kernel gives to connections: one of these would be taken
/// by any client before its program has started.
fn bind() -> std::io::Result<TcpListener> {
    const BELOW_CONNECTIONS: std::ops::Range<u16> = 15_000..32_000;
    const TRIES: usize = 100;
    let free = (0..TRIES)
        .find_map(|_| TcpListener::bind(("127.0.0.1", fastrand::u16(BELOW_CONNECTIONS))).ok());
    free.ok_or_else(|| std::io::ErrorKind::AddrInUse.into())
}

/// Writes a file whole.
pub(super) fn write(path: &Path, text: &str) -> Result<(), ControlPlaneError> {
    std::fs::write(path, text).map_err(|source| at(path, source))
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String, ControlPlaneError> {
    std::fs::read_to_string(path).map_err(|source| at(path, source))
}

fn make(folder: &Path) -> Result<(), ControlPlaneError> {
    std::fs::create_dir_all(folder).map_err(|source| at(folder, source))
}

fn at(path: &Path, source: std::io::Error) -> ControlPlaneError {
    ControlPlaneError::File { path: path.to_owned(), source }
}

/// What the API server writes to its audit log: neither probes nor leases of nodes.
fn policy(audit: Audit) -> String {
    let level = match audit {
        Audit::Off => "None",
        Audit::Metadata => "Metadata",
        Audit::Requests => "Request",
    };
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "omitManagedFields": true,
        "rules": [
            {"level": "None", "nonResourceURLs": ["*"]},
            {"level": "None", "namespaces": ["kube-node-lease"]},
            {"level": level},
        ],
    });
    format!("{policy:#}\n")
}

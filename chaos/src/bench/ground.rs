//! Where a bench is run: an API server with its etcd.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use kube::config::KubeConfigOptions;
use kube::config::Kubeconfig;
use serde_json::json;
use tempfile::TempDir;

use crate::bench::fleet;
use crate::control_plane;
use crate::control_plane::Audit;
use crate::control_plane::ControlPlane;
use crate::control_plane::Durability;
use crate::control_plane::Nodes;
use crate::control_plane::Part;
use crate::control_plane::Settings;
use crate::control_plane::audit::Entry;
use crate::control_plane::identity::Identity;

/// The namespace and the service account of the controller.
const ACCOUNT: (&str, &str) = ("lifeboat-system", "lifeboat-controller");

/// Why nothing goes wrong on somebody else's server.
const OURS: &str = "only an API server that the bench started is made to suffer";

/// An API server.
pub(super) struct Ground {
    /// Who makes and counts things.
    admin: PathBuf,
    /// Who is measured: the controller and the bare loop.
    measured: PathBuf,
    /// Where etcd counts, if that is known.
    pub(super) etcd: Option<String>,
    /// What a reader of the figures must know of it.
    pub(super) described: String,
    plane: Option<(ControlPlane, TempDir)>,
}

impl Ground {
    /// A server that is there.
    pub(super) fn there(kubeconfig: &Path, etcd: Option<&str>) -> Self {
        Self {
            admin: kubeconfig.to_owned(),
            measured: kubeconfig.to_owned(),
            etcd: etcd.map(str::to_owned),
            described: "an API server that was there".to_owned(),
            plane: None,
        }
    }

    /// A server of our own, which ends with this.
    pub(super) async fn ours(durability: Durability, audit: Audit) -> anyhow::Result<Self> {
        let binaries = control_plane::binaries();
        let binaries = binaries.context("the control plane is not built: `make cluster-up`")?;
        let folder = tempfile::tempdir()?;
        let settings = Settings {
            durability,
            nodes: Nodes::Quiet,
            audit,
            ..Settings::new(&binaries, folder.path())
        };
        let plane = ControlPlane::start(settings).await?;
        let account = Identity::account(ACCOUNT.0, ACCOUNT.1);
        let measured = plane.kubeconfig_of(&account).await?;
        bind(&plane.client()).await?;
        let synced = match durability {
            Durability::Fsync => "etcd waits for the disk",
            Durability::NoFsync => "etcd does NOT wait for the disk",
        };
        Ok(Self {
            admin: plane.kubeconfig(),
            measured,
            etcd: Some(plane.etcd()),
            described: format!("an API server of our own; {synced}"),
            plane: Some((plane, folder)),
        })
    }

    /// What a program that is measured needs to reach it.
    pub(super) fn kubeconfig(&self) -> &Path {
        &self.measured
    }

    /// A client with connections of its own, for who makes and counts things.
    pub(super) async fn admin(&self) -> anyhow::Result<kube::Client> {
        client(&self.admin).await
    }

    /// The same, for who is measured.
    pub(super) async fn client(&self) -> anyhow::Result<kube::Client> {
        client(&self.measured).await
    }

    /// Makes a server of our own know what Karpenter's objects are.
    pub(super) async fn define_karpenter(&self) -> anyhow::Result<()> {
        if let Some((plane, _)) = &self.plane {
            plane.define_karpenter().await?;
        }
        Ok(())
    }

    /// What who is measured has asked of a server of our own since then, without watches; nothing
    /// where the server keeps no audit log.
    pub(super) fn asked_since(&self, since: Timestamp) -> anyhow::Result<Vec<Entry>> {
        let Some((plane, _)) = &self.plane else { return Ok(Vec::new()) };
        let user = format!("system:serviceaccount:{}:{}", ACCOUNT.0, ACCOUNT.1);
        let asked = plane
            .audit()?
            .into_iter()
            .filter(|entry| entry.user == user && entry.verb != "watch" && entry.received >= since);
        Ok(asked.collect())
    }

    /// Kills the API server of our own and starts it again.
    pub(super) async fn restart_server(&mut self) -> anyhow::Result<()> {
        let plane = self.plane.as_mut().context(OURS)?;
        Ok(plane.0.restart(Part::ApiServer).await?)
    }

    /// Lets etcd of our own stand still again and again, for as long as this is polled.
    pub(super) async fn slow_etcd(&self, stands: Duration, works: Duration) -> anyhow::Result<()> {
        let (plane, _) = self.plane.as_ref().context(OURS)?;
        loop {
            plane.freeze(Part::Etcd);
            tokio::time::sleep(stands).await;
            plane.thaw(Part::Etcd);
            tokio::time::sleep(works).await;
        }
    }

    /// Lets etcd go on, whatever it was stopped by.
    pub(super) fn thaw_etcd(&self) {
        if let Some((plane, _)) = &self.plane {
            plane.thaw(Part::Etcd);
        }
    }

    /// Whether everything goes away with it.
    pub(super) fn is_ours(&self) -> bool {
        self.plane.is_some()
    }
}

async fn client(kubeconfig: &Path) -> anyhow::Result<kube::Client> {
    let at = || kubeconfig.display().to_string();
    let read = Kubeconfig::read_from(kubeconfig).with_context(at)?;
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(read, &options).await.with_context(at)?;
    config.default_retry = false;
    kube::Client::try_from(config).with_context(at)
}

/// What is measured is no administrator: those are never held back by the server.
async fn bind(client: &kube::Client) -> anyhow::Result<()> {
    let (namespace, name) = ACCOUNT;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": { "name": name },
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "cluster-admin",
        },
        "subjects": [{ "kind": "ServiceAccount", "namespace": namespace, "name": name }],
    });
    fleet::post(client, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await
}

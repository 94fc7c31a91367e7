//! Where a bench is run: an API server with its etcd.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use kube::config::KubeConfigOptions;
use kube::config::Kubeconfig;

/// An API server.
pub(super) struct Ground {
    kubeconfig: PathBuf,
    /// Where etcd counts, if that is known.
    pub(super) etcd: Option<String>,
    /// What a reader of the figures must know of it.
    pub(super) described: String,
}

impl Ground {
    /// A server that is there.
    pub(super) fn there(kubeconfig: &Path, etcd: Option<&str>) -> Self {
        Self {
            kubeconfig: kubeconfig.to_owned(),
            etcd: etcd.map(str::to_owned),
            described: "an API server that was there".to_owned(),
        }
    }

    /// What a program needs to reach it.
    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A client with connections of its own.
    pub(super) async fn client(&self) -> anyhow::Result<kube::Client> {
        let at = || self.kubeconfig.display().to_string();
        let read = Kubeconfig::read_from(&self.kubeconfig).with_context(at)?;
        let options = KubeConfigOptions::default();
        let mut config =
            kube::Config::from_custom_kubeconfig(read, &options).await.with_context(at)?;
        config.default_retry = false;
        kube::Client::try_from(config).with_context(at)
    }
}

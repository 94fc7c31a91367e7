//! Who speaks to the API server: service accounts with tokens of their own.

use std::path::Path;
use std::path::PathBuf;

use k8s_openapi::api::authentication::v1::BoundObjectReference;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::authentication::v1::TokenRequestSpec;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::ResourceExt;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use kube::config::KubeConfigOptions;
use kube::config::Kubeconfig;
use serde_json::json;

use super::ControlPlaneError;
use super::layout::Layout;

/// How long a token is good for.
const DAY_SECONDS: i64 = 86_400;

/// Somebody with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A service account; made, with its namespace, where it is not there.
    ServiceAccount {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A pod that runs: a token of its service account, bound to it, so that it names its node.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Identity {
    /// A service account.
    pub fn account(namespace: &str, name: &str) -> Self {
        Self::ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// A pod that is there.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// A client of whom `kubeconfig` names. It tries nothing again by itself.
pub(super) async fn client(kubeconfig: &Path) -> Result<kube::Client, ControlPlaneError> {
    // Whoever was first, the provider is the same.
    drop(rustls::crypto::ring::default_provider().install_default());
    let failed = |error| ControlPlaneError::Client(kubeconfig.to_owned(), error);
    let read = Kubeconfig::read_from(kubeconfig).map_err(|error| failed(error.into()))?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(read, &options).await;
    let mut config = config.map_err(|error| failed(error.into()))?;
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| failed(error.into()))
}

/// Writes the kubeconfig of `who`.
pub(super) async fn kubeconfig_of(
    client: &kube::Client,
    layout: &Layout,
    who: &Identity,
) -> Result<PathBuf, ControlPlaneError> {
    let (file, token) = match who {
        Identity::ServiceAccount { namespace, name } => {
            ensure(client, namespace, name).await?;
            (format!("{namespace}.{name}"), token(client, namespace, name, None).await?)
        }
        Identity::Pod { namespace, name } => {
            let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
            let what = || format!("reading pod `{namespace}/{name}`");
            let pod = pods.get(name).await.map_err(|source| refused(what(), source))?;
            let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
            let account = account.unwrap_or_else(|| "default".to_owned());
            let bound = Some(bound_to(&pod));
            (format!("{namespace}.{name}.pod"), token(client, namespace, &account, bound).await?)
        }
    };
    layout.write_kubeconfig(&file, &token)
}

/// Makes Karpenter's service account, which may do everything, and its kubeconfig.
///
/// A service account and not an administrator, since the API server never holds those back.
pub(super) async fn karpenter(
    client: &kube::Client,
    layout: &Layout,
) -> Result<(), ControlPlaneError> {
    ensure(client, "kube-system", "karpenter").await?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "karpenter"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "cluster-admin",
        },
        "subjects": [
            {"kind": "ServiceAccount", "namespace": "kube-system", "name": "karpenter"},
        ],
    });
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    let bound = bindings.patch("karpenter", &manager(), &Patch::Apply(&binding)).await;
    bound.map_err(|source| refused("binding Karpenter to its role".to_owned(), source))?;
    let token = token(client, "kube-system", "karpenter", None).await?;
    layout.write_kubeconfig("karpenter", &token)?;
    Ok(())
}

async fn ensure(
    client: &kube::Client,
    namespace: &str,
    name: &str,
) -> Result<(), ControlPlaneError> {
    let what = || format!("making service account `{namespace}/{name}`");
    let spaces: Api<Namespace> = Api::all(client.clone());
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    let made = spaces.patch(namespace, &manager(), &Patch::Apply(&space)).await;
    made.map_err(|source| refused(what(), source))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    let made = accounts.patch(name, &manager(), &Patch::Apply(&account)).await;
    made.map_err(|source| refused(what(), source))?;
    Ok(())
}

async fn token(
    client: &kube::Client,
    namespace: &str,
    account: &str,
    bound: Option<BoundObjectReference>,
) -> Result<String, ControlPlaneError> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: Vec::new(),
            bound_object_ref: bound,
            expiration_seconds: Some(DAY_SECONDS),
        },
        ..TokenRequest::default()
    };
    let given = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let what = || format!("a token of service account `{namespace}/{account}`");
    let given = given.map_err(|source| refused(what(), source))?;
    Ok(given.status.map(|status| status.token).unwrap_or_default())
}

fn bound_to(pod: &Pod) -> BoundObjectReference {
    BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    }
}

fn manager() -> PatchParams {
    PatchParams::apply("lifeboat-chaos").force()
}

fn refused(what: String, source: kube::Error) -> ControlPlaneError {
    ControlPlaneError::Api { what, source: Box::new(source) }
}

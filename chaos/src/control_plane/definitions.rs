//! Gives the API server the definitions of our records and of Karpenter's, and waits for them.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::ResourceExt;
use kube::api::DeleteParams;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;
use tokio::time::Instant;

use super::ControlPlaneError;
use super::Part;
use super::Settings;
use super::layout;
use super::layout::Layout;

/// How long a definition may take until it is served.
const SERVED: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Applies ours, and Karpenter's where it is to run, and returns when each is served.
pub(super) async fn apply(
    client: &kube::Client,
    settings: &Settings,
) -> Result<(), ControlPlaneError> {
    establish_all(client, &lifeboat::commands::crds::definitions().map(|(_, one)| one)).await?;
    if settings.karpenter.is_some() {
        apply_karpenters(client, settings).await?;
    }
    Ok(())
}

/// Applies Karpenter's, and returns when each is served.
pub(super) async fn apply_karpenters(
    client: &kube::Client,
    settings: &Settings,
) -> Result<(), ControlPlaneError> {
    establish_all(client, &upstream(&settings.binaries.join("crds"))?).await
}

async fn establish_all(
    client: &kube::Client,
    all: &[CustomResourceDefinition],
) -> Result<(), ControlPlaneError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let applied: FuturesUnordered<_> =
        all.iter().map(|definition| establish(&api, definition)).collect();
    applied.try_collect().await
}

/// Waits until pods can be made in the default namespace.
pub(super) async fn wait_for_default_account(
    client: &kube::Client,
    layout: &Layout,
) -> Result<(), ControlPlaneError> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let until = Instant::now() + SERVED;
    while api.get("default").await.is_err() {
        if Instant::now() >= until {
            let part = Part::ControllerManager;
            let (name, log) = (part.name(), layout.log(part));
            return Err(ControlPlaneError::NotReady { part: name, seconds: SERVED.as_secs(), log });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Deletes the leases of nodes: a new kwok is another holder, and waits for the old one's to run out.
pub(super) async fn forget_leases(client: &kube::Client) -> Result<(), ControlPlaneError> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let deleted = leases.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
    let what = || "deleting the leases of nodes".to_owned();
    deleted.map_err(|source| ControlPlaneError::Api { what: what(), source: Box::new(source) })?;
    Ok(())
}

async fn establish(
    api: &Api<CustomResourceDefinition>,
    definition: &CustomResourceDefinition,
) -> Result<(), ControlPlaneError> {
    let name = definition.name_any();
    let failed = |source| ControlPlaneError::Api {
        what: format!("definition `{name}`"),
        source: Box::new(source),
    };
    let parameters = PatchParams::apply("lifeboat-chaos").force();
    api.patch(&name, &parameters, &Patch::Apply(definition)).await.map_err(failed)?;
    let until = Instant::now() + SERVED;
    while !is_established(&api.get(&name).await.map_err(failed)?) && Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Established" && one.status == "True")
}

/// Karpenter's definitions, as its module brings them.
fn upstream(folder: &Path) -> Result<Vec<CustomResourceDefinition>, ControlPlaneError> {
    let source = |source| ControlPlaneError::File { path: folder.to_owned(), source };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(source)?;
    files.sort();
    let definitions = files.iter().map(|path| {
        let parsed = serde_yaml_ng::from_str(&layout::read(path)?);
        let unreadable = |error: serde_yaml_ng::Error| ControlPlaneError::Unreadable {
            path: path.clone(),
            why: error.to_string(),
        };
        parsed.map_err(unreadable)
    });
    definitions.collect()
}

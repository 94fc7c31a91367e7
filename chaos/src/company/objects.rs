//! Objects on a real API server, read and written as plain JSON.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::Client;
use kube::ResourceExt;
use kube::api::DeleteParams;
use kube::api::DynamicObject;
use kube::api::EvictParams;
use kube::api::ListParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::PostParams;
use kube::core::ApiResource;
use kube::core::GroupVersionKind;
use serde_json::Value;
use serde_json::json;

use crate::world::cluster::object::namespace;
use crate::world::cluster::object::text;

/// A kind, by its `apiVersion` and `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub &'static str, pub &'static str);

/// Pods.
pub const POD: Kind = Kind("v1", "Pod");
/// Nodes.
pub const NODE: Kind = Kind("v1", "Node");
/// Karpenter's claims.
pub const NODE_CLAIM: Kind = Kind("karpenter.sh/v1", "NodeClaim");
/// Karpenter's pools.
pub const NODE_POOL: Kind = Kind("karpenter.sh/v1", "NodePool");
/// Our records.
pub const INTERRUPTION: Kind = Kind("lifeboat.dev/v1alpha1", "NodeInterruption");
/// Our index of what is saved.
pub const CHECKPOINT: Kind = Kind("lifeboat.dev/v1alpha1", "WorkloadCheckpoint");
/// The Lease of our controllers.
pub const LEASE: Kind = Kind("coordination.k8s.io/v1", "Lease");
/// Jobs.
pub const JOB: Kind = Kind("batch/v1", "Job");

/// What the harness asks of an API server, as its administrator.
#[derive(Clone)]
pub struct Objects {
    client: Client,
}

impl Objects {
    /// By this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client itself.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Objects of a kind, in one namespace or (an empty one) in the cluster.
    pub fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        let resource = resource(kind.0, kind.1);
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, &resource)
        }
    }

    /// Creates an object that says its own kind.
    pub async fn create(&self, object: Value) -> kube::Result<Value> {
        let resource = resource(text(&object, "/apiVersion"), text(&object, "/kind"));
        let api: Api<DynamicObject> = match namespace(&object) {
            "" => Api::all_with(self.client.clone(), &resource),
            namespace => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        let object = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        api.create(&PostParams::default(), &object).await.map(|made| plain(&made))
    }

    /// One object; nothing where it is not.
    pub async fn find(&self, kind: Kind, (namespace, name): (&str, &str)) -> Option<Value> {
        let found = self.api(kind, namespace).get_opt(name).await.ok().flatten();
        found.map(|object| plain(&object))
    }

    /// All objects of a kind; nothing while the server does not answer.
    pub async fn list(&self, kind: Kind, selector: &str) -> Vec<Value> {
        let wanted = ListParams::default().labels(selector);
        let found = self.api(kind, "").list(&wanted).await;
        found.map(|list| list.items.iter().map(plain).collect()).unwrap_or_default()
    }

    /// Merges a patch into an object.
    pub async fn merge(
        &self,
        kind: Kind,
        (namespace, name): (&str, &str),
        patch: Value,
    ) -> kube::Result<()> {
        let api = self.api(kind, namespace);
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    /// Merges a patch into the status of an object.
    pub async fn merge_status(
        &self,
        kind: Kind,
        (namespace, name): (&str, &str),
        patch: Value,
    ) -> kube::Result<()> {
        let api = self.api(kind, namespace);
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    /// Deletes an object as `kubectl delete` does; one that is gone is no error.
    pub async fn delete(&self, kind: Kind, (namespace, name): (&str, &str)) -> kube::Result<()> {
        self.delete_as(kind, (namespace, name), &DeleteParams::background()).await
    }

    /// The same, with options of its own.
    pub async fn delete_as(
        &self,
        kind: Kind,
        (namespace, name): (&str, &str),
        options: &DeleteParams,
    ) -> kube::Result<()> {
        match self.api(kind, namespace).delete(name, options).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Evicts a pod as `kubectl drain` does: with the pod's own grace, if its budgets allow it.
    pub async fn evict(&self, (namespace, name): (&str, &str)) -> kube::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        pods.evict(name, &EvictParams::default()).await.map(drop)
    }

    /// Takes an object out at once: its finalizers first, no grace.
    pub async fn force_out(&self, kind: Kind, (namespace, name): (&str, &str)) {
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() };
        let deleted = self.delete_as(kind, (namespace, name), &at_once).await;
        let free = json!({ "metadata": { "finalizers": null } });
        let freed = self.merge(kind, (namespace, name), free).await;
        if let (Err(error), _) | (_, Err(error)) = (deleted, freed) {
            tracing::debug!(%error, name, "not taken out");
        }
    }
}

/// An object as the JSON that it is.
pub fn plain(object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["metadata"].as_object_mut().map(|metadata| metadata.remove("managedFields"));
    if value["metadata"]["name"].is_null() {
        value["metadata"]["name"] = json!(object.name_any());
    }
    value
}

fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

//! Objects as we read them: a few fields, whatever else the server sends.
//!
//! A cluster's pods in k8s-openapi's types take gigabytes; what is read here takes a twentieth.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Resource;
use serde::Deserialize;
use serde::Deserializer;
use serde::de::DeserializeOwned;

/// A kind of object, and the parts of it that we read.
pub trait Kind: Clone + Debug + Send + Sync + 'static {
    /// The part under `spec`.
    type Spec: Clone + Debug + Default + DeserializeOwned + Send + Sync + 'static;
    /// The part under `status`.
    type Status: Clone + Debug + Default + DeserializeOwned + Send + Sync + 'static;
    /// `kube::core::NamespaceResourceScope` or `kube::core::ClusterResourceScope`.
    type Scope;
    /// As in `kind:`.
    const KIND: &'static str;
    /// As in `apiVersion:`, before the slash; empty for the core.
    const GROUP: &'static str;
    /// As in `apiVersion:`, after the slash.
    const VERSION: &'static str;
    /// As in the path.
    const PLURAL: &'static str;
}

/// One object, read lightly.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "")]
pub struct Object<K: Kind> {
    /// Name, namespace, UID, version, deletion, owner, labels and annotations; the rest is dropped.
    #[serde(deserialize_with = "light_metadata")]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: K::Spec,
    /// What is.
    #[serde(default)]
    pub status: K::Status,
}

impl<K: Kind> Object<K> {
    /// The object's name; empty only if the server sent none.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The object's namespace; empty for cluster scope.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The object's UID.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// When deletion was asked for.
    pub fn deleted_at(&self) -> Option<Timestamp> {
        self.metadata.deletion_timestamp.as_ref().map(|time| time.0)
    }

    /// When it was created.
    pub fn created_at(&self) -> Option<Timestamp> {
        self.metadata.creation_timestamp.as_ref().map(|time| time.0)
    }

    /// The kind of the controller that owns it.
    pub fn controller(&self) -> Option<&OwnerReference> {
        let owners = self.metadata.owner_references.as_ref()?;
        owners.iter().find(|owner| owner.controller == Some(true))
    }
}

impl<K: Kind> Resource for Object<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        K::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Nothing is read of this part.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Nothing {}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LightMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    owner_references: Option<Vec<OwnerReference>>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

fn light_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let light = LightMetadata::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: light.name,
        namespace: light.namespace,
        uid: light.uid,
        resource_version: light.resource_version,
        generation: light.generation,
        creation_timestamp: light.creation_timestamp,
        deletion_timestamp: light.deletion_timestamp,
        deletion_grace_period_seconds: light.deletion_grace_period_seconds,
        owner_references: light.owner_references,
        labels: light.labels,
        annotations: light.annotations,
        ..ObjectMeta::default()
    })
}

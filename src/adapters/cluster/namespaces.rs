//! Namespaces: only whether Lifeboat is paused in one.

use kube::Api;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Nothing;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::rows::Row;
use crate::crd::marks as our;

/// What we read of a namespace.
#[derive(Clone, Debug)]
pub struct Namespaces;

/// A namespace in which Lifeboat is paused.
#[derive(Clone, Debug)]
pub struct NamespaceRow {
    /// Whether our pause is on it.
    pub paused: bool,
}

impl Kind for Namespaces {
    type Spec = Nothing;
    type Status = Nothing;
    type Scope = kube::core::ClusterResourceScope;
    const KIND: &'static str = "Namespace";
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "namespaces";
}

impl Row for NamespaceRow {
    type Kind = Namespaces;
    type Key = String;

    fn read(object: &Object<Namespaces>) -> Option<(String, Self)> {
        let paused = object.annotation(our::PAUSED).is_some_and(is_on);
        Some((object.name().to_owned(), Self { paused }))
    }

    fn group(&self) -> Option<&str> {
        None
    }
}

/// Whether a pause annotation's value means what its presence says.
pub fn is_on(value: &str) -> bool {
    value != "false"
}

/// The API of namespaces, for a watch.
pub fn api(cluster: &Cluster) -> Api<Object<Namespaces>> {
    Api::all(cluster.watch_client())
}

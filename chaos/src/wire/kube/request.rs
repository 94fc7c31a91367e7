//! What a request to the Kubernetes API asks for: the parts of its path and its query.

use std::collections::BTreeMap;

use http::Method;
use http::Uri;

use crate::world::cluster::Target;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::Resource;
use crate::world::cluster::resource::Scope;

/// Query parameters that the simulated API server understands, or may leave aside.
const PARAMETERS: [&str; 17] = [
    "allowWatchBookmarks",
    "continue",
    "fieldManager",
    "fieldSelector",
    "fieldValidation",
    "force",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "pretty",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeout",
    "timeoutSeconds",
    "watch",
];

/// What a path addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// The kind.
    pub(super) resource: Resource,
    /// The namespace; `None` for all of them, or for a kind of the cluster.
    pub(super) namespace: Option<String>,
    /// The name; `None` for the collection.
    pub(super) name: Option<String>,
    /// The subresource; empty for the object itself.
    pub(super) subresource: String,
}

impl Address {
    /// Reads `/api/v1/…` or `/apis/<group>/<version>/…`.
    pub(super) fn parse(path: &str) -> Result<Self, Refusal> {
        let unknown = || Refusal::unsupported(format!("path `{path}`"));
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(unknown()),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, plural, rest @ ..]
                if Resource::named(group, version, plural).is_some() =>
            {
                (Some(decoded(namespace)), [&[*plural], rest].concat())
            }
            rest => (None, rest.to_vec()),
        };
        let [plural, rest @ ..] = rest.as_slice() else { return Err(unknown()) };
        let resource = Resource::named(group, version, plural).ok_or_else(unknown)?;
        let (name, subresource) = match rest {
            [] => (None, ""),
            [name] => (Some(decoded(name)), ""),
            [name, subresource] => (Some(decoded(name)), *subresource),
            [_, _, _, ..] => return Err(unknown()),
        };
        if (resource.scope == Scope::Cluster) != namespace.is_none() && name.is_some() {
            return Err(unknown());
        }
        Ok(Self { resource, namespace, name, subresource: subresource.to_owned() })
    }

    /// The object, where a name is given.
    pub(super) fn target(&self) -> Option<Target> {
        let namespace = self.namespace.clone().unwrap_or_default();
        let name = self.name.clone()?;
        Some(Target { resource: self.resource, namespace, name })
    }

    /// Kind and subresource, as they are counted.
    pub(super) fn counted(&self) -> String {
        if self.subresource.is_empty() {
            return self.resource.to_string();
        }
        format!("{}/{}", self.resource, self.subresource)
    }
}

/// The parameters of a query.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    parameters: BTreeMap<String, String>,
}

impl Query {
    /// Reads a query; a parameter that this server doesn't know is refused.
    pub(super) fn parse(uri: &Uri) -> Result<Self, Refusal> {
        let mut parameters = BTreeMap::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decoded(key);
            if !PARAMETERS.contains(&key.as_str()) {
                return Err(Refusal::unsupported(format!("query parameter `{key}`")));
            }
            parameters.insert(key, decoded(value));
        }
        Ok(Self { parameters })
    }

    /// A parameter; empty where it is not given.
    pub(super) fn text(&self, key: &str) -> &str {
        self.parameters.get(key).map_or("", String::as_str)
    }

    /// A parameter that is a number.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Refusal> {
        let text = self.text(key);
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = |_| Refusal::bad_request(format!("{key}: Invalid value: \"{text}\""));
        text.parse().map(Some).map_err(wrong)
    }

    /// Whether a parameter is set to true.
    pub(super) fn is_set(&self, key: &str) -> bool {
        ["true", "1"].contains(&self.text(key))
    }
}

/// What is done, as it is counted.
pub(super) fn verb(method: &Method, address: &Address, query: &Query) -> &'static str {
    let named = address.name.is_some();
    if address.subresource == "eviction" {
        return "evict";
    }
    match *method {
        Method::GET if named => "get",
        Method::GET if query.is_set("watch") => "watch",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "other",
    }
}

/// Undoes percent encoding and `+`.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut index) = (Vec::with_capacity(bytes.len()), 0);
    while index < bytes.len() {
        let code = text.get(index + 1..index + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[index], code) {
            (b'%', Some(code)) => {
                out.push(code);
                index += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        index += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

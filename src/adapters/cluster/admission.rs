//! What the API server is told of our webhook, and the certificate that all replicas share.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::Write;
use crate::adapters::cluster::nodes::add;
use crate::adapters::cluster::nodes::test;

/// Where the API server is told of the webhook.
const CONFIGURATION: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/lifeboat";
/// The name of the Secret, and of the Service.
pub const NAME: &str = "lifeboat-webhook";

/// The Secret, as it was read.
#[derive(Clone, Debug)]
pub struct Secret {
    /// What is in it, by name.
    pub data: BTreeMap<String, Vec<u8>>,
    object: Value,
}

/// The bundle of the first webhook, as the API server has it; empty if it has none.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    webhooks: Vec<Webhook>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Webhook {
    name: String,
    client_config: ClientConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientConfig {
    #[serde(default)]
    ca_bundle: Option<String>,
}

/// Reads the Secret. The chart makes it, empty: a right to make Secrets cannot name one.
pub async fn secret(cluster: &Cluster, namespace: &str) -> Result<Secret, ClusterError> {
    let path = secret_path(namespace);
    let object = cluster.read::<Value>(&path, REQUEST_MAX).await?;
    let object = object.ok_or(ClusterError::NotFound { path })?;
    let data = object["data"].as_object().into_iter().flatten();
    let data = data.filter_map(|(key, value)| Some((key.clone(), decode(value.as_str()?)?)));
    Ok(Secret { data: data.collect(), object: object.clone() })
}

/// Puts this into the Secret, if nobody else has meanwhile.
pub async fn keep(
    cluster: &Cluster,
    namespace: &str,
    (last, data): (&Secret, &BTreeMap<&str, Vec<u8>>),
) -> Result<(), ClusterError> {
    let mut object = last.object.clone();
    let encoded = data.iter().map(|(key, value)| ((*key).to_owned(), json!(encode(value))));
    object["data"] = Value::Object(encoded.collect());
    cluster.write(&secret_path(namespace), Write::Replace(object), REQUEST_MAX).await.map(drop)
}

/// Whether the API server trusts these authorities when it speaks to the webhook, and no others.
pub async fn trusts(cluster: &Cluster, authorities: &[u8]) -> Result<bool, ClusterError> {
    let webhooks = configuration(cluster).await?;
    let trusted = |one: &Webhook| {
        let bundle = one.client_config.ca_bundle.as_deref();
        bundle.and_then(decode).as_deref() == Some(authorities)
    };
    Ok(!webhooks.is_empty() && webhooks.iter().all(trusted))
}

/// Has the API server trust these authorities, and no others, when it speaks to the webhook.
pub async fn trust(cluster: &Cluster, authorities: &[u8]) -> Result<(), ClusterError> {
    let webhooks = configuration(cluster).await?;
    let bundle = encode(authorities);
    let patch = webhooks.iter().enumerate().flat_map(|(place, one)| {
        let at = format!("/webhooks/{place}");
        // Whoever changes the list meanwhile changes what stands in its places.
        [
            test(&format!("{at}/name"), json!(one.name)),
            add(&format!("{at}/clientConfig/caBundle"), json!(bundle)),
        ]
    });
    let patch = Write::JsonPatch(patch.collect());
    cluster.write(CONFIGURATION, patch, REQUEST_MAX).await.map(drop)
}

async fn configuration(cluster: &Cluster) -> Result<Vec<Webhook>, ClusterError> {
    let object = cluster.read::<Configuration>(CONFIGURATION, REQUEST_MAX).await?;
    let path = || CONFIGURATION.to_owned();
    Ok(object.ok_or_else(|| ClusterError::NotFound { path: path() })?.webhooks)
}

fn secret_path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/secrets/{NAME}")
}

fn encode(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

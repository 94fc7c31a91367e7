//! Makes the clients. None tries anything again by itself: `retry.rs` does, before a deadline.

use std::sync::Arc;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::Region;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_smithy_http_client::tls;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use object_store::ClientOptions;
use object_store::ObjectStore;
use object_store::RetryConfig as StoreRetry;
use object_store::aws::AmazonS3;
use object_store::aws::AmazonS3Builder;
use object_store::aws::Checksum;
use object_store::client::HttpConnector;
use object_store::client::ReqwestConnector;

use crate::adapters::imds;
use crate::adapters::signed::Signed;
use crate::config::Config;
use crate::config::Kubernetes;
use crate::config::Queue;
use crate::config::Store;

use super::AgentClients;
use super::ControllerClients;

/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(3);

/// Silence after which a watch is called dead: the API server sends a bookmark each minute.
const WATCH: Duration = Duration::from_secs(90);

/// How long one request to the bucket may take: a chunk over a slow line, and no longer than the
/// notice itself.
const CHUNK: Duration = Duration::from_mins(1);

/// Why a client was not made. Nothing was sent yet.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither the configuration, a service account nor a kubeconfig names an API server.
    #[error("no API server is named. Set `kubernetes.server`, or give the pod a service account")]
    NoCluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What names the API server does not make a client.
    #[error("the client of the API server was not made")]
    Cluster(#[source] kube::Error),
    /// The settings do not make a client of the bucket.
    #[error("the client of bucket `{bucket}` was not made")]
    Bucket {
        /// The bucket.
        bucket: String,
        /// Why.
        source: object_store::Error,
    },
}

impl ControllerClients {
    /// Clients of the world that `config` names.
    pub async fn connect(config: &Config) -> Result<Self, ConnectError> {
        Ok(Self {
            kube: kubernetes(&config.kubernetes, WATCH).await?,
            // Not less: it would close connections that are kept warm for the next storm.
            first_aid: kubernetes(&config.kubernetes, WATCH).await?,
            sqs: queue(&config.queue, &config.region).await,
            store: bucket(&config.store)?,
        })
    }
}

impl AgentClients {
    /// Clients of the world that `config` names.
    pub async fn connect(config: &Config) -> Result<Self, ConnectError> {
        Ok(Self {
            kube: kubernetes(&config.kubernetes, WATCH).await?,
            imds: imds::over_http(),
            store: bucket(&config.store)?,
        })
    }
}

/// A client of the API server that gives up after `silence`, and tries nothing again by itself: an
/// eviction that a budget refuses (429) must come back at once.
pub async fn kubernetes(
    part: &Kubernetes,
    silence: Duration,
) -> Result<kube::Client, ConnectError> {
    let mut config = match &part.server {
        None => {
            kube::Config::infer().await.map_err(|error| ConnectError::NoCluster(error.into()))?
        }
        Some(server) => {
            let uri = server.parse::<http::Uri>();
            kube::Config::new(uri.map_err(|error| ConnectError::NoCluster(error.into()))?)
        }
    };
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(silence);
    config.write_timeout = Some(CONNECT);
    config.reset_reader_on_write = true;
    kube::Client::try_from(config).map_err(ConnectError::Cluster)
}

/// A client of the queue. Credentials come from where the AWS SDKs look for them.
pub async fn queue(part: &Queue, region: &str) -> aws_sdk_sqs::Client {
    let ring = tls::Provider::Rustls(CryptoMode::Ring);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        // A receive answers after `wait` at the latest.
        .operation_attempt_timeout(part.wait + CONNECT)
        .build();
    let shared = aws_config::defaults(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().tls_provider(ring).build_https())
        .region(Region::new(region.to_owned()))
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .load()
        .await;
    let mut builder = aws_sdk_sqs::config::Builder::from(&shared);
    if let Some(endpoint) = &part.endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    aws_sdk_sqs::Client::from_conf(builder.build())
}

/// A client of the bucket.
///
/// Payloads are not signed: S3 checks each by CRC64NVME, at a third of the cost (*measured*), and
/// TLS protects them on the way. Plain HTTP is spoken only to an endpoint that says so.
pub fn bucket(part: &Store) -> Result<Arc<dyn ObjectStore>, ConnectError> {
    Ok(Arc::new(s3(part)?))
}

/// Who asks AWS for settings, with the bucket's credentials.
pub fn signed(part: &Store, region: &str) -> Result<Signed, ConnectError> {
    let refused = |source| ConnectError::Bucket { bucket: part.bucket.clone(), source };
    let standard = format!("https://s3.{}.amazonaws.com", part.region);
    let endpoint = part.endpoint.as_deref().unwrap_or(&standard).trim_end_matches('/');
    Ok(Signed {
        http: ReqwestConnector::default().connect(&options(part)).map_err(refused)?,
        credentials: s3(part)?.credentials().clone(),
        bucket: format!("{endpoint}/{}", part.bucket),
        bucket_region: part.region.clone(),
        events: format!("https://events.{region}.amazonaws.com"),
        region: region.to_owned(),
    })
}

fn options(part: &Store) -> ClientOptions {
    let plain = part.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    ClientOptions::new().with_allow_http(plain).with_connect_timeout(CONNECT).with_timeout(CHUNK)
}

fn s3(part: &Store) -> Result<AmazonS3, ConnectError> {
    let retry =
        StoreRetry { max_retries: 0, retry_timeout: Duration::ZERO, ..StoreRetry::default() };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&part.bucket)
        .with_region(&part.region)
        .with_unsigned_payload(true)
        .with_checksum_algorithm(Checksum::CRC64NVME)
        .with_client_options(options(part))
        .with_retry(retry);
    if let Some(endpoint) = &part.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder.build().map_err(|source| ConnectError::Bucket { bucket: part.bucket.clone(), source })
}

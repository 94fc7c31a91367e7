//! The real clients, handed a wire in place of a socket. None of them retries by itself.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use aws_sdk_sqs::config::BehaviorVersion;
use aws_sdk_sqs::config::Credentials;
use aws_sdk_sqs::config::Region;
use aws_sdk_sqs::config::StalledStreamProtectionConfig;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_smithy_runtime_api::client::http::HttpClient;
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::http::HttpConnectorFuture;
use aws_smithy_runtime_api::client::http::HttpConnectorSettings;
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::aws::AmazonS3;
use object_store::aws::AmazonS3Builder;
use object_store::aws::Checksum;
use object_store::client::HttpError;
use object_store::client::HttpErrorKind;
use object_store::client::HttpResponseBody;
use object_store::client::HttpService;
use tower::util::BoxCloneSyncService;

use crate::wire::BoxError;
use crate::wire::Wire;
use crate::wire::call;
use crate::wire::collect;
use crate::wire::full;

/// The region that the simulated cloud lies in.
pub const REGION: &str = "us-east-2";

/// The real SQS client over a wire, without retries and without timeouts of its own.
pub fn sqs_client(wire: &Wire) -> aws_sdk_sqs::Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(Credentials::new("simulated", "simulated", None, None, "chaos"))
        .endpoint_url("http://sqs.simulated")
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .http_client(SqsOverWire(wire.clone()))
        .build();
    aws_sdk_sqs::Client::from_conf(config)
}

/// The real S3 store over a wire: unsigned payload, CRC64NVME, no retries.
pub fn s3_store(wire: &Wire, bucket: &str) -> object_store::Result<AmazonS3> {
    s3_builder(wire, bucket).build()
}

/// As [`s3_store`], for who wants other options.
pub fn s3_builder(wire: &Wire, bucket: &str) -> AmazonS3Builder {
    AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(REGION)
        .with_endpoint("http://s3.simulated")
        .with_allow_http(true)
        .with_access_key_id("simulated")
        .with_secret_access_key("simulated")
        .with_unsigned_payload(true)
        .with_checksum_algorithm(Checksum::CRC64NVME)
        .with_retry(object_store::RetryConfig { max_retries: 0, ..Default::default() })
        .with_http_connector(S3OverWire(wire.clone()))
}

/// The HTTP client of [`s3_store`], for requests that the store has not.
pub fn s3_http(wire: &Wire) -> object_store::client::HttpClient {
    object_store::client::HttpClient::new(S3OverWire(wire.clone()))
}

/// The real Kubernetes client over a wire; a client made this way never retries.
pub fn kube_client(wire: &Wire, namespace: &str) -> kube::Client {
    let wire = wire.clone();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let wire = wire.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = full(body.collect_bytes().await?);
            call(&wire, http::Request::from_parts(parts, body)).await
        }
    });
    kube::Client::new(service, namespace)
}

/// A wire as a service of whole bodies, as small hand-written clients (IMDS) take it.
pub fn bytes_service(
    wire: &Wire,
) -> BoxCloneSyncService<http::Request<Bytes>, http::Response<Bytes>, BoxError> {
    let wire = wire.clone();
    BoxCloneSyncService::new(tower::service_fn(move |request: http::Request<Bytes>| {
        let wire = wire.clone();
        async move {
            let (parts, body) = call(&wire, request.map(full)).await?.into_parts();
            Ok(http::Response::from_parts(parts, collect(body).await?))
        }
    }))
}

#[derive(Clone)]
struct SqsOverWire(Wire);

impl fmt::Debug for SqsOverWire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SqsOverWire")
    }
}

impl HttpClient for SqsOverWire {
    fn http_connector(
        &self,
        _settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for SqsOverWire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let wire = self.0.clone();
        HttpConnectorFuture::new(async move {
            sqs_call(&wire, request).await.map_err(ConnectorError::io)
        })
    }
}

async fn sqs_call(wire: &Wire, request: HttpRequest) -> Result<HttpResponse, BoxError> {
    let request = request.try_into_http1x()?.map(BodyExt::boxed);
    let response = call(wire, request).await?;
    Ok(HttpResponse::try_from(response.map(SdkBody::from_body_1_x))?)
}

#[derive(Clone)]
struct S3OverWire(Wire);

impl fmt::Debug for S3OverWire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("S3OverWire")
    }
}

impl object_store::client::HttpConnector for S3OverWire {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<object_store::client::HttpClient> {
        Ok(object_store::client::HttpClient::new(self.clone()))
    }
}

impl HttpService for S3OverWire {
    fn call<'wire, 'answer>(
        &'wire self,
        request: object_store::client::HttpRequest,
    ) -> Pin<
        Box<
            dyn Future<Output = Result<object_store::client::HttpResponse, HttpError>>
                + Send
                + 'answer,
        >,
    >
    where
        'wire: 'answer,
        Self: 'answer,
    {
        Box::pin(async move {
            let request = request.map(|body| body.map_err(BoxError::from).boxed());
            let response = call(&self.0, request).await.map_err(broken)?;
            Ok(response.map(|body| HttpResponseBody::new(body.map_err(broken))))
        })
    }
}

fn broken(error: BoxError) -> HttpError {
    HttpError::new_boxed(HttpErrorKind::Interrupted, error)
}

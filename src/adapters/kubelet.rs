//! Kubelet's pod-resources service: which pod was given which device.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::error::Class;
use crate::error::Classify;

/// Where the service listens, below the host's root.
///
/// Source: Kubernetes, "Device Plugins", monitoring device plugin resources.
pub const SOCKET: &str = "var/lib/kubelet/pod-resources/kubelet.sock";

/// How long one question may take.
const ANSWER: Duration = Duration::from_secs(2);

/// Longest answer that is read; kubelet's own limit.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// Method of the service that lists what pods hold.
pub const LIST: &str = "/v1.PodResourcesLister/List";

/// The pod-resources service of the kubelet on this node.
#[derive(Debug, Clone)]
pub struct PodResourcesClient {
    channel: Channel,
}

/// A device that a container of a pod was given.
///
/// Kubelet names pods without UID: a name may by now belong to another pod, so it counts only
/// together with something that knows the UID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holding {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// The extended resource, like `nvidia.com/gpu`.
    pub resource: String,
    /// The device's id as the device plugin named it, like `GPU-<uuid>::3`.
    pub device: String,
}

/// Why kubelet told us nothing.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The service did not answer in time.
    #[error("kubelet did not list its pod resources in time")]
    Unanswered,
    /// The service could not be asked, or refused.
    #[error("kubelet did not list its pod resources")]
    Refused {
        /// Why.
        source: Box<tonic::Status>,
    },
    /// The connection could not be made.
    #[error("kubelet's pod-resources socket was not reached")]
    Unreachable {
        /// Why.
        source: tonic::transport::Error,
    },
}

/// `v1.ListPodResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListPodResourcesRequest {}

/// `v1.ListPodResourcesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListPodResourcesResponse {
    /// One entry for each pod that holds something.
    #[prost(message, repeated, tag = "1")]
    pub pod_resources: Vec<PodResources>,
}

/// `v1.PodResources`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodResources {
    /// Name of the pod.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its containers.
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerResources>,
}

/// `v1.ContainerResources`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerResources {
    /// Name of the container.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its devices.
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<ContainerDevices>,
}

/// `v1.ContainerDevices`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerDevices {
    /// The extended resource.
    #[prost(string, tag = "1")]
    pub resource_name: String,
    /// Ids of the devices.
    #[prost(string, repeated, tag = "2")]
    pub device_ids: Vec<String>,
}

impl PodResourcesClient {
    /// The service below `host_root`. It is connected when first asked, and again after a loss.
    pub fn new(host_root: &Path) -> Self {
        let socket: Arc<PathBuf> = Arc::new(host_root.join(SOCKET));
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let socket = Arc::clone(&socket);
            async move { connect(&socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://kubelet").connect_timeout(ANSWER);
        Self { channel: endpoint.connect_with_connector_lazy(connector) }
    }

    /// Who holds which device, in order.
    ///
    /// That a pod is not listed proves nothing about its processes: kubelet frees devices lazily.
    pub async fn list(&self) -> Result<Vec<Holding>, KubeletError> {
        let answer = tokio::time::timeout(ANSWER, self.ask()).await;
        let answer = answer.map_err(|_| KubeletError::Unanswered)??;
        let mut holdings: Vec<Holding> = answer.pod_resources.iter().flat_map(holdings).collect();
        holdings.sort();
        Ok(holdings)
    }

    async fn ask(&self) -> Result<ListPodResourcesResponse, KubeletError> {
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX);
        client.ready().await.map_err(|source| KubeletError::Unreachable { source })?;
        let codec: ProstCodec<ListPodResourcesRequest, ListPodResourcesResponse> =
            ProstCodec::default();
        let request = tonic::Request::new(ListPodResourcesRequest {});
        let answer = client.unary(request, PathAndQuery::from_static(LIST), codec).await;
        let answer = answer.map_err(|status| KubeletError::Refused { source: Box::new(status) })?;
        Ok(answer.into_inner())
    }
}

impl Classify for KubeletError {
    fn class(&self) -> Class {
        match self {
            Self::Unanswered | Self::Refused { .. } | Self::Unreachable { .. } => Class::Transient,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Unanswered => "unanswered",
            Self::Refused { .. } => "refused",
            Self::Unreachable { .. } => "unreachable",
        }
    }
}

/// Connects through the folder's descriptor, since a socket's address holds 107 bytes only.
async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let absent = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let folder = socket.parent().ok_or_else(absent)?;
    let name = socket.file_name().ok_or_else(absent)?;
    let folder = rustix::fs::open(
        folder,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short).await
}

fn holdings(pod: &PodResources) -> impl Iterator<Item = Holding> + '_ {
    pod.containers.iter().flat_map(move |container| {
        container.devices.iter().flat_map(move |devices| {
            devices.device_ids.iter().map(move |device| Holding {
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: container.name.clone(),
                resource: devices.resource_name.clone(),
                device: device.clone(),
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Bytes written by hand from `k8s.io/kubelet/pkg/apis/podresources/v1/api.proto`.
    #[test]
    fn field_numbers_are_those_of_the_published_api() {
        let devices = b"\x0a\x0envidia.com/gpu\x12\x07GPU-1::\x1a\x00";
        let mut container = b"\x0a\x04main\x12".to_vec();
        container.push(u8::try_from(devices.len()).unwrap());
        container.extend_from_slice(devices);
        container.extend_from_slice(b"\x1a\x02\x01\x02");
        let mut pod = b"\x0a\x07train-0\x12\x02ml\x1a".to_vec();
        pod.push(u8::try_from(container.len()).unwrap());
        pod.extend_from_slice(&container);
        let mut answer = vec![0x0a, u8::try_from(pod.len()).unwrap()];
        answer.extend_from_slice(&pod);

        let read = ListPodResourcesResponse::decode(answer.as_slice()).unwrap();
        let found: Vec<Holding> = read.pod_resources.iter().flat_map(holdings).collect();
        let expected = Holding {
            namespace: "ml".into(),
            pod: "train-0".into(),
            container: "main".into(),
            resource: "nvidia.com/gpu".into(),
            device: "GPU-1::".into(),
        };
        assert_eq!(found, [expected]);
    }
}

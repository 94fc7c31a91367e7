//! A device plugin for GPUs that are not there: kubelet's `v1beta1`, served beside a real kubelet.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use hyper_util::rt::TokioIo;
use lifeboat::agent::csi::serve;
use lifeboat::agent::csi::serve::Request;
use lifeboat::agent::csi::serve::Response;
use lifeboat::agent::csi::serve::unary;
use prost::Message;
use tokio::net::UnixListener;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::server::Grpc;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::world::machines::Gpu;

/// By what a container is told its devices, as NVIDIA's plugin does.
pub(super) const GIVEN: &str = "NVIDIA_VISIBLE_DEVICES";
/// The resource that is offered.
const RESOURCE: &str = "nvidia.com/gpu";
/// The plugin's socket, beside kubelet's own.
const SOCKET: &str = "nvidia-gpu.sock";
/// Kubelet's socket.
const KUBELET: &str = "kubelet.sock";
/// Between two looks at whether kubelet still knows us.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// `v1beta1.RegisterRequest`.
#[derive(Clone, PartialEq, Message)]
struct Register {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    resource_name: String,
}

/// `v1beta1.ListAndWatchResponse`.
#[derive(Clone, PartialEq, Message)]
struct Devices {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<Device>,
}

/// `v1beta1.Device`.
#[derive(Clone, PartialEq, Message)]
struct Device {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    health: String,
}

/// `v1beta1.AllocateRequest`.
#[derive(Clone, PartialEq, Message)]
struct Allocate {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Asked>,
}

/// `v1beta1.ContainerAllocateRequest`.
#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, repeated, tag = "1")]
    devices: Vec<String>,
}

/// `v1beta1.AllocateResponse`.
#[derive(Clone, PartialEq, Message)]
struct Allocated {
    #[prost(message, repeated, tag = "1")]
    containers: Vec<Given>,
}

/// `v1beta1.ContainerAllocateResponse`.
#[derive(Clone, PartialEq, Message)]
struct Given {
    #[prost(btree_map = "string, string", tag = "1")]
    variables: BTreeMap<String, String>,
}

/// Offers the slices of these GPUs to the kubelet whose folder this is, for as long as it is polled;
/// again whenever kubelet was started anew, since it then takes every plugin's socket away.
pub(super) async fn offer(folder: PathBuf, gpus: Vec<Gpu>) {
    let socket = folder.join(SOCKET);
    loop {
        if folder.join(KUBELET).exists() {
            let served = tokio::select! {
                biased;
                served = once(&folder, &gpus) => served,
                () = gone(&socket) => Ok(()),
            };
            if let Err(error) = served {
                tracing::debug!(%error, "kubelet does not know the GPUs yet");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn gone(socket: &Path) {
    tokio::time::sleep(LOOK).await;
    while socket.exists() {
        tokio::time::sleep(LOOK).await;
    }
}

async fn once(folder: &Path, gpus: &[Gpu]) -> anyhow::Result<()> {
    let socket = folder.join(SOCKET);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => (),
    }
    let listener = UnixListener::bind(&socket)?;
    let ids: Vec<String> = gpus.iter().flat_map(Gpu::device_ids).collect();
    let answer = move |request: Request| answer(request, ids.clone());
    let registering = async {
        register(&folder.join(KUBELET)).await?;
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        biased;
        () = serve::serve(listener, answer) => Ok(()),
        failed = registering => failed,
    }
}

async fn answer(request: Request, ids: Vec<String>) -> Response {
    match request.uri().path() {
        "/v1beta1.DevicePlugin/GetDevicePluginOptions" => {
            unary(request, |_: &Empty| Ok(Empty {})).await
        }
        "/v1beta1.DevicePlugin/Allocate" => unary(request, |asked| Ok(allocate(asked))).await,
        "/v1beta1.DevicePlugin/ListAndWatch" => {
            let devices = ids.into_iter().map(|id| Device { id, health: "Healthy".to_owned() });
            let devices = Devices { devices: devices.collect() };
            // They never change, and kubelet takes the end of the list for the plugin's.
            let listed = stream::iter([Ok::<_, Status>(devices)]).chain(stream::pending());
            let mut listed = Some(listed);
            let service = tower::service_fn(move |_: tonic::Request<Empty>| {
                let listed = listed.take().ok_or_else(|| Status::internal("asked twice"));
                std::future::ready(listed.map(tonic::Response::new))
            });
            let codec: ProstCodec<Devices, Empty> = ProstCodec::default();
            Grpc::new(codec).server_streaming(service, request).await
        }
        _ => Status::unimplemented("this plugin serves no such method").into_http(),
    }
}

fn allocate(asked: &Allocate) -> Allocated {
    let given = asked.containers.iter().map(|container| {
        let variables = [(GIVEN.to_owned(), container.devices.join(","))];
        Given { variables: variables.into() }
    });
    Allocated { containers: given.collect() }
}

async fn register(kubelet: &Path) -> anyhow::Result<()> {
    let kubelet = kubelet.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let kubelet = kubelet.clone();
        async move { UnixStream::connect(kubelet).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://kubelet");
    let channel = endpoint.connect_with_connector(connector).await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let request = Register {
        version: "v1beta1".to_owned(),
        endpoint: SOCKET.to_owned(),
        resource_name: RESOURCE.to_owned(),
    };
    let codec: ProstCodec<Register, Empty> = ProstCodec::default();
    let path = PathAndQuery::from_static("/v1beta1.Registration/Register");
    client.unary(tonic::Request::new(request), path, codec).await?;
    Ok(())
}

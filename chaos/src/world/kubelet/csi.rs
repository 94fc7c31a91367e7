//! Kubelet's side of the Container Storage Interface, over the driver's own socket.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

/// How long kubelet waits for a driver.
const ANSWER: Duration = Duration::from_secs(15);

/// Between two looks for a driver that wants to register.
const LOOK: Duration = Duration::from_secs(1);

/// `csi.v1.VolumeCapability.AccessMode.Mode.SINGLE_NODE_WRITER`.
const SINGLE_NODE_WRITER: i32 = 1;

/// A volume, as a driver is asked to publish or unpublish it.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    /// The driver's name.
    pub(crate) driver: String,
    /// The volume's id.
    pub(crate) id: String,
    /// Where it is wanted, as kubelet sees it.
    pub(crate) target: String,
    /// Whether the pod may only read it.
    pub(crate) read_only: bool,
    /// `volume_context`.
    pub(crate) context: BTreeMap<String, String>,
}

/// Why a driver did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    #[error("the driver's socket was not reached: {0}")]
    Unreached(#[from] tonic::transport::Error),
    #[error("the driver refused: {0}")]
    Refused(#[from] tonic::Status),
}

#[derive(Clone, PartialEq, prost::Message)]
struct NodePublishVolumeRequest {
    #[prost(string, tag = "1")]
    volume_id: String,
    #[prost(string, tag = "4")]
    target_path: String,
    #[prost(message, optional, tag = "5")]
    volume_capability: Option<VolumeCapability>,
    #[prost(bool, tag = "6")]
    readonly: bool,
    #[prost(btree_map = "string, string", tag = "8")]
    volume_context: BTreeMap<String, String>,
}

/// A folder for one node, as a real kubelet asks for an inline volume.
#[derive(Clone, PartialEq, prost::Message)]
struct VolumeCapability {
    #[prost(message, optional, tag = "2")]
    mount: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    access_mode: Option<AccessMode>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AccessMode {
    #[prost(int32, tag = "1")]
    mode: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NodeUnpublishVolumeRequest {
    #[prost(string, tag = "1")]
    volume_id: String,
    #[prost(string, tag = "2")]
    target_path: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    plugin_registered: bool,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// `NodePublishVolume`.
pub(crate) async fn publish(root: &Path, asked: &Publish) -> Result<(), DriverError> {
    let request = NodePublishVolumeRequest {
        volume_id: asked.id.clone(),
        target_path: asked.target.clone(),
        volume_capability: Some(VolumeCapability {
            mount: Some(Empty {}),
            access_mode: Some(AccessMode { mode: SINGLE_NODE_WRITER }),
        }),
        readonly: asked.read_only,
        volume_context: asked.context.clone(),
    };
    call(&socket(root, &asked.driver), "/csi.v1.Node/NodePublishVolume", request).await
}

/// `NodeUnpublishVolume`.
pub(super) async fn unpublish(root: &Path, asked: &Publish) -> Result<(), DriverError> {
    let request = NodeUnpublishVolumeRequest {
        volume_id: asked.id.clone(),
        target_path: asked.target.clone(),
    };
    call(&socket(root, &asked.driver), "/csi.v1.Node/NodeUnpublishVolume", request).await
}

fn socket(root: &Path, driver: &str) -> PathBuf {
    root.join("var/lib/kubelet/plugins").join(driver).join("csi.sock")
}

/// Takes every driver that shows up in `plugins_registry`, and each one again that comes back.
pub(super) async fn register(root: PathBuf) {
    const INFO: &str = "/pluginregistration.Registration/GetInfo";
    const TAKEN: &str = "/pluginregistration.Registration/NotifyRegistrationStatus";
    let mut known = BTreeMap::new();
    loop {
        for (socket, inode) in offers(&root.join("var/lib/kubelet/plugins_registry")) {
            if known.get(&socket) == Some(&inode) {
                continue;
            }
            let taken = RegistrationStatus { plugin_registered: true, error: String::new() };
            let registered = async {
                call(&socket, INFO, Empty {}).await?;
                call(&socket, TAKEN, taken).await
            };
            match registered.await {
                Ok(()) => drop(known.insert(socket, inode)),
                Err(error) => tracing::debug!(%error, "driver not registered"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn offers(folder: &Path) -> BTreeMap<PathBuf, u64> {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.ino())));
    found.collect()
}

/// One call; what it answers does not matter here.
async fn call(
    socket: &Path,
    method: &'static str,
    request: impl prost::Message + 'static,
) -> Result<(), DriverError> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://driver").timeout(ANSWER);
    let channel: Channel = endpoint.connect_with_connector(connector).await?;
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let codec = ProstCodec::<_, Empty>::default();
    let path = PathAndQuery::from_static(method);
    client.unary(tonic::Request::new(request), path, codec).await?;
    Ok(())
}

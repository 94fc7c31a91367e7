//! The agent's volume driver, called as kubelet calls it.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use lifeboat::adapters::store::Store;
use lifeboat::agent::bell::Bell;
use lifeboat::agent::csi::Csi;
use lifeboat::agent::csi::Host;
use lifeboat::agent::csi::REGISTRATION;
use lifeboat::agent::csi::SOCKET;
use lifeboat::agent::csi::wire;
use lifeboat::agent::pods::Pods;
use lifeboat::agent::pods::Volume;
use lifeboat::agent::records::Records;
use lifeboat::agent::workloads::Driver;
use lifeboat::agent::workloads::Means;
use lifeboat::agent::workloads::Place;
use lifeboat::agent::workloads::registry;
use lifeboat::clock::Clock;
use lifeboat::crd::DRIVER;
use lifeboat::data::scheduler::Limits;
use lifeboat::data::scheduler::Scheduler;
use lifeboat::offload::Offload;
use object_store::memory::InMemory;
use prost::Message;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

pub(crate) const TARGET: &str =
    "/var/lib/kubelet/pods/8f7a/volumes/kubernetes.io~csi/lifeboat-socket/mount";

/// How long an answer may take.
const SOON: Duration = Duration::from_secs(20);

struct Node {
    root: TempDir,
    pods: Pods,
    served: JoinHandle<()>,
    _driver: Driver,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.served.abort();
    }
}

impl Node {
    async fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap()).await
    }

    async fn over(root: TempDir) -> Self {
        let (workloads, driver) = registry(means());
        let records = Records::new(root.path(), Offload::Inline);
        let pods = Pods::load(records, workloads, Bell::new()).await;
        let host = Host::new(root.path());
        pods.mount_again(&host);
        let csi = Csi::new("gpu-1", host, pods.clone());
        let listeners = csi.listen().unwrap();
        let served = tokio::spawn(csi.serve(listeners));
        Self { root, pods, served, _driver: driver }
    }

    async fn publish(&self, context: &[(&str, &str)]) -> Result<(), Status> {
        publish(self.root.path(), context).await
    }

    async fn unpublish(&self) -> Result<(), Status> {
        unpublish(self.root.path()).await
    }

    async fn call<In, Out>(
        &self,
        socket: &str,
        method: &'static str,
        request: In,
    ) -> Result<Out, Status>
    where
        In: Message + 'static,
        Out: Message + Default + 'static,
    {
        call(self.root.path().join(socket), method, request).await
    }

    fn socket(&self) -> PathBuf {
        Host::new(self.root.path()).path(TARGET).join("agent.sock")
    }
}

/// Has the volume at [`TARGET`] published on the node below `root`.
pub(crate) async fn publish(root: &Path, context: &[(&str, &str)]) -> Result<(), Status> {
    publish_at(root, TARGET, context).await
}

/// Has the volume at `target` published on the node below `root`.
pub(crate) async fn publish_at(
    root: &Path,
    target: &str,
    context: &[(&str, &str)],
) -> Result<(), Status> {
    let said = context.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let request = wire::NodePublishVolumeRequest {
        volume_id: "csi-1".to_owned(),
        target_path: target.to_owned(),
        volume_context: said.collect(),
        volume_capability: Some(wire::VolumeCapability { block: None }),
        secrets: BTreeMap::new(),
        readonly: false,
    };
    let answer: Result<wire::NodePublishVolumeResponse, Status> =
        call(root.join(SOCKET), "/csi.v1.Node/NodePublishVolume", request).await;
    answer.map(|_| ())
}

/// Has it unpublished.
pub(crate) async fn unpublish(root: &Path) -> Result<(), Status> {
    let request = wire::NodeUnpublishVolumeRequest {
        volume_id: "csi-1".to_owned(),
        target_path: TARGET.to_owned(),
    };
    let answer: Result<wire::NodeUnpublishVolumeResponse, Status> =
        call(root.join(SOCKET), "/csi.v1.Node/NodeUnpublishVolume", request).await;
    answer.map(|_| ())
}

async fn call<In, Out>(socket: PathBuf, method: &'static str, request: In) -> Result<Out, Status>
where
    In: Message + 'static,
    Out: Message + Default + 'static,
{
    let connector = tower::service_fn(move |_| connect(socket.clone()));
    let channel = Endpoint::from_static("http://driver").connect_with_connector_lazy(connector);
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec: ProstCodec<In, Out> = ProstCodec::default();
    let path = PathAndQuery::from_static(method);
    Ok(client.unary(tonic::Request::new(request), path, codec).await?.into_inner())
}

/// Through the folder's descriptor, as a path of any length.
pub(crate) async fn connect(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    use std::os::fd::AsRawFd;
    let folder = std::fs::File::open(path.parent().unwrap())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
    Ok(TokioIo::new(UnixStream::connect(short.join(path.file_name().unwrap())).await?))
}

fn means() -> Means {
    let clock = Clock::starting_at("2026-11-22T12:00:00Z".parse().unwrap(), 0);
    let limits =
        Limits { in_flight: 1 << 20, connections: Some(2), bandwidth: None, ring_budget: 1 << 20 };
    let store = Store::new(std::sync::Arc::new(InMemory::new()), clock.clone(), Offload::Inline);
    Means {
        scheduler: Scheduler::new(limits, store.slow_downs(), Offload::Inline),
        store,
        clock,
        offload: Offload::Inline,
        place: Place {
            cluster: "demo".to_owned(),
            node: "gpu-1".to_owned(),
            instance: None,
            prefix: String::new(),
            chunk: 1 << 16,
            in_flight: 1 << 20,
        },
        spool: None,
    }
}

pub(crate) const POD: [(&str, &str); 6] = [
    ("csi.storage.k8s.io/ephemeral", "true"),
    ("csi.storage.k8s.io/pod.name", "train-0"),
    ("csi.storage.k8s.io/pod.namespace", "ml"),
    ("csi.storage.k8s.io/pod.uid", "8f7a"),
    ("lifeboat.dev/checkpoint", "sdk"),
    ("lifeboat.dev/job-key", "job-1"),
];

/// The headers of a call of `GetInfo` as kubelet 1.35.4 sends it, taken down from its socket: as its
/// authority it names the path of ours, `%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2F…`.
const REAL_HEADERS: &[&str] = &[
    "8386459c62ba2d98d558598c84d83498f52fb4b31909b06931ea63115392a94f41a854587b8ec545868346a8",
    "b0f5b632d054aa2c35d16cc6a91158598c84d9e95161f2b58599741c9d7f5f8b1d75d0620d263d4c4d65647a",
    "8a9acac8b4c7602bbccae240027465864d833505b11f408e9acac8b0c842d6958b510f21aa9b839bd9ab4089",
    "9acac8b24d494f6a7f867df784cb76ff",
];

#[tokio::test]
async fn a_real_kubelets_call_is_answered_though_its_authority_is_none() {
    let node = Node::new().await;
    let mut call = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec();
    call.extend(b"\x00\x00\x94\x01\x04\x00\x00\x00\x01");
    let headers = REAL_HEADERS.concat();
    call.extend(
        (0..headers.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&headers[at..at + 2], 16).unwrap()),
    );
    // One empty message, which ends the request.
    call.extend(b"\x00\x00\x05\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00");
    let mut kubelet = UnixStream::connect(node.root.path().join(REGISTRATION)).await.unwrap();
    // In pieces, as a stream may bring it.
    for piece in call.chunks(50) {
        kubelet.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    let named = |answer: &[u8]| answer.windows(DRIVER.len()).any(|at| at == DRIVER.as_bytes());
    while !named(&answer) {
        let read = tokio::time::timeout(SOON, kubelet.read_buf(&mut answer)).await;
        assert_ne!(
            read.expect("an answer in time").unwrap(),
            0,
            "the call was refused: {answer:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn kubelet_is_told_what_to_register() {
    let node = Node::new().await;
    let info: wire::PluginInfo = node
        .call(REGISTRATION, "/pluginregistration.Registration/GetInfo", wire::InfoRequest {})
        .await
        .unwrap();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "lifeboat.dev"));
    assert_eq!(info.endpoint, "/var/lib/kubelet/plugins/lifeboat.dev/csi.sock");
    let taken = wire::RegistrationStatus { plugin_registered: true, error: String::new() };
    let _: wire::RegistrationStatusResponse = node
        .call(REGISTRATION, "/pluginregistration.Registration/NotifyRegistrationStatus", taken)
        .await
        .unwrap();
    let own: wire::NodeGetInfoResponse =
        node.call(SOCKET, "/csi.v1.Node/NodeGetInfo", wire::NodeGetInfoRequest {}).await.unwrap();
    assert_eq!(own.node_id, "gpu-1");
    let name: wire::GetPluginInfoResponse = node
        .call(SOCKET, "/csi.v1.Identity/GetPluginInfo", wire::GetPluginInfoRequest {})
        .await
        .unwrap();
    assert_eq!(name.name, "lifeboat.dev");
    let unknown: Result<wire::ProbeResponse, Status> =
        node.call(SOCKET, "/csi.v1.Node/NodeGetVolumeStats", wire::ProbeRequest {}).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(start_paused = true)]
async fn publishing_twice_leaves_the_socket_that_is_there() {
    use std::os::unix::fs::MetadataExt;
    let node = Node::new().await;
    node.publish(&POD).await.unwrap();
    let made = std::fs::metadata(node.socket()).unwrap();
    assert_eq!(made.mode() & 0o777, 0o666, "any user of the pod may connect");
    node.publish(&POD).await.unwrap();
    assert_eq!(std::fs::metadata(node.socket()).unwrap().ino(), made.ino());
    connect(node.socket()).await.unwrap();
    let pods = node.pods.all();
    assert_eq!((pods.len(), pods[0].volume), (1, Volume::Mounted));
    assert_eq!(pods[0].record.wishes().job_key.unwrap().as_str(), "job-1");
}

#[tokio::test(start_paused = true)]
async fn unpublishing_removes_the_target_also_of_a_volume_that_was_never_published() {
    let node = Node::new().await;
    node.unpublish().await.unwrap();
    node.publish(&POD).await.unwrap();
    node.unpublish().await.unwrap();
    assert!(!node.socket().parent().unwrap().exists());
    assert_eq!(node.pods.all()[0].volume, Volume::Unmounted);
    node.unpublish().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_names_no_pod_or_another_one_is_refused() {
    let node = Node::new().await;
    let refused = node.publish(&POD[..3]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("podInfoOnMount"), "{refused}");
    let mut other = POD;
    other[3].1 = "another";
    assert_eq!(node.publish(&other).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(node.pods.all().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_makes_the_sockets_again_by_itself() {
    let node = Node::new().await;
    let pods = node.pods.clone();
    let keeping = tokio::spawn(async move { pods.keep().await });
    node.publish(&POD).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    keeping.abort();
    let root = {
        let mut node = node;
        std::mem::replace(&mut node.root, tempfile::tempdir().unwrap())
    };
    let again = Node::over(root).await;
    connect(again.socket()).await.unwrap();
    assert_eq!(again.pods.all()[0].record.pod.to_string(), "ml/train-0");
}

//! The conformance suite of volume drivers, `csi-sanity`, for what the agent serves of the interface.
//!
//! The agent has no controller service: kubelet itself says what an inline volume is. The suite asks
//! for one, though, so this is where its volumes come from, with the words that kubelet would add.

use std::collections::BTreeMap;
use std::path::Path;

use lifeboat::agent::csi::serve;
use lifeboat::agent::csi::serve::Request;
use lifeboat::agent::csi::serve::Response;
use lifeboat::agent::csi::serve::unary;
use lifeboat::agent::csi::wire;
use prost::Message;
use tokio::net::UnixListener;
use tokio::process::Command;
use tonic::Status;

/// The pod that the suite's volumes are for.
const POD: &str = "5a317100-0000-4000-8000-000000000000";
/// Where the suite's volumes come from, in kubelet's folder.
const SOURCE: &str = "volumes.sock";
/// Kubelet's folder, on the node.
const KUBELET: &str = "/var/lib/kubelet";

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// `csi.v1.ControllerGetCapabilitiesResponse`.
#[derive(Clone, PartialEq, Message)]
struct Capabilities {
    #[prost(message, repeated, tag = "1")]
    capabilities: Vec<Capability>,
}

/// `csi.v1.ControllerServiceCapability`.
#[derive(Clone, PartialEq, Message)]
struct Capability {
    #[prost(message, optional, tag = "1")]
    call: Option<Call>,
}

/// `csi.v1.ControllerServiceCapability.RPC`.
#[derive(Clone, PartialEq, Message)]
struct Call {
    #[prost(int32, tag = "1")]
    kind: i32,
}

/// `csi.v1.CreateVolumeResponse`.
#[derive(Clone, PartialEq, Message)]
struct Created {
    #[prost(message, optional, tag = "1")]
    volume: Option<Volume>,
}

/// `csi.v1.Volume`.
#[derive(Clone, PartialEq, Message)]
struct Volume {
    #[prost(string, tag = "2")]
    id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    context: BTreeMap<String, String>,
}

/// Runs the suite on a node, within its namespaces, against the agent that is there; returns what it
/// says. `kubelet` is kubelet's folder as we see it, `suite` the program.
pub(crate) async fn of_the_agent(
    enter: &[String],
    kubelet: &Path,
    suite: &Path,
) -> Result<String, String> {
    let listener = UnixListener::bind(kubelet.join(SOURCE)).unwrap();
    let source = tokio::spawn(serve::serve(listener, answer));
    let volume = format!("{KUBELET}/pods/{POD}/volumes/kubernetes.io~csi/boat");
    std::fs::create_dir_all(kubelet.join(format!("pods/{POD}/volumes/kubernetes.io~csi"))).unwrap();
    let (program, words) = enter.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(words).arg(suite);
    command.arg(format!("--csi.endpoint={KUBELET}/plugins/lifeboat.dev/csi.sock"));
    command.arg(format!("--csi.controllerendpoint={KUBELET}/{SOURCE}"));
    command.arg(format!("--csi.mountdir={volume}"));
    command.args(["--csi.stagingdir=/run/csi-staging", "--ginkgo.no-color", "--ginkgo.focus"]);
    command.arg("(Identity|Node) Service");
    let output = command.output().await.unwrap();
    source.abort();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

async fn answer(request: Request) -> Response {
    const CREATE_DELETE_VOLUME: i32 = 1;
    match request.uri().path() {
        "/csi.v1.Identity/GetPluginInfo" => {
            let (name, vendor_version) = ("volumes.lifeboat.test".to_owned(), "1".to_owned());
            let info = wire::GetPluginInfoResponse { name, vendor_version };
            unary(request, |_: &Nothing| Ok(info.clone())).await
        }
        "/csi.v1.Identity/GetPluginCapabilities" | "/csi.v1.Identity/Probe" => {
            unary(request, |_: &Nothing| Ok(Nothing {})).await
        }
        "/csi.v1.Controller/ControllerGetCapabilities" => {
            let one = Capability { call: Some(Call { kind: CREATE_DELETE_VOLUME }) };
            let all = Capabilities { capabilities: vec![one] };
            unary(request, |_: &Nothing| Ok(all.clone())).await
        }
        "/csi.v1.Controller/CreateVolume" => unary(request, |_: &Nothing| Ok(created())).await,
        "/csi.v1.Controller/DeleteVolume" => unary(request, |_: &Nothing| Ok(Nothing {})).await,
        _ => Status::unimplemented("nothing like this is asked of it").into_http(),
    }
}

/// A volume as kubelet describes an inline one.
fn created() -> Created {
    let context = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "sanity"),
        ("csi.storage.k8s.io/pod.namespace", "default"),
        ("csi.storage.k8s.io/pod.uid", POD),
    ];
    let context = context.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Created { volume: Some(Volume { id: "csi-sanity".to_owned(), context: context.into() }) }
}

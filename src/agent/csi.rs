//! Serves the volume that brings a socket into each pod, or is its folder: a driver of the Container
//! Storage Interface that mounts nothing.
//!
//! Kubelet itself says which pod a volume is for, so a workload cannot name another one.

use std::collections::BTreeMap;
use std::io;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use lifeboat_domain::ids::NotAName;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::workload::Mode;
use tokio::net::UnixListener;
use tonic::Status;
use tracing::info;
use tracing::warn;

use crate::agent::csi::serve::Request;
use crate::agent::csi::serve::Response;
use crate::agent::csi::serve::unary;
use crate::agent::csi::serve::unary_later;
use crate::agent::csi::socket::Access;
use crate::agent::pods::Pods;
use crate::agent::records::PodRecord;
use crate::agent::workloads::Fill;
use crate::crd::DRIVER;
use crate::error::Chain;

pub mod authority;
pub mod serve;
pub mod socket;
pub mod wire;

/// Where the driver serves, below the host's root.
pub const SOCKET: &str = "var/lib/kubelet/plugins/lifeboat.dev/csi.sock";

/// Where kubelet looks for drivers, below the host's root.
pub const REGISTRATION: &str = "var/lib/kubelet/plugins_registry/lifeboat.dev-reg.sock";

/// The socket within a volume.
pub const AGENT_SOCKET: &str = "agent.sock";

/// Between the pod's UID and the volume's name in a target's path.
const VOLUMES: &str = "volumes/kubernetes.io~csi";

const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";

/// What of a volume's attributes is ours.
const OURS: &str = "lifeboat.dev/";

/// The driver.
#[derive(Debug, Clone)]
pub struct Csi {
    node: String,
    host: Host,
    pods: Pods,
}

/// The host's files, of which kubelet and we may see different roots.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

/// The driver's two sockets.
#[derive(Debug)]
pub struct Listeners {
    registration: UnixListener,
    driver: UnixListener,
}

impl Csi {
    /// The driver of `node`, which hands each pod's socket to `pods`.
    pub fn new(node: &str, host: Host, pods: Pods) -> Self {
        Self { node: node.to_owned(), host, pods }
    }

    /// Takes its place beside kubelet. The driver's own socket comes first: kubelet asks there as
    /// soon as it sees the other.
    pub fn listen(&self) -> io::Result<Listeners> {
        let driver = socket::listen(&self.host.root.join(SOCKET), Access::Owner)?;
        let registration = socket::listen(&self.host.root.join(REGISTRATION), Access::Owner)?;
        Ok(Listeners { registration, driver })
    }

    /// Serves kubelet until dropped.
    pub async fn serve(self, listeners: Listeners) {
        let answer = move |request: Request| self.clone().answer(request);
        let driver = serve::serve(listeners.driver, answer.clone());
        let registration = serve::serve_registration(listeners.registration, answer);
        futures::join!(driver, registration);
    }

    async fn answer(self, request: Request) -> Response {
        match request.uri().path() {
            "/pluginregistration.Registration/GetInfo" => {
                unary(request, |asked| Ok(plugin_info(asked))).await
            }
            "/pluginregistration.Registration/NotifyRegistrationStatus" => {
                unary(request, |asked| Ok(registered(asked))).await
            }
            "/csi.v1.Identity/GetPluginInfo" => {
                unary(request, |asked| Ok(driver_info(asked))).await
            }
            "/csi.v1.Identity/GetPluginCapabilities" => {
                let none = |_: &wire::GetPluginCapabilitiesRequest| {
                    Ok(wire::GetPluginCapabilitiesResponse {})
                };
                unary(request, none).await
            }
            "/csi.v1.Identity/Probe" => unary(request, |asked| Ok(probe(asked))).await,
            "/csi.v1.Node/NodeGetInfo" => unary(request, |asked| Ok(self.node_info(asked))).await,
            "/csi.v1.Node/NodeGetCapabilities" => {
                let none =
                    |_: &wire::NodeGetCapabilitiesRequest| Ok(wire::NodeGetCapabilitiesResponse {});
                unary(request, none).await
            }
            "/csi.v1.Node/NodePublishVolume" => {
                let csi = &self;
                unary_later(request, |asked| async move { csi.publish(&asked).await }).await
            }
            "/csi.v1.Node/NodeUnpublishVolume" => {
                let csi = &self;
                unary_later(request, |asked| async move { csi.unpublish(&asked).await }).await
            }
            _ => Status::unimplemented("this driver serves no such method").into_http(),
        }
    }

    fn node_info(&self, _: &wire::NodeGetInfoRequest) -> wire::NodeGetInfoResponse {
        wire::NodeGetInfoResponse { node_id: self.node.clone(), max_volumes_per_node: 0 }
    }

    /// Comes twice at a pod's start, and again and again after: each time for a socket that is
    /// there, unless the agent was started again since.
    async fn publish(
        &self,
        asked: &wire::NodePublishVolumeRequest,
    ) -> Result<wire::NodePublishVolumeResponse, Status> {
        whole(&asked.volume_id)?;
        asks_for_a_folder(asked)?;
        let pod = pod(asked)?;
        let target = self.host.target(&asked.target_path, Some(pod.pod.uid.as_str()))?;
        let refused = |error: io::Error| {
            warn!(target = %target.display(), error = %Chain(&error), "volume not published");
            Status::internal(format!("the volume was not made: {error}"))
        };
        if self.pods.mode_of(&pod).await == Mode::Directory {
            match self.pods.occupied(pod, (&target, &self.host)).await.map_err(refused)? {
                Fill::Done => (),
                Fill::UnderWay(why) => {
                    return Err(Status::unavailable(format!("the folder is being filled: {why}")));
                }
                Fill::Failed(why) => {
                    return Err(Status::unavailable(format!("the folder was not filled: {why}")));
                }
            }
        } else {
            self.pods.mounted(pod, &target.join(AGENT_SOCKET)).map_err(refused)?;
        }
        Ok(wire::NodePublishVolumeResponse {})
    }

    /// The target must be gone when this succeeds, or kubelet never lets the pod's name go. It
    /// comes for volumes, too, that an agent before us published.
    async fn unpublish(
        &self,
        asked: &wire::NodeUnpublishVolumeRequest,
    ) -> Result<wire::NodeUnpublishVolumeResponse, Status> {
        whole(&asked.volume_id)?;
        let target = self.host.target(&asked.target_path, None)?;
        self.pods.vacated(&asked.target_path).await;
        self.pods.unmounted(&asked.target_path);
        match std::fs::remove_dir_all(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(target = %target.display(), error = %Chain(&error), "volume not removed");
                Err(Status::internal(format!("the target was not removed: {error}")))
            }
            Ok(()) | Err(_) => Ok(wire::NodeUnpublishVolumeResponse {}),
        }
    }
}

impl Host {
    /// The host whose files lie below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// What all of its paths begin with.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where we find what kubelet calls `path`. In a test kubelet may see the same root as we do.
    pub fn path(&self, path: &str) -> PathBuf {
        let path = Path::new(path);
        if path.starts_with(&self.root) {
            return path.to_owned();
        }
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Where we find a volume's target, if it is one: everything below it is going to be removed.
    fn target(&self, path: &str, pod: Option<&str>) -> Result<PathBuf, Status> {
        let refused =
            || Status::invalid_argument(format!("`{path}` is no target of a pod's volume"));
        let plain = Path::new(path)
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let below_pods = path.rsplit_once("/pods/").map(|(_, rest)| rest);
        let parts = below_pods.and_then(|rest| rest.split_once('/'));
        let (uid, volume) = parts.ok_or_else(refused)?;
        let volume = volume.strip_prefix(VOLUMES).and_then(|rest| rest.strip_prefix('/'));
        let mount = volume.and_then(|rest| rest.split_once('/'));
        // Kubelet calls the last part `mount`; the interface leaves it to whoever calls.
        let is_mount =
            mount.is_some_and(|(name, rest)| ![name, rest].contains(&"") && !rest.contains('/'));
        let is_own = pod.is_none_or(|pod| pod == uid);
        if path.starts_with('/') && plain && is_mount && is_own {
            Ok(self.path(path))
        } else {
            Err(refused())
        }
    }
}

fn plugin_info(_: &wire::InfoRequest) -> wire::PluginInfo {
    wire::PluginInfo {
        r#type: "CSIPlugin".into(),
        name: DRIVER.into(),
        endpoint: format!("/{SOCKET}"),
        supported_versions: vec!["1.0.0".into()],
    }
}

fn registered(status: &wire::RegistrationStatus) -> wire::RegistrationStatusResponse {
    if status.plugin_registered {
        info!("volume driver registered with kubelet");
    } else {
        warn!(error = %status.error, "volume driver refused by kubelet");
    }
    wire::RegistrationStatusResponse {}
}

fn driver_info(_: &wire::GetPluginInfoRequest) -> wire::GetPluginInfoResponse {
    let vendor_version = env!("CARGO_PKG_VERSION").into();
    wire::GetPluginInfoResponse { name: DRIVER.into(), vendor_version }
}

fn probe(_: &wire::ProbeRequest) -> wire::ProbeResponse {
    wire::ProbeResponse { ready: Some(wire::BoolValue { value: true }) }
}

/// A call without a volume's name is not kubelet's.
fn whole(volume: &str) -> Result<(), Status> {
    match volume {
        "" => Err(Status::invalid_argument("the call names no volume")),
        _ => Ok(()),
    }
}

fn asks_for_a_folder(asked: &wire::NodePublishVolumeRequest) -> Result<(), Status> {
    match asked.volume_capability {
        None => Err(Status::invalid_argument("the call does not say what kind of volume it wants")),
        Some(wire::VolumeCapability { block: Some(_) }) => {
            Err(Status::invalid_argument("the volume is a folder, and never a block device"))
        }
        Some(wire::VolumeCapability { block: None }) => Ok(()),
    }
}

/// The pod that kubelet says the volume is for.
fn pod(asked: &wire::NodePublishVolumeRequest) -> Result<PodRecord, Status> {
    let said = |key: &str| {
        let value = asked.volume_context.get(key).filter(|value| !value.is_empty());
        value.ok_or_else(|| {
            Status::invalid_argument(format!(
                "the volume's context lacks `{key}`. The CSIDriver needs podInfoOnMount"
            ))
        })
    };
    let refused = |error: NotAName| Status::invalid_argument(error.to_string());
    let mut pod = PodRecord::new(PodRef {
        namespace: said(POD_NAMESPACE)?.parse().map_err(refused)?,
        name: said(POD_NAME)?.parse().map_err(refused)?,
        uid: said(POD_UID)?.parse().map_err(refused)?,
    });
    pod.target = Some(asked.target_path.clone());
    pod.attributes = ours(&asked.volume_context);
    Ok(pod)
}

/// Of what a volume or a pod says about itself, what is for us.
pub fn ours(said: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let for_us = said.iter().filter(|(key, _)| key.starts_with(OURS));
    for_us.map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: &str = "/var/lib/kubelet/pods/8f7a/volumes/kubernetes.io~csi/boat/mount";

    #[test]
    fn a_target_is_found_below_our_root_however_kubelet_names_it() {
        let host = Host::new(Path::new("/tmp/node"));
        let expected = PathBuf::from(format!("/tmp/node{TARGET}"));
        assert_eq!(host.target(TARGET, Some("8f7a")).unwrap(), expected);
        let whole = format!("/tmp/node{TARGET}");
        assert_eq!(host.target(&whole, Some("8f7a")).unwrap(), expected);
        assert_eq!(Host::new(Path::new("/")).target(TARGET, None).unwrap(), Path::new(TARGET));
    }

    #[test]
    fn what_is_no_target_is_never_removed() {
        let host = Host::new(Path::new("/"));
        for path in [
            "",
            "/",
            "relative/pods/8f7a/volumes/kubernetes.io~csi/boat/mount",
            "/var/lib/kubelet/pods/8f7a/volumes/kubernetes.io~csi/../mount",
            "/var/lib/kubelet/pods/8f7a/volumes/kubernetes.io~csi/boat",
            "/var/lib/kubelet/pods/8f7a/volumes/kubernetes.io~csi//mount",
            "/var/lib/kubelet/pods/8f7a/volumes/kubernetes.io~empty-dir/boat/mount",
            "/var/lib/kubelet/pods/8f7a/volumes/kubernetes.io~csi/boat/mount/etc",
        ] {
            assert!(host.target(path, None).is_err(), "{path}");
        }
        assert!(host.target(TARGET, Some("another")).is_err());
    }

    #[test]
    fn a_volume_is_a_folder() {
        let mut asked = wire::NodePublishVolumeRequest::default();
        assert!(asks_for_a_folder(&asked).is_err());
        asked.volume_capability = Some(wire::VolumeCapability { block: None });
        assert!(asks_for_a_folder(&asked).is_ok());
        let block = Some(wire::BlockVolume {});
        asked.volume_capability = Some(wire::VolumeCapability { block });
        assert!(asks_for_a_folder(&asked).is_err());
    }

    #[test]
    fn a_volume_without_its_pod_is_refused() {
        let mut asked = wire::NodePublishVolumeRequest::default();
        assert!(pod(&asked).is_err());
        for (key, value) in [
            (POD_NAME, "train-0"),
            (POD_NAMESPACE, "ml"),
            (POD_UID, "8f7a"),
            ("lifeboat.dev/job-key", "job-1"),
            ("csi.storage.k8s.io/serviceAccount.tokens", "secret"),
        ] {
            asked.volume_context.insert(key.into(), value.into());
        }
        let pod = pod(&asked).unwrap();
        assert_eq!((pod.pod.to_string().as_str(), pod.pod.uid.as_str()), ("ml/train-0", "8f7a"));
        assert_eq!(pod.attributes.len(), 1);
    }
}

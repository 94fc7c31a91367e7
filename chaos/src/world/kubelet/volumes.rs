//! A pod's volumes: published by their driver, or just folders.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::world::cluster::object::entries;
use crate::world::cluster::object::is_true;
use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::text;
use crate::world::kubelet::csi;
use crate::world::kubelet::csi::Publish;
use crate::world::kubelet::pod::PodTask;

/// First wait after a driver that did not answer.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest wait.
const AGAIN_MAX: Duration = Duration::from_secs(122);

/// Makes the plain folders, and has the drivers publish theirs; tries until they do.
pub(super) async fn publish(pod: &PodTask) {
    for volume in items(&pod.pod, "/spec/volumes") {
        if volume.get("emptyDir").is_some() {
            make(&folder(pod, volume));
        }
        if volume.get("csi").is_none() {
            continue;
        }
        let asked = request(pod, volume);
        make(&pod.root.join(asked.target.trim_start_matches('/')).join(".."));
        let mut pause = AGAIN;
        while let Err(error) = csi::publish(&pod.root, &asked).await {
            tracing::debug!(pod = %pod.target, %error, "volume not published");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }
}

/// Has the drivers publish again what they have published, if they listen.
pub(super) async fn republish(pod: &PodTask) {
    for volume in of_drivers(pod) {
        if let Err(error) = csi::publish(&pod.root, &request(pod, volume)).await {
            tracing::debug!(pod = %pod.target, %error, "volume not published again");
        }
    }
}

/// Has the drivers take theirs away; until all have, the pod stays.
pub(super) async fn unpublish(pod: &PodTask) {
    for volume in of_drivers(pod) {
        let asked = request(pod, volume);
        let mut pause = AGAIN;
        while let Err(error) = csi::unpublish(&pod.root, &asked).await {
            tracing::debug!(pod = %pod.target, %error, "volume not unpublished");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }
}

/// What a container mounts, by the path inside of it.
pub(super) fn mounts(pod: &PodTask, container: &str) -> BTreeMap<String, PathBuf> {
    let all = ["/spec/initContainers", "/spec/containers"];
    let mut containers = all.iter().flat_map(|path| items(&pod.pod, path));
    let found = containers.find(|known| text(known, "/name") == container);
    let mut mounts = BTreeMap::new();
    for mount in found.map_or(&[][..], |found| items(found, "/volumeMounts")) {
        let mut volumes = items(&pod.pod, "/spec/volumes").iter();
        if let Some(volume) = volumes.find(|volume| volume["name"] == mount["name"]) {
            mounts.insert(text(mount, "/mountPath").to_owned(), folder(pod, volume));
        }
    }
    mounts
}

fn of_drivers(pod: &PodTask) -> impl Iterator<Item = &Value> {
    items(&pod.pod, "/spec/volumes").iter().filter(|volume| volume.get("csi").is_some())
}

/// Where a volume lies on this machine.
fn folder(pod: &PodTask, volume: &Value) -> PathBuf {
    let host = text(volume, "/hostPath/path");
    if !host.is_empty() {
        return pod.root.join(host.trim_start_matches('/'));
    }
    let name = text(volume, "/name");
    let own = pod.root.join("var/lib/kubelet/pods").join(&pod.uid).join("volumes");
    if volume.get("csi").is_some() {
        return own.join("kubernetes.io~csi").join(name).join("mount");
    }
    own.join("kubernetes.io~empty-dir").join(name)
}

fn make(folder: &Path) {
    // The last part may be `..`, whose own folder has to be there first.
    let parent =
        if folder.ends_with("..") { folder.parent().and_then(|own| own.parent()) } else { None };
    let folder = parent.unwrap_or(folder);
    std::fs::create_dir_all(folder).expect("a machine's folder can be written");
}

/// What the driver is asked: with the pod's facts, as `podInfoOnMount` has it.
fn request(pod: &PodTask, volume: &Value) -> Publish {
    let volume_name = text(volume, "/name");
    let mut context: BTreeMap<String, String> = entries(volume, "/csi/volumeAttributes")
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for (key, value) in [
        ("pod.name", name(&pod.pod)),
        ("pod.namespace", namespace(&pod.pod)),
        ("pod.uid", pod.uid.as_str()),
        ("serviceAccount.name", text(&pod.pod, "/spec/serviceAccountName")),
        ("ephemeral", "true"),
    ] {
        context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
    }
    let digest = blake3::hash(format!("{}/{volume_name}", pod.uid).as_bytes());
    Publish {
        driver: text(volume, "/csi/driver").to_owned(),
        id: format!("csi-{}", digest.to_hex()),
        target: format!(
            "/var/lib/kubelet/pods/{}/volumes/kubernetes.io~csi/{volume_name}/mount",
            pod.uid
        ),
        read_only: is_true(volume, "/csi/readOnly"),
        context,
    }
}

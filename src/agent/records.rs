//! What the agent must still know after a restart with the API server down: its pods, and that EC2
//! wants the instance back.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::ids::PodRef;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::signal::Signals;
use lifeboat_domain::workload::Wishes;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::crd::marks::GRACE_ATTRIBUTE;
use crate::crd::marks::POD_PRIORITY_ATTRIBUTE;
use crate::error::Chain;
use crate::offload::Offload;

/// Where records lie, below the host's root.
pub const FOLDER: &str = "var/lib/lifeboat";

/// Version of the files. A field that is not known is passed over.
const FORMAT: u32 = 1;

/// Pods that are read back at most; kubelet allows 110 by default, EKS up to 737.
const PODS_MAX: usize = 2048;

/// Longest file that is read.
const FILE_MAX: u64 = 256 * 1024;

/// Grace of a pod that names none. Source: Kubernetes, "Pod Lifecycle".
const GRACE_DEFAULT: Duration = Duration::from_secs(30);

/// The records of one node.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
    offload: Offload,
}

/// A pod that the agent has met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRecord {
    /// Version of the file.
    pub format: u32,
    /// The pod; its UID names the file.
    pub pod: PodRef,
    /// Where kubelet wants its volume, as kubelet names the place; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether its volume is a folder that was filled: its workload has used it since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub filled: bool,
    /// `lifeboat.dev/…` among its volume's attributes.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// `lifeboat.dev/…` among its annotations, which go before; absent if it was never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Its own grace in seconds; absent if it was never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u64>,
    /// Its priority; absent if it was never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Its own address, as last seen; absent if it was never read, or is its node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// When its grace is over, once it is being ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<Timestamp>,
    /// The devices that kubelet gave it, as last seen; absent if they were never read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<BTreeSet<Device>>,
}

/// A device that kubelet gave to a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Device {
    /// The extended resource.
    pub resource: String,
    /// The device's id.
    pub id: String,
}

/// What the agent itself heard of its instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoticeRecord {
    /// Version of the file.
    pub format: u32,
    /// The instance, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// What was heard.
    #[serde(default)]
    pub signals: Signals,
}

impl Default for NoticeRecord {
    fn default() -> Self {
        Self { format: FORMAT, instance: None, signals: Signals::default() }
    }
}

impl PodRecord {
    /// A pod of which only its names are known.
    pub fn new(pod: PodRef) -> Self {
        Self {
            format: FORMAT,
            pod,
            target: None,
            filled: false,
            attributes: BTreeMap::new(),
            annotations: None,
            grace_seconds: None,
            priority: None,
            address: None,
            ends_at: None,
            devices: None,
        }
    }

    /// What the pod asks for: by its annotations, and by its volume where they are silent.
    pub fn wishes(&self) -> Wishes {
        Wishes::read(&self.said()).0
    }

    /// The pod's own grace.
    pub fn grace(&self) -> Duration {
        let said = || self.attributes.get(GRACE_ATTRIBUTE)?.parse().ok();
        self.grace_seconds.or_else(said).map_or(GRACE_DEFAULT, Duration::from_secs)
    }

    /// The pod's priority.
    pub fn pod_priority(&self) -> i32 {
        let said = || self.attributes.get(POD_PRIORITY_ATTRIBUTE)?.parse().ok();
        self.priority.or_else(said).unwrap_or_default()
    }

    fn said(&self) -> BTreeMap<String, String> {
        let mut said = self.attributes.clone();
        said.extend(self.annotations.clone().into_iter().flatten());
        said
    }
}

impl Records {
    /// The records below `host_root`.
    pub fn new(host_root: &Path, offload: Offload) -> Self {
        Self { folder: host_root.join(FOLDER), offload }
    }

    /// Every pod that can be read, in the order of UIDs. One that cannot is logged and left out.
    pub async fn pods(&self) -> Vec<PodRecord> {
        let folder = self.folder.join("pods");
        self.offload.run(move || pods(&folder)).await
    }

    /// Keeps a pod, over what was kept of it before.
    pub async fn keep(&self, pod: &PodRecord) -> io::Result<()> {
        let path = self.pod_path(&pod.pod.uid);
        self.write(path, pod).await
    }

    /// Forgets a pod.
    pub async fn forget(&self, uid: &PodUid) -> io::Result<()> {
        let path = self.pod_path(uid);
        self.offload
            .run(move || match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            })
            .await
    }

    /// What was heard before, or nothing if that cannot be read.
    pub async fn notice(&self) -> NoticeRecord {
        let path = self.folder.join("notice.json");
        self.offload
            .run(move || match read(&path) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => NoticeRecord::default(),
                Err(error) => {
                    warn!(path = %path.display(), error = %Chain(&error), "record not read");
                    NoticeRecord::default()
                }
            })
            .await
    }

    /// Keeps what was heard.
    pub async fn keep_notice(&self, notice: &NoticeRecord) -> io::Result<()> {
        self.write(self.folder.join("notice.json"), notice).await
    }

    fn pod_path(&self, uid: &PodUid) -> PathBuf {
        self.folder.join("pods").join(format!("{uid}.json"))
    }

    /// Offloaded, though an effect: one task alone writes a record, and a write that outlives its
    /// future writes what that future meant.
    async fn write<T: Serialize>(&self, path: PathBuf, value: &T) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(value)?;
        self.offload.run(move || replace(&path, &text)).await
    }
}

fn pods(folder: &Path) -> Vec<PodRecord> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!(path = %folder.display(), error = %Chain(&error), "records not read");
            return Vec::new();
        }
    };
    let is_record = |path: &PathBuf| path.extension().is_some_and(|end| end == "json");
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path()).filter(is_record);
    let mut found: Vec<PodRecord> = paths.take(PODS_MAX).filter_map(|path| pod(&path)).collect();
    found.sort_by(|one, other| one.pod.uid.cmp(&other.pod.uid));
    found
}

fn pod(path: &Path) -> Option<PodRecord> {
    match read::<PodRecord>(path) {
        // The file's name is the identity: what says otherwise was not written by us.
        Ok(pod) if path.file_stem().is_some_and(|stem| *stem == *pod.pod.uid.as_str()) => Some(pod),
        Ok(_) => {
            warn!(path = %path.display(), "record passed over: it names another pod");
            None
        }
        Err(error) => {
            warn!(path = %path.display(), error = %Chain(&error), "record not read");
            None
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    if std::fs::metadata(path)?.len() > FILE_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Writes beside, makes it durable, and renames: a reader finds the old or the new, whole.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let absent = || io::Error::from(io::ErrorKind::NotFound);
    let folder = path.parent().ok_or_else(absent)?;
    std::fs::create_dir_all(folder)?;
    let beside = path.with_extension("new");
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use lifeboat_domain::deadline::Deadline;
    use lifeboat_domain::signal::Action;
    use lifeboat_domain::signal::Kind;
    use lifeboat_domain::signal::Signal;
    use lifeboat_domain::signal::Source;
    use lifeboat_domain::workload::Mode;

    use super::*;

    fn record(uid: &str) -> PodRecord {
        let mut record = PodRecord::new(PodRef {
            namespace: "ml".parse().unwrap(),
            name: "train-0".parse().unwrap(),
            uid: uid.parse().unwrap(),
        });
        record.attributes.insert("lifeboat.dev/checkpoint".into(), "sdk".into());
        record
    }

    #[tokio::test]
    async fn pods_are_known_again_and_what_is_torn_or_foreign_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::new(root.path(), Offload::Inline);
        assert_eq!(records.pods().await, []);
        records.keep(&record("b")).await.unwrap();
        records.keep(&record("a")).await.unwrap();
        let folder = root.path().join(FOLDER).join("pods");
        std::fs::write(folder.join("torn.json"), "{\"format\":1,").unwrap();
        std::fs::write(folder.join("c.json"), serde_json::to_vec(&record("a")).unwrap()).unwrap();
        std::fs::write(folder.join("d.new"), "half").unwrap();

        assert_eq!(records.pods().await, [record("a"), record("b")]);
        records.forget(&"a".parse().unwrap()).await.unwrap();
        records.forget(&"a".parse().unwrap()).await.unwrap();
        assert_eq!(records.pods().await, [record("b")]);
    }

    #[tokio::test]
    async fn a_field_of_a_later_version_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::new(root.path(), Offload::Inline);
        let folder = root.path().join(FOLDER).join("pods");
        std::fs::create_dir_all(&folder).unwrap();
        let text = r#"{"format":2,"pod":{"namespace":"ml","name":"train-0","uid":"a"},"gang":8}"#;
        std::fs::write(folder.join("a.json"), text).unwrap();
        assert_eq!(records.pods().await[0].pod.name.as_str(), "train-0");
    }

    #[test]
    fn annotations_go_before_attributes() {
        let mut record = record("a");
        record.attributes.insert("lifeboat.dev/job-key".into(), "from-volume".into());
        record.attributes.insert(GRACE_ATTRIBUTE.into(), "600".into());
        assert_eq!(record.wishes().mode, Mode::Sdk);
        assert_eq!(record.grace(), Duration::from_mins(10));
        let said = BTreeMap::from([("lifeboat.dev/checkpoint".into(), "sigterm".into())]);
        record.annotations = Some(said);
        record.grace_seconds = Some(30);
        assert_eq!(record.wishes().mode, Mode::Sigterm);
        assert_eq!(record.wishes().job_key.unwrap().as_str(), "from-volume");
        assert_eq!(record.grace(), Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_notice_is_known_again() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::new(root.path(), Offload::Inline);
        assert_eq!(records.notice().await, NoticeRecord::default());
        let at = Timestamp::UNIX_EPOCH;
        let signal = Signal {
            source: Source::Imds,
            kind: Kind::SpotInterruption { action: Action::Terminate },
            time: at,
            named: Some(Deadline::new(at)),
            heard_at: at,
            heard_by: "agent".into(),
            detail: None,
        };
        let instance = Some("i-0123456789abcdef0".parse().unwrap());
        let signals = [signal].into_iter().collect();
        let notice = NoticeRecord { instance, signals, ..NoticeRecord::default() };
        records.keep_notice(&notice).await.unwrap();
        assert_eq!(records.notice().await, notice);
    }
}

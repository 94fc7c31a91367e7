//! The host's processes and control groups: whose a process is, whether a pod still has any, and
//! how to stop and wake them.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use lifeboat_domain::ids::PodUid;
use rustix::process::Resource;

use crate::error::Class;
use crate::error::Classify;
use crate::offload::Offload;

/// How deep kubelet's folder may lie below a hierarchy's root; a nested node has it deeper.
const KUBEPODS_DEPTH: usize = 4;

/// How deep a pod's folder may lie below kubelet's.
const POD_DEPTH: usize = 3;

/// How deep control groups below a pod are looked through.
const INSIDE_DEPTH: usize = 6;

/// Folders that one look may read; beyond it we know nothing.
const FOLDERS_MAX: usize = 20_000;

/// Descriptors of a pod's processes that one look may read; beyond it we know nothing.
const DESCRIPTORS_MAX: usize = 200_000;

/// The processes and control groups below a host's root.
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
    offload: Offload,
}

/// Where a process belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// To a pod.
    Pod {
        /// The pod.
        pod: PodUid,
        /// Id of the container as its runtime named it, if the process is in one.
        container: Option<String>,
    },
    /// To no pod: it is the host's.
    Host,
    /// Nowhere: there is no such process.
    Gone,
}

/// Whether a pod has processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Population {
    /// The pod's control group is gone, or holds no process.
    Empty,
    /// These processes are in it.
    Processes(Vec<u32>),
}

/// A file, by its filesystem and its number there.
pub type File = (u64, u64);

/// What is to become of a pod's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    /// They get no more processor time.
    Frozen,
    /// They run.
    Running,
}

/// Why the host told us nothing about a pod or a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// A file was not read or written.
    #[error("file `{}` was not read or written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No control group hierarchy that we know lies below the root.
    #[error("no cgroup v2 and no cgroup v1 freezer hierarchy lies below `{}`", root.display())]
    NoHierarchy {
        /// The root.
        root: PathBuf,
    },
    /// There are more control groups than we look through.
    #[error("more than {FOLDERS_MAX} control groups lie below `{}`", root.display())]
    TooMany {
        /// The hierarchy's root.
        root: PathBuf,
    },
    /// A pod's processes hold more open than we look through.
    #[error("the processes of pod `{pod}` hold more than {DESCRIPTORS_MAX} files open")]
    TooManyOpen {
        /// The pod.
        pod: PodUid,
    },
    /// The pod has no control group.
    #[error("pod `{pod}` has no control group")]
    NoGroup {
        /// The pod.
        pod: PodUid,
    },
}

/// The hierarchy that knows a pod's processes and can freeze them.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hierarchy {
    Unified(PathBuf),
    Freezer(PathBuf),
}

impl Proc {
    /// The host below `root`.
    pub fn new(root: &Path, offload: Offload) -> Self {
        Self { root: root.to_owned(), offload }
    }

    /// Whose process `pid` is.
    pub async fn membership(&self, pid: u32) -> Result<Membership, ProcError> {
        let path = self.root.join("proc").join(pid.to_string()).join("cgroup");
        self.offload
            .run(move || match std::fs::read_to_string(&path) {
                Ok(text) => Ok(membership(&text)),
                Err(error) if gone(&error) => Ok(Membership::Gone),
                Err(source) => Err(ProcError::File { path, source }),
            })
            .await
    }

    /// Whether `pod` still has processes.
    pub async fn population(&self, pod: &PodUid) -> Result<Population, ProcError> {
        let (root, pod) = (self.root.clone(), pod.clone());
        self.offload.run(move || population(&root, &pod)).await
    }

    /// The files that processes of `pod` have open for writing, or mapped so that they can write.
    pub async fn written_by(&self, pod: &PodUid) -> Result<BTreeSet<File>, ProcError> {
        let (root, pod) = (self.root.clone(), pod.clone());
        self.offload.run(move || written_by(&root, &pod)).await
    }

    /// Whether `pod` is frozen; a pod without control group is not.
    pub async fn motion(&self, pod: &PodUid) -> Result<Motion, ProcError> {
        let (root, pod) = (self.root.clone(), pod.clone());
        self.offload.run(move || motion(&root, &pod)).await
    }

    /// Freezes or wakes all of `pod`. It is begun when this returns, not always complete.
    pub async fn set(&self, pod: &PodUid, motion: Motion) -> Result<(), ProcError> {
        let (root, wanted) = (self.root.clone(), pod.clone());
        let found = self.offload.run(move || group(&root, &wanted)).await?;
        let Some((hierarchy, folder)) = found else {
            return Err(ProcError::NoGroup { pod: pod.clone() });
        };
        // Not offloaded: an effect must not come after its future was dropped, and this is a
        // write of a few bytes into the kernel.
        let (path, word) = switch(&hierarchy, &folder, motion);
        std::fs::write(&path, word).map_err(|source| ProcError::File { path, source })
    }
}

impl Classify for ProcError {
    fn class(&self) -> Class {
        match self {
            Self::File { .. } => Class::Transient,
            Self::NoHierarchy { .. }
            | Self::TooMany { .. }
            | Self::TooManyOpen { .. }
            | Self::NoGroup { .. } => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::NoHierarchy { .. } => "no_hierarchy",
            Self::TooMany { .. } => "too_many",
            Self::TooManyOpen { .. } => "too_many_open",
            Self::NoGroup { .. } => "no_group",
        }
    }
}

/// Lets this process hold as many files open as it may: container runtimes start it with 1,024,
/// and a workload's folder has up to a hundred thousand.
pub fn allow_open_files() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "limit of open files not raised");
    }
}

/// Reads `/proc/<pid>/cgroup`.
///
/// By pattern, not by depth: the cgroupfs driver writes `kubepods/burstable/pod<uid>/<id>`, the
/// systemd driver `kubepods-burstable-pod<uid with underscores>.slice/cri-containerd-<id>.scope`,
/// Guaranteed pods have no folder for their class, and a nested node has any prefix, of the path
/// and of the names.
pub fn membership(text: &str) -> Membership {
    let found = text.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        let mut parts = path.split('/').skip_while(|part| !part.contains("kubepods"));
        let pod = parts.find_map(pod_of)?;
        Some(Membership::Pod { pod, container: parts.next().and_then(container_of) })
    });
    found.unwrap_or(Membership::Host)
}

/// The pod that a control group's folder belongs to, if its name says so.
fn pod_of(folder: &str) -> Option<PodUid> {
    let name = folder.strip_suffix(".slice").unwrap_or(folder);
    let uid = match name.rsplit_once("-pod") {
        Some((class, uid)) if class.contains("kubepods") => uid,
        Some(_) | None => name.strip_prefix("pod")?,
    };
    uid.replace('_', "-").parse().ok()
}

/// `<id>` or `<runtime>-<id>.scope`.
fn container_of(folder: &str) -> Option<String> {
    let name = folder.strip_suffix(".scope").unwrap_or(folder);
    let id = name.rsplit_once('-').map_or(name, |(_, id)| id);
    let written_as_id = id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    written_as_id.then(|| id.to_owned())
}

fn population(root: &Path, pod: &PodUid) -> Result<Population, ProcError> {
    let Some((_, folder)) = group(root, pod)? else { return Ok(Population::Empty) };
    let mut pids = Vec::new();
    for group in below(&folder, INSIDE_DEPTH, &|_| true)? {
        pids.extend(pids_in(&group)?);
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(if pids.is_empty() { Population::Empty } else { Population::Processes(pids) })
}

fn written_by(root: &Path, pod: &PodUid) -> Result<BTreeSet<File>, ProcError> {
    let pids = match population(root, pod)? {
        Population::Empty => Vec::new(),
        Population::Processes(pids) => pids,
    };
    let mut written = BTreeSet::new();
    let mut seen = 0;
    for pid in pids {
        let process = root.join("proc").join(pid.to_string());
        seen += open_for_writing(&process, DESCRIPTORS_MAX - seen, &mut written)?;
        if seen >= DESCRIPTORS_MAX {
            return Err(ProcError::TooManyOpen { pod: pod.clone() });
        }
        written.extend(text_of(&process.join("maps"))?.lines().filter_map(shared_mapping));
    }
    Ok(written)
}

/// Adds the files of one process, and says how many descriptors it looked at.
fn open_for_writing(
    process: &Path,
    most: usize,
    written: &mut BTreeSet<File>,
) -> Result<usize, ProcError> {
    let path = process.join("fdinfo");
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(0),
        Err(source) => return Err(ProcError::File { path, source }),
    };
    let mut seen = 0;
    for entry in entries.filter_map(Result::ok).take(most) {
        seen += 1;
        if !may_write(&text_of(&entry.path())?) {
            continue;
        }
        // Through the descriptor, so it is the file itself, whatever its name is by now.
        match std::fs::metadata(process.join("fd").join(entry.file_name())) {
            Ok(found) => _ = written.insert((found.dev(), found.ino())),
            Err(error) if gone(&error) => (),
            Err(source) => return Err(ProcError::File { path: entry.path(), source }),
        }
    }
    Ok(seen)
}

/// Whether a descriptor's `fdinfo` says that it is open for writing.
fn may_write(fdinfo: &str) -> bool {
    const ACCESS: u32 = 3;
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & ACCESS != 0)
}

/// The file of a line of `maps` that is shared and can be written.
fn shared_mapping(line: &str) -> Option<File> {
    let mut parts = line.split_ascii_whitespace().skip(1);
    let permissions = parts.next()?.as_bytes();
    let (device, inode) = (parts.nth(1)?, parts.next()?.parse().ok()?);
    let (major, minor) = device.split_once(':')?;
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    let device = rustix::fs::makedev(number(major)?, number(minor)?);
    let writes = permissions.get(1) == Some(&b'w') && permissions.get(3) == Some(&b's');
    (writes && inode > 0).then_some((device, inode))
}

/// The text of a file of a process; none if the process is gone.
fn text_of(path: &Path) -> Result<String, ProcError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if gone(&error) => Ok(String::new()),
        Err(source) => Err(ProcError::File { path: path.to_owned(), source }),
    }
}

fn motion(root: &Path, pod: &PodUid) -> Result<Motion, ProcError> {
    let Some((hierarchy, folder)) = group(root, pod)? else { return Ok(Motion::Running) };
    let (path, _) = switch(&hierarchy, &folder, Motion::Frozen);
    match std::fs::read_to_string(&path) {
        // `FREEZING` is on its way, and needs the same thaw.
        Ok(text) if matches!(text.trim(), "1" | "FROZEN" | "FREEZING") => Ok(Motion::Frozen),
        Ok(_) => Ok(Motion::Running),
        Err(error) if gone(&error) => Ok(Motion::Running),
        Err(source) => Err(ProcError::File { path, source }),
    }
}

fn pids_in(group: &Path) -> Result<Vec<u32>, ProcError> {
    let path = group.join("cgroup.procs");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.trim().parse().ok()).collect()),
        Err(error) if gone(&error) => Ok(Vec::new()),
        // A threaded group lists no processes; its domain above does.
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Vec::new()),
        Err(source) => Err(ProcError::File { path, source }),
    }
}

/// The pod's folder; `None` if there is none.
fn group(root: &Path, pod: &PodUid) -> Result<Option<(Hierarchy, PathBuf)>, ProcError> {
    let hierarchy = hierarchy(root)?;
    let top = match &hierarchy {
        Hierarchy::Unified(top) | Hierarchy::Freezer(top) => top,
    };
    let kubepods = |path: &Path| name(path).is_some_and(|name| name.contains("kubepods"));
    let homes = below(top, KUBEPODS_DEPTH, &|path| !kubepods(path))?;
    for home in homes.iter().filter(|path| kubepods(path)) {
        let is_pod = |path: &Path| name(path).and_then(pod_of).is_some();
        let folders = below(home, POD_DEPTH, &|path| !is_pod(path))?;
        let own = |path: &PathBuf| name(path).and_then(pod_of).as_ref() == Some(pod);
        if let Some(folder) = folders.into_iter().find(own) {
            return Ok(Some((hierarchy, folder)));
        }
    }
    Ok(None)
}

fn hierarchy(root: &Path) -> Result<Hierarchy, ProcError> {
    let top = root.join("sys/fs/cgroup");
    let freezer = top.join("freezer");
    if top.join("cgroup.controllers").exists() {
        Ok(Hierarchy::Unified(top))
    } else if freezer.is_dir() {
        Ok(Hierarchy::Freezer(freezer))
    } else {
        Err(ProcError::NoHierarchy { root: root.to_owned() })
    }
}

fn switch(hierarchy: &Hierarchy, folder: &Path, motion: Motion) -> (PathBuf, &'static str) {
    match (hierarchy, motion) {
        (Hierarchy::Unified(_), Motion::Frozen) => (folder.join("cgroup.freeze"), "1"),
        (Hierarchy::Unified(_), Motion::Running) => (folder.join("cgroup.freeze"), "0"),
        (Hierarchy::Freezer(_), Motion::Frozen) => (folder.join("freezer.state"), "FROZEN"),
        (Hierarchy::Freezer(_), Motion::Running) => (folder.join("freezer.state"), "THAWED"),
    }
}

/// `top` and the folders below it, in order; what `inside` refuses is listed and not entered.
fn below(
    top: &Path,
    depth: usize,
    inside: &dyn Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>, ProcError> {
    let mut found = vec![top.to_owned()];
    let mut level = vec![top.to_owned()];
    for _ in 0..depth {
        let mut next = Vec::new();
        for folder in level.iter().filter(|folder| inside(folder)) {
            next.extend(folders_in(folder)?);
        }
        if found.len() + next.len() > FOLDERS_MAX {
            return Err(ProcError::TooMany { root: top.to_owned() });
        }
        found.extend(next.iter().cloned());
        level = next;
    }
    Ok(found)
}

fn folders_in(folder: &Path) -> Result<Vec<PathBuf>, ProcError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(source) => return Err(ProcError::File { path: folder.to_owned(), source }),
    };
    let mut folders: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    folders.sort();
    Ok(folders)
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// The process or group ended while it was looked at. A read of a dead process says `ESRCH`.
fn gone(error: &std::io::Error) -> bool {
    const ENODEV: i32 = 19;
    const ESRCH: i32 = 3;
    error.kind() == ErrorKind::NotFound || matches!(error.raw_os_error(), Some(ENODEV | ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "8f7a1c52-3f0e-4f6b-9a58-0c6a1b2d3e4f";
    const ID: &str = "7c1d0b5f5a2e4d3c9b8a7f6e5d4c3b2a7c1d0b5f5a2e4d3c9b8a7f6e5d4c3b2a";

    #[track_caller]
    fn check(path: &str, container: Option<&str>) {
        let container = container.map(str::to_owned);
        assert_eq!(membership(path), Membership::Pod { pod: pod(), container });
    }

    #[test]
    fn a_process_is_joined_to_its_pod_under_every_driver_and_version() {
        let dashed = UID.replace('-', "_");
        check(&format!("4:memory:/lifeboat-rn/kubepods/burstable/pod{UID}/{ID}\n"), Some(ID));
        check(&format!("4:memory:/lifeboat-rn/kubepods/pod{UID}/{ID}\n"), Some(ID));
        check(&format!("0::/kubepods/besteffort/pod{UID}/{ID}"), Some(ID));
        check(
            &format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice/\
                 cri-containerd-{ID}.scope"
            ),
            Some(ID),
        );
        check(
            &format!("0::/kubepods.slice/kubepods-pod{dashed}.slice/crio-{ID}.scope/container"),
            Some(ID),
        );
        check(
            &format!(
                "12:cpuset:/\n0::/kubelet.slice/kubelet-kubepods.slice/\
                 kubelet-kubepods-pod{dashed}.slice"
            ),
            None,
        );
    }

    #[test]
    fn a_process_of_no_pod_is_the_hosts() {
        for text in ["", "0::/", "0::/system.slice/sshd.service", "garbage", "0::/pod1/2"] {
            assert_eq!(membership(text), Membership::Host, "{text}");
        }
    }

    fn pod() -> PodUid {
        UID.parse().unwrap()
    }

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[tokio::test]
    async fn a_pod_without_processes_or_without_group_is_empty() {
        let group = format!("sys/fs/cgroup/kubepods/burstable/pod{UID}");
        let full = format!("{group}/{ID}/cgroup.procs");
        let empty = format!("{group}/cgroup.procs");
        let root =
            host(&[("sys/fs/cgroup/cgroup.controllers", ""), (&empty, ""), (&full, "7\n9\n")]);
        let proc = Proc::new(root.path(), Offload::Inline);
        let population = proc.population(&pod()).await.unwrap();
        assert_eq!(population, Population::Processes(vec![7, 9]));
        std::fs::write(root.path().join(&full), "").unwrap();
        assert_eq!(proc.population(&pod()).await.unwrap(), Population::Empty);
        std::fs::remove_dir_all(root.path().join(&group)).unwrap();
        assert_eq!(proc.population(&pod()).await.unwrap(), Population::Empty);
    }

    #[tokio::test]
    async fn without_a_hierarchy_nothing_is_known() {
        let root = host(&[]);
        let proc = Proc::new(root.path(), Offload::Inline);
        assert!(matches!(proc.population(&pod()).await, Err(ProcError::NoHierarchy { .. })));
    }

    #[tokio::test]
    async fn what_a_pod_has_open_for_writing_is_known_by_its_file_whatever_its_name() {
        let group = format!("sys/fs/cgroup/kubepods/pod{UID}/cgroup.procs");
        let root = host(&[("sys/fs/cgroup/cgroup.controllers", ""), (&group, "7\n")]);
        // This very process stands for the pod's.
        std::fs::create_dir_all(root.path().join("proc")).unwrap();
        std::os::unix::fs::symlink("/proc/self", root.path().join("proc/7")).unwrap();
        let proc = Proc::new(root.path(), Offload::Inline);
        let path = root.path().join("model.pt");
        let written = std::fs::File::create(&path).unwrap();
        std::fs::rename(&path, root.path().join("renamed.pt")).unwrap();
        std::fs::write(root.path().join("read.pt"), "state").unwrap();
        let read = std::fs::File::open(root.path().join("read.pt")).unwrap();
        let id = |file: &std::fs::File| {
            let found = file.metadata().unwrap();
            (found.dev(), found.ino())
        };
        let found = proc.written_by(&pod()).await.unwrap();
        assert!(found.contains(&id(&written)) && !found.contains(&id(&read)), "{found:?}");
        let gone = id(&written);
        drop(written);
        assert!(!proc.written_by(&pod()).await.unwrap().contains(&gone));
        std::fs::write(root.path().join(&group), "").unwrap();
        assert_eq!(proc.written_by(&pod()).await.unwrap(), BTreeSet::new());
    }

    #[test]
    fn a_shared_mapping_that_can_be_written_is_one_of_its_file() {
        let line = |mode: &str| format!("7f00-7f10 {mode} 00000000 fe:01 4711      /ckpt/model.pt");
        let file = Some((rustix::fs::makedev(0xfe, 1), 4711));
        assert_eq!(shared_mapping(&line("rw-s")), file);
        for mode in ["r--s", "rw-p", "r-xp"] {
            assert_eq!(shared_mapping(&line(mode)), None);
        }
        assert_eq!(shared_mapping("7f00-7f10 rw-s 00000000 00:01 0"), None);
        assert_eq!(shared_mapping("7f00-7f10 rw-p 00000000 00:00 0 [heap]"), None);
        assert_eq!(shared_mapping(""), None);
        assert!(may_write("pos:\t0\nflags:\t0100001\nmnt_id:\t1\n"));
        assert!(may_write("flags:\t02\n") && !may_write("flags:\t0100000\n") && !may_write(""));
    }

    #[tokio::test]
    async fn a_pod_is_frozen_and_woken_under_both_versions() {
        let dashed = UID.replace('-', "_");
        let unified =
            format!("sys/fs/cgroup/kubepods.slice/kubepods-pod{dashed}.slice/cgroup.freeze");
        let freezer = format!("sys/fs/cgroup/freezer/a/b/kubepods/pod{UID}/freezer.state");
        let v2 = host(&[("sys/fs/cgroup/cgroup.controllers", ""), (&unified, "0")]);
        let v1 = host(&[(&freezer, "THAWED")]);
        for (root, file, frozen, running) in
            [(&v2, &unified, "1", "0"), (&v1, &freezer, "FROZEN", "THAWED")]
        {
            let proc = Proc::new(root.path(), Offload::Inline);
            proc.set(&pod(), Motion::Frozen).await.unwrap();
            assert_eq!(std::fs::read_to_string(root.path().join(file)).unwrap(), frozen);
            assert_eq!(proc.motion(&pod()).await.unwrap(), Motion::Frozen);
            proc.set(&pod(), Motion::Running).await.unwrap();
            assert_eq!(std::fs::read_to_string(root.path().join(file)).unwrap(), running);
            assert_eq!(proc.motion(&pod()).await.unwrap(), Motion::Running);
        }
    }
}

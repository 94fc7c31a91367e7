//! A workload's own folder: what lies in it, opened beneath its root and through no link, and
//! filled again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use lifeboat_checkpoint::folder::DEPTH_MAX;
use lifeboat_domain::directory::FILES_MAX;
use lifeboat_domain::directory::Home;
use lifeboat_domain::directory::MARKER;
use lifeboat_domain::directory::Oddity;
use lifeboat_domain::directory::home;
use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Stat;

use crate::error::Class;
use crate::error::Classify;

pub mod fill;
pub mod renames;

/// What no path may do on its way: leave the folder, follow a link, or cross to another filesystem.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// How much later than a file's the time of the folder may be in which it was made: one tick.
const TICK_NS: i64 = 10_000_000;

/// A workload's folder.
#[derive(Debug)]
pub struct Folder {
    root: OwnedFd,
}

/// What lay in a folder at one moment, by the names at its top.
pub type Sets = BTreeMap<String, Found>;

/// A file or folder at the top, with everything in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Each after the folder that it lies in.
    pub entries: Vec<Entry>,
    /// What cannot be saved.
    pub oddity: Option<Oddity>,
}

/// A file or a folder as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path below the root.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Which object it is, and when it was last changed.
    pub stamp: Stamp,
    /// Its permissions.
    pub mode: u32,
    /// Who owns it.
    pub user: u32,
    /// Which group does.
    pub group: u32,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file.
    File,
}

/// Which object a file is, and when it was last changed. Two equal stamps: nothing was written in
/// between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Its filesystem.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// When its content was changed, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// When anything of it was changed, its name included.
    pub changed_ns: i64,
}

/// Why a folder was not read or filled.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The kernel said no.
    #[error("`{path}` was not reached")]
    Unreached {
        /// Where, below the root.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// There is too much in it.
    #[error(
        "the folder holds more than {FILES_MAX} files and folders, or more than {DEPTH_MAX} in one another"
    )]
    TooMany,
    /// It is another file than was looked at, or was written since.
    #[error("`{path}` was changed meanwhile")]
    Changed {
        /// Where, below the root.
        path: String,
    },
}

impl Classify for FolderError {
    fn class(&self) -> Class {
        match self {
            Self::Unreached { .. } | Self::TooMany => Class::Permanent,
            Self::Changed { .. } => Class::Transient,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Unreached { .. } => "unreached",
            Self::TooMany => "too_many",
            Self::Changed { .. } => "changed",
        }
    }
}

impl Folder {
    /// The folder at `path`, which is ours up to there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// Where it lies.
    pub fn home(&self) -> io::Result<Home> {
        let found = rustix::fs::fstatfs(&self.root)?;
        Ok(home(u64::from_ne_bytes(i64::to_ne_bytes(found.f_type))))
    }

    /// Everything in it. Nothing is opened but folders.
    pub fn look(&self) -> Result<Sets, FolderError> {
        let mut walk = Walk { folder: self, sets: Sets::new(), found: 0, flat: None };
        walk.enter("", 0)?;
        Ok(walk.sets)
    }

    /// Opens the files among these entries, if they are what was looked at; none for folders.
    pub fn take(&self, entries: &[Entry]) -> Result<Vec<Option<Arc<OwnedFd>>>, FolderError> {
        entries
            .iter()
            .map(|entry| match entry.kind {
                Kind::Folder => Ok(None),
                Kind::File => self.file(entry).map(|file| Some(Arc::new(file))),
            })
            .collect()
    }

    /// Held by its path first, which opens nothing: a device or a pipe in a file's place stays shut.
    fn file(&self, entry: &Entry) -> Result<OwnedFd, FolderError> {
        let unreached = |error| unreached(&entry.path, error);
        let held = self.open_beneath(&entry.path, OFlags::PATH | OFlags::NOFOLLOW);
        let held = held.map_err(unreached)?;
        let found = rustix::fs::fstat(&held).map_err(unreached)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile
            || stamp(&found) != entry.stamp
        {
            return Err(FolderError::Changed { path: entry.path.clone() });
        }
        let own = format!("/proc/self/fd/{}", held.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::open(own, flags, Mode::empty()).map_err(unreached)
    }

    fn open_beneath(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), BENEATH)
    }
}

/// The stamp of an open file.
pub fn stamp_of(file: &OwnedFd) -> io::Result<Stamp> {
    Ok(stamp(&rustix::fs::fstat(file)?))
}

impl Found {
    /// Size of its files.
    pub fn bytes(&self) -> u64 {
        self.files().fold(0, |sum, entry| sum.saturating_add(entry.stamp.bytes))
    }

    /// The newest change of its content, in nanoseconds since 1970; none if there is none.
    pub fn modified_ns(&self) -> Option<i64> {
        let of = |entry: &Entry| match entry.kind {
            Kind::File => entry.stamp.modified_ns,
            Kind::Folder => entry.stamp.modified_ns.saturating_sub(TICK_NS),
        };
        self.entries.iter().map(of).max()
    }

    /// Its marker: right in it, not deeper.
    pub fn marker(&self, name: &str) -> Option<&Entry> {
        let path = if name == FLAT { MARKER.to_owned() } else { format!("{name}/{MARKER}") };
        self.files().find(|entry| entry.path == path)
    }

    fn files(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.kind == Kind::File)
    }
}

/// The name of the set that all files at the top make together, if there is a marker among them.
pub const FLAT: &str = ".";

struct Walk<'a> {
    folder: &'a Folder,
    sets: Sets,
    found: usize,
    /// The set of the files at the top, if they are one.
    flat: Option<&'static str>,
}

impl Walk<'_> {
    fn enter(&mut self, path: &str, depth: usize) -> Result<(), FolderError> {
        if depth >= DEPTH_MAX {
            return Err(FolderError::TooMany);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let opened = self.folder.open_beneath(if path.is_empty() { "." } else { path }, flags);
        let opened = match opened {
            Ok(opened) => opened,
            // Taken away while we looked.
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(unreached(path, error)),
        };
        let mut names = self.names(&opened, path)?;
        names.sort();
        if path.is_empty() {
            self.flat = names.iter().any(|name| name == MARKER).then_some(FLAT);
        }
        for name in names {
            let inside = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            match rustix::fs::statat(&opened, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => self.meet(&inside, &found, depth)?,
                Err(rustix::io::Errno::NOENT) => (),
                Err(error) => return Err(unreached(&inside, error)),
            }
        }
        Ok(())
    }

    /// The names in a folder. One that is no text is told of, and not looked at.
    fn names(&mut self, opened: &OwnedFd, path: &str) -> Result<Vec<String>, FolderError> {
        let read = Dir::read_from(opened).map_err(|error| unreached(path, error))?;
        let mut names = Vec::new();
        for entry in read {
            let entry = entry.map_err(|error| unreached(path, error))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            self.found += 1;
            if self.found > FILES_MAX {
                return Err(FolderError::TooMany);
            }
            match name.to_str() {
                Some(name) => names.push(name.to_owned()),
                None => self.odd(&format!("{path}/{}", name.display()), "a name that is no text"),
            }
        }
        Ok(names)
    }

    fn meet(&mut self, path: &str, found: &Stat, depth: usize) -> Result<(), FolderError> {
        let kind = match kind_of(FileType::from_raw_mode(found.st_mode)) {
            Ok(kind) => kind,
            Err(what) => {
                self.odd(path, what);
                return Ok(());
            }
        };
        let stamp = stamp(found);
        let (mode, user, group) = (found.st_mode & 0o777, found.st_uid, found.st_gid);
        let entry = Entry { path: path.to_owned(), kind, stamp, mode, user, group };
        self.set(path, kind).entries.push(entry);
        if kind == Kind::Folder { self.enter(path, depth + 1) } else { Ok(()) }
    }

    fn odd(&mut self, path: &str, what: &'static str) {
        let path = path.trim_start_matches('/').to_owned();
        let oddity = Oddity { path: path.clone(), what };
        self.set(&path, Kind::Folder).oddity.get_or_insert(oddity);
    }

    fn set(&mut self, path: &str, kind: Kind) -> &mut Found {
        let top = match (path.split_once('/'), self.flat) {
            (Some((top, _)), _) => top,
            (None, Some(flat)) if kind == Kind::File => flat,
            (None, _) => path,
        };
        self.sets.entry(top.to_owned()).or_default()
    }
}

fn stamp(found: &Stat) -> Stamp {
    let nanoseconds =
        |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    Stamp {
        device: found.st_dev,
        inode: found.st_ino,
        bytes: u64::try_from(found.st_size).unwrap_or(0),
        modified_ns: nanoseconds(found.st_mtime, small(found.st_mtime_nsec)),
        changed_ns: nanoseconds(found.st_ctime, small(found.st_ctime_nsec)),
    }
}

/// Nanoseconds of a second, which the kernel's interfaces count in types of several widths.
fn small(nanoseconds: impl TryInto<i64>) -> i64 {
    nanoseconds.try_into().unwrap_or(0)
}

/// What can be saved, or what else it is.
fn kind_of(found: FileType) -> Result<Kind, &'static str> {
    match found {
        FileType::RegularFile => Ok(Kind::File),
        FileType::Directory => Ok(Kind::Folder),
        FileType::Symlink => Err("a symbolic link"),
        FileType::Fifo => Err("a named pipe"),
        FileType::Socket => Err("a socket"),
        FileType::BlockDevice | FileType::CharacterDevice => Err("a device"),
        FileType::Unknown => Err("of an unknown type"),
    }
}

fn unreached(path: &str, error: rustix::io::Errno) -> FolderError {
    FolderError::Unreached { path: path.to_owned(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[&str]) -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().unwrap();
        for path in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "state").unwrap();
        }
        let folder = Folder::open(root.path()).unwrap();
        (root, folder)
    }

    fn names(sets: &Sets) -> Vec<String> {
        sets.iter().map(|(name, found)| format!("{name} {}", found.entries.len())).collect()
    }

    #[test]
    fn what_lies_at_the_top_is_a_set_with_all_that_is_in_it() {
        let (_root, folder) = folder(&["step-1/a", "step-1/deep/b", "latest", "step-2/a"]);
        let sets = folder.look().unwrap();
        assert_eq!(names(&sets), ["latest 1", "step-1 4", "step-2 2"]);
        assert_eq!(sets["step-1"].bytes(), 10);
        assert_eq!(folder.home().unwrap(), Home::Node);
    }

    #[test]
    fn with_a_marker_at_the_top_the_files_there_are_one_set() {
        let (_root, folder) = folder(&["a", "b", MARKER, "step-1/a"]);
        let sets = folder.look().unwrap();
        assert_eq!(names(&sets), [". 3", "step-1 2"]);
        assert_eq!(sets[FLAT].marker(FLAT).unwrap().path, MARKER);
        assert_eq!(sets["step-1"].marker("step-1"), None);
    }

    #[test]
    fn what_is_neither_file_nor_folder_is_told_by_name_and_never_opened() {
        let (root, folder) = folder(&["step-1/a", "step-2/a"]);
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("step-1/link")).unwrap();
        let pipe = root.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
        fs::write(root.path().join(OsStr::from_bytes(b"step-3\xff")), "state").unwrap();
        let sets = folder.look().unwrap();
        let told = |name: &str| {
            let oddity = sets[name].oddity.as_ref().unwrap();
            format!("{} is {}", oddity.path, oddity.what)
        };
        assert_eq!(told("step-1"), "step-1/link is a symbolic link");
        assert_eq!(told("pipe"), "pipe is a named pipe");
        assert_eq!(told("socket"), "socket is a socket");
        assert_eq!(told("step-3\u{fffd}"), "step-3\u{fffd} is a name that is no text");
        assert_eq!(sets["step-2"].oddity, None);
    }

    #[test]
    fn a_link_a_pipe_or_another_file_in_the_place_of_one_that_was_seen_is_not_opened() {
        let (root, folder) = folder(&["step-1/a", "step-1/b", "step-1/c", "step-1/d", "step-2/a"]);
        let sets = folder.look().unwrap();
        let path = |name: &str| root.path().join("step-1").join(name);
        let swap = |name: &str| fs::remove_file(path(name)).unwrap();
        swap("a");
        std::os::unix::fs::symlink("/etc/passwd", path("a")).unwrap();
        swap("b");
        rustix::fs::mknodat(rustix::fs::CWD, path("b"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        swap("c");
        fs::write(path("c"), "state").unwrap();
        let take = |which: usize| folder.take(&sets["step-1"].entries[which..=which]);
        assert!(matches!(
            take(1),
            Err(FolderError::Changed { .. } | FolderError::Unreached { .. })
        ));
        assert!(matches!(take(2), Err(FolderError::Changed { .. })));
        assert!(matches!(take(3), Err(FolderError::Changed { .. })));
        assert!(take(4).unwrap()[0].is_some());
        // A whole folder swapped for a link that leads out.
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("a"), "state").unwrap();
        fs::remove_dir_all(root.path().join("step-2")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("step-2")).unwrap();
        let led_out = folder.take(&sets["step-2"].entries);
        assert!(matches!(led_out, Err(FolderError::Unreached { .. })), "{led_out:?}");
    }

    #[test]
    fn a_file_that_is_taken_stays_what_it_was_when_it_is_replaced() {
        let (root, folder) = folder(&["model.pt"]);
        let taken = folder.take(&folder.look().unwrap()["model.pt"].entries).unwrap();
        fs::write(root.path().join("new"), "another").unwrap();
        fs::rename(root.path().join("new"), root.path().join("model.pt")).unwrap();
        let mut bytes = [0; 5];
        rustix::io::pread(taken[0].as_ref().unwrap(), &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"state");
    }

    #[test]
    fn folders_in_one_another_have_an_end() {
        let deep = "d/".repeat(DEPTH_MAX + 1) + "a";
        let (_root, folder) = folder(&[&deep]);
        assert!(matches!(folder.look(), Err(FolderError::TooMany)));
    }
}

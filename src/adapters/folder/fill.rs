//! Fills a folder with what was saved of another, before anybody else sees it.

use std::io;
use std::os::fd::OwnedFd;

use lifeboat_checkpoint::folder::DEPTH_MAX;
use lifeboat_checkpoint::folder::Entry;
use lifeboat_checkpoint::folder::Kind;
use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::Uid;

use crate::adapters::folder::BENEATH;

use crate::adapters::folder::Folder;
use crate::adapters::folder::FolderError;
use crate::adapters::folder::unreached;

/// Permissions until all is in place.
const OURS: Mode = Mode::RWXU;

/// A file that is being filled.
#[derive(Debug)]
pub struct Writable(OwnedFd);

impl Writable {
    /// Writes all of `bytes` from there on.
    pub fn write(&self, bytes: &[u8], from: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(&self.0, &bytes[done..], from + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => done += more,
                Err(rustix::io::Errno::INTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Folder {
    /// Takes away everything in it.
    pub fn clear(&self) -> Result<(), FolderError> {
        self.empty("", 0)
    }

    /// Lets every user of the pod write at its top.
    pub fn open_to_all(&self) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.root, Mode::from_raw_mode(0o777))?)
    }

    /// Makes every entry, the files as large as they will be and all of zeros.
    pub fn lay_out(&self, entries: &[Entry]) -> Result<(), FolderError> {
        for entry in entries {
            self.make(entry).map_err(|error| unreached(&entry.path, error))?;
        }
        Ok(())
    }

    /// A file that was laid out, to be written.
    pub fn writable(&self, path: &str) -> Result<Writable, FolderError> {
        let opened = self.open_to_write(path, OFlags::empty());
        opened.map(Writable).map_err(|error| unreached(path, error))
    }

    /// Gives every entry its owner, its permissions and its time, the innermost first.
    pub fn finish(&self, entries: &[Entry]) -> Result<(), FolderError> {
        for entry in entries.iter().rev() {
            self.give(entry).map_err(|error| unreached(&entry.path, error))?;
        }
        Ok(())
    }

    fn make(&self, entry: &Entry) -> rustix::io::Result<()> {
        match entry.kind {
            Kind::Folder => rustix::fs::mkdirat(&self.root, entry.path.as_str(), OURS),
            Kind::File { bytes } => {
                let file = self.open_to_write(&entry.path, OFlags::CREATE | OFlags::EXCL)?;
                rustix::fs::ftruncate(&file, bytes)
            }
        }
    }

    fn give(&self, entry: &Entry) -> rustix::io::Result<()> {
        let flags = match entry.kind {
            Kind::Folder => OFlags::RDONLY | OFlags::DIRECTORY,
            Kind::File { .. } => OFlags::RDONLY,
        };
        let file = self.open_beneath(&entry.path, flags | OFlags::NOFOLLOW)?;
        let owner = (Some(Uid::from_raw(entry.user)), Some(Gid::from_raw(entry.group)));
        match rustix::fs::fchown(&file, owner.0, owner.1) {
            // An agent that is not root gives what is its own.
            Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => (),
            Err(error) => return Err(error),
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))?;
        let time = Timespec {
            tv_sec: entry.modified_ns.div_euclid(1_000_000_000),
            tv_nsec: entry.modified_ns.rem_euclid(1_000_000_000),
        };
        rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
    }

    fn open_to_write(&self, path: &str, extra: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | extra;
        let mode = if extra.contains(OFlags::CREATE) { OURS } else { Mode::empty() };
        rustix::fs::openat2(&self.root, path, flags, mode, BENEATH)
    }

    fn empty(&self, path: &str, depth: usize) -> Result<(), FolderError> {
        if depth >= DEPTH_MAX {
            return Err(FolderError::TooMany);
        }
        let failed = |error| unreached(path, error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let own = if path.is_empty() { "." } else { path };
        let folder = self.open_beneath(own, flags).map_err(failed)?;
        for entry in Dir::read_from(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let found = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW);
            let kind = FileType::from_raw_mode(found.map_err(failed)?.st_mode);
            let mut how = AtFlags::empty();
            if kind == FileType::Directory {
                let name = name.to_string_lossy();
                let inside =
                    if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") };
                self.empty(&inside, depth + 1)?;
                how = AtFlags::REMOVEDIR;
            }
            rustix::fs::unlinkat(&folder, name, how).map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;

    fn entry(path: &str, kind: Kind, mode: u32) -> Entry {
        let (user, group) =
            (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        Entry {
            path: path.to_owned(),
            kind,
            mode,
            user,
            group,
            modified_ns: 1_700_000_000_000_000_007,
        }
    }

    #[test]
    fn a_folder_is_filled_with_what_was_saved_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("half/deep")).unwrap();
        fs::write(root.path().join("half/deep/a"), "torn").unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("link")).unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let entries = [
            entry("step-1", Kind::Folder, 0o500),
            entry("step-1/a", Kind::File { bytes: 8 }, 0o440),
        ];
        folder.clear().unwrap();
        folder.lay_out(&entries).unwrap();
        folder.writable("step-1/a").unwrap().write(b"state", 3).unwrap();
        folder.finish(&entries).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        let file = root.path().join("step-1/a");
        assert_eq!(fs::read(&file).unwrap(), b"\0\0\0state");
        let found = fs::metadata(&file).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime_nsec()), (0o440, 7));
        let above = fs::metadata(root.path().join("step-1")).unwrap();
        assert_eq!((above.mode() & 0o7777, above.mtime()), (0o500, 1_700_000_000));
        assert!(Path::new("/etc/passwd").exists());
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), root.path().join("step-1")).unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let file = [entry("step-1/a", Kind::File { bytes: 1 }, 0o600)];
        assert!(folder.lay_out(&file).is_err());
        assert!(folder.writable("step-1/a").is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

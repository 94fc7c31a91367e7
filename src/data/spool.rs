//! The spool: room on the node's own `NVMe` for what is saved while nothing is wrong.
//!
//! Whoever passes memory through a ring stands still until its last byte is taken. Taken to the
//! spool, that lasts as long as a disk takes; to the bucket it goes from there, at its own pace. The
//! files have no name: whatever becomes of the agent, the kernel frees them.

use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// A folder, and how many bytes may lie in it. Clones share it.
#[derive(Clone, Debug)]
pub struct Spool {
    folder: PathBuf,
    most: u64,
    used: Arc<Mutex<u64>>,
}

/// Room for one state. Given back when dropped, and the bytes with it.
#[derive(Debug)]
pub struct Spooled {
    file: File,
    bytes: u64,
    _taken: Taken,
}

/// Bytes that count as used until this is dropped.
#[derive(Debug)]
struct Taken {
    bytes: u64,
    used: Arc<Mutex<u64>>,
}

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Others' states lie there, or it is too small.
    #[error("the spool has no room for {wanted} bytes: {used} of {most} are taken")]
    Full {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that are taken.
        used: u64,
        /// Bytes that may be.
        most: u64,
    },
    /// The disk refused.
    #[error("the spool at `{folder}` took no file")]
    Disk {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Spool {
    /// Makes the folder, which nobody else may look into.
    pub fn open(folder: &Path, most: u64) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Self { folder: folder.to_owned(), most, used: Arc::default() })
    }

    /// Room for so many bytes, which the disk has from then on. Blocks while it makes it.
    pub fn room(&self, bytes: u64) -> Result<Spooled, SpoolError> {
        let taken = self.take(bytes)?;
        let refused = |source| SpoolError::Disk { folder: self.folder.clone(), source };
        let file = tempfile::tempfile_in(&self.folder).map_err(refused)?;
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes.max(1)) {
            // What cannot be asked for is found out by writing.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(Spooled { file, bytes, _taken: taken }),
            Err(error) => Err(refused(error.into())),
        }
    }

    fn take(&self, wanted: u64) -> Result<Taken, SpoolError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        match used.checked_add(wanted).filter(|sum| *sum <= self.most) {
            Some(sum) => *used = sum,
            None => return Err(SpoolError::Full { wanted, used: *used, most: self.most }),
        }
        Ok(Taken { bytes: wanted, used: Arc::clone(&self.used) })
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spooled {
    /// Writes bytes there; none beyond the room that was asked for.
    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let end = at.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(bytes, at)
    }

    /// Reads bytes from there on.
    pub fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, at)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(most: u64) -> (tempfile::TempDir, Spool) {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(&folder.path().join("spool"), most).unwrap();
        (folder, spool)
    }

    #[test]
    fn what_is_spooled_comes_back_and_lies_under_no_name() {
        let (_folder, spool) = spool(1 << 20);
        let room = spool.room(100).unwrap();
        room.write(b"state", 95).unwrap();
        assert!(room.write(b"state", 96).is_err());
        assert!(room.write(b"x", u64::MAX).is_err());
        let mut buffer = [0; 5];
        room.read(&mut buffer, 95).unwrap();
        assert_eq!(&buffer, b"state");
        // An agent that dies now leaves nothing that anybody would have to find.
        assert_eq!(std::fs::read_dir(&spool.folder).unwrap().count(), 0);
    }

    #[test]
    fn there_is_as_much_room_as_was_said_and_it_is_given_back() {
        let (_folder, spool) = spool(1000);
        let first = spool.room(600).unwrap();
        assert!(matches!(
            spool.room(401).unwrap_err(),
            SpoolError::Full { wanted: 401, used: 600, most: 1000 }
        ));
        assert!(matches!(spool.room(u64::MAX).unwrap_err(), SpoolError::Full { .. }));
        let second = spool.room(400).unwrap();
        drop(first);
        assert_eq!(spool.used(), 400);
        drop(second);
        spool.room(1000).unwrap();
    }

    #[test]
    fn a_disk_that_is_gone_takes_no_room_with_it() {
        let (folder, spool) = spool(1000);
        drop(folder);
        assert!(matches!(spool.room(10).unwrap_err(), SpoolError::Disk { .. }));
        assert_eq!(spool.used(), 0);
    }
}

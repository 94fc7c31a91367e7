//! Sockets at paths that are too long for a socket's address.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use tokio::net::UnixListener;

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Root alone: kubelet.
    Owner,
    /// Everybody who can see it: the containers of one pod, under whatever user.
    Everybody,
}

/// Listens at `path`, whose folder is made; what was there before is replaced.
///
/// An address holds 107 bytes and a CSI target alone has 93, so it goes through the folder's
/// descriptor.
pub fn listen(path: &Path, access: Access) -> io::Result<UnixListener> {
    let absent = || io::Error::from(io::ErrorKind::NotFound);
    let (folder, name) = (path.parent().ok_or_else(absent)?, path.file_name().ok_or_else(absent)?);
    std::fs::create_dir_all(folder)?;
    let folder = open(folder)?;
    match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => (),
        Err(error) => return Err(error.into()),
    }
    let short = through(&folder).join(name);
    let listener = UnixListener::bind(&short)?;
    let mode = match access {
        Access::Owner => 0o600,
        Access::Everybody => 0o666,
    };
    std::fs::set_permissions(&short, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

fn open(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

fn through(folder: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_may_lie_deeper_than_an_address_is_long_and_replaces_a_stale_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a".repeat(90)).join("b".repeat(90)).join("agent.sock");
        let first = listen(&path, Access::Everybody).unwrap();
        drop(first);
        let _second = listen(&path, Access::Owner).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

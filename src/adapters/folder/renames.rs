//! Hears what is renamed into a folder: the kernel tells, and nothing that can be read later does.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use rustix::fs::inotify::CreateFlags;
use rustix::fs::inotify::ReadFlags;
use rustix::fs::inotify::WatchFlags;
use rustix::io::Errno;

/// Names that are remembered at most: beyond it nothing counts as renamed into place.
const NAMES_MAX: usize = 100_000;

/// The names at the top of a folder that were renamed into place, and not touched since.
#[derive(Debug)]
pub struct Renames {
    heard: OwnedFd,
    names: BTreeSet<String>,
}

impl Renames {
    /// Listens from now on. What was renamed before is not known.
    pub fn listen(folder: &Path) -> io::Result<Self> {
        let heard = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::DONT_FOLLOW;
        inotify::add_watch(&heard, folder, flags)?;
        Ok(Self { heard, names: BTreeSet::new() })
    }

    /// The names that were renamed into place, and of which nothing else was heard since.
    pub fn names(&mut self) -> &BTreeSet<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.heard, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().and_then(|name| name.to_str().ok());
                    if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                        self.names.clear();
                    } else if let Some(name) = name {
                        take_in(&mut self.names, name, event.events());
                    }
                }
                Err(Errno::WOULDBLOCK) => break,
                Err(Errno::INTR) => (),
                Err(error) => {
                    tracing::warn!(%error, "renames into a workload's folder not heard");
                    self.names.clear();
                    break;
                }
            }
        }
        &self.names
    }
}

fn take_in(names: &mut BTreeSet<String>, name: &str, events: ReadFlags) {
    if events.contains(ReadFlags::MOVED_TO) && names.len() < NAMES_MAX {
        names.insert(name.to_owned());
    } else {
        names.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_renamed_into_place_is_known_until_it_is_touched() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("before"), "state").unwrap();
        let mut renames = Renames::listen(root.path()).unwrap();
        let mut check = |expected: &[&str]| {
            let found: Vec<&str> = renames.names().iter().map(String::as_str).collect();
            assert_eq!(found, expected);
        };
        fs::write(path("new"), "state").unwrap();
        check(&[]);
        fs::rename(path("new"), path("model.pt")).unwrap();
        fs::create_dir(path("half")).unwrap();
        fs::rename(path("half"), path("step-1")).unwrap();
        check(&["model.pt", "step-1"]);
        fs::write(path("model.pt"), "more").unwrap();
        check(&["step-1"]);
        fs::remove_dir(path("step-1")).unwrap();
        fs::create_dir(path("step-1")).unwrap();
        check(&[]);
    }
}

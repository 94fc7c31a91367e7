//! A limit of memory that the kernel keeps: a cgroup of its own for one process.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::ensure;

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup with a limit; removed when dropped, once its process is gone.
pub(super) struct Bound {
    folder: PathBuf,
    version: Version,
}

/// Which cgroups this machine has for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn limit(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }

    fn peak(self) -> &'static str {
        match self {
            Self::One => "memory.max_usage_in_bytes",
            Self::Two => "memory.peak",
        }
    }
}

impl Bound {
    /// One of so many MiB, below the one that this process is in.
    pub(super) fn new(limit_mib: u64) -> anyhow::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let (version, parent) = parent(&own).context("no cgroup of memory is mounted here")?;
        let folder = parent.join(format!("lifeboat-bench-{}", std::process::id()));
        let made = || format!("no cgroup can be made at {}", folder.display());
        fs::create_dir(&folder).with_context(made)?;
        let bound = Self { folder, version };
        bound.write(version.limit(), limit_mib << 20)?;
        Ok(bound)
    }

    /// A command that puts itself into the cgroup before it becomes the program.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
        command.arg(self.folder.join("cgroup.procs")).arg(program);
        command
    }

    /// The most that was ever charged, in MiB. An error if the kernel killed somebody for it.
    pub(super) fn peak_mib(&self) -> anyhow::Result<f64> {
        let events = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let events = fs::read_to_string(self.folder.join(events))?;
        let killed = events
            .lines()
            .any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"));
        ensure!(!killed, "the kernel killed the agent: it went beyond its limit");
        let peak = fs::read_to_string(self.folder.join(self.version.peak()))?;
        Ok(peak.trim().parse::<f64>()? / f64::from(1 << 20))
    }

    fn write(&self, name: &str, value: u64) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, value.to_string()).with_context(|| path.display().to_string())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // The kernel lets go of its processes a little later than they are gone.
        for _ in 0..20 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// Which cgroups there are, and the folder of the one that these lines of `/proc/self/cgroup` say.
fn parent(own: &str) -> Option<(Version, PathBuf)> {
    let below = |root: &str, path: &str| Path::new(root).join(path.trim_start_matches('/'));
    let one = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == "memory").then_some(path)
    });
    if let Some(path) = one {
        return Some((Version::One, below(&format!("{ROOT}/memory"), path)));
    }
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some((Version::Two, below(ROOT, path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_in_both_versions() {
        let found =
            |text: &str| parent(text).map(|(version, path)| (version, path.display().to_string()));
        let one = "5:devices:/\n4:memory:/a/b\n0::/\n";
        assert_eq!(found(one), Some((Version::One, format!("{ROOT}/memory/a/b"))));
        assert_eq!(found("0::/c\n"), Some((Version::Two, format!("{ROOT}/c"))));
        assert_eq!(found(""), None);
    }
}

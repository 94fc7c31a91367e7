//! A virtual workload that knows no agent: it writes checkpoints into a folder, and begins with the
//! newest that lies there.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use crate::world::runtime::Launch;
use crate::world::runtime::TERMINATED;
use crate::world::workloads::Behavior;
use crate::world::workloads::Diary;
use crate::world::workloads::raised;
use crate::world::workloads::rank::contents;

/// Where its folder is mounted.
pub const FOLDER: &str = "/ckpt";

/// The file that says that the folder it lies in is whole.
const MARKER: &str = ".lifeboat-complete";

/// Checkpoints that it keeps.
const KEPT: usize = 2;

/// What it works with.
pub(super) struct Writer {
    behavior: Behavior,
    name: String,
    job: String,
    folder: PathBuf,
    diary: Diary,
}

impl Writer {
    pub(super) fn new(behavior: Behavior, launch: &Launch, diary: Diary) -> Self {
        let text = |path: &str| launch.pod.pointer(path).and_then(|value| value.as_str());
        let name = text("/metadata/name").unwrap_or_default().to_owned();
        let job = text("/metadata/labels/chaos.lifeboat.dev~1job").unwrap_or(&name).to_owned();
        let folder = launch.mounts.get(FOLDER).cloned().unwrap_or_default();
        Self { behavior, name, job, folder, diary }
    }

    /// Works until it is told to end, and ends as a program does that handles no signal.
    pub(super) async fn run(self, mut terminated: watch::Receiver<bool>) -> i32 {
        tokio::select! {
            biased;
            () = raised(&mut terminated) => TERMINATED,
            () = self.work() => 0,
        }
    }

    async fn work(&self) {
        let mut step = self.begin();
        while step < self.behavior.steps {
            tokio::time::sleep(Duration::from_millis(self.behavior.step_ms)).await;
            step += 1;
            self.save(step).expect("a machine's folder can be written");
        }
        self.note(&format!("finished at step {step}"));
    }

    /// The newest checkpoint that is there, and must be what was written.
    fn begin(&self) -> u64 {
        let Some(step) = steps(&self.folder).pop() else {
            self.note("starts anew (the folder is empty)");
            return 0;
        };
        let found = fs::read(self.folder.join(name(step)).join("deep/state")).unwrap_or_default();
        let is_whole = found == self.state(step);
        let whole = if is_whole { "" } else { " with another state" };
        self.note(&format!("resumed at step {step}{whole} (the folder)"));
        step
    }

    /// Writes the state first and the marker last, and takes the oldest away.
    fn save(&self, step: u64) -> io::Result<()> {
        let folder = self.folder.join(name(step));
        fs::create_dir_all(folder.join("deep"))?;
        fs::write(folder.join("deep/state"), self.state(step))?;
        fs::write(folder.join(MARKER), "")?;
        let all = steps(&self.folder);
        for old in all.iter().take(all.len().saturating_sub(KEPT)) {
            fs::remove_dir_all(self.folder.join(name(*old)))?;
        }
        Ok(())
    }

    fn state(&self, step: u64) -> Vec<u8> {
        contents(&self.job, 0, step, 0..self.behavior.state_bytes)
    }

    fn note(&self, what: &str) {
        self.diary.note(format!("{} {what}", self.name));
    }
}

fn name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The steps that lie in a folder, in their order.
fn steps(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let step =
        |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok();
    let mut steps: Vec<u64> = entries.filter_map(step).collect();
    steps.sort_unstable();
    steps
}

//! What a client of others takes for the same bytes to the same store: s5cmd, from files in memory.

use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::ensure;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::Instant;

use crate::bench::program::Taken;
use crate::bench::save::Moved;
use crate::bench::save::PATIENCE;
use crate::bench::save::Setting;
use crate::bench::save::Store;
use crate::bench::save::workload;
use crate::bench::screen::say;
use crate::programs::BUCKET;
use crate::serve::REGION;

/// Where files lie in memory.
const MEMORY: &str = "/dev/shm";
/// How often it is looked at what the program has taken.
const LOOK: Duration = Duration::from_millis(10);

/// The program, and what it is to put: a file for each chunk.
pub(super) struct Peer {
    program: PathBuf,
    folder: TempDir,
    bytes: u64,
    connections: usize,
}

impl Peer {
    /// None, said aloud, where there is no such program.
    pub(super) fn new(program: &Path, setting: &Setting) -> anyhow::Result<Option<Self>> {
        let version = std::process::Command::new(program).arg("version").output();
        if !version.as_ref().is_ok_and(|output| output.status.success()) {
            say(&format!(
                "skipped: `{}` is no s5cmd that runs. `go install github.com/peak/s5cmd/v2@v2.3.0` \
                 builds one",
                program.display()
            ));
            return Ok(None);
        }
        let folder = match tempfile::tempdir_in(MEMORY) {
            Ok(folder) => folder,
            Err(_) => tempfile::tempdir()?,
        };
        let chunk = setting.chunk_mib << 20;
        for start in (0..setting.bytes).step_by(usize::try_from(chunk)?) {
            let file = std::fs::File::create(folder.path().join(start.to_string()))?;
            let length = chunk.min(setting.bytes - start);
            let mut part = vec![0; usize::try_from(length)?];
            workload::make_up(usize::try_from(start)?, &mut part);
            BufWriter::new(file).write_all(&part)?;
        }
        let (bytes, connections) = (setting.bytes, setting.connections);
        Ok(Some(Self { program: program.to_owned(), folder, bytes, connections }))
    }

    /// Has it put all of them, so many at a time and none in parts.
    pub(super) async fn put(&self, store: &Store) -> anyhow::Result<Moved> {
        let begun = Instant::now();
        let mut child = Command::new(&self.program)
            .args(["--endpoint-url", &store.endpoint])
            .args(["--numworkers", &self.connections.to_string()])
            .args(["--log", "error", "--retry-count", "0", "cp", "--part-size", "64"])
            .arg(format!("{}/*", self.folder.path().display()))
            .arg(format!("s3://{BUCKET}/bare/"))
            .envs(store.trusts())
            // Its SDK prefers this one, which may be set already.
            .envs(store.trusts().map(|(_, path)| ("AWS_CA_BUNDLE", path)))
            .env("AWS_ACCESS_KEY_ID", "demo")
            .env("AWS_SECRET_ACCESS_KEY", "demo")
            .env("AWS_REGION", REGION)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("s5cmd was not started")?;
        let pid = child.id().context("s5cmd ended at once")?;
        let own = Taken::of(std::process::id());
        let mut taken = Taken::default();
        let status = loop {
            taken =
                Taken { cpu_seconds: taken.cpu_seconds.max(Taken::of(pid).cpu_seconds), ..taken };
            match tokio::time::timeout(LOOK, child.wait()).await {
                Ok(status) => break status?,
                Err(_) => ensure!(begun.elapsed() < PATIENCE, "s5cmd took too long"),
            }
        };
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(status.success(), "s5cmd ended with {status}");
        let store_cpu = Taken::of(std::process::id()).cpu_seconds - own.cpu_seconds;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
        let gigabytes = self.bytes as f64 / 1e9;
        Ok(Moved {
            gb_per_second: gigabytes / seconds,
            seconds,
            workload_cpu: taken.cpu_seconds / gigabytes,
            agent_cpu: 0.0,
            store_cpu: store_cpu / gigabytes,
        })
    }
}

//! A controller as a process, and what it costs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::process::Child;
use tokio::process::Command;
use tokio::time::Instant;

use crate::crew;

/// Ticks of a second in `/proc`.
///
/// Source: `proc(5)`; the kernel reports `USER_HZ`, which is 100 on every architecture of EC2.
const TICKS: f64 = 100.0;
/// How long a controller may take until it has read every list.
const START_MAX: Duration = Duration::from_mins(3);
/// A controller that took less of a processor than this in a second has nothing to do.
const AT_REST: f64 = 0.1;

/// A running controller.
pub(super) struct Controller {
    child: Child,
    pid: u32,
    at_rest: Taken,
}

/// What a process has taken.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Taken {
    /// Resident memory now, in MiB.
    pub(super) resident_mib: f64,
    /// The most that was ever resident, in MiB.
    pub(super) peak_mib: f64,
    /// Processor time, in seconds.
    pub(super) cpu_seconds: f64,
}

impl Controller {
    /// Starts one, whose output is added to a file.
    pub(super) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let child = crew::start(command, log)?;
        let pid = child.id().context("the controller ended at once")?;
        Ok(Self { child, pid, at_rest: Taken::default() })
    }

    /// Returns once it has read its lists and rests.
    pub(super) async fn rests(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + START_MAX;
        let mut before = None;
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("the controller ended by itself: {status}");
            }
            let now = self.taken();
            if before.is_some_and(|before| now.cpu_seconds - before < AT_REST) {
                self.at_rest = now;
                return Ok(());
            }
            before = Some(now.cpu_seconds);
        }
        anyhow::bail!("the controller did not come to rest")
    }

    /// What it had taken when it rested.
    pub(super) fn at_rest(&self) -> Taken {
        self.at_rest
    }

    /// What it has taken so far.
    pub(super) fn taken(&self) -> Taken {
        Taken::of(self.pid)
    }

    /// Kills it with -9, and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        self.child.kill().await.ok();
    }
}

impl Taken {
    /// What a process has taken so far; nothing of one that is gone.
    pub(super) fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let kilobytes = |name: &str| -> f64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            value.unwrap_or(0.0)
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2);
        Self {
            resident_mib: kilobytes("VmRSS:") / 1024.0,
            peak_mib: kilobytes("VmHWM:") / 1024.0,
            cpu_seconds: ticks.filter_map(|tick| tick.parse::<f64>().ok()).sum::<f64>() / TICKS,
        }
    }
}

/// The load average of the last minute.
pub(super) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

//! What a healthy step costs: a call of `boat.step` while the agent wants nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;
use lifeboat_sdk::Boat;
use rustix::thread::SecureComputingMode;
use serde::Serialize;
use tokio::time::Instant;

use crate::bench::program;
use crate::bench::save;
use crate::bench::save::Setting;
use crate::bench::save::Stage;
use crate::bench::save::Way;
use crate::bench::save::sink::Keep;
use crate::bench::screen;

/// Where the thread is that takes steps in silence.
const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const DONE: u8 = 2;
const REFUSED: u8 = 3;
const COUNTED: u8 = 4;
/// How long steps without a system call may take until one of them is taken for killed.
const SILENT: Duration = Duration::from_secs(30);

/// How it is measured.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How many steps.
    #[arg(long, default_value_t = 10_000_000)]
    steps: u64,
    /// Writes the figures as data.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    steps: u64,
    load: f64,
    /// Each of five runs, in nanoseconds a step.
    nanoseconds: Vec<f64>,
    /// Whether the kernel, told to end a thread at its first system call, let it take them all.
    no_system_call: bool,
}

/// Measures, prints, and answers whether a step takes less than a microsecond and no system call.
pub(super) async fn run(options: &Options) -> anyhow::Result<bool> {
    let mut stage = Stage::set(&Setting::small(), Keep::Nothing, Way::Plain).await?;
    stage.workload.begin().await?;
    let order = format!("steps {}", options.steps);
    let load = program::load();
    let mut nanoseconds = Vec::new();
    for _ in 0..5 {
        let seconds = stage.workload.order(&order).await?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 steps")]
        nanoseconds.push(seconds * 1e9 / options.steps as f64);
    }
    let no_system_call = stage.workload.order(&format!("silent {order}")).await.is_ok();
    stage.workload.end().await?;
    nanoseconds.sort_by(f64::total_cmp);
    let median = nanoseconds[nanoseconds.len() / 2];
    screen::print(&format!(
        "{} steps with an agent that wants nothing: {median:.1} ns each, {} system calls; load {load:.1}",
        options.steps,
        if no_system_call { "no" } else { "SOME" }
    ));
    let figures = Figures { steps: options.steps, load, nanoseconds, no_system_call };
    save::keep(options.json.as_ref(), &figures)?;
    Ok(no_system_call && median < 1000.0)
}

/// So many steps, one after the other; how long they took.
pub(super) fn steps(boat: &Boat, from: u64, count: u64) -> Result<Duration, lifeboat_sdk::Error> {
    let begun = Instant::now();
    for step in from..from + count {
        boat.step(std::hint::black_box(step))?;
    }
    Ok(begun.elapsed())
}

/// Whether so many steps take no system call; none where the kernel cannot tell.
///
/// They are taken on a thread that the kernel ends at its first call but `read` and `write`, and
/// those two it counts.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread that the kernel watches, of a real process"
)]
pub fn are_silent(boat: &Arc<Boat>, from: u64, count: u64) -> Option<bool> {
    let stage = Arc::new(AtomicU8::new(WAITING));
    let (boat, at) = (Arc::clone(boat), Arc::clone(&stage));
    let (tell, told) = mpsc::channel();
    // Not to be joined: it ends by the kernel's hand.
    thread::spawn(move || {
        if tell.send(rustix::thread::gettid()).is_err() {
            return;
        }
        until(&at, BEGUN);
        if rustix::thread::set_secure_computing_mode(SecureComputingMode::Strict).is_err() {
            return at.store(REFUSED, Ordering::SeqCst);
        }
        // No clock here: its counter is forbidden, too.
        let well = (from..from + count).all(|step| boat.step(step).is_ok());
        at.store(if well { DONE } else { REFUSED }, Ordering::SeqCst);
        until(&at, COUNTED);
    });
    let thread = told.recv().ok()?.as_raw_nonzero().get();
    let before = reads_and_writes(thread)?;
    stage.store(BEGUN, Ordering::SeqCst);
    let begun = Instant::now();
    while stage.load(Ordering::SeqCst) == BEGUN && begun.elapsed() < SILENT {
        if reads_and_writes(thread).is_none() {
            return Some(false);
        }
        thread::sleep(Duration::from_millis(5));
    }
    let ended = stage.load(Ordering::SeqCst);
    let after = reads_and_writes(thread);
    stage.store(COUNTED, Ordering::SeqCst);
    (ended != REFUSED).then(|| ended == DONE && after == Some(before))
}

/// Waits without a system call.
fn until(stage: &AtomicU8, wanted: u8) {
    while stage.load(Ordering::SeqCst) != wanted {
        std::hint::spin_loop();
    }
}

/// Calls of `read` and of `write` that a thread of ours has made.
fn reads_and_writes(thread: i32) -> Option<[u64; 2]> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/io")).ok()?;
    let count = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    Some([count("syscr:")?, count("syscw:")?])
}

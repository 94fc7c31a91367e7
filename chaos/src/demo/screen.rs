//! What a person sees of the demo: a timeline as it happens, and a table at the end.

use std::io::IsTerminal;

use indicatif::MultiProgress;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use jiff::Timestamp;

use crate::chronicle::Event;
use crate::chronicle::What;
use crate::demo::STATE_BYTES;
use crate::demo::TRAINERS;
use crate::demo::verdict::Observation;
use crate::demo::verdict::Row;
use crate::world::World;

/// The timeline, with a progress line for each workload where somebody looks.
pub(super) struct Screen {
    shown: usize,
    bars: MultiProgress,
    workloads: Vec<(&'static str, ProgressBar)>,
}

impl Screen {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self { shown: 0, bars: MultiProgress::new(), workloads: Vec::new() }
    }

    /// The notice: what came before is not shown.
    pub(super) fn begin(&mut self, _: Timestamp, events: usize) {
        self.shown = events;
        if !std::io::stderr().is_terminal() {
            return;
        }
        let style =
            ProgressStyle::with_template("  {prefix:8} {bar:30} {bytes}/{total_bytes} stored");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        for crate::cast::Trainer { job, .. } in TRAINERS {
            let bar = ProgressBar::new(STATE_BYTES).with_style(style.clone()).with_prefix(job);
            self.workloads.push((job, self.bars.add(bar)));
        }
    }

    /// Shows what is new.
    pub(super) fn show(&mut self, events: &[Event], world: &World, noticed: Timestamp) {
        for event in events.iter().skip(self.shown).filter(|event| is_telling(event)) {
            let after = event.at.duration_since(noticed).as_secs_f64();
            let line = format!("T+{after:5.1} s  {}", event.what);
            if self.workloads.is_empty() {
                say(&line);
            } else {
                self.bars.suspend(|| say(&line));
            }
        }
        self.shown = events.len();
        for (job, bar) in &self.workloads {
            bar.set_position(stored(world, job).min(STATE_BYTES));
        }
    }
}

/// Bytes of chunks in the bucket under a Job's key.
fn stored(world: &World, job: &str) -> u64 {
    let folder = format!("/{job}/chunks/");
    world.read(|state| {
        let log = state.bucket.log().iter();
        let puts = log.filter(|access| access.method == "PUT" && access.key.contains(&folder));
        puts.map(|access| access.bytes).sum()
    })
}

/// What a person wants to see; the rest is in the data.
fn is_telling(event: &Event) -> bool {
    match &event.what {
        What::Bound { pod, .. } | What::Gone { pod, .. } => pod.starts_with("train"),
        What::Deadline { .. } => false,
        _ => true,
    }
}

/// What was seen and what was not.
pub(super) fn observations(observations: &[Observation]) {
    say("");
    for observation in observations {
        let mark = if observation.seen { "  seen" } else { "UNSEEN" };
        say(&format!("{mark}  {}  ({})", observation.what, observation.detail));
    }
}

/// What was saved, when, with how much to spare, and where each went on.
pub(super) fn table(rows: &[Row]) {
    say("");
    say(&format!(
        "{:10} {:>9} {:>6} {:>9} {:>9}  {:16} {:>5} {:>8} {:>10}  {}",
        "workload",
        "saved",
        "step",
        "durable",
        "to spare",
        "ended",
        "exit",
        "resumed",
        "at step",
        "proof"
    ));
    for row in rows {
        say(&format!(
            "{:10} {:>9} {:>6} {:>9} {:>9}  {:16} {:>5} {:>8} {:>10}  {}",
            row.workload,
            or_dash(row.bytes.map(|bytes| format!("{} MiB", bytes >> 20))),
            or_dash(row.saved_step),
            or_dash(row.durable_at.map(|at| format!("T+{at:.1} s"))),
            or_dash(row.to_spare.map(|spare| format!("{spare:.1} s"))),
            or_dash(row.ended.clone()),
            or_dash(row.exit_code),
            or_dash(row.resumed_at.map(|at| format!("T+{at:.1} s"))),
            or_dash(row.resumed_step),
            or_dash(row.proof.clone()),
        ));
    }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The title of an act.
pub(super) fn title(title: &str) {
    say(&format!("\n{title}\n"));
}

/// One line for a person.
#[expect(clippy::print_stdout, reason = "a demo is there to be looked at")]
pub(super) fn say(line: &str) {
    println!("{line}");
}

//! How fast a state comes back into a workload's memory, through the real agent and its ring, side
//! by side with bare GETs of the same bytes from the same store.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::bench::save;
use crate::bench::save::Moved;
use crate::bench::save::Setting;
use crate::bench::save::Stage;
use crate::bench::save::Way;
use crate::bench::save::busy::Busy;
use crate::bench::save::median;
use crate::bench::save::row;
use crate::bench::save::sink::Keep;
use crate::bench::screen;
use crate::bench::screen::say;

/// What is restored, and where from.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    setting: Setting,
    /// Writes the figures as data.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    #[serde(flatten)]
    ground: save::Ground,
    /// GETs of the same bytes into the same place, with nothing checked.
    bare: Vec<Moved>,
    /// From the call of `restore` to its return: read, checked, copied, and the job key claimed.
    restore: Vec<Moved>,
    /// The median restore, in parts of the median bare round.
    of_bare: f64,
    /// The slowest restore over what the bytes take at 0.9 of the bare rate, in seconds.
    over_seconds: f64,
    agent_mib: save::Mebibytes,
}

/// Measures, prints the table, and answers whether what came back is what was saved.
pub(super) async fn run(options: &Options) -> anyhow::Result<bool> {
    let setting = &options.setting;
    say("the machine's own limits …");
    let ground = save::Ground::of(setting);
    let mut stage = Stage::set(setting, Keep::All, Way::Plain).await?;
    let idle = stage.agent.taken().resident_mib;
    stage.workload.begin().await?;
    let bare = stage.bare_order("bare");
    stage.measure(&bare).await?;
    stage.measure("save").await?;
    let _busy = Busy::start(setting.busy)?;
    let (mut bare, mut restore) = (Vec::new(), Vec::new());
    for round in 1..=setting.rounds.max(1) {
        stage.renew(setting).await?;
        let order = stage.bare_order("bare-get");
        bare.push(stage.measure(&order).await?);
        restore.push(stage.measure("begin").await?);
        stage.workload.order("same").await?;
        say(&format!("round {round} of {}", setting.rounds));
    }
    let slowest = restore.iter().map(|moved| moved.seconds).fold(0.0, f64::max);
    let fits = restore.first().map_or(0.0, |moved| moved.gb_per_second * moved.seconds);
    let figures = Figures {
        of_bare: median(&restore) / median(&bare),
        over_seconds: slowest - fits / (0.9 * median(&bare)),
        agent_mib: save::Mebibytes::of(&stage.agent, idle, setting)?,
        ground,
        bare,
        restore,
    };
    stage.workload.end().await?;
    figures.lines().iter().for_each(|line| screen::print(line));
    save::keep(options.json.as_ref(), &figures)?;
    Ok(true)
}

impl Figures {
    fn lines(&self) -> Vec<String> {
        let mut lines = self.ground.lines();
        lines.push(save::heading());
        lines.extend(self.bare.iter().map(|moved| row("bare GETs", moved)));
        lines.extend(self.restore.iter().map(|moved| row("restore", moved)));
        lines.push(format!("restore: {:.2} of bare, by the medians", self.of_bare));
        lines.push(format!(
            "the slowest took {:+.2} s over its bytes at 0.9 of the bare rate",
            self.over_seconds
        ));
        lines.push(self.agent_mib.line());
        lines
    }
}

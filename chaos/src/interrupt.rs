//! One trainer of any language, interrupted once over real processes: what it was saved at, where it
//! went on, and whether it ended as if nothing had happened.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use lifeboat_checkpoint::manifest::Kind;
use serde::Serialize;
use tokio::time::Instant;

use crate::cast::Cast;
use crate::cast::Ends;
use crate::cast::NODE;
use crate::cast::PACE;
use crate::cast::Play;
use crate::cast::Trainer;
use crate::checkers;
use crate::chronicle::Event;
use crate::chronicle::What;
use crate::world::instances::NoticeAction;
use crate::world::instances::announce::Announcement;

/// The job.
const JOB: &str = "train-i";
/// The instance's end, counted from the notice.
const LEAD: Duration = Duration::from_secs(110);
/// When a trainer trains, and when all of it is over, at the latest: frameworks take their time to
/// be imported on a machine that does something else.
const END: Duration = Duration::from_mins(6);

/// What is trained.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Size of the state.
    pub bytes: u64,
    /// Steps in all, a step each tenth of a second.
    pub steps: u64,
    /// How long it trains before the notice.
    pub after: Duration,
}

/// What was seen.
#[derive(Debug, Default, Serialize)]
pub struct Seen {
    /// The step that was saved.
    pub saved: Option<u64>,
    /// With which code the trainer ended that was interrupted.
    pub exit_code: Option<i64>,
    /// The step at which its successor went on.
    pub resumed: Option<u64>,
    /// The digest of the state at the end of the work.
    pub digest: Option<String>,
    /// The digest of a run that nothing interrupts.
    pub reference: Option<String>,
    /// What is wrong with the bucket.
    pub broken: Vec<String>,
    /// All that happened, as lines.
    pub said: Vec<String>,
}

impl Seen {
    /// Whether nothing was lost.
    pub fn is_well(&self) -> bool {
        let same_step = self.saved.is_some() && self.saved == self.resumed;
        let same_end = self.digest.is_some() && self.digest == self.reference;
        same_step && same_end && self.exit_code == Some(143) && self.broken.is_empty()
    }
}

/// Plays an interruption of the trainer that lies in `programs` as `examples/trainer`.
pub async fn run(programs: &Path, logs: &Path, work: Work) -> anyhow::Result<Seen> {
    let folder = tempfile::tempdir()?;
    let play = Play {
        nodes: vec![
            format!("node {NODE} type g5.12xlarge zone us-east-2a"),
            "node gpu-2 type g6.12xlarge zone us-east-2b".to_owned(),
        ],
        trainers: vec![Trainer { job: JOB, options: "hold on-signal", ends: Ends::AtOnce }],
        bytes: work.bytes,
        steps: work.steps,
        pace: PACE,
        chunk: "1MiB".to_owned(),
        settings: BTreeMap::new(),
        before_store: Box::new(|store, _| store),
    };
    let cast = Cast::new(programs, (folder.path(), logs), play).await?;
    let training = tokio::time::timeout(END, cast.all_training()).await;
    if training.is_ok() {
        tokio::time::sleep(work.after).await;
        announce(&cast);
        finished(&cast).await;
    }
    let mut seen = look(&cast.events());
    seen.reference = cast.reference_digests().await?.remove(JOB);
    let broken = cast.world.read(checkers::bucket);
    seen.broken = broken.iter().map(ToString::to_string).collect();
    cast.end().await;
    Ok(seen)
}

fn announce(cast: &Cast) {
    let node = cast.node_of(JOB).unwrap_or_default();
    let announcement = Announcement {
        action: NoticeAction::Terminate,
        lead: LEAD,
        imds_after: Some(Duration::ZERO),
        queues: &[crate::programs::QUEUE],
    };
    cast.world.announce(&cast.instance_of(&node), announcement);
}

async fn finished(cast: &Cast) {
    let end = Instant::now() + END;
    while Instant::now() < end && look(&cast.events()).digest.is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn look(events: &[Event]) -> Seen {
    let mut seen = Seen::default();
    for event in events {
        seen.said.push(event.what.to_string());
        match &event.what {
            What::Committed(commit) if commit.kind == Kind::Save => {
                seen.saved.get_or_insert(commit.step);
            }
            What::Exited { pod, code, .. } if pod.starts_with(JOB) => {
                seen.exit_code.get_or_insert(*code);
            }
            What::Said(line) => seen.hear(line),
            _ => (),
        }
    }
    seen
}

impl Seen {
    /// `train-i-x resumed at step 42 (Released)`, `train-i-x finished at step 90 digest 5f`
    fn hear(&mut self, line: &str) {
        let after = |words: &str| {
            let (_, rest) = line.split_once(words)?;
            rest.split(' ').next()
        };
        if let Some(step) = after(" resumed at step ") {
            self.resumed = step.parse().ok();
        }
        if line.contains(" finished at step ") {
            self.digest = after(" digest ").map(str::to_owned);
        }
    }
}

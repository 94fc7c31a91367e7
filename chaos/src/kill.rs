//! Kills the agent's process, or takes the store away, between two writes of a save, and looks at
//! what is left.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::bail;
use lifeboat_checkpoint::manifest::Kind;
use rustix::process::Pid;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::cast::Agents;
use crate::cast::Cast;
use crate::cast::Ends;
use crate::cast::NODE;
use crate::cast::PACE;
use crate::cast::Play;
use crate::cast::Trainer;
use crate::checkers;
use crate::chronicle::What;
use crate::wire::BoxError;
use crate::wire::Wire;
use crate::wire::call;
use crate::wire::wire;
use crate::world::instances::NoticeAction;
use crate::world::instances::announce::Announcement;

/// Writes of one save at least: two chunks of parameters, which are never zero, the manifest of the
/// rank, and the manifest over all.
pub const WRITES_MIN: u32 = 4;
/// State of the trainer: six chunks of a MiB.
const STATE_BYTES: u64 = 6 << 20;
/// The job.
const JOB: &str = "train-k";
/// When all of it is over at the latest.
const END: Duration = Duration::from_secs(90);

/// How long a store is away: its connections break, and new ones, too.
const AWAY: Duration = Duration::from_secs(1);

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The agent, with SIGKILL.
    Agent,
    /// The store, which comes back.
    Store,
}

/// What one run showed.
#[derive(Debug)]
pub struct Killed {
    /// How often the victim was killed: once, or not at all if the save had fewer writes.
    pub kills: u32,
    /// The step that was saved.
    pub saved: u64,
    /// The step at which the successor went on.
    pub resumed: u64,
}

/// Plays an interruption in which the victim is killed after the agent's write of this number,
/// counted from the notice, was stored and before the agent hears of that.
pub async fn after_write(programs: &Path, victim: Victim, number: u32) -> anyhow::Result<Killed> {
    let folder = tempfile::tempdir()?;
    let fuse = Arc::new(Fuse::new(victim, number));
    let lit = Arc::clone(&fuse);
    let play = Play {
        nodes: vec![
            format!("node {NODE} type g5.12xlarge zone us-east-2a"),
            "node gpu-2 type g6.12xlarge zone us-east-2b".to_owned(),
        ],
        trainers: vec![Trainer { job: JOB, options: "hold on-signal", ends: Ends::AtOnce }],
        bytes: STATE_BYTES,
        steps: 1_000_000,
        pace: PACE,
        chunk: "1MiB".to_owned(),
        settings: BTreeMap::new(),
        before_store: Box::new(move |store, agents| lit.before(store, agents)),
    };
    let cast = Cast::new(programs, (folder.path(), &folder.path().join("logs")), play).await?;
    cast.all_training().await;
    let node = cast.node_of(JOB).unwrap_or_default();
    fuse.arm(&node);
    let queues = [crate::programs::QUEUE];
    cast.world.announce(
        &cast.instance_of(&node),
        Announcement {
            action: NoticeAction::Terminate,
            lead: Duration::from_secs(45),
            imds_after: Some(Duration::ZERO),
            queues: &queues,
        },
    );
    let resumed = resumed(&cast).await;
    let saved = saved_step(&cast);
    let broken = cast.world.read(checkers::bucket);
    let said = cast.events().iter().map(|event| event.what.to_string()).collect::<Vec<_>>();
    cast.end().await;
    let (Some(saved), Some(resumed)) = (saved, resumed) else {
        bail!(
            "{victim:?} after write {number}: nothing was saved or resumed:\n{}",
            said.join("\n")
        );
    };
    if !broken.is_empty() {
        bail!("{victim:?} after write {number}: {broken:?}");
    }
    Ok(Killed { kills: fuse.kills.load(Ordering::SeqCst), saved, resumed })
}

/// The step at which the successor goes on, once it does.
async fn resumed(cast: &Cast) -> Option<u64> {
    let end = Instant::now() + END;
    while Instant::now() < end {
        let step = cast.events().iter().find_map(|event| match &event.what {
            What::Said(line) => {
                let (_, rest) = line.split_once(" resumed at step ")?;
                rest.split(' ').next()?.parse().ok()
            }
            _ => None,
        });
        if step.is_some() {
            return step;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

fn saved_step(cast: &Cast) -> Option<u64> {
    cast.events().iter().find_map(|event| match &event.what {
        What::Committed(commit) if commit.kind == Kind::Save => Some(commit.step),
        _ => None,
    })
}

/// Kills its victim after a number of writes.
struct Fuse {
    victim: Victim,
    number: u32,
    armed: Mutex<Option<Armed>>,
    kills: AtomicU32,
    /// Until when the store is away.
    away: Mutex<Option<Instant>>,
}

struct Armed {
    node: String,
    writes: u32,
}

impl Fuse {
    fn new(victim: Victim, number: u32) -> Self {
        let (armed, away) = (Mutex::new(None), Mutex::new(None));
        Self { victim, number, armed, kills: AtomicU32::new(0), away }
    }

    fn arm(&self, node: &str) {
        let armed = Armed { node: node.to_owned(), writes: 0 };
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(armed);
    }

    fn before(self: &Arc<Self>, store: Wire, agents: Agents) -> Wire {
        let fuse = Arc::clone(self);
        wire(move |request| {
            let (fuse, store, agents) = (Arc::clone(&fuse), store.clone(), Arc::clone(&agents));
            let writes = request.method() == http::Method::PUT;
            async move {
                if fuse.is_away() {
                    return Err(BoxError::from("the store is away"));
                }
                let answer = call(&store, request).await;
                if writes {
                    fuse.count(&agents);
                }
                if fuse.is_away() { Err(BoxError::from("the store is gone")) } else { answer }
            }
        })
    }

    fn is_away(&self) -> bool {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.is_some_and(|until| Instant::now() < until)
    }

    /// Counts a write; the one of our number is the last before the kill.
    fn count(&self, agents: &Agents) {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fuse) = armed.as_mut() else { return };
        fuse.writes += 1;
        if fuse.writes < self.number {
            return;
        }
        let killed = match self.victim {
            Victim::Agent => kill_agent(agents, &fuse.node),
            Victim::Store => {
                let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
                *away = Some(Instant::now() + AWAY);
                true
            }
        };
        if killed {
            self.kills.fetch_add(1, Ordering::SeqCst);
        }
        *armed = None;
    }
}

fn kill_agent(agents: &Agents, node: &str) -> bool {
    let agents = agents.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = agents.get(node).and_then(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
    pid.is_some_and(|pid| rustix::process::kill_process(pid, Signal::KILL).is_ok())
}

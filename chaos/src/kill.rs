//! Kills the agent's process between two writes of a save, and looks at what is left.

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
use crate::cast::Play;
use crate::cast::Trainer;
use crate::checkers;
use crate::chronicle::What;
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

/// What one run showed.
#[derive(Debug)]
pub struct Killed {
    /// Processes of the agent that were killed.
    pub kills: u32,
    /// The step that was saved.
    pub saved: u64,
    /// The step at which the successor went on.
    pub resumed: u64,
}

/// Plays an interruption in which the agent is killed after its write of this number, counted from
/// the notice, was stored and before it hears of that.
pub async fn after_write(programs: &Path, number: u32) -> anyhow::Result<Killed> {
    let folder = tempfile::tempdir()?;
    let fuse = Arc::new(Fuse { number, armed: Mutex::new(None), kills: AtomicU32::new(0) });
    let lit = Arc::clone(&fuse);
    let play = Play {
        nodes: vec![
            format!("node {NODE} type g5.12xlarge zone us-east-2a"),
            "node gpu-2 type g6.12xlarge zone us-east-2b".to_owned(),
        ],
        trainers: vec![Trainer { job: JOB, options: "hold on-signal", ends: Ends::AtOnce }],
        bytes: STATE_BYTES,
        steps: 1_000_000,
        chunk: "1MiB",
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
        bail!("after write {number} nothing was saved or resumed:\n{}", said.join("\n"));
    };
    if !broken.is_empty() {
        bail!("after write {number}: {broken:?}");
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

/// Kills the agent of a node after a number of writes.
struct Fuse {
    number: u32,
    armed: Mutex<Option<Armed>>,
    kills: AtomicU32,
}

struct Armed {
    node: String,
    writes: u32,
}

impl Fuse {
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
                let answer = call(&store, request).await;
                if writes {
                    fuse.count(&agents);
                }
                answer
            }
        })
    }

    /// Counts a write; the one of our number is the last that this agent makes.
    fn count(&self, agents: &Agents) {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fuse) = armed.as_mut() else { return };
        fuse.writes += 1;
        if fuse.writes < self.number {
            return;
        }
        let agents = agents.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = agents.get(&fuse.node).and_then(|pid| Pid::from_raw(i32::try_from(*pid).ok()?));
        let killed = pid.map(|pid| rustix::process::kill_process(pid, Signal::KILL));
        if matches!(killed, Some(Ok(()))) {
            self.kills.fetch_add(1, Ordering::SeqCst);
        }
        *armed = None;
    }
}

//! Workloads in virtual time: tasks that speak the real protocol over real sockets.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::world::World;
use crate::world::runtime::Container;
use crate::world::runtime::KILLED;
use crate::world::runtime::Launch;
use crate::world::runtime::Runtime;
use crate::world::runtime::TERMINATED;
use crate::world::workloads::directory::Writer;
use crate::world::workloads::rank::Rank;

pub mod directory;
pub mod line;
pub mod rank;

/// Pod annotation that says how a virtual workload behaves, as JSON of [`Behavior`].
pub const BEHAVIOR: &str = "chaos.lifeboat.dev/behavior";

/// How a virtual workload behaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Behavior {
    /// What it does about being saved.
    pub kind: Kind,
    /// Steps until its work is done.
    pub steps: u64,
    /// How long a step takes, in milliseconds.
    pub step_ms: u64,
    /// Size of each rank's state.
    pub state_bytes: u64,
    /// Ranks in the pod.
    pub ranks: u32,
    /// Whether it has a safe point within each step.
    pub safe_point: bool,
    /// How its state goes to the agent.
    pub hand_over: HandOver,
    /// When it dies by itself.
    pub dies: Dies,
    /// How long it takes to end on SIGTERM when it saves itself, in milliseconds.
    pub sigterm_ms: u64,
    /// Which version of the protocol it speaks.
    pub speaks: Speaks,
}

/// Which minor version of the protocol a virtual workload speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Speaks {
    /// This one.
    This,
    /// A newer one: it sends fields and frames that nobody knows.
    Newer,
    /// An older one: fields are missing.
    Older,
}

/// What a virtual workload does about being saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It speaks the protocol as the SDK does.
    Sdk,
    /// It knows no agent; on SIGTERM it saves by itself and ends.
    Sigterm,
    /// It knows no agent, and writes a checkpoint into its folder at every step.
    Directory,
    /// It hears nothing: neither the agent nor SIGTERM.
    Deaf,
    /// It is asked, and cannot.
    Refuses,
}

/// How state goes to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandOver {
    /// Through the ring.
    Ring,
    /// By descriptors of files.
    Files,
}

/// When a virtual workload dies by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dies {
    /// It does not.
    Never,
    /// As soon as all of its state was handed over, whether it was taken or not.
    Given,
    /// As soon as all of its bytes were taken.
    Taken,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            kind: Kind::Sdk,
            steps: 1_000_000,
            step_ms: 500,
            state_bytes: 1 << 20,
            ranks: 1,
            safe_point: false,
            hand_over: HandOver::Ring,
            dies: Dies::Never,
            sigterm_ms: 1_000,
            speaks: Speaks::This,
        }
    }
}

/// What virtual workloads say of themselves, with the time. It stands for their logs.
#[derive(Clone)]
pub struct Diary {
    world: World,
    lines: Arc<Mutex<Vec<(jiff::Timestamp, String)>>>,
}

impl Diary {
    /// An empty one.
    pub fn new(world: &World) -> Self {
        Self { world: world.clone(), lines: Arc::default() }
    }

    /// Writes a line.
    pub fn note(&self, line: String) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push((self.world.now(), line));
    }

    /// All lines so far, in the order of time.
    pub fn lines(&self) -> Vec<(jiff::Timestamp, String)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs containers as virtual workloads.
pub struct Virtual {
    diary: Diary,
}

impl Virtual {
    /// A runtime whose workloads write into this diary.
    pub fn new(diary: Diary) -> Self {
        Self { diary }
    }
}

impl Runtime for Virtual {
    fn start(&self, world: &World, launch: Launch) -> Box<dyn Container> {
        let behavior = behavior_of(&launch.pod);
        let pids = (0..behavior.ranks.max(1))
            .map(|_| world.update(|state| state.machines.new_pid()))
            .collect();
        let (terminated, heard) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(play(behavior, launch, self.diary.clone(), heard));
        let (killed, _) = watch::channel(false);
        Box::new(Playing { pids, terminated, killed, tasks, ended: None })
    }
}

/// What the pod's annotation says; what it does not say is as usual.
fn behavior_of(pod: &Value) -> Behavior {
    let annotation = pod["metadata"]["annotations"][BEHAVIOR].as_str();
    let parse =
        |text| serde_json::from_str(text).expect("the behavior of a workload is well-formed");
    annotation.map_or_else(Behavior::default, parse)
}

/// Plays all ranks of a container to their end; the exit code is that of the first rank to end.
async fn play(
    behavior: Behavior,
    launch: Launch,
    diary: Diary,
    terminated: watch::Receiver<bool>,
) -> i32 {
    if behavior.kind == Kind::Directory {
        return Writer::new(behavior, &launch, diary).run(terminated).await;
    }
    let mut ranks: Vec<BoxFuture<'static, i32>> = Vec::new();
    for number in 0..behavior.ranks.max(1) {
        let mut rank = Rank::new(behavior.clone(), &launch, number);
        rank.tell(diary.clone(), terminated.clone());
        ranks.push(match behavior.kind {
            Kind::Sdk | Kind::Refuses | Kind::Directory => rank.run().boxed(),
            Kind::Sigterm => save_itself(behavior.clone(), terminated.clone()).boxed(),
            Kind::Deaf => work(behavior.clone()).boxed(),
        });
    }
    let mut code = 0;
    while !ranks.is_empty() {
        let (ended, _, rest) = futures::future::select_all(ranks).await;
        if ended != 0 {
            return ended;
        }
        (code, ranks) = (ended, rest);
    }
    code
}

async fn save_itself(behavior: Behavior, mut terminated: watch::Receiver<bool>) -> i32 {
    tokio::select! {
        biased;
        () = raised(&mut terminated) => {
            tokio::time::sleep(Duration::from_millis(behavior.sigterm_ms)).await;
            TERMINATED
        }
        code = work(behavior.clone()) => code,
    }
}

async fn work(behavior: Behavior) -> i32 {
    let steps = u32::try_from(behavior.steps).unwrap_or(u32::MAX);
    tokio::time::sleep(Duration::from_millis(behavior.step_ms).saturating_mul(steps)).await;
    0
}

/// Returns once the flag is raised; never, if nobody can raise it any more.
async fn raised(flag: &mut watch::Receiver<bool>) {
    let gone = flag.wait_for(|raised| *raised).await.is_err();
    if gone {
        std::future::pending::<()>().await;
    }
}

/// A virtual container.
struct Playing {
    pids: Vec<u32>,
    terminated: watch::Sender<bool>,
    killed: watch::Sender<bool>,
    tasks: JoinSet<i32>,
    ended: Option<i32>,
}

impl Container for Playing {
    fn pids(&self) -> Vec<u32> {
        self.pids.clone()
    }

    fn gpu_processes(&self) -> std::collections::BTreeMap<u32, u64> {
        const CONTEXT_BYTES: u64 = 512 << 20;
        self.pids.iter().map(|pid| (*pid, CONTEXT_BYTES)).collect()
    }

    fn terminate(&mut self) {
        self.terminated.send_replace(true);
    }

    fn kill(&mut self) {
        self.killed.send_replace(true);
    }

    fn exited(&mut self) -> BoxFuture<'_, i32> {
        async {
            if let Some(code) = self.ended {
                return code;
            }
            let mut killed = self.killed.subscribe();
            let code = tokio::select! {
                biased;
                () = raised(&mut killed) => {
                    self.tasks.abort_all();
                    KILLED
                }
                joined = self.tasks.join_next() => joined.and_then(Result::ok).unwrap_or(KILLED),
            };
            self.ended = Some(code);
            code
        }
        .boxed()
    }
}

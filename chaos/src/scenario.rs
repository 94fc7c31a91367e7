//! Runs a script: the production programs in the simulated world, in virtual time.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat::clock::Clock;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::checkers;
use crate::checkers::Broken;
use crate::chronicle::Chronicle;
use crate::chronicle::Event;
use crate::chronicle::What;
use crate::faults::Faults;
use crate::faults::Plan;
use crate::programs;
use crate::programs::Programs;
use crate::script::Script;
use crate::script::ScriptError;
use crate::stage;
use crate::world::World;
use crate::world::behave::Behaviours;
use crate::world::cluster::audit;
use crate::world::karpenter;
use crate::world::kubelet;
use crate::world::queue;
use crate::world::workloads::Diary;
use crate::world::workloads::Virtual;

mod acts;

/// The queue that Karpenter reads.
pub const KARPENTER_QUEUE: &str = "karpenter";
/// Our dead-letter queue.
pub const DEAD_LETTERS: &str = "lifeboat-dead";
/// When every scenario begins.
const BEGINNING: &str = "2026-01-01T00:00:00Z";
/// Time since boot at the beginning, in nanoseconds.
const BOOTED: u64 = 1_000_000_000_000;
/// How long a controller that was killed stays away.
const RETURN: Duration = Duration::from_secs(2);

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    /// What happened, a line each, with the time since the start.
    pub trace: Vec<String>,
    /// What the script expected and the trace has not, or the other way round.
    pub unmet: Vec<String>,
    /// Rules that were broken.
    pub broken: Vec<Broken>,
    /// What was asked of the API server, by whom.
    pub asked: BTreeSet<audit::Request>,
    /// What was asked of AWS, by whom: see [`Programs::actions`].
    pub actions: BTreeSet<(String, String)>,
}

impl Outcome {
    /// Whether all expectations were met and no rule was broken.
    pub fn is_well(&self) -> bool {
        self.unmet.is_empty() && self.broken.is_empty()
    }
}

/// Why a script could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It cannot be read.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The machine refused.
    #[error("scenario was not set up")]
    System(#[from] std::io::Error),
}

/// A script under way.
pub struct Scenario {
    world: World,
    faults: Faults,
    programs: Programs,
    chronicle: Arc<Mutex<Chronicle>>,
    /// Kills a controller, by its number, and says how long it stays away.
    controllers: BTreeMap<usize, watch::Sender<Duration>>,
    tasks: JoinSet<()>,
    started: Instant,
}

/// Runs a script with a seed, on a runtime of its own whose clock is virtual.
pub fn run(script: &Script, seed: u64) -> Result<Outcome, ScenarioError> {
    run_with(script, seed, Plan::default())
}

/// The first lines in which two traces differ, numbered.
pub fn difference(one: &[String], other: &[String]) -> Option<(String, String)> {
    let lines = one.len().max(other.len());
    let numbered = |trace: &[String], index: usize| {
        let text = trace.get(index).map_or("(nothing)", String::as_str);
        format!("line {}: {text}", index + 1)
    };
    let differs = (0..lines).find(|index| one.get(*index) != other.get(*index));
    differs.map(|index| (numbered(one, index), numbered(other, index)))
}

/// As [`run`], with faults beyond those of the script.
pub fn run_with(script: &Script, seed: u64, plan: Plan) -> Result<Outcome, ScenarioError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    runtime.block_on(play(script, seed, plan))
}

async fn play(script: &Script, seed: u64, plan: Plan) -> Result<Outcome, ScenarioError> {
    let folder = tempfile::tempdir()?;
    let mut scenario = Scenario::new(script, seed, plan, folder.path())?;
    for (at, act) in &script.acts {
        tokio::time::sleep_until(scenario.started + *at).await;
        scenario.act(act)?;
    }
    tokio::time::sleep_until(scenario.started + script.end).await;
    Ok(scenario.outcome(script))
}

impl Scenario {
    fn new(
        script: &Script,
        seed: u64,
        plan: Plan,
        folder: &std::path::Path,
    ) -> Result<Self, ScenarioError> {
        let beginning: Timestamp = BEGINNING.parse().expect("the beginning is a time");
        let world = World::new(Clock::starting_at(beginning, BOOTED), seed);
        queues(&world);
        let slices = script.stage.iter().filter(|line| line.words[0] == "node");
        let slices = slices.filter_map(|line| line.number("slices").ok()?).max().unwrap_or(1);
        stage::usual(&world, u32::try_from(slices).unwrap_or(1));
        let mut around = Around::default();
        for line in &script.stage {
            if !around.take(line)? {
                stage::put(&world, folder, line)?;
            }
        }
        let faults = Faults::new(plan, seed);
        let diary = Diary::new(&world);
        let virtual_workloads = Virtual::new(diary.clone());
        let programs = Programs::new(&world, &faults, script.policy.clone(), virtual_workloads);
        let chronicle = Arc::new(Mutex::new(Chronicle::new(&world, &diary)));
        let mut tasks = JoinSet::new();
        tasks.spawn(crate::chronicle::follow(Arc::clone(&chronicle)));
        let mut behaviours = around.behaviours(&programs, folder).start(&world);
        tasks.spawn(async move { while behaviours.join_next().await.is_some() {} });
        let mut scenario = Self {
            world,
            faults,
            programs,
            chronicle,
            controllers: BTreeMap::new(),
            tasks,
            started: Instant::now(),
        };
        (0..around.controllers).for_each(|number| scenario.start_controller(number));
        Ok(scenario)
    }

    fn start_controller(&mut self, number: usize) {
        let (programs, (kill, killed)) = (self.programs.clone(), watch::channel(RETURN));
        self.controllers.insert(number, kill);
        self.tasks.spawn(async move { controller(programs, number, killed).await });
    }

    fn chronicle(&self) -> MutexGuard<'_, Chronicle> {
        self.chronicle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outcome(mut self, script: &Script) -> Outcome {
        self.tasks.abort_all();
        self.chronicle().catch_up();
        let mut events = self.chronicle().events().to_vec();
        // A diary is read after the world, and may tell of an earlier moment. Within one moment the
        // world comes first: which of two tasks ran before the other is no rule of ours.
        events.sort_by_key(|event| (event.at, matches!(event.what, What::Said(_))));
        let beginning = self.world.clock().clone();
        let elapsed = self.started.elapsed();
        let end = beginning.now();
        let start = end.saturating_sub(elapsed).unwrap_or(Timestamp::MIN);
        let quiet = self.faults.quiet_from();
        let quiet_since = (!quiet.is_zero()).then(|| start.saturating_add(quiet).unwrap_or(end));
        let broken = self.world.read(|state| {
            checkers::check(&checkers::Run { events: &events, state, end, quiet_since })
        });
        let unmet = unmet(script, &events, start);
        // Within one moment the lines stand in the order of their letters, for the same reason.
        let mut lines: Vec<(Timestamp, String)> =
            events.iter().map(|event| (event.at, line(event, start))).collect();
        lines.sort();
        let trace = lines.into_iter().map(|(_, line)| line).collect();
        let asked = self.world.audit(|audit| audit.requests().keys().cloned().collect());
        Outcome { trace, unmet, broken, asked, actions: self.programs.actions() }
    }
}

/// What stands around the stage: how many controllers, and how Karpenter behaves.
struct Around {
    controllers: usize,
    karpenter: Option<karpenter::Hears>,
    provisions: karpenter::Provisions,
    boot: Duration,
}

impl Default for Around {
    fn default() -> Self {
        Self {
            controllers: 2,
            karpenter: Some(karpenter::Hears::After(Duration::from_secs(5))),
            provisions: karpenter::Provisions::ForPods,
            boot: Duration::from_secs(20),
        }
    }
}

impl Around {
    /// Takes a line that is about what stands around the stage; says whether it is one.
    fn take(&mut self, line: &crate::script::Line) -> Result<bool, ScriptError> {
        match line.word(0)? {
            "controllers" => {
                let count = line.number("controllers")?.unwrap_or(2);
                self.controllers = usize::try_from(count).unwrap_or(2);
            }
            "karpenter" => {
                self.karpenter = match line.word(1)? {
                    "off" => None,
                    "deaf" => Some(karpenter::Hears::Nothing),
                    _ => Some(karpenter::Hears::After(
                        line.duration("delay")?.unwrap_or(Duration::from_secs(5)),
                    )),
                };
                if line.says("only-claims") {
                    self.provisions = karpenter::Provisions::OnlyClaims;
                }
            }
            "boot" => self.boot = line.duration("boot")?.unwrap_or(self.boot),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn behaviours(&self, programs: &Programs, folder: &std::path::Path) -> Behaviours {
        let mut behaviours = Behaviours::usual(Arc::new(programs.clone()), folder);
        behaviours.kubelet =
            kubelet::Settings { nvml: Some(programs::NVML.into()), ..kubelet::Settings::default() };
        behaviours.karpenter = self.karpenter.map(|hears| karpenter::Settings {
            hears,
            provisions: self.provisions,
            boot: self.boot,
            ..karpenter::Settings::new(folder.to_owned())
        });
        behaviours
    }
}

/// One replica: runs until it is killed, and comes back after the time that it was told.
async fn controller(programs: Programs, number: usize, mut killed: watch::Receiver<Duration>) {
    loop {
        tokio::select! {
            biased;
            _ = killed.changed() => {
                let away = *killed.borrow_and_update();
                tokio::time::sleep(away).await;
            }
            () = programs.controller(number) => return,
        }
    }
}

/// Our queue with its dead-letter queue, and Karpenter's.
pub(crate) fn queues(world: &World) {
    world.update(|state| {
        state.queues.create(DEAD_LETTERS, queue::Settings::default());
        state.queues.create(KARPENTER_QUEUE, queue::Settings::default());
        let redrive =
            queue::Redrive { dead_letter_queue: DEAD_LETTERS.to_owned(), max_receives: 5 };
        let settings = queue::Settings { redrive: Some(redrive), ..queue::Settings::default() };
        state.queues.create(programs::QUEUE, settings);
        state.bucket.rename(programs::BUCKET);
    });
}

fn line(event: &Event, start: Timestamp) -> String {
    let at = Duration::try_from(event.at.duration_since(start)).unwrap_or_default();
    let (minutes, milliseconds) = (at.as_secs() / 60, at.as_millis() % 60_000);
    format!("{minutes:02}:{:02}.{:03}  {}", milliseconds / 1000, milliseconds % 1000, event.what)
}

/// Expectations that the trace does not meet.
fn unmet(script: &Script, events: &[Event], start: Timestamp) -> Vec<String> {
    let mut unmet = Vec::new();
    let after =
        |event: &Event| Duration::try_from(event.at.duration_since(start)).unwrap_or_default();
    for expect in &script.expects {
        let window = expect.at..=expect.at + expect.within;
        let met = events.iter().any(|event| {
            window.contains(&after(event)) && says(&event.what.to_string(), &expect.text)
        });
        if !met {
            let text = &expect.text;
            unmet.push(format!("line {}: `{text}` was not seen in its time", expect.number));
        }
    }
    unmet.extend(script.orders.iter().filter_map(|order| out_of_order(order, events)));
    for never in &script.nevers {
        if let Some(event) = events.iter().find(|event| says(&event.what.to_string(), never)) {
            unmet.push(format!("`{never}` was seen: {}", line(event, start)));
        }
    }
    unmet
}

/// What of an order is missing, or comes before what it should follow: first times count.
fn out_of_order(order: &[String], events: &[Event]) -> Option<String> {
    let first = |text: &String| events.iter().position(|event| says(&event.what.to_string(), text));
    let mut last = None;
    for text in order {
        let Some(found) = first(text) else { return Some(format!("`{text}` was not seen")) };
        if last.is_some_and(|last| found < last) {
            return Some(format!("`{text}` came too early"));
        }
        last = Some(found);
    }
    None
}

/// Whether a line has these words in this order; each may be the beginning of one of its words.
fn says(line: &str, words: &str) -> bool {
    let mut line = line.split(' ');
    words.split(' ').all(|word| line.any(|found| found.starts_with(word)))
}

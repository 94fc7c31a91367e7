//! What the program's thread and the boat's own threads both look at.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use lifeboat_protocol::fd;
use lifeboat_protocol::frame;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Parked;
use lifeboat_protocol::frame::Prepare;
use lifeboat_protocol::frame::Purpose;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::wire;

use crate::boottime::Moment;
use crate::error::Error;
use crate::event::Event;
use crate::event::Notice;
use crate::ring::Ring;
use crate::settings::Settings;
use crate::state::Parts;
use crate::state::Without;

/// How long a step that is to be agreed on is waited for, where there is no deadline.
pub(crate) const AGREEMENT: Duration = Duration::from_secs(30);
/// How long a thread of the program waits between two pulses.
const PULSE: Duration = Duration::from_millis(100);
/// In the place of a step, before there is one.
const NO_STEP: u64 = u64::MAX;

/// A function of the program that is called at a notice.
pub(crate) type Hook = Arc<dyn Fn(&Notice) + Send + Sync>;

/// Everything that is shared.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    parts: Mutex<Parts>,
    hooks: Mutex<Vec<Hook>>,
    step: AtomicU64,
    attention: AtomicBool,
    /// The program has safe points within its steps.
    between: AtomicBool,
    /// The program was warned of long steps.
    warned: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    writer: Mutex<Option<Writer>>,
}

struct Writer {
    generation: u64,
    stream: UnixStream,
}

/// The connection went away, or is another one by now.
#[derive(Debug)]
pub(crate) struct Lost;

/// What the agent wants, and how far it is.
pub(crate) struct State {
    pub(crate) link: Link,
    /// Counts connections.
    pub(crate) generation: u64,
    /// How often nobody answered.
    pub(crate) refusals: u32,
    pub(crate) greeting: Greeting,
    pub(crate) ring: Option<Arc<Ring>>,
    pub(crate) order: Order,
    pub(crate) hand: Option<Hand>,
    /// The program stands still for good: its state is saved, or to be saved.
    pub(crate) parked: Option<Parked>,
    /// The program is to stand still, with nothing to save.
    pub(crate) park: Option<frame::Notice>,
    /// The program's thread waits at a safe point.
    pub(crate) standing: bool,
    pub(crate) terminating: Option<Moment>,
    /// The agent says that there is nothing to wait for.
    pub(crate) leave: Option<String>,
    /// Frames of a restore that the program's thread has not seen.
    pub(crate) restoring: VecDeque<ToWorkload>,
    /// How the last save ended that has.
    pub(crate) outcome: Option<Outcome>,
    pub(crate) finished: bool,
    pub(crate) closing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Nobody has answered yet.
    Never,
    Up(Moment),
    Down(Moment),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    Unanswered,
    Welcome,
    Refused(String),
    InUse(String),
}

#[derive(Clone, Debug)]
pub(crate) enum Order {
    None,
    /// A step is being agreed on, until then at the latest.
    Prepared(Prepare, Moment),
    Due(Due),
}

/// A save that can be made.
#[derive(Clone, Debug)]
pub(crate) struct Due {
    pub(crate) save: u64,
    pub(crate) purpose: Purpose,
    /// At the end of this step; none: at once.
    pub(crate) at: Option<u64>,
    pub(crate) chunk_bytes: u64,
    pub(crate) without: Without,
}

/// A hand-over.
#[derive(Debug)]
pub(crate) struct Hand {
    pub(crate) save: u64,
    pub(crate) free: Vec<u32>,
    pub(crate) progress: Passing,
    pub(crate) since: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passing {
    UnderWay,
    Taken,
    Off,
}

#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Durable { epoch: u64 },
    Failed { why: frame::Failure, reason: String },
}

/// Where in the program a safe point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the end of a step.
    Step,
    /// In the midst of the next one, where nothing has changed since.
    Between,
}

/// What the program's thread is to do.
pub(crate) enum Next {
    GoOn,
    /// Say that the program stands still, for this reason.
    Stand(String),
    HandOver(Due),
    SaveHere,
}

impl Shared {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            parts: Mutex::default(),
            hooks: Mutex::default(),
            step: AtomicU64::new(NO_STEP),
            attention: AtomicBool::new(false),
            between: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            state: Mutex::new(State::new()),
            changed: Condvar::new(),
            writer: Mutex::default(),
        }
    }

    /// Notes that a step is complete; says whether anybody wants something.
    ///
    /// Whoever asks sets the flag before it reads the step, and here the step is set before the
    /// flag is read: so either it is seen here, or the new step is seen there. Both orders have to
    /// be total for that.
    pub(crate) fn reached(&self, step: u64) -> bool {
        self.step.store(step, Ordering::SeqCst);
        self.attention.load(Ordering::SeqCst)
    }

    pub(crate) fn wanted(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// Notes that the program has safe points within its steps.
    pub(crate) fn paused_between(&self) {
        self.between.store(true, Ordering::Relaxed);
    }

    /// Whether a step can be saved only at its end.
    pub(crate) fn steps_are_whole(&self) -> bool {
        !self.between.load(Ordering::Relaxed)
    }

    /// Whether the program was warned of long steps before; from now on it was.
    pub(crate) fn warned(&self) -> bool {
        self.warned.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn step(&self) -> Option<u64> {
        Some(self.step.load(Ordering::SeqCst)).filter(|step| *step != NO_STEP)
    }

    pub(crate) fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn observe(&self, event: &Event) {
        (self.settings.observer)(event);
    }

    pub(crate) fn hook(&self, hook: Hook) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(hook);
    }

    /// Tells the program's hooks, on a thread of their own.
    pub(crate) fn notice(&self, notice: Notice) {
        self.observe(&Event::Noticed(notice.clone()));
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if hooks.is_empty() {
            return;
        }
        let call = move || hooks.iter().for_each(|hook| hook(&notice));
        if let Err(source) = thread::Builder::new().name("lifeboat-notice".into()).spawn(call) {
            let reason = format!("hooks were not called: {source}");
            self.observe(&Event::NotSaved { reason });
        }
    }

    /// Changes the state, and wakes whoever waits for that.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        self.attention.store(state.wants(&self.settings), Ordering::SeqCst);
        self.changed.notify_all();
        changed
    }

    /// Waits until `look` finds what it wants, or to look again at the moment it names.
    pub(crate) fn wait<T>(
        &self,
        mut look: impl FnMut(&mut State) -> ControlFlow<T, Option<Moment>>,
    ) -> T {
        let mut state = self.lock();
        loop {
            let again = match look(&mut state) {
                ControlFlow::Break(found) => return found,
                ControlFlow::Continue(again) => again,
            };
            state = match again {
                // A little later than the moment, so that the next look is past it.
                Some(moment) => {
                    let wait = moment.left() + Duration::from_millis(1);
                    let woken = self.changed.wait_timeout(state, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The same, on a thread of the program: with pulses, unless its state is being handed over.
    pub(crate) fn wait_here<T>(
        &self,
        mut look: impl FnMut(&mut State) -> ControlFlow<T, Option<Moment>>,
    ) -> T {
        let Some(pulse) = &self.settings.pulse else { return self.wait(look) };
        loop {
            let next_pulse = Moment::now().after(PULSE);
            let found = self.wait(|state| match look(state) {
                ControlFlow::Break(found) => ControlFlow::Break(Some(found)),
                ControlFlow::Continue(again) if state.handing_over() => {
                    ControlFlow::Continue(again)
                }
                ControlFlow::Continue(_) if next_pulse.left().is_zero() => ControlFlow::Break(None),
                ControlFlow::Continue(again) => {
                    let sooner = again.filter(|again| again.left() < next_pulse.left());
                    ControlFlow::Continue(Some(sooner.unwrap_or(next_pulse)))
                }
            });
            match found {
                Some(found) => return found,
                None if pulse().is_break() => self.close(),
                None => (),
            }
        }
    }

    /// What the program's thread is to do at a safe point, once there is something.
    pub(crate) fn next(&self, step: u64, place: Place) -> Next {
        let next = self.wait_here(|state| state.next(&self.settings, step, place));
        if matches!(next, Next::GoOn) {
            self.change(|state| state.standing = false);
        }
        next
    }

    /// Takes a new connection, over which only its thread sends until it is [`up`](Self::up).
    pub(crate) fn link(&self, stream: UnixStream) -> u64 {
        let generation = self.change(|state| state.generation + 1);
        *self.writer() = Some(Writer { generation, stream });
        generation
    }

    /// Hello was said over the new connection: it is the line.
    pub(crate) fn up(&self, generation: u64) {
        self.change(|state| {
            state.generation = generation;
            state.link = Link::Up(Moment::now());
        });
    }

    /// The line is gone: what was agreed on over it is forgotten.
    pub(crate) fn unlink(&self) {
        *self.writer() = None;
        self.change(State::unlink);
    }

    /// Sends a frame over a connection, if it is still the one.
    pub(crate) fn send(&self, generation: u64, frame: &FromWorkload) -> Result<(), Lost> {
        self.send_with(generation, frame, &[])
    }

    /// Sends a frame with descriptors beside it.
    pub(crate) fn send_with(
        &self,
        generation: u64,
        frame: &FromWorkload,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Lost> {
        let bytes = wire::encode(frame, descriptors.len()).map_err(|error| {
            self.observe(&Event::NotSaved { reason: error.to_string() });
            Lost
        })?;
        let writer = self.writer();
        let Some(writer) = writer.as_ref().filter(|writer| writer.generation == generation) else {
            return Err(Lost);
        };
        fd::send_all(&writer.stream, &bytes, descriptors).map_err(|_: io::Error| {
            // Whoever reads sees the end then, and connects again.
            let _already = writer.stream.shutdown(std::net::Shutdown::Both);
            Lost
        })
    }

    /// Ends the boat's own threads.
    pub(crate) fn close(&self) {
        self.change(|state| state.closing = true);
        if let Some(writer) = self.writer().as_ref() {
            let _already = writer.stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Ends the process as SIGTERM would have: a program that is saved must not run on to its end.
    pub(crate) fn exit(&self, reason: String) -> ! {
        const TERMINATED: i32 = 128 + 15;
        self.observe(&Event::Exiting { code: TERMINATED, reason });
        std::process::exit(TERMINATED)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new() -> Self {
        Self {
            link: Link::Never,
            generation: 0,
            refusals: 0,
            greeting: Greeting::Unanswered,
            ring: None,
            order: Order::None,
            hand: None,
            parked: None,
            park: None,
            standing: false,
            terminating: None,
            leave: None,
            restoring: VecDeque::new(),
            outcome: None,
            finished: false,
            closing: false,
        }
    }

    /// Whether the program's thread is in the boat's hands.
    pub(crate) fn stands(&self) -> bool {
        self.standing || self.parked.is_some() || self.handing_over()
    }

    fn handing_over(&self) -> bool {
        self.hand.as_ref().is_some_and(|hand| hand.progress == Passing::UnderWay)
    }

    /// Whether this connection is the line.
    pub(crate) fn up(&self, generation: u64) -> bool {
        self.generation == generation && matches!(self.link, Link::Up(_))
    }

    /// Begins a hand-over: all slots are the program's.
    pub(crate) fn begin(&mut self, step: u64, due: &Due) -> Option<u64> {
        if !matches!(self.link, Link::Up(_)) {
            return None;
        }
        self.order = Order::None;
        let free = self.ring.as_ref().map_or(Vec::new(), |ring| all_slots(ring));
        let (progress, since) = (Passing::UnderWay, Moment::now());
        self.hand = Some(Hand { save: due.save, free, progress, since });
        if due.purpose == Purpose::Park {
            let save = Some(due.save);
            self.parked = Some(Parked { step, save, taken: false, epoch: None });
        }
        Some(self.generation)
    }

    /// The hand-over of this save, while it is under way over this connection.
    pub(crate) fn passing(&mut self, generation: u64, save: u64) -> Option<&mut Hand> {
        let up = self.up(generation);
        self.hand.as_mut().filter(|hand| up && hand.save == save)
    }

    /// Forgets a save, whatever became of it; a program parked for it goes on.
    pub(crate) fn call_off(&mut self, save: u64) {
        if self.order.save() == Some(save) {
            self.order = Order::None;
        }
        if let Some(hand) = self.hand.as_mut().filter(|hand| hand.save == save) {
            hand.progress = Passing::Off;
        }
        if self.parked.as_ref().is_some_and(|parked| parked.save == Some(save)) {
            self.parked = None;
        }
    }

    fn unlink(&mut self) {
        self.link = Link::Down(Moment::now());
        self.ring = None;
        self.order = Order::None;
        self.restoring.clear();
        if let Some(hand) = self.hand.as_mut().filter(|hand| hand.progress == Passing::UnderWay) {
            hand.progress = Passing::Off;
        }
    }

    /// Whether the program's thread has to stop at the next safe point, or to look at least.
    fn wants(&self, settings: &Settings) -> bool {
        let asked = !matches!(self.order, Order::None) || self.park.is_some();
        let ending = self.terminating.is_some() && (settings.saves() && !self.finished);
        asked || ending || self.parked.is_some() || self.standing
    }

    fn next(
        &mut self,
        settings: &Settings,
        step: u64,
        place: Place,
    ) -> ControlFlow<Next, Option<Moment>> {
        if self.finished || self.closing {
            return ControlFlow::Break(Next::GoOn);
        }
        if self.terminating.is_some() && settings.here().is_some() {
            return ControlFlow::Break(Next::SaveHere);
        }
        match &self.order {
            Order::Due(due) if self.parked.is_some() || due.at.is_none_or(|at| at <= step) => {
                return ControlFlow::Break(Next::HandOver(due.clone()));
            }
            Order::Due(_) => return ControlFlow::Break(Next::GoOn),
            Order::Prepared(_, until) if place == Place::Step && until.left() > Duration::ZERO => {
                return ControlFlow::Continue(Some(*until));
            }
            // Nobody agreed on a step in time: there is no such save.
            Order::Prepared(_, until) if until.left() == Duration::ZERO => self.order = Order::None,
            Order::Prepared(..) | Order::None => (),
        }
        self.stand(settings)
    }

    /// Whether the program stands still with no save to make.
    fn stand(&mut self, settings: &Settings) -> ControlFlow<Next, Option<Moment>> {
        let ending = self.terminating.is_some() && settings.socket.is_some();
        let preparing = matches!(self.order, Order::Prepared(..));
        if self.parked.is_some() || (ending && !preparing) {
            self.standing = true;
            return ControlFlow::Continue(None);
        }
        match &self.park {
            Some(_) if self.standing => ControlFlow::Continue(None),
            Some(notice) => {
                self.standing = true;
                ControlFlow::Break(Next::Stand(notice.text.clone()))
            }
            None => ControlFlow::Break(Next::GoOn),
        }
    }
}

impl Order {
    pub(crate) fn save(&self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Prepared(prepare, _) => Some(prepare.save),
            Self::Due(due) => Some(due.save),
        }
    }
}

impl Settings {
    /// The folder to save to, if there is no agent to ask.
    pub(crate) fn here(&self) -> Option<&std::path::Path> {
        self.folder.as_deref().filter(|_| self.socket.is_none())
    }

    fn saves(&self) -> bool {
        self.socket.is_some() || self.folder.is_some()
    }
}

pub(crate) fn all_slots(ring: &Ring) -> Vec<u32> {
    (0..ring.shape().slots()).rev().collect()
}

/// An error of the system while a thread or pipe was made.
pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::System { what, source }
}

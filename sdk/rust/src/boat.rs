//! The boat: what a program calls.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lifeboat_protocol::frame::Failure;
use lifeboat_protocol::frame::Finish;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::SaveWanted;

use crate::boottime::Moment;
use crate::error::Error;
use crate::event::Event;
use crate::event::Notice;
use crate::hand_over;
use crate::line;
use crate::local::Folder;
use crate::restore;
use crate::settings::Required;
use crate::settings::Settings;
use crate::settings::Signals;
use crate::shared::Greeting;
use crate::shared::Link;
use crate::shared::Next;
use crate::shared::Order;
use crate::shared::Outcome;
use crate::shared::Passing;
use crate::shared::Place;
use crate::shared::Shared;
use crate::shared::system;
use crate::state::Part;
use crate::terminate;
use crate::terminate::Watch;

/// How long a required agent is waited for.
const REQUIRED: Duration = Duration::from_secs(10);
/// How long an agent that took the connection has to say who it is.
const GREETING: Duration = Duration::from_secs(5);
/// How long the agent has to answer to a save that the program asked for.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a save that the program asked for, or the end of its work, may take to be stored.
const STORED: Duration = Duration::from_mins(10);

/// The program's side of Lifeboat. One for each rank, for as long as it runs.
///
/// Threads of its own keep the line to the agent and listen to SIGTERM. State is read and written
/// only within calls of the program.
pub struct Boat {
    shared: Arc<Shared>,
    _sigterm: Option<Watch>,
}

impl Boat {
    /// Connects as the environment says.
    ///
    /// Blocks if the node is interrupted already: a program started there has nothing to do.
    pub fn connect() -> Result<Self, Error> {
        Self::with(Settings::from_environment(|name| std::env::var(name).ok())?)
    }

    /// Connects so.
    pub fn with(settings: Settings) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(settings));
        let sigterm = match shared.settings.signals {
            Signals::Heard => Some(Watch::start(&shared)?),
            Signals::Left => None,
        };
        let boat = Self { shared, _sigterm: sigterm };
        if let Some(socket) = boat.shared.settings.socket.clone() {
            let shared = Arc::clone(&boat.shared);
            let keep = move || line::run(&shared, &socket);
            let thread = thread::Builder::new().name("lifeboat-line".into()).spawn(keep);
            thread.map_err(system("thread for the agent"))?;
            boat.greeted()?;
        }
        Ok(boat)
    }

    /// Adds a part to the state. All are to be added before `restore` and the first `step`.
    pub fn register(&self, name: &str, part: impl Into<Part>) -> Result<(), Error> {
        self.shared.parts().add(name, part.into())?;
        line::register(&self.shared);
        Ok(())
    }

    /// Fills the state with the newest that was saved, and says how many steps it has.
    ///
    /// None if there is nothing, or if the work is finished. Reads at once, and returns when it is
    /// proven that the old life is over, which may take minutes.
    pub fn restore(&self) -> Result<Option<u64>, Error> {
        self.restore_if(None)
    }

    /// The same, but only if it has more steps than the program has by itself.
    pub fn restore_newer_than(&self, step: u64) -> Result<Option<u64>, Error> {
        self.restore_if(Some(step))
    }

    /// Says that `step` steps are complete: the safe point. To be called once for each.
    ///
    /// When a save is due the state is handed over in here, and the program stands still; see the
    /// crate's own words. Costs a few nanoseconds while nothing is wanted.
    pub fn step(&self, step: u64) -> Result<(), Error> {
        if !self.reached(step) {
            return Ok(());
        }
        self.attend(step, Place::Step)
    }

    /// The first half of [`step`](Self::step), which never waits: says whether there is something
    /// to stop for, and `step` is to be called.
    ///
    /// For languages that have a lock to let go of before a call that may wait.
    pub fn reached(&self, step: u64) -> bool {
        self.shared.reached(step)
    }

    /// A safe point in the midst of a step, where the state is that of the last `step` still.
    pub fn safe_point(&self) -> Result<(), Error> {
        self.shared.paused_between();
        match self.shared.step() {
            Some(step) if self.shared.wanted() => self.attend(step, Place::Between),
            Some(_) | None => Ok(()),
        }
    }

    /// Saves now, says as which epoch, and goes on. To be called where `step` would be.
    ///
    /// Blocks until it is committed. None if there is nowhere to save to.
    pub fn save(&self) -> Result<Option<u64>, Error> {
        let step = self.shared.step().unwrap_or(0);
        if let Some(folder) = self.folder() {
            return folder.save(&self.shared.parts(), step).map(Some);
        }
        if self.shared.settings.socket.is_none() {
            return Ok(None);
        }
        self.shared.reached(step);
        let generation = self.shared.change(|state| {
            state.outcome = None;
            state.generation
        });
        let wanted = FromWorkload::SaveWanted(SaveWanted { step });
        self.shared.send(generation, &wanted).map_err(|_| self.unreachable())?;
        self.asked_for()?;
        self.attend(step, Place::Step)?;
        self.stored().map(Some)
    }

    /// Says that the work is done: nothing is resumed after it. Blocks until that is stored.
    pub fn finish(&self) -> Result<(), Error> {
        let step = self.shared.step().unwrap_or(0);
        if let Some(folder) = self.folder() {
            folder.finish(step)?;
            self.shared.change(|state| state.finished = true);
        } else if self.shared.settings.socket.is_some() {
            self.finish_by_agent(step)?;
        }
        self.shared.observe(&Event::Finished);
        Ok(())
    }

    /// Calls `hook` at each notice, on a thread of its own; the deadline may come nearer.
    pub fn on_notice(&self, hook: impl Fn(&Notice) + Send + Sync + 'static) {
        self.shared.hook(Arc::new(hook));
    }

    /// Says that SIGTERM came, where the program hears of it by itself ([`Signals::Left`]).
    ///
    /// Returns at once; what follows is as if the boat had heard it. Once told, it is told.
    pub fn terminate(&self) -> Result<(), Error> {
        terminate::told(&self.shared)
    }

    /// Whether the end of the work is stored.
    pub fn is_finished(&self) -> bool {
        self.shared.change(|state| state.finished)
    }

    /// Ends the boat's own threads, and every call that waits. Nothing is saved any more.
    pub fn close(&self) {
        self.shared.close();
    }

    fn greeted(&self) -> Result<(), Error> {
        let required = self.shared.settings.required;
        let begun = Moment::now();
        let answer = self.shared.wait_here(|state| {
            if state.closing {
                return ControlFlow::Break(Greeting::Unanswered);
            }
            let limit = match (&state.greeting, state.link, required) {
                (Greeting::Unanswered, Link::Never, Required::No) if state.refusals > 0 => begun,
                (Greeting::Unanswered, _, Required::No) => begun.after(GREETING),
                (Greeting::Unanswered, _, Required::Yes) => begun.after(REQUIRED),
                (answer, _, _) => return ControlFlow::Break(answer.clone()),
            };
            if limit.left().is_zero() {
                return ControlFlow::Break(Greeting::Unanswered);
            }
            ControlFlow::Continue(Some(limit))
        });
        match (answer, required) {
            (Greeting::Refused(reason), _) => Err(Error::Refused { reason }),
            (Greeting::InUse(holder), _) => Err(Error::KeyInUse { holder }),
            (Greeting::Unanswered, Required::Yes) => Err(self.unreachable()),
            (Greeting::Unanswered, Required::No) => Ok(()),
            (Greeting::Welcome, _) => self.stand_if_parked(),
        }
    }

    /// A program that was started on an interrupted node stays where it is.
    fn stand_if_parked(&self) -> Result<(), Error> {
        if self.shared.change(|state| state.park.is_some()) {
            self.attend(0, Place::Step)?;
        }
        Ok(())
    }

    fn restore_if(&self, newer_than: Option<u64>) -> Result<Option<u64>, Error> {
        let step = if let Some(folder) = self.folder() {
            self.restore_here(&folder, newer_than)?
        } else if self.shared.settings.socket.is_some() {
            restore::run(&self.shared, newer_than)?
        } else {
            None
        };
        // What the program has by itself is a state to save, too.
        self.shared.reached(step.or(newer_than).unwrap_or(0));
        Ok(step)
    }

    fn restore_here(&self, folder: &Folder, newer_than: Option<u64>) -> Result<Option<u64>, Error> {
        let Some((epoch, step)) = folder.restore(&self.shared.parts(), newer_than)? else {
            let reason = "the folder has nothing newer".to_owned();
            self.shared.observe(&Event::NothingToRestore { reason });
            return Ok(None);
        };
        let proof = "from the local folder".to_owned();
        self.shared.observe(&Event::Resumed { epoch, step, proof });
        Ok(Some(step))
    }

    fn folder(&self) -> Option<Folder> {
        let rank = self.shared.settings.rank.rank;
        self.shared.settings.here().map(|top| Folder::new(top, rank))
    }

    /// Does at a safe point what is wanted, until the program may go on.
    fn attend(&self, step: u64, place: Place) -> Result<(), Error> {
        loop {
            match self.shared.next(step, place) {
                Next::GoOn => return Ok(()),
                Next::Stand(reason) => {
                    let step = self.shared.step();
                    self.shared.observe(&Event::Parked { step, reason });
                }
                Next::HandOver(due) => hand_over::run(&self.shared, step, &due)?,
                Next::SaveHere => self.save_and_end(step)?,
            }
        }
    }

    fn save_and_end(&self, step: u64) -> Result<(), Error> {
        if let Some(folder) = self.folder() {
            folder.save(&self.shared.parts(), step)?;
        }
        self.shared.exit(format!("step {step} is saved"))
    }

    fn asked_for(&self) -> Result<(), Error> {
        let limit = Moment::now().after(ANSWER);
        let answered = self.shared.wait_here(|state| {
            let asked = !matches!(state.order, Order::None) || state.outcome.is_some();
            match (asked, state.closing || limit.left().is_zero()) {
                (true, _) => ControlFlow::Break(true),
                (false, true) => ControlFlow::Break(false),
                (false, false) => ControlFlow::Continue(Some(limit)),
            }
        });
        if answered {
            return Ok(());
        }
        Err(self.unreachable())
    }

    fn stored(&self) -> Result<u64, Error> {
        let limit = Moment::now().after(STORED);
        let outcome = self.shared.wait_here(|state| {
            let off = state.hand.as_ref().is_none_or(|hand| hand.progress == Passing::Off);
            match &state.outcome {
                Some(outcome) => ControlFlow::Break(Some(outcome.clone())),
                None if off || state.closing || limit.left().is_zero() => ControlFlow::Break(None),
                None => ControlFlow::Continue(Some(limit)),
            }
        });
        match outcome {
            Some(Outcome::Durable { epoch }) => Ok(epoch),
            Some(Outcome::Failed { why, reason }) => Err(Error::NotSaved { why, reason }),
            None => {
                let (why, reason) = (Failure::CalledOff, "it was called off".to_owned());
                Err(Error::NotSaved { why, reason })
            }
        }
    }

    fn finish_by_agent(&self, step: u64) -> Result<(), Error> {
        let limit = Moment::now().after(STORED);
        let mut told = 0;
        loop {
            let generation = self.shared.wait_here(|state| match state.link {
                _ if state.finished || state.closing => ControlFlow::Break(None),
                _ if limit.left().is_zero() => ControlFlow::Break(None),
                Link::Never => ControlFlow::Break(None),
                Link::Up(_) if state.generation > told => {
                    ControlFlow::Break(Some(state.generation))
                }
                Link::Up(_) | Link::Down(_) => ControlFlow::Continue(Some(limit)),
            });
            let Some(generation) = generation else { break };
            told = generation;
            // If the line is lost it is told over the next one.
            let _told_again = self.shared.send(told, &FromWorkload::Finish(Finish { step }));
        }
        let (finished, never) =
            self.shared.change(|state| (state.finished, state.link == Link::Never));
        if finished || (never && self.shared.settings.required == Required::No) {
            return Ok(());
        }
        Err(self.unreachable())
    }

    fn unreachable(&self) -> Error {
        let socket = self.shared.settings.socket.clone().unwrap_or_default();
        Error::AgentUnreachable { socket }
    }
}

impl Drop for Boat {
    fn drop(&mut self) {
        self.shared.close();
    }
}

//! The line to the agent: a thread that keeps it up, and answers what cannot wait for a step to end.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_protocol::fd;
use lifeboat_protocol::frame;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Hello;
use lifeboat_protocol::frame::KeyInUse;
use lifeboat_protocol::frame::Lend;
use lifeboat_protocol::frame::Pace;
use lifeboat_protocol::frame::Prepare;
use lifeboat_protocol::frame::Progress;
use lifeboat_protocol::frame::Ready;
use lifeboat_protocol::frame::Register;
use lifeboat_protocol::frame::RingId;
use lifeboat_protocol::frame::SaveAt;
use lifeboat_protocol::frame::SaveRefused;
use lifeboat_protocol::frame::Terminating;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::VERSION;
use lifeboat_protocol::frame::Welcome;
use lifeboat_protocol::wire::Inbox;
use rustix::fs::Mode;
use rustix::fs::OFlags;

use crate::boottime::Moment;
use crate::event::Event;
use crate::event::Notice;
use crate::ring::Ring;
use crate::shared::AGREEMENT;
use crate::shared::Due;
use crate::shared::Greeting;
use crate::shared::Link;
use crate::shared::Lost;
use crate::shared::Order;
use crate::shared::Outcome;
use crate::shared::Passing;
use crate::shared::Shared;
use crate::shared::all_slots;
use crate::state::Without;

/// Pause after the first refusal; doubled up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How often the agent is told where the program is, if that changes.
const PROGRESS: Duration = Duration::from_secs(5);
/// How long the agent may leave bytes unread before the line counts as broken.
const STUCK: Duration = Duration::from_secs(30);
/// Longest path that fits a socket's address, with its final zero.
const PATH_MAX: usize = 107;

/// Longest step after which there is time left to save what a notice at its beginning asked for.
///
/// Source: EC2 User Guide, "Spot Instance interruption notices": two minutes. Five seconds of it go
/// by until the notice is heard and the state committed, be it ever so small.
const WINDOW: Duration = Duration::from_secs(115);

/// Keeps the line up until the boat is closed.
pub(crate) fn run(shared: &Shared, socket: &Path) {
    let mut pause = FIRST_PAUSE;
    loop {
        match connect(socket) {
            Ok(stream) => {
                pause = FIRST_PAUSE;
                Conversation::hold(shared, &stream);
                lost(shared);
            }
            Err(error) => refused(shared, socket, &error),
        }
        let again = Moment::now().after(pause);
        let closing = shared.wait(|state| match (state.closing, again.left().is_zero()) {
            (true, _) => ControlFlow::Break(true),
            (false, true) => ControlFlow::Break(false),
            (false, false) => ControlFlow::Continue(Some(again)),
        });
        if closing {
            return;
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Tells the agent what the program registered by now.
pub(crate) fn register(shared: &Shared) {
    let generation = shared.change(|state| state.generation);
    let layout = shared.parts().layout();
    // Over a line that is lost it is told again when there is another.
    let _told_later = shared.send(generation, &FromWorkload::Register(Register { layout }));
}

/// A socket's path may be longer than its address can hold: then it is reached through its folder.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    if socket.as_os_str().len() <= PATH_MAX {
        return UnixStream::connect(socket);
    }
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    UnixStream::connect(short)
}

fn refused(shared: &Shared, socket: &Path, error: &io::Error) {
    let first = shared.change(|state| state.refusals == 0 && state.link == Link::Never);
    if first {
        let reason = format!("nobody answers at `{}` ({error})", socket.display());
        shared.observe(&Event::NoAgent { reason });
    }
    shared.change(|state| state.refusals = state.refusals.saturating_add(1));
}

fn lost(shared: &Shared) {
    shared.unlink();
    let (closing, greeted) =
        shared.change(|state| (state.closing, state.greeting == Greeting::Welcome));
    if greeted && !closing {
        shared.observe(&Event::AgentLost);
    }
}

/// One connection, from hello to its end.
struct Conversation<'a> {
    shared: &'a Shared,
    generation: u64,
    /// When the agent was last told where the program is, and where that was.
    told: (Moment, Option<u64>),
    stride: Stride,
}

impl<'a> Conversation<'a> {
    fn hold(shared: &'a Shared, stream: &UnixStream) {
        let Ok(writer) = stream.try_clone() else { return };
        let timed = stream.set_read_timeout(Some(PROGRESS));
        if timed.and_then(|()| stream.set_write_timeout(Some(STUCK))).is_err() {
            return;
        }
        let generation = shared.link(writer);
        let told = (Moment::now(), shared.step());
        let mut conversation = Self { shared, generation, told, stride: Stride::default() };
        if conversation.greet().is_ok() {
            conversation.listen(stream);
        }
    }

    fn greet(&self) -> Result<(), Lost> {
        let settings = &self.shared.settings;
        let (parked, terminating, again) = self.shared.change(|state| {
            let again = state.greeting == Greeting::Welcome;
            (state.parked.clone(), state.terminating.is_some(), again)
        });
        let hello = Hello {
            version: VERSION,
            sdk: concat!("lifeboat-sdk ", env!("CARGO_PKG_VERSION")).to_owned(),
            run_id: settings.run_id.clone(),
            restart_count: settings.restart_count,
            rank: settings.rank.rank,
            local_rank: settings.rank.local_rank,
            world: settings.rank.world,
            local_world: settings.rank.local_world,
            pid: std::process::id(),
            step: self.shared.step(),
            again,
            parked,
            terminating,
        };
        self.send(&FromWorkload::Hello(hello))?;
        self.shared.up(self.generation);
        // From here on others say themselves what changes; so this is looked at only now.
        let layout = self.shared.parts().layout();
        if !layout.regions.is_empty() {
            self.send(&FromWorkload::Register(Register { layout }))?;
        }
        let step = self.shared.step();
        if self.shared.change(|state| state.terminating.is_some()) {
            self.send(&FromWorkload::Terminating(Terminating { step }))?;
        }
        Ok(())
    }

    fn listen(&mut self, stream: &UnixStream) {
        let (mut inbox, mut buffer) = (Inbox::new(), vec![0; 64 << 10]);
        loop {
            let mut descriptors = Vec::new();
            match fd::receive(stream, &mut buffer, &mut descriptors) {
                Ok(0) => return,
                Ok(length) => inbox.push(&buffer[..length], descriptors),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(_) => return,
            }
            loop {
                match inbox.take() {
                    Ok(Some((frame, descriptors))) => self.hear(frame, descriptors),
                    Ok(None) => break,
                    Err(error) => {
                        let reason = format!("agent was not understood: {error}");
                        self.shared.observe(&Event::NotSaved { reason });
                        return;
                    }
                }
            }
            self.tell_progress();
            self.warn_of_long_steps();
        }
    }

    fn hear(&self, frame: ToWorkload, descriptors: Vec<OwnedFd>) {
        match frame {
            ToWorkload::Welcome(welcome) => self.welcome(welcome),
            ToWorkload::KeyInUse(in_use) => self.in_use(in_use),
            ToWorkload::Refused(refused) => {
                self.greeted(Greeting::Refused(refused.reason));
            }
            ToWorkload::Lend(lend) => self.lend(lend, descriptors),
            ToWorkload::Reclaim(ring) => self.reclaim(ring),
            ToWorkload::Notice(notice) => self.shared.notice(Notice::from(notice)),
            ToWorkload::Prepare(prepare) => self.prepare(prepare),
            ToWorkload::SaveAt(at) => self.save_at(&at),
            ToWorkload::Freed(freed) => self.shared.change(|state| {
                if let Some(hand) = state.passing(self.generation, freed.save) {
                    hand.free.push(freed.slot);
                }
            }),
            ToWorkload::Pace(pace) => self.pace(pace),
            ToWorkload::Forecast(forecast) => {
                let (fits, text) = (forecast.fits, forecast.text);
                self.shared.observe(&Event::Forecast { fits, text });
            }
            ToWorkload::Taken(save) => self.taken(save.save),
            ToWorkload::Durable(durable) => self.durable(&durable),
            ToWorkload::SaveFailed(failed) => self.save_failed(failed),
            ToWorkload::CallOff(save) => self.call_off(save.save),
            ToWorkload::Park(notice) => self.shared.change(|state| state.park = Some(notice)),
            ToWorkload::Unpark(unpark) => self.unpark(unpark.reason),
            ToWorkload::Leave(leave) => {
                self.shared.change(|state| state.leave = Some(leave.reason));
            }
            ToWorkload::Finished(_) => self.shared.change(|state| state.finished = true),
            frame @ (ToWorkload::RestoreOffer(_)
            | ToWorkload::NothingToRestore(_)
            | ToWorkload::Filled(_)
            | ToWorkload::Zeros(_)
            | ToWorkload::Sent(_)
            | ToWorkload::Waiting(_)
            | ToWorkload::Opened(_)
            | ToWorkload::RestoreFailed(_)) => {
                self.shared.change(|state| state.restoring.push_back(frame));
            }
            ToWorkload::Unknown => (),
        }
    }

    fn welcome(&self, welcome: Welcome) {
        if welcome.version.major != VERSION.major {
            let (own, other) = (VERSION.major, welcome.version.major);
            let older = if other < own { "agent of this node" } else { "SDK in this image" };
            let reason = format!(
                "it speaks version {other} of the protocol, this SDK {own}. Update the {older}."
            );
            return self.greeted(Greeting::Refused(reason));
        }
        self.shared.observe(&Event::Connected { agent: welcome.agent });
        self.shared.change(|state| {
            let first = state.greeting != Greeting::Welcome;
            state.greeting = Greeting::Welcome;
            if first {
                state.park = welcome.park;
            }
        });
    }

    fn in_use(&self, in_use: KeyInUse) {
        if !in_use.wait {
            return self.greeted(Greeting::InUse(in_use.holder));
        }
        self.shared.observe(&Event::Successor { holder: in_use.holder });
        self.greeted(Greeting::Welcome);
    }

    fn greeted(&self, greeting: Greeting) {
        self.shared.change(|state| state.greeting = greeting);
    }

    fn lend(&self, lend: Lend, descriptors: Vec<OwnedFd>) {
        let Some(memory) = descriptors.into_iter().next() else { return };
        match Ring::map(lend.ring, lend.shape, memory) {
            Ok(ring) => self.shared.change(|state| {
                if let Some(hand) = &mut state.hand {
                    hand.free = all_slots(&ring);
                }
                state.ring = Some(Arc::new(ring));
            }),
            Err(error) => {
                let reason = format!("the agent's ring cannot be used: {error}");
                self.shared.observe(&Event::NotSaved { reason });
            }
        }
    }

    fn reclaim(&self, ring: RingId) {
        let own = self.shared.change(|state| state.ring.take_if(|own| own.id() == ring.ring));
        drop(own);
        self.answer(&FromWorkload::Returned(ring));
    }

    /// The flag is set before the step is read: see [`Shared::reached`].
    fn prepare(&self, prepare: Prepare) {
        let (save, cause) = (prepare.save, prepare.cause);
        if self.shared.step().is_none() {
            let reason = "nothing is restored or trained yet".to_owned();
            return self.answer(&FromWorkload::SaveRefused(SaveRefused { save, reason }));
        }
        let deadline = prepare.deadline.map(Moment::from);
        let until = deadline.unwrap_or_else(|| Moment::now().after(AGREEMENT));
        let parked = self.shared.change(|state| {
            state.order = Order::Prepared(prepare, until);
            state.standing
        });
        let step = self.shared.step().unwrap_or(0);
        self.answer(&FromWorkload::Ready(Ready { save, step, parked }));
        let left = deadline.map(Moment::left);
        self.shared.observe(&Event::Asked { cause, left });
    }

    fn save_at(&self, at: &SaveAt) {
        self.shared.change(|state| {
            let Order::Prepared(prepare, _) = &state.order else { return };
            if prepare.save != at.save {
                return;
            }
            state.order = Order::Due(Due {
                save: at.save,
                purpose: prepare.purpose,
                at: at.step,
                chunk_bytes: at.chunk_bytes,
                without: Without { replicated: at.skip_replicated, names: Vec::new() },
            });
        });
    }

    fn pace(&self, pace: Pace) {
        if let Some(expected) = pace.expected {
            let spare = pace.deadline.map(|deadline| {
                let nanoseconds =
                    i128::from(deadline.boottime_ns) - i128::from(expected.boottime_ns);
                i64::try_from(nanoseconds.div_euclid(1_000_000_000)).unwrap_or(i64::MAX)
            });
            let left = Moment::from(expected).left();
            self.shared.observe(&Event::Expected { left, spare_seconds: spare });
        }
        self.shared.change(|state| {
            if let Order::Due(due) = &mut state.order
                && due.save == pace.save
            {
                due.without.names = pace.leave_out;
            }
        });
    }

    fn taken(&self, save: u64) {
        self.shared.change(|state| {
            if let Some(hand) = state.passing(self.generation, save)
                && hand.progress == Passing::UnderWay
            {
                hand.progress = Passing::Taken;
                if let Some(parked) = &mut state.parked {
                    parked.taken |= parked.save == Some(save);
                }
            }
        });
    }

    fn durable(&self, durable: &frame::Durable) {
        let spare_seconds = durable.spare_ns.map(|spare| spare.div_euclid(1_000_000_000));
        self.shared.observe(&Event::Durable {
            step: durable.step,
            epoch: durable.epoch,
            bytes: durable.bytes,
            took: Duration::from_nanos(durable.took_ns),
            spare_seconds,
        });
        self.shared.change(|state| {
            state.outcome = Some(Outcome::Durable { epoch: durable.epoch });
            if let Some(parked) = &mut state.parked
                && parked.save == Some(durable.save)
            {
                parked.taken = true;
                parked.epoch = Some(durable.epoch);
            }
        });
    }

    fn save_failed(&self, failed: frame::SaveFailed) {
        let (save, why, reason) = (failed.save, failed.why, failed.reason);
        self.shared.observe(&Event::NotSaved { reason: reason.clone() });
        self.shared.change(|state| {
            if state.order.save() == Some(save) {
                state.order = Order::None;
            }
            if let Some(hand) = state.passing(self.generation, save) {
                hand.progress = Passing::Off;
            }
            state.outcome = Some(Outcome::Failed { why, reason });
        });
    }

    fn call_off(&self, save: u64) {
        self.shared.change(|state| state.call_off(save));
        self.shared.observe(&Event::GoesOn { reason: "the save was called off".to_owned() });
    }

    fn unpark(&self, reason: String) {
        let stood = self.shared.change(|state| {
            let parked = state.parked.take().and_then(|parked| parked.save);
            if let Some(save) = parked {
                state.call_off(save);
            }
            state.park.take().is_some() || parked.is_some()
        });
        if stood {
            self.shared.observe(&Event::GoesOn { reason });
        }
    }

    fn tell_progress(&mut self) {
        let (since, was) = self.told;
        let (now, is) = (Moment::now(), self.shared.step());
        let elapsed = now.since(since);
        let Some(step) = is.filter(|_| is != was && elapsed >= PROGRESS) else { return };
        // The first step that is seen may be that of a state it went on from: it tells no time.
        let step_ns = was.map_or(0, |was| {
            let steps = u128::from(step.saturating_sub(was).max(1));
            u64::try_from(elapsed.as_nanos() / steps).unwrap_or(u64::MAX)
        });
        let parked = self.shared.change(|state| state.parked.is_some());
        self.told = (now, is);
        self.answer(&FromWorkload::Progress(Progress { step, step_ns, parked }));
    }

    fn warn_of_long_steps(&mut self) {
        let stands = self.shared.wait(|state| ControlFlow::Break(state.stands()));
        let step = self.shared.step().filter(|_| !stands);
        let Some(took) = self.stride.took(step, Moment::now()) else { return };
        if took >= WINDOW && self.shared.steps_are_whole() && !self.shared.warned() {
            self.shared.observe(&Event::StepTooLong { took, window: WINDOW });
        }
    }

    fn send(&self, frame: &FromWorkload) -> Result<(), Lost> {
        self.shared.send(self.generation, frame)
    }

    /// Sends what needs no sequel: if the line is lost, reading says so next.
    fn answer(&self, frame: &FromWorkload) {
        let _read_next = self.send(frame);
    }
}

/// How long steps take, as seen from beside the program: to within the pauses between two looks.
#[derive(Default)]
struct Stride {
    /// Where the program was at the last look; none while it stands still.
    step: Option<u64>,
    /// When it was first seen there, if it was seen to come there.
    since: Option<Moment>,
}

impl Stride {
    /// How long a step took, when one is seen to be complete.
    ///
    /// Not the first one, in which much is compiled; and not one in which the program stood still.
    fn took(&mut self, step: Option<u64>, now: Moment) -> Option<Duration> {
        if step == self.step {
            return None;
        }
        let steps =
            step.zip(self.step).and_then(|(is, was)| u32::try_from(is.checked_sub(was)?).ok());
        let took =
            self.since.zip(steps).and_then(|(since, steps)| now.since(since).checked_div(steps));
        self.since = steps.map(|_| now);
        self.step = step;
        took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest step of a program that is looked at so: seconds, and where it was.
    fn longest(looks: &[(u64, Option<u64>)]) -> Option<u64> {
        let (mut stride, begun) = (Stride::default(), Moment::now());
        let took = |&(seconds, step): &(u64, Option<u64>)| {
            stride.took(step, begun.after(Duration::from_secs(seconds)))
        };
        looks.iter().filter_map(took).max().map(|took| took.as_secs())
    }

    #[test]
    fn a_step_takes_as_long_as_its_neighbors_are_apart() {
        let looks = [(0, Some(5)), (100, Some(6)), (105, Some(6)), (225, Some(7)), (230, Some(7))];
        assert_eq!(longest(&looks), Some(125));
        assert_eq!(longest(&[(0, Some(5)), (5, Some(6)), (10, Some(106))]), Some(0));
    }

    #[test]
    fn neither_the_first_step_is_long_nor_one_in_which_the_program_stood_still() {
        assert_eq!(longest(&[(0, None), (300, Some(0)), (600, Some(1))]), None);
        let stood = [(0, Some(5)), (5, Some(6)), (10, None), (300, Some(6)), (305, Some(7))];
        assert_eq!(longest(&stood), None);
    }
}

//! The restore: reads ahead into the program's own memory, then waits for the gate.

use std::ops::ControlFlow;
use std::time::Duration;

use lifeboat_protocol::frame::Accept;
use lifeboat_protocol::frame::Decline;
use lifeboat_protocol::frame::Emptied;
use lifeboat_protocol::frame::Failure;
use lifeboat_protocol::frame::Filling;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Opened;
use lifeboat_protocol::frame::Restore;
use lifeboat_protocol::frame::RestoreOffer;
use lifeboat_protocol::frame::Resumed;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::Zeros;

use crate::boottime::Moment;
use crate::error::Error;
use crate::event::Event;
use crate::settings::Required;
use crate::shared::Greeting;
use crate::shared::Link;
use crate::shared::Lost;
use crate::shared::Shared;
use crate::state::Stream;

/// How long an agent that never answered is waited for before the program begins without.
const PATIENCE: Duration = Duration::from_secs(10);
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

enum Stop {
    Lost,
    Fault(Error),
}

/// Fills the program's state with the newest that is stored; says how many steps it has.
pub(crate) fn run(shared: &Shared, newer_than: Option<u64>) -> Result<Option<u64>, Error> {
    loop {
        let Some(generation) = line(shared)? else {
            if shared.change(|state| state.closing) {
                return Err(Error::Closed);
            }
            let reason = "no agent answers: the program begins anew".to_owned();
            shared.observe(&Event::NothingToRestore { reason });
            return Ok(None);
        };
        let mut attempt = Attempt { shared, generation, restore: 0, stream: None, missing: 0 };
        match attempt.run(newer_than) {
            Ok(step) => return Ok(step),
            Err(Stop::Lost) => (),
            Err(Stop::Fault(error)) => return Err(error),
        }
    }
}

/// The line, once it is up and greeted; none if nobody ever answered.
fn line(shared: &Shared) -> Result<Option<u64>, Error> {
    let give_up = Moment::now().after(PATIENCE);
    let generation = shared.wait_here(|state| match (&state.link, &state.greeting) {
        _ if state.closing => ControlFlow::Break(None),
        (Link::Up(_), Greeting::Welcome) => ControlFlow::Break(Some(state.generation)),
        (Link::Down(_), Greeting::Welcome) => ControlFlow::Continue(None),
        _ if give_up.left().is_zero() => ControlFlow::Break(None),
        _ => ControlFlow::Continue(Some(give_up)),
    });
    match (generation, shared.settings.required, &shared.settings.socket) {
        (None, Required::Yes, Some(socket)) => {
            Err(Error::AgentUnreachable { socket: socket.clone() })
        }
        _ => Ok(generation),
    }
}

/// A restore over one connection.
struct Attempt<'a> {
    shared: &'a Shared,
    generation: u64,
    restore: u64,
    stream: Option<(RestoreOffer, Stream)>,
    /// Bytes that have not come yet.
    missing: u64,
}

impl Attempt<'_> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the line passes on frames of a restore only"
    )]
    fn run(&mut self, newer_than: Option<u64>) -> Result<Option<u64>, Stop> {
        self.shared.change(|state| state.restoring.clear());
        self.send(&FromWorkload::Restore(Restore { newer_than }))?;
        loop {
            match self.next()? {
                ToWorkload::RestoreOffer(offer) => self.offered(offer)?,
                ToWorkload::Filled(filling) => self.filled(&filling)?,
                ToWorkload::Zeros(zeros) => self.zeros(&zeros)?,
                ToWorkload::Waiting(waiting) => {
                    self.shared.observe(&Event::Waiting { reason: waiting.reason });
                }
                ToWorkload::Opened(opened) => return self.opened(opened).map(Some),
                ToWorkload::NothingToRestore(nothing) => {
                    let reason = nothing.reason;
                    self.shared.observe(&Event::NothingToRestore { reason });
                    return Ok(None);
                }
                ToWorkload::RestoreFailed(failed) => {
                    let (why, reason) = (failed.why, failed.reason);
                    return Err(Stop::Fault(Error::NotRestored { why, reason }));
                }
                _ => (),
            }
        }
    }

    fn offered(&mut self, offer: RestoreOffer) -> Result<(), Stop> {
        let own = self.shared.settings.rank.world;
        let fitted = if offer.world == own {
            self.shared.parts().fit(&offer.layout)
        } else {
            Err(Error::OtherWorld { saved: offer.world, own })
        };
        self.restore = offer.restore;
        match fitted {
            Ok(stream) => {
                let (epoch, step, bytes) = (offer.epoch, offer.step, stream.bytes());
                self.shared.observe(&Event::Reading { epoch, step, bytes });
                self.missing = bytes;
                self.stream = Some((offer, stream));
                self.send(&FromWorkload::Accept(Accept { restore: self.restore }))
            }
            Err(error) => {
                let (restore, reason) = (self.restore, error.to_string());
                self.send(&FromWorkload::Decline(Decline { restore, reason }))?;
                Err(Stop::Fault(error))
            }
        }
    }

    fn filled(&mut self, filling: &Filling) -> Result<(), Stop> {
        let Filling { restore, slot, offset, bytes } = *filling;
        if let Some((_, stream)) = self.stream.as_ref().filter(|_| restore == self.restore) {
            within(stream, offset, bytes)?;
            let ring = self.shared.change(|state| state.ring.clone()).ok_or_else(no_ring)?;
            let written = ring.slot(slot, bytes, |from| stream.write(offset, from));
            written.ok_or_else(no_ring)?.map_err(Stop::Fault)?;
            self.missing = self.missing.saturating_sub(bytes);
        }
        self.send(&FromWorkload::Emptied(Emptied { restore, slot }))
    }

    fn zeros(&mut self, zeros: &Zeros) -> Result<(), Stop> {
        let Zeros { restore, offset, bytes } = *zeros;
        let Some((_, stream)) = self.stream.as_ref().filter(|_| restore == self.restore) else {
            return Ok(());
        };
        within(stream, offset, bytes)?;
        let mut done = 0;
        while done < bytes {
            let piece = (bytes - done).min(ZEROS.len() as u64);
            let some = usize::try_from(piece).unwrap_or(ZEROS.len());
            stream.write(offset + done, &ZEROS[..some]).map_err(Stop::Fault)?;
            done += piece;
        }
        self.missing = self.missing.saturating_sub(bytes);
        Ok(())
    }

    fn opened(&mut self, opened: Opened) -> Result<u64, Stop> {
        let missing = self.missing;
        let Some((offer, stream)) = self.stream.take().filter(|_| missing == 0) else {
            return Err(fault(Failure::Damaged, format!("{missing} bytes of it did not come")));
        };
        stream.settle().map_err(Stop::Fault)?;
        self.shared.parts().take(&offer.layout.tree).map_err(Stop::Fault)?;
        let step = offer.step;
        self.shared.reached(step);
        let proof = opened.proof;
        self.shared.observe(&Event::Resumed { epoch: opened.epoch, step, proof });
        // A line lost now is another's concern: the job key is ours, and hello says the step.
        let resumed = Resumed { restore: self.restore, step };
        let _told_by_hello = self.shared.send(self.generation, &FromWorkload::Resumed(resumed));
        Ok(step)
    }

    fn next(&self) -> Result<ToWorkload, Stop> {
        self.shared.wait_here(|state| match state.restoring.pop_front() {
            _ if !state.up(self.generation) => ControlFlow::Break(Err(Stop::Lost)),
            Some(frame) => ControlFlow::Break(Ok(frame)),
            None => ControlFlow::Continue(None),
        })
    }

    fn send(&self, frame: &FromWorkload) -> Result<(), Stop> {
        self.shared.send(self.generation, frame).map_err(|Lost| Stop::Lost)
    }
}

fn within(stream: &Stream, offset: u64, bytes: u64) -> Result<(), Stop> {
    if offset.checked_add(bytes).is_some_and(|end| end <= stream.bytes()) {
        return Ok(());
    }
    Err(fault(Failure::Damaged, "more bytes came than were saved".to_owned()))
}

fn no_ring() -> Stop {
    fault(Failure::Unknown, "the agent named a slot of no ring".to_owned())
}

fn fault(why: Failure, reason: String) -> Stop {
    Stop::Fault(Error::NotRestored { why, reason })
}

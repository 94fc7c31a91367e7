//! The hand-over: the program's own thread puts its state into the agent's hands.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;

use lifeboat_checkpoint::chunk::Cut;
use lifeboat_checkpoint::chunk::cuts;
use lifeboat_protocol::fd::DESCRIPTORS_MAX;
use lifeboat_protocol::frame::Filled;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Given;
use lifeboat_protocol::frame::Piece;
use lifeboat_protocol::frame::Purpose;
use lifeboat_protocol::frame::SaveBegin;
use lifeboat_protocol::frame::SaveEnd;
use lifeboat_protocol::frame::SaveRefused;

use crate::boottime::Moment;
use crate::error::Error;
use crate::event::Event;
use crate::ring::Ring;
use crate::shared::Due;
use crate::shared::Lost;
use crate::shared::Passing;
use crate::shared::Shared;
use crate::state::Stream;

/// Why a hand-over ended before its end.
enum Stop {
    /// The agent does not want it any more, or is gone.
    Off,
    /// The state cannot be read.
    Fault(Error),
}

/// Hands the state over, and returns once its last byte is taken or nobody wants it any more.
///
/// A program that is to park is parked from here on.
pub(crate) fn run(shared: &Shared, step: u64, due: &Due) -> Result<(), Error> {
    let begun = Moment::now();
    let Some(generation) = shared.change(|state| state.begin(step, due)) else { return Ok(()) };
    if due.purpose == Purpose::Park {
        let reason = "its state is being saved".to_owned();
        shared.observe(&Event::Parked { step: Some(step), reason });
    }
    let stream = shared.parts().stream(&due.without);
    let passed = stream.map_err(Stop::Fault).and_then(|stream| {
        let bytes = stream.bytes();
        HandOver { shared, generation, save: due.save, stream }.pass(step, due)?;
        Ok(bytes)
    });
    match passed {
        Ok(bytes) => {
            let took = Moment::now().since(begun);
            shared.observe(&Event::HandedOver { step, bytes, took });
            Ok(())
        }
        Err(Stop::Off) => Ok(()),
        Err(Stop::Fault(error)) => {
            let refused = SaveRefused { save: due.save, reason: error.to_string() };
            let _told_or_gone = shared.send(generation, &FromWorkload::SaveRefused(refused));
            shared.change(|state| state.call_off(due.save));
            Err(error)
        }
    }
}

struct HandOver<'a> {
    shared: &'a Shared,
    generation: u64,
    save: u64,
    stream: Stream,
}

impl HandOver<'_> {
    fn pass(&self, step: u64, due: &Due) -> Result<(), Stop> {
        let (save, layout) = (self.save, self.stream.layout.clone());
        self.send(&FromWorkload::SaveBegin(SaveBegin { save, step, layout }))?;
        if !self.stream.memory().is_empty() {
            self.pass_memory(due.chunk_bytes)?;
        }
        self.pass_files()?;
        let bytes = self.stream.bytes();
        self.send(&FromWorkload::SaveEnd(SaveEnd { save, bytes }))?;
        self.taken()
    }

    fn pass_memory(&self, chunk_bytes: u64) -> Result<(), Stop> {
        let slot_bytes = self.ring()?.shape().slot_bytes();
        let chunk_bytes = if chunk_bytes == 0 { slot_bytes } else { chunk_bytes.min(slot_bytes) };
        for cut in cuts(self.stream.memory(), chunk_bytes) {
            self.pass_chunk(cut)?;
        }
        Ok(())
    }

    fn pass_chunk(&self, Cut { offset, bytes }: Cut) -> Result<(), Stop> {
        let (ring, slot) = self.free_slot()?;
        let filled = ring.slot(slot, bytes, |into| self.stream.read(offset, into));
        // A slot that is none is the agent's fault: to go on without it is to leave the save.
        filled.ok_or(Stop::Off)?.map_err(Stop::Fault)?;
        self.send(&FromWorkload::Filled(Filled { save: self.save, slot, offset, bytes }))
    }

    fn pass_files(&self) -> Result<(), Stop> {
        let files: Vec<_> = self.stream.files().filter(|(_, bytes, _)| *bytes > 0).collect();
        for some in files.chunks(DESCRIPTORS_MAX) {
            let descriptors: Vec<_> = some.iter().map(|(_, _, file)| file.as_fd()).collect();
            let pieces = (0..).zip(some).map(|(descriptor, (offset, bytes, _))| Piece {
                descriptor,
                from: 0,
                offset: *offset,
                bytes: *bytes,
            });
            let given = Given { save: self.save, pieces: pieces.collect() };
            let sent =
                self.shared.send_with(self.generation, &FromWorkload::Given(given), &descriptors);
            sent.map_err(|Lost| Stop::Off)?;
        }
        Ok(())
    }

    fn ring(&self) -> Result<Arc<Ring>, Stop> {
        self.shared.wait(|state| match state.passing(self.generation, self.save) {
            Some(hand) if hand.progress == Passing::UnderWay => match &state.ring {
                Some(ring) => ControlFlow::Break(Ok(Arc::clone(ring))),
                None => ControlFlow::Continue(None),
            },
            _ => ControlFlow::Break(Err(Stop::Off)),
        })
    }

    fn free_slot(&self) -> Result<(Arc<Ring>, u32), Stop> {
        let ring = self.ring()?;
        let slot = self.shared.wait(|state| match state.passing(self.generation, self.save) {
            Some(hand) if hand.progress == Passing::UnderWay => match hand.free.pop() {
                Some(slot) => ControlFlow::Break(Ok(slot)),
                None => ControlFlow::Continue(None),
            },
            _ => ControlFlow::Break(Err(Stop::Off)),
        })?;
        Ok((ring, slot))
    }

    fn taken(&self) -> Result<(), Stop> {
        self.shared.wait(|state| match state.passing(self.generation, self.save) {
            Some(hand) => match hand.progress {
                Passing::UnderWay => ControlFlow::Continue(None),
                Passing::Taken => ControlFlow::Break(Ok(())),
                Passing::Off => ControlFlow::Break(Err(Stop::Off)),
            },
            None => ControlFlow::Break(Err(Stop::Off)),
        })
    }

    fn send(&self, frame: &FromWorkload) -> Result<(), Stop> {
        self.shared.send(self.generation, frame).map_err(|Lost| Stop::Off)
    }
}

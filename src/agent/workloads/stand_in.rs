//! Speaks for a workload that does not: the same frames, from within the agent.

pub(super) mod directory;
pub(super) mod filling;
pub(super) mod http;
pub(super) mod whole;

use lifeboat_protocol::frame::Cause;
use lifeboat_protocol::frame::Filling;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Hello;
use lifeboat_protocol::frame::RestoreOffer;
use lifeboat_protocol::frame::SaveAt;
use lifeboat_protocol::frame::SaveRefused;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::VERSION;
use lifeboat_protocol::frame::Welcome;
use tokio::sync::mpsc;

use crate::agent::workloads::line::Heard;
use crate::agent::workloads::line::Said;
use crate::agent::workloads::line::SessionId;
use crate::agent::workloads::line::Unsaid;
use crate::data::ring::Ring;
use crate::data::save::Part;

/// A stand-in's end of a line.
#[derive(Debug)]
pub(super) struct Seat {
    number: SessionId,
    unsaid: Unsaid,
    tell: mpsc::Sender<(SessionId, Heard)>,
}

/// What the agent says, as far as it matters to one who speaks for another.
#[derive(Debug)]
pub(super) enum Told {
    /// A save is due, for this reason.
    Asked(Cause),
    /// Hand over now.
    Save(SaveAt),
    /// There is less time than was said.
    Sooner,
    /// The save is not wanted any more.
    CalledOff,
    /// This can be restored.
    Offer(Box<RestoreOffer>),
    /// The ring to read from; none when it is wanted back.
    Ring(Option<Ring>),
    /// A slot of it is full.
    Filled(Filling),
    /// The restore waits for this.
    Waits(String),
    /// The life may begin.
    Begins,
    /// It may not, for this reason.
    Never(String),
    /// It is for programs.
    Other,
}

fn told(Said { frame, ring }: Said) -> Told {
    match frame {
        ToWorkload::Prepare(prepare) => Told::Asked(prepare.cause),
        ToWorkload::SaveAt(at) => Told::Save(at),
        // What is expected of its save alone makes no time dearer.
        ToWorkload::Pace(pace) if pace.expected.is_none() => Told::Sooner,
        ToWorkload::CallOff(_) => Told::CalledOff,
        ToWorkload::RestoreOffer(offer) => Told::Offer(Box::new(offer)),
        ToWorkload::Lend(_) => Told::Ring(ring),
        ToWorkload::Reclaim(_) => Told::Ring(None),
        ToWorkload::Filled(slot) => Told::Filled(slot),
        ToWorkload::Waiting(waiting) => Told::Waits(waiting.reason),
        ToWorkload::Opened(_) | ToWorkload::NothingToRestore(_) => Told::Begins,
        ToWorkload::RestoreFailed(failed) => Told::Never(failed.reason),
        ToWorkload::Refused(refused) => Told::Never(refused.reason),
        ToWorkload::KeyInUse(in_use) if in_use.wait => {
            Told::Waits(format!("pod `{}` is still there", in_use.holder))
        }
        ToWorkload::KeyInUse(in_use) => {
            Told::Never(format!("pod `{}` runs under the same job key", in_use.holder))
        }
        ToWorkload::Park(notice) | ToWorkload::Welcome(Welcome { park: Some(notice), .. }) => {
            Told::Never(notice.text)
        }
        ToWorkload::Welcome(_)
        | ToWorkload::Notice(_)
        | ToWorkload::Pace(_)
        | ToWorkload::Forecast(_)
        | ToWorkload::Freed(_)
        | ToWorkload::Taken(_)
        | ToWorkload::Durable(_)
        | ToWorkload::SaveFailed(_)
        | ToWorkload::Unpark(_)
        | ToWorkload::Leave(_)
        | ToWorkload::Zeros(_)
        | ToWorkload::Sent(_)
        | ToWorkload::Finished(_)
        | ToWorkload::Unknown => Told::Other,
    }
}

/// Whether a life was there before this agent, or this line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coming {
    /// It begins.
    First,
    /// It went on meanwhile.
    Again,
}

impl Seat {
    /// The end of the line of this number.
    pub(super) fn new(
        number: SessionId,
        unsaid: Unsaid,
        tell: mpsc::Sender<(SessionId, Heard)>,
    ) -> Self {
        Self { number, unsaid, tell }
    }

    /// Says hello, as the one rank that there is.
    pub(super) async fn greet(&self, coming: Coming) {
        let again = coming == Coming::Again;
        let hello = Hello {
            version: VERSION,
            sdk: "a stand-in of the agent".to_owned(),
            world: 1,
            local_world: 1,
            step: again.then_some(0),
            again,
            ..Hello::default()
        };
        self.say(FromWorkload::Hello(hello)).await;
    }

    /// Says a frame.
    pub(super) async fn say(&self, frame: FromWorkload) {
        self.pass(Heard::Frame(Box::new(frame), Vec::new())).await;
    }

    /// Says that a save cannot be, and why.
    pub(super) async fn refuse(&self, save: u64, reason: String) {
        self.say(FromWorkload::SaveRefused(SaveRefused { save, reason })).await;
    }

    /// Hands parts of the stream over, whose bytes lie in files.
    pub(super) async fn hand_over(&self, save: u64, parts: Vec<Part>) {
        self.pass(Heard::Files { save, parts }).await;
    }

    /// What the agent says next; nothing once the line is cut.
    pub(super) async fn hear(&mut self) -> Option<Told> {
        self.unsaid.recv().await.map(told)
    }

    /// Leaves the line.
    pub(super) async fn leave(self) {
        self.pass(Heard::Closed).await;
    }

    /// The registry is gone only when the agent ends.
    async fn pass(&self, heard: Heard) {
        self.tell.send((self.number, heard)).await.ok();
    }
}

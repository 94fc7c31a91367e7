//! What workload and agent say to each other, and in which order.
//!
//! Every rank of a workload has its own connection. A frame that is not known is read as
//! [`Unknown`](FromWorkload::Unknown) and passed over; a field that is not known is ignored; one
//! that is missing has its default. So two sides whose minor versions differ understand each
//! other. Sides whose major versions differ do not, and say so in the first frame.
//!
//! # Hello
//!
//! ```text
//! workload                                   agent
//!   Hello ───────────────────────────────────▶
//!         ◀──────────────────────────── Welcome   or KeyInUse (wait: it is the successor), or Refused
//!   Register ────────────────────────────────▶
//! ```
//!
//! `Welcome.park` in the answer to a first hello parks the workload at once: it was started on an
//! interrupted node, has nothing to save, and waits for `Unpark` or for its end. When the
//! connection breaks, the workload connects again, says hello with `again`, with the step it has
//! reached and, if it is parked, for which save; it registers again; and all saves, restores,
//! slots and rings of the old connection are forgotten by both sides. An agent that wants the
//! state of a parked workload asks for it as it does for any other. An agent that knows of no
//! reason why a workload is parked says `Unpark`.
//!
//! # Save
//!
//! ```text
//!         ◀──────────────────────────── Lend + descriptor      (any time before slots are used)
//!         ◀──────────────────────────── Prepare{save, purpose, deadline}
//!   Ready{save, step} ───────────────────────▶                 at once, from the middle of a step
//!         ◀──────────────────────────── SaveAt{save, step}     once every rank is ready: max + 1
//!   SaveBegin{save, step, layout} ───────────▶                 at the end of that step
//!   Filled{save, slot, offset, bytes} ───────▶                 one chunk in each slot
//!         ◀──────────────────────────── Freed{save, slot}      the agent has its bytes
//!   Given{save, pieces} + descriptors ───────▶                 parts of the stream that lie in files
//!   SaveEnd{save} ───────────────────────────▶
//!         ◀──────────────────────────── Taken{save}            all bytes are the agent's
//!         ◀──────────────────────────── Durable{save, epoch}   or SaveFailed
//! ```
//!
//! The answer to `Prepare` comes from a thread of its own, so it does not wait for the step to
//! end, however long that takes. A rank that said it is at step s stops at the end of s + 1 until
//! `SaveAt` comes: so no rank runs past the step that is agreed on, without any collective. A
//! `SaveAt` without a step means the next safe point, which is right for a single rank. The
//! agent may send both frames together then.
//!
//! `offset` counts in the rank's stream: its regions one after the other, in the order of the
//! layout in `SaveBegin`. Chunks are cut as [`cuts`](lifeboat_checkpoint::chunk::cuts) says, with
//! `SaveAt.chunk_bytes` (at most a slot). A slot is the workload's until it says `Filled`, the
//! agent's until it says `Freed`; at `SaveBegin` all of them are the workload's, whatever became
//! of an earlier save. Regions that lie in files come last, and their bytes go by `Given`: each
//! piece is cut as a stream of its own, by the agent. Replicated regions come first, and share no
//! chunk with others: the donor's chunks stand in the manifest of every rank.
//!
//! For purpose `park` the workload blocks from `SaveBegin` on, and goes on only when called off or
//! unparked. For `insurance` it goes on when its bytes are taken. `CallOff` ends a save at any
//! stage, and sends no more than `Unpark` would if it is parked for it. A save that failed leaves
//! the workload parked; the agent may ask again, under a new number, and the workload hands over
//! the same state again. `Pace` says how much time is left, when the save is expected to be
//! durable, and which best-effort regions to leave out.
//!
//! `Forecast` may come while nothing is wrong: it says that a notice would not leave time enough
//! for the state and the step of this workload, or that it would again.
//!
//! On SIGTERM the workload says `Terminating`. The agent answers with `Prepare`, with `Leave` if
//! there is nothing to wait for, or not at all if a save is under way. After `Taken`, or `Leave`,
//! the workload ends with exit code 143.
//!
//! # Restore
//!
//! ```text
//!   Restore{newer_than} ─────────────────────▶
//!         ◀──────────────────────────── RestoreOffer{restore, epoch, step, layout}
//!   Accept{restore} ─────────────────────────▶                 or Decline: it fits no region
//!         ◀──────────────────────────── Filled{restore, slot, offset, bytes}, Zeros{restore, …}
//!   Emptied{restore, slot} ──────────────────▶
//!         ◀──────────────────────────── Sent{restore}
//!         ◀──────────────────────────── Waiting{restore, reason}   while the gate is shut
//!         ◀──────────────────────────── Opened{restore, epoch, step, proof}
//!   Resumed{restore, step} ──────────────────▶
//! ```
//!
//! With nothing to restore the agent says `NothingToRestore`, also when it may only then claim the
//! job key. When a newer epoch is committed while it waits, it makes a new offer, and the workload
//! begins again. In a restore all slots are the agent's at first. `Opened` is said once the epoch
//! is claimed, and never before `Sent`.
//!
//! # End
//!
//! `Finish` is answered by `Finished` once that is stored: nothing is resumed after it.

use lifeboat_checkpoint::region::Layout;
use serde::Deserialize;
use serde::Serialize;

use crate::ring::Shape;

/// The version that this side speaks.
pub const VERSION: Version = Version { major: 1, minor: 1 };

/// Version of the protocol. Same major: they understand each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Version {
    /// Raised when the other side must change too.
    pub major: u16,
    /// Raised when something is added.
    pub minor: u16,
}

/// What a workload says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "kebab-case")]
pub enum FromWorkload {
    /// The first frame of a connection.
    Hello(Hello),
    /// What its state consists of.
    Register(Register),
    /// Where it is; said on change, every few seconds at most.
    Progress(Progress),
    /// The program asks for a save. The agent answers with `Prepare` or with `SaveFailed`.
    SaveWanted(SaveWanted),
    /// Answer to `Prepare`.
    Ready(Ready),
    /// The hand-over begins.
    SaveBegin(SaveBegin),
    /// A slot holds a chunk.
    Filled(Filled),
    /// Parts of the stream lie in the descriptors beside this frame.
    Given(Given),
    /// All of the stream was handed over.
    SaveEnd(SaveEnd),
    /// It cannot hand over its state.
    SaveRefused(SaveRefused),
    /// A ring is unmapped and closed.
    Returned(RingId),
    /// It was told to end.
    Terminating(Terminating),
    /// It wants the newest state.
    Restore(Restore),
    /// The offer fits.
    Accept(Accept),
    /// The offer does not fit.
    Decline(Decline),
    /// A slot was copied to its place.
    Emptied(Emptied),
    /// It goes on from here.
    Resumed(Resumed),
    /// The work is done.
    Finish(Finish),
    /// A frame of a newer workload.
    #[serde(other)]
    Unknown,
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "frame", rename_all = "kebab-case")]
pub enum ToWorkload {
    /// Answer to `Hello`.
    Welcome(Welcome),
    /// Answer to `Hello`: another holds this job key and rank.
    KeyInUse(KeyInUse),
    /// It is not served; the connection ends.
    Refused(Refused),
    /// A ring, by the descriptor beside this frame. It takes the place of an earlier one.
    Lend(Lend),
    /// The ring is wanted back.
    Reclaim(RingId),
    /// Something is coming: for the user's own hooks.
    Notice(Notice),
    /// A save is due.
    Prepare(Prepare),
    /// At which step.
    SaveAt(SaveAt),
    /// A slot's bytes are taken.
    Freed(Freed),
    /// How much time there is.
    Pace(Pace),
    /// Whether a notice would leave time enough, while there is none. Since version 1.1.
    Forecast(Forecast),
    /// All bytes of a save are taken: the workload is no longer needed for it.
    Taken(SaveId),
    /// The save is committed.
    Durable(Durable),
    /// The save is not.
    SaveFailed(SaveFailed),
    /// The save is not wanted any more.
    CallOff(SaveId),
    /// Stop at the next safe point, with nothing to save.
    Park(Notice),
    /// Go on.
    Unpark(Unpark),
    /// Answer to `Terminating`: there is nothing to wait for.
    Leave(Leave),
    /// There is something to restore.
    RestoreOffer(RestoreOffer),
    /// There is nothing to restore.
    NothingToRestore(NothingToRestore),
    /// A slot holds a part of the stream.
    Filled(Filling),
    /// A part of the stream is zero.
    Zeros(Zeros),
    /// All of the stream was sent.
    Sent(RestoreId),
    /// All is in place, and the gate is shut.
    Waiting(Waiting),
    /// The gate is open and the job key claimed.
    Opened(Opened),
    /// The restore did not work.
    RestoreFailed(RestoreFailed),
    /// Answer to `Finish`.
    Finished(Finished),
    /// A frame of a newer agent.
    #[serde(other)]
    Unknown,
}

/// When the instance, or the workload's grace, may be over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Deadline {
    /// `CLOCK_BOOTTIME`, in nanoseconds: what to reckon with.
    pub boottime_ns: u64,
    /// Wall time, in milliseconds since 1970: what to show to people.
    pub unix_ms: i64,
}

/// Why something is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The Spot instance will be taken.
    Interruption,
    /// EC2 recommends to go.
    Rebalance,
    /// AWS will work on the machine.
    Maintenance,
    /// The pod is being ended, by whomever.
    Ending,
    /// The program itself asked.
    Asked,
    /// It is time for a copy in the background.
    Background,
    /// Something a newer agent knows.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What becomes of the workload after a save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// It goes on.
    Insurance,
    /// It stays where it is, and ends.
    #[default]
    #[serde(other)]
    Park,
}

macro_rules! frames {
    ($($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name { $($(#[$field_about])* pub $field: $type,)* }
    )*};
}

frames! {
    /// The first frame of a connection.
    Hello {
        /// What the workload speaks.
        version: Version,
        /// Name and version of its SDK, for people.
        sdk: String,
        /// The life of the job that it belongs to; the same for all ranks. Empty if it has no name.
        run_id: String,
        /// How often it was restarted in that life.
        restart_count: u32,
        /// Its rank in the world.
        rank: u32,
        /// Its rank on this node.
        local_rank: u32,
        /// How many ranks there are.
        world: u32,
        /// How many of them are in this pod; 0 if it does not know.
        local_world: u32,
        /// Its process id, in its own namespace.
        pid: u32,
        /// Steps completed. None before the first step or restore.
        step: Option<u64>,
        /// It has said hello before, over a connection that broke.
        again: bool,
        /// It is parked.
        parked: Option<Parked>,
        /// It was told to end.
        terminating: bool,
    }
    /// How a workload is parked.
    Parked {
        /// Steps completed in the state it holds.
        step: u64,
        /// The save it is parked for, if it was one.
        save: Option<u64>,
        /// Whether all bytes of that save were taken.
        taken: bool,
        /// The epoch that holds that state, if it was told of one.
        epoch: Option<u64>,
    }
    /// What a rank's state consists of. Without the tree, which is that of each save.
    Register {
        /// Its regions.
        layout: Layout,
    }
    /// Where a workload is.
    Progress {
        /// Steps completed.
        step: u64,
        /// How long a step takes, in nanoseconds; 0 if that is not known yet.
        step_ns: u64,
        /// Whether it is parked.
        parked: bool,
    }
    /// The program asks for a save.
    SaveWanted {
        /// Steps completed.
        step: u64,
    }
    /// Answer to `Prepare`, at once.
    Ready {
        /// Which save.
        save: u64,
        /// Steps completed.
        step: u64,
        /// Whether it stands still at that step, so that it can be saved there.
        parked: bool,
    }
    /// The hand-over begins.
    SaveBegin {
        /// Which save.
        save: u64,
        /// Steps completed in this state.
        step: u64,
        /// What the state consists of, in the order of the stream.
        layout: Layout,
    }
    /// A slot of the ring holds a chunk.
    Filled {
        /// Which save.
        save: u64,
        /// Which slot.
        slot: u32,
        /// Its first byte, counted in the stream.
        offset: u64,
        /// How many.
        bytes: u64,
    }
    /// Parts of the stream lie in files. They do not change any more, and the offset of each
    /// descriptor is the agent's to move: it looks for holes.
    Given {
        /// Which save.
        save: u64,
        /// The parts.
        pieces: Vec<Piece>,
    }
    /// A part of the stream in a descriptor.
    Piece {
        /// Which of the descriptors beside the frame.
        descriptor: u32,
        /// Where it begins in the file.
        from: u64,
        /// Its first byte, counted in the stream.
        offset: u64,
        /// How many.
        bytes: u64,
    }
    /// All of the stream was handed over.
    SaveEnd {
        /// Which save.
        save: u64,
        /// Size of the stream.
        bytes: u64,
    }
    /// It cannot hand over its state.
    SaveRefused {
        /// Which save.
        save: u64,
        /// Why, for people.
        reason: String,
    }
    /// A ring.
    RingId {
        /// Its number, given by the agent.
        ring: u64,
    }
    /// SIGTERM came.
    Terminating {
        /// Steps completed, if any.
        step: Option<u64>,
    }
    /// It wants the newest state.
    Restore {
        /// Only one of more steps than this: it has a state of its own.
        newer_than: Option<u64>,
    }
    /// The offer fits.
    Accept {
        /// Which.
        restore: u64,
    }
    /// The offer does not fit.
    Decline {
        /// Which.
        restore: u64,
        /// Why, for people.
        reason: String,
    }
    /// A slot was copied to its place.
    Emptied {
        /// Which restore.
        restore: u64,
        /// Which slot.
        slot: u32,
    }
    /// It goes on.
    Resumed {
        /// Which restore.
        restore: u64,
        /// From which step.
        step: u64,
    }
    /// The work is done.
    Finish {
        /// Steps completed.
        step: u64,
    }
    /// Answer to `Hello`.
    Welcome {
        /// What the agent speaks.
        version: Version,
        /// Name and version of the agent, for people.
        agent: String,
        /// The newest state, if the agent knows of one.
        newest: Option<Newest>,
        /// The node is interrupted: park, for this reason.
        park: Option<Notice>,
        /// Whether state is also saved while nothing is wrong.
        background: bool,
    }
    /// A committed state.
    Newest {
        /// Its epoch.
        epoch: u64,
        /// Steps completed in it.
        step: u64,
    }
    /// Another holds this job key and rank.
    KeyInUse {
        /// Who, for people.
        holder: String,
        /// It is being ended, and this one is its successor: `restore` waits. Otherwise refused.
        wait: bool,
    }
    /// It is not served.
    Refused {
        /// Why, for people.
        reason: String,
    }
    /// Something is coming.
    Notice {
        /// Why.
        cause: Cause,
        /// Until when. None for advice.
        deadline: Option<Deadline>,
        /// In words, for people.
        text: String,
    }
    /// A save is due.
    Prepare {
        /// Its number on this connection.
        save: u64,
        /// Why.
        cause: Cause,
        /// What comes after.
        purpose: Purpose,
        /// Until when.
        deadline: Option<Deadline>,
    }
    /// When to save.
    SaveAt {
        /// Which save.
        save: u64,
        /// At the end of this step; none: at the next safe point.
        step: Option<u64>,
        /// Size of a chunk, at most that of a slot; 0: that of a slot.
        chunk_bytes: u64,
        /// Another rank, the donor, hands over the replicated regions.
        skip_replicated: bool,
        /// Until when.
        deadline: Option<Deadline>,
    }
    /// A slot's bytes are taken.
    Freed {
        /// Which save.
        save: u64,
        /// Which slot.
        slot: u32,
    }
    /// How much time there is.
    Pace {
        /// Which save.
        save: u64,
        /// When it is expected to be durable.
        expected: Option<Deadline>,
        /// Until when.
        deadline: Option<Deadline>,
        /// Best-effort regions to leave out, if the hand-over has not begun.
        leave_out: Vec<String>,
    }
    /// Whether the workload could be saved if the node were interrupted now.
    Forecast {
        /// Whether it could, by all that is known.
        fits: bool,
        /// Bytes to store.
        bytes: u64,
        /// How long that takes, with the step and with those that are stored before, in nanoseconds.
        eta_ns: u64,
        /// How long there would be, in nanoseconds.
        window_ns: u64,
        /// Bytes per second that this is reckoned by.
        bytes_per_second: u64,
        /// In words, for people.
        text: String,
    }
    /// A save.
    SaveId {
        /// Its number.
        save: u64,
    }
    /// The save is committed.
    Durable {
        /// Which save.
        save: u64,
        /// Its epoch.
        epoch: u64,
        /// Steps completed in it.
        step: u64,
        /// Size of the state, in bytes, over all ranks.
        bytes: u64,
        /// From the notice to the commit, in nanoseconds.
        took_ns: u64,
        /// From the commit to the deadline, in nanoseconds; none if there is no deadline.
        spare_ns: Option<i64>,
    }
    /// The save is not committed.
    SaveFailed {
        /// Which save.
        save: u64,
        /// What kind of failure.
        why: Failure,
        /// In words, for people.
        reason: String,
    }
    /// Go on.
    Unpark {
        /// Why, for people.
        reason: String,
    }
    /// There is nothing to wait for.
    Leave {
        /// Why, for people.
        reason: String,
    }
    /// There is something to restore.
    RestoreOffer {
        /// Its number on this connection.
        restore: u64,
        /// The epoch whose state it is.
        epoch: u64,
        /// Steps completed in it.
        step: u64,
        /// How many ranks it was saved from.
        world: u32,
        /// What this rank's state consists of.
        layout: Layout,
    }
    /// There is nothing to restore.
    NothingToRestore {
        /// Which of the workload's own state wins, for people: finished, never saved, not wanted.
        reason: String,
        /// The epoch that was claimed.
        epoch: u64,
    }
    /// A slot of the ring holds a part of the stream.
    Filling {
        /// Which restore.
        restore: u64,
        /// Which slot.
        slot: u32,
        /// Its first byte, counted in the stream.
        offset: u64,
        /// How many.
        bytes: u64,
    }
    /// A part of the stream is zero.
    Zeros {
        /// Which restore.
        restore: u64,
        /// Its first byte, counted in the stream.
        offset: u64,
        /// How many.
        bytes: u64,
    }
    /// A restore.
    RestoreId {
        /// Its number.
        restore: u64,
    }
    /// The gate is shut.
    Waiting {
        /// Which restore; 0 before there is an offer.
        restore: u64,
        /// For what, for people.
        reason: String,
        /// When it opens at the latest, if that is known.
        deadline: Option<Deadline>,
    }
    /// The gate is open.
    Opened {
        /// Which restore.
        restore: u64,
        /// The epoch that was claimed.
        epoch: u64,
        /// Steps completed in the state.
        step: u64,
        /// What proved that the old life is over, for people.
        proof: String,
    }
    /// The restore did not work.
    RestoreFailed {
        /// Which restore.
        restore: u64,
        /// What kind of failure.
        why: Failure,
        /// In words, for people.
        reason: String,
    }
    /// The end is stored.
    Finished {
        /// Its epoch.
        epoch: u64,
    }
}

/// Why a save or a restore did not work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// A newer life holds the job key.
    Superseded,
    /// The deadline came first.
    TooLate,
    /// The store did not take or give it.
    Store,
    /// What was stored is damaged, or of a newer format.
    Damaged,
    /// What the workload handed over is not what it said.
    HandOver,
    /// Another rank was missing or failed.
    Rank,
    /// It was called off.
    CalledOff,
    /// Something else; the reason says it.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lend {
    /// Its number, given by the agent.
    pub ring: u64,
    /// Its slots.
    #[serde(flatten)]
    pub shape: Shape,
}

//! One save of one life: all its ranks hand over, and what they handed over is committed.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::try_join_all;
use lifeboat_checkpoint::region::Layout;
use lifeboat_protocol::frame::Freed;
use lifeboat_protocol::frame::Lend;
use lifeboat_protocol::frame::RingId;
use lifeboat_protocol::frame::SaveId;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::ring::RingError;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::agent::workloads::line::Mouth;
use crate::data::save;
use crate::data::save::Announced;
use crate::data::save::Committed;
use crate::data::save::Intake;
use crate::data::save::Life;
use crate::data::save::Means;
use crate::data::save::Part;
use crate::data::save::SaveError;
use crate::data::save::Segment;
use crate::data::save::Source;
use crate::data::save::Stored;
use crate::data::scheduler::Demand;
use crate::data::scheduler::Lent;
use crate::data::scheduler::Scheduler;
use crate::data::spool::Spool;
use crate::data::spool::SpoolError;
use crate::data::spool::Spooled;

/// Frames of one rank that may wait for its save. More than that is more than it was lent.
pub(super) const WAITING_MAX: usize = 1100;

/// How long a rank may hand nothing over though it has begun: others need its ring.
const STALLED: Duration = Duration::from_secs(20);

/// Parts that wait for their turn.
const PARTS_MAX: usize = 16;

/// What a rank says during a save.
#[derive(Debug)]
pub(super) enum FromRank {
    /// It begins.
    Begin {
        /// Steps completed in its state.
        step: u64,
        /// What the state consists of.
        layout: Layout,
    },
    /// A slot is full.
    Slot {
        /// The slot.
        slot: u32,
        /// Where its bytes begin in the stream.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// A part lies in a file.
    Piece {
        /// Where it begins in the stream.
        offset: u64,
        /// Where it lies.
        file: Segment,
    },
    /// All parts of the stream lie in these files, which stay what they are.
    Files(Vec<Part>),
    /// That was all.
    End,
}

/// One rank of a save.
#[derive(Debug)]
pub(super) struct RankLine {
    rank: u32,
    heard: mpsc::Receiver<FromRank>,
    /// What it said while its save was not ordered yet.
    early: VecDeque<FromRank>,
    mouth: Mouth,
}

impl RankLine {
    /// A rank, what it says and what it is told.
    pub(super) fn new(rank: u32, heard: mpsc::Receiver<FromRank>, mouth: Mouth) -> Self {
        Self { rank, heard, early: VecDeque::new(), mouth }
    }

    /// What it says next. Nothing is lost when this is dropped while it waits.
    async fn hear(&mut self) -> Option<FromRank> {
        match self.early.pop_front() {
            Some(said) => Some(said),
            None => self.heard.recv().await,
        }
    }
}

/// A save.
#[derive(Debug)]
pub(super) struct Saving {
    /// Its number on the ranks' lines.
    pub(super) save: u64,
    /// What it works with.
    pub(super) means: Means,
    /// Whose it is.
    pub(super) life: Life,
    /// Whose turn it is.
    pub(super) scheduler: Scheduler,
    /// How urgent it is; its bytes are those that the ranks announce.
    pub(super) demand: Demand,
    /// Largest chunk.
    pub(super) chunk: u64,
    /// Where what comes through a ring is put first, so that the workload can go on.
    pub(super) spool: Option<Spool>,
    /// When the last byte of a rank was taken.
    pub(super) taken: Arc<Mutex<Option<Instant>>>,
    /// Whether storing may begin.
    pub(super) go: watch::Receiver<bool>,
}

/// How a rank's words ended.
#[derive(Debug)]
enum Ended {
    /// It has handed over all; the ring is kept until its bytes are taken.
    Whole(Option<Lent>),
    /// Its line broke first.
    Gone,
    /// No ring could be made.
    NoRing(RingError),
    /// None was free before the time was over.
    Late,
    /// It could not be spooled.
    NoRoom(SpoolError),
    /// What it handed over is not what it said.
    Refused {
        /// Where in its stream.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// What of a rank is still to be taken.
#[derive(Debug, Default)]
struct Tally {
    /// Slots that wait until we have their bytes.
    full: AtomicU32,
    /// It has handed over all.
    ended: AtomicBool,
    /// It was told that it is not needed any more.
    told: AtomicBool,
}

/// What of a rank lies on the disk.
#[derive(Debug, Default)]
struct Spooling {
    room: Option<Arc<Spooled>>,
    bytes: u64,
    /// They are stored once all are there, so that the workload need not wait for that.
    parts: Vec<Part>,
}

/// Where a rank's parts go.
struct Feed<'a> {
    parts: mpsc::Sender<Part>,
    tally: &'a Tally,
    total: u64,
}

impl Feed<'_> {
    async fn all(&self, parts: Vec<Part>) -> Result<(), mpsc::error::SendError<Part>> {
        for part in parts {
            self.parts.send(part).await?;
        }
        Ok(())
    }
}

impl Saving {
    /// Takes what the ranks hand over, stores it and commits it.
    pub(super) async fn run(self, ranks: Vec<RankLine>) -> Result<Committed, SaveError> {
        let stored = try_join_all(ranks.into_iter().map(|line| self.rank(line))).await?;
        save::commit(&self.means, &self.life, &save::donated(stored)?).await
    }

    async fn rank(&self, mut line: RankLine) -> Result<Stored, SaveError> {
        let rank = line.rank;
        let gone = || SaveError::Gone { rank };
        let begun = line.hear().await;
        let Some(FromRank::Begin { step, layout }) = begun else { return Err(gone()) };
        self.until_ordered(&mut line).await?;
        let total = layout.bytes();
        let turns = self.scheduler.open(Demand { bytes: total, ..self.demand.clone() });
        let announced = Announced { rank, step, layout };
        let tally = Tally::default();
        let mouth = line.mouth.clone();
        let (feed, parts) = mpsc::channel(PARTS_MAX);
        let intake = Intake { parts, taken: |part: &Part| self.freed(&mouth, part, &tally) };
        let mut storing = pin!(save::store_rank(&self.means, &turns, announced, intake));
        let feeding = self.feed(&mut line, Feed { parts: feed, tally: &tally, total });
        let stored = tokio::select! {
            biased;
            stored = &mut storing => stored,
            ended = feeding => match ended {
                Ended::Whole(lent) => {
                    self.tell_if_taken(&mouth, &tally);
                    let stored = storing.await;
                    drop(lent);
                    stored
                }
                Ended::Gone => Err(gone()),
                Ended::Late => Err(SaveError::Late { rank }),
                Ended::NoRoom(error) => Err(SaveError::Spool(error)),
                Ended::Refused { offset, source } => Err(SaveError::HandOver { offset, source }),
                Ended::NoRing(error) => {
                    Err(SaveError::HandOver { offset: 0, source: io::Error::other(error) })
                }
            },
        };
        say(&mouth, ToWorkload::Reclaim(RingId { ring: self.save }));
        let stored = stored?;
        tally.ended.store(true, Ordering::Relaxed);
        self.tell_if_taken(&mouth, &tally);
        Ok(stored)
    }

    /// Waits until storing is ordered, and keeps what the rank says meanwhile: it may hand over
    /// files and end. One whose line breaks before it has handed over all is lost.
    async fn until_ordered(&self, line: &mut RankLine) -> Result<(), SaveError> {
        let rank = line.rank;
        let mut go = self.go.clone();
        let mut whole = false;
        loop {
            tokio::select! {
                biased;
                ordered = go.wait_for(|go| *go) => {
                    return ordered.map(|_| ()).map_err(|_| SaveError::Gone { rank });
                }
                said = line.heard.recv(), if !whole => match said {
                    Some(said) if line.early.len() < WAITING_MAX => {
                        whole = matches!(said, FromRank::End);
                        line.early.push_back(said);
                    }
                    Some(_) | None => return Err(SaveError::Gone { rank }),
                },
            }
        }
    }

    /// Passes on what a rank hands over: slots of a ring that is lent once there is room, and parts
    /// of files, which come last or alone.
    async fn feed(&self, line: &mut RankLine, feed: Feed<'_>) -> Ended {
        let mut lending = pin!(self.scheduler.lend(feed.total, self.chunk));
        let mut lent: Option<Lent> = None;
        let mut spooling = Spooling::default();
        let until = Instant::now() + self.means.by.left(self.means.clock.now());
        loop {
            let said = tokio::select! {
                biased;
                said = line.hear() => said,
                made = &mut lending, if lent.is_none() && feed.total > 0 => match made {
                    Ok(made) => {
                        let shape = made.ring.shape();
                        let frame = ToWorkload::Lend(Lend { ring: self.save, shape });
                        if line.mouth.lend(frame, &made.ring).is_err() {
                            return Ended::Gone;
                        }
                        lent = Some(made);
                        continue;
                    }
                    Err(error) => return Ended::NoRing(error),
                },
                () = tokio::time::sleep_until(until), if lent.is_none() => return Ended::Late,
                () = tokio::time::sleep(STALLED), if lent.is_some() => {
                    // With every slot full it is we who keep it waiting.
                    let slots = lent.as_ref().map_or(0, |lent| lent.ring.shape().slots());
                    if feed.tally.full.load(Ordering::Relaxed) < slots {
                        return Ended::Gone;
                    }
                    continue;
                }
            };
            match said {
                Some(FromRank::Slot { slot, offset, bytes }) => {
                    // A slot of a ring that was not lent is no slot.
                    let Some(Lent { ring, .. }) = &lent else { return Ended::Gone };
                    feed.tally.full.fetch_add(1, Ordering::Relaxed);
                    let source = Source::Ring { ring: ring.clone(), slot };
                    let part = Part { offset, bytes, source };
                    let passed = self.feed_slot(&line.mouth, (&feed, &mut spooling), part);
                    if let Err(ended) = passed.await {
                        return ended;
                    }
                }
                Some(FromRank::Piece { offset, file }) => {
                    if self.feed_file(&feed.parts, offset, file).await.is_err() {
                        return Ended::Gone;
                    }
                }
                Some(FromRank::Files(parts)) => {
                    if feed.all(parts).await.is_err() {
                        return Ended::Gone;
                    }
                }
                // What is missing then is missing in the stream, and seen there.
                Some(FromRank::End | FromRank::Begin { .. }) => {
                    feed.tally.ended.store(true, Ordering::Relaxed);
                    self.tell_if_taken(&line.mouth, feed.tally);
                    let lent = lent.filter(|_| spooling.parts.is_empty());
                    let passed = feed.all(spooling.parts).await;
                    return passed.map_or(Ended::Gone, |()| Ended::Whole(lent));
                }
                None => return Ended::Gone,
            }
        }
    }

    /// Passes a slot on, or puts its bytes on the disk and gives it back at once.
    async fn feed_slot(
        &self,
        mouth: &Mouth,
        (feed, spooling): (&Feed<'_>, &mut Spooling),
        part: Part,
    ) -> Result<(), Ended> {
        let Some(spool) = &self.spool else {
            return feed.parts.send(part).await.map_err(|_| Ended::Gone);
        };
        self.put_by(spool, spooling, (&part, feed.total)).await?;
        self.freed(mouth, &part, feed.tally);
        Ok(())
    }

    /// Puts a slot's bytes on the disk, behind those that lie there. Room for the whole state is
    /// made for the first of them.
    async fn put_by(
        &self,
        spool: &Spool,
        spooling: &mut Spooling,
        (part, total): (&Part, u64),
    ) -> Result<(), Ended> {
        let room = if let Some(room) = &spooling.room {
            Arc::clone(room)
        } else {
            let spool = spool.clone();
            let made = self.means.offload.run(move || spool.room(total)).await;
            Arc::clone(spooling.room.insert(Arc::new(made.map_err(Ended::NoRoom)?)))
        };
        let (offset, bytes, from) = (part.offset, part.bytes, spooling.bytes);
        let refused = |source| Ended::Refused { offset, source };
        let fits = bytes > 0 && bytes <= self.chunk && spooling.parts.len() < save::CHUNKS_MAX;
        let Source::Ring { ring, slot } = part.source.clone() else { return Ok(()) };
        let length = usize::try_from(bytes).ok().filter(|_| fits);
        let length = length.ok_or_else(|| refused(io::ErrorKind::InvalidInput.into()))?;
        let (mut buffer, into) = (self.means.buffers.take(length), Arc::clone(&room));
        let copy = move || -> io::Result<_> {
            ring.read(slot, &mut buffer, |_| ())?;
            into.write(&buffer, from)?;
            Ok(buffer.freeze())
        };
        self.means.buffers.give(self.means.offload.run(copy).await.map_err(refused)?);
        spooling.parts.push(Part { offset, bytes, source: Source::Spool { room, from } });
        spooling.bytes += bytes;
        Ok(())
    }

    /// A piece is cut as a stream of its own.
    async fn feed_file(
        &self,
        parts: &mpsc::Sender<Part>,
        offset: u64,
        file: Segment,
    ) -> Result<(), mpsc::error::SendError<Part>> {
        let mut done = 0;
        while done < file.bytes {
            let bytes = (file.bytes - done).min(self.chunk.max(1));
            let from = file.from.saturating_add(done);
            let source = Source::File { file: Arc::clone(&file.file), from };
            parts.send(Part { offset: offset.saturating_add(done), bytes, source }).await?;
            done += bytes;
        }
        Ok(())
    }

    /// Tells the workload that a slot is its own again.
    fn freed(&self, mouth: &Mouth, part: &Part, tally: &Tally) {
        if let Source::Ring { slot, .. } = part.source {
            tally.full.fetch_sub(1, Ordering::Relaxed);
            say(mouth, ToWorkload::Freed(Freed { save: self.save, slot }));
        }
        self.tell_if_taken(mouth, tally);
    }

    /// Tells the workload once that it is not needed any more: what is left lies in our buffers, or
    /// in files that we hold.
    fn tell_if_taken(&self, mouth: &Mouth, tally: &Tally) {
        let taken = tally.ended.load(Ordering::Relaxed) && tally.full.load(Ordering::Relaxed) == 0;
        if taken && !tally.told.swap(true, Ordering::Relaxed) {
            let mut last = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(Instant::now());
            drop(last);
            say(mouth, ToWorkload::Taken(SaveId { save: self.save }));
        }
    }
}

/// Says a frame to a workload that may be gone by now, which its line tells.
fn say(mouth: &Mouth, frame: ToWorkload) {
    mouth.say(frame).ok();
}

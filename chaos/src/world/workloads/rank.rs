//! One rank of a virtual workload: steps, parks, hands over and restores as the SDK does.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_checkpoint::chunk;
use lifeboat_checkpoint::region::Dtype;
use lifeboat_checkpoint::region::Layout;
use lifeboat_checkpoint::region::Region;
use lifeboat_checkpoint::tree::Tree;
use lifeboat_protocol::frame::Accept;
use lifeboat_protocol::frame::Emptied;
use lifeboat_protocol::frame::Filled;
use lifeboat_protocol::frame::Filling;
use lifeboat_protocol::frame::Finish;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Given;
use lifeboat_protocol::frame::Hello;
use lifeboat_protocol::frame::Parked;
use lifeboat_protocol::frame::Piece;
use lifeboat_protocol::frame::Prepare;
use lifeboat_protocol::frame::Purpose;
use lifeboat_protocol::frame::Ready;
use lifeboat_protocol::frame::Register;
use lifeboat_protocol::frame::Restore;
use lifeboat_protocol::frame::RestoreOffer;
use lifeboat_protocol::frame::Resumed;
use lifeboat_protocol::frame::SaveAt;
use lifeboat_protocol::frame::SaveBegin;
use lifeboat_protocol::frame::SaveEnd;
use lifeboat_protocol::frame::SaveRefused;
use lifeboat_protocol::frame::Terminating;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::VERSION;
use lifeboat_protocol::ring::Shape;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::world::runtime::Launch;
use crate::world::runtime::TERMINATED;
use crate::world::workloads::Behavior;
use crate::world::workloads::Diary;
use crate::world::workloads::Dies;
use crate::world::workloads::HandOver;
use crate::world::workloads::Kind;
use crate::world::workloads::Speaks;
use crate::world::workloads::line::Line;
use crate::world::workloads::raised;

/// Time between two tries to reach an agent that is not there.
const RECONNECT: Duration = Duration::from_millis(200);
/// Exit code of a workload that dies by itself.
const DIED: i32 = 1;

/// Fields of a hello that an older version may not have.
const OPTIONAL: [&str; 4] = ["sdk", "step", "parked", "terminating"];

/// One rank.
pub struct Rank {
    behavior: Behavior,
    name: String,
    job: String,
    number: u32,
    restarts: u32,
    socket: PathBuf,
    diary: Option<Diary>,
    terminated: Option<watch::Receiver<bool>>,
    /// Steps completed; none before the first restore.
    step: Option<u64>,
    said_hello: bool,
    parked: Option<Parked>,
    /// The end of the step under way.
    step_ends: Option<Instant>,
    finishing: bool,
}

/// What belongs to one connection only.
#[derive(Default)]
struct Talk {
    ring: Option<(Shape, OwnedFd)>,
    /// The save that is due, and where.
    due: Option<Due>,
    giving: Option<Giving>,
    taking: Option<Taking>,
    said_terminating: bool,
}

struct Due {
    prepare: Prepare,
    ready_at: u64,
    at: Option<SaveAt>,
}

struct Giving {
    save: u64,
    purpose: Purpose,
    step: u64,
    left: VecDeque<Range<u64>>,
    free: BTreeSet<u32>,
    ended: bool,
}

struct Taking {
    offer: RestoreOffer,
    bytes: Vec<u8>,
}

/// How a connection went on.
enum Flow {
    Go,
    Exit(i32),
}

impl Rank {
    /// Rank `number` of the container.
    pub fn new(behavior: Behavior, launch: &Launch, number: u32) -> Self {
        let text = |path: &str| launch.pod.pointer(path).and_then(|value| value.as_str());
        let name = text("/metadata/name").unwrap_or_default().to_owned();
        let job = text("/metadata/labels/chaos.lifeboat.dev~1job").unwrap_or(&name).to_owned();
        let folder = launch.mounts.get("/run/lifeboat").cloned().unwrap_or_default();
        Self {
            behavior,
            name,
            job,
            number,
            restarts: launch.restarts,
            socket: folder.join("agent.sock"),
            diary: None,
            terminated: None,
            step: None,
            said_hello: false,
            parked: None,
            step_ends: None,
            finishing: false,
        }
    }

    /// Where it writes, and where it hears of SIGTERM.
    pub fn tell(&mut self, diary: Diary, terminated: watch::Receiver<bool>) {
        (self.diary, self.terminated) = (Some(diary), Some(terminated));
    }

    /// Lives until it ends, and says with which code.
    pub async fn run(mut self) -> i32 {
        loop {
            let Some(line) = self.connect().await else { return TERMINATED };
            match self.talk(line).await {
                Ok(code) => return code,
                Err(error) => self.note(&format!("lost its agent: {error}")),
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Reaches the agent; none if SIGTERM came while nobody answered.
    async fn connect(&self) -> Option<Line> {
        loop {
            if let Ok(line) = Line::connect(&self.socket).await {
                return Some(line);
            }
            if self.is_terminated() {
                return None;
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn talk(&mut self, mut line: Line) -> io::Result<i32> {
        let mut talk = Talk::default();
        self.greet(&mut line).await?;
        let register = Register { layout: self.layout() };
        line.say(&FromWorkload::Register(register), &[]).await?;
        if self.step.is_none() && self.parked.is_none() {
            line.say(&FromWorkload::Restore(Restore { newer_than: None }), &[]).await?;
        }
        if self.finishing {
            self.finish(&mut line).await?;
        }
        let mut terminated = self.terminated.clone().expect("told before it runs");
        loop {
            let step_ends = self.step_ends;
            let flow = tokio::select! {
                biased;
                heard = line.hear() => {
                    let (frame, descriptors) = heard?;
                    self.on(frame, descriptors, &mut talk, &mut line).await?
                }
                () = raised(&mut terminated), if !talk.said_terminating => {
                    talk.said_terminating = true;
                    let terminating = Terminating { step: self.step };
                    line.say(&FromWorkload::Terminating(terminating), &[]).await?;
                    self.leave_if_taken()
                }
                () = sleep_until(step_ends), if step_ends.is_some() => {
                    self.step_ends = None;
                    self.step = Some(self.step.unwrap_or(0) + 1);
                    self.at_safe_point(&mut talk, &mut line).await?
                }
            };
            if let Flow::Exit(code) = flow {
                return Ok(code);
            }
        }
    }

    /// Says hello as the version does that it speaks.
    async fn greet(&mut self, line: &mut Line) -> io::Result<()> {
        let hello = FromWorkload::Hello(self.hello());
        let mut frame = serde_json::to_value(&hello).map_err(io::Error::other)?;
        match self.behavior.speaks {
            Speaks::This => return line.say(&hello, &[]).await,
            Speaks::Newer => {
                frame["mood"] = json!("calm");
                frame["version"]["minor"] = json!(VERSION.minor + 1);
            }
            Speaks::Older => {
                if let Some(fields) = frame.as_object_mut() {
                    fields.retain(|name, _| !OPTIONAL.contains(&name.as_str()));
                }
            }
        }
        line.say(&frame, &[]).await?;
        if self.behavior.speaks == Speaks::Newer {
            line.say(&json!({ "frame": "forecast", "weather": "fair" }), &[]).await?;
        }
        Ok(())
    }

    fn hello(&mut self) -> Hello {
        Hello {
            version: VERSION,
            sdk: "chaos".to_owned(),
            run_id: self.name.clone(),
            restart_count: self.restarts,
            rank: self.number,
            local_rank: self.number,
            world: self.behavior.ranks.max(1),
            local_world: self.behavior.ranks.max(1),
            pid: 1,
            step: self.step,
            again: std::mem::replace(&mut self.said_hello, true),
            parked: self.parked.clone(),
            terminating: self.is_terminated(),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a frame, what came beside it, and both ends")]
    async fn on(
        &mut self,
        frame: ToWorkload,
        mut descriptors: Vec<OwnedFd>,
        talk: &mut Talk,
        line: &mut Line,
    ) -> io::Result<Flow> {
        match frame {
            ToWorkload::Welcome(welcome) => {
                if let Some(notice) = welcome.park {
                    self.note(&format!("parked at hello: {}", notice.text));
                    self.park(0, None);
                }
            }
            ToWorkload::Lend(lend) => {
                talk.ring = descriptors.pop().map(|ring| (lend.shape, ring));
                if let Some(giving) = &mut talk.giving {
                    giving.free = (0..lend.shape.slots()).collect();
                }
                self.fill(talk, line).await?;
            }
            // The next save is lent a ring of its own, and fills none that was taken back.
            ToWorkload::Reclaim(_) => talk.ring = None,
            ToWorkload::Prepare(prepare) => return self.prepare(prepare, talk, line).await,
            ToWorkload::SaveAt(at) => {
                if let Some(due) = talk.due.as_mut().filter(|due| due.prepare.save == at.save) {
                    due.at = Some(at);
                }
                let still = self.parked.is_some() || self.step_ends.is_none();
                if still || self.behavior.safe_point {
                    return self.at_safe_point(talk, line).await;
                }
            }
            ToWorkload::Freed(freed) => {
                if let Some(giving) =
                    talk.giving.as_mut().filter(|giving| giving.save == freed.save)
                {
                    giving.free.insert(freed.slot);
                }
                self.fill(talk, line).await?;
            }
            ToWorkload::Taken(taken) => return Ok(self.taken(taken.save, talk)),
            ToWorkload::Durable(durable) => {
                self.note(&format!("heard that step {} is durable", durable.step));
                if let Some(parked) = &mut self.parked {
                    parked.epoch = Some(durable.epoch);
                }
            }
            ToWorkload::SaveFailed(failed) => {
                self.note(&format!("heard that its save failed: {:?}", failed.why));
                talk.giving = None;
            }
            ToWorkload::CallOff(_) | ToWorkload::Unpark(_) => {
                (talk.due, talk.giving, self.parked) = (None, None, None);
                self.go_on();
            }
            ToWorkload::Park(notice) => {
                self.note(&format!("parked: {}", notice.text));
                self.park(self.step.unwrap_or(0), None);
            }
            ToWorkload::Leave(_) => return Ok(Flow::Exit(TERMINATED)),
            ToWorkload::Finished(_) => return Ok(Flow::Exit(0)),
            ToWorkload::KeyInUse(refused) if !refused.wait => {
                self.note("is refused: its key is in use");
                return Ok(Flow::Exit(DIED));
            }
            frame => self.on_restore(frame, talk, line).await?,
        }
        Ok(Flow::Go)
    }

    async fn prepare(
        &mut self,
        prepare: Prepare,
        talk: &mut Talk,
        line: &mut Line,
    ) -> io::Result<Flow> {
        self.note(&format!("asked to save ({:?})", prepare.cause).to_lowercase());
        if self.behavior.kind == Kind::Refuses {
            let refused = SaveRefused { save: prepare.save, reason: "it cannot".to_owned() };
            line.say(&FromWorkload::SaveRefused(refused), &[]).await?;
            return Ok(Flow::Go);
        }
        let step = self.step.unwrap_or(0);
        let ready = Ready { save: prepare.save, step, parked: self.parked.is_some() };
        talk.due = Some(Due { prepare, ready_at: step, at: None });
        line.say(&FromWorkload::Ready(ready), &[]).await?;
        Ok(Flow::Go)
    }

    /// Between two steps, or within one that has a safe point, or parked.
    async fn at_safe_point(&mut self, talk: &mut Talk, line: &mut Line) -> io::Result<Flow> {
        let step = self.step.unwrap_or(0);
        if let Some(due) = talk.due.take() {
            let here = match &due.at {
                Some(at) => self.parked.is_some() || at.step.is_none_or(|agreed| step >= agreed),
                None => false,
            };
            if here {
                self.begin(&due, talk, line).await?;
                return Ok(
                    if self.behavior.dies == Dies::Given
                        && talk.giving.as_ref().is_some_and(|giving| giving.ended)
                    {
                        self.note("dies after the hand-over");
                        Flow::Exit(DIED)
                    } else {
                        Flow::Go
                    },
                );
            }
            let holds = due.at.is_none() && step > due.ready_at;
            talk.due = Some(due);
            if holds {
                return Ok(Flow::Go);
            }
        }
        if self.parked.is_none() && step >= self.behavior.steps {
            self.finish(line).await?;
            return Ok(Flow::Go);
        }
        self.go_on();
        Ok(Flow::Go)
    }

    async fn begin(&mut self, due: &Due, talk: &mut Talk, line: &mut Line) -> io::Result<()> {
        let (save, step) = (due.prepare.save, self.step.unwrap_or(0));
        self.step_ends = None;
        if due.prepare.purpose == Purpose::Park {
            self.note(&format!("parked at step {step}"));
            self.park(step, Some(save));
        }
        let layout = self.layout();
        let chunk_bytes = due.at.as_ref().map_or(32 << 20, |at| at.chunk_bytes.max(1));
        let left = chunk::cuts(&layout.regions, chunk_bytes)
            .map(|cut| cut.offset..cut.offset + cut.bytes)
            .collect();
        let slots = talk.ring.as_ref().map_or(0, |(shape, _)| shape.slots());
        let free = (0..slots).collect();
        let purpose = due.prepare.purpose;
        talk.giving = Some(Giving { save, purpose, step, left, free, ended: false });
        let begin = SaveBegin { save, step, layout };
        line.say(&FromWorkload::SaveBegin(begin), &[]).await?;
        match self.behavior.hand_over {
            HandOver::Ring => self.fill(talk, line).await,
            HandOver::Files => self.give(talk, line).await,
        }
    }

    /// Fills as many slots as are free.
    async fn fill(&mut self, talk: &mut Talk, line: &mut Line) -> io::Result<()> {
        let (Some(giving), Some((shape, ring))) = (&mut talk.giving, &talk.ring) else {
            return Ok(());
        };
        if self.behavior.hand_over == HandOver::Files || giving.ended {
            return Ok(());
        }
        while let (Some(slot), Some(cut)) = (giving.free.first().copied(), giving.left.front()) {
            let bytes = contents(&self.job, self.number, giving.step, cut.clone());
            let at = shape.offset(slot).ok_or_else(|| io::Error::other("there is no such slot"))?;
            write_all(ring, &bytes, at)?;
            let (save, offset, length) = (giving.save, cut.start, cut.end - cut.start);
            let filled = Filled { save, slot, offset, bytes: length };
            line.say(&FromWorkload::Filled(filled), &[]).await?;
            giving.free.pop_first();
            giving.left.pop_front();
        }
        if giving.left.is_empty() {
            giving.ended = true;
            let end = SaveEnd { save: giving.save, bytes: self.behavior.state_bytes };
            line.say(&FromWorkload::SaveEnd(end), &[]).await?;
        }
        Ok(())
    }

    /// Hands all of it over in one file.
    async fn give(&mut self, talk: &mut Talk, line: &mut Line) -> io::Result<()> {
        let Some(giving) = &mut talk.giving else { return Ok(()) };
        let (save, bytes) = (giving.save, self.behavior.state_bytes);
        let file = rustix::fs::memfd_create("state", rustix::fs::MemfdFlags::CLOEXEC)?;
        write_all(&file, &contents(&self.job, self.number, giving.step, 0..bytes), 0)?;
        let pieces = vec![Piece { descriptor: 0, from: 0, offset: 0, bytes }];
        let given = FromWorkload::Given(Given { save, pieces });
        line.say(&given, &[file.as_fd()]).await?;
        line.say(&FromWorkload::SaveEnd(SaveEnd { save, bytes }), &[]).await?;
        giving.ended = true;
        Ok(())
    }

    fn taken(&mut self, save: u64, talk: &mut Talk) -> Flow {
        let Some(giving) = talk.giving.take_if(|giving| giving.save == save) else {
            return Flow::Go;
        };
        self.note(&format!("has handed over step {}", giving.step));
        if self.behavior.dies == Dies::Taken {
            self.note("dies after its last byte is taken");
            return Flow::Exit(DIED);
        }
        if giving.purpose == Purpose::Insurance {
            self.go_on();
        }
        if let Some(parked) = &mut self.parked {
            parked.taken = true;
        }
        self.leave_if_taken()
    }

    fn leave_if_taken(&self) -> Flow {
        let taken = self.parked.as_ref().is_some_and(|parked| parked.taken);
        if taken && self.is_terminated() { Flow::Exit(TERMINATED) } else { Flow::Go }
    }

    async fn on_restore(
        &mut self,
        frame: ToWorkload,
        talk: &mut Talk,
        line: &mut Line,
    ) -> io::Result<()> {
        match frame {
            ToWorkload::RestoreOffer(offer) => {
                self.note(&format!("is offered step {}", offer.step));
                line.say(&FromWorkload::Accept(Accept { restore: offer.restore }), &[]).await?;
                let length = usize::try_from(offer.layout.bytes()).map_err(io::Error::other)?;
                talk.taking = Some(Taking { offer, bytes: vec![0; length] });
            }
            ToWorkload::Filled(filling) => self.take(&filling, talk, line).await?,
            ToWorkload::Waiting(waiting) => {
                self.note(&format!("waits to resume: {}", waiting.reason));
            }
            ToWorkload::Opened(opened) => {
                let taking = talk.taking.take();
                let bytes = taking.map(|taking| taking.bytes).unwrap_or_default();
                let whole = 0..self.behavior.state_bytes;
                let right = bytes == contents(&self.job, self.number, opened.step, whole);
                let state = if right { "" } else { " with state that is NOT RIGHT" };
                self.note(&format!("resumed at step {}{state} ({})", opened.step, opened.proof));
                self.step = Some(opened.step);
                let resumed = Resumed { restore: opened.restore, step: opened.step };
                line.say(&FromWorkload::Resumed(resumed), &[]).await?;
                self.go_on();
            }
            ToWorkload::NothingToRestore(nothing) => {
                self.note(&format!("starts anew ({})", nothing.reason));
                self.step = Some(0);
                self.go_on();
            }
            ToWorkload::RestoreFailed(failed) => {
                self.note(&format!("heard that its restore failed: {:?}", failed.why));
            }
            _ => (),
        }
        Ok(())
    }

    async fn take(
        &mut self,
        filling: &Filling,
        talk: &mut Talk,
        line: &mut Line,
    ) -> io::Result<()> {
        let (Some(taking), Some((shape, ring))) = (&mut talk.taking, &talk.ring) else {
            return Ok(());
        };
        if taking.offer.restore != filling.restore {
            return Ok(());
        }
        let at = shape.offset(filling.slot).ok_or_else(|| io::Error::other("no such slot"))?;
        let from = usize::try_from(filling.offset).map_err(io::Error::other)?;
        let length = usize::try_from(filling.bytes).map_err(io::Error::other)?;
        let place = taking.bytes.get_mut(from..from + length);
        let place = place.ok_or_else(|| io::Error::other("more than the layout says"))?;
        read_exact(ring, place, at)?;
        let emptied = Emptied { restore: filling.restore, slot: filling.slot };
        line.say(&FromWorkload::Emptied(emptied), &[]).await
    }

    async fn finish(&mut self, line: &mut Line) -> io::Result<()> {
        self.finishing = true;
        let step = self.step.unwrap_or(0);
        self.note(&format!("finished at step {step}"));
        line.say(&FromWorkload::Finish(Finish { step }), &[]).await
    }

    fn park(&mut self, step: u64, save: Option<u64>) {
        self.step_ends = None;
        self.parked = Some(Parked { step, save, taken: false, epoch: None });
    }

    fn go_on(&mut self) {
        if self.parked.is_none() && self.step_ends.is_none() && self.step.is_some() {
            self.step_ends = Some(Instant::now() + Duration::from_millis(self.behavior.step_ms));
        }
    }

    fn is_terminated(&self) -> bool {
        self.terminated.as_ref().is_some_and(|terminated| *terminated.borrow())
    }

    fn layout(&self) -> Layout {
        let state = Region::new("state", Dtype::U8, &[self.behavior.state_bytes]);
        Layout { regions: vec![state], tree: Tree::Null }
    }

    fn note(&self, what: &str) {
        let rank =
            if self.behavior.ranks > 1 { format!(" rank {}", self.number) } else { String::new() };
        if let Some(diary) = &self.diary {
            diary.note(format!("{}{rank} {what}", self.name));
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// The state of a rank after a step, as bytes: a function of job, rank and step alone.
pub(super) fn contents(job: &str, rank: u32, step: u64, range: Range<u64>) -> Vec<u8> {
    let name = job.bytes().fold(u64::from(rank) + 1, |sum, byte| {
        sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte)
    });
    let seed = name.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let words = range.start / 8..range.end.div_ceil(8);
    let skip = usize::try_from(range.start % 8).unwrap_or(0);
    let length = usize::try_from(range.end - range.start).unwrap_or(0);
    let mut bytes: Vec<u8> = words.flat_map(|word| mix(seed ^ word).to_le_bytes()).collect();
    bytes.drain(..skip);
    bytes.truncate(length);
    bytes
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::pwrite(file, bytes, at)?;
        (bytes, at) = (&bytes[count..], at + count as u64);
    }
    Ok(())
}

fn read_exact(file: &OwnedFd, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::pread(file, &mut *bytes, at)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (bytes, at) = (&mut bytes[count..], at + count as u64);
    }
    Ok(())
}

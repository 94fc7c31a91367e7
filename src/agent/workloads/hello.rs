//! What workloads say: who they are, where they are, and the parts of what is under way.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_domain::ids::Epoch;
use lifeboat_domain::workload::Stored;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Given;
use lifeboat_protocol::frame::Hello;
use lifeboat_protocol::frame::KeyInUse;
use lifeboat_protocol::frame::Leave;
use lifeboat_protocol::frame::NothingToRestore;
use lifeboat_protocol::frame::Refused;
use lifeboat_protocol::frame::SaveBegin;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::VERSION;
use lifeboat_protocol::frame::Welcome;
use tokio::time::Instant;
use tracing::info;

use crate::agent::workloads::frames;
use crate::agent::workloads::life::Identity;
use crate::agent::workloads::life::Life;
use crate::agent::workloads::life::LifeId;
use crate::agent::workloads::life::Member;
use crate::agent::workloads::life::Outcome;
use crate::agent::workloads::life::Standing;
use crate::agent::workloads::life::Wants;
use crate::agent::workloads::line::SessionId;
use crate::agent::workloads::registry::Before;
use crate::agent::workloads::registry::Registry;
use crate::agent::workloads::restoring;
use crate::agent::workloads::saving;
use crate::agent::workloads::session::Input;
use crate::agent::workloads::session::Next;
use crate::agent::workloads::session::State;
use crate::agent::workloads::session::Still;
use crate::data::handed::Handed;
use crate::data::save::Segment;

/// Most ranks of a job that we meet.
const WORLD_MAX: u32 = lifeboat_checkpoint::manifest::RANKS_MAX;

/// A workload that says what no workload says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

/// What becomes of a rank that says hello.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// It belongs to this life.
    Joins(LifeId),
    /// It begins a life.
    Begins,
    /// It begins a life once this holder has ended.
    Succeeds(String),
    /// This holder runs.
    Taken(String),
}

impl Registry {
    /// Takes a frame in.
    pub(super) fn take_frame(
        &mut self,
        number: SessionId,
        frame: FromWorkload,
        descriptors: Vec<Handed>,
    ) -> Result<(), Nonsense> {
        if !matches!(frame, FromWorkload::Given(_)) && !descriptors.is_empty() {
            return Err(Nonsense);
        }
        let input = input_of(&frame);
        let next = match input {
            Some(input) => self.step(number, input),
            None if self.is_new(number) => Next::Cut,
            None => Next::Go(State::Running),
        };
        match next {
            Next::Cut => return Err(Nonsense),
            Next::Ignore => return Ok(()),
            Next::Go(_) => (),
        }
        match frame {
            FromWorkload::Hello(hello) => self.hello(number, &hello),
            FromWorkload::SaveBegin(begin) => return self.begin(number, begin),
            FromWorkload::Given(given) => return self.given(number, given, descriptors),
            FromWorkload::Register(_)
            | FromWorkload::Progress(_)
            | FromWorkload::Ready(_)
            | FromWorkload::Filled(_)
            | FromWorkload::SaveEnd(_)
            | FromWorkload::SaveRefused(_)
            | FromWorkload::SaveWanted(_)
            | FromWorkload::Terminating(_)
            | FromWorkload::Restore(_)
            | FromWorkload::Accept(_)
            | FromWorkload::Decline(_)
            | FromWorkload::Emptied(_)
            | FromWorkload::Resumed(_)
            | FromWorkload::Finish(_)
            | FromWorkload::Returned(_)
            | FromWorkload::Unknown => self.take_plain(number, frame),
        }
        Ok(())
    }

    fn is_new(&self, number: SessionId) -> bool {
        self.sessions.get(&number).is_none_or(|session| session.state == State::New)
    }

    fn take_plain(&mut self, number: SessionId, frame: FromWorkload) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        let member = session.member;
        match frame {
            FromWorkload::Register(register) => session.bytes = Some(register.layout.bytes()),
            FromWorkload::Progress(progress) => {
                session.step = Some(progress.step);
                let known = Some(progress.step_ns).filter(|step_ns| *step_ns > 0);
                session.step_time = known.map(Duration::from_nanos).or(session.step_time);
            }
            FromWorkload::Ready(ready) => session.step = Some(ready.step),
            FromWorkload::Filled(filled) => {
                let (slot, offset, bytes) = (filled.slot, filled.offset, filled.bytes);
                self.note(number, |stand| stand.by_ring = true);
                self.hand_on(number, saving::FromRank::Slot { slot, offset, bytes });
            }
            FromWorkload::SaveEnd(_) => {
                self.note(number, |stand| stand.ended = Some(Instant::now()));
                self.hand_on(number, saving::FromRank::End);
            }
            FromWorkload::SaveRefused(refused) => {
                info!(session = number, reason = refused.reason, "workload cannot be saved");
                session.saving = None;
                self.on_refused(number);
            }
            FromWorkload::Terminating(terminating) => {
                session.step = terminating.step.or(session.step);
                session.terminating = Some((self.means.clock.now(), Instant::now()));
                self.on_terminating(number);
            }
            FromWorkload::Restore(wish) => {
                let since = Instant::now();
                session.wants = Some(Wants { newer_than: wish.newer_than, since });
                if member.is_none() {
                    let reason = "the pod has no job key".to_owned();
                    let nothing = NothingToRestore { reason, epoch: 0 };
                    self.say(number, ToWorkload::NothingToRestore(nothing));
                }
            }
            FromWorkload::Accept(accept) => {
                let restore = accept.restore;
                self.pass_on(number, restoring::FromRank::Accept { restore });
            }
            FromWorkload::Decline(decline) => {
                let (restore, reason) = (decline.restore, decline.reason);
                self.pass_on(number, restoring::FromRank::Decline { restore, reason });
            }
            FromWorkload::Emptied(emptied) => {
                let (restore, slot) = (emptied.restore, emptied.slot);
                self.pass_on(number, restoring::FromRank::Emptied { restore, slot });
            }
            FromWorkload::SaveWanted(wanted) => {
                session.step = Some(wanted.step);
                self.on_save_wanted(number);
            }
            FromWorkload::Resumed(resumed) => session.step = Some(resumed.step),
            FromWorkload::Finish(finish) => session.step = Some(finish.step),
            // Taken before; the rings' return is not waited for.
            FromWorkload::Hello(_)
            | FromWorkload::SaveBegin(_)
            | FromWorkload::Given(_)
            | FromWorkload::Returned(_)
            | FromWorkload::Unknown => (),
        }
        if let Some(member) = member {
            self.advance(member.life);
        }
    }

    fn hello(&mut self, number: SessionId, hello: &Hello) {
        if hello.version.major != VERSION.major {
            let reason = format!("the agent speaks version {} of the protocol", VERSION.major);
            return self.refuse(number, reason);
        }
        let (world, rank) = (hello.world.max(1), hello.rank);
        if world > WORLD_MAX || rank >= world {
            return self.refuse(number, format!("there is no rank {rank} in a world of {world}"));
        }
        let Some(identity) = self.identity(number, hello) else { return };
        let place = self.place(&identity, hello);
        let life = match &place {
            Place::Joins(life) => *life,
            Place::Taken(holder) => {
                let in_use = KeyInUse { holder: holder.clone(), wait: false };
                self.say(number, ToWorkload::KeyInUse(in_use));
                return self.forget(number);
            }
            Place::Begins | Place::Succeeds(_) => {
                let here = if hello.local_world == 0 { world } else { hello.local_world };
                let standing =
                    if hello.step.is_some() { Standing::Unknown } else { Standing::Unclaimed };
                let id = self.number();
                let now = self.means.clock.now();
                self.lives.insert(id, Life::new(identity, here.min(world), standing, now));
                id
            }
        };
        self.join(number, hello, Member { life, rank });
        self.welcome(number, hello, &place);
        self.advance(life);
    }

    fn identity(&self, number: SessionId, hello: &Hello) -> Option<Identity> {
        let pod = self.pods.get(&self.sessions.get(&number)?.pod)?;
        let uid = pod.entry.pod.uid.as_str();
        let run = if hello.run_id.is_empty() { uid } else { &hello.run_id };
        let run: String = run.chars().take(128).collect();
        Some(Identity {
            namespace: pod.entry.pod.namespace.clone(),
            job_key: pod.entry.wishes.job_key.clone(),
            run: format!("{run}.{}", hello.restart_count),
            world: hello.world.max(1),
        })
    }

    /// Whether a rank joins a life, begins one, or must wait or go.
    fn place(&self, identity: &Identity, hello: &Hello) -> Place {
        let mut occupied = None;
        for (id, life) in self.lives.iter().rev() {
            let session = life.ranks.get(&hello.rank).copied();
            let vacant = session.flatten().is_none();
            let comes_back = hello.again && vacant;
            let comes_first = session.is_none() && life.standing == Standing::Unclaimed;
            if life.identity == *identity && (comes_back || comes_first) {
                return Place::Joins(*id);
            }
            let same_key = identity.job_key.is_some()
                && life.identity.namespace == identity.namespace
                && life.identity.job_key == identity.job_key;
            if same_key && let Some(Some(holder)) = session {
                occupied.get_or_insert(holder);
            }
        }
        let Some(holder) = occupied.and_then(|number| self.sessions.get(&number)) else {
            return Place::Begins;
        };
        let name = self.pods.get(&holder.pod).map(|pod| pod.entry.pod.to_string());
        let name = name.unwrap_or_default();
        let goes = self.is_ending(&holder.pod) || holder.terminating.is_some();
        if goes { Place::Succeeds(name) } else { Place::Taken(name) }
    }

    fn join(&mut self, number: SessionId, hello: &Hello, member: Member) {
        let (Some(session), Some(life)) =
            (self.sessions.get_mut(&number), self.lives.get_mut(&member.life))
        else {
            return;
        };
        session.member = Some(member);
        session.step = hello.step;
        life.speaker = session.speaker;
        if let Some(parked) = &hello.parked {
            session.parked_at = Some(parked.step);
            session.parked_since = Some(Instant::now());
            session.state = State::Parked;
        }
        if hello.terminating {
            session.terminating = Some((self.means.clock.now(), Instant::now()));
        }
        life.ranks.insert(member.rank, Some(number));
        if !life.pods.contains(&session.pod) {
            life.pods.push(session.pod.clone());
        }
        let Some(pod) = self.pods.get_mut(&session.pod) else { return };
        pod.before = Before::Nothing;
        let earlier = pod.life.replace(member.life).filter(|earlier| *earlier != member.life);
        info!(pod = %pod.entry.pod, rank = member.rank, again = hello.again, "workload connected");
        if let Some(earlier) = earlier.and_then(|id| self.lives.get(&id)) {
            let (saved, insurance) = (earlier.saved, earlier.insurance);
            if let Some(life) = self.lives.get_mut(&member.life) {
                (life.saved, life.insurance) = (saved, insurance);
            }
        }
    }

    /// Answers a hello. A workload that begins on an interrupted node is parked at once.
    fn welcome(&mut self, number: SessionId, hello: &Hello, place: &Place) {
        let Some(session) = self.sessions.get(&number) else { return };
        let begins = !hello.again && hello.parked.is_none();
        let park = begins && self.is_ending(&session.pod);
        let life = session.member.and_then(|member| self.lives.get(&member.life));
        let notice = life.and_then(|life| self.wanted(life)).filter(|_| park);
        if let Place::Succeeds(holder) = place {
            let in_use = KeyInUse { holder: holder.clone(), wait: true };
            self.say(number, ToWorkload::KeyInUse(in_use));
        } else {
            let welcome = Welcome {
                version: VERSION,
                agent: concat!("lifeboat ", env!("CARGO_PKG_VERSION")).to_owned(),
                newest: None,
                park: notice.map(|notice| frames::notice(&self.means.clock, &notice)),
                background: self.means.spool.is_some(),
            };
            self.say(number, ToWorkload::Welcome(welcome));
        }
        if park {
            self.step(number, Input::Park);
            let member = self.sessions.get(&number).and_then(|session| session.member);
            if let Some(member) = member {
                self.has_nothing(member.life);
            }
        }
    }

    /// A life that has nothing which is not saved: what its job key has saved is what there is.
    pub(super) fn has_nothing(&mut self, id: LifeId) {
        let at = self.means.clock.now();
        if let Some(life) = self.lives.get_mut(&id) {
            let epoch = Epoch(life.parent.unwrap_or(0));
            let none = Stored { epoch, step: None, bytes: 0, at };
            life.outcome = Outcome::Durable(life.saved.unwrap_or(none));
        }
    }

    fn refuse(&mut self, number: SessionId, reason: String) {
        info!(session = number, reason, "workload refused");
        self.say(number, ToWorkload::Refused(Refused { reason }));
        self.forget(number);
    }

    fn begin(&mut self, number: SessionId, begin: SaveBegin) -> Result<(), Nonsense> {
        begin.layout.check().map_err(|_| Nonsense)?;
        let (step, bytes) = (begin.step, begin.layout.bytes());
        if let Some(session) = self.sessions.get_mut(&number) {
            (session.step, session.bytes) = (Some(step), Some(bytes));
            session.parked_at = Some(step);
        }
        self.on_begun(number, bytes);
        self.hand_on(number, saving::FromRank::Begin { step, layout: begin.layout });
        Ok(())
    }

    fn given(
        &mut self,
        number: SessionId,
        given: Given,
        descriptors: Vec<Handed>,
    ) -> Result<(), Nonsense> {
        let files: Vec<Arc<Handed>> = descriptors.into_iter().map(Arc::new).collect();
        for piece in given.pieces {
            let file = usize::try_from(piece.descriptor).ok().and_then(|which| files.get(which));
            let file = Arc::clone(file.ok_or(Nonsense)?);
            let file = Segment { file, from: piece.from, bytes: piece.bytes };
            self.hand_on(number, saving::FromRank::Piece { offset: piece.offset, file });
        }
        Ok(())
    }

    /// Hands a rank's words on to its save. One that says more than it was lent is cut off there.
    pub(super) fn hand_on(&mut self, number: SessionId, said: saving::FromRank) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        if let Some(saving) = &session.saving
            && saving.try_send(said).is_err()
        {
            session.saving = None;
        }
    }

    fn pass_on(&mut self, number: SessionId, said: restoring::FromRank) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        if let Some(restoring) = &session.restoring
            && restoring.try_send(said).is_err()
        {
            session.restoring = None;
        }
    }

    /// A rank that saw SIGTERM and has nothing to save need not wait.
    fn on_terminating(&mut self, number: SessionId) {
        let Some(session) = self.sessions.get(&number) else { return };
        let life = session.member.and_then(|member| self.lives.get(&member.life));
        let settled = life.is_some_and(|life| life.outcome != Outcome::Pending);
        let leave = match session.state {
            State::Restoring | State::Finished => true,
            State::Parked => settled,
            State::New
            | State::Running
            | State::Asked { .. }
            | State::Ready { .. }
            | State::Due { .. }
            | State::Handing { .. }
            | State::Handed { .. }
            | State::Finishing => false,
        };
        if leave {
            let reason = "there is nothing that is not saved".to_owned();
            self.say(number, ToWorkload::Leave(Leave { reason }));
        }
    }
}

/// What a frame means for the session's state; nothing if it means the same in all.
fn input_of(frame: &FromWorkload) -> Option<Input> {
    match frame {
        FromWorkload::Hello(_) => Some(Input::Hello),
        FromWorkload::Restore(_) => Some(Input::Restore),
        FromWorkload::Accept(_) | FromWorkload::Decline(_) | FromWorkload::Emptied(_) => {
            Some(Input::Restored)
        }
        FromWorkload::Ready(ready) => {
            let still = if ready.parked { Still::Yes } else { Still::No };
            Some(Input::Ready { save: ready.save, step: ready.step, still })
        }
        FromWorkload::SaveBegin(begin) => Some(Input::Begin { save: begin.save }),
        FromWorkload::Filled(filled) => Some(Input::Part { save: filled.save }),
        FromWorkload::Given(given) => Some(Input::Part { save: given.save }),
        FromWorkload::SaveEnd(end) => Some(Input::End { save: end.save }),
        FromWorkload::SaveRefused(refused) => Some(Input::Refuse { save: refused.save }),
        FromWorkload::Finish(_) => Some(Input::Finish),
        FromWorkload::Register(_)
        | FromWorkload::Progress(_)
        | FromWorkload::SaveWanted(_)
        | FromWorkload::Returned(_)
        | FromWorkload::Terminating(_)
        | FromWorkload::Resumed(_)
        | FromWorkload::Unknown => None,
    }
}

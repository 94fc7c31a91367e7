//! What is due for a life: it is restored, saved, called off or finished, one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat_checkpoint::manifest::Holder;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::ids::Epoch;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::ids::Step;
use lifeboat_domain::node::facts::Asked;
use lifeboat_domain::node::plan::Notice;
use lifeboat_domain::workload::FailReason;
use lifeboat_domain::workload::Mode;
use lifeboat_domain::workload::Purpose;
use lifeboat_domain::workload::Restore as Wanted;
use lifeboat_domain::workload::Stored;
use lifeboat_protocol::frame::Failure;
use lifeboat_protocol::frame::Finished;
use lifeboat_protocol::frame::Leave;
use lifeboat_protocol::frame::Pace;
use lifeboat_protocol::frame::RestoreFailed;
use lifeboat_protocol::frame::SaveAt;
use lifeboat_protocol::frame::SaveId;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::Unpark;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::agent::workloads::frames;
use crate::agent::workloads::life::Deed;
use crate::agent::workloads::life::Life;
use crate::agent::workloads::life::LifeId;
use crate::agent::workloads::life::Outcome;
use crate::agent::workloads::life::Passage;
use crate::agent::workloads::life::Save;
use crate::agent::workloads::life::Speaker;
use crate::agent::workloads::life::Stage;
use crate::agent::workloads::life::Stand;
use crate::agent::workloads::life::Standing;
use crate::agent::workloads::life::Task;
use crate::agent::workloads::line::SessionId;
use crate::agent::workloads::look;
use crate::agent::workloads::look::Looked;
use crate::agent::workloads::registry::Done;
use crate::agent::workloads::registry::Registry;
use crate::agent::workloads::restoring;
use crate::agent::workloads::restoring::Restoring;
use crate::agent::workloads::restoring::Resumed;
use crate::agent::workloads::saving;
use crate::agent::workloads::saving::Saving;
use crate::agent::workloads::session::Input;
use crate::agent::workloads::session::State;
use crate::data::restore;
use crate::data::restore::RestoreError;
use crate::data::restore::Wish;
use crate::data::save;
use crate::data::save::Committed;
use crate::data::save::OwnAttempt;
use crate::data::save::SaveError;
use crate::data::scheduler::Demand;
use crate::data::scheduler::Direction;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// How long the ranks of one life may take to ask for their state together.
pub(super) const TOGETHER: Duration = Duration::from_mins(1);
/// How long ranks may take to be there and to agree, at least.
const AGREE_MIN: Duration = Duration::from_secs(5);
/// How long they may take at most.
const AGREE_MAX: Duration = Duration::from_secs(30);
/// What a save without a deadline may take.
const NO_HURRY: Duration = Duration::from_mins(10);
/// What a save in the background may take.
const BACKGROUND_MAX: Duration = Duration::from_hours(1);

impl Registry {
    /// Starts what is due for a life. Looks at what is so now, whatever happened.
    pub(super) fn advance(&mut self, id: LifeId) {
        let Some(life) = self.lives.get(&id) else { return };
        let wanted = self.wanted(life);
        match (&life.deed, &life.outcome) {
            // It ended its work before it came to a safe point: there is no state to wait for.
            (Deed::Saving(save), _) if !save.has_begun() && self.all_are(id, State::Finishing) => {
                self.set(id, Deed::Nothing);
                self.finish(id);
            }
            (Deed::Nothing, _) if self.all_are(id, State::Finishing) => self.finish(id),
            (Deed::Saving(save), _) if self.all_are(id, State::Finishing) => {
                // Once it stores it may commit at any moment, and the end must come after that.
                if save.is_storing() {
                    self.hear_no_more(id);
                } else {
                    self.set(id, Deed::Nothing);
                    self.finish(id);
                }
            }
            (Deed::Saving(_), _) => self.gather(id),
            (Deed::Restoring { .. }, Outcome::Pending) => {
                if wanted.is_some_and(|notice| !notice.purpose.goes_on()) {
                    self.stop_restore(id, wanted);
                }
            }
            (Deed::Nothing, Outcome::Pending) => match wanted {
                Some(notice) => self.answer(id, notice),
                None => self.restore(id),
            },
            (Deed::Nothing | Deed::Restoring { .. }, Outcome::Durable(_) | Outcome::Failed(_))
            | (Deed::Looking { .. } | Deed::Claiming { .. } | Deed::Finishing { .. }, _) => (),
        }
    }

    /// A save is wanted and nothing is under way.
    fn answer(&mut self, id: LifeId, notice: Notice) {
        let Some(life) = self.lives.get(&id) else { return };
        let insurance = notice.purpose.goes_on();
        let wants = self.any(life, |session| session.wants.is_some());
        let unclaimed = life.standing == Standing::Unclaimed;
        if life.standing == Standing::Finished {
            return self.has_nothing(id);
        }
        if life.identity.job_key.is_none() {
            return self.fail(id, FailReason::NoJobKey);
        }
        // A program that has neither restored nor begun has nothing of its own.
        let begun = self.any(life, |session| session.step.is_some());
        if unclaimed && (wants || !begun) {
            return if insurance { self.restore(id) } else { self.stop_restore(id, Some(notice)) };
        }
        if insurance && life.uninsured.is_some() {
            return;
        }
        match life.standing {
            Standing::Unclaimed | Standing::Unknown => self.look(id),
            Standing::Claimed(_) if self.is_saved_where_it_stands(life) && !insurance => {
                self.has_nothing(id);
            }
            Standing::Claimed(_) | Standing::Finished => self.save(id, notice),
        }
    }

    /// Whether every rank is parked at the step that was saved last.
    fn is_saved_where_it_stands(&self, life: &Life) -> bool {
        let saved = life.saved.and_then(|stored| stored.step);
        life.is_whole()
            && life.sessions().all(|(_, number)| {
                self.sessions.get(&number).is_some_and(|session| {
                    session.state == State::Parked
                        && session.parked_at.is_some()
                        && session.parked_at == saved.map(|step| step.0)
                })
            })
    }

    fn any(
        &self,
        life: &Life,
        wanted: impl Fn(&crate::agent::workloads::life::Session) -> bool,
    ) -> bool {
        life.sessions().any(|(_, number)| self.sessions.get(&number).is_some_and(&wanted))
    }

    fn all_are(&self, id: LifeId, state: State) -> bool {
        let Some(life) = self.lives.get(&id) else { return false };
        let is = |number: &SessionId| {
            self.sessions.get(number).is_some_and(|session| session.state == state)
        };
        let mut sessions = life.sessions().map(|(_, number)| number).peekable();
        sessions.peek().is_some() && life.is_whole() && sessions.all(|number| is(&number))
    }

    /// Asks the bucket how the history stands: an agent before this one, or a write whose end is
    /// not known, may have moved it.
    fn look(&mut self, id: LifeId) {
        let Some(life) = self.lives.get(&id) else { return };
        let Some(history) = self.history_of(life) else { return };
        let (own, deadline) = (self.life_of(life, None), self.wanted(life));
        let by = self.by(deadline.and_then(|notice| notice.deadline));
        let task = self.tasks.spawn(async move {
            let looked = look::look(&history, &own, by).await;
            Done::Looked(id, looked)
        });
        self.set(id, Deed::Looking { _task: Task(task) });
    }

    pub(super) fn on_looked(&mut self, id: LifeId, looked: Looked) {
        let goes_on = !self.all_are(id, State::Finishing);
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.deed = Deed::Nothing;
        let failed = match looked {
            Looked::Empty => {
                life.standing = Standing::Claimed(0);
                None
            }
            Looked::Own { epoch, parent, stored } => {
                if life.parent != parent {
                    // A commit whose answer was lost: what is known is not of the newest epoch.
                    life.digests = Arc::default();
                }
                (life.standing, life.parent) = (Standing::Claimed(epoch), parent);
                life.saved = stored.or(life.saved);
                None
            }
            // It never asked for their state, and has one of its own.
            Looked::Theirs(_) if goes_on && life.standing == Standing::Unclaimed => {
                return self.claim(id);
            }
            Looked::Theirs(theirs) => {
                warn!(epoch = theirs.epoch, holder = theirs.holder.pod, "life is superseded");
                Some(FailReason::Superseded)
            }
            Looked::Failed(error) => {
                metrics::error("store", error.label());
                warn!(error = %Chain(&error), "history not read");
                Some(FailReason::Store)
            }
        };
        match failed {
            // The work is done all the same; whoever superseded us will find out.
            Some(_) if !goes_on => self.on_end(id, 0),
            Some(why) => self.fail(id, why),
            None => self.advance(id),
        }
    }

    /// Begins a save: asks the ranks as soon as all are there.
    fn save(&mut self, id: LifeId, notice: Notice) {
        let Notice { purpose, deadline } = notice;
        let stage = Stage::Gathering { until: self.agree_by(deadline) };
        let began = self.means.clock.now();
        let (number, excuse) = (self.number(), FailReason::NoAnswer);
        let (stand, taken) = (Stand::default(), Arc::default());
        let save = Save { number, purpose, deadline, began, stage, excuse, again: 0, stand, taken };
        self.set(id, Deed::Saving(save));
        self.gather(id);
    }

    /// Moves a save on, as far as the ranks are.
    fn gather(&mut self, id: LifeId) {
        let Some(life) = self.lives.get(&id) else { return };
        let Deed::Saving(save) = &life.deed else { return };
        match &save.stage {
            Stage::Gathering { .. } if life.is_whole() => self.prepare(id),
            Stage::Agreeing { .. } => self.agree(id),
            Stage::Gathering { .. } | Stage::HandingOver { .. } => (),
        }
    }

    /// Asks every rank for its step. A single rank is told to stop at its next safe point at once.
    fn prepare(&mut self, id: LifeId) {
        let number = self.number();
        let until = {
            let Some(Life { deed: Deed::Saving(save), .. }) = self.lives.get_mut(&id) else {
                return;
            };
            save.number = number;
            let until = save.until().unwrap_or_else(Instant::now);
            save.stage = Stage::Agreeing { until };
            until
        };
        let Some(life) = self.lives.get(&id) else { return };
        let Deed::Saving(save) = &life.deed else { return };
        let prepare = frames::prepare(&self.means.clock, save);
        let single = life.identity.world == 1;
        for (_, session) in life.sessions().collect::<Vec<_>>() {
            self.step(session, Input::Ask { save: number });
            self.say(session, ToWorkload::Prepare(prepare.clone()));
        }
        if single {
            self.tell_step(id, None);
        }
        let left = until.saturating_duration_since(Instant::now());
        tracing::debug!(life = id, save = number, ?left, "ranks asked for their steps");
    }

    /// Agrees on a step once every rank has said where it is: the largest, plus one for those that
    /// run.
    fn agree(&mut self, id: LifeId) {
        let Some(life) = self.lives.get(&id) else { return };
        if !life.is_whole() {
            return self.begin_anew(id, FailReason::NoAnswer);
        }
        let mut at = Vec::new();
        for (_, number) in life.sessions() {
            let state = self.sessions.get(&number).map(|session| session.state);
            let Some(State::Ready { step, still, .. }) = state else { return };
            at.push((step, still));
        }
        if let Some(step) = frames::agreed(&at) {
            return self.tell_step(id, Some(step));
        }
        warn!(life = id, "ranks stand still at different steps");
        self.fail(id, FailReason::Disagreed);
    }

    /// Tells every rank when to stop, and begins to take what they hand over.
    fn tell_step(&mut self, id: LifeId, step: Option<u64>) {
        let chunk = self.means.place.chunk;
        let Some(life) = self.lives.get(&id) else { return };
        let Deed::Saving(save) = &life.deed else { return };
        let number = save.number;
        let at = frames::save_at(&self.means.clock, save, (step, chunk));
        let mut lines = Vec::new();
        for (rank, session) in life.sessions().collect::<Vec<_>>() {
            self.step(session, Input::Tell { save: number });
            let skip_replicated = rank > 0;
            self.say(session, ToWorkload::SaveAt(SaveAt { skip_replicated, ..at.clone() }));
            let (pass, heard) = mpsc::channel(saving::WAITING_MAX);
            if let Some(session) = self.sessions.get_mut(&session) {
                session.saving = Some(pass);
                lines.push(saving::RankLine::new(rank, heard, session.mouth.clone()));
            }
        }
        // What the program itself asked for is nobody's to order.
        let ordered = self.lives.get(&id).and_then(|life| self.wanted(life)).is_none();
        let (go, wait) = watch::channel(ordered);
        if let Some(Life { deed: Deed::Saving(save), .. }) = self.lives.get_mut(&id) {
            save.taken = Arc::default();
        }
        let Some(saving) = self.saving(id, wait) else { return };
        let task =
            Task(self.tasks.spawn(async move { Done::Saved(id, number, saving.run(lines).await) }));
        if let Some(Life { deed: Deed::Saving(save), .. }) = self.lives.get_mut(&id) {
            save.stage = Stage::HandingOver { _task: task, go, begun: BTreeMap::new() };
            save.stand = Stand { told: Some(Instant::now()), ..Stand::default() };
        }
    }

    fn saving(&self, id: LifeId, go: watch::Receiver<bool>) -> Option<Saving> {
        let life = self.lives.get(&id)?;
        let Deed::Saving(save) = &life.deed else { return None };
        // A folder is ours until it is stored, however long its pod is gone by then.
        let outlives = life.speaker == Speaker::StandIn && save.purpose == Purpose::Ending;
        let by = match save.purpose {
            // It is paced, so that it takes its time.
            Purpose::Background => Deadline::after(self.means.clock.now(), BACKGROUND_MAX),
            Purpose::Insurance | Purpose::Ending | Purpose::Interruption | Purpose::Unknown => {
                self.by(save.deadline.filter(|_| !outlives))
            }
        };
        let direction = match save.purpose {
            Purpose::Background => Direction::Background,
            Purpose::Insurance | Purpose::Ending | Purpose::Interruption | Purpose::Unknown => {
                Direction::Save
            }
        };
        let spool = match save.purpose {
            Purpose::Background => self.means.spool.clone(),
            Purpose::Insurance | Purpose::Ending | Purpose::Interruption | Purpose::Unknown => None,
        };
        Some(Saving {
            save: save.number,
            means: self.save_means(life, by)?,
            life: self.life_of(life, save.deadline),
            scheduler: self.means.scheduler.clone(),
            demand: self.demand(life, direction, save.deadline)?,
            chunk: self.means.place.chunk,
            spool,
            taken: Arc::clone(&save.taken),
            go,
        })
    }

    /// A rank has begun to hand over.
    pub(super) fn on_begun(&mut self, number: SessionId, bytes: u64) {
        let member = self.sessions.get(&number).and_then(|session| session.member);
        let Some(member) = member else { return };
        if let Some(Life { deed: Deed::Saving(save), .. }) = self.lives.get_mut(&member.life)
            && let Stage::HandingOver { begun, .. } = &mut save.stage
        {
            begun.insert(member.rank, bytes);
            save.stand.begun.get_or_insert_with(Instant::now);
        }
    }

    /// Takes note of how long a workload stands still.
    pub(super) fn note(&mut self, number: SessionId, note: impl FnOnce(&mut Stand)) {
        let member = self.sessions.get(&number).and_then(|session| session.member);
        if let Some(Life { deed: Deed::Saving(save), .. }) =
            member.and_then(|member| self.lives.get_mut(&member.life))
        {
            note(&mut save.stand);
        }
    }

    /// Storing was ordered.
    pub(super) fn let_store(&mut self, uid: &PodUid) {
        let life = self.pods.get(uid).and_then(|pod| pod.life);
        if let Some(Life { deed: Deed::Saving(save), .. }) =
            life.and_then(|id| self.lives.get_mut(&id))
            && let Stage::HandingOver { go, .. } = &save.stage
        {
            go.send_replace(true);
        }
    }

    /// What was asked became more urgent. A graver purpose begins anew; a deadline is passed on.
    pub(super) fn tighten(&mut self, id: LifeId, notice: Notice) {
        let clock = self.means.clock.clone();
        let Some(life) = self.lives.get_mut(&id) else { return };
        let Deed::Saving(save) = &mut life.deed else { return };
        if save.purpose.goes_on() && !notice.purpose.goes_on() {
            let called_off = ToWorkload::CallOff(SaveId { save: save.number });
            life.deed = Deed::Nothing;
            life.standing = Standing::Unknown;
            self.tell(id, &called_off);
            self.move_all(id, Input::GoOn);
            return;
        }
        save.purpose = save.purpose.max(notice.purpose);
        save.deadline = match (save.deadline, notice.deadline) {
            (Some(before), Some(now)) => Some(before.tighten(now)),
            (before, now) => before.or(now),
        };
        let deadline = save.deadline.map(|at| frames::deadline(&clock, at.at()));
        let pace = Pace { save: save.number, expected: None, deadline, leave_out: Vec::new() };
        self.tell(id, &ToWorkload::Pace(pace));
    }

    /// What was asked is not wanted any more.
    pub(super) fn call_off(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.asked = Asked::Nothing;
        let Some(id) = pod.life else { return };
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.outcome = Outcome::Pending;
        match &life.deed {
            Deed::Saving(save) => {
                let called_off = ToWorkload::CallOff(SaveId { save: save.number });
                // Its commit may be on its way: only the bucket knows.
                (life.deed, life.standing) = (Deed::Nothing, Standing::Unknown);
                self.tell(id, &called_off);
            }
            Deed::Nothing => {
                let reason = "the save was called off".to_owned();
                self.tell(id, &ToWorkload::Unpark(Unpark { reason }));
            }
            Deed::Claiming { .. } => life.deed = Deed::Nothing,
            Deed::Looking { .. } | Deed::Restoring { .. } | Deed::Finishing { .. } => (),
        }
        self.move_all(id, Input::GoOn);
        self.advance(id);
    }

    pub(super) fn on_saved(
        &mut self,
        id: LifeId,
        number: u64,
        result: Result<Committed, SaveError>,
    ) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        let Deed::Saving(save) = &life.deed else { return };
        if save.number != number {
            return;
        }
        let (purpose, deadline, began) = (save.purpose, save.deadline, save.began);
        let mut stand = save.stand;
        stand.taken = *save.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if self.all_are(id, State::Finishing) {
            return self.on_saved_before_the_end(id, result);
        }
        let Some(life) = self.lives.get_mut(&id) else { return };
        let now = self.means.clock.now();
        let took = Duration::try_from(now.duration_since(began)).unwrap_or_default();
        match result {
            Ok(committed) => {
                metrics::checkpoint("durable", committed.bytes, took);
                let durable = frames::durable((number, &committed), (took, deadline, now));
                life.committed(committed, now);
                life.passage = if stand.by_ring { Passage::Ring } else { Passage::Files };
                self.tell(id, &ToWorkload::Durable(durable));
                if purpose.goes_on() {
                    self.stood(id, stand);
                }
                self.settle(id, purpose);
            }
            Err(error) => {
                metrics::checkpoint(error.label(), 0, took);
                warn!(life = id, error = %Chain(&error), "checkpoint not saved");
                self.on_save_failed(id, number, &error);
            }
        }
    }

    /// A workload stood still for a save, and goes on.
    fn stood(&mut self, id: LifeId, stand: Stand) {
        let now = self.means.clock.now();
        let Some(life) = self.lives.get_mut(&id) else { return };
        let pod = life.pods.first().and_then(|uid| self.pods.get(uid));
        let mode = pod.map_or(Mode::Unknown, |pod| pod.entry.wishes.mode);
        let stall = stand.stall(mode, Instant::now());
        metrics::checkpoint_stall(stall);
        info!(life = id, ?stall, "workload stood still for a save, and goes on");
        (life.tried_at, life.stall) = (now, Some(stall));
    }

    /// The program has ended its work while it was saved: whatever came of that, the end follows.
    fn on_saved_before_the_end(&mut self, id: LifeId, result: Result<Committed, SaveError>) {
        let now = self.means.clock.now();
        if let Some(life) = self.lives.get_mut(&id) {
            life.deed = Deed::Nothing;
            match result {
                Ok(committed) => life.committed(committed, now),
                Err(_) => life.standing = Standing::Unknown,
            }
        }
        self.advance(id);
    }

    /// A save gets nothing more from its ranks: it ends with what it has, or not at all.
    fn hear_no_more(&mut self, id: LifeId) {
        let Some(life) = self.lives.get(&id) else { return };
        for (_, number) in life.sessions().collect::<Vec<_>>() {
            if let Some(session) = self.sessions.get_mut(&number) {
                session.saving = None;
            }
        }
    }

    /// A save is committed: its ranks stay parked, or go on if it was for insurance.
    fn settle(&mut self, id: LifeId, purpose: Purpose) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.deed = Deed::Nothing;
        let Some(saved) = life.saved else { return };
        info!(
            job = life.identity.job_key.as_ref().map_or("", |key| key.as_str()),
            epoch = saved.epoch.0,
            step = saved.step.map_or(0, |step| step.0),
            bytes = saved.bytes,
            "checkpoint durable"
        );
        if purpose.goes_on() {
            life.insurance = Some(saved);
            let pods = life.pods.clone();
            for uid in pods {
                if let Some(pod) = self.pods.get_mut(&uid)
                    && matches!(pod.asked, Asked::Save { purpose, .. } if purpose.goes_on())
                {
                    pod.asked = Asked::Nothing;
                }
            }
            self.move_all(id, Input::GoOn);
            self.advance(id);
        } else {
            life.outcome = Outcome::Durable(saved);
            self.move_all(id, Input::Park);
        }
    }

    fn on_save_failed(&mut self, id: LifeId, number: u64, error: &SaveError) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        life.standing = Standing::Unknown;
        let (why, reason) = (frames::failure(error), Chain(error).to_string());
        let failed = frames::save_failed(number, why, reason);
        self.tell(id, &ToWorkload::SaveFailed(failed));
        match error {
            // It may come back: a line can break without its workload.
            SaveError::Gone { .. } => self.begin_anew(id, FailReason::WorkloadGone),
            SaveError::Part(_)
            | SaveError::Commit { .. }
            | SaveError::Superseded { .. }
            | SaveError::HandOver { .. }
            | SaveError::Parts { .. }
            | SaveError::Late { .. }
            | SaveError::Spool(_)
            | SaveError::Steps
            | SaveError::Silent => self.fail(id, frames::fail_reason(error)),
        }
    }

    /// Gathers the ranks again, whose line broke; a few times, and not for long.
    fn begin_anew(&mut self, id: LifeId, excuse: FailReason) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        let Deed::Saving(save) = &mut life.deed else { return };
        if save.again >= 5 {
            return self.fail(id, excuse);
        }
        save.again += 1;
        save.excuse = excuse;
        let until = save.until().unwrap_or_else(|| Instant::now() + AGREE_MIN);
        save.stage = Stage::Gathering { until };
        let sessions: Vec<SessionId> = life.sessions().map(|(_, number)| number).collect();
        for number in sessions {
            if let Some(session) = self.sessions.get_mut(&number) {
                session.saving = None;
            }
        }
        let whole = self.lives.get(&id).is_some_and(Life::is_whole);
        if whole {
            self.prepare(id);
        }
    }

    /// The program asks for a save. It goes on afterwards.
    pub(super) fn on_save_wanted(&mut self, number: SessionId) {
        let member = self.sessions.get(&number).and_then(|session| session.member);
        let Some(life) = member.and_then(|member| self.lives.get(&member.life)) else { return };
        let (Some(member), Deed::Nothing) = (member, &life.deed) else { return };
        if self.wanted(life).is_some() || life.identity.job_key.is_none() {
            return;
        }
        match life.standing {
            Standing::Claimed(_) => {
                self.save(member.life, Notice { purpose: Purpose::Insurance, deadline: None });
            }
            Standing::Unclaimed | Standing::Unknown | Standing::Finished => {
                let reason = "the job key is not claimed: call `restore` first".to_owned();
                let failed = frames::save_failed(0, Failure::Unknown, reason);
                self.say(number, ToWorkload::SaveFailed(failed));
            }
        }
    }

    /// A rank says that it cannot be saved.
    pub(super) fn on_refused(&mut self, number: SessionId) {
        let member = self.sessions.get(&number).and_then(|session| session.member);
        if let Some(member) = member {
            self.fail(member.life, FailReason::Refused);
        }
    }

    /// Gives up what took too long.
    pub(super) fn give_up(&mut self, id: LifeId, now: Instant) {
        let Some(life) = self.lives.get(&id) else { return };
        if let Deed::Saving(save) = &life.deed
            && save.until().is_some_and(|until| until <= now)
        {
            let excuse = save.excuse;
            return self.fail(id, excuse);
        }
        let late = |session: &crate::agent::workloads::life::Session| {
            session.wants.is_some_and(|wants| wants.since + TOGETHER <= now)
        };
        let waits = matches!(life.deed, Deed::Nothing) && life.outcome == Outcome::Pending;
        if waits && self.any(life, late) && !life.is_whole() {
            let reason = "not all ranks asked for their state".to_owned();
            let failed = RestoreFailed { restore: 0, why: Failure::Rank, reason };
            self.tell(id, &ToWorkload::RestoreFailed(failed));
            self.move_all(id, Input::GoOn);
            self.want_nothing(id);
        }
    }

    /// A save will not be. The workload stays where it is; what it was told of it, it knows.
    fn fail(&mut self, id: LifeId, why: FailReason) {
        let wanted = self.lives.get(&id).and_then(|life| self.wanted(life));
        let insurance = wanted.is_some_and(|notice| notice.purpose.goes_on());
        let now = self.means.clock.now();
        let Some(life) = self.lives.get_mut(&id) else { return };
        if let Deed::Saving(save) = &life.deed {
            let failed = frames::save_failed(save.number, Failure::Unknown, why.label().to_owned());
            life.deed = Deed::Nothing;
            self.tell(id, &ToWorkload::SaveFailed(failed));
        }
        warn!(life = id, why = why.label(), "workload will not be saved");
        let Some(life) = self.lives.get_mut(&id) else { return };
        if insurance {
            (life.uninsured, life.tried_at) = (Some(why), now);
            return self.move_all(id, Input::GoOn);
        }
        life.outcome = Outcome::Failed(why);
        let sessions: Vec<SessionId> = life.sessions().map(|(_, number)| number).collect();
        let told_to_end = |number: &SessionId| {
            self.sessions.get(number).is_some_and(|one| one.terminating.is_some())
        };
        for number in sessions.into_iter().filter(told_to_end) {
            let reason = format!("its state is not saved: {}", why.label());
            self.say(number, ToWorkload::Leave(Leave { reason }));
        }
    }

    /// Begins a restore once every rank that is here has asked for it.
    fn restore(&mut self, id: LifeId) {
        let Some(life) = self.lives.get(&id) else { return };
        let mut asked = 0;
        let mut newer_than = None;
        for (_, number) in life.sessions() {
            if let Some(wants) = self.sessions.get(&number).and_then(|session| session.wants) {
                asked += 1;
                newer_than = newer_than.max(wants.newer_than);
            }
        }
        if asked == 0 || asked < life.here {
            return;
        }
        let pod = life.pods.first().and_then(|uid| self.pods.get(uid));
        let Some(restore) = pod.map(|pod| pod.entry.wishes.restore) else { return };
        let wish = Wish { restore, newer_than };
        let Some((restoring, waiting)) = self.restoring(life, wish) else { return };
        let mut lines = Vec::new();
        for (rank, number) in life.sessions().collect::<Vec<_>>() {
            self.step(number, Input::Restore);
            let (pass, heard) = mpsc::channel(saving::WAITING_MAX);
            if let Some(session) = self.sessions.get_mut(&number) {
                session.restoring = Some(pass);
                lines.push(restoring::RankLine { rank, heard, mouth: session.mouth.clone() });
            }
        }
        let task = self.tasks.spawn(async move { Done::Restored(id, restoring.run(lines).await) });
        self.set(id, Deed::Restoring { _task: Task(task), waiting });
    }

    /// Takes the job key over for a life that never asked for what others saved under it: like a
    /// restore of nothing, and only once the last holder has ended.
    fn claim(&mut self, id: LifeId) {
        let Some(life) = self.lives.get(&id) else { return };
        let nothing = Wish { restore: Wanted::Never, newer_than: None };
        let Some((claiming, waiting)) = self.restoring(life, nothing) else { return };
        let task =
            self.tasks.spawn(async move { Done::Restored(id, claiming.run(Vec::new()).await) });
        self.set(id, Deed::Claiming { _task: Task(task), waiting });
    }

    fn restoring(
        &self,
        life: &Life,
        wish: Wish,
    ) -> Option<(Restoring, watch::Receiver<Option<restoring::Holder>>)> {
        let history = self.history_of(life)?;
        let (clock, offload) = (self.means.clock.clone(), self.means.offload);
        let (tell, waiting) = watch::channel(None);
        let restoring = Restoring {
            means: restore::Means { history, clock, offload },
            claims: self.save_means(life, self.by(None))?,
            life: self.life_of(life, None),
            wish,
            scheduler: self.means.scheduler.clone(),
            demand: self.demand(life, Direction::Restore, None)?,
            proof: life.proof.subscribe(),
            waiting: tell,
            stirred: Arc::clone(&self.stirred),
            numbers: Arc::clone(&self.numbers),
        };
        Some((restoring, waiting))
    }

    pub(super) fn on_restored(&mut self, id: LifeId, result: Result<Resumed, RestoreError>) {
        let Some(life) = self.lives.get_mut(&id) else { return };
        let claimed = matches!(life.deed, Deed::Claiming { .. });
        life.deed = Deed::Nothing;
        match result {
            Err(error) if claimed => {
                warn!(life = id, error = %Chain(&error), "job key not taken over");
                return self.fail(id, FailReason::Superseded);
            }
            Ok(resumed) => {
                life.standing = Standing::Claimed(resumed.claimed);
                life.parent = resumed.parent;
                life.digests = Arc::new(resumed.digests);
            }
            Err(error) => {
                warn!(life = id, error = %Chain(&error), "workload not restored");
            }
        }
        self.want_nothing(id);
        self.move_all(id, Input::GoOn);
        self.advance(id);
    }

    /// The node is going while a life waits for its state: it has nothing to save, and stays.
    fn stop_restore(&mut self, id: LifeId, wanted: Option<Notice>) {
        self.set(id, Deed::Nothing);
        if let Some(notice) = wanted {
            let notice = frames::notice(&self.means.clock, &notice);
            self.tell(id, &ToWorkload::Park(notice));
        }
        self.move_all(id, Input::Park);
        self.has_nothing(id);
    }

    /// Stores that the work of a life is done.
    fn finish(&mut self, id: LifeId) {
        let Some(life) = self.lives.get(&id) else { return };
        let last = match life.standing {
            Standing::Claimed(last) => last,
            Standing::Finished => return self.on_end(id, 0),
            Standing::Unclaimed | Standing::Unknown => return self.look(id),
        };
        let steps = life.sessions().filter_map(|(_, number)| self.sessions.get(&number)?.step);
        let step = steps.max().unwrap_or(0);
        let deadline = self.wanted(life).and_then(|notice| notice.deadline);
        let own = save::Life { last, ..self.life_of(life, None) };
        let Some(means) = self.save_means(life, self.by(deadline)) else {
            return self.on_end(id, 0);
        };
        let task = self
            .tasks
            .spawn(async move { Done::Finished(id, save::finish(&means, &own, step).await) });
        self.set(id, Deed::Finishing { _task: Task(task) });
    }

    pub(super) fn on_finished(&mut self, id: LifeId, result: Result<Committed, SaveError>) {
        self.set(id, Deed::Nothing);
        match result {
            Ok(committed) => {
                let (epoch, at) = (Epoch(committed.epoch), self.means.clock.now());
                let step = Some(Step(committed.step));
                if let Some(life) = self.lives.get_mut(&id) {
                    life.finished = Some(Stored { epoch, step, bytes: 0, at });
                }
                self.on_end(id, committed.epoch);
            }
            Err(error) => {
                warn!(life = id, error = %Chain(&error), "end of the work not stored");
                metrics::error("store", error.label());
                // The work is done all the same; whoever superseded us will find out.
                self.on_end(id, 0);
            }
        }
    }

    fn on_end(&mut self, id: LifeId, epoch: u64) {
        if let Some(life) = self.lives.get_mut(&id) {
            life.standing = Standing::Finished;
        }
        self.tell(id, &ToWorkload::Finished(Finished { epoch }));
        self.move_all(id, Input::Done);
        let wanted = self.lives.get(&id).and_then(|life| self.wanted(life));
        if wanted.is_some() {
            self.has_nothing(id);
        }
    }

    fn move_all(&mut self, id: LifeId, input: Input) {
        let Some(life) = self.lives.get(&id) else { return };
        for (_, number) in life.sessions().collect::<Vec<_>>() {
            self.step(number, input);
            if let Some(session) = self.sessions.get_mut(&number) {
                (session.saving, session.restoring) = (None, None);
            }
        }
    }

    fn want_nothing(&mut self, id: LifeId) {
        let Some(life) = self.lives.get(&id) else { return };
        for (_, number) in life.sessions().collect::<Vec<_>>() {
            if let Some(session) = self.sessions.get_mut(&number) {
                session.wants = None;
            }
        }
    }

    fn set(&mut self, id: LifeId, deed: Deed) {
        if let Some(life) = self.lives.get_mut(&id) {
            life.deed = deed;
        }
    }

    fn history_of(&self, life: &Life) -> Option<crate::data::history::History> {
        life.pods.iter().find_map(|uid| self.pods.get(uid)?.history.clone())
    }

    fn save_means(&self, life: &Life, by: Deadline) -> Option<save::Means> {
        let pod = life.pods.first().map_or("", |uid| uid.as_str());
        let (clock, node) = (&self.means.clock, &self.means.place.node);
        Some(save::Means {
            attempt: OwnAttempt::new(clock, node, pod, &life.identity.run),
            history: self.history_of(life)?,
            buffers: self.buffers.clone(),
            offload: self.means.offload,
            clock: self.means.clock.clone(),
            known: Arc::clone(&life.digests),
            by,
        })
    }

    fn life_of(&self, life: &Life, deadline: Option<Deadline>) -> save::Life {
        let pod = life.pods.first().and_then(|uid| self.pods.get(uid));
        let (pod, pod_uid) = pod.map_or_else(Default::default, |pod| {
            (pod.entry.pod.name.to_string(), pod.entry.pod.uid.to_string())
        });
        let (node, instance) = (self.means.place.node.clone(), self.means.place.instance.clone());
        let last = match life.standing {
            Standing::Claimed(last) => last,
            Standing::Unclaimed | Standing::Unknown | Standing::Finished => 0,
        };
        save::Life {
            run: life.identity.run.clone(),
            world: life.identity.world,
            holder: Holder { pod, pod_uid, node, instance },
            last,
            parent: life.parent,
            deadline,
        }
    }

    fn demand(
        &self,
        life: &Life,
        direction: Direction,
        deadline: Option<Deadline>,
    ) -> Option<Demand> {
        let entry = &self.pods.get(life.pods.first()?)?.entry;
        Some(Demand {
            pod: entry.pod.uid.clone(),
            namespace: entry.pod.namespace.clone(),
            direction,
            pod_priority: entry.pod_priority,
            priority: entry.wishes.priority,
            bytes: 0,
            deadline,
        })
    }

    fn by(&self, deadline: Option<Deadline>) -> Deadline {
        deadline.unwrap_or_else(|| Deadline::after(self.means.clock.now(), NO_HURRY))
    }

    /// Until when ranks may take to be there and to agree: a third of what is left.
    fn agree_by(&self, deadline: Option<Deadline>) -> Instant {
        let left = self.by(deadline).left(self.means.clock.now());
        Instant::now() + (left / 3).clamp(AGREE_MIN, AGREE_MAX)
    }
}

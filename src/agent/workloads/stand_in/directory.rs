//! Speaks for a workload that only writes files: fills its folder before it starts, and hands over
//! what of it is whole.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_domain::budget;
use lifeboat_domain::ids::PodUid;
use lifeboat_protocol::frame::Accept;
use lifeboat_protocol::frame::Cause;
use lifeboat_protocol::frame::Decline;
use lifeboat_protocol::frame::Emptied;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Restore;
use lifeboat_protocol::frame::SaveAt;
use lifeboat_protocol::frame::SaveBegin;
use lifeboat_protocol::frame::SaveEnd;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::adapters::folder::Folder;
use crate::adapters::folder::renames::Renames;
use crate::adapters::proc::Proc;
use crate::agent::workloads::Fill;
use crate::agent::workloads::stand_in::Coming;
use crate::agent::workloads::stand_in::Seat;
use crate::agent::workloads::stand_in::Told;
use crate::agent::workloads::stand_in::filling::FillError;
use crate::agent::workloads::stand_in::filling::Filling;
use crate::agent::workloads::stand_in::whole::Finder;
use crate::agent::workloads::stand_in::whole::Glance;
use crate::agent::workloads::stand_in::whole::Looked;
use crate::agent::workloads::stand_in::whole::Opened;
use crate::agent::workloads::stand_in::whole::Time;
use crate::clock::Clock;
use crate::data::scheduler::Scheduler;
use crate::error::Chain;
use crate::offload::Offload;

/// With this much left nothing is waited for any more.
const LAST_LOOK: Duration = Duration::from_secs(15);

/// How long something whole is waited for where there is no hurry.
const NO_HURRY: Duration = Duration::from_mins(1);

/// How long after a pod's grace its volume may stay before it is saved as it is.
const GRACE_OVER: Duration = Duration::from_secs(5);

/// Who speaks for one pod's folder.
#[derive(Debug)]
pub(in crate::agent::workloads) struct Directory {
    /// The pod.
    pub(in crate::agent::workloads) pod: PodUid,
    /// Where its folder lies.
    pub(in crate::agent::workloads) path: PathBuf,
    /// Whether it was filled by an agent before this one.
    pub(in crate::agent::workloads) coming: Coming,
    /// Told when it is filled.
    pub(in crate::agent::workloads) tell: watch::Sender<Fill>,
    /// Whether its containers have ended, so that nobody writes any more.
    pub(in crate::agent::workloads) vacated: watch::Receiver<bool>,
    /// Largest part.
    pub(in crate::agent::workloads) chunk: u64,
    /// Who tells who writes.
    pub(in crate::agent::workloads) proc: Proc,
    /// Who tells how fast the node stores.
    pub(in crate::agent::workloads) scheduler: Scheduler,
    /// The time.
    pub(in crate::agent::workloads) clock: Clock,
    /// Where blocking work runs.
    pub(in crate::agent::workloads) offload: Offload,
}

/// Why a save was not gone on with.
#[derive(Debug)]
enum Off {
    /// It was called off, or began anew under another number.
    Called(Option<Told>),
    /// The line is cut.
    Cut,
}

impl Directory {
    /// Speaks until the line is cut.
    pub(in crate::agent::workloads) async fn serve(self, mut seat: Seat) {
        match open(&self.path) {
            Ok((folder, renames)) => self.speak(&mut seat, (folder, renames)).await,
            Err(error) => self.failed(Chain(&error).to_string()),
        }
        seat.leave().await;
    }

    async fn speak(&self, seat: &mut Seat, (folder, renames): (Arc<Folder>, Option<Renames>)) {
        seat.greet(self.coming).await;
        if self.coming == Coming::First {
            let mut filling = Filling::new(Arc::clone(&folder), self.offload);
            match self.fill(seat, &mut filling).await {
                Ok(()) => _ = self.tell.send_replace(Fill::Done),
                Err(why) => return self.failed(why),
            }
        }
        let means = (self.proc.clone(), self.offload);
        let mut finder = Finder::new(self.pod.clone(), (folder, renames), means);
        let mut cause = Cause::Unknown;
        let mut next = None;
        loop {
            let said = match next.take() {
                Some(said) => Some(said),
                None => seat.hear().await,
            };
            match said {
                None => return,
                Some(Told::Asked(why)) => cause = why,
                Some(Told::Save(at)) => match self.save(seat, &mut finder, (&at, cause)).await {
                    Ok(()) => (),
                    Err(Off::Called(said)) => next = said,
                    Err(Off::Cut) => return,
                },
                Some(_) => (),
            }
        }
    }

    fn failed(&self, why: String) {
        warn!(pod = %self.pod, why, "folder not filled");
        self.tell.send_replace(Fill::Failed(why));
    }

    /// Asks for the newest state, and puts it into the folder; returns once that is claimed.
    async fn fill(&self, seat: &mut Seat, filling: &mut Filling) -> Result<(), String> {
        let failed = |error: FillError| Chain(&error).to_string();
        filling.clear().map_err(failed)?;
        seat.say(FromWorkload::Restore(Restore { newer_than: None })).await;
        while let Some(told) = seat.hear().await {
            match told {
                Told::Offer(offer) => {
                    let restore = offer.restore;
                    let answer = match filling.begin(&offer.layout) {
                        Ok(()) => FromWorkload::Accept(Accept { restore }),
                        Err(error) => {
                            FromWorkload::Decline(Decline { restore, reason: failed(error) })
                        }
                    };
                    seat.say(answer).await;
                }
                Told::Ring(ring) => filling.lend(ring),
                Told::Filled(slot) => {
                    filling.take(&slot).await.map_err(failed)?;
                    let (restore, slot) = (slot.restore, slot.slot);
                    seat.say(FromWorkload::Emptied(Emptied { restore, slot })).await;
                }
                Told::Waits(why) => _ = self.tell.send_replace(Fill::UnderWay(why)),
                Told::Begins => return filling.finish().map_err(failed),
                Told::Never(why) => return Err(why),
                Told::Asked(_) | Told::Save(_) | Told::Sooner | Told::CalledOff | Told::Other => (),
            }
        }
        Err("the agent gave it up".to_owned())
    }

    /// Hands over what is whole.
    async fn save(
        &self,
        seat: &mut Seat,
        finder: &mut Finder,
        (at, cause): (&SaveAt, Cause),
    ) -> Result<(), Off> {
        let save = at.save;
        // Whoever is ended by others may write to its last moment, and its folder stays longer.
        if cause == Cause::Ending {
            self.until_vacated(seat, at).await?;
        }
        let since = Instant::now();
        let opened = loop {
            match finder.look(self.glance(at, since)).await {
                Looked::Whole(opened) => break opened,
                Looked::Refused(reason) => {
                    seat.refuse(save, reason).await;
                    return Ok(());
                }
                Looked::Again(pause) => heard_within(seat, pause).await?,
            }
        };
        let Opened { layout, parts } = opened;
        let bytes = layout.bytes();
        seat.say(FromWorkload::SaveBegin(SaveBegin { save, step: 0, layout })).await;
        seat.hand_over(save, parts).await;
        seat.say(FromWorkload::SaveEnd(SaveEnd { save, bytes })).await;
        Ok(())
    }

    fn glance(&self, at: &SaveAt, since: Instant) -> Glance {
        let left = self.left(at);
        let hurry = left.is_some_and(|left| left <= LAST_LOOK) && !*self.vacated.borrow();
        let last = hurry || (left.is_none() && since.elapsed() >= NO_HURRY);
        Glance {
            since,
            room: left.map(|left| budget::room(self.scheduler.rate(), left)),
            time: if last { Time::Over } else { Time::Enough },
            chunk: if at.chunk_bytes == 0 { self.chunk } else { at.chunk_bytes },
        }
    }

    fn left(&self, at: &SaveAt) -> Option<Duration> {
        let deadline = at.deadline?.boottime_ns;
        Some(Duration::from_nanos(deadline.saturating_sub(self.clock.boottime())))
    }

    /// Waits until the containers have ended, or should have, or time became dearer.
    async fn until_vacated(&self, seat: &mut Seat, at: &SaveAt) -> Result<(), Off> {
        let left = self.left(at).unwrap_or_default() + GRACE_OVER;
        let mut vacated = self.vacated.clone();
        let until = Instant::now() + left;
        loop {
            tokio::select! {
                biased;
                _ = vacated.wait_for(|vacated| *vacated) => return Ok(()),
                said = seat.hear() => match said {
                    Some(Told::Sooner) => return Ok(()),
                    said => passed_over(said)?,
                },
                () = tokio::time::sleep_until(until) => return Ok(()),
            }
        }
    }
}

/// What was said while a save goes on: only its end matters.
fn passed_over(said: Option<Told>) -> Result<(), Off> {
    match said {
        None => Err(Off::Cut),
        Some(Told::CalledOff) => Err(Off::Called(None)),
        Some(anew @ (Told::Asked(_) | Told::Save(_))) => Err(Off::Called(Some(anew))),
        Some(_) => Ok(()),
    }
}

/// Pauses, but for what ends the save.
async fn heard_within(seat: &mut Seat, pause: Duration) -> Result<(), Off> {
    let until = Instant::now() + pause;
    while let Ok(said) = tokio::time::timeout_at(until, seat.hear()).await {
        passed_over(said)?;
    }
    Ok(())
}

/// The folder, and what is renamed in it from now on.
fn open(path: &Path) -> io::Result<(Arc<Folder>, Option<Renames>)> {
    let folder = Arc::new(Folder::open(path)?);
    let renames = Renames::listen(path);
    if let Err(error) = &renames {
        warn!(path = %path.display(), error = %Chain(error), "renames not heard: only markers and stillness count");
    }
    Ok((folder, renames.ok()))
}

//! What the registry knows, as facts for the node's plan.

use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::ids::Epoch;
use lifeboat_domain::ids::Step;
use lifeboat_domain::node::facts::Quiet;
use lifeboat_domain::node::facts::Restore;
use lifeboat_domain::node::facts::Session;

use crate::agent::workloads::Known;
use crate::agent::workloads::life;
use crate::agent::workloads::life::Deed;
use crate::agent::workloads::life::Life;
use crate::agent::workloads::life::Speaker;
use crate::agent::workloads::registry::Pod;
use crate::agent::workloads::registry::Registry;
use crate::agent::workloads::session::State;

impl Registry {
    /// What is known of every pod.
    pub(super) fn known(&self) -> Vec<Known> {
        self.pods.values().map(|pod| self.known_of(pod)).collect()
    }

    fn known_of(&self, pod: &Pod) -> Known {
        let life = pod.life.and_then(|id| self.lives.get(&id));
        let own = || self.sessions.values().filter(|one| one.pod == pod.entry.pod.uid);
        let said = || own().filter(|one| one.member.is_some());
        let sizes: u64 = said().filter_map(|one| one.bytes).sum();
        let saved = life.and_then(|life| life.saved).map(|stored| stored.bytes);
        Known {
            pod: pod.entry.pod.clone(),
            session: life.map_or(Session::None, |life| session(life, said().count())),
            asked: pod.asked,
            checkpoint: self.checkpoint(pod),
            insurance: life.and_then(|life| life.insurance),
            finished: life.and_then(|life| Some((life.identity.job_key.clone()?, life.finished?))),
            size: Some(sizes).filter(|sizes| *sizes > 0).or(saved),
            step_time: said().filter_map(|one| one.step_time).max(),
            stall: life.and_then(|life| life.stall),
            background_since: life
                .and_then(|life| life.background_since(self.means.spool.as_ref())),
            quiet: quiet(life, said()),
            terminating: said().filter_map(|one| one.terminating).map(|(at, _)| at).min(),
            restore: life.map_or(Restore::No, restore),
            pids: said().filter_map(|one| one.pid).collect(),
            step: said().filter_map(|one| one.step).max().map(Step),
        }
    }
}

fn session(life: &Life, connected: usize) -> Session {
    if let Deed::Saving(save) = &life.deed
        && let Some(bytes) = save.announced(life.identity.world)
    {
        return Session::HandedOver { bytes: Some(bytes) };
    }
    if connected == 0 { Session::None } else { Session::Open }
}

fn quiet<'a>(life: Option<&Life>, sessions: impl Iterator<Item = &'a life::Session>) -> Quiet {
    let for_insurance = life.is_some_and(|life| match &life.deed {
        Deed::Saving(save) => save.purpose.goes_on(),
        Deed::Nothing
        | Deed::Looking { .. }
        | Deed::Claiming { .. }
        | Deed::Restoring { .. }
        | Deed::Finishing { .. } => false,
    });
    // What a stand-in speaks for runs on, whatever the stand-in does.
    let mut sessions = sessions.filter(|one| one.speaker == Speaker::Itself).peekable();
    if sessions.peek().is_none() {
        return Quiet::Unknown;
    }
    let parked = sessions.all(|one| match one.state {
        State::Parked => true,
        State::Handing { .. } | State::Handed { .. } => !for_insurance,
        State::New
        | State::Running
        | State::Restoring
        | State::Asked { .. }
        | State::Ready { .. }
        | State::Due { .. }
        | State::Finishing
        | State::Finished => false,
    });
    if parked { Quiet::Parked } else { Quiet::Running }
}

fn restore(life: &Life) -> Restore {
    let (Deed::Restoring { waiting, .. } | Deed::Claiming { waiting, .. }) = &life.deed else {
        return Restore::No;
    };
    if let Some(proof) = *life.proof.borrow() {
        return Restore::Allowed { proof };
    }
    let waiting = waiting.borrow();
    let Some(holder) = waiting.as_ref() else { return Restore::No };
    match holder.from.parse() {
        Ok(from) => Restore::Waiting {
            epoch: Epoch(holder.epoch),
            from,
            deadline: holder.deadline.map(Deadline::new),
            proof: None,
        },
        // Who made it cannot be told: only its deadline opens the gate.
        Err(_) => Restore::Unknown,
    }
}

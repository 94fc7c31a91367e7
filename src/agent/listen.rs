//! What the agent hears: EC2 through IMDS, and its own node's objects while the API server is there.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::signal::Action;
use lifeboat_domain::signal::Heard;
use lifeboat_domain::signal::Kind;
use lifeboat_domain::signal::Signal;
use lifeboat_domain::signal::Signals;
use lifeboat_domain::signal::Source;
use tokio::time::MissedTickBehavior;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::adapters::imds;
use crate::adapters::imds::Identity;
use crate::adapters::imds::Imds;
use crate::adapters::imds::ImdsError;
use crate::adapters::imds::InstanceAction;
use crate::agent::bell::Bell;
use crate::agent::bell::Ear;
use crate::agent::records::NoticeRecord;
use crate::agent::records::Records;
use crate::clock::Clock;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

pub mod objects;

/// Polls while the service is switched off: somebody may switch it on.
const SWITCHED_OFF_POLL: Duration = Duration::from_secs(30);

/// What was heard so far, shared with the loop.
#[derive(Debug, Clone)]
pub struct Ears {
    heard: Arc<Mutex<NoticeRecord>>,
    instance: Arc<Mutex<Option<Identity>>>,
    bell: Bell,
    records: Records,
    clock: Clock,
    name: String,
}

impl Ears {
    /// What a life before this one heard, and room for more. `name` is who hears.
    pub async fn load(records: Records, clock: Clock, name: &str, bell: Bell) -> Self {
        let heard = records.notice().await;
        Self {
            heard: Arc::new(Mutex::new(heard)),
            instance: Arc::default(),
            bell,
            records,
            clock,
            name: name.to_owned(),
        }
    }

    /// What this agent itself was told of its instance, now and before.
    pub fn signals(&self) -> Signals {
        self.heard().signals.clone()
    }

    /// The instance, as soon as it is known.
    pub fn instance(&self) -> Option<InstanceId> {
        self.heard().instance.clone()
    }

    /// What the instance is, once IMDS said so in this life.
    pub fn identity(&self) -> Option<Identity> {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Hears of news.
    pub fn ear(&self) -> Ear {
        self.bell.ear()
    }

    /// Asks the metadata service each second, for ever.
    pub async fn follow_imds(&self, mut imds: Imds) {
        let mut ticks = tokio::time::interval(imds::POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silence = None;
        loop {
            ticks.tick().await;
            let told = self.poll(&mut imds).await;
            silence = note(silence, told.as_ref().err());
            if let Err(ImdsError::SwitchedOff) = told {
                tokio::time::sleep(SWITCHED_OFF_POLL).await;
            }
        }
    }

    /// The announcement comes first: who we are can wait.
    async fn poll(&self, imds: &mut Imds) -> Result<(), ImdsError> {
        if let Some(action) = imds.instance_action().await? {
            self.hear(announced(&action, self.clock.now(), &self.name)).await;
        }
        if let Some(time) = imds.rebalance().await? {
            self.hear(recommended(time, self.clock.now(), &self.name)).await;
        }
        if self.identity().is_none() {
            self.meet(imds.identity().await?).await;
        }
        Ok(())
    }

    /// Takes a signal in, wakes the loop, and only then writes.
    async fn hear(&self, signal: Signal) {
        let label = signal.kind.label();
        let age = elapsed(signal.time, signal.heard_at);
        let deadline = signal.deadline();
        if self.heard().signals.hear(signal) == Heard::Known {
            return;
        }
        self.bell.ring();
        metrics::signal_received(label, Source::Imds.label());
        metrics::signal_age(Source::Imds.label(), age);
        let named = deadline.map(|deadline| deadline.to_string());
        info!(kind = label, deadline = named, "EC2 announced it through IMDS");
        self.keep().await;
    }

    async fn meet(&self, identity: Identity) {
        let id: Option<InstanceId> = match identity.instance_id.parse() {
            Ok(id) => Some(id),
            Err(refused) => {
                warn!(error = %Chain(&refused), "instance id not taken from IMDS");
                None
            }
        };
        let moved = {
            let mut heard = self.heard();
            // A disk that was another instance's brings no notice with it.
            let moved = heard.instance != id && heard.instance.is_some() && id.is_some();
            if moved {
                heard.signals = Signals::default();
            }
            heard.instance = id.or(heard.instance.take());
            moved
        };
        if moved {
            warn!("records of another instance lay on this disk; its notice was forgotten");
        }
        *self.instance.lock().unwrap_or_else(PoisonError::into_inner) = Some(identity);
        self.bell.ring();
        self.keep().await;
    }

    /// Best effort: without it an agent that restarts hears from IMDS again within a second.
    async fn keep(&self) {
        let heard = self.heard().clone();
        if let Err(error) = self.records.keep_notice(&heard).await {
            warn!(error = %Chain(&error), "notice not kept on disk");
        }
    }

    fn heard(&self) -> MutexGuard<'_, NoticeRecord> {
        // Nothing that can panic runs under the lock.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs the beginning and the end of a silence, once each, by the kind of trouble.
fn note(before: Option<&'static str>, now: Option<&ImdsError>) -> Option<&'static str> {
    let label = now.map(Classify::label);
    if let Some(error) = now {
        metrics::error("imds", error.label());
    }
    match now {
        Some(failed) if before != label => {
            error!(error = %Chain(failed), "IMDS tells us nothing; notices come by queue alone");
        }
        None if before.is_some() => info!("IMDS tells us again"),
        Some(_) | None => (),
    }
    label
}

/// IMDS says when the instance goes, not when that was announced: that counts from our hearing.
fn announced(action: &InstanceAction, now: Timestamp, name: &str) -> Signal {
    let kind = Kind::SpotInterruption {
        action: match action.action {
            imds::Action::Terminate => Action::Terminate,
            imds::Action::Stop => Action::Stop,
            imds::Action::Hibernate => Action::Hibernate,
            imds::Action::Unknown => Action::Unknown,
        },
    };
    Signal {
        source: Source::Imds,
        kind,
        time: now,
        named: action.time.map(Deadline::new),
        heard_at: now,
        heard_by: name.to_owned(),
        detail: None,
    }
}

fn recommended(time: Timestamp, now: Timestamp, name: &str) -> Signal {
    Signal {
        source: Source::Imds,
        kind: Kind::RebalanceRecommendation,
        time,
        named: None,
        heard_at: now,
        heard_by: name.to_owned(),
        detail: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_deadline_is_the_one_that_was_announced() {
        let action = |time| InstanceAction { action: imds::Action::Terminate, time };
        for (time, deadline) in [(Some(at(1120)), 1120), (Some(at(1045)), 1045), (None, 1120)] {
            let signal = announced(&action(time), at(1000), "agent");
            assert_eq!(signal.deadline(), Some(Deadline::new(at(deadline))));
        }
    }
}

//! What EC2 knows: instances, what was said about them, and what their metadata services answer.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

pub mod announce;
pub mod events;

/// All instances of the simulated region, by id.
#[derive(Debug)]
pub struct Instances {
    all: BTreeMap<String, Instance>,
    account: String,
    region: String,
    events: u64,
}

/// One EC2 instance.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its id, `i-…`.
    pub id: String,
    /// Its availability zone.
    pub zone: String,
    /// Its type.
    pub instance_type: String,
    /// How it was bought.
    pub purchase: Purchase,
    /// Where it is in its life.
    pub state: InstanceState,
    /// When it came into that state.
    pub since: Timestamp,
    /// The interruption notice, once EC2 has given one.
    pub notice: Option<Notice>,
    /// Since when a rebalance recommendation stands.
    pub rebalance: Option<Timestamp>,
    /// How its metadata service behaves.
    pub imds: ImdsMode,
    tokens: BTreeMap<String, Timestamp>,
    tokens_given: u64,
}

/// What can be bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offering<'a> {
    /// The instance type.
    pub instance_type: &'a str,
    /// The availability zone.
    pub zone: &'a str,
    /// At which price.
    pub purchase: Purchase,
}

/// How an instance was bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purchase {
    /// As spare capacity; may be taken.
    Spot,
    /// At its full price.
    OnDemand,
}

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstanceState {
    /// Being launched.
    Pending,
    /// Running.
    Running,
    /// Being taken; its processes may be gone any moment.
    ShuttingDown,
    /// Gone.
    Terminated,
}

/// An interruption notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What will happen.
    pub action: NoticeAction,
    /// When it was given.
    pub at: Timestamp,
    /// When it will happen; EC2 says two minutes on, but may say less.
    pub time: Timestamp,
    /// From when on the metadata service shows it, `None` if it never does.
    pub imds_from: Option<Timestamp>,
}

/// What an interruption does to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeAction {
    /// It is terminated.
    Terminate,
    /// It is stopped.
    Stop,
    /// It is hibernated, which begins at once.
    Hibernate,
}

/// How a metadata service behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImdsMode {
    /// As documented.
    #[default]
    Answers,
    /// No answer to the token request: what a hop limit of 1 looks like from a pod.
    TokenNeverAnswers,
    /// 503 to everything: throttled.
    Throttled,
    /// 403 to everything: switched off.
    Off,
}

impl Default for Instances {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            account: "123456789012".to_owned(),
            region: "us-east-2".to_owned(),
            events: 0,
        }
    }
}

impl Instances {
    /// The account that owns all instances.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The region they are in.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Adds an instance that is running.
    pub fn launch(&mut self, id: &str, offering: Offering<'_>, now: Timestamp) {
        let instance = Instance {
            id: id.to_owned(),
            zone: offering.zone.to_owned(),
            instance_type: offering.instance_type.to_owned(),
            purchase: offering.purchase,
            state: InstanceState::Running,
            since: now,
            notice: None,
            rebalance: None,
            imds: ImdsMode::default(),
            tokens: BTreeMap::new(),
            tokens_given: 0,
        };
        self.all.insert(id.to_owned(), instance);
    }

    /// One instance.
    pub fn get(&self, id: &str) -> Option<&Instance> {
        self.all.get(id)
    }

    /// One instance, to be changed.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut Instance> {
        self.all.get_mut(id)
    }

    /// All instances, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.all.values()
    }

    /// Gives an interruption notice; who hears of it by a queue is told by an event.
    ///
    /// A second notice can only make the time nearer, as a deadline only tightens.
    pub fn announce(&mut self, id: &str, notice: Notice) {
        if let Some(instance) = self.all.get_mut(id) {
            let earlier = instance.notice.filter(|old| old.time <= notice.time);
            instance.notice = Some(earlier.unwrap_or(notice));
        }
    }

    /// Recommends to move away from an instance.
    pub fn recommend(&mut self, id: &str, now: Timestamp) {
        if let Some(instance) = self.all.get_mut(id) {
            instance.rebalance.get_or_insert(now);
        }
    }

    /// Takes an instance: it is shutting down. Tells whether it was not before.
    pub fn take(&mut self, id: &str, now: Timestamp) -> bool {
        self.enter(id, InstanceState::ShuttingDown, now)
    }

    /// An instance that was taken is gone. Tells whether it was not before.
    pub fn terminated(&mut self, id: &str, now: Timestamp) -> bool {
        self.enter(id, InstanceState::Terminated, now)
    }

    /// The instances whose hour has come and that nobody has taken yet.
    pub fn due(&self, now: Timestamp) -> Vec<String> {
        let due = |instance: &&Instance| instance.hour().is_some_and(|hour| hour <= now);
        self.all.values().filter(due).map(|instance| instance.id.clone()).collect()
    }

    /// When the next running instance is to be taken.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.all.values().filter_map(Instance::hour).min()
    }

    /// The number of the next event; events are told apart by it.
    pub fn next_event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    fn enter(&mut self, id: &str, state: InstanceState, now: Timestamp) -> bool {
        let Some(instance) = self.all.get_mut(id) else { return false };
        if instance.state >= state {
            return false;
        }
        instance.state = state;
        instance.since = now;
        true
    }
}

impl Instance {
    /// The node's `spec.providerID`.
    pub fn provider_id(&self) -> String {
        format!("aws:///{}/{}", self.zone, self.id)
    }

    /// When it is to be taken, if that still lies before it.
    pub fn hour(&self) -> Option<Timestamp> {
        let living = self.state < InstanceState::ShuttingDown;
        self.notice.filter(|_| living).map(|notice| notice.time)
    }

    /// Hands out a session token of the metadata service.
    pub fn token(&mut self, lives: Duration, now: Timestamp) -> String {
        self.tokens.retain(|_, expiry| *expiry > now);
        self.tokens_given += 1;
        let token = format!("token-{}-{}", self.id, self.tokens_given);
        self.tokens.insert(token.clone(), now + lives);
        token
    }

    /// Whether a session token is one of ours and lives.
    pub fn knows(&self, token: &str, now: Timestamp) -> bool {
        self.tokens.get(token).is_some_and(|expiry| *expiry > now)
    }

    /// Makes all session tokens unknown, as a restart of the metadata service does.
    pub fn forget_tokens(&mut self) {
        self.tokens.clear();
    }

    /// The notice as far as the metadata service shows it.
    pub fn notice_in_imds(&self, now: Timestamp) -> Option<Notice> {
        self.notice.filter(|notice| notice.imds_from.is_some_and(|from| from <= now))
    }
}

impl NoticeAction {
    /// As EC2 writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
        }
    }
}

impl Purchase {
    /// As the metadata service writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::OnDemand => "on-demand",
        }
    }
}

impl InstanceState {
    /// As EC2 writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERING: Offering<'static> =
        Offering { instance_type: "g5.xlarge", zone: "us-east-2a", purchase: Purchase::Spot };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn notice(time: Timestamp) -> Notice {
        Notice { action: NoticeAction::Terminate, at: at(0), time, imds_from: Some(at(3)) }
    }

    #[test]
    fn a_second_notice_cannot_make_the_hour_later() {
        let mut instances = Instances::default();
        instances.launch("i-1", OFFERING, at(0));
        instances.announce("i-1", notice(at(120)));
        instances.announce("i-1", notice(at(150)));
        assert_eq!(instances.next_due(), Some(at(120)));
        instances.announce("i-1", notice(at(45)));
        assert_eq!(instances.next_due(), Some(at(45)));
        assert!(instances.due(at(44)).is_empty());
        assert_eq!(instances.due(at(45)), ["i-1"]);
        assert!(instances.take("i-1", at(45)) && !instances.take("i-1", at(46)));
        assert!(instances.due(at(46)).is_empty());
    }

    #[test]
    fn a_notice_shows_in_the_metadata_from_its_own_time_on() {
        let mut instances = Instances::default();
        instances.launch("i-1", OFFERING, at(0));
        instances.announce("i-1", notice(at(120)));
        let instance = instances.get("i-1").unwrap();
        assert_eq!(instance.notice_in_imds(at(2)), None);
        assert!(instance.notice_in_imds(at(3)).is_some());
        assert_eq!(instance.provider_id(), "aws:///us-east-2a/i-1");
    }
}

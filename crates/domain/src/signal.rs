//! What EC2 said about an instance, or that a protected pod is being ended, and how tellings merge.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::Serialize;

use crate::deadline::Deadline;

/// From the interruption notice to the interruption.
///
/// Not so for hibernation, which begins at once.
///
/// Source: EC2 User Guide, "Spot Instance interruption notices".
pub const NOTICE: Duration = Duration::from_mins(2);

/// One thing that was told, by one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signal {
    /// Who told it.
    pub source: Source,
    /// What was told.
    pub kind: Kind,
    /// When it was announced, by its own words; when it was heard, if it has no such words.
    pub time: Timestamp,
    /// The deadline it names itself, if it does (IMDS names one, the event does not).
    pub named: Option<Deadline>,
    /// When we heard it.
    pub heard_at: Timestamp,
    /// The program of ours that heard it.
    pub heard_by: String,
    /// What people may want to read about it.
    pub detail: Option<String>,
}

/// Who told a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// EventBridge, through our queue.
    Queue,
    /// The instance metadata service, on the node itself.
    Imds,
    /// The API server: a deletion timestamp on a protected pod.
    Kubernetes,
    /// The workload: its SDK saw SIGTERM.
    Workload,
    /// One that only a later version knows.
    #[serde(other)]
    Unknown,
}

/// What was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kind {
    /// EC2 takes the Spot instance back.
    SpotInterruption {
        /// What becomes of the instance.
        action: Action,
    },
    /// EC2 thinks that the instance is at elevated risk.
    RebalanceRecommendation,
    /// AWS Health: the instance is retired, stopped or rebooted.
    ScheduledChange,
    /// The instance changed its state.
    StateChange {
        /// Into which.
        state: InstanceState,
    },
    /// The owner of an interruptible capacity reservation takes it back.
    CapacityReservation,
    /// A protected pod is being ended, by anyone.
    PodEnding,
    /// One that only a later version knows.
    #[serde(other)]
    Unknown,
}

/// What becomes of a Spot instance at its interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is gone for good.
    Terminate,
    /// It is stopped, and keeps its id.
    Stop,
    /// It is hibernated, which begins at once, and keeps its id.
    Hibernate,
    /// One that only a later version knows; taken for an end.
    #[serde(other)]
    Unknown,
}

/// The state of an EC2 instance.
///
/// Source: EC2 User Guide, "Instance lifecycle".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// Being started.
    Pending,
    /// In use.
    Running,
    /// On its way to `stopped`.
    Stopping,
    /// Not running, to be started again.
    Stopped,
    /// On its way to `terminated`.
    ShuttingDown,
    /// Gone for good.
    Terminated,
    /// One that only a later version knows.
    #[serde(other)]
    Unknown,
}

/// Everything that was told about one instance: one entry for each source and kind, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signals {
    told: BTreeMap<SignalKey, Signal>,
}

/// What tells the entries of one record apart; as text `<source>-<kind>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct SignalKey {
    source: Source,
    kind: KindLabel,
}

/// The label of a kind, from the closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct KindLabel(&'static str);

/// Whether a signal told us anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The first of its source and kind.
    New,
    /// One that we had: nothing is changed.
    Known,
}

impl Signals {
    /// Takes one more signal in; what was told before stays as it was.
    pub fn hear(&mut self, signal: Signal) -> Heard {
        match self.told.entry(signal.key()) {
            Entry::Occupied(_) => Heard::Known,
            Entry::Vacant(place) => {
                place.insert(signal);
                Heard::New
            }
        }
    }

    /// What both were told. Where both have an entry, the one heard earlier stays.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for (key, signal) in other.told {
            match self.told.entry(key) {
                Entry::Occupied(mut place) => {
                    if signal.order() < place.get().order() {
                        place.insert(signal);
                    }
                }
                Entry::Vacant(place) => {
                    place.insert(signal);
                }
            }
        }
        self
    }

    /// The earliest deadline of all that was told. None while there is only advice.
    pub fn deadline(&self) -> Option<Deadline> {
        self.told.values().filter_map(Signal::deadline).reduce(Deadline::tighten)
    }

    /// When the first signal that has a deadline was announced (T0).
    pub fn noticed_at(&self) -> Option<Timestamp> {
        self.with_deadline().map(|signal| signal.time).min()
    }

    /// When we were last advised that the instance is at risk.
    pub fn advised_at(&self) -> Option<Timestamp> {
        let advice = |signal: &&Signal| signal.kind == Kind::RebalanceRecommendation;
        self.told.values().filter(advice).map(|signal| signal.time).max()
    }

    /// The kind by which the interruption is known to people: that of the earliest deadline, or
    /// of the advice.
    pub fn kind(&self) -> Kind {
        let first = self.with_deadline().min_by_key(|signal| signal.deadline());
        let any = || self.told.values().next();
        first.or_else(any).map_or(Kind::Unknown, |signal| signal.kind)
    }

    /// All entries, ordered by source and kind.
    pub fn iter(&self) -> impl Iterator<Item = &Signal> {
        self.told.values()
    }

    /// Whether nothing was told.
    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    fn with_deadline(&self) -> impl Iterator<Item = &Signal> {
        self.told.values().filter(|signal| signal.deadline().is_some())
    }
}

impl FromIterator<Signal> for Signals {
    fn from_iter<I: IntoIterator<Item = Signal>>(signals: I) -> Self {
        let mut all = Self::default();
        for signal in signals {
            all = all.merge(Self { told: BTreeMap::from([(signal.key(), signal)]) });
        }
        all
    }
}

impl Signal {
    /// The name of its entry in the record.
    pub fn key(&self) -> SignalKey {
        SignalKey { source: self.source, kind: KindLabel(self.kind.label()) }
    }

    /// When the instance may be gone, by this signal. Advice has none.
    pub fn deadline(&self) -> Option<Deadline> {
        let at_once = Deadline::new(self.time);
        match self.kind {
            Kind::SpotInterruption { action: Action::Hibernate } => Some(at_once),
            Kind::SpotInterruption {
                action: Action::Terminate | Action::Stop | Action::Unknown,
            }
            | Kind::CapacityReservation => {
                Some(self.named.unwrap_or(Deadline::after(self.time, NOTICE)))
            }
            Kind::ScheduledChange | Kind::PodEnding => self.named,
            Kind::StateChange { state } => state.is_leaving().then_some(at_once),
            Kind::RebalanceRecommendation | Kind::Unknown => None,
        }
    }

    /// Earlier heard first; the rest only makes the order total.
    fn order(&self) -> impl Ord {
        (self.heard_at, self.time, self.named, self.kind, &self.heard_by, &self.detail)
    }
}

impl Source {
    const ALL: [Self; 5] =
        [Self::Queue, Self::Imds, Self::Kubernetes, Self::Workload, Self::Unknown];

    /// Its name in metrics, records and field managers.
    pub fn label(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Imds => "imds",
            Self::Kubernetes => "kubernetes",
            Self::Workload => "workload",
            Self::Unknown => "unknown",
        }
    }
}

impl Kind {
    const LABELS: [&str; 7] = [
        "spot-interruption",
        "rebalance-recommendation",
        "scheduled-change",
        "state-change",
        "capacity-reservation",
        "pod-ending",
        "unknown",
    ];

    /// Its name in metrics and records, and the value of the taint.
    pub fn label(self) -> &'static str {
        match self {
            Self::SpotInterruption { .. } => "spot-interruption",
            Self::RebalanceRecommendation => "rebalance-recommendation",
            Self::ScheduledChange => "scheduled-change",
            Self::StateChange { .. } => "state-change",
            Self::CapacityReservation => "capacity-reservation",
            Self::PodEnding => "pod-ending",
            Self::Unknown => "unknown",
        }
    }
}

impl InstanceState {
    /// Whether an instance in this state runs nothing any more, or soon will not.
    pub fn is_leaving(self) -> bool {
        match self {
            Self::Stopping | Self::Stopped | Self::ShuttingDown | Self::Terminated => true,
            Self::Pending | Self::Running | Self::Unknown => false,
        }
    }
}

impl fmt::Display for SignalKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.source.label(), self.kind.0)
    }
}

impl From<SignalKey> for String {
    fn from(key: SignalKey) -> Self {
        key.to_string()
    }
}

impl From<String> for SignalKey {
    /// A source or kind that only a later version knows becomes `unknown`.
    fn from(text: String) -> Self {
        let (source, kind) = text.split_once('-').unwrap_or((&text, ""));
        let source = Source::ALL.into_iter().find(|known| known.label() == source);
        let kind = Kind::LABELS.into_iter().find(|known| *known == kind);
        Self {
            source: source.unwrap_or(Source::Unknown),
            kind: KindLabel(kind.unwrap_or(Kind::Unknown.label())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn signal(source: Source, kind: Kind, time: i64, named: Option<i64>) -> Signal {
        Signal {
            source,
            kind,
            time: at(time),
            named: named.map(|seconds| Deadline::new(at(seconds))),
            heard_at: at(time),
            heard_by: "agent".to_owned(),
            detail: None,
        }
    }

    const NOTICED: Kind = Kind::SpotInterruption { action: Action::Terminate };

    #[test]
    fn a_second_notice_cannot_move_the_deadline_later() {
        let mut signals = Signals::default();
        assert_eq!(signals.hear(signal(Source::Imds, NOTICED, 0, Some(45))), Heard::New);
        assert_eq!(signals.hear(signal(Source::Queue, NOTICED, 0, None)), Heard::New);
        assert_eq!(signals.hear(signal(Source::Queue, NOTICED, 60, None)), Heard::Known);
        assert_eq!(signals.deadline(), Some(Deadline::new(at(45))));
        assert_eq!(signals.noticed_at(), Some(at(0)));
        assert_eq!(signals.iter().count(), 2);
    }

    #[test]
    fn advice_has_no_deadline() {
        let signals: Signals =
            [signal(Source::Imds, Kind::RebalanceRecommendation, 0, None)].into_iter().collect();
        assert_eq!(signals.deadline(), None);
        assert_eq!(signals.advised_at(), Some(at(0)));
    }

    #[test]
    fn each_kind_has_its_own_deadline() {
        let hibernate = Kind::SpotInterruption { action: Action::Hibernate };
        let stopping = Kind::StateChange { state: InstanceState::Stopping };
        let running = Kind::StateChange { state: InstanceState::Running };
        let rows = [
            (NOTICED, None, Some(120)),
            (NOTICED, Some(45), Some(45)),
            (hibernate, None, Some(0)),
            (Kind::CapacityReservation, None, Some(120)),
            (Kind::ScheduledChange, Some(86_400), Some(86_400)),
            (Kind::ScheduledChange, None, None),
            (stopping, None, Some(0)),
            (running, None, None),
            (Kind::PodEnding, Some(30), Some(30)),
            (Kind::Unknown, Some(30), None),
        ];
        for (kind, named, expected) in rows {
            let deadline = signal(Source::Queue, kind, 0, named).deadline();
            assert_eq!(deadline, expected.map(|seconds| Deadline::new(at(seconds))), "{kind:?}");
        }
    }

    #[test]
    fn merging_does_not_depend_on_the_order() {
        let early = signal(Source::Queue, NOTICED, 0, None);
        let late = signal(Source::Queue, NOTICED, 9, None);
        let other = signal(Source::Imds, NOTICED, 1, Some(100));
        let one: Signals = [early.clone(), other.clone(), late.clone()].into_iter().collect();
        let two: Signals = [late, other, early].into_iter().collect();
        assert_eq!(one, two);
    }

    #[test]
    fn what_a_later_version_wrote_reads_as_unknown() {
        let text = r#"{"queue-solar-flare": {"source": "queue",
            "kind": {"kind": "solar-flare", "strength": 9}, "time": "2026-11-22T12:00:00Z",
            "named": null, "heardAt": "2026-11-22T12:00:00Z", "heardBy": "x", "detail": null}}"#;
        let signals: Signals = serde_json::from_str(text).unwrap();
        assert_eq!(signals.kind(), Kind::Unknown);
        assert_eq!(signals.deadline(), None);
    }

    #[test]
    fn a_key_is_written_as_source_and_kind() {
        let signals: Signals = [signal(Source::Imds, NOTICED, 0, None)].into_iter().collect();
        let text = serde_json::to_string(&signals).unwrap();
        assert!(text.starts_with(r#"{"imds-spot-interruption":"#), "{text}");
        assert_eq!(serde_json::from_str::<Signals>(&text).unwrap(), signals);
    }
}

//! What EventBridge puts into a message: read strictly enough to refuse what EC2 did not say, loosely
//! enough for what AWS adds.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::ids::Zone;
use lifeboat_domain::signal::Action;
use lifeboat_domain::signal::InstanceState;
use lifeboat_domain::signal::Kind;
use serde::Deserialize;
use serde_json::Value;

/// What EventBridge calls the notice.
pub const INTERRUPTION: &str = "EC2 Spot Instance Interruption Warning";
const REBALANCE: &str = "EC2 Instance Rebalance Recommendation";
const HEALTH: &str = "AWS Health Event";
const STATE_CHANGE: &str = "EC2 Instance State-change Notification";
const CAPACITY_RESERVATION: &str = "EC2 Capacity Reservation Instance Interruption Warning";
/// What it calls all that we read.
pub const EVENTS: [&str; 5] = [INTERRUPTION, REBALANCE, HEALTH, STATE_CHANGE, CAPACITY_RESERVATION];

/// Longest that an event's time may be ahead of our clock.
const AHEAD_MAX: Duration = Duration::from_mins(5);
/// Longest that a queue keeps a message.
///
/// Source: Amazon SQS Developer Guide, "Message quotas", retention.
const AGE_MAX: Duration = Duration::from_hours(14 * 24);
/// Most instances that one event may name: AWS Health lists at most so many entities.
const INSTANCES_MAX: usize = 100;

/// Where we are: what events must be about.
#[derive(Clone, Debug)]
pub struct Home {
    /// Our region.
    pub region: String,
    /// Our account, where it is known.
    pub account: Option<String>,
}

/// An event of EC2 or AWS Health about instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// EventBridge's own id of it.
    pub id: String,
    /// What is going to happen.
    pub kind: Kind,
    /// When EC2 said so.
    pub time: Timestamp,
    /// The deadline that it names itself, as scheduled changes and capacity reservations do.
    pub named: Option<Deadline>,
    /// To which instances; never empty.
    pub instances: Vec<InstanceId>,
    /// Where, if the ARN says it.
    pub zone: Option<Zone>,
}

/// What a message's body is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// An event that may concern us.
    Event(Event),
    /// Readable, and known not to be ours or not to need anything.
    NotOurs(NotOurs),
}

/// Why a readable event does not concern us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOurs {
    /// Another account's.
    Account,
    /// Another region's.
    Region,
    /// A state that an instance stays in, a health event that announces nothing, and the like.
    NothingToDo,
}

/// Why a body is not an event that we can read. It is left to the redrive.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// It is not JSON, or lacks what every event has.
    #[error("the message is not an EventBridge event")]
    Shape(#[from] serde_json::Error),
    /// A sender or kind that our rules do not send us.
    #[error("the message is of no kind that our rules send")]
    Kind,
    /// The part that says which instance.
    #[error("the event names no instance")]
    Instance(#[source] Option<lifeboat_domain::ids::NotAName>),
    /// A time that no live message can have.
    #[error("the event's time `{time}` is not near")]
    Time {
        /// The time that it gives.
        time: Timestamp,
    },
}

impl EventError {
    /// Its name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Shape(_) => "shape",
            Self::Kind => "kind",
            Self::Instance(_) => "instance",
            Self::Time { .. } => "time",
        }
    }
}

/// Reads a message's body, heard at `now`.
pub fn read(body: &[u8], home: &Home, now: Timestamp) -> Result<Reading, EventError> {
    let envelope: Envelope = serde_json::from_slice(body)?;
    // Known senders first: what is not theirs is not even known to be foreign.
    let Some(sender) = Sender::of(&envelope) else { return Err(EventError::Kind) };
    if !is_near(envelope.time, now) {
        return Err(EventError::Time { time: envelope.time });
    }
    if envelope.region != home.region {
        return Ok(Reading::NotOurs(NotOurs::Region));
    }
    if let (Some(named), Some(ours)) = (&envelope.account, &home.account)
        && named != ours
    {
        return Ok(Reading::NotOurs(NotOurs::Account));
    }
    let Some(kind) = sender.kind(&envelope.detail)? else {
        return Ok(Reading::NotOurs(NotOurs::NothingToDo));
    };
    Ok(Reading::Event(Event {
        instances: sender.instances(&envelope.detail)?,
        zone: zone_of(&envelope.resources),
        named: sender.named(&envelope.detail),
        id: envelope.id,
        kind,
        time: envelope.time,
    }))
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    id: String,
    source: String,
    #[serde(rename = "detail-type")]
    detail_type: String,
    /// Emulators, and some of AWS's own samples, leave it out.
    #[serde(default)]
    account: Option<String>,
    region: String,
    time: Timestamp,
    /// A list of ARNs; documented as one bare string for one of the kinds.
    #[serde(default)]
    resources: Value,
    detail: Value,
}

/// Who may send us what.
#[derive(Clone, Copy)]
enum Sender {
    Interruption,
    Rebalance,
    StateChange,
    CapacityReservation,
    Health,
}

impl Sender {
    fn of(envelope: &Envelope) -> Option<Self> {
        match (envelope.source.as_str(), envelope.detail_type.as_str()) {
            ("aws.ec2", INTERRUPTION) => Some(Self::Interruption),
            ("aws.ec2", REBALANCE) => Some(Self::Rebalance),
            ("aws.ec2", STATE_CHANGE) => Some(Self::StateChange),
            ("aws.ec2", CAPACITY_RESERVATION) => Some(Self::CapacityReservation),
            ("aws.health", HEALTH) => Some(Self::Health),
            _ => None,
        }
    }

    /// What is going to happen; `None` if nothing is.
    fn kind(self, detail: &Value) -> Result<Option<Kind>, EventError> {
        let text = |key: &str| detail[key].as_str();
        let kind = match self {
            Self::Interruption => {
                Some(Kind::SpotInterruption { action: action(text("instance-action")) })
            }
            Self::Rebalance => Some(Kind::RebalanceRecommendation),
            Self::StateChange => {
                let state = state(text("state").ok_or(EventError::Kind)?);
                state.is_leaving().then_some(Kind::StateChange { state })
            }
            Self::CapacityReservation => Some(Kind::CapacityReservation),
            Self::Health => {
                let scheduled = text("service") == Some("EC2")
                    && text("eventTypeCategory") == Some("scheduledChange")
                    && text("statusCode") != Some("closed")
                    && !affected(detail).is_empty();
                scheduled.then_some(Kind::ScheduledChange)
            }
        };
        Ok(kind)
    }

    fn named(self, detail: &Value) -> Option<Deadline> {
        let at = match self {
            Self::Interruption | Self::Rebalance | Self::StateChange => None,
            Self::CapacityReservation => detail["instance-termination-time"].as_str()?.parse().ok(),
            Self::Health => health_time(detail["startTime"].as_str()?),
        };
        at.map(Deadline::new)
    }

    fn instances(self, detail: &Value) -> Result<Vec<InstanceId>, EventError> {
        let named: Vec<&str> = match self {
            Self::Interruption
            | Self::Rebalance
            | Self::StateChange
            | Self::CapacityReservation => detail["instance-id"].as_str().into_iter().collect(),
            Self::Health => affected(detail),
        };
        let parsed = named.iter().take(INSTANCES_MAX).map(|name| name.parse::<InstanceId>());
        let instances: Result<Vec<InstanceId>, _> = parsed.collect();
        let instances = instances.map_err(|error| EventError::Instance(Some(error)))?;
        if instances.is_empty() {
            return Err(EventError::Instance(None));
        }
        Ok(instances)
    }
}

/// The instances that AWS Health names, by their id or by an ARN; it also tells of hosts and others.
///
/// Source: AWS Health User Guide, "Reference: AWS Health events Amazon EventBridge schema".
fn affected(detail: &Value) -> Vec<&str> {
    let entities = detail["affectedEntities"].as_array().into_iter().flatten();
    let named = entities.filter_map(|entity| entity["entityValue"].as_str());
    let ids = named.map(|name| name.rsplit_once(":instance/").map_or(name, |(_, id)| id));
    ids.filter(|id| id.starts_with("i-")).collect()
}

fn action(text: Option<&str>) -> Action {
    match text {
        Some("terminate") | None => Action::Terminate,
        Some("stop") => Action::Stop,
        Some("hibernate") => Action::Hibernate,
        Some(_) => Action::Unknown,
    }
}

fn state(text: &str) -> InstanceState {
    match text {
        "pending" => InstanceState::Pending,
        "running" => InstanceState::Running,
        "stopping" => InstanceState::Stopping,
        "stopped" => InstanceState::Stopped,
        "shutting-down" => InstanceState::ShuttingDown,
        "terminated" => InstanceState::Terminated,
        _ => InstanceState::Unknown,
    }
}

/// Not from the future, beyond what clocks differ by, and not older than a queue keeps anything.
fn is_near(time: Timestamp, now: Timestamp) -> bool {
    let ahead = time.duration_since(now);
    let age = now.duration_since(time);
    let within = |span: jiff::SignedDuration, limit: Duration| {
        Duration::try_from(span).map_or(true, |span| span <= limit)
    };
    within(ahead, AHEAD_MAX) && within(age, AGE_MAX)
}

/// The zone in `arn:aws:ec2:<zone>:instance/<id>`, which is how Spot events write it.
///
/// The regular form, which China and other kinds use, has the region there and the account after:
/// then the node's own label says the zone.
fn zone_of(resources: &Value) -> Option<Zone> {
    let first = resources.as_str().or_else(|| resources[0].as_str())?;
    let mut parts = first.splitn(6, ':');
    let (arn, service, place, rest) = (parts.next()?, parts.nth(1)?, parts.next()?, parts.next()?);
    let is_spot_form = arn == "arn" && service == "ec2" && rest.starts_with("instance/");
    let ends_in_letter = place.ends_with(|last: char| last.is_ascii_lowercase());
    if is_spot_form && ends_in_letter { place.parse().ok() } else { None }
}

/// AWS Health writes `Sun, 05 Jun 2022 05:01:10 GMT`.
///
/// Its documented events also have days of the week that are not those of the date.
/// Source: AWS Health User Guide, "Reference: AWS Health events Amazon EventBridge schema".
fn health_time(text: &str) -> Option<Timestamp> {
    let parsed = rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text);
    parsed.ok().or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use serde_json::json;

    /// The instance of AWS's examples.
    const INSTANCE: &str = "i-1234567890abcdef0";
    const SPOT: Kind = Kind::SpotInterruption { action: Action::Terminate };

    fn home() -> Home {
        Home { region: "us-east-2".to_owned(), account: Some("123456789012".to_owned()) }
    }

    fn now() -> Timestamp {
        "2026-11-22T12:00:03Z".parse().unwrap()
    }

    /// An event as AWS documents it; `eventbridge/README.md` says where.
    fn sample(name: &str) -> Value {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eventbridge/samples");
        let text = fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn warning() -> Value {
        sample("spot-interruption")
    }

    fn reading(event: &Value) -> Result<Reading, EventError> {
        read(event.to_string().as_bytes(), &home(), now())
    }

    #[track_caller]
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "a kind may grow")]
    fn check_kind(event: &Value, expected: &Kind) {
        match reading(event).unwrap() {
            Reading::Event(event) => {
                assert_eq!(&event.kind, expected);
                assert_eq!(event.instances[0].as_str(), INSTANCE);
            }
            Reading::NotOurs(why) => panic!("not ours: {why:?}"),
        }
    }

    #[track_caller]
    fn check_not_ours(event: &Value, expected: NotOurs) {
        assert_eq!(reading(event).unwrap(), Reading::NotOurs(expected));
    }

    #[track_caller]
    fn check_unreadable(event: &Value, expected: &str) {
        assert_eq!(reading(event).unwrap_err().label(), expected);
    }

    #[test]
    fn a_spot_warning_names_instance_and_zone() {
        check_kind(&warning(), &SPOT);
        let Ok(Reading::Event(event)) = reading(&warning()) else { panic!() };
        assert_eq!(event.zone.unwrap().as_str(), "us-east-2a");
    }

    #[test]
    fn what_aws_leaves_out_or_adds_does_no_harm() {
        let mut event = warning();
        event.as_object_mut().unwrap().remove("account");
        event["replay-name"] = json!("x");
        event["detail"]["new"] = json!({"a": [1]});
        check_kind(&event, &SPOT);
        for resources in [json!([]), json!(null), json!("x"), json!([17]), json!({"a": 1})] {
            event["resources"] = resources;
            check_kind(&event, &SPOT);
        }
    }

    #[test]
    fn the_regular_arn_of_china_has_no_zone() {
        let event = sample("spot-interruption.china");
        let home = Home { region: "cn-north-1".to_owned(), account: None };
        let Ok(Reading::Event(event)) = read(event.to_string().as_bytes(), &home, now()) else {
            panic!()
        };
        assert_eq!(event.zone, None);
    }

    #[test]
    fn every_sample_is_read_as_what_it_is() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("eventbridge/samples");
        let mut kinds = BTreeSet::new();
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let mut event = sample(name.trim_end_matches(".json"));
            event["region"] = json!("us-east-2");
            let Ok(Reading::Event(event)) = reading(&event) else { panic!("{name}") };
            assert_eq!(event.instances, [INSTANCE.parse::<InstanceId>().unwrap()], "{name}");
            let kind = name.split('.').next().unwrap();
            assert_eq!(event.kind.label(), kind, "{name}");
            kinds.insert(kind.to_owned());
        }
        assert_eq!(kinds.len(), 5, "{kinds:?}");
    }

    #[test]
    fn a_state_says_which() {
        check_kind(
            &sample("state-change"),
            &Kind::StateChange { state: InstanceState::ShuttingDown },
        );
    }

    #[test]
    fn a_capacity_reservation_names_its_end() {
        let Ok(Reading::Event(event)) = reading(&sample("capacity-reservation")) else { panic!() };
        assert_eq!(event.named, Some(Deadline::new("2026-11-22T12:02:00Z".parse().unwrap())));
    }

    /// A scheduled change of these.
    fn health(entities: &[&str]) -> Value {
        let mut event = sample("scheduled-change");
        let entities = entities.iter().map(|entity| json!({"entityValue": entity}));
        event["detail"]["affectedEntities"] = entities.collect();
        event
    }

    #[test]
    fn a_scheduled_change_names_its_start_and_every_instance() {
        let arn = "arn:aws:ec2:us-east-2:123456789012:instance/i-0123abcd";
        let Ok(Reading::Event(event)) = reading(&health(&[INSTANCE, arn])) else { panic!() };
        let start = Deadline::new("2026-12-06T05:01:10Z".parse().unwrap());
        assert_eq!(event.named, Some(start));
        assert_eq!(event.instances.len(), 2);
    }

    #[test]
    fn a_wrong_day_of_the_week_does_no_harm() {
        let mut event = sample("scheduled-change");
        event["detail"]["startTime"] = json!("Thu, 06 Dec 2026 05:01:10 GMT");
        let Ok(Reading::Event(event)) = reading(&event) else { panic!() };
        assert!(event.named.is_some());
    }

    #[test]
    fn a_scheduled_change_of_other_things_is_not_ours() {
        check_not_ours(&health(&[]), NotOurs::NothingToDo);
        check_not_ours(&health(&["h-0123456789abcdef0"]), NotOurs::NothingToDo);
        check_kind(&health(&["h-0123456789abcdef0", INSTANCE]), &Kind::ScheduledChange);
    }

    #[test]
    fn what_announces_nothing_is_not_ours() {
        let mut state = sample("state-change");
        state["detail"]["state"] = json!("running");
        check_not_ours(&state, NotOurs::NothingToDo);
        let mut issue = sample("scheduled-change");
        issue["detail"]["eventTypeCategory"] = json!("issue");
        check_not_ours(&issue, NotOurs::NothingToDo);
    }

    #[test]
    fn another_account_or_region_is_not_ours() {
        let mut event = warning();
        event["account"] = json!("999999999999");
        check_not_ours(&event, NotOurs::Account);
        event["region"] = json!("eu-west-1");
        check_not_ours(&event, NotOurs::Region);
    }

    #[test]
    fn a_forgery_is_unreadable() {
        let mut event = warning();
        event["source"] = json!("my.app");
        check_unreadable(&event, "kind");
        let mut event = warning();
        event["detail"]["instance-id"] = json!("i-0123 or all");
        check_unreadable(&event, "instance");
        event["detail"] = json!("none");
        check_unreadable(&event, "instance");
        let mut event = warning();
        event["time"] = json!("2026-11-22T13:00:00Z");
        check_unreadable(&event, "time");
        event["time"] = json!("2020-01-01T00:00:00Z");
        check_unreadable(&event, "time");
        event["time"] = json!("yesterday");
        check_unreadable(&event, "shape");
        check_unreadable(&json!([]), "shape");
    }

    #[test]
    fn hibernation_is_told_apart() {
        let mut event = warning();
        event["detail"]["instance-action"] = json!("hibernate");
        check_kind(&event, &Kind::SpotInterruption { action: Action::Hibernate });
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let text = warning().to_string();
        for end in 0..text.len() {
            drop(read(&text.as_bytes()[..end], &home(), now()));
        }
        for byte in 0..=255_u8 {
            let mut bytes = text.clone().into_bytes();
            for at in (0..bytes.len()).step_by(7) {
                bytes[at] = byte;
            }
            drop(read(&bytes, &home(), now()));
        }
    }
}

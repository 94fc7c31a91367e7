//! What `EventBridge` puts on a queue about an instance.

use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::world::instances::Instance;
use crate::world::instances::InstanceState;
use crate::world::instances::Instances;
use crate::world::instances::NoticeAction;

/// What an event says about one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Spot takes it in two minutes.
    SpotInterruption(NoticeAction),
    /// It is at elevated risk of being taken.
    RebalanceRecommendation,
    /// AWS Health: it will be retired or restarted at that time.
    ScheduledChange {
        /// When the change begins.
        start: Timestamp,
    },
    /// It came into a state.
    StateChange(InstanceState),
    /// Its interruptible capacity reservation is taken back at that time.
    CapacityReservationInterruption {
        /// When it is terminated.
        termination: Timestamp,
    },
}

impl Instances {
    /// The event's body, as it comes out of the queue; empty for an instance that never was.
    pub fn event(&mut self, id: &str, kind: EventKind, now: Timestamp) -> Value {
        let number = self.next_event();
        let Some(instance) = self.get(id) else { return Value::Null };
        let mut event = json!({
            "version": "0",
            "id": format!("00000000-0000-4000-9000-{number:012}"),
            "detail-type": detail_type(kind),
            "source": source(kind),
            "account": self.account(),
            "time": seconds(now),
            "region": self.region(),
            "resources": [self.resource(instance, kind)],
            "detail": detail(instance, kind),
        });
        if let EventKind::ScheduledChange { .. } = kind {
            event["detail"]["eventRegion"] = json!(self.region());
        }
        event
    }

    /// The ARN that stands in `resources`.
    ///
    /// In a Spot warning the zone stands in place of the region, and there is no account.
    /// Source: EC2 User Guide, "Spot Instance interruption notices".
    fn resource(&self, instance: &Instance, kind: EventKind) -> String {
        match kind {
            EventKind::SpotInterruption(_) => {
                format!("arn:aws:ec2:{}:instance/{}", instance.zone, instance.id)
            }
            EventKind::ScheduledChange { .. } => instance.id.clone(),
            EventKind::RebalanceRecommendation
            | EventKind::StateChange(_)
            | EventKind::CapacityReservationInterruption { .. } => {
                let (region, account) = (self.region(), self.account());
                format!("arn:aws:ec2:{region}:{account}:instance/{}", instance.id)
            }
        }
    }
}

/// The same warning as the China regions write it: the ARN has its regular form, and names region
/// and account.
pub fn as_in_china(mut event: Value) -> Value {
    let id = event["detail"]["instance-id"].as_str().unwrap_or_default().to_owned();
    let account = event["account"].as_str().unwrap_or_default().to_owned();
    event["region"] = json!("cn-north-1");
    event["resources"] = json!([format!("arn:aws-cn:ec2:cn-north-1:{account}:instance/{id}")]);
    event
}

/// A time as AWS writes it in events and metadata: whole seconds.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn detail_type(kind: EventKind) -> &'static str {
    match kind {
        EventKind::SpotInterruption(_) => "EC2 Spot Instance Interruption Warning",
        EventKind::RebalanceRecommendation => "EC2 Instance Rebalance Recommendation",
        EventKind::ScheduledChange { .. } => "AWS Health Event",
        EventKind::StateChange(_) => "EC2 Instance State-change Notification",
        EventKind::CapacityReservationInterruption { .. } => {
            "EC2 Capacity Reservation Instance Interruption Warning"
        }
    }
}

fn source(kind: EventKind) -> &'static str {
    match kind {
        EventKind::ScheduledChange { .. } => "aws.health",
        EventKind::SpotInterruption(_)
        | EventKind::RebalanceRecommendation
        | EventKind::StateChange(_)
        | EventKind::CapacityReservationInterruption { .. } => "aws.ec2",
    }
}

fn detail(instance: &Instance, kind: EventKind) -> Value {
    match kind {
        EventKind::SpotInterruption(action) => {
            json!({ "instance-id": instance.id, "instance-action": action.as_str() })
        }
        EventKind::RebalanceRecommendation => json!({ "instance-id": instance.id }),
        EventKind::StateChange(state) => {
            json!({ "instance-id": instance.id, "state": state.as_str() })
        }
        EventKind::CapacityReservationInterruption { termination } => json!({
            "instance-id": instance.id,
            "instance-action": "terminate",
            "instance-termination-time": seconds(termination),
            "availability-zone-id": "use2-az1",
            "instance-lifecycle": "capacity-block",
        }),
        EventKind::ScheduledChange { start } => scheduled_change(instance, start),
    }
}

fn scheduled_change(instance: &Instance, start: Timestamp) -> Value {
    let code = "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED";
    let start = start.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    json!({
        "eventArn": format!("arn:aws:health:us-east-2::event/EC2/{code}/{code}_{}", instance.id),
        "service": "EC2",
        "eventScopeCode": "ACCOUNT_SPECIFIC",
        "eventTypeCode": code,
        "eventTypeCategory": "scheduledChange",
        "statusCode": "upcoming",
        "startTime": start,
        "eventDescription": [{ "language": "en_US", "latestDescription": "It will be retired." }],
        "affectedEntities": [{ "entityValue": instance.id }],
    })
}

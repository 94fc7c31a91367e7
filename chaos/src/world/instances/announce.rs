//! What EC2 says about an instance, by every way at once or by one alone.

use std::time::Duration;

use crate::world::World;
use crate::world::instances::Notice;
use crate::world::instances::NoticeAction;
use crate::world::instances::events::EventKind;

/// A notice that an instance will be taken.
#[derive(Clone, Copy, Debug)]
pub struct Announcement<'a> {
    /// What will become of it.
    pub action: NoticeAction,
    /// How soon that will be; EC2 promises two minutes, and may give less.
    pub lead: Duration,
    /// After how long the metadata service shows it, `None` if it never does.
    pub imds_after: Option<Duration>,
    /// The queues whose rules take the event.
    pub queues: &'a [&'a str],
}

impl World {
    /// EC2 announces that it takes an instance, and will take it at that time.
    pub fn announce(&self, instance: &str, announcement: Announcement<'_>) {
        let now = self.now();
        let notice = Notice {
            action: announcement.action,
            at: now,
            time: now + announcement.lead,
            imds_from: announcement.imds_after.map(|after| now + after),
        };
        self.update(|state| state.instances.announce(instance, notice));
        let kind = EventKind::SpotInterruption(announcement.action);
        self.publish(instance, kind, announcement.queues);
    }

    /// EC2 recommends to move away from an instance, in its metadata and on these queues.
    pub fn recommend(&self, instance: &str, queues: &[&str]) {
        let now = self.now();
        self.update(|state| state.instances.recommend(instance, now));
        self.publish(instance, EventKind::RebalanceRecommendation, queues);
    }

    /// An event about an instance comes to these queues, once to each that is there.
    pub fn publish(&self, instance: &str, kind: EventKind, queues: &[&str]) {
        let now = self.now();
        self.update(|state| {
            let body = state.instances.event(instance, kind, now).to_string();
            for queue in queues {
                if let Err(error) = state.queues.send(queue, &body, now) {
                    tracing::warn!(%error, queue, "event not delivered");
                }
            }
        });
    }
}

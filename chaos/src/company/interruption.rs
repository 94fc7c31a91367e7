//! Karpenter's interruption controller, which core does not have: a message on Karpenter's own
//! queue that warns of an instance deletes the claim of its node.

use std::time::Duration;

use serde_json::Value;

use crate::company::machines::instance_of;
use crate::company::objects::NODE_CLAIM;
use crate::company::objects::Objects;
use crate::scenario::KARPENTER_QUEUE;
use crate::world::World;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::name;
use crate::world::cluster::object::text;
use crate::world::queue::Poll;

/// A long poll answers as soon as a message is there; so soon do we look.
const LOOK: Duration = Duration::from_millis(5);
/// Source: Karpenter, `pkg/providers/sqs/sqs.go`.
const POLL: Poll = Poll { most: 10, visibility: Some(Duration::from_secs(20)) };
/// What is acted on here: a recommendation leads to an Event and no more.
const WARNING: &str = "EC2 Spot Instance Interruption Warning";

/// Listens for as long as it is polled; a claim is deleted before its message is.
pub(super) async fn listen(objects: Objects, world: World) {
    loop {
        let now = world.now();
        let ready = world.read(|state| state.queues.next_ready(KARPENTER_QUEUE));
        if !matches!(ready, Ok(Some(ready)) if ready <= now) {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let received = world.update(|state| state.queues.receive(KARPENTER_QUEUE, POLL, now));
        for message in received.unwrap_or_default() {
            let event: Value = serde_json::from_str(&message.body).unwrap_or_default();
            let warned = text(&event, "/detail-type") == WARNING;
            if warned && !delete_claim(&objects, text(&event, "/detail/instance-id")).await {
                continue;
            }
            let now = world.now();
            let deleted =
                world.update(|state| state.queues.delete(KARPENTER_QUEUE, &message.receipt, now));
            if let Err(error) = deleted {
                tracing::debug!(%error, "message was received again");
            }
        }
    }
}

/// Whether it is deleted, or nobody's.
async fn delete_claim(objects: &Objects, instance: &str) -> bool {
    let claims = objects.list(NODE_CLAIM, "").await;
    let own = |claim: &&Value| instance_of(text(claim, "/status/providerID")) == instance;
    let Some(claim) = claims.iter().find(own) else { return true };
    is_deleting(claim) || objects.delete(NODE_CLAIM, ("", name(claim))).await.is_ok()
}

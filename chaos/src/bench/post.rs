//! The queue of a bench: our own SQS on loopback, counted, and strict about deletes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::bench::fleet::Fleet;
use crate::bench::witness::Edge;
use crate::bench::witness::Witness;
use crate::programs;
use crate::scenario;
use crate::serve;
use crate::serve::Served;
use crate::wire;
use crate::wire::BoxError;
use crate::wire::Request;
use crate::wire::Response;
use crate::wire::Wire;
use crate::world::World;

/// How long a delete waits for its record to be shown on the watch before it counts as too early.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);

/// The queue of a world.
pub(super) struct Post {
    world: World,
    witness: Witness,
    fleet: Fleet,
    counts: Arc<Mutex<Counts>>,
}

/// The queue on loopback, and a bucket beside it.
pub(super) struct Doors {
    account: String,
    queue: Served,
    store: Served,
}

/// What was asked of the queue.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Counts {
    /// Requests, by action.
    pub(super) requests: BTreeMap<String, u64>,
    /// Receives that brought something.
    pub(super) receives_with_messages: u64,
    /// Messages deleted.
    pub(super) deleted: u64,
    /// Messages that were deleted before their record was seen.
    pub(super) deleted_early: u64,
    /// Messages left in the queue or in hand at the end.
    pub(super) left: u64,
}

impl Post {
    /// The queue of a world, for a fleet that `witness` sees.
    pub(super) fn new(world: &World, fleet: &Fleet, witness: &Witness) -> Self {
        scenario::queues(world);
        Self {
            world: world.clone(),
            witness: witness.clone(),
            fleet: fleet.clone(),
            counts: Arc::default(),
        }
    }

    /// The queue's protocol, with each request counted; a delete waits until its record is seen.
    pub(super) fn wire(&self) -> Wire {
        let inner = wire::sqs::sqs(self.world.clone());
        let (witness, counts) = (self.witness.clone(), Arc::clone(&self.counts));
        wire::wire(move |request| {
            let (inner, witness, counts) = (inner.clone(), witness.clone(), Arc::clone(&counts));
            async move { pass(&inner, &witness, &counts, request).await }
        })
    }

    /// Serves it on loopback.
    pub(super) async fn serve(&self) -> anyhow::Result<Doors> {
        Ok(Doors {
            account: self.account(),
            queue: serve::serve(self.wire()).await?,
            store: serve::serve(wire::s3::s3(self.world.clone())).await?,
        })
    }

    /// Puts the notice of a node into the queue.
    pub(super) fn send(&self, number: usize) -> anyhow::Result<()> {
        let body = self.notice(number, self.world.now());
        self.witness.sent(number);
        let now = self.world.now();
        let id = self.world.update(|state| state.queues.send(programs::QUEUE, &body, now))?;
        debug_assert!(!id.is_empty(), "a message has an id");
        Ok(())
    }

    /// What was asked so far.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        counts.left = self.world.read(|state| state.queues.bodies(programs::QUEUE).len() as u64);
        counts
    }

    /// The account that the queue is of.
    pub(super) fn account(&self) -> String {
        self.world.read(|state| state.instances.account().to_owned())
    }

    fn notice(&self, number: usize, at: Timestamp) -> String {
        let instance = self.fleet.instance(number);
        let account = self.account();
        json!({
            "version": "0",
            "id": format!("00000000-0000-4000-8000-{number:012x}"),
            "detail-type": "EC2 Spot Instance Interruption Warning",
            "source": "aws.ec2",
            "account": account,
            "time": format!("{at:.0}"),
            "region": serve::REGION,
            "resources": [format!("arn:aws:ec2:us-east-2a:instance/{instance}")],
            "detail": { "instance-id": instance, "instance-action": "terminate" },
        })
        .to_string()
    }
}

impl Doors {
    /// What the controller's environment says about queue and bucket.
    pub(super) fn environment(&self) -> BTreeMap<&'static str, String> {
        let queue = self.queue.url();
        BTreeMap::from([
            ("LIFEBOAT_QUEUE_URL", format!("{queue}/{}/{}", self.account, programs::QUEUE)),
            ("LIFEBOAT_QUEUE_ENDPOINT", queue),
            ("LIFEBOAT_STORE_BUCKET", programs::BUCKET.to_owned()),
            ("LIFEBOAT_STORE_ENDPOINT", self.store.url()),
            ("LIFEBOAT_REGION", serve::REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", "bench".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "bench".to_owned()),
        ])
    }
}

async fn pass(
    inner: &Wire,
    witness: &Witness,
    counts: &Mutex<Counts>,
    request: Request,
) -> Result<Response, BoxError> {
    let (parts, body) = request.into_parts();
    let body = wire::collect(body).await?;
    let target = parts.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
    let action = target.and_then(|target| target.strip_prefix("AmazonSQS.")).unwrap_or_default();
    let action = action.to_owned();
    let deleted = if action.starts_with("DeleteMessage") { receipts(&body) } else { Vec::new() };
    let early = not_recorded(witness, &deleted).await;
    let request = http::Request::from_parts(parts, wire::full(body));
    let (parts, body) = wire::call(inner, request).await?.into_parts();
    let body = wire::collect(body).await?;
    for number in &deleted {
        witness.mark(*number, Edge::Deleted);
    }
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    counts.receives_with_messages += u64::from(action == "ReceiveMessage" && body.len() > 2);
    counts.deleted += deleted.len() as u64;
    counts.deleted_early += early;
    *counts.requests.entry(action).or_default() += 1;
    Ok(Response::from_parts(parts, wire::full(body)))
}

/// How many of these messages no record is seen of, where records are waited for. The watch may be a moment behind the server.
async fn not_recorded(witness: &Witness, numbers: &[usize]) -> u64 {
    let mut early = 0;
    if !witness.awaits(Edge::Recorded) {
        return early;
    }
    for number in numbers {
        early += u64::from(!witness.until(*number, Edge::Recorded, SHOWN_WITHIN).await);
    }
    early
}

/// The numbers of the messages that a delete names: the first message sent is the first node's.
fn receipts(body: &[u8]) -> Vec<usize> {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return Vec::new() };
    let entries = body["Entries"].as_array().cloned().unwrap_or_else(|| vec![body]);
    let numbers = entries.iter().filter_map(|entry| {
        let (number, _) = entry["ReceiptHandle"].as_str()?.split_once('.')?;
        number.parse().ok()
    });
    numbers.collect()
}

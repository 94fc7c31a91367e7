//! SQS as its JSON protocol speaks it, for what Lifeboat and Karpenter ask; the rest is refused.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::StatusCode;
use http::request::Parts;
use jiff::Timestamp;
use md5::Digest;
use md5::Md5;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;

use crate::wire::BoxError;
use crate::wire::Request;
use crate::wire::Response;
use crate::wire::Wire;
use crate::wire::answer;
use crate::wire::collect;
use crate::wire::wire;
use crate::world::World;
use crate::world::queue::Poll;
use crate::world::queue::Post;
use crate::world::queue::QueueError;
use crate::world::queue::Received;

/// Most entries of a batch, and most messages of a receive.
///
/// Source: Amazon SQS API Reference, "`SendMessageBatch`", "`ReceiveMessage`".
const BATCH_MAX: usize = 10;

/// The content type of the protocol.
const JSON: &str = "application/x-amz-json-1.0";

/// SQS over the queues of a world.
pub fn sqs(world: World) -> Wire {
    wire(move |request| {
        let world = world.clone();
        async move { respond(&world, request).await }
    })
}

/// A refusal as the protocol writes it: the shape's name, and the older code in a header.
#[derive(Debug)]
struct Refusal {
    shape: &'static str,
    code: &'static str,
    message: String,
}

type Answer = Result<Value, Refusal>;

async fn respond(world: &World, request: Request) -> Result<Response, BoxError> {
    let (parts, body) = request.into_parts();
    let body = collect(body).await?;
    Ok(match dispatch(world, &parts, &body).await {
        Ok(value) => answer(StatusCode::OK, JSON, value.to_string()),
        Err(refusal) => refusal.response(),
    })
}

async fn dispatch(world: &World, parts: &Parts, body: &Bytes) -> Answer {
    let target = parts.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
    let action = target.and_then(|target| target.strip_prefix("AmazonSQS.")).unwrap_or_default();
    match action {
        "SendMessage" => send(world, &parse(body)?),
        "SendMessageBatch" => send_batch(world, &parse(body)?),
        "ReceiveMessage" => receive(world, &parse(body)?).await,
        "DeleteMessage" => delete(world, &parse(body)?),
        "DeleteMessageBatch" => delete_batch(world, &parse(body)?),
        "ChangeMessageVisibility" => change_visibility(world, &parse(body)?),
        "ChangeMessageVisibilityBatch" => change_visibility_batch(world, &parse(body)?),
        "GetQueueAttributes" => attributes(world, &parse(body)?),
        "GetQueueUrl" => url(world, parts, &parse(body)?),
        other => Err(Refusal {
            shape: "UnsupportedOperation",
            code: "AWS.SimpleQueueService.UnsupportedOperation",
            message: format!("the simulated SQS does not know `{other}`"),
        }),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Send {
    queue_url: String,
    message_body: String,
    delay_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Receive {
    queue_url: String,
    max_number_of_messages: Option<u64>,
    visibility_timeout: Option<u64>,
    wait_time_seconds: Option<u64>,
    #[serde(default)]
    attribute_names: Vec<String>,
    #[serde(default)]
    message_system_attribute_names: Vec<String>,
    /// No message here has attributes of its own; asking for them is all right.
    #[serde(default, rename = "MessageAttributeNames")]
    _message_attribute_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Delete {
    queue_url: String,
    receipt_handle: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ChangeVisibility {
    queue_url: String,
    receipt_handle: String,
    visibility_timeout: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Batch<Entry> {
    queue_url: String,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct SendEntry {
    id: String,
    message_body: String,
    delay_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct ReceiptEntry {
    id: String,
    receipt_handle: String,
    visibility_timeout: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Attributes {
    queue_url: String,
    #[serde(default)]
    attribute_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Url {
    queue_name: String,
}

fn send(world: &World, send: &Send) -> Answer {
    let delay = seconds("DelaySeconds", send.delay_seconds, 0..=900)?;
    let post = Post { body: &send.message_body, delay };
    let (name, now) = (queue_name(&send.queue_url), world.now());
    let id = world.update(|state| state.queues.post(name, post, now))?;
    Ok(json!({ "MessageId": id, "MD5OfMessageBody": md5(&send.message_body) }))
}

fn send_batch(world: &World, batch: &Batch<SendEntry>) -> Answer {
    each(
        &batch.entries,
        |entry| &entry.id,
        |entry| {
            let entry = Send {
                queue_url: batch.queue_url.clone(),
                message_body: entry.message_body.clone(),
                delay_seconds: entry.delay_seconds,
            };
            send(world, &entry)
        },
    )
}

async fn receive(world: &World, receive: &Receive) -> Answer {
    let name = queue_name(&receive.queue_url);
    let queue_wait = world.read(|state| state.queues.settings(name).map(|queue| queue.wait))?;
    let wait = seconds("WaitTimeSeconds", receive.wait_time_seconds, 0..=20)?;
    let until = Instant::now() + wait.unwrap_or(queue_wait);
    let most = receive.max_number_of_messages.unwrap_or(1);
    let most = usize::try_from(most).ok().filter(|most| (1..=BATCH_MAX).contains(most));
    let poll = Poll {
        most: most.ok_or_else(|| Refusal::value("MaxNumberOfMessages"))?,
        visibility: seconds("VisibilityTimeout", receive.visibility_timeout, 0..=43_200)?,
    };
    let messages = long_poll(world, name, poll, until).await?;
    if messages.is_empty() {
        return Ok(json!({}));
    }
    let messages: Vec<Value> =
        messages.iter().map(|message| described(world, message, receive)).collect();
    Ok(json!({ "Messages": messages }))
}

/// Waits for messages, and wakes as soon as one is sent or its delay or visibility runs out.
async fn long_poll(
    world: &World,
    name: &str,
    poll: Poll,
    until: Instant,
) -> Result<Vec<Received>, QueueError> {
    loop {
        let now = world.now();
        let next = world.read(|state| state.queues.next_ready(name))?;
        if next.is_some_and(|next| next <= now) {
            let messages = world.update(|state| state.queues.receive(name, poll, now))?;
            if !messages.is_empty() {
                return Ok(messages);
            }
            continue;
        }
        if until <= Instant::now() {
            return Ok(Vec::new());
        }
        let ready_sooner = world.until(|state| {
            let ready = state.queues.next_ready(name);
            (ready != Ok(next)).then_some(())
        });
        tokio::select! {
            biased;
            () = ready_sooner => (),
            () = tokio::time::sleep_until(next.map_or(until, |next| until.min(at(next, now)))) => (),
        }
    }
}

fn delete(world: &World, delete: &Delete) -> Answer {
    let (name, now) = (queue_name(&delete.queue_url), world.now());
    world.update(|state| state.queues.delete(name, &delete.receipt_handle, now))?;
    Ok(json!({}))
}

fn delete_batch(world: &World, batch: &Batch<ReceiptEntry>) -> Answer {
    each(
        &batch.entries,
        |entry| &entry.id,
        |entry| {
            let entry = Delete {
                queue_url: batch.queue_url.clone(),
                receipt_handle: entry.receipt_handle.clone(),
            };
            delete(world, &entry)
        },
    )
}

fn change_visibility(world: &World, change: &ChangeVisibility) -> Answer {
    let limits = 0..=43_200;
    let visibility = seconds("VisibilityTimeout", Some(change.visibility_timeout), limits)?;
    let visibility = visibility.unwrap_or_default();
    let (receipt, now) = ((queue_name(&change.queue_url), &*change.receipt_handle), world.now());
    world.update(|state| state.queues.change_visibility(receipt, visibility, now))?;
    Ok(json!({}))
}

fn change_visibility_batch(world: &World, batch: &Batch<ReceiptEntry>) -> Answer {
    each(
        &batch.entries,
        |entry| &entry.id,
        |entry| {
            let entry = ChangeVisibility {
                queue_url: batch.queue_url.clone(),
                receipt_handle: entry.receipt_handle.clone(),
                visibility_timeout: entry
                    .visibility_timeout
                    .ok_or_else(|| Refusal::value("VisibilityTimeout"))?,
            };
            change_visibility(world, &entry)
        },
    )
}

fn attributes(world: &World, asked: &Attributes) -> Answer {
    let (name, now) = (queue_name(&asked.queue_url), world.now());
    let mut attributes = world.read(|state| {
        let settings = state.queues.settings(name)?;
        let depth = state.queues.depth(name, now)?;
        let arn = |name: &str| arn(state.instances.account(), name);
        let mut attributes = BTreeMap::from([
            ("ApproximateNumberOfMessages", depth.visible.to_string()),
            ("ApproximateNumberOfMessagesDelayed", depth.delayed.to_string()),
            ("ApproximateNumberOfMessagesNotVisible", depth.in_flight.to_string()),
            ("DelaySeconds", settings.delay.as_secs().to_string()),
            ("MessageRetentionPeriod", settings.retention.as_secs().to_string()),
            ("QueueArn", arn(name)),
            ("ReceiveMessageWaitTimeSeconds", settings.wait.as_secs().to_string()),
            ("SqsManagedSseEnabled", "true".to_owned()),
            ("VisibilityTimeout", settings.visibility.as_secs().to_string()),
        ]);
        if let Some(redrive) = &settings.redrive {
            let target = arn(&redrive.dead_letter_queue);
            let policy = json!({
                "deadLetterTargetArn": target, "maxReceiveCount": redrive.max_receives,
            });
            attributes.insert("RedrivePolicy", policy.to_string());
        }
        if let Some(policy) = &settings.policy {
            attributes.insert("Policy", policy.clone());
        }
        Ok::<_, QueueError>(attributes)
    })?;
    attributes.retain(|name, _| wanted(&asked.attribute_names, name));
    Ok(json!({ "Attributes": attributes }))
}

fn url(world: &World, parts: &Parts, asked: &Url) -> Answer {
    let account = world.read(|state| {
        state.queues.settings(&asked.queue_name)?;
        Ok::<_, QueueError>(state.instances.account().to_owned())
    })?;
    let host = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or(parts.uri.authority().map(http::uri::Authority::as_str));
    let host = host.unwrap_or("sqs.simulated");
    Ok(json!({ "QueueUrl": format!("http://{host}/{account}/{}", asked.queue_name) }))
}

/// Answers a batch: each entry for itself, and one that is refused harms no other.
fn each<Entry>(
    entries: &[Entry],
    id: impl Fn(&Entry) -> &String,
    act: impl Fn(&Entry) -> Answer,
) -> Answer {
    let ids: BTreeSet<&String> = entries.iter().map(&id).collect();
    if entries.is_empty() {
        return Err(Refusal::batch(
            "EmptyBatchRequest",
            "AWS.SimpleQueueService.EmptyBatchRequest",
        ));
    }
    if entries.len() > BATCH_MAX {
        let code = "AWS.SimpleQueueService.TooManyEntriesInBatchRequest";
        return Err(Refusal::batch("TooManyEntriesInBatchRequest", code));
    }
    if ids.len() < entries.len() {
        let code = "AWS.SimpleQueueService.BatchEntryIdsNotDistinct";
        return Err(Refusal::batch("BatchEntryIdsNotDistinct", code));
    }
    let (mut successful, mut failed) = (Vec::new(), Vec::new());
    for entry in entries {
        match act(entry) {
            Ok(mut answer) => {
                answer["Id"] = json!(id(entry));
                successful.push(answer);
            }
            Err(refusal) => failed.push(json!({
                "Id": id(entry), "SenderFault": true,
                "Code": refusal.code, "Message": refusal.message,
            })),
        }
    }
    Ok(json!({ "Successful": successful, "Failed": failed }))
}

fn described(world: &World, message: &Received, receive: &Receive) -> Value {
    let mut attributes = BTreeMap::from([
        ("ApproximateReceiveCount", message.receives.to_string()),
        ("SentTimestamp", message.sent_at.as_millisecond().to_string()),
        (
            "ApproximateFirstReceiveTimestamp",
            message.first_received_at.as_millisecond().to_string(),
        ),
        ("SenderId", "AIDAIENQZJOLO23YVJ4VO".to_owned()),
    ]);
    if let Some(source) = &message.redriven_from {
        let account = world.read(|state| state.instances.account().to_owned());
        attributes.insert("DeadLetterQueueSourceArn", arn(&account, source));
    }
    attributes.retain(|name, _| {
        wanted(&receive.attribute_names, name)
            || wanted(&receive.message_system_attribute_names, name)
    });
    let mut described = json!({
        "MessageId": message.id,
        "ReceiptHandle": message.receipt,
        "Body": message.body,
        "MD5OfBody": md5(&message.body),
    });
    if !attributes.is_empty() {
        described["Attributes"] = json!(attributes);
    }
    described
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal {
        shape: "InvalidParameterValueException",
        code: "InvalidParameterValue",
        message: format!("the simulated SQS does not read this request: {error}"),
    })
}

fn seconds(
    name: &str,
    value: Option<u64>,
    limits: RangeInclusive<u64>,
) -> Result<Option<Duration>, Refusal> {
    match value {
        Some(value) if !limits.contains(&value) => Err(Refusal::value(name)),
        Some(_) | None => Ok(value.map(Duration::from_secs)),
    }
}

fn wanted(names: &[String], name: &str) -> bool {
    names.iter().any(|wanted| wanted == "All" || wanted == name)
}

fn queue_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

fn arn(account: &str, name: &str) -> String {
    format!("arn:aws:sqs:us-east-2:{account}:{name}")
}

fn md5(text: &str) -> String {
    Md5::digest(text.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        // A `String` takes what is written to it.
        write!(hex, "{byte:02x}").expect("a string grows");
        hex
    })
}

/// The instant at which it will be `then`, if it is `now` now.
fn at(then: Timestamp, now: Timestamp) -> Instant {
    Instant::now() + Duration::try_from(then.duration_since(now)).unwrap_or_default()
}

impl Refusal {
    fn value(name: &str) -> Self {
        Self {
            shape: "InvalidParameterValueException",
            code: "InvalidParameterValue",
            message: format!("the value of {name} is out of range"),
        }
    }

    fn batch(shape: &'static str, code: &'static str) -> Self {
        Self { shape, code, message: "the batch is refused as a whole".to_owned() }
    }

    fn response(&self) -> Response {
        let body = json!({
            "__type": format!("com.amazonaws.sqs#{}", self.shape), "message": self.message,
        });
        let mut response = answer(StatusCode::BAD_REQUEST, JSON, body.to_string());
        let code = format!("{};Sender", self.code);
        if let Ok(code) = HeaderValue::from_str(&code) {
            response.headers_mut().insert("x-amzn-query-error", code);
        }
        response
    }
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        let (shape, code) = match error {
            QueueError::NoSuchQueue => {
                ("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue")
            }
            QueueError::StaleReceipt => ("ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid"),
            QueueError::NotInFlight => {
                ("MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight")
            }
        };
        Self { shape, code, message: error.to_string() }
    }
}

//! Our queue: messages in hand, and giving them back or away.

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::error::SdkError;
use aws_sdk_sqs::types::BatchResultErrorEntry;
use aws_sdk_sqs::types::ChangeMessageVisibilityBatchRequestEntry;
use aws_sdk_sqs::types::DeleteMessageBatchRequestEntry;
use aws_sdk_sqs::types::MessageSystemAttributeName;

use crate::error::Class;
use crate::error::Classify;

/// Most messages of one receive, and most entries of one batch.
///
/// Source: Amazon SQS API Reference, `ReceiveMessage`, `DeleteMessageBatch`,
/// `ChangeMessageVisibilityBatch`.
pub const BATCH: usize = 10;
/// Longest that a delete or a change of visibility may take.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// How much longer than its wait a receive may take before it counts as lost.
const RECEIVE_SPARE: Duration = Duration::from_secs(5);

/// One queue.
#[derive(Clone, Debug)]
pub struct Queue {
    client: Client,
    url: String,
}

/// A message in hand: hidden from others until its visibility runs out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// SQS's id of it.
    pub id: String,
    /// Its content.
    pub body: String,
    /// The receipt of this very receive.
    pub receipt: String,
    /// How often it has been received, this time included.
    pub receives: u32,
}

/// Why the queue did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// No answer within the time that the request had.
    #[error("the queue did not answer within {0:?}")]
    Late(Duration),
    /// There is no such queue.
    #[error("queue `{url}` is not there")]
    NoQueue {
        /// Its URL.
        url: String,
        /// What SQS said.
        source: BoxError,
    },
    /// We have no right to it.
    #[error("queue `{url}` is closed to us")]
    Forbidden {
        /// Its URL.
        url: String,
        /// What SQS said.
        source: BoxError,
    },
    /// The receipt is too old: the message is somebody else's now, or gone.
    #[error("the message is no longer in our hand")]
    Stale(#[source] BoxError),
    /// SQS asks us to slow down.
    #[error("the queue asked us to slow down")]
    SlowDown(#[source] BoxError),
    /// SQS is not well, or nobody answers.
    #[error("the queue was not reached")]
    Away(#[source] BoxError),
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Queue {
    /// The queue at `url`, by a client whose own retries are off.
    pub fn new(client: Client, url: String) -> Self {
        Self { client, url }
    }

    /// Waits up to `wait` for messages, and hides what comes for `visibility`.
    pub async fn receive(
        &self,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let request = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(i32::try_from(BATCH).unwrap_or(i32::MAX))
            .wait_time_seconds(seconds(wait))
            .visibility_timeout(seconds(visibility))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let answer = self.bounded(wait + RECEIVE_SPARE, request.send()).await?;
        Ok(answer.messages.unwrap_or_default().into_iter().filter_map(message).collect())
    }

    /// Takes up to [`BATCH`] messages off the queue for good. Each is answered for by itself: those
    /// that were not deleted come back with the reason, by their place in `messages`.
    pub async fn delete(
        &self,
        messages: &[Message],
    ) -> Result<Vec<(usize, QueueError)>, QueueError> {
        let entries = messages.iter().enumerate().map(|(place, message)| {
            let entry = DeleteMessageBatchRequestEntry::builder()
                .id(place.to_string())
                .receipt_handle(&message.receipt);
            entry.build().expect("id and receipt are set")
        });
        let request = self
            .client
            .delete_message_batch()
            .queue_url(&self.url)
            .set_entries(Some(entries.collect()));
        Ok(self.refused(self.bounded(REQUEST_MAX, request.send()).await?.failed))
    }

    /// Hides up to [`BATCH`] messages for `visibility` from now on; zero gives them back at once.
    /// Those that were not hidden come back with the reason, by their place in `messages`.
    pub async fn extend(
        &self,
        messages: &[Message],
        visibility: Duration,
    ) -> Result<Vec<(usize, QueueError)>, QueueError> {
        let entries = messages.iter().enumerate().map(|(place, message)| {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(place.to_string())
                .receipt_handle(&message.receipt)
                .visibility_timeout(seconds(visibility));
            entry.build().expect("id and receipt are set")
        });
        let request = self
            .client
            .change_message_visibility_batch()
            .queue_url(&self.url)
            .set_entries(Some(entries.collect()));
        Ok(self.refused(self.bounded(REQUEST_MAX, request.send()).await?.failed))
    }

    /// The entries of a batch that were refused, by their place in it.
    fn refused(&self, failed: Vec<BatchResultErrorEntry>) -> Vec<(usize, QueueError)> {
        let refused = failed.into_iter().filter_map(|entry| {
            let why = entry.message.unwrap_or_default();
            let error = self.named(&entry.code, format!("{}: {why}", entry.code).into());
            Some((entry.id.parse().ok()?, error))
        });
        refused.collect()
    }

    async fn bounded<T, E>(
        &self,
        bound: Duration,
        answer: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, QueueError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match tokio::time::timeout(bound, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.sort(error)),
            Err(_) => Err(QueueError::Late(bound)),
        }
    }

    fn sort<E>(&self, error: SdkError<E>) -> QueueError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
        let code = code.unwrap_or_default().to_owned();
        self.named(&code, error.into())
    }

    /// Sorts an error by the name that SQS gives it.
    fn named(&self, code: &str, source: BoxError) -> QueueError {
        let url = self.url.clone();
        // SQS names its errors in two ways, by protocol; the last part is the same in both.
        match code.rsplit(['.', '#']).next().unwrap_or(code) {
            "NonExistentQueue" | "QueueDoesNotExist" => QueueError::NoQueue { url, source },
            "AccessDenied"
            | "AccessDeniedException"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "InvalidSecurity"
            | "SignatureDoesNotMatch" => QueueError::Forbidden { url, source },
            "ReceiptHandleIsInvalid" | "MessageNotInflight" | "InvalidParameterValue" => {
                QueueError::Stale(source)
            }
            "RequestThrottled" | "ThrottlingException" | "Throttling" | "OverLimit" => {
                QueueError::SlowDown(source)
            }
            _ => QueueError::Away(source),
        }
    }
}

impl Classify for QueueError {
    fn class(&self) -> Class {
        match self {
            Self::Late(_) | Self::SlowDown(_) | Self::Away(_) => Class::Transient,
            Self::NoQueue { .. } | Self::Forbidden { .. } => Class::Permanent,
            Self::Stale(_) => Class::Superseded,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Late(_) => "late",
            Self::NoQueue { .. } => "no_queue",
            Self::Forbidden { .. } => "forbidden",
            Self::Stale(_) => "stale",
            Self::SlowDown(_) => "slow_down",
            Self::Away(_) => "away",
        }
    }
}

/// A message without receipt cannot be given back, so it is no message.
fn message(raw: aws_sdk_sqs::types::Message) -> Option<Message> {
    let counts = raw.attributes.as_ref();
    let count = counts
        .and_then(|all| all.get(&MessageSystemAttributeName::ApproximateReceiveCount))
        .and_then(|count| count.parse().ok());
    Some(Message {
        id: raw.message_id.unwrap_or_default(),
        body: raw.body.unwrap_or_default(),
        receipt: raw.receipt_handle?,
        receives: count.unwrap_or(1),
    })
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

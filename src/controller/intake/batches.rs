//! Messages in batches: the first at once, and what comes within a moment after it together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_domain::deadline::Deadline;
use tokio::sync::Mutex;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::adapters::sqs::BATCH;
use crate::adapters::sqs::Message;
use crate::adapters::sqs::QueueError;
use crate::controller::Deps;
use crate::error::Chain;
use crate::error::Class;
use crate::error::Classify;
use crate::metrics;
use crate::retry;

/// How long more messages are gathered after a batch was sent.
const GATHER: Duration = Duration::from_millis(50);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// What is asked of the queue about a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    /// To take it off for good.
    Delete,
    /// To hide it for another whole visibility.
    Extend,
}

/// Where messages are handed in.
#[derive(Clone)]
pub(super) struct Batches {
    asked: mpsc::UnboundedSender<Asked>,
}

struct Asked {
    message: Message,
    /// Dropped when it was not done.
    done: oneshot::Sender<()>,
}

impl Batches {
    /// The way in, and what has to run for it.
    pub(super) fn new(deps: Arc<Deps>, verb: Verb) -> (Self, impl Future<Output = ()> + Send) {
        // No more wait here than there are hands.
        let (asked, waiting) = mpsc::unbounded_channel();
        (Self { asked }, run(deps, verb, waiting))
    }

    /// Answers whether it was done, once it was, or was given up.
    pub(super) async fn ask(&self, message: &Message) -> bool {
        let (done, told) = oneshot::channel();
        let asked = Asked { message: message.clone(), done };
        self.asked.send(asked).is_ok() && told.await.is_ok()
    }
}

/// Runs until every way in is gone, and all that was handed in is done.
async fn run(deps: Arc<Deps>, verb: Verb, mut waiting: mpsc::UnboundedReceiver<Asked>) {
    let mut batches = JoinSet::new();
    let mut all = Vec::new();
    while waiting.recv_many(&mut all, usize::MAX).await > 0 {
        while !all.is_empty() {
            let batch: Vec<Asked> = all.drain(..all.len().min(BATCH)).collect();
            batches.spawn(send(deps.clone(), verb, batch));
        }
        while batches.try_join_next().is_some() {}
        tokio::time::sleep(GATHER).await;
    }
    while batches.join_next().await.is_some() {}
}

/// Sends a batch, and once more what may go better then.
async fn send(deps: Arc<Deps>, verb: Verb, batch: Vec<Asked>) {
    let by = Deadline::after(deps.clock.now(), deps.settings.intake.visibility);
    let left = Mutex::new(batch);
    let attempt = async || {
        let mut left = left.lock().await;
        let refused = request(&deps, verb, &left).await?;
        let (again, error) = answer(std::mem::take(&mut *left), refused);
        *left = again;
        error.map_or(Ok(()), Err)
    };
    let sent = retry::until(by, [PAUSE, PAUSE].into_iter(), &deps.clock, attempt).await;
    if let Err(error) = sent {
        complain(&error, verb);
    }
}

async fn request(
    deps: &Deps,
    verb: Verb,
    batch: &[Asked],
) -> Result<Vec<(usize, QueueError)>, QueueError> {
    let messages: Vec<Message> = batch.iter().map(|asked| asked.message.clone()).collect();
    match verb {
        Verb::Delete => deps.queue.delete(&messages).await,
        Verb::Extend => deps.queue.extend(&messages, deps.settings.intake.visibility).await,
    }
}

/// Tells who was not refused, and gives back who may be asked about again, with a reason to: one
/// that may go better, where there is one.
fn answer(
    batch: Vec<Asked>,
    refused: Vec<(usize, QueueError)>,
) -> (Vec<Asked>, Option<QueueError>) {
    let mut refused: BTreeMap<usize, QueueError> = refused.into_iter().collect();
    let mut again = Vec::new();
    let mut worst: Option<QueueError> = None;
    for (place, asked) in batch.into_iter().enumerate() {
        let Some(error) = refused.remove(&place) else {
            // Who asked may have gone.
            asked.done.send(()).ok();
            continue;
        };
        let hope = error.class() == Class::Transient;
        if hope {
            again.push(asked);
        }
        if hope || worst.is_none() {
            worst = Some(error);
        }
    }
    (again, worst)
}

fn complain(error: &QueueError, verb: Verb) {
    metrics::error("sqs", error.label());
    let error = Chain(error);
    match verb {
        Verb::Delete => tracing::warn!(%error, "messages not deleted"),
        Verb::Extend => tracing::warn!(%error, "messages not kept in hand"),
    }
}

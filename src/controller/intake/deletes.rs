//! Deletes, in batches: the first at once, and what comes within a moment after it together.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_domain::deadline::Deadline;
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

/// Where messages are handed in that may go.
#[derive(Clone)]
pub(super) struct Deletes {
    asked: mpsc::UnboundedSender<Asked>,
}

struct Asked {
    message: Message,
    /// Dropped when the message is deleted, or given up.
    _done: oneshot::Sender<()>,
}

impl Deletes {
    /// The way in, and what has to run for it.
    pub(super) fn new(deps: Arc<Deps>) -> (Self, impl Future<Output = ()> + Send) {
        // No more wait here than there are hands.
        let (asked, waiting) = mpsc::unbounded_channel();
        (Self { asked }, run(deps, waiting))
    }

    /// Returns when the message is deleted, or was given up: then it comes again, and is found
    /// recorded.
    pub(super) async fn delete(&self, message: &Message) {
        let (done, told) = oneshot::channel();
        let asked = Asked { message: message.clone(), _done: done };
        if self.asked.send(asked).is_ok() {
            drop(told.await);
        }
    }
}

/// Runs until every way in is gone, and all that was handed in is done.
async fn run(deps: Arc<Deps>, mut waiting: mpsc::UnboundedReceiver<Asked>) {
    let mut batches = JoinSet::new();
    let mut all = Vec::new();
    while waiting.recv_many(&mut all, usize::MAX).await > 0 {
        while !all.is_empty() {
            let batch: Vec<Asked> = all.drain(..all.len().min(BATCH)).collect();
            batches.spawn(send(deps.clone(), batch));
        }
        while batches.try_join_next().is_some() {}
        tokio::time::sleep(GATHER).await;
    }
    while batches.join_next().await.is_some() {}
}

async fn send(deps: Arc<Deps>, batch: Vec<Asked>) {
    let messages: Vec<Message> = batch.iter().map(|asked| asked.message.clone()).collect();
    let by = Deadline::after(deps.clock.now(), deps.settings.intake.visibility);
    let left = tokio::sync::Mutex::new(messages);
    let attempt = async || {
        let mut left = left.lock().await;
        let refused = deps.queue.delete(&left).await?;
        let again = |error: &QueueError| error.class() == Class::Transient;
        let kept: Vec<Message> = refused
            .iter()
            .filter(|(_, error)| again(error))
            .filter_map(|(place, _)| left.get(*place).cloned())
            .collect();
        *left = kept;
        match refused.into_iter().map(|(_, error)| error).max_by_key(again) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    };
    let deleted = retry::until(by, [PAUSE, PAUSE].into_iter(), &deps.clock, attempt).await;
    // What is not deleted comes again, and is then found recorded.
    if let Err(error) = deleted {
        metrics::error("sqs", error.label());
        tracing::warn!(error = %Chain(&error), "messages not deleted");
    }
}

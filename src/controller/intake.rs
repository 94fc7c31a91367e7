//! Messages: from the queue to a durable record, and only then off the queue.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::signal::Kind;
use lifeboat_domain::signal::Signal;
use lifeboat_domain::signal::Source;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::adapters::cluster::interruptions;
use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::adapters::cluster::interruptions::Subject;
use crate::adapters::cluster::marks;
use crate::adapters::eventbridge;
use crate::adapters::eventbridge::Event;
use crate::adapters::eventbridge::NotOurs;
use crate::adapters::eventbridge::Reading;
use crate::adapters::sqs::BATCH;
use crate::adapters::sqs::Message;
use crate::adapters::sqs::QueueError;
use crate::controller::Deps;
use crate::controller::first_aid;
use crate::controller::intake::batches::Batches;
use crate::controller::intake::batches::Verb;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;
use crate::retry;
use crate::shutdown::Shutdown;

mod batches;

/// Most messages in hand at a time: what a storm brings beyond it waits in the queue. Many, since
/// every fence goes before every record, and only a record frees its hand.
const IN_HAND_MAX: usize = 16_384;
/// An interruption warning about an instance that we do not know is kept for as many receives: by
/// the last of them its visibility has run out twice.
const RECEIVES_UNKNOWN: u32 = 3;
/// How long a message is kept in hand by extending it, while its record cannot be written.
const KEPT_MAX: Duration = Duration::from_mins(10);
/// The pause between two tries of the record.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause of a poller whose queue does not answer.
const POLL_PAUSE_MAX: Duration = Duration::from_secs(10);

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its record is durable, or it is known not to be ours: off the queue.
    Delete(&'static str),
    /// It comes again when its visibility runs out.
    Leave(&'static str),
}

/// Takes messages until it is asked to end, and then finishes those in hand.
pub async fn run(deps: Arc<Deps>, shutdown: Shutdown) {
    let hands = Arc::new(Semaphore::new(IN_HAND_MAX));
    let (deletes, deleting) = Batches::new(deps.clone(), Verb::Delete);
    let (extends, extending) = Batches::new(deps.clone(), Verb::Extend);
    let mut parts = JoinSet::new();
    parts.spawn(deleting);
    parts.spawn(extending);
    for _ in 0..deps.settings.intake.pollers {
        let (hands, deletes, extends) = (hands.clone(), deletes.clone(), extends.clone());
        let desk = Desk { hands, deletes, extends };
        parts.spawn(poll(deps.clone(), desk, shutdown.clone()));
    }
    // The last poller takes the ways in to the batches with it.
    drop((deletes, extends));
    while parts.join_next().await.is_some() {}
}

/// What pollers share.
#[derive(Clone)]
struct Desk {
    hands: Arc<Semaphore>,
    deletes: Batches,
    extends: Batches,
}

/// A message, and how it is kept in hand.
#[derive(Clone, Copy)]
struct InHand<'a> {
    message: &'a Message,
    extends: &'a Batches,
}

async fn poll(deps: Arc<Deps>, desk: Desk, shutdown: Shutdown) {
    let mut in_hand = JoinSet::new();
    let mut pause = PAUSE;
    loop {
        let received = tokio::select! {
            biased;
            () = shutdown.requested() => break,
            received = receive(&deps, &desk.hands) => received,
        };
        match received {
            Ok(messages) => {
                pause = PAUSE;
                for (message, hand) in messages {
                    in_hand.spawn(settle(deps.clone(), desk.clone(), message, hand));
                }
            }
            Err(error) => {
                complain(&error, "queue not read");
                tokio::select! {
                    biased;
                    () = shutdown.requested() => break,
                    () = tokio::time::sleep(pause) => (),
                }
                pause = (pause * 2).min(POLL_PAUSE_MAX);
            }
        }
        while in_hand.try_join_next().is_some() {}
    }
    while in_hand.join_next().await.is_some() {}
}

/// One receive, with a free hand for each message that it may bring.
async fn receive(
    deps: &Deps,
    hands: &Arc<Semaphore>,
) -> Result<Vec<(Message, OwnedSemaphorePermit)>, QueueError> {
    let mut free = Vec::new();
    for _ in 0..BATCH {
        free.push(hands.clone().acquire_owned().await.expect("no one closes the hands"));
    }
    let intake = &deps.settings.intake;
    let messages = deps.queue.receive(intake.wait, intake.visibility).await?;
    Ok(messages.into_iter().zip(free).collect())
}

async fn settle(deps: Arc<Deps>, desk: Desk, mut message: Message, hand: OwnedSemaphorePermit) {
    // Thousands wait in a storm, and only the handle is needed once it is read.
    let body = std::mem::take(&mut message.body);
    let read = read(&deps, &body, &message.id);
    drop(body);
    let in_hand = InHand { message: &message, extends: &desk.extends };
    let outcome = match weigh(&deps, in_hand, read).await {
        Fate::Delete(outcome) => {
            // One that is not deleted comes again, and is then found recorded.
            desk.deletes.ask(&message).await;
            outcome
        }
        Fate::Leave(outcome) => outcome,
    };
    metrics::message(outcome);
    drop(hand);
}

fn read(deps: &Deps, body: &str, id: &str) -> Option<Reading> {
    let read = eventbridge::read(body.as_bytes(), &deps.settings.home, deps.clock.now());
    read.inspect_err(|error| {
        metrics::error("eventbridge", error.label());
        tracing::warn!(message = %id, error = %Chain(error), "message not read, left to the redrive");
    })
    .ok()
}

async fn weigh(deps: &Deps, in_hand: InHand<'_>, read: Option<Reading>) -> Fate {
    match read {
        Some(Reading::Event(event)) => take(deps, in_hand, &event).await,
        Some(Reading::NotOurs(why)) => Fate::Delete(match why {
            NotOurs::Account => "foreign-account",
            NotOurs::Region => "foreign-region",
            NotOurs::NothingToDo => "nothing-to-do",
        }),
        None => Fate::Leave("unreadable"),
    }
}

async fn take(deps: &Deps, in_hand: InHand<'_>, event: &Event) -> Fate {
    metrics::signal_received(event.kind.label(), Source::Queue.label());
    metrics::signal_age(Source::Queue.label(), elapsed(event.time, deps.clock.now()));
    // Whether an instance is ours is decided only on whole lists.
    let lists = async {
        tokio::join!(deps.caches.nodes.synced(), deps.caches.interruptions.synced());
    };
    if tokio::time::timeout(deps.settings.intake.visibility, lists).await.is_err() {
        return Fate::Leave("not-synced");
    }
    let subjects: Vec<Subject> =
        event.instances.iter().filter_map(|instance| subject(deps, instance, event)).collect();
    if subjects.is_empty() {
        return unknown(in_hand.message, event);
    }
    let recorded = join_all(subjects.iter().map(|one| aid_and_record(deps, in_hand, one, event)));
    let recorded = recorded.await;
    if recorded.into_iter().all(|recorded| recorded) {
        Fate::Delete("recorded")
    } else {
        Fate::Leave("not-recorded")
    }
}

/// A warning may be ahead of its node; anything else about a stranger is none of our business.
fn unknown(message: &Message, event: &Event) -> Fate {
    let warning = matches!(event.kind, Kind::SpotInterruption { .. });
    if warning && message.receives < RECEIVES_UNKNOWN {
        return Fate::Leave("unknown-instance-waiting");
    }
    tracing::info!(kind = event.kind.label(), instances = ?event.instances, "no node of ours");
    Fate::Delete("unknown-instance")
}

/// What a message is about: a node that our selector takes, or a record that is still open.
fn subject(deps: &Deps, instance: &InstanceId, event: &Event) -> Option<Subject> {
    if let Some(row) = deps.caches.interruptions.row(instance) {
        return Some(row.subject());
    }
    let node = deps.caches.node_of(instance, &deps.settings.selector)?;
    let told = event.zone.as_ref().map(ToString::to_string);
    Some(Subject {
        instance: instance.clone(),
        zone: node.zone.or(told).unwrap_or_default(),
        instance_type: node.labels.get(marks::INSTANCE_TYPE).cloned(),
        node: node.name,
    })
}

/// First aid beside the record; answers whether the record is durable.
async fn aid_and_record(
    deps: &Deps,
    in_hand: InHand<'_>,
    subject: &Subject,
    event: &Event,
) -> bool {
    let signal = signal(deps, event);
    let row = told(deps, subject, &signal);
    let aid = async {
        let urgent = row.signals.deadline().is_some() && !row.is_closed();
        if urgent && deps.aided.note(&subject.instance) {
            first_aid::give(deps, &row).await;
        }
    };
    let ((), recorded) = tokio::join!(aid, record(deps, in_hand, subject, &signal));
    recorded
}

/// Writes the record, keeping the message in hand for as long as the API server does not answer:
/// received again and again, it would end in the dead-letter queue for no fault of its own.
async fn record(deps: &Deps, in_hand: InHand<'_>, subject: &Subject, signal: &Signal) -> bool {
    let known = deps.caches.interruptions.row(&subject.instance);
    if known.is_some_and(|row| row.has(signal)) {
        return true;
    }
    let by = Deadline::after(deps.clock.now(), KEPT_MAX);
    let pauses = std::iter::repeat(PAUSE);
    let written = retry::until(by, pauses, &deps.clock, async || {
        let answer = interruptions::record(&deps.first_aid, subject, signal, "controller").await;
        answer.inspect_err(|error| {
            metrics::error("cluster", error.label());
            tracing::warn!(instance = %subject.instance, error = %Chain(error), "signal not recorded");
        })
    });
    tokio::select! {
        biased;
        written = written => written.is_ok(),
        () = keep(deps, in_hand) => false,
    }
}

/// Returns when the message is no longer ours.
async fn keep(deps: &Deps, in_hand: InHand<'_>) {
    let half = deps.settings.intake.visibility / 2;
    loop {
        tokio::time::sleep(half).await;
        if !in_hand.extends.ask(in_hand.message).await {
            return;
        }
    }
}

fn signal(deps: &Deps, event: &Event) -> Signal {
    Signal {
        source: Source::Queue,
        kind: event.kind,
        time: event.time,
        named: event.named,
        heard_at: deps.clock.now(),
        heard_by: deps.settings.identity.clone(),
        detail: None,
    }
}

/// The record as it will be once this signal is in it.
fn told(deps: &Deps, subject: &Subject, signal: &Signal) -> InterruptionRow {
    let known = deps.caches.interruptions.row(&subject.instance);
    let mut row = known.unwrap_or_else(|| InterruptionRow::new(subject));
    row.signals.hear(signal.clone());
    row
}

fn complain(error: &QueueError, what: &'static str) {
    metrics::error("sqs", error.label());
    tracing::warn!(error = %Chain(error), "{what}");
}

//! What SQS knows: queues, messages in them, and what became of each.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

/// All queues of the simulated cloud, by name.
#[derive(Debug, Default)]
pub struct Queues {
    queues: BTreeMap<String, Queue>,
    sent: u64,
}

/// How a queue was set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a received message stays hidden where the receiver names no time.
    pub visibility: Duration,
    /// How long a new message stays hidden where the sender names no time.
    pub delay: Duration,
    /// How long a poll waits where the receiver names no time.
    pub wait: Duration,
    /// How long a message is kept.
    pub retention: Duration,
    /// Where a message goes that was received too often.
    pub redrive: Option<Redrive>,
    /// Who may write and read, as JSON; AWS gives a new queue none.
    pub policy: Option<String>,
}

/// A redrive policy.
#[derive(Clone, Debug)]
pub struct Redrive {
    /// The dead-letter queue's name.
    pub dead_letter_queue: String,
    /// A message received this often goes there instead of being received again.
    pub max_receives: u32,
}

/// A message to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Post<'a> {
    /// Its text.
    pub body: &'a str,
    /// How long it stays hidden, if not as long as the queue says.
    pub delay: Option<Duration>,
}

/// What a receiver asks for.
#[derive(Clone, Copy, Debug)]
pub struct Poll {
    /// At most so many messages.
    pub most: usize,
    /// How long they stay hidden, if not as long as the queue says.
    pub visibility: Option<Duration>,
}

/// A message as its receiver gets it.
#[derive(Clone, Debug)]
pub struct Received {
    /// The message's id.
    pub id: String,
    /// What deletes it, until it is received again.
    pub receipt: String,
    /// Its text.
    pub body: String,
    /// How often it has been received, this time included.
    pub receives: u32,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// When it was first received.
    pub first_received_at: Timestamp,
    /// The queue it was redriven from, by name.
    pub redriven_from: Option<String>,
}

/// How full a queue is, as its attributes tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Ready to be received.
    pub visible: usize,
    /// Received and not yet deleted.
    pub in_flight: usize,
    /// Sent and not yet ready.
    pub delayed: usize,
}

/// One thing that happened to a message; what checkers read.
#[derive(Clone, Debug)]
pub struct Passage {
    /// When.
    pub at: Timestamp,
    /// To which message.
    pub id: String,
    /// Its text.
    pub body: String,
    /// What happened.
    pub kind: PassageKind,
}

/// What can happen to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassageKind {
    /// It was sent.
    Sent,
    /// It was handed to a receiver.
    Received,
    /// It was deleted by a receiver.
    Deleted,
    /// It went to the dead-letter queue.
    Redriven,
    /// Nobody took it in time.
    Expired,
}

/// Why SQS refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// There is no such queue.
    #[error("the specified queue does not exist")]
    NoSuchQueue,
    /// It is no receipt handle, or the message was received again since.
    #[error("the receipt handle is not the message's newest")]
    StaleReceipt,
    /// The message's visibility has run out.
    #[error("the message is not in flight")]
    NotInFlight,
}

#[derive(Debug)]
struct Queue {
    settings: Settings,
    messages: BTreeMap<u64, Message>,
    /// When each becomes ready: whoever polls asks for the first of them after every change.
    due: BTreeSet<(Timestamp, u64)>,
    history: Vec<Passage>,
}

#[derive(Debug)]
struct Message {
    body: String,
    sent_at: Timestamp,
    visible_at: Timestamp,
    first_received_at: Option<Timestamp>,
    receives: u32,
    redriven_from: Option<String>,
}

impl Default for Settings {
    /// What `CreateQueue` gives without attributes.
    fn default() -> Self {
        Self {
            visibility: Duration::from_secs(30),
            delay: Duration::ZERO,
            wait: Duration::ZERO,
            retention: Duration::from_hours(96),
            redrive: None,
            policy: None,
        }
    }
}

impl Queues {
    /// Makes a queue, or gives an old one new settings.
    pub fn create(&mut self, name: &str, settings: Settings) {
        if let Some(queue) = self.queues.get_mut(name) {
            queue.settings = settings;
        } else {
            let queue = Queue {
                settings,
                messages: BTreeMap::new(),
                due: BTreeSet::new(),
                history: Vec::new(),
            };
            self.queues.insert(name.to_owned(), queue);
        }
    }

    /// Removes a queue with all that is in it.
    pub fn remove(&mut self, name: &str) {
        self.queues.remove(name);
    }

    /// The names of all queues.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.queues.keys().map(String::as_str)
    }

    /// How a queue was set up.
    pub fn settings(&self, name: &str) -> Result<&Settings, QueueError> {
        Ok(&self.queue(name)?.settings)
    }

    /// Puts a message in; returns its id.
    pub fn send(&mut self, name: &str, body: &str, now: Timestamp) -> Result<String, QueueError> {
        self.post(name, Post { body, delay: None }, now)
    }

    /// Puts a message in that may have a delay of its own; returns its id.
    pub fn post(
        &mut self,
        name: &str,
        post: Post<'_>,
        now: Timestamp,
    ) -> Result<String, QueueError> {
        let number = self.sent;
        let queue = self.queue_mut(name)?;
        let delay = post.delay.unwrap_or(queue.settings.delay);
        let message = Message {
            body: post.body.to_owned(),
            sent_at: now,
            visible_at: now + delay,
            first_received_at: None,
            receives: 0,
            redriven_from: None,
        };
        queue.history.push(Passage::new(number, &message, now, PassageKind::Sent));
        queue.insert(number, message);
        self.sent += 1;
        Ok(id_of(number))
    }

    /// Takes messages that are ready, oldest first, and hides them.
    ///
    /// What was received too often goes to the dead-letter queue instead, as on SQS, where a
    /// redrive happens when a message would be received once more.
    pub fn receive(
        &mut self,
        name: &str,
        poll: Poll,
        now: Timestamp,
    ) -> Result<Vec<Received>, QueueError> {
        self.redrive(name, now)?;
        let queue = self.queue_mut(name)?;
        let hidden_until = now + poll.visibility.unwrap_or(queue.settings.visibility);
        let ready: Vec<u64> = queue.ready(now).take(poll.most).collect();
        Ok(ready.into_iter().filter_map(|number| queue.take(number, hidden_until, now)).collect())
    }

    /// Deletes a message by its newest receipt.
    ///
    /// What is gone already counts as deleted. SQS promises nothing for an older receipt of a
    /// message that was received again ("the request returns success, but the message might not be
    /// deleted"); here it is refused, so that relying on it is found out.
    pub fn delete(&mut self, name: &str, receipt: &str, now: Timestamp) -> Result<(), QueueError> {
        let queue = self.queue_mut(name)?;
        let number = queue.newest(receipt)?;
        if let Some(message) = queue.remove(number) {
            queue.history.push(Passage::new(number, &message, now, PassageKind::Deleted));
        }
        Ok(())
    }

    /// Hides a message in flight for this long from now.
    pub fn change_visibility(
        &mut self,
        (name, receipt): (&str, &str),
        visibility: Duration,
        now: Timestamp,
    ) -> Result<(), QueueError> {
        let queue = self.queue_mut(name)?;
        let number = queue.newest(receipt)?;
        let message = queue.messages.get(&number).ok_or(QueueError::NotInFlight)?;
        if message.visible_at <= now {
            return Err(QueueError::NotInFlight);
        }
        queue.hide(number, now + visibility);
        Ok(())
    }

    /// When the next message becomes ready, if one is hidden or ready.
    pub fn next_ready(&self, name: &str) -> Result<Option<Timestamp>, QueueError> {
        Ok(self.queue(name)?.due.first().map(|(at, _)| *at))
    }

    /// How full it is.
    pub fn depth(&self, name: &str, now: Timestamp) -> Result<Depth, QueueError> {
        let mut depth = Depth::default();
        for message in self.queue(name)?.messages.values() {
            match (message.visible_at <= now, message.receives) {
                (true, _) => depth.visible += 1,
                (false, 0) => depth.delayed += 1,
                (false, _) => depth.in_flight += 1,
            }
        }
        Ok(depth)
    }

    /// The texts of all messages that are still in a queue, oldest first.
    pub fn bodies(&self, name: &str) -> Vec<&str> {
        let messages = self.queues.get(name).map(|queue| &queue.messages);
        messages.into_iter().flatten().map(|(_, message)| message.body.as_str()).collect()
    }

    /// All that happened to the messages of a queue, in order.
    pub fn history(&self, name: &str) -> &[Passage] {
        self.queues.get(name).map_or(&[], |queue| &queue.history)
    }

    fn queue(&self, name: &str) -> Result<&Queue, QueueError> {
        self.queues.get(name).ok_or(QueueError::NoSuchQueue)
    }

    fn queue_mut(&mut self, name: &str) -> Result<&mut Queue, QueueError> {
        self.queues.get_mut(name).ok_or(QueueError::NoSuchQueue)
    }

    fn redrive(&mut self, name: &str, now: Timestamp) -> Result<(), QueueError> {
        let queue = self.queue_mut(name)?;
        queue.expire(now);
        let Some(redrive) = queue.settings.redrive.clone() else { return Ok(()) };
        let spent: Vec<u64> = queue
            .ready(now)
            .filter(|number| queue.messages[number].receives >= redrive.max_receives)
            .collect();
        for number in spent {
            let queue = self.queue_mut(name)?;
            let Some(mut message) = queue.remove(number) else { continue };
            queue.history.push(Passage::new(number, &message, now, PassageKind::Redriven));
            message.redriven_from = Some(name.to_owned());
            message.visible_at = now;
            let dead_letters = self.queue_mut(&redrive.dead_letter_queue)?;
            dead_letters.history.push(Passage::new(number, &message, now, PassageKind::Sent));
            dead_letters.insert(number, message);
        }
        Ok(())
    }
}

impl Queue {
    /// Those that can be received, the first sent first.
    fn ready(&self, now: Timestamp) -> impl Iterator<Item = u64> + use<> {
        // Far fewer than there are messages, where most are in somebody's hands.
        let due = self.due.range(..=(now, u64::MAX));
        let mut ready: Vec<u64> = due.map(|(_, number)| *number).collect();
        ready.sort_unstable();
        ready.into_iter()
    }

    fn insert(&mut self, number: u64, message: Message) {
        self.due.insert((message.visible_at, number));
        self.messages.insert(number, message);
    }

    fn remove(&mut self, number: u64) -> Option<Message> {
        let message = self.messages.remove(&number)?;
        self.due.remove(&(message.visible_at, number));
        Some(message)
    }

    fn hide(&mut self, number: u64, until: Timestamp) {
        if let Some(message) = self.messages.get_mut(&number) {
            self.due.remove(&(message.visible_at, number));
            message.visible_at = until;
            self.due.insert((until, number));
        }
    }

    fn take(&mut self, number: u64, until: Timestamp, now: Timestamp) -> Option<Received> {
        self.hide(number, until);
        let message = self.messages.get_mut(&number)?;
        message.receives += 1;
        let first_received_at = *message.first_received_at.get_or_insert(now);
        let received = Received {
            id: id_of(number),
            receipt: format!("{number}.{}", message.receives),
            body: message.body.clone(),
            receives: message.receives,
            sent_at: message.sent_at,
            first_received_at,
            redriven_from: message.redriven_from.clone(),
        };
        self.history.push(Passage::new(number, message, now, PassageKind::Received));
        Some(received)
    }

    /// The message's number, if the receipt is its newest or it is gone.
    fn newest(&self, receipt: &str) -> Result<u64, QueueError> {
        let (number, receives) = receipt.split_once('.').ok_or(QueueError::StaleReceipt)?;
        let number = number.parse().map_err(|_| QueueError::StaleReceipt)?;
        let receives: u32 = receives.parse().map_err(|_| QueueError::StaleReceipt)?;
        match self.messages.get(&number) {
            Some(message) if message.receives != receives => Err(QueueError::StaleReceipt),
            Some(_) | None => Ok(number),
        }
    }

    fn expire(&mut self, now: Timestamp) {
        let retention = self.settings.retention;
        let old: Vec<u64> = self
            .messages
            .iter()
            .filter_map(|(number, message)| (message.sent_at + retention <= now).then_some(*number))
            .collect();
        for number in old {
            if let Some(message) = self.remove(number) {
                self.history.push(Passage::new(number, &message, now, PassageKind::Expired));
            }
        }
    }
}

impl Passage {
    fn new(number: u64, message: &Message, at: Timestamp, kind: PassageKind) -> Self {
        Self { at, id: id_of(number), body: message.body.clone(), kind }
    }
}

fn id_of(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn poll(most: usize) -> Poll {
        Poll { most, visibility: None }
    }

    fn queues(settings: Settings) -> Queues {
        let mut queues = Queues::default();
        queues.create("ours", settings);
        queues.create("dead", Settings::default());
        queues
    }

    #[test]
    fn an_older_receipt_is_refused_once_the_message_is_received_again() {
        let mut queues = queues(Settings::default());
        queues.send("ours", "hello", at(0)).unwrap();
        let first = queues.receive("ours", poll(1), at(0)).unwrap();
        let second = queues.receive("ours", poll(1), at(30)).unwrap();
        let stale = queues.delete("ours", &first[0].receipt, at(31));
        assert_eq!(stale, Err(QueueError::StaleReceipt));
        queues.delete("ours", &second[0].receipt, at(31)).unwrap();
        queues.delete("ours", &second[0].receipt, at(31)).unwrap();
        assert!(queues.bodies("ours").is_empty());
    }

    #[test]
    fn an_expired_receipt_deletes_while_nobody_received_again_but_changes_nothing() {
        let mut queues = queues(Settings::default());
        queues.send("ours", "hello", at(0)).unwrap();
        let first = queues.receive("ours", poll(1), at(0)).unwrap();
        let late =
            queues.change_visibility(("ours", &first[0].receipt), Duration::from_secs(9), at(30));
        assert_eq!(late, Err(QueueError::NotInFlight));
        queues.delete("ours", &first[0].receipt, at(30)).unwrap();
    }

    #[test]
    fn a_message_received_too_often_goes_to_the_dead_letter_queue() {
        let redrive = Redrive { dead_letter_queue: "dead".to_owned(), max_receives: 2 };
        let mut queues = queues(Settings { redrive: Some(redrive), ..Settings::default() });
        queues.send("ours", "noise", at(0)).unwrap();
        assert_eq!(queues.receive("ours", poll(10), at(0)).unwrap().len(), 1);
        assert_eq!(queues.receive("ours", poll(10), at(30)).unwrap()[0].receives, 2);
        assert_eq!(queues.receive("ours", poll(10), at(60)).unwrap().len(), 0);
        let dead = queues.receive("dead", poll(10), at(60)).unwrap();
        assert_eq!(dead[0].redriven_from.as_deref(), Some("ours"));
        assert_eq!(dead[0].receives, 3);
    }

    #[test]
    fn depth_tells_ready_from_hidden_from_delayed() {
        let delay = Duration::from_secs(5);
        let mut queues = queues(Settings { delay, ..Settings::default() });
        for body in ["a", "b", "c"] {
            queues.post("ours", Post { body, delay: Some(Duration::ZERO) }, at(0)).unwrap();
        }
        queues.send("ours", "d", at(0)).unwrap();
        queues.receive("ours", poll(1), at(0)).unwrap();
        let depth = queues.depth("ours", at(1)).unwrap();
        assert_eq!(depth, Depth { visible: 2, in_flight: 1, delayed: 1 });
        assert_eq!(queues.next_ready("ours").unwrap(), Some(at(0)));
    }
}

//! Requests in flight: how many there may be, and who is next where more would be sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::oneshot;

/// Requests that may be begun beside a fence: the server's processors are shared by all that is in
/// flight, and a fence comes first. Never none, for a fence may hang.
const BESIDE_FENCES: usize = 8;

/// How urgent a request is. The more urgent goes first, however long others have waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A fence: until it stands, the scheduler sends new work onto a dying node.
    Fence,
    /// The rest of first aid: holds and records.
    FirstAid,
    /// Everything else.
    Routine,
}

/// Slots for requests in flight, some of them never taken by routine.
#[derive(Clone, Debug)]
pub struct Slots {
    desk: Arc<Mutex<Desk>>,
}

/// A slot that is taken; dropping it lets the next one in.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    urgency: Urgency,
}

#[derive(Debug)]
struct Desk {
    free: usize,
    /// Slots that routine leaves free.
    kept: usize,
    /// Fences in flight.
    fences: usize,
    /// Everything else in flight.
    others: usize,
    arrivals: u64,
    waiting: BTreeMap<(Urgency, u64), oneshot::Sender<Slot>>,
}

impl Slots {
    /// `all` requests at a time, of which `kept` are never routine.
    pub fn new(all: usize, kept: usize) -> Self {
        let desk =
            Desk { free: all, kept, fences: 0, others: 0, arrivals: 0, waiting: BTreeMap::new() };
        Self { desk: Arc::new(Mutex::new(desk)) }
    }

    /// Waits for a slot. Whoever stops waiting loses nothing.
    pub async fn take(&self, urgency: Urgency) -> Slot {
        let (caller, turn) = oneshot::channel();
        {
            let mut desk = self.desk();
            desk.arrivals += 1;
            let number = desk.arrivals;
            desk.waiting.insert((urgency, number), caller);
        }
        self.call();
        turn.await.expect("who waits is called, for the desk outlives its slots")
    }

    /// Calls who is next, as long as there is room for them.
    fn call(&self) {
        loop {
            let Some((urgency, caller)) = self.desk().next() else { return };
            // Who has gone away gives the slot back by not taking it.
            drop(caller.send(Slot { slots: self.clone(), urgency }));
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Nothing that can panic runs under the lock.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    /// The most urgent who still waits, with a slot taken for it.
    fn next(&mut self) -> Option<(Urgency, oneshot::Sender<Slot>)> {
        while let Some(first) = self.waiting.first_entry() {
            if first.get().is_closed() {
                first.remove();
                continue;
            }
            let (urgency, _) = *first.key();
            let room = match urgency {
                Urgency::Fence => self.free > 0,
                Urgency::FirstAid => self.free > 0 && beside(self.fences, self.others),
                Urgency::Routine => self.free > self.kept && beside(self.fences, self.others),
            };
            if !room {
                return None;
            }
            let caller = first.remove();
            self.free -= 1;
            *self.in_flight(urgency) += 1;
            return Some((urgency, caller));
        }
        None
    }

    fn in_flight(&mut self, urgency: Urgency) -> &mut usize {
        match urgency {
            Urgency::Fence => &mut self.fences,
            Urgency::FirstAid | Urgency::Routine => &mut self.others,
        }
    }
}

fn beside(fences: usize, others: usize) -> bool {
    fences == 0 || others < BESIDE_FENCES
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut desk = self.slots.desk();
        desk.free += 1;
        *desk.in_flight(self.urgency) -= 1;
        drop(desk);
        self.slots.call();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_fence_goes_before_whoever_waited_longer() {
        let slots = Slots::new(1, 0);
        let only = slots.take(Urgency::Routine).await;
        let mut routine = Box::pin(slots.take(Urgency::Routine));
        let mut aid = Box::pin(slots.take(Urgency::FirstAid));
        let mut fence = Box::pin(slots.take(Urgency::Fence));
        assert!(routine.as_mut().now_or_never().is_none());
        assert!(aid.as_mut().now_or_never().is_none());
        assert!(fence.as_mut().now_or_never().is_none());
        drop(only);
        assert!(routine.as_mut().now_or_never().is_none());
        assert!(aid.as_mut().now_or_never().is_none());
        let first = fence.now_or_never().unwrap();
        drop(first);
        drop(aid.now_or_never().unwrap());
        assert!(routine.now_or_never().is_some());
    }

    #[tokio::test]
    async fn routine_leaves_slots_for_first_aid() {
        let slots = Slots::new(2, 1);
        let _first = slots.take(Urgency::Routine).await;
        assert!(slots.take(Urgency::Routine).now_or_never().is_none());
        assert!(slots.take(Urgency::FirstAid).now_or_never().is_some());
    }

    #[tokio::test]
    async fn beside_a_fence_only_a_few_others_are_in_flight() {
        let slots = Slots::new(64, 16);
        let fence = slots.take(Urgency::Fence).await;
        let mut others = Vec::new();
        while let Some(other) = slots.take(Urgency::FirstAid).now_or_never() {
            others.push(other);
        }
        assert_eq!(others.len(), BESIDE_FENCES);
        drop(fence);
        assert!(slots.take(Urgency::FirstAid).now_or_never().is_some());
    }

    #[tokio::test]
    async fn whoever_stops_waiting_takes_no_slot() {
        let slots = Slots::new(1, 0);
        let only = slots.take(Urgency::Fence).await;
        assert!(slots.take(Urgency::Fence).now_or_never().is_none());
        drop(only);
        assert!(slots.take(Urgency::Routine).now_or_never().is_some());
    }
}

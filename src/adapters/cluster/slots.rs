//! Requests in flight: how many there may be, and who is next where more would be sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long everything else stands back while a fence is in flight: the server's processors and
/// its disk are shared by all that is asked of it. No longer, for a fence may hang.
const HEAD_START: Duration = Duration::from_millis(500);
/// Requests that may be in flight beside fences once they have stood back for so long.
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
    waiting: BTreeMap<(Urgency, u64), Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    caller: oneshot::Sender<Slot>,
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
        let (caller, mut turn) = oneshot::channel();
        {
            let mut desk = self.desk();
            desk.arrivals += 1;
            let number = desk.arrivals;
            desk.waiting.insert((urgency, number), Waiting { since: Instant::now(), caller });
        }
        self.call();
        // Nobody gives a slot back when the head start of fences is over.
        let slot = if let Ok(slot) = tokio::time::timeout(HEAD_START, &mut turn).await {
            slot
        } else {
            self.call();
            turn.await
        };
        slot.expect("who waits is called, for the desk outlives its slots")
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
            if first.get().caller.is_closed() {
                first.remove();
                continue;
            }
            let (urgency, _) = *first.key();
            let stood_back = first.get().since.elapsed() >= HEAD_START;
            let beside = self.fences == 0 || (stood_back && self.others < BESIDE_FENCES);
            let room = match urgency {
                Urgency::Fence => self.free > 0,
                Urgency::FirstAid => self.free > 0 && beside,
                Urgency::Routine => self.free > self.kept && beside,
            };
            if !room {
                return None;
            }
            let Waiting { caller, .. } = first.remove();
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
    use tokio::task::JoinSet;
    use tokio::time::timeout;

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

    #[tokio::test(start_paused = true)]
    async fn everything_else_stands_back_for_a_fence_but_not_for_ever() {
        let slots = Slots::new(64, 16);
        let fence = slots.take(Urgency::Fence).await;
        let asked = Instant::now();
        let mut others = JoinSet::new();
        for _ in 0..20 {
            let slots = slots.clone();
            others.spawn(async move { slots.take(Urgency::FirstAid).await });
        }
        let mut in_flight = Vec::new();
        while let Ok(Some(other)) = timeout(HEAD_START * 2, others.join_next()).await {
            assert!(asked.elapsed() >= HEAD_START);
            in_flight.push(other.unwrap());
        }
        assert_eq!(in_flight.len(), BESIDE_FENCES);
        drop(fence);
        while let Some(other) = others.join_next().await {
            in_flight.push(other.unwrap());
        }
        assert_eq!(in_flight.len(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stands_back_goes_on_when_the_fence_is_answered() {
        let slots = Slots::new(64, 16);
        let fence = slots.take(Urgency::Fence).await;
        let asked = Instant::now();
        let mut other = Box::pin(slots.take(Urgency::FirstAid));
        assert!(other.as_mut().now_or_never().is_none());
        drop(fence);
        drop(other.await);
        assert_eq!(asked.elapsed(), Duration::ZERO);
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

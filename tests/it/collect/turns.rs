//! Two processes whose requests are let through one by one, in an order that is given.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;

use lifeboat_chaos::wire::Wire;
use lifeboat_chaos::wire::call;
use lifeboat_chaos::wire::wire;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;

/// Who begins, how many requests it makes, and how many the other one makes after that. Then the first
/// goes on to its end, and the other after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    pub(crate) begins: usize,
    pub(crate) first: usize,
    pub(crate) second: usize,
}

/// Requests of two processes, held until it is their turn.
pub(crate) struct Turns {
    gates: [Gate; 2],
}

/// Where the requests of one process wait.
#[derive(Clone)]
pub(crate) struct Gate {
    open: Arc<Semaphore>,
    passed: mpsc::UnboundedSender<()>,
    heard: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<()>>>,
}

impl Gate {
    fn new() -> Self {
        let (passed, heard) = mpsc::unbounded_channel();
        let heard = Arc::new(tokio::sync::Mutex::new(heard));
        Self { open: Arc::new(Semaphore::new(0)), passed, heard }
    }

    /// A wire behind this gate: a request is answered after its turn has come.
    pub(crate) fn before(&self, inner: Wire) -> Wire {
        let gate = self.clone();
        wire(move |request| {
            let (gate, inner) = (gate.clone(), inner.clone());
            async move {
                gate.open.acquire().await.unwrap().forget();
                let answer = call(&inner, request).await;
                gate.passed.send(()).ok();
                answer
            }
        })
    }
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self { gates: [Gate::new(), Gate::new()] }
    }

    pub(crate) fn gate(&self, which: usize) -> Gate {
        self.gates[which].clone()
    }

    /// Plays both to their ends. Says, too, whether one of them ended before its part was over: then
    /// orders with longer parts are the same.
    pub(crate) async fn play<A, B>(
        &self,
        order: Order,
        one: impl Future<Output = A>,
        other: impl Future<Output = B>,
    ) -> (A, B, bool) {
        let ended = [Cell::new(false), Cell::new(false)];
        let one = async {
            let came = one.await;
            ended[0].set(true);
            self.gates[0].passed.send(()).ok();
            came
        };
        let other = async {
            let came = other.await;
            ended[1].set(true);
            self.gates[1].passed.send(()).ok();
            came
        };
        let (first, second) = (order.begins, 1 - order.begins);
        let through = async {
            self.let_through(first, order.first, &ended[first]).await;
            let made = self.let_through(second, order.second, &ended[second]).await;
            let early = made < order.second || ended[first].get();
            self.let_through(first, usize::MAX, &ended[first]).await;
            self.let_through(second, usize::MAX, &ended[second]).await;
            early
        };
        let (early, one, other) = tokio::join!(through, one, other);
        (one, other, early)
    }

    /// Lets so many requests through, one after the other; says how many there were.
    async fn let_through(&self, which: usize, most: usize, ended: &Cell<bool>) -> usize {
        let gate = &self.gates[which];
        let mut heard = gate.heard.lock().await;
        let mut made = 0;
        while made < most && !ended.get() {
            gate.open.add_permits(1);
            // It may wait for something else, as for a pause: then time moves on.
            heard.recv().await;
            made += usize::from(!ended.get());
        }
        // What was let through and not used would be used out of turn.
        gate.open.forget_permits(gate.open.available_permits());
        made
    }
}

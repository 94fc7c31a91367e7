//! SIGTERM: save at the next safe point, stay until the last byte is taken, end with 143.

use std::io;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Terminating;
use signal_hook::SigId;
use signal_hook::consts::SIGTERM;
use signal_hook::low_level;

use crate::boottime::Moment;
use crate::error::Error;
use crate::event::Event;
use crate::shared::Link;
use crate::shared::Order;
use crate::shared::Passing;
use crate::shared::Shared;
use crate::shared::State;
use crate::shared::system;

/// How long the agent has to answer that SIGTERM came.
const ANSWER: Duration = Duration::from_secs(5);
/// How long an agent that went away has to come back.
const RETURN: Duration = Duration::from_secs(20);

/// Boats that listen to SIGTERM.
static WATCHES: AtomicUsize = AtomicUsize::new(0);
/// Whether none does; only where SIGTERM had its default before the first of them.
static ALONE: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Listens to SIGTERM until dropped. Handlers that were there before are called as before; where
/// there was none, SIGTERM ends the program again once no boat is left.
pub(crate) struct Watch {
    signal: SigId,
    /// Closed to end the thread.
    wake: UnixStream,
}

impl Watch {
    pub(crate) fn start(shared: &Arc<Shared>) -> Result<Self, Error> {
        restore_default_afterwards().map_err(system("SIGTERM"))?;
        let (mut heard, wake) = UnixStream::pair().map_err(system("pipe for SIGTERM"))?;
        let into = wake.try_clone().map_err(system("pipe for SIGTERM"))?;
        let signal = low_level::pipe::register(SIGTERM, into).map_err(system("SIGTERM"))?;
        let shared = Arc::clone(shared);
        let listen = move || {
            if wait_for_signal(&mut heard) {
                terminate(&shared);
            }
        };
        let thread = thread::Builder::new().name("lifeboat-sigterm".into()).spawn(listen);
        thread.map_err(system("thread for SIGTERM"))?;
        WATCHES.fetch_add(1, Ordering::SeqCst);
        if let Some(alone) = ALONE.get() {
            alone.store(false, Ordering::SeqCst);
        }
        Ok(Self { signal, wake })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let last = WATCHES.fetch_sub(1, Ordering::SeqCst) == 1;
        if let Some(alone) = ALONE.get().filter(|_| last) {
            alone.store(true, Ordering::SeqCst);
        }
        low_level::unregister(self.signal);
        let _already = self.wake.shutdown(std::net::Shutdown::Both);
    }
}

/// A handler that was taken back leaves the signal ignored: so the default is put in its place.
fn restore_default_afterwards() -> io::Result<()> {
    if ALONE.get().is_some() || !is_default()? {
        return Ok(());
    }
    let alone = Arc::new(AtomicBool::new(false));
    if ALONE.set(Arc::clone(&alone)).is_ok() {
        signal_hook::flag::register_conditional_default(SIGTERM, alone)?;
    }
    Ok(())
}

/// Whether nobody catches or ignores SIGTERM. Source: proc(5), `SigCgt` and `SigIgn`.
fn is_default() -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let masks = status.lines().filter_map(|line| {
        let mask = line.strip_prefix("SigCgt:").or_else(|| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    Ok(masks.fold(0, |all, mask| all | mask) & (1 << (SIGTERM - 1)) == 0)
}

fn wait_for_signal(heard: &mut UnixStream) -> bool {
    loop {
        match heard.read(&mut [0]) {
            Ok(bytes) => return bytes > 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(_) => return false,
        }
    }
}

/// The same, where the program heard the signal.
pub(crate) fn told(shared: &Arc<Shared>) -> Result<(), Error> {
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new().name("lifeboat-sigterm".into());
    let spawned = thread.spawn(move || terminate(&shared));
    spawned.map(drop).map_err(system("thread for SIGTERM"))
}

fn terminate(shared: &Shared) {
    let now = Moment::now();
    let (generation, again) = shared.change(|state| {
        let again = state.terminating.is_some();
        state.terminating.get_or_insert(now);
        (state.generation, again)
    });
    if again {
        return;
    }
    shared.observe(&Event::Terminating);
    let step = shared.step();
    // Over a line that is down it is said with the next hello.
    let terminating = FromWorkload::Terminating(Terminating { step });
    let _said_later = shared.send(generation, &terminating);
    let settled = shared.wait(|state| {
        if state.closing {
            return ControlFlow::Break(None);
        }
        // With a folder the program's own thread saves and ends.
        if shared.settings.here().is_some() && shared.step().is_some() {
            return ControlFlow::Continue(None);
        }
        match settled(state, now, shared.step()) {
            ControlFlow::Break(reason) => ControlFlow::Break(Some(reason)),
            ControlFlow::Continue(again) => ControlFlow::Continue(again),
        }
    });
    if let Some(reason) = settled {
        shared.exit(reason);
    }
}

/// Why there is nothing left to wait for, or when to look again.
fn settled(state: &State, told: Moment, step: Option<u64>) -> ControlFlow<String, Option<Moment>> {
    if state.finished {
        return ControlFlow::Continue(None);
    }
    if let Some(reason) = &state.leave {
        return ControlFlow::Break(reason.clone());
    }
    let Some(step) = step else {
        return ControlFlow::Break("nothing is to be saved yet".to_owned());
    };
    if state.parked.as_ref().is_some_and(|parked| parked.taken) {
        return ControlFlow::Break(format!("step {step} is handed over"));
    }
    let passing = state.hand.as_ref().is_some_and(|hand| hand.progress == Passing::UnderWay);
    match state.link {
        Link::Never => ControlFlow::Break("no agent answers".to_owned()),
        Link::Up(_) if passing || !matches!(state.order, Order::None) => {
            ControlFlow::Continue(None)
        }
        Link::Up(since) => {
            let handed = state.hand.as_ref().map_or(told, |hand| hand.since);
            until(since.max(told).max(handed).after(ANSWER), "the agent does not ask for its state")
        }
        Link::Down(since) => until(since.max(told).after(RETURN), "the agent did not come back"),
    }
}

fn until(limit: Moment, reason: &str) -> ControlFlow<String, Option<Moment>> {
    if limit.left().is_zero() {
        return ControlFlow::Break(reason.to_owned());
    }
    ControlFlow::Continue(Some(limit))
}

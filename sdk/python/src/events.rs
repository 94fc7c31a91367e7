//! What happens to the program, told to a Python function on a thread of its own: the boat's threads
//! must not wait for the interpreter.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;

use lifeboat_sdk::Event;
use pyo3::prelude::*;

use crate::ending;

/// Events that may wait; beyond that they are printed.
const WAITING_MAX: usize = 1024;
/// How long the end of the program waits for events to be told.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Something that happened to the program. Its text is the line that is logged.
#[pyclass(frozen, name = "Event", module = "lifeboat._core")]
pub struct Happening {
    event: Event,
}

/// Tells a function what happens.
pub(crate) struct Events {
    into: SyncSender<Message>,
    /// Python is about to end, and must not be called any more.
    quiet: AtomicBool,
}

enum Message {
    Event(Event),
    /// Answered when all before it are told.
    End(SyncSender<()>),
}

impl Events {
    pub(crate) fn start(observer: Py<PyAny>) -> PyResult<Self> {
        let (into, from) = mpsc::sync_channel(WAITING_MAX);
        let tell = move || tell(&observer, &from);
        thread::Builder::new().name("lifeboat-events".into()).spawn(tell)?;
        Ok(Self { into, quiet: AtomicBool::new(false) })
    }

    pub(crate) fn tell(&self, event: &Event) {
        let quiet = self.quiet.load(Ordering::SeqCst);
        if quiet || self.into.try_send(Message::Event(event.clone())).is_err() {
            print(event);
        }
        if let Event::Exiting { code, .. } = event {
            self.drain();
            ending::end(*code);
        }
    }

    /// Tells what happened so far, and from then on prints what happens: a thread that writes while
    /// Python ends is an error that aborts the process.
    pub(crate) fn quiet(&self) {
        self.quiet.store(true, Ordering::SeqCst);
        self.drain();
    }

    fn drain(&self) {
        let (told, all) = mpsc::sync_channel(1);
        if self.into.try_send(Message::End(told)).is_ok() {
            // Or not, if the function does not return: the program ends all the same.
            let _all_or_not = all.recv_timeout(LAST_WORDS);
        }
    }
}

/// A line for people.
#[expect(clippy::print_stderr, reason = "the one place where the boat speaks to people")]
pub(crate) fn print(event: &Event) {
    eprintln!("lifeboat: {event}");
}

fn tell(observer: &Py<PyAny>, from: &Receiver<Message>) {
    for message in from {
        match message {
            Message::Event(event) => {
                Python::try_attach(|py| {
                    if let Err(error) = observer.call1(py, (Happening { event },)) {
                        error.write_unraisable(py, Some(observer.bind(py)));
                    }
                });
            }
            Message::End(told) => {
                // Whoever asked may have waited long enough.
                let _nobody_waits = told.try_send(());
            }
        }
    }
}

#[pymethods]
#[expect(clippy::wildcard_enum_match_arm, reason = "most events have but some of it")]
impl Happening {
    #[getter]
    fn name(&self) -> &'static str {
        match &self.event {
            Event::Connected { .. } => "connected",
            Event::NoAgent { .. } => "no-agent",
            Event::AgentLost => "agent-lost",
            Event::Successor { .. } => "successor",
            Event::Noticed(_) => "noticed",
            Event::Asked { .. } => "asked",
            Event::Parked { .. } => "parked",
            Event::HandedOver { .. } => "handed-over",
            Event::Expected { .. } => "expected",
            Event::Forecast { .. } => "forecast",
            Event::Durable { .. } => "durable",
            Event::StepTooLong { .. } => "step-too-long",
            Event::NotSaved { .. } => "not-saved",
            Event::GoesOn { .. } => "goes-on",
            Event::Reading { .. } => "reading",
            Event::Waiting { .. } => "waiting",
            Event::Resumed { .. } => "resumed",
            Event::NothingToRestore { .. } => "nothing-to-restore",
            Event::Terminating => "terminating",
            Event::Exiting { .. } => "exiting",
            Event::Finished => "finished",
            _ => "other",
        }
    }

    #[getter]
    fn step(&self) -> Option<u64> {
        match &self.event {
            Event::Parked { step, .. } => *step,
            Event::HandedOver { step, .. }
            | Event::Durable { step, .. }
            | Event::Reading { step, .. }
            | Event::Resumed { step, .. } => Some(*step),
            _ => None,
        }
    }

    #[getter]
    fn epoch(&self) -> Option<u64> {
        match &self.event {
            Event::Durable { epoch, .. }
            | Event::Reading { epoch, .. }
            | Event::Resumed { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }

    #[getter]
    fn bytes(&self) -> Option<u64> {
        match &self.event {
            Event::HandedOver { bytes, .. }
            | Event::Durable { bytes, .. }
            | Event::Reading { bytes, .. } => Some(*bytes),
            _ => None,
        }
    }

    #[getter]
    fn seconds(&self) -> Option<f64> {
        match &self.event {
            Event::HandedOver { took, .. }
            | Event::Durable { took, .. }
            | Event::StepTooLong { took, .. } => Some(took.as_secs_f64()),
            Event::Asked { left, .. } => left.map(|left| left.as_secs_f64()),
            Event::Expected { left, .. } => Some(left.as_secs_f64()),
            Event::Noticed(notice) => notice.remaining().map(|left| left.as_secs_f64()),
            _ => None,
        }
    }

    #[getter]
    fn spare_seconds(&self) -> Option<i64> {
        match &self.event {
            Event::Durable { spare_seconds, .. } | Event::Expected { spare_seconds, .. } => {
                *spare_seconds
            }
            _ => None,
        }
    }

    #[getter]
    fn reason(&self) -> Option<&str> {
        match &self.event {
            Event::NoAgent { reason }
            | Event::Parked { reason, .. }
            | Event::NotSaved { reason }
            | Event::GoesOn { reason }
            | Event::Waiting { reason }
            | Event::NothingToRestore { reason }
            | Event::Exiting { reason, .. } => Some(reason),
            Event::Resumed { proof, .. } => Some(proof),
            Event::Forecast { text, .. } => Some(text),
            _ => None,
        }
    }

    #[getter]
    fn code(&self) -> Option<i32> {
        match &self.event {
            Event::Exiting { code, .. } => Some(*code),
            _ => None,
        }
    }

    fn __str__(&self) -> String {
        self.event.to_string()
    }

    fn __repr__(&self) -> String {
        format!("Event({}: {})", self.name(), self.event)
    }
}

//! The boat as Python calls it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_sdk::Boat;
use lifeboat_sdk::Cause;
use lifeboat_sdk::Error;
use lifeboat_sdk::Event;
use lifeboat_sdk::Part;
use lifeboat_sdk::Required;
use lifeboat_sdk::Settings;
use lifeboat_sdk::Signals;
use pyo3::prelude::*;

use crate::ending;
use crate::errors::Fault;
use crate::events;
use crate::events::Events;
use crate::fork;
use crate::part::PythonPart;

/// A boat. In a fork it does nothing: the child has neither its threads nor its place at the agent.
#[pyclass(frozen, module = "lifeboat._core")]
pub struct Core {
    /// Taken only when it is dropped.
    boat: Option<Boat>,
    life: u64,
    fault: Fault,
    saves: Saves,
    events: Option<Arc<Events>>,
}

/// Whether there is anywhere to save to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Saves {
    Somewhere,
    Nowhere,
}

#[pymethods]
impl Core {
    #[staticmethod]
    fn connect(
        py: Python<'_>,
        socket: Option<PathBuf>,
        folder: Option<PathBuf>,
        given: (Option<bool>, Option<Py<PyAny>>),
    ) -> PyResult<Self> {
        let fault = Fault::default();
        let (required, observer) = given;
        let settings = settings((socket, folder), required, &fault);
        let mut settings = fault.or(py, settings)?;
        let events = observer.map(Events::start).transpose()?.map(Arc::new);
        if let Some(events) = events.clone() {
            settings.observer = Arc::new(move |event| events.tell(event));
        }
        let nowhere = settings.socket.is_none() && settings.folder.is_none();
        let saves = if nowhere { Saves::Nowhere } else { Saves::Somewhere };
        let boat = py.detach(|| Boat::with(settings));
        let boat = Some(fault.or(py, boat)?);
        Ok(Self { boat, life: fork::life(), fault, saves, events })
    }

    fn register(&self, name: &str, object: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = object.py();
        let Some(boat) = self.here() else { return Ok(()) };
        let part = PythonPart::new(name, object, &self.fault)?;
        let mut part = Part::collection(Arc::new(part));
        if object.getattr("replicated")?.is_truthy()? {
            part = part.replicated();
        }
        self.fault.or(py, py.detach(|| boat.register(name, part)))
    }

    fn restore(&self, py: Python<'_>, newer_than: Option<u64>) -> PyResult<Option<u64>> {
        let Some(boat) = self.here() else { return Ok(None) };
        let restored = py.detach(|| match newer_than {
            Some(step) => boat.restore_newer_than(step),
            None => boat.restore(),
        });
        self.fault.or(py, restored)
    }

    fn step(&self, py: Python<'_>, step: u64) -> PyResult<()> {
        let Some(boat) = self.here().filter(|boat| boat.reached(step)) else { return Ok(()) };
        self.fault.or(py, py.detach(|| boat.step(step)))
    }

    fn safe_point(&self, py: Python<'_>) -> PyResult<()> {
        let Some(boat) = self.here() else { return Ok(()) };
        self.fault.or(py, py.detach(|| boat.safe_point()))
    }

    fn save(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        let Some(boat) = self.here() else { return Ok(None) };
        self.fault.or(py, py.detach(|| boat.save()))
    }

    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let Some(boat) = self.here() else { return Ok(()) };
        self.fault.or(py, py.detach(|| boat.finish()))
    }

    fn on_notice(&self, py: Python<'_>, hook: Py<PyAny>) {
        let Some(boat) = self.here() else { return };
        let call = move |notice: &lifeboat_sdk::Notice| {
            Python::try_attach(|py| {
                let notice = Notice { notice: notice.clone() };
                if let Err(error) = hook.call1(py, (notice,)) {
                    error.write_unraisable(py, Some(hook.bind(py)));
                }
            });
        };
        py.detach(|| boat.on_notice(call));
    }

    fn terminate(&self, py: Python<'_>) -> PyResult<()> {
        let Some(boat) = self.here() else { return Ok(()) };
        self.fault.or(py, py.detach(|| boat.terminate()))
    }

    fn close(&self, py: Python<'_>) {
        if let Some(boat) = self.here() {
            py.detach(|| boat.close());
        }
    }

    /// Python is about to end.
    fn quiet(&self, py: Python<'_>) {
        if let Some(events) = self.events.as_ref().filter(|_| self.here().is_some()) {
            py.detach(|| events.quiet());
        }
    }

    #[getter]
    fn finished(&self, py: Python<'_>) -> bool {
        self.here().is_some_and(|boat| py.detach(|| boat.is_finished()))
    }

    #[getter]
    fn saves(&self) -> bool {
        self.here().is_some() && self.saves == Saves::Somewhere
    }
}

impl Core {
    /// The boat, in the process that it belongs to.
    fn here(&self) -> Option<&Boat> {
        self.boat.as_ref().filter(|_| self.life == fork::life())
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // In a fork a lock may be held for ever, and the line to the agent is the parent's.
        if self.life != fork::life() {
            std::mem::forget(self.boat.take());
        }
    }
}

/// That the node's or the program's end is near, or may be.
#[pyclass(frozen, module = "lifeboat._core")]
pub struct Notice {
    notice: lifeboat_sdk::Notice,
}

#[pymethods]
impl Notice {
    #[getter]
    fn cause(&self) -> &'static str {
        match self.notice.cause {
            Cause::Interruption => "interruption",
            Cause::Rebalance => "rebalance",
            Cause::Maintenance => "maintenance",
            Cause::Ending => "ending",
            Cause::Asked => "asked",
            Cause::Background => "background",
            Cause::Unknown => "unknown",
        }
    }

    #[getter]
    fn text(&self) -> &str {
        &self.notice.text
    }

    fn remaining(&self) -> Option<f64> {
        self.notice.remaining().map(|left| left.as_secs_f64())
    }
}

/// As the environment says, but for what the program says itself.
fn settings(
    (socket, folder): (Option<PathBuf>, Option<PathBuf>),
    required: Option<bool>,
    fault: &Fault,
) -> Result<Settings, Error> {
    let given = Settings::from_environment(|name| std::env::var(name).ok())?;
    let interrupted = fault.clone();
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method is not general enough"
    )]
    let signals = || Python::try_attach(|py| py.check_signals());
    let pulse = move || match signals() {
        Some(Err(error)) => {
            interrupted.keep(error);
            ControlFlow::Break(())
        }
        Some(Ok(())) | None => ControlFlow::Continue(()),
    };
    let required = required.map(|yes| if yes { Required::Yes } else { Required::No });
    Ok(Settings {
        socket: socket.or(given.socket),
        folder: folder.or(given.folder),
        required: required.unwrap_or(given.required),
        // The package listens as Python does: `lifeboat._signals`.
        signals: Signals::Left,
        observer: Arc::new(observe),
        pulse: Some(Arc::new(pulse)),
        ..given
    })
}

/// Called from the boat's own threads too, which must not wait for the interpreter.
fn observe(event: &Event) {
    events::print(event);
    if let Event::Exiting { code, .. } = event {
        ending::end(*code);
    }
}

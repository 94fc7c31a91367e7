//! Errors of the SDK as exceptions of the package.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use lifeboat_sdk::Error;
use pyo3::prelude::*;

/// An exception that was raised where none can pass: within a call of the SDK.
#[derive(Clone, Default)]
pub(crate) struct Fault(Arc<Mutex<Option<PyErr>>>);

impl Fault {
    /// Keeps the first one.
    pub(crate) fn keep(&self, error: PyErr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// What a call of the SDK came to: the exception that was kept goes before its own error.
    pub(crate) fn or<T>(&self, py: Python<'_>, result: Result<T, Error>) -> PyResult<T> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (kept, result) {
            (Some(error), _) => Err(error),
            (None, Ok(value)) => Ok(value),
            (None, Err(error)) => Err(raise(py, &error)),
        }
    }
}

/// The exception for an error.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let exception = || {
        let classes = py.import("lifeboat._errors")?.getattr("BY_LABEL")?;
        classes.get_item(error.label())?.call1((text(error),))
    };
    exception().map_or_else(|other| other, PyErr::from_value)
}

/// The error with what caused it.
fn text(error: &Error) -> String {
    let mut text = error.to_string();
    // What is transparent has its source's text already.
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

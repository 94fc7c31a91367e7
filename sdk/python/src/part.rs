//! A part of the state that a Python object holds.

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use lifeboat_sdk::Collection;
use lifeboat_sdk::Dtype;
use lifeboat_sdk::Error;
use lifeboat_sdk::Memory;
use lifeboat_sdk::Piece;
use lifeboat_sdk::Pieces;
use lifeboat_sdk::Tree;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::Fault;
use crate::memory;
use crate::memory::Kind;
use crate::memory::Use;
use crate::tree;

/// A region as the Python half tells of it: name within the part, type, dimensions, bytes.
type Told<'py> = (String, String, Vec<u64>, Bound<'py, PyAny>);

/// What is registered under one name: an object of `lifeboat._state.Part`.
pub(crate) struct PythonPart {
    name: String,
    object: Py<PyAny>,
    known: Mutex<Vec<Piece>>,
    fault: Fault,
}

impl PythonPart {
    /// Looks at the object once, so that what cannot be saved is refused now.
    pub(crate) fn new(name: &str, object: &Bound<'_, PyAny>, fault: &Fault) -> PyResult<Self> {
        let part = Self {
            name: name.to_owned(),
            object: object.clone().unbind(),
            known: Mutex::default(),
            fault: fault.clone(),
        };
        part.look(object.py(), "known")?;
        Ok(part)
    }

    fn look(&self, py: Python<'_>, method: &str) -> PyResult<Pieces> {
        let collected = self.object.bind(py).call_method0(method)?;
        let (told, rest): (Vec<Told<'_>>, Option<Bound<'_, PyAny>>) = collected.extract()?;
        let (mut pieces, mut known) = (Pieces::default(), Vec::new());
        for (name, dtype, shape, bytes) in told {
            let dtype = Dtype::named(dtype);
            let kind = Kind { dtype: dtype.clone(), shape: shape.clone() };
            if let Some(file) = file(&bytes)? {
                pieces.files.push((name.clone(), file));
            } else {
                let memory = memory::of(&bytes, kind, Use::Read, &self.fault)?;
                pieces.memories.push((name.clone(), memory));
            }
            known.push(Piece { name, dtype, shape });
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        pieces.tree = rest.map(|rest| tree::tree(&rest)).transpose()?;
        Ok(pieces)
    }

    fn make_room(
        &self,
        py: Python<'_>,
        saved: &[Piece],
        values: Option<&Tree>,
    ) -> PyResult<Vec<Arc<dyn Memory>>> {
        let told: Vec<_> = saved
            .iter()
            .map(|piece| (piece.name.as_str(), piece.dtype.name(), piece.shape.clone()))
            .collect();
        let values = values.map(|values| tree::value(py, values)).transpose()?;
        let places = self.object.bind(py).call_method1("room", (told, values))?;
        let places: Vec<Bound<'_, PyAny>> = places.extract()?;
        if places.len() != saved.len() {
            return Err(PyValueError::new_err("a region of the checkpoint has no place"));
        }
        let place = |(piece, object): (&Piece, Bound<'_, PyAny>)| {
            let kind = Kind { dtype: piece.dtype.clone(), shape: piece.shape.clone() };
            match file(&object)? {
                Some(file) => Ok(memory::of_file(file, kind, &self.fault)),
                None => memory::of(&object, kind, Use::Write, &self.fault),
            }
        };
        saved.iter().zip(places).map(place).collect()
    }

    /// Calls Python; its exception is kept, and goes before the error.
    fn call<T>(
        &self,
        call: impl FnOnce(Python<'_>) -> PyResult<T>,
        refused: impl FnOnce(String, String) -> Error,
    ) -> Result<T, Error> {
        let called = Python::attach(|py| {
            call(py).map_err(|error| {
                let reason = error.value(py).to_string();
                self.fault.keep(error);
                reason
            })
        });
        called.map_err(|reason| refused(self.name.clone(), reason))
    }
}

/// The file that an object is open on, if it is one.
fn file(object: &Bound<'_, PyAny>) -> PyResult<Option<File>> {
    if !object.hasattr("fileno")? {
        return Ok(None);
    }
    let number: RawFd = object.call_method0("fileno")?.extract()?;
    Ok(Some(memory::duplicate(number)?))
}

impl Collection for PythonPart {
    fn known(&self) -> Vec<Piece> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn pieces(&self) -> Result<Pieces, Error> {
        self.call(|py| self.look(py, "collect"), |name, reason| Error::NotRead { name, reason })
    }

    fn room(&self, saved: &[Piece], tree: Option<&Tree>) -> Result<Vec<Arc<dyn Memory>>, Error> {
        let refused = |name, reason| Error::NotTaken { name, reason };
        self.call(|py| self.make_room(py, saved, tree), refused)
    }

    fn settle(&self, _: Option<&Tree>) -> Result<(), Error> {
        let settle = |py: Python<'_>| self.object.bind(py).call_method0("settle").map(drop);
        self.call(settle, |name, reason| Error::NotTaken { name, reason })
    }
}

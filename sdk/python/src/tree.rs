//! The typed tree of a checkpoint as Python's values.

use lifeboat_sdk::Tree;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyBool;
use pyo3::types::PyBytes;
use pyo3::types::PyDict;
use pyo3::types::PyFloat;
use pyo3::types::PyInt;
use pyo3::types::PyList;
use pyo3::types::PyString;

/// In the place of a tensor: the region of this name.
#[pyclass(frozen, module = "lifeboat._core")]
pub struct Region {
    #[pyo3(get)]
    name: String,
}

#[pymethods]
impl Region {
    #[new]
    fn new(name: String) -> Self {
        Self { name }
    }
}

/// A value as a tree. The package's Python half leaves only what a tree can hold.
pub(crate) fn tree(value: &Bound<'_, PyAny>) -> PyResult<Tree> {
    if value.is_none() {
        return Ok(Tree::Null);
    }
    if let Ok(flag) = value.cast::<PyBool>() {
        return Ok(Tree::Bool(flag.is_true()));
    }
    if let Ok(number) = value.cast::<PyInt>() {
        let small = number.extract::<i64>().map(Tree::Int);
        return small.or_else(|_| Ok(Tree::Big(number.str()?.extract()?)));
    }
    if let Ok(number) = value.cast::<PyFloat>() {
        return Ok(Tree::Float(number.value()));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Tree::Str(text.extract()?));
    }
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return Ok(Tree::Bytes(bytes.as_bytes().to_vec()));
    }
    if let Ok(region) = value.cast::<Region>() {
        return Ok(Tree::Region(region.get().name.clone()));
    }
    if let Ok(values) = value.cast::<PyList>() {
        return values.iter().map(|value| tree(&value)).collect::<PyResult<_>>().map(Tree::List);
    }
    if let Ok(entries) = value.cast::<PyDict>() {
        let entry = |(key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
            PyResult::Ok((tree(&key)?, tree(&value)?))
        };
        return entries.iter().map(entry).collect::<PyResult<_>>().map(Tree::Map);
    }
    Err(PyTypeError::new_err(format!("a tree holds no {}", value.get_type())))
}

/// A tree as a value.
pub(crate) fn value<'py>(py: Python<'py>, tree: &Tree) -> PyResult<Bound<'py, PyAny>> {
    Ok(match tree {
        Tree::Null => py.None().into_bound(py),
        Tree::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        Tree::Int(number) => number.into_pyobject(py)?.into_any(),
        Tree::Big(digits) => py.get_type::<PyInt>().call1((digits,))?,
        Tree::Float(number) => PyFloat::new(py, *number).into_any(),
        Tree::Str(text) => PyString::new(py, text).into_any(),
        Tree::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        Tree::List(values) => {
            let list = PyList::empty(py);
            values.iter().try_for_each(|one| list.append(value(py, one)?))?;
            list.into_any()
        }
        Tree::Map(entries) => {
            let map = PyDict::new(py);
            entries
                .iter()
                .try_for_each(|(key, one)| map.set_item(value(py, key)?, value(py, one)?))?;
            map.into_any()
        }
        Tree::Region(name) => Bound::new(py, Region { name: name.clone() })?.into_any(),
        Tree::Unknown(_) => {
            return Err(PyTypeError::new_err(
                "a newer version saved a value that this one has not",
            ));
        }
    })
}

//! The native half of the Python package `lifeboat`: the Rust SDK with Python's objects as its state.

mod boat;
mod ending;
mod errors;
mod events;
mod fork;
mod memory;
mod part;
mod tree;

/// What the package's Python half is built on; not for programs.
#[pyo3::pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::boat::Core;
    #[pymodule_export]
    use crate::boat::Notice;
    #[pymodule_export]
    use crate::events::Happening;
    #[pymodule_export]
    use crate::tree::Region;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::fork::watch();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}

//! The end of the program, in which Python has things to do: the program's own handlers of SIGTERM,
//! and what stands in the buffers of its output.
#![expect(unsafe_code, reason = "the process ends without the C library's own last things")]

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;

/// How long the interpreter may be held by a call that does not let go of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends the process.
pub(crate) fn end(code: i32) -> ! {
    if on_main_thread() {
        tell_python(code);
    } else {
        let (begins, begun) = mpsc::channel();
        let tell = move || {
            // Whoever waits for it may be gone.
            let _nobody_waits = Python::try_attach(|_| begins.send(()));
            tell_python(code);
            now(code);
        };
        let told = thread::Builder::new().name("lifeboat-end".into()).spawn(tell);
        if let (Ok(thread), Ok(())) = (told, begun.recv_timeout(PATIENCE)) {
            // Python ends the process, however long the program's own handler takes.
            let _never_returns = thread.join();
        }
    }
    now(code)
}

/// Python ends the process in there, if nothing keeps it.
fn tell_python(code: i32) {
    let told = Python::try_attach(|py| {
        let end = py.import("lifeboat._signals")?.getattr("end")?;
        end.call1((code,)).map(drop)
    });
    if let Some(Err(error)) = told {
        Python::try_attach(|py| error.write_unraisable(py, None));
    }
}

/// Whether this is the thread that the process began with, which Python's handlers run on.
fn on_main_thread() -> bool {
    // SAFETY: neither call has arguments or fails.
    let (thread, process) = unsafe { (libc::gettid(), libc::getpid()) };
    thread == process
}

fn now(code: i32) -> ! {
    // SAFETY: it does not return, and runs nothing of ours.
    unsafe { libc::_exit(code) }
}

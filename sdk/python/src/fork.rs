//! Which life of the process this is: a fork has the boat's memory, and none of its threads.
#![expect(unsafe_code, reason = "the C library calls back after a fork")]

use std::sync::Once;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// Counts forks on the way from the first process to this one.
static LIFE: AtomicU64 = AtomicU64::new(0);
static WATCHED: Once = Once::new();

/// Counts forks from now on.
pub(crate) fn watch() {
    WATCHED.call_once(|| {
        // SAFETY: the function is there for as long as the process, and does what may be done
        // after a fork: it touches one atomic.
        let refused = unsafe { libc::pthread_atfork(None, None, Some(forked)) };
        debug_assert_eq!(refused, 0, "it fails for lack of memory only");
    });
}

/// The life of this process.
pub(crate) fn life() -> u64 {
    LIFE.load(Ordering::Relaxed)
}

extern "C" fn forked() {
    LIFE.fetch_add(1, Ordering::Relaxed);
}

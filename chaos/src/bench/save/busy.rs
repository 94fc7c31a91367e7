//! Processors that something else has: what a data loader takes from a save.

use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;

/// Programs that do nothing as fast as they can; ended when dropped.
pub(in crate::bench) struct Busy(Vec<Child>);

impl Busy {
    /// Starts so many.
    pub(in crate::bench) fn start(count: usize) -> anyhow::Result<Self> {
        let mut busy = Self(Vec::new());
        for _ in 0..count {
            let spin = Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .stdin(Stdio::null())
                .spawn()
                .context("no shell to keep a processor busy")?;
            busy.0.push(spin);
        }
        Ok(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that ended by itself takes no processor either.
            child.kill().and_then(|()| child.wait()).ok();
        }
    }
}

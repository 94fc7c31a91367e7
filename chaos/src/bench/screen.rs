//! What a person sees while a bench runs, and the one place that prints its figures.

use std::io::IsTerminal;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;

/// Whether anybody looks on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Screen {
    /// A terminal: bars and words.
    Terminal,
    /// A log: words.
    Log,
}

impl Screen {
    /// Where standard error goes.
    pub(super) fn of_this_process() -> Self {
        if std::io::stderr().is_terminal() { Self::Terminal } else { Self::Log }
    }

    /// A bar of so many steps.
    pub(super) fn bar(self, what: &str, steps: usize) -> ProgressBar {
        match self {
            Self::Terminal => {
                let style = ProgressStyle::with_template("  {prefix:14} {bar:30} {pos}/{len}");
                let bar = ProgressBar::new(steps as u64).with_prefix(what.to_owned());
                bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            }
            Self::Log => ProgressBar::hidden(),
        }
    }
}

/// Says what is being done.
#[expect(clippy::print_stderr, reason = "progress; figures go to standard output")]
pub(super) fn say(line: &str) {
    eprintln!("{line}");
}

/// Prints a line of the result.
#[expect(clippy::print_stdout, reason = "the result is what the bench is for")]
pub(super) fn print(line: &str) {
    println!("{line}");
}

//! What every error answers: what the caller may do, and its name in metrics.

use std::error::Error;
use std::fmt;

/// What the caller may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same may go well next time.
    Transient,
    /// The same will fail again.
    Permanent,
    /// Somebody else did it first, or does it now: leave it to them.
    Superseded,
}

/// An error that says what may be done about it.
pub trait Classify: Error {
    /// What the caller may do.
    fn class(&self) -> Class;

    /// Its name in metrics, from a closed list.
    fn label(&self) -> &'static str;
}

/// An error with all its causes, in one line.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        formatter.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their source in their own message.
            if !last.ends_with(&text) {
                write!(formatter, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[track_caller]
    fn check(texts: &[&'static str], expected: &str) {
        let link = texts
            .iter()
            .rev()
            .fold(None, |source, text| Some(Box::new(Link { text, source })))
            .unwrap();
        assert_eq!(Chain(&*link).to_string(), expected);
    }

    #[test]
    fn the_chain_names_every_cause_once() {
        check(&["part 3 was not stored"], "part 3 was not stored");
        check(&["part 3 was not stored", "refused"], "part 3 was not stored: refused");
        check(&["send: refused", "refused", "port 1"], "send: refused: port 1");
    }
}

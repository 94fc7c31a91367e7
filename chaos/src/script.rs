//! Scenarios as text: a small cluster, what happens to it and when, and what must be seen.
//!
//! A script reads from the top. Lines without a time set the stage, lines with a time act on it,
//! `expect` lines say what the trace must hold, `order` lines in which order, `never` lines what it must not. `#` opens a comment; the
//! first one is the title.
//!
//! ```text
//! # A PodDisruptionBudget holds the pod; the deadline overrules it.
//! policy hold always
//! node gpu-1 gpus 1 slices 2
//! job train-a on gpu-1 state 64MiB pdb 0
//! 00:05  announce gpu-1 by both
//! expect 00:05 fence gpu-1 within 1s
//! never evicted train-a
//! order fence put on gpu-1, evict train-a
//! end 02:30
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

/// One scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The first comment: the rule that the scenario shows.
    pub title: String,
    /// Settings that differ from the defaults, by the key of the configuration file.
    pub policy: BTreeMap<String, String>,
    /// What stands at the start, in the order of the text.
    pub stage: Vec<Line>,
    /// What happens, in the order of time.
    pub acts: Vec<(Duration, Line)>,
    /// What the trace must hold.
    pub expects: Vec<Expect>,
    /// What must first be seen in this order.
    pub orders: Vec<Vec<String>>,
    /// What the trace must not hold.
    pub nevers: Vec<String>,
    /// When the run ends.
    pub end: Duration,
}

/// One statement: its words, and its options by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it stands in the text, from 1.
    pub number: usize,
    /// The words of the statement, its options among them.
    pub words: Vec<String>,
}

/// A line that the trace must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// Where it stands in the text, from 1.
    pub number: usize,
    /// Not before this time.
    pub at: Duration,
    /// And at most this long after it.
    pub within: Duration,
    /// Words that one line of the trace contains.
    pub text: String,
}

/// Why a script cannot be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {number}: {fault}")]
pub struct ScriptError {
    /// Where in the text, from 1.
    pub number: usize,
    /// What is wrong with it.
    pub fault: String,
}

impl Script {
    /// Reads a script.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let title = text.lines().find_map(|line| line.strip_prefix('#')).unwrap_or("").trim();
        let mut script = Self {
            title: title.to_owned(),
            policy: BTreeMap::new(),
            stage: Vec::new(),
            acts: Vec::new(),
            expects: Vec::new(),
            orders: Vec::new(),
            nevers: Vec::new(),
            end: Duration::from_mins(3),
        };
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("");
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            if !words.is_empty() {
                script.take(Line { number: index + 1, words })?;
            }
        }
        script.acts.sort_by_key(|(at, _)| *at);
        Ok(script)
    }

    fn take(&mut self, line: Line) -> Result<(), ScriptError> {
        match line.words[0].as_str() {
            "policy" => {
                let [_, key, value] = line.exactly()?;
                self.policy.insert(key, value);
            }
            "expect" => self.expects.push(line.expect()?),
            "order" => {
                let text = line.words[1..].join(" ");
                self.orders.push(text.split(", ").map(str::to_owned).collect());
            }
            "never" => self.nevers.push(line.words[1..].join(" ")),
            "end" => {
                let [_, at] = line.exactly()?;
                self.end = line.time(&at)?;
            }
            first if first.starts_with(|c: char| c.is_ascii_digit()) => {
                let at = line.time(first)?;
                let words = line.words[1..].to_vec();
                self.acts.push((at, Line { number: line.number, words }));
            }
            _ => self.stage.push(line),
        }
        Ok(())
    }
}

impl Line {
    /// The value after the word `name`.
    pub fn option(&self, name: &str) -> Option<&str> {
        let at = self.words.iter().position(|word| word == name)?;
        self.words.get(at + 1).map(String::as_str)
    }

    /// Whether the word `name` stands in the line.
    pub fn says(&self, name: &str) -> bool {
        self.words.iter().any(|word| word == name)
    }

    /// The word at `index`.
    pub fn word(&self, index: usize) -> Result<&str, ScriptError> {
        self.words.get(index).map(String::as_str).ok_or_else(|| self.fault("a word is missing"))
    }

    /// The duration after the word `name`, such as `90s` or `250ms`.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, ScriptError> {
        self.option(name)
            .map(|text| {
                duration(text).ok_or_else(|| self.fault(&format!("`{text}` is no duration")))
            })
            .transpose()
    }

    /// The number of bytes after the word `name`, such as `64MiB`.
    pub fn bytes(&self, name: &str) -> Result<Option<u64>, ScriptError> {
        self.option(name)
            .map(|text| bytes(text).ok_or_else(|| self.fault(&format!("`{text}` is no size"))))
            .transpose()
    }

    /// The whole number after the word `name`.
    pub fn number(&self, name: &str) -> Result<Option<u64>, ScriptError> {
        self.option(name)
            .map(|text| text.parse().map_err(|_| self.fault(&format!("`{text}` is no number"))))
            .transpose()
    }

    /// An error about this line.
    pub fn fault(&self, fault: &str) -> ScriptError {
        ScriptError { number: self.number, fault: format!("{fault}: `{}`", self.words.join(" ")) }
    }

    fn exactly<const N: usize>(&self) -> Result<[String; N], ScriptError> {
        self.words.clone().try_into().map_err(|_| self.fault(&format!("{N} words are due")))
    }

    /// `expect 00:31 manifest train-0 durable within 5s`; without `within`, half a second.
    fn expect(&self) -> Result<Expect, ScriptError> {
        let at = self.time(self.word(1)?)?;
        let last = self.words.len().saturating_sub(2);
        let (text, within) = match self.words.get(last).map(String::as_str) {
            Some("within") => (&self.words[2..last], self.duration("within")?.unwrap_or_default()),
            _ => (&self.words[2..], Duration::from_millis(500)),
        };
        Ok(Expect { number: self.number, at, within, text: text.join(" ") })
    }

    fn time(&self, text: &str) -> Result<Duration, ScriptError> {
        time(text).ok_or_else(|| self.fault(&format!("`{text}` is no time such as 01:45")))
    }
}

/// `mm:ss` or `mm:ss.mmm` since the start.
fn time(text: &str) -> Option<Duration> {
    let (minutes, seconds) = text.split_once(':')?;
    let seconds: f64 = seconds.parse().ok().filter(|seconds| (0.0..60.0).contains(seconds))?;
    Some(Duration::from_secs(60 * minutes.parse::<u64>().ok()?) + Duration::from_secs_f64(seconds))
}

/// `90s`, `250ms`, `2m`, `9h`.
fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..unit_at].parse().ok()?;
    match &text[unit_at..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number * 60)),
        "h" => Some(Duration::from_secs(number * 3600)),
        _ => None,
    }
}

/// `64MiB`, `4GiB`, `512KiB`.
fn bytes(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..unit_at].parse().ok()?;
    match &text[unit_at..] {
        "KiB" => Some(number << 10),
        "MiB" => Some(number << 20),
        "GiB" => Some(number << 30),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_has_a_stage_acts_and_expectations() {
        let script = Script::parse(
            "# Title.\npolicy hold.default on-signal\nnode gpu-1 gpus 1\n00:05 announce gpu-1\n\
             expect 00:06 evict train-0 within 84s\nend 02:30\n",
        )
        .unwrap();
        assert_eq!(script.title, "Title.");
        assert_eq!(script.policy["hold.default"], "on-signal");
        assert_eq!(script.stage[0].number("gpus"), Ok(Some(1)));
        assert_eq!(script.acts[0].0, Duration::from_secs(5));
        assert_eq!(script.expects[0].text, "evict train-0");
        assert_eq!(script.expects[0].within, Duration::from_secs(84));
        assert_eq!(script.end, Duration::from_secs(150));
    }

    #[test]
    fn a_fault_names_its_line() {
        let error = Script::parse("# Title.\nend soon\n").unwrap_err();
        assert_eq!(error.to_string(), "line 2: `soon` is no time such as 01:45: `end soon`");
    }
}

//! Gathers the three sources into one value for each key, and every fault on the way.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write;
use std::time::Duration;

use super::Sources;

/// What every variable of ours begins with.
const VARIABLE: &str = "LIFEBOAT_";

/// A key of the configuration, as `docs/configuration.md` lists it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) default: Preset,
    pub(super) allowed: &'static str,
    pub(super) what: &'static str,
}

/// What a key is when nobody sets it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Preset {
    /// This.
    Is(&'static str),
    /// Nothing, which has a meaning of its own.
    Absent,
    /// Nothing, and every program needs it.
    Needed,
    /// Nothing, and the controller needs it.
    ForController,
    /// Nothing, and the agent needs it.
    ForAgent,
}

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file cannot be read at all.
    #[error("the file is not TOML: {0}")]
    Syntax(String),
    /// A key that does not exist.
    #[error("`{key}` is not a key ({origin}); allowed: {allowed}")]
    Key {
        /// As it was written.
        key: String,
        /// Where it was written.
        origin: String,
        /// The keys beside it.
        allowed: String,
    },
    /// A key that must be set and is not.
    #[error("`{key}` is not set; allowed: {allowed}. Set it in the file or as {variable}")]
    Missing {
        /// The key.
        key: String,
        /// What it may be.
        allowed: String,
        /// The variable that sets it.
        variable: String,
    },
    /// A value that the key does not take.
    #[error("`{key}` is `{value}` ({origin}); allowed: {allowed}")]
    Value {
        /// The key.
        key: String,
        /// As it was written; left out where it may hold a secret.
        value: String,
        /// Where it was written.
        origin: String,
        /// What it may be.
        allowed: String,
    },
    /// Values that do not go together.
    #[error("`{key}` is `{value}`; allowed beside {beside}: {allowed}")]
    Together {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The other key and its value.
        beside: String,
        /// What it may be.
        allowed: String,
    },
}

/// Everything that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the configuration has {}", plural(self.0.len(), "fault"))?;
        for fault in &self.0 {
            write!(formatter, "\n  {fault}")?;
        }
        Ok(())
    }
}

/// The variable that sets `key`: `drain.maxGrace` is `LIFEBOAT_DRAIN_MAX_GRACE`.
pub(super) fn variable(key: &str) -> String {
    let mut name = VARIABLE.to_owned();
    for letter in key.chars() {
        match letter {
            '.' => name.push('_'),
            upper if upper.is_ascii_uppercase() => {
                name.push('_');
                name.push(upper);
            }
            other => name.push(other.to_ascii_uppercase()),
        }
    }
    name
}

/// A value and where it was written.
#[derive(Clone, Debug)]
struct Written {
    text: String,
    origin: String,
}

/// Hands out values, and remembers what was wrong with them.
#[derive(Debug)]
pub(super) struct Reader {
    keys: &'static [Key],
    written: BTreeMap<&'static str, Written>,
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<String>,
}

impl Reader {
    pub(super) fn new(keys: &'static [Key], sources: &Sources) -> Self {
        let mut reader =
            Self { keys, written: BTreeMap::new(), faults: Vec::new(), warnings: Vec::new() };
        reader.take_file(sources.file.as_deref().unwrap_or_default());
        reader.take_environment(&sources.environment);
        for (key, value) in &sources.flags {
            reader.take(key, value.clone(), "flag".to_owned());
        }
        reader
    }

    /// The value of `key` as `parse` understands it; `fallback` stands in for a faulty one, so that
    /// the faults after it are found too.
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        fallback: T,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> T {
        self.optional(key, parse).unwrap_or(fallback)
    }

    /// The value of `key`, or nothing where it is not set or faulty.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let row = self.row(key);
        let text = match (self.written.get(key), row.default) {
            (Some(written), _) => written.text.clone(),
            (None, Preset::Is(text)) => text.to_owned(),
            (None, _) => return None,
        };
        let value = parse(&text);
        if value.is_none() {
            self.refuse(key, &text);
        }
        value
    }

    /// Records that `key` must be set, and is not.
    pub(super) fn require(&mut self, key: &str) {
        let row = self.row(key);
        if !self.written.contains_key(key) {
            self.faults.push(Fault::Missing {
                key: key.to_owned(),
                allowed: row.allowed.to_owned(),
                variable: variable(key),
            });
        }
    }

    fn refuse(&mut self, key: &str, text: &str) {
        let origin = self.written.get(key).map_or("default", |written| &written.origin).to_owned();
        // An address with a user and a password in it is refused, and must not be shown.
        let value = if text.contains('@') { "…".to_owned() } else { text.to_owned() };
        let allowed = self.row(key).allowed.to_owned();
        self.faults.push(Fault::Value { key: key.to_owned(), value, origin, allowed });
    }

    fn row(&self, key: &str) -> Key {
        let row = self.keys.iter().find(|row| row.name == key);
        *row.unwrap_or_else(|| unreachable!("`{key}` is in the table of keys"))
    }

    fn take_file(&mut self, text: &str) {
        match text.parse::<toml::Table>() {
            Ok(table) => self.take_table("", table),
            Err(error) => self.faults.push(Fault::Syntax(error.to_string().trim_end().to_owned())),
        }
    }

    fn take_table(&mut self, prefix: &str, table: toml::Table) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            let text = match value {
                toml::Value::Table(inner) => {
                    self.take_table(&format!("{key}."), inner);
                    continue;
                }
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Float(number) => number.to_string(),
                toml::Value::Boolean(yes) => yes.to_string(),
                other @ (toml::Value::Datetime(_) | toml::Value::Array(_)) => other.to_string(),
            };
            self.take(&key, text, "file".to_owned());
        }
    }

    fn take_environment(&mut self, environment: &BTreeMap<String, String>) {
        let known: BTreeMap<String, &'static str> =
            self.keys.iter().map(|row| (variable(row.name), row.name)).collect();
        for (name, value) in environment.range(VARIABLE.to_owned()..) {
            let Some(rest) = name.strip_prefix(VARIABLE) else { break };
            match known.get(name) {
                Some(key) => self.take(key, value.clone(), name.clone()),
                // No fault: Kubernetes sets LIFEBOAT_PORT and its like for a Service of that name.
                None if !matches!(rest, "CONFIG" | "SOCKET" | "REQUIRED") => {
                    self.warnings.push(format!("variable {name} sets no key"));
                }
                None => (),
            }
        }
    }

    fn take(&mut self, key: &str, text: String, origin: String) {
        if let Some(row) = self.keys.iter().find(|row| row.name == key) {
            self.written.insert(row.name, Written { text, origin });
        } else {
            let allowed = self.near(key);
            self.faults.push(Fault::Key { key: key.to_owned(), origin, allowed });
        }
    }

    /// The keys of the same part, or the names of all parts.
    fn near(&self, key: &str) -> String {
        let part = key.split_once('.').map_or("", |(part, _)| part);
        let beside = |row: &&Key| row.name.split_once('.').map_or("", |(own, _)| own) == part;
        let mut names: Vec<&str> = self.keys.iter().filter(beside).map(|row| row.name).collect();
        if names.is_empty() {
            names = self.keys.iter().map(|row| row.name.split('.').next().unwrap_or("")).collect();
            names.dedup();
        }
        names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    }
}

/// A duration with its unit.
pub(super) fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

/// A duration from `least` to `most`.
pub(super) fn within(least: &str, most: &str) -> impl FnOnce(&str) -> Option<Duration> {
    let bounds = (duration(least), duration(most));
    move |text| {
        let value = duration(text)?;
        (Some(value) >= bounds.0 && Some(value) <= bounds.1).then_some(value)
    }
}

/// A number of bytes with its unit.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A number of bytes from `least` to `most`.
pub(super) fn bytes_within(least: u64, most: u64) -> impl FnOnce(&str) -> Option<u64> {
    move |text| bytes(text).filter(|value| (least..=most).contains(value))
}

/// A bandwidth like `2.5Gbit` in a second, as bytes in a second: 100 Mbit to 6400 Gbit.
pub(super) fn bandwidth(text: &str) -> Option<u64> {
    let units = [("Gbit", 1_000_000), ("Mbit", 1_000)];
    let (number, thousands) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || whole.len() > 9 || part.len() > 3 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let part: u64 = format!("{part:0<3}").parse().ok()?;
    let bits = (whole * 1000 + part) * thousands;
    (100_000_000..=6_400_000_000_000).contains(&bits).then_some(bits / 8)
}

/// An address with its scheme, and neither user nor password.
pub(super) fn url(text: &str) -> Option<String> {
    let uri: http::Uri = text.parse().ok()?;
    let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    (scheme && authority).then(|| text.trim_end_matches('/').to_owned())
}

/// Text that is there, and in one line.
pub(super) fn word(text: &str) -> Option<String> {
    let fits = !text.is_empty() && !text.contains(char::is_control);
    fits.then(|| text.to_owned())
}

/// A name as Kubernetes takes it for a label's value or a namespace.
pub(super) fn label(text: &str) -> Option<String> {
    let inside = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    let ends = text.starts_with(|letter: char| letter.is_ascii_alphanumeric())
        && text.ends_with(|letter: char| letter.is_ascii_alphanumeric());
    (ends && text.len() <= 63 && text.chars().all(inside)).then(|| text.to_owned())
}

/// A value as it is written: durations in words.
pub(super) fn written(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

fn plural(count: usize, noun: &str) -> String {
    let mut text = format!("{count} {noun}");
    if count != 1 {
        let end = text.write_str("s");
        debug_assert!(end.is_ok(), "writing to a string does not fail");
    }
    text
}

//! Faults as lines of text, both ways.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::faults::Fault;
use crate::faults::FaultKind;
use crate::faults::Plan;
use crate::faults::WireName;

/// Why a line is no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{line}` is no fault: {why}")]
pub struct FaultError {
    line: String,
    why: String,
}

impl FromStr for Plan {
    type Err = FaultError;

    /// One fault a line; empty lines and comments are left out.
    fn from_str(text: &str) -> Result<Self, FaultError> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let faults = lines.filter(|line| !line.is_empty()).map(str::parse);
        Ok(Self { faults: faults.collect::<Result<_, _>>()? })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.faults.iter().try_for_each(|fault| writeln!(formatter, "{fault}"))
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(line: &str) -> Result<Self, FaultError> {
        parse(line).map_err(|why| FaultError { line: line.to_owned(), why })
    }
}

impl TryFrom<String> for Fault {
    type Error = FaultError;

    fn try_from(line: String) -> Result<Self, FaultError> {
        line.parse()
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        fault.to_string()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.wire, self.kind)?;
        if !self.from.is_zero() {
            write!(formatter, " from {}", Time(self.from))?;
        }
        if self.until < Duration::MAX {
            write!(formatter, " until {}", Time(self.until))?;
        }
        for (name, value) in
            [("client", &self.client), ("method", &self.method), ("path", &self.path)]
        {
            if let Some(value) = value {
                write!(formatter, " {name} {value}")?;
            }
        }
        if self.chance != 100 {
            write!(formatter, " chance {}", self.chance)?;
        }
        self.most.map_or(Ok(()), |most| write!(formatter, " most {most}"))
    }
}

impl fmt::Display for WireName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kube => "kube",
            Self::Sqs => "sqs",
            Self::S3 => "s3",
            Self::Imds => "imds",
            Self::Kubelet => "kubelet",
        })
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away => formatter.write_str("away"),
            Self::Delay(by) => write!(formatter, "delay {}", Time(*by)),
            Self::Reorder(by) => write!(formatter, "reorder {}", Time(*by)),
            Self::Refuse(status) => write!(formatter, "{status}"),
            Self::Hang => formatter.write_str("hang"),
            Self::LoseRequest => formatter.write_str("lose-request"),
            Self::LoseResponse => formatter.write_str("lose-response"),
            Self::Duplicate => formatter.write_str("duplicate"),
            Self::StaleRead(by) => write!(formatter, "stale {}", Time(*by)),
            Self::WatchGone => formatter.write_str("watch-gone"),
        }
    }
}

/// A time in seconds where it is whole ones, in milliseconds where not.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_millis() == 0 {
            write!(formatter, "{}s", self.0.as_secs())
        } else {
            write!(formatter, "{}ms", self.0.as_millis())
        }
    }
}

fn parse(line: &str) -> Result<Fault, String> {
    let mut words = line.split_whitespace();
    let wire = wire(words.next().unwrap_or_default())?;
    let kind = kind(&mut words)?;
    let mut fault = Fault::new(wire, kind);
    let mut length = None;
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("`{name}` needs a value"))?;
        match name {
            "from" => fault.from = time(value)?,
            "until" => fault.until = time(value)?,
            "for" => length = Some(time(value)?),
            "client" => fault.client = Some(value.to_owned()),
            "method" => fault.method = Some(value.to_owned()),
            "path" => fault.path = Some(value.to_owned()),
            "chance" => fault.chance = number(value)?,
            "most" => fault.most = Some(number(value)?),
            _ => return Err(format!("`{name}` is no option")),
        }
    }
    if let Some(length) = length {
        fault.until = fault.from + length;
    }
    Ok(fault)
}

fn wire(word: &str) -> Result<WireName, String> {
    match word {
        "kube" => Ok(WireName::Kube),
        "sqs" => Ok(WireName::Sqs),
        "s3" => Ok(WireName::S3),
        "imds" => Ok(WireName::Imds),
        "kubelet" => Ok(WireName::Kubelet),
        _ => Err(format!("`{word}` is no wire; kube, sqs, s3, imds and kubelet are")),
    }
}

fn kind<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<FaultKind, String> {
    let word = words.next().unwrap_or_default();
    let mut by = || time(words.next().unwrap_or_default());
    match word {
        "away" => Ok(FaultKind::Away),
        "delay" => by().map(FaultKind::Delay),
        "reorder" => by().map(FaultKind::Reorder),
        "hang" => Ok(FaultKind::Hang),
        "lose-request" => Ok(FaultKind::LoseRequest),
        "lose-response" => Ok(FaultKind::LoseResponse),
        "duplicate" => Ok(FaultKind::Duplicate),
        "stale" => by().map(FaultKind::StaleRead),
        "watch-gone" => Ok(FaultKind::WatchGone),
        status => match status.parse() {
            Ok(status @ 400..=599) => Ok(FaultKind::Refuse(status)),
            Ok(_) | Err(_) => Err(format!("`{status}` is nothing that happens")),
        },
    }
}

/// `90s`, `250ms`, `2m`, or `01:30`.
fn time(word: &str) -> Result<Duration, String> {
    let wrong = |_| format!("`{word}` is no time, as `90s`, `250ms`, `2m` or `01:30` are");
    if let Some((minutes, seconds)) = word.split_once(':') {
        let minutes: u64 = minutes.parse().map_err(wrong)?;
        return Ok(Duration::from_secs(minutes * 60 + seconds.parse::<u64>().map_err(wrong)?));
    }
    if let Some(milliseconds) = word.strip_suffix("ms") {
        return milliseconds.parse().map(Duration::from_millis).map_err(wrong);
    }
    if let Some(minutes) = word.strip_suffix('m') {
        return minutes.parse().map(Duration::from_mins).map_err(wrong);
    }
    word.strip_suffix('s').unwrap_or(word).parse().map(Duration::from_secs).map_err(wrong)
}

fn number<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("`{word}` is no number here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, again: &str) {
        let fault: Fault = line.parse().unwrap();
        assert_eq!(fault.to_string(), again);
        assert_eq!(again.parse::<Fault>().unwrap(), fault);
    }

    #[test]
    fn a_fault_reads_as_it_is_written() {
        check("kube away from 00:05 until 02:00", "kube away from 5s until 120s");
        check("s3 503 from 30s for 10s chance 50", "s3 503 from 30s until 40s chance 50");
        check("sqs away", "sqs away");
        check("imds delay 250ms most 3", "imds delay 250ms most 3");
        check("kubelet hang for 2m", "kubelet hang until 120s");
        check(
            "kube lose-response client controller method PATCH path /nodes/ most 1",
            "kube lose-response client controller method PATCH path /nodes/ most 1",
        );
        check("kube stale 1500ms", "kube stale 1500ms");
    }

    #[test]
    fn what_is_no_fault_says_why() {
        for line in ["", "dns away", "kube", "kube 200", "kube away from", "kube away at 3s"] {
            line.parse::<Fault>().unwrap_err();
        }
        let error = "kube delay soon".parse::<Fault>().unwrap_err().to_string();
        assert!(error.contains("`soon` is no time"), "{error}");
    }

    #[test]
    fn a_plan_drawn_twice_from_a_seed_is_the_same_and_survives_json() {
        let wires = [WireName::Kube, WireName::S3];
        for seed in 0..200 {
            let draw = || {
                let mut random = fastrand::Rng::with_seed(seed);
                Plan::draw(&mut random, &wires, Duration::from_mins(2))
            };
            let plan = draw();
            assert_eq!(plan, draw());
            let json = serde_json::to_string(&plan).unwrap();
            assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
            assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
        }
    }
}

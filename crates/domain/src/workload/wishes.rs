//! What the annotations of a pod ask for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::ids::Epoch;
use crate::ids::JobKey;
use crate::ids::Step;
use crate::workload::Hold;
use crate::workload::Mode;

/// The annotation that makes a pod protected.
pub const CHECKPOINT_ANNOTATION: &str = "lifeboat.dev/checkpoint";
/// The annotation that says where the volume is mounted in directory mode.
pub const CHECKPOINT_PATH_ANNOTATION: &str = "lifeboat.dev/checkpoint-path";
/// The annotation that says where an http workload listens.
pub const CHECKPOINT_HTTP_ANNOTATION: &str = "lifeboat.dev/checkpoint-http";
/// The annotation that names the job key.
pub const JOB_KEY_ANNOTATION: &str = "lifeboat.dev/job-key";
/// The annotation that says what to resume from.
pub const RESTORE_ANNOTATION: &str = "lifeboat.dev/restore";
/// The annotation that orders saves within a namespace.
pub const PRIORITY_ANNOTATION: &str = "lifeboat.dev/priority";
/// The annotation that says when the pod is held.
pub const HOLD_ANNOTATION: &str = "lifeboat.dev/hold";

/// What a new incarnation resumes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restore {
    /// The newest manifest, unless the work is finished.
    Auto,
    /// Nothing: it starts over.
    Never,
    /// The manifest made at this step.
    Step(Step),
    /// The manifest of this number.
    Epoch(Epoch),
}

/// What a pod's annotations ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wishes {
    /// How to save it.
    pub mode: Mode,
    /// When to hold it; the policy's default where the pod says nothing.
    pub hold: Option<Hold>,
    /// What to resume from.
    pub restore: Restore,
    /// Its place within its namespace: the higher is saved first.
    pub priority: i32,
    /// The job key it names itself.
    pub job_key: Option<JobKey>,
    /// Where its volume is mounted.
    pub path: Option<String>,
    /// Where it is called.
    pub http: Option<HttpTarget>,
}

/// Where an http workload is called, on its pod's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpTarget {
    /// The port.
    pub port: u16,
    /// The path, with its leading slash.
    pub path: String,
}

/// An annotation that says something that is not allowed there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation `{key}` is `{value}`. It may be {allowed}")]
pub struct AnnotationFault {
    /// The annotation.
    pub key: &'static str,
    /// What it says, cut to 80 characters.
    pub value: String,
    /// What it may say.
    pub allowed: &'static str,
}

impl Wishes {
    /// Reads annotations. What is not allowed is told, and taken as not said; but a pod whose mode
    /// cannot be read stays protected, since it asked for that.
    pub fn read(annotations: &BTreeMap<String, String>) -> (Self, Vec<AnnotationFault>) {
        let mut reader = Reader { annotations, faults: Vec::new() };
        let wishes = Self {
            mode: reader.mode(),
            hold: reader.hold(),
            restore: reader.restore(),
            priority: reader.priority(),
            job_key: reader.job_key(),
            path: reader.path(),
            http: reader.http(),
        };
        (wishes, reader.faults)
    }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    faults: Vec<AnnotationFault>,
}

impl Reader<'_> {
    fn mode(&mut self) -> Mode {
        let allowed = "`sdk`, `directory`, `http`, `sigterm` or `none`";
        let mode = self.read(CHECKPOINT_ANNOTATION, allowed, |text| match text {
            "sdk" => Some(Mode::Sdk),
            "directory" => Some(Mode::Directory),
            "http" => Some(Mode::Http),
            "sigterm" => Some(Mode::Sigterm),
            "none" => Some(Mode::None),
            _ => None,
        });
        match mode {
            Said::Nothing => Mode::None,
            Said::Allowed(mode) => mode,
            Said::NotAllowed => Mode::Unknown,
        }
    }

    fn hold(&mut self) -> Option<Hold> {
        self.read(HOLD_ANNOTATION, "`always` or `on-signal`", |text| match text {
            "always" => Some(Hold::Always),
            "on-signal" => Some(Hold::OnSignal),
            _ => None,
        })
        .allowed()
    }

    fn restore(&mut self) -> Restore {
        let allowed = "`auto`, `never`, `step=` and a number, or the number of an epoch";
        self.read(RESTORE_ANNOTATION, allowed, |text| match text {
            "auto" => Some(Restore::Auto),
            "never" => Some(Restore::Never),
            _ => match text.strip_prefix("step=") {
                Some(step) => step.parse().ok().map(Restore::Step),
                None => text.parse().ok().map(Restore::Epoch),
            },
        })
        .allowed()
        .unwrap_or(Restore::Auto)
    }

    fn priority(&mut self) -> i32 {
        self.read(PRIORITY_ANNOTATION, "a whole number", |text| text.parse().ok())
            .allowed()
            .unwrap_or(0)
    }

    fn job_key(&mut self) -> Option<JobKey> {
        let allowed = "1 to 128 letters, digits, `.`, `_` and `-`, \
                       with a letter or digit at both ends";
        self.read(JOB_KEY_ANNOTATION, allowed, |text| text.parse().ok()).allowed()
    }

    fn path(&mut self) -> Option<String> {
        self.read(CHECKPOINT_PATH_ANNOTATION, "an absolute path without `..`", |text| {
            let stays = text.split('/').all(|part| part != "..");
            (text.starts_with('/') && stays).then(|| text.to_owned())
        })
        .allowed()
    }

    fn http(&mut self) -> Option<HttpTarget> {
        self.read(CHECKPOINT_HTTP_ANNOTATION, "`:`, a port, and a path", |text| {
            let rest = text.strip_prefix(':')?;
            let end = rest.find('/').unwrap_or(rest.len());
            let (port, path) = rest.split_at(end);
            let port = port.parse().ok().filter(|port| *port > 0)?;
            let path = if path.is_empty() { "/" } else { path };
            let plain = path.bytes().all(|byte| byte.is_ascii_graphic());
            plain.then(|| HttpTarget { port, path: path.to_owned() })
        })
        .allowed()
    }

    fn read<T>(
        &mut self,
        key: &'static str,
        allowed: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Said<T> {
        let Some(text) = self.annotations.get(key) else { return Said::Nothing };
        if let Some(value) = parse(text.trim()) {
            return Said::Allowed(value);
        }
        let value = text.chars().take(80).collect();
        self.faults.push(AnnotationFault { key, value, allowed });
        Said::NotAllowed
    }
}

enum Said<T> {
    Nothing,
    Allowed(T),
    NotAllowed,
}

impl<T> Said<T> {
    fn allowed(self) -> Option<T> {
        match self {
            Self::Allowed(value) => Some(value),
            Self::Nothing | Self::NotAllowed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Wishes, Vec<AnnotationFault>) {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Wishes::read(&pairs.collect())
    }

    #[test]
    fn a_pod_without_annotations_is_not_protected() {
        let (wishes, faults) = read(&[]);
        assert!(!wishes.mode.is_protected());
        assert_eq!(faults, []);
        assert!(!read(&[(CHECKPOINT_ANNOTATION, "none")]).0.mode.is_protected());
    }

    #[test]
    fn every_annotation_is_read() {
        let (wishes, faults) = read(&[
            (CHECKPOINT_ANNOTATION, "http"),
            (CHECKPOINT_PATH_ANNOTATION, "/ckpt"),
            (CHECKPOINT_HTTP_ANNOTATION, ":8080/save"),
            (JOB_KEY_ANNOTATION, "bert"),
            (RESTORE_ANNOTATION, "step=12"),
            (PRIORITY_ANNOTATION, "-3"),
            (HOLD_ANNOTATION, "on-signal"),
        ]);
        assert_eq!(faults, []);
        let expected = Wishes {
            mode: Mode::Http,
            hold: Some(Hold::OnSignal),
            restore: Restore::Step(Step(12)),
            priority: -3,
            job_key: Some("bert".parse().unwrap()),
            path: Some("/ckpt".to_owned()),
            http: Some(HttpTarget { port: 8080, path: "/save".to_owned() }),
        };
        assert_eq!(wishes, expected);
        assert_eq!(read(&[(RESTORE_ANNOTATION, "7")]).0.restore, Restore::Epoch(Epoch(7)));
    }

    #[test]
    fn every_fault_is_told_and_the_pod_stays_protected() {
        let (wishes, faults) = read(&[
            (CHECKPOINT_ANNOTATION, "skd"),
            (CHECKPOINT_PATH_ANNOTATION, "/a/../b"),
            (CHECKPOINT_HTTP_ANNOTATION, "http://evil/"),
            (JOB_KEY_ANNOTATION, "a/b"),
            (RESTORE_ANNOTATION, "latest"),
            (PRIORITY_ANNOTATION, "high"),
            (HOLD_ANNOTATION, "sometimes"),
        ]);
        assert!(wishes.mode.is_protected());
        assert_eq!(wishes.mode, Mode::Unknown);
        assert_eq!(faults.len(), 7);
        let expected = "annotation `lifeboat.dev/checkpoint` is `skd`. \
                        It may be `sdk`, `directory`, `http`, `sigterm` or `none`";
        assert_eq!(faults[0].to_string(), expected);
    }
}

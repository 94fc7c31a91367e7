//! Where the parts of a checkpoint lie in the bucket, and how no key leaves its namespace.

use std::fmt::Write as _;

use crate::chunk::Digest;

/// Digits of an epoch in a key, so that a listing is in order.
const EPOCH_DIGITS: usize = 10;

/// A name from outside that cannot be part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part} of a checkpoint is empty. It names a folder in the bucket, so it needs a name.")]
pub struct KeyError {
    /// Which name it was: `cluster`, `namespace` or `job key`.
    pub part: &'static str,
}

/// The folder of one job key in the bucket, and the keys below it.
///
/// Layout: `<prefix>/<cluster>/<namespace>/<job key>/{chunks,epochs}/…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// The folder of a job key, under the operator's prefix (which may be empty or have slashes).
    pub fn new(
        prefix: &str,
        cluster: &str,
        namespace: &str,
        job_key: &str,
    ) -> Result<Self, KeyError> {
        let mut root = folder(prefix);
        for (part, name) in [("cluster", cluster), ("namespace", namespace), ("job key", job_key)] {
            if name.is_empty() {
                return Err(KeyError { part });
            }
            root.push_str(&escape(name));
            root.push('/');
        }
        Ok(Self { root })
    }

    /// The folder itself, with its last slash.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// A chunk, by the hash of its bytes.
    pub fn chunk(&self, digest: &Digest) -> String {
        format!("{}chunks/{digest}", self.root)
    }

    /// The folder of all chunks.
    pub fn chunks(&self) -> String {
        format!("{}chunks/", self.root)
    }

    /// The manifest of one rank, as written by one attempt.
    pub fn rank(&self, epoch: u64, rank: u32, attempt: &str) -> String {
        format!("{}ranks/{rank:05}-{}.json", self.epoch(epoch), escape(attempt))
    }

    /// The manifest of an epoch: the last thing written, created once.
    pub fn manifest(&self, epoch: u64) -> String {
        format!("{}MANIFEST.json", self.epoch(epoch))
    }

    /// The folder of all epochs: listing it gives them in order.
    pub fn epochs(&self) -> String {
        format!("{}epochs/", self.root)
    }

    /// The epoch whose manifest a key is, if it is one of this folder.
    pub fn epoch_of(&self, key: &str) -> Option<u64> {
        let digits = key.strip_prefix(&self.epochs())?.strip_suffix("/MANIFEST.json")?;
        let epoch = digits.parse().ok()?;
        (self.manifest(epoch) == key).then_some(epoch)
    }

    fn epoch(&self, epoch: u64) -> String {
        format!("{}epochs/{epoch:0width$}/", self.root, width = EPOCH_DIGITS)
    }
}

/// The operator's prefix as a folder: each segment escaped, empty ones left out.
fn folder(prefix: &str) -> String {
    let mut folder = String::new();
    for segment in prefix.split('/').filter(|segment| !segment.is_empty()) {
        folder.push_str(&escape(segment));
        folder.push('/');
    }
    folder
}

/// One name as one path segment that no other name shares.
///
/// Letters, digits, `-`, and past the first place `.` and `_`, stand for themselves; each other
/// byte is `=` and two hex digits. So there is no slash, no `..`, and nothing that begins with `_`
/// (folders of that kind are ours). `=` rather than `%`, which clients escape a second time.
pub fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for (place, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric()
            || byte == b'-'
            || (place > 0 && (byte == b'.' || byte == b'_'));
        if plain {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "={byte:02x}").expect("a string takes what is written to it");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new("team/ckpt/", "blue", "ml", "7c9e/worker").unwrap()
    }

    #[test]
    fn keys_are_these() {
        let digest = Digest::of(b"");
        assert_eq!(keys().root(), "team/ckpt/blue/ml/7c9e=2fworker/");
        assert_eq!(
            keys().manifest(42),
            "team/ckpt/blue/ml/7c9e=2fworker/epochs/0000000042/MANIFEST.json"
        );
        assert_eq!(
            keys().rank(42, 7, "a1"),
            "team/ckpt/blue/ml/7c9e=2fworker/epochs/0000000042/ranks/00007-a1.json"
        );
        assert_eq!(keys().chunk(&digest), format!("{}chunks/{digest}", keys().root()));
        assert_eq!(Keys::new("", "c", "n", "j").unwrap().root(), "c/n/j/");
    }

    #[test]
    fn an_epoch_is_read_back_from_its_manifest_only() {
        assert_eq!(keys().epoch_of(&keys().manifest(42)), Some(42));
        assert_eq!(keys().epoch_of(&keys().manifest(u64::MAX)), Some(u64::MAX));
        assert_eq!(keys().epoch_of(&keys().rank(42, 7, "a1")), None);
        assert_eq!(
            keys().epoch_of("team/ckpt/blue/ml/other/epochs/0000000042/MANIFEST.json"),
            None
        );
        assert_eq!(keys().epoch_of(&format!("{}42/MANIFEST.json", keys().epochs())), None);
    }

    #[test]
    fn a_name_cannot_leave_its_folder() {
        for name in
            ["../other", "..", ".", "a/../../b", "_records", "%2e%2e", "=2e", "\u{e9}", "a b"]
        {
            let segment = escape(name);
            assert!(!segment.contains('/') && !segment.starts_with(['.', '_']), "{segment}");
        }
        assert_eq!(Keys::new("", "c", "", "j"), Err(KeyError { part: "namespace" }));
    }

    proptest::proptest! {
        #[test]
        fn two_names_never_share_a_folder(one in ".*", other in ".*") {
            proptest::prop_assert_eq!(escape(&one) == escape(&other), one == other);
        }
    }
}

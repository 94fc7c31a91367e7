//! Where the parts of a checkpoint lie in the bucket, and how no key leaves its namespace.

use std::fmt::Write as _;

use crate::attempt::Attempt;
use crate::chunk::Address;

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
/// Layout: `<prefix>/<cluster>/<namespace>/<job key>/{chunks,epochs,pins}/…`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keys {
    root: String,
}

/// What lies in the folder of a job key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A chunk.
    Chunk(Address),
    /// The manifest of an epoch.
    Manifest(u64),
    /// The manifest of a rank, as written by one attempt.
    Rank {
        /// The epoch it was written for.
        epoch: u64,
        /// The rank.
        rank: u32,
        /// Who wrote it.
        attempt: Attempt,
    },
    /// The mark that keeps an epoch.
    Pin(u64),
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

    /// A chunk, by the attempt that stored it and the hash of its bytes.
    pub fn chunk(&self, Address { attempt, digest }: &Address) -> String {
        format!("{}{attempt}/{digest}", self.chunks())
    }

    /// The folder of all chunks, in which each attempt has its own.
    pub fn chunks(&self) -> String {
        format!("{}chunks/", self.root)
    }

    /// The manifest of one rank, as written by one attempt.
    pub fn rank(&self, epoch: u64, rank: u32, attempt: Attempt) -> String {
        format!("{}ranks/{rank:05}-{attempt}.json", self.epoch(epoch))
    }

    /// The mark that keeps an epoch from being collected.
    pub fn pin(&self, epoch: u64) -> String {
        format!("{}{epoch:0width$}.json", self.pins(), width = EPOCH_DIGITS)
    }

    /// The folder of all pins.
    pub fn pins(&self) -> String {
        format!("{}pins/", self.root)
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
        match self.object(key) {
            Some(Object::Manifest(epoch)) => Some(epoch),
            Some(Object::Chunk(_) | Object::Rank { .. } | Object::Pin(_)) | None => None,
        }
    }

    /// What a key below this folder is; nothing if it is none that we write.
    pub fn object(&self, key: &str) -> Option<Object> {
        let below = key.strip_prefix(&self.root)?;
        let (folder, rest) = below.split_once('/')?;
        let object = match folder {
            "chunks" => {
                let (attempt, digest) = rest.split_once('/')?;
                let (attempt, digest) = (attempt.parse().ok()?, digest.parse().ok()?);
                Object::Chunk(Address { attempt, digest })
            }
            "epochs" => {
                let (epoch, rest) = rest.split_once('/')?;
                let epoch = epoch.parse().ok()?;
                match rest.strip_prefix("ranks/") {
                    None => Object::Manifest(epoch),
                    Some(file) => {
                        let (rank, attempt) = file.strip_suffix(".json")?.split_once('-')?;
                        let (rank, attempt) = (rank.parse().ok()?, attempt.parse().ok()?);
                        Object::Rank { epoch, rank, attempt }
                    }
                }
            }
            "pins" => Object::Pin(rest.strip_suffix(".json")?.parse().ok()?),
            _ => return None,
        };
        // There is one spelling of each: a number with a sign, or of other width, is none of ours.
        (self.key(&object) == key).then_some(object)
    }

    /// The key of an object.
    pub fn key(&self, object: &Object) -> String {
        match object {
            Object::Chunk(address) => self.chunk(address),
            Object::Manifest(epoch) => self.manifest(*epoch),
            Object::Rank { epoch, rank, attempt } => self.rank(*epoch, *rank, *attempt),
            Object::Pin(epoch) => self.pin(*epoch),
        }
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

/// The name that a path segment was made of; none if it was made by something else.
pub fn unescape(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'=' {
            let (digits, tail) = tail.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (!name.is_empty() && escape(&name) == segment).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::Digest;

    fn attempt() -> Attempt {
        Attempt::new(1_796_054_246, &["uid", "run", "1"])
    }

    fn keys() -> Keys {
        Keys::new("team/ckpt/", "blue", "ml", "7c9e/worker").unwrap()
    }

    #[test]
    fn keys_are_these() {
        let address = Address { attempt: attempt(), digest: Digest::of(b"") };
        assert_eq!(keys().root(), "team/ckpt/blue/ml/7c9e=2fworker/");
        assert_eq!(
            keys().manifest(42),
            "team/ckpt/blue/ml/7c9e=2fworker/epochs/0000000042/MANIFEST.json"
        );
        assert_eq!(
            keys().rank(42, 7, attempt()),
            format!(
                "team/ckpt/blue/ml/7c9e=2fworker/epochs/0000000042/ranks/00007-{}.json",
                attempt()
            )
        );
        assert_eq!(
            keys().chunk(&address),
            format!("{}chunks/{}/{}", keys().root(), attempt(), address.digest)
        );
        assert_eq!(keys().pin(42), "team/ckpt/blue/ml/7c9e=2fworker/pins/0000000042.json");
        assert_eq!(Keys::new("", "c", "n", "j").unwrap().root(), "c/n/j/");
    }

    #[test]
    fn an_epoch_is_read_back_from_its_manifest_only() {
        assert_eq!(keys().epoch_of(&keys().manifest(42)), Some(42));
        assert_eq!(keys().epoch_of(&keys().manifest(u64::MAX)), Some(u64::MAX));
        assert_eq!(keys().epoch_of(&keys().rank(42, 7, attempt())), None);
        assert_eq!(
            keys().epoch_of("team/ckpt/blue/ml/other/epochs/0000000042/MANIFEST.json"),
            None
        );
        assert_eq!(keys().epoch_of(&format!("{}42/MANIFEST.json", keys().epochs())), None);
    }

    #[test]
    fn each_object_is_read_back_from_its_key_and_no_other_key_is_one() {
        let digest = Digest::of(b"");
        let objects = [
            Object::Chunk(Address { attempt: attempt(), digest }),
            Object::Manifest(42),
            Object::Rank { epoch: 42, rank: 70_000, attempt: attempt() },
            Object::Pin(42),
        ];
        for object in objects {
            assert_eq!(keys().object(&keys().key(&object)), Some(object));
        }
        let root = keys().root().to_owned();
        for below in [
            format!("chunks/{digest}"),
            format!("chunks/{}/x/{digest}", attempt()),
            format!("chunks/../{digest}"),
            format!("chunks/{}/", attempt()),
            "epochs/0000000042/OTHER.json".to_owned(),
            "epochs/+000000042/MANIFEST.json".to_owned(),
            format!("epochs/0000000042/ranks/7-{}.json", attempt()),
            "epochs/0000000042/ranks/00007-a1.json".to_owned(),
            "pins/42.json".to_owned(),
            "pins/0000000042.json.bak".to_owned(),
            "notes.txt".to_owned(),
        ] {
            assert_eq!(keys().object(&format!("{root}{below}")), None, "{below}");
        }
        assert_eq!(keys().object("elsewhere/pins/0000000042.json"), None);
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

        #[test]
        fn a_name_is_read_back_from_its_folder(name in ".+", other in "[a-z=%._/+0-9]*") {
            proptest::prop_assert_eq!(unescape(&escape(&name)), Some(name));
            if let Some(name) = unescape(&other) {
                proptest::prop_assert_eq!(escape(&name), other);
            }
        }
    }
}

//! A rank's stream in chunks: where it is cut, how a chunk is named by its bytes and checked.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::attempt::Attempt;
use crate::region::Region;

/// Smallest size that a stream may be asked to be cut into.
pub const CHUNK_MIN: u64 = 16 << 20;
/// Largest chunk that a reader takes.
pub const CHUNK_MAX: u64 = 64 << 20;
/// Size of a chunk where nobody says otherwise.
pub const CHUNK_DEFAULT: u64 = 32 << 20;

/// What pieces are hashed for that turned out to be zero before one that is not.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// BLAKE3 of some bytes; 64 hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A part of a rank's stream, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ChunkText", into = "ChunkText")]
pub struct Chunk {
    /// How many bytes of the stream it is.
    pub bytes: u64,
    /// What those bytes are.
    pub content: Content,
}

/// What the bytes of a chunk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// They are stored there.
    Stored(Address),
    /// All of them are zero, and nothing is stored.
    Zero,
}

/// Where a chunk's bytes are stored: by whom, and under which hash.
///
/// The attempt is that which stored them, and need not be that of the manifest which names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The attempt in whose folder they lie.
    pub attempt: Attempt,
    /// Their hash, which is their name there.
    pub digest: Digest,
}

/// A place where a stream is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// First byte of the chunk, counted from the stream's beginning.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Why bytes are not the chunk they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// There are too few or too many.
    #[error("chunk has {found} bytes, its manifest says {expected}")]
    Size {
        /// What the manifest says.
        expected: u64,
        /// What was read.
        found: u64,
    },
    /// They are others.
    #[error("chunk `{expected}` holds other bytes, with hash `{found}`")]
    Content {
        /// What the manifest says.
        expected: Digest,
        /// The hash of what was read.
        found: Digest,
    },
    /// A hash is 64 hex digits, in lower case.
    #[error("`{text}` is not a BLAKE3 hash")]
    NotADigest {
        /// What stands there, shortened.
        text: String,
    },
    /// A chunk says neither where it is stored nor that it is zero, or both, or half of it.
    #[error("chunk has neither or both of `hash` with `attempt`, and `zero`")]
    Ambiguous,
}

/// Cuts the stream of these regions into chunks of at most `chunk_bytes`.
///
/// A region of a chunk's size or more begins a new chunk, so that a big tensor that did not change
/// has the same chunks again whatever lies before it. Small regions share chunks, but replicated
/// ones do not share any with others: a donor's chunks stand in the manifest of every rank.
pub fn cuts(regions: &[Region], chunk_bytes: u64) -> Cuts<'_> {
    Cuts { regions, chunk_bytes: chunk_bytes.max(1), offset: 0, until: 0 }
}

/// The cuts of a stream, in order. Made by [`cuts`]; takes no memory for them.
#[derive(Clone, Debug)]
pub struct Cuts<'a> {
    regions: &'a [Region],
    chunk_bytes: u64,
    offset: u64,
    /// End of the run of regions that is being cut.
    until: u64,
}

impl Iterator for Cuts<'_> {
    type Item = Cut;

    fn next(&mut self) -> Option<Cut> {
        if self.offset == self.until {
            self.until = self.next_run();
        }
        let bytes = (self.until - self.offset).min(self.chunk_bytes);
        let cut = Cut { offset: self.offset, bytes };
        self.offset += bytes;
        (bytes > 0).then_some(cut)
    }
}

impl Cuts<'_> {
    /// Takes one big region, or all small ones up to the next big one; says where they end.
    fn next_run(&mut self) -> u64 {
        let mut until = self.offset;
        let mut spread = None;
        while let Some((first, rest)) = self.regions.split_first() {
            let big = first.bytes >= self.chunk_bytes;
            let other = *spread.get_or_insert(first.spread) != first.spread;
            if (big || other) && until > self.offset {
                break;
            }
            until = until.saturating_add(first.bytes);
            self.regions = rest;
            if big {
                break;
            }
        }
        until
    }
}

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // By blocks, so that the compiler compares many bytes at once and ends early.
    bytes.chunks(4096).all(|block| block.iter().fold(0, |any, byte| any | byte) == 0)
}

impl Chunk {
    /// The chunk of these bytes, as this attempt stores it. Costs one pass to hash them; those that
    /// are zero are looked at twice, unless all are.
    pub fn of(bytes: &[u8], attempt: Attempt) -> Self {
        let mut naming = Naming::default();
        naming.take(bytes);
        naming.chunk(attempt)
    }

    /// The same bytes, as they were stored before by another attempt.
    #[must_use]
    pub fn stored_by(self, attempt: Attempt) -> Self {
        let content = match self.content {
            Content::Stored(address) => Content::Stored(Address { attempt, ..address }),
            Content::Zero => Content::Zero,
        };
        Self { content, ..self }
    }

    /// Checks that these bytes are the chunk.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), ChunkError> {
        let found = bytes.len() as u64;
        if found != self.bytes {
            return Err(ChunkError::Size { expected: self.bytes, found });
        }
        match self.content {
            Content::Stored(address) => address.digest.verify(bytes),
            Content::Zero => Ok(()),
        }
    }

    /// Where it is stored, unless it is zero.
    pub fn address(&self) -> Option<Address> {
        match self.content {
            Content::Stored(address) => Some(address),
            Content::Zero => None,
        }
    }
}

/// Names a chunk piece by piece, so that its bytes can be looked at while the processor has them at
/// hand.
#[derive(Debug, Default)]
pub struct Naming {
    /// Bytes so far.
    bytes: u64,
    /// Of all of them, once one is not zero.
    hasher: Option<blake3::Hasher>,
}

impl Naming {
    /// The next bytes. Pieces of 128 KiB and more are hashed as fast as the whole.
    pub fn take(&mut self, piece: &[u8]) {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(piece);
        } else if !is_zero(piece) {
            let mut hasher = blake3::Hasher::new();
            let mut zeros = self.bytes;
            while zeros > 0 {
                let some = zeros.min(ZEROS.len() as u64);
                // It is no longer than an array.
                hasher.update(&ZEROS[..usize::try_from(some).unwrap_or(0)]);
                zeros -= some;
            }
            hasher.update(piece);
            self.hasher = Some(hasher);
        }
        self.bytes += piece.len() as u64;
    }

    /// The chunk of all pieces, as this attempt stores it.
    pub fn chunk(self, attempt: Attempt) -> Chunk {
        let content = self.hasher.map_or(Content::Zero, |hasher| {
            Content::Stored(Address { attempt, digest: Digest(*hasher.finalize().as_bytes()) })
        });
        Chunk { bytes: self.bytes, content }
    }
}

impl Digest {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Checks that these bytes have this hash.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), ChunkError> {
        let found = Self::of(bytes);
        if found == *self {
            return Ok(());
        }
        Err(ChunkError::Content { expected: *self, found })
    }

    /// The hash as bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

impl FromStr for Digest {
    type Err = ChunkError;

    fn from_str(text: &str) -> Result<Self, ChunkError> {
        let lower = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let hash = blake3::Hash::from_hex(text).ok().filter(|_| lower);
        let refused = || ChunkError::NotADigest { text: text.chars().take(80).collect() };
        hash.map(|hash| Self(*hash.as_bytes())).ok_or_else(refused)
    }
}

impl TryFrom<String> for Digest {
    type Error = ChunkError;

    fn try_from(text: String) -> Result<Self, ChunkError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// A chunk as it is written: what is missing must never be read as zeros.
#[derive(Serialize, Deserialize)]
struct ChunkText {
    bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<Attempt>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<Digest>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    zero: bool,
}

impl TryFrom<ChunkText> for Chunk {
    type Error = ChunkError;

    fn try_from(text: ChunkText) -> Result<Self, ChunkError> {
        let content = match (text.attempt, text.hash, text.zero) {
            (Some(attempt), Some(digest), false) => Content::Stored(Address { attempt, digest }),
            (None, None, true) => Content::Zero,
            (None, _, false) | (_, None, false) | (Some(_), _, true) | (_, Some(_), true) => {
                return Err(ChunkError::Ambiguous);
            }
        };
        Ok(Self { bytes: text.bytes, content })
    }
}

impl From<Chunk> for ChunkText {
    fn from(chunk: Chunk) -> Self {
        let address = chunk.address();
        let (attempt, hash) = (address.map(|one| one.attempt), address.map(|one| one.digest));
        Self { bytes: chunk.bytes, attempt, hash, zero: address.is_none() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Dtype;
    use crate::region::Spread;

    fn region(bytes: u64) -> Region {
        Region::new("r", Dtype::U8, &[bytes])
    }

    fn attempt() -> Attempt {
        Attempt::new(1_796_054_246, &["uid"])
    }

    #[track_caller]
    fn check(sizes: &[u64], chunk_bytes: u64, expected: &[(u64, u64)]) {
        let regions: Vec<Region> = sizes.iter().copied().map(region).collect();
        let found: Vec<_> =
            cuts(&regions, chunk_bytes).map(|cut| (cut.offset, cut.bytes)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_chunk_is_named_the_same_by_its_pieces_and_as_a_whole() {
        let mut bytes = vec![0; 300_000];
        let check = |bytes: &[u8]| {
            for size in [1 << 10, 100_000, 1 << 20] {
                let mut naming = Naming::default();
                bytes.chunks(size).for_each(|piece| naming.take(piece));
                let content = if is_zero(bytes) {
                    Content::Zero
                } else {
                    let digest = Digest(*blake3::hash(bytes).as_bytes());
                    Content::Stored(Address { attempt: attempt(), digest })
                };
                let expected = Chunk { bytes: bytes.len() as u64, content };
                assert_eq!(naming.chunk(attempt()), expected);
                assert_eq!(Chunk::of(bytes, attempt()), expected);
            }
        };
        check(&[]);
        check(&bytes);
        bytes[299_999] = 1;
        check(&bytes);
        bytes[0] = 1;
        check(&bytes);
    }

    #[test]
    fn a_big_region_begins_a_chunk_and_small_ones_share() {
        check(&[], 10, &[]);
        check(&[0, 0], 10, &[]);
        check(&[3, 4, 5], 10, &[(0, 10), (10, 2)]);
        check(&[3, 25, 2, 2], 10, &[(0, 3), (3, 10), (13, 10), (23, 5), (28, 4)]);
        check(&[10, 10, 0], 10, &[(0, 10), (10, 10)]);
    }

    #[test]
    fn a_replicated_region_shares_no_chunk_with_others() {
        let replicated = Region { spread: Spread::Replicated, ..region(3) };
        let regions = [replicated.clone(), replicated, region(2), region(1)];
        let found: Vec<_> = cuts(&regions, 10).map(|cut| (cut.offset, cut.bytes)).collect();
        assert_eq!(found, [(0, 6), (6, 3)]);
    }

    #[test]
    fn a_chunk_of_zeros_is_not_stored() {
        let chunk = Chunk::of(&[0; 5000], attempt());
        assert_eq!(chunk.content, Content::Zero);
        assert_eq!(serde_json::to_string(&chunk).unwrap(), r#"{"bytes":5000,"zero":true}"#);
        let mut bytes = [0; 5000];
        bytes[4999] = 1;
        let stored = Chunk::of(&bytes, attempt());
        let address = Address { attempt: attempt(), digest: Digest::of(&bytes) };
        assert_eq!(stored.address(), Some(address));
        let before = Attempt::new(1, &["other"]);
        assert_eq!(
            stored.stored_by(before).address(),
            Some(Address { attempt: before, ..address })
        );
    }

    #[test]
    fn a_flipped_bit_and_a_missing_byte_are_seen() {
        let chunk = Chunk::of(b"state", attempt());
        assert_eq!(chunk.verify(b"state"), Ok(()));
        assert!(matches!(chunk.verify(b"stbte"), Err(ChunkError::Content { .. })));
        assert_eq!(chunk.verify(b"stat"), Err(ChunkError::Size { expected: 5, found: 4 }));
    }

    #[test]
    fn a_chunk_without_a_hash_is_refused_and_not_zero() {
        let whole = serde_json::to_string(&Chunk::of(b"state", attempt())).unwrap();
        assert!(serde_json::from_str::<Chunk>(&whole).is_ok());
        let (name, hash) = (attempt(), Digest::of(b"state"));
        for text in [
            r#"{"bytes":1}"#.to_owned(),
            r#"{"zero":true}"#.to_owned(),
            format!(r#"{{"bytes":5,"hash":"{hash}"}}"#),
            format!(r#"{{"bytes":5,"attempt":"{name}"}}"#),
            format!(r#"{{"bytes":5,"attempt":"{name}","zero":true}}"#),
            format!(r#"{{"bytes":5,"attempt":"{name}","hash":"xy"}}"#),
            format!(r#"{{"bytes":5,"attempt":"../{name}","hash":"{hash}"}}"#),
            whole.replace('}', r#","zero":true}"#),
        ] {
            assert!(serde_json::from_str::<Chunk>(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_digest_is_64_lower_hex_digits() {
        let text = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Digest::of(b"").to_string(), text);
        assert_eq!(text.parse(), Ok(Digest::of(b"")));
        assert!(text.to_uppercase().parse::<Digest>().is_err());
        assert!(text[1..].parse::<Digest>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn cuts_cover_the_stream_once(
            sizes in proptest::collection::vec(0_u64..100, 0..20),
            chunk_bytes in 1_u64..40,
        ) {
            let regions: Vec<Region> = sizes.iter().copied().map(region).collect();
            let mut end = 0;
            for cut in cuts(&regions, chunk_bytes) {
                proptest::prop_assert_eq!(cut.offset, end);
                proptest::prop_assert!(cut.bytes > 0 && cut.bytes <= chunk_bytes);
                end += cut.bytes;
            }
            proptest::prop_assert_eq!(end, sizes.iter().sum::<u64>());
        }
    }
}

//! The table of contents of a checkpoint: one manifest for each rank, and one over all, written last.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::attempt::Attempt;
use crate::chunk::CHUNK_MAX;
use crate::chunk::Chunk;
use crate::chunk::ChunkError;
use crate::chunk::Digest;
use crate::region::Layout;
use crate::region::LayoutError;

/// The format that this version writes.
pub const FORMAT: u32 = 1;
/// Largest manifest, of a rank or over all, that a reader takes, in bytes.
pub const MANIFEST_MAX: usize = 64 << 20;
/// Most ranks of a checkpoint.
pub const RANKS_MAX: u32 = 65_536;

/// One epoch of a job key. Created once, under [`Keys::manifest`](crate::key::Keys::manifest).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the format; see [`FORMAT`].
    pub format: u32,
    /// What the epoch is.
    pub kind: Kind,
    /// The cluster it belongs to.
    pub cluster: String,
    /// The namespace it belongs to.
    pub namespace: String,
    /// The job key it belongs to.
    pub job_key: String,
    /// Its number, the first being 1.
    pub epoch: u64,
    /// Steps completed: in its state, or, for a claim, where the new life begins.
    #[serde(default)]
    pub step: u64,
    /// How many ranks the job has.
    #[serde(default)]
    pub world: u32,
    /// The life that wrote it; chosen by whoever runs the workload.
    #[serde(default)]
    pub run: String,
    /// The epoch whose state it follows: a claim goes on from there. None for the first.
    #[serde(default)]
    pub parent: Option<u64>,
    /// Who holds the job key from here on.
    #[serde(default)]
    pub holder: Holder,
    /// When it was made, in RFC 3339.
    #[serde(default)]
    pub created_at: String,
    /// When the instance it was saved on may be gone, in RFC 3339: past that, and some time, a
    /// restore needs no other proof.
    #[serde(default)]
    pub deadline: Option<String>,
    /// Size of the state, over all ranks.
    #[serde(default)]
    pub bytes: u64,
    /// The manifest of each rank; none for a claim or an end.
    #[serde(default)]
    pub ranks: BTreeMap<u32, RankEntry>,
}

/// What an epoch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// State was saved.
    Save,
    /// A new life took the job key, with its parent's state or with none.
    Claim,
    /// The work is done; nothing is resumed after it.
    Finished,
    /// State was saved, and later ones took its place: its chunks are gone, or will be. It keeps
    /// its number, so that nobody can take that again.
    Collected,
    /// Something a newer version knows. It takes its number, and cannot be restored here.
    #[serde(other)]
    Unknown,
}

/// Who holds a job key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holder {
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Its node.
    pub node: String,
    /// The node's EC2 instance, where known.
    pub instance: Option<String>,
}

/// Where the manifest of a rank lies, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankEntry {
    /// The attempt that wrote it: its file under `ranks/` has that name.
    pub attempt: Attempt,
    /// BLAKE3 of it.
    pub hash: Digest,
    /// Size of the rank's state.
    #[serde(default)]
    pub bytes: u64,
}

/// The state of one rank: what it consists of, and the chunks that hold it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankManifest {
    /// Version of the format; see [`FORMAT`].
    pub format: u32,
    /// The epoch it was written for.
    pub epoch: u64,
    /// The rank.
    pub rank: u32,
    /// Steps completed in this state.
    pub step: u64,
    /// Its regions and its tree.
    pub layout: Layout,
    /// The stream of its regions, in order.
    pub chunks: Vec<Chunk>,
}

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is larger than any we write.
    #[error("manifest has {bytes} bytes. At most {MANIFEST_MAX} are read.")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is no JSON of the right form.
    #[error("manifest cannot be read: {reason}")]
    Unreadable {
        /// Where and why.
        reason: String,
    },
    /// A newer version wrote it.
    #[error(
        "manifest has format {format}, this version reads {FORMAT}. A newer Lifeboat reads it."
    )]
    Newer {
        /// Its format.
        format: u64,
    },
    /// It is that of something else.
    #[error("manifest says {what} `{found}`, expected `{expected}`")]
    Foreign {
        /// Which of its names.
        what: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// Its ranks are not 0 to world − 1.
    #[error("manifest has {found} ranks of a world of {world}, or others than its first")]
    Ranks {
        /// How many it names.
        found: usize,
        /// How many there are.
        world: u32,
    },
    /// What it says of itself does not add up.
    #[error("manifest says {what} {stated}, its parts make {found}")]
    Sum {
        /// Which figure.
        what: &'static str,
        /// As it is stated.
        stated: u64,
        /// As its parts have it.
        found: u64,
    },
    /// A claim's or an end's figures are those of a save, or the other way round.
    #[error("manifest of kind {kind:?} {fault}")]
    Kind {
        /// Its kind.
        kind: Kind,
        /// What is wrong with that.
        fault: &'static str,
    },
    /// A chunk is empty or too large.
    #[error("chunk {index} has {bytes} bytes. A chunk has 1 to {CHUNK_MAX}.")]
    Chunk {
        /// Which one, from 0.
        index: usize,
        /// Its size.
        bytes: u64,
    },
    /// Its layout is none.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// It is not the one that the manifest over all names.
    #[error("manifest of rank {rank} is not the one that was committed")]
    Changed {
        /// The rank.
        rank: u32,
        /// How it differs.
        source: ChunkError,
    },
}

impl Manifest {
    /// Reads a manifest and checks that it is whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = parse(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The bytes to store.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self)
    }

    /// The same, with its state let go of: nothing goes on from it any more. Only a save has one.
    pub fn collected(&self) -> Option<Self> {
        (self.kind == Kind::Save).then(|| Self { kind: Kind::Collected, ..self.clone() })
    }

    /// The same, as it was before its state was let go of.
    pub fn put_back(&self) -> Option<Self> {
        (self.kind == Kind::Collected).then(|| Self { kind: Kind::Save, ..self.clone() })
    }

    /// Checks that it is whole: a save names the manifest of every rank, others name none.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.epoch == 0 {
            return Err(self.fault("has no number"));
        }
        if self.parent.is_some_and(|parent| parent >= self.epoch) {
            return Err(self.fault("follows an epoch that comes after it"));
        }
        match self.kind {
            Kind::Save | Kind::Collected => self.check_save(),
            Kind::Claim | Kind::Finished if !self.ranks.is_empty() => {
                Err(self.fault("names chunks of its own"))
            }
            Kind::Claim | Kind::Finished | Kind::Unknown => Ok(()),
        }
    }

    /// Checks that it stands where it says: under this epoch of this job key.
    pub fn check_place(&self, place: &Place<'_>) -> Result<(), ManifestError> {
        same("cluster", &self.cluster, place.cluster)?;
        same("namespace", &self.namespace, place.namespace)?;
        same("job key", &self.job_key, place.job_key)?;
        same("epoch", &self.epoch.to_string(), &place.epoch.to_string())
    }

    /// The epoch that holds the state to go on from: its own, or its parent's.
    pub fn restores_from(&self) -> Option<u64> {
        match self.kind {
            Kind::Save => Some(self.epoch),
            Kind::Claim => self.parent,
            Kind::Finished | Kind::Collected | Kind::Unknown => None,
        }
    }

    /// Reads the manifest of a rank and checks that it is the one that was committed.
    pub fn parse_rank(&self, rank: u32, bytes: &[u8]) -> Result<RankManifest, ManifestError> {
        let Some(entry) = self.ranks.get(&rank) else {
            return Err(ManifestError::Ranks { found: self.ranks.len(), world: self.world });
        };
        let changed = |source| ManifestError::Changed { rank, source };
        entry.hash.verify(bytes).map_err(changed)?;
        let manifest = RankManifest::parse(bytes)?;
        same("rank", &manifest.rank.to_string(), &rank.to_string())?;
        sum("bytes", entry.bytes, manifest.layout.bytes())?;
        Ok(manifest)
    }

    fn check_save(&self) -> Result<(), ManifestError> {
        let in_order = self.ranks.keys().copied().eq(0..self.world.min(RANKS_MAX + 1));
        if self.world == 0 || self.world > RANKS_MAX || !in_order {
            return Err(ManifestError::Ranks { found: self.ranks.len(), world: self.world });
        }
        let bytes = self.ranks.values().fold(0_u64, |sum, rank| sum.saturating_add(rank.bytes));
        sum("bytes", self.bytes, bytes)
    }

    fn fault(&self, fault: &'static str) -> ManifestError {
        ManifestError::Kind { kind: self.kind, fault }
    }
}

/// Where a manifest stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The cluster of its folder.
    pub cluster: &'a str,
    /// The namespace of its folder.
    pub namespace: &'a str,
    /// The job key of its folder.
    pub job_key: &'a str,
    /// The number in its key.
    pub epoch: u64,
}

impl RankManifest {
    /// Reads the manifest of a rank and checks that it is whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = parse(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The bytes to store.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self)
    }

    /// Checks that its layout is one, and that its chunks make up the stream.
    pub fn check(&self) -> Result<(), ManifestError> {
        self.layout.check()?;
        let mut found = 0_u64;
        for (index, chunk) in self.chunks.iter().enumerate() {
            if chunk.bytes == 0 || chunk.bytes > CHUNK_MAX {
                return Err(ManifestError::Chunk { index, bytes: chunk.bytes });
            }
            found = found.saturating_add(chunk.bytes);
        }
        sum("bytes", self.layout.bytes(), found)
    }

    /// What the manifest over all says of it.
    pub fn entry(&self, attempt: Attempt) -> RankEntry {
        let hash = Digest::of(&self.to_bytes());
        RankEntry { attempt, hash, bytes: self.layout.bytes() }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ManifestError> {
    if bytes.len() > MANIFEST_MAX {
        return Err(ManifestError::TooLarge { bytes: bytes.len() });
    }
    // The format first: what a newer one means by its other fields is not ours to guess.
    let format = read::<Format>(bytes)?.format;
    if format != u64::from(FORMAT) {
        return Err(ManifestError::Newer { format });
    }
    read(bytes)
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ManifestError::Unreadable { reason: error.to_string() })
}

fn to_bytes(manifest: &impl Serialize) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec(manifest).expect("a manifest has no map with keys that are not text");
    bytes.push(b'\n');
    bytes
}

fn same(what: &'static str, found: &str, expected: &str) -> Result<(), ManifestError> {
    if found == expected {
        return Ok(());
    }
    let (found, expected) = (found.to_owned(), expected.to_owned());
    Err(ManifestError::Foreign { what, found, expected })
}

fn sum(what: &'static str, stated: u64, found: u64) -> Result<(), ManifestError> {
    if stated == found {
        return Ok(());
    }
    Err(ManifestError::Sum { what, stated, found })
}

#[derive(Deserialize)]
struct Format {
    format: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Dtype;
    use crate::region::Region;
    use crate::tree::Tree;

    const GOLDEN: &[u8] = include_bytes!("../tests/golden/manifest-1.json");
    const GOLDEN_RANK: &[u8] = include_bytes!("../tests/golden/rank-1.json");
    const PLACE: Place<'_> =
        Place { cluster: "blue", namespace: "ml", job_key: "7c9e/worker", epoch: 3 };

    fn attempt() -> Attempt {
        Attempt::new(1_796_054_246, &["d6b1", "r1", "1"])
    }

    fn rank() -> RankManifest {
        let weights = Region::new("weights", Dtype::F32, &[2, 2]);
        let loader = Region::new("loader", Dtype::U8, &[5]);
        let tree = Tree::map([("lr", Tree::Float(0.1)), ("seen", Tree::Int(512))]);
        let layout = Layout { regions: vec![weights, loader], tree };
        let chunks = vec![Chunk::of(b"0123456789abcdef", attempt()), Chunk::of(&[0; 5], attempt())];
        RankManifest { format: FORMAT, epoch: 3, rank: 0, step: 8412, layout, chunks }
    }

    fn save() -> Manifest {
        let holder = Holder {
            pod: "train-0".into(),
            pod_uid: "d6b1".into(),
            node: "ip-10-0-0-7".into(),
            instance: Some("i-0abc".into()),
        };
        Manifest {
            format: FORMAT,
            kind: Kind::Save,
            cluster: "blue".into(),
            namespace: "ml".into(),
            job_key: "7c9e/worker".into(),
            epoch: 3,
            step: 8412,
            world: 1,
            run: "r1".into(),
            parent: Some(2),
            holder,
            created_at: "2026-11-22T12:00:41Z".into(),
            deadline: Some("2026-11-22T12:02:03Z".into()),
            bytes: 21,
            ranks: BTreeMap::from([(0, rank().entry(attempt()))]),
        }
    }

    fn claim() -> Manifest {
        Manifest { kind: Kind::Claim, world: 0, bytes: 0, ranks: BTreeMap::new(), ..save() }
    }

    #[test]
    fn a_manifest_is_written_so_to_the_byte() {
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write("tests/golden/manifest-1.json", save().to_bytes()).unwrap();
            std::fs::write("tests/golden/rank-1.json", rank().to_bytes()).unwrap();
            return;
        }
        assert_eq!(String::from_utf8(save().to_bytes()), String::from_utf8(GOLDEN.to_vec()));
        assert_eq!(String::from_utf8(rank().to_bytes()), String::from_utf8(GOLDEN_RANK.to_vec()));
    }

    #[test]
    fn what_was_written_is_read_back_whole() {
        let manifest = Manifest::parse(GOLDEN).unwrap();
        assert_eq!(manifest, save());
        assert_eq!(manifest.check_place(&PLACE), Ok(()));
        assert_eq!(manifest.parse_rank(0, GOLDEN_RANK).unwrap(), rank());
        assert_eq!(manifest.restores_from(), Some(3));
        assert_eq!(Manifest::parse(&claim().to_bytes()).unwrap().restores_from(), Some(2));
    }

    #[test]
    fn a_collected_epoch_keeps_its_number_and_can_be_put_back_but_not_gone_on_from() {
        let collected = Manifest::parse(&save().collected().unwrap().to_bytes()).unwrap();
        assert_eq!((collected.kind, collected.epoch), (Kind::Collected, 3));
        assert_eq!(collected.restores_from(), None);
        assert_eq!(collected.put_back(), Some(save()));
        assert_eq!((collected.collected(), save().put_back()), (None, None));
        assert_eq!(claim().collected(), None);
    }

    #[test]
    fn a_manifest_in_another_place_is_refused_by_name() {
        for place in [
            Place { cluster: "green", ..PLACE },
            Place { namespace: "other", ..PLACE },
            Place { job_key: "7c9e", ..PLACE },
            Place { epoch: 4, ..PLACE },
        ] {
            assert!(matches!(save().check_place(&place), Err(ManifestError::Foreign { .. })));
        }
    }

    #[test]
    fn a_rank_that_changed_after_the_commit_is_refused() {
        let mut bytes = GOLDEN_RANK.to_vec();
        bytes[40] ^= 1;
        let refused = save().parse_rank(0, &bytes);
        assert!(matches!(refused, Err(ManifestError::Changed { rank: 0, .. })));
        assert!(matches!(save().parse_rank(1, GOLDEN_RANK), Err(ManifestError::Ranks { .. })));
    }

    #[track_caller]
    fn refused(manifest: &Manifest, part: &str) {
        let error = Manifest::parse(&manifest.to_bytes()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn a_manifest_that_is_not_whole_is_refused() {
        refused(&Manifest { world: 2, ..save() }, "1 ranks of a world of 2");
        refused(&Manifest { world: 0, ..save() }, "world of 0");
        refused(&Manifest { world: u32::MAX, ..save() }, "world of");
        refused(&Manifest { bytes: 22, ..save() }, "says bytes 22, its parts make 21");
        refused(&Manifest { epoch: 0, parent: None, ..claim() }, "has no number");
        refused(&Manifest { parent: Some(3), ..claim() }, "comes after it");
        refused(&Manifest { kind: Kind::Finished, ..save() }, "chunks of its own");
        refused(&Manifest { format: 2, ..save() }, "A newer Lifeboat reads it");
    }

    #[test]
    fn a_rank_whose_chunks_do_not_make_its_stream_is_refused() {
        let mut short = rank();
        short.chunks.pop();
        assert!(matches!(short.check(), Err(ManifestError::Sum { stated: 21, found: 16, .. })));
        let mut huge = rank();
        huge.chunks[0].bytes = CHUNK_MAX + 1;
        assert!(matches!(huge.check(), Err(ManifestError::Chunk { index: 0, .. })));
        let mut empty = rank();
        empty.chunks[1].bytes = 0;
        assert!(matches!(empty.check(), Err(ManifestError::Chunk { index: 1, .. })));
    }

    #[test]
    fn another_minor_version_is_read_both_ways() {
        let newer = r#"{"format":1,"kind":"merge","cluster":"blue","namespace":"ml",
            "job_key":"7c9e/worker","epoch":3,"color":{"a":[1]},"holder":{"rack":"r7"}}"#;
        let manifest = Manifest::parse(newer.as_bytes()).unwrap();
        assert_eq!((manifest.kind, manifest.restores_from()), (Kind::Unknown, None));
        assert_eq!(manifest.check_place(&PLACE), Ok(()));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_refused_and_never_a_panic(bytes: Vec<u8>) {
            proptest::prop_assert!(Manifest::parse(&bytes).is_err());
            proptest::prop_assert!(RankManifest::parse(&bytes).is_err());
        }

        #[test]
        fn a_torn_or_flipped_manifest_is_no_other_manifest(
            place in 0..GOLDEN.len() - 1,
            bit in 0_u8..8,
        ) {
            // JSON has its closing brace before the last byte, a line feed.
            proptest::prop_assert!(Manifest::parse(&GOLDEN[..place]).is_err());
            let mut bytes = GOLDEN_RANK[..GOLDEN_RANK.len() - 1].to_vec();
            let place = place % bytes.len();
            bytes[place] ^= 1 << bit;
            proptest::prop_assert!(save().parse_rank(0, &bytes).is_err());
        }
    }
}

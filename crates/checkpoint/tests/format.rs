//! The bytes of the format, as `docs/checkpoint-format.md` tells them, and what a reader refuses.
#![allow(clippy::unwrap_used, reason = "clippy does not see functions here as tests")]

use std::fs;
use std::path::PathBuf;

use lifeboat_checkpoint::attempt::Attempt;
use lifeboat_checkpoint::chunk::Chunk;
use lifeboat_checkpoint::chunk::ChunkError;
use lifeboat_checkpoint::manifest::FORMAT;
use lifeboat_checkpoint::manifest::MANIFEST_MAX;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_checkpoint::manifest::ManifestError;
use lifeboat_checkpoint::manifest::RankManifest;
use lifeboat_checkpoint::region::Dtype;
use lifeboat_checkpoint::region::Layout;
use lifeboat_checkpoint::region::LayoutError;
use lifeboat_checkpoint::region::Need;
use lifeboat_checkpoint::region::REGIONS_MAX;
use lifeboat_checkpoint::region::Region;
use lifeboat_checkpoint::region::Spread;
use lifeboat_checkpoint::tree::Tree;

/// What parsing may take of the address space, whatever a file says: far less than any number that
/// an attacker would put there.
const TAKEN_MAX_KIB: u64 = 256 << 10;
/// Numbers that are too large, or none.
const NUMBERS: [&str; 8] = [
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "4294967296",
    "4294967295",
    "-1",
    "1e308",
    "0.5",
];

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(golden(name)).unwrap()
}

fn attempt() -> Attempt {
    Attempt::new(1_796_054_846, &["d6b1", "r1", "2"])
}

/// The attempt before, which stored what did not change since.
fn before() -> Attempt {
    Attempt::new(1_796_054_246, &["d6b1", "r1", "1"])
}

/// Every kind of region, chunk and value there is.
fn kinds() -> (RankManifest, Vec<u8>) {
    let weights =
        Region { spread: Spread::Replicated, ..Region::new("model/weight", Dtype::F32, &[2, 2]) };
    let moments = Region { need: Need::BestEffort, ..Region::new("moments", Dtype::F64, &[3]) };
    let other = Region { bytes: 4, ..Region::new("other", Dtype::named("f4_e2m1"), &[8]) };
    let mut bytes: Vec<u8> =
        [0.5_f32, -1.0, 3.25, f32::MAX].iter().flat_map(|number| number.to_le_bytes()).collect();
    let chunk = Chunk::of(&bytes, before());
    bytes.extend([0; 24]);
    bytes.extend([1, 2, 3, 4]);
    let chunks = vec![chunk, Chunk::of(&[0; 24], attempt()), Chunk::of(&[1, 2, 3, 4], attempt())];
    let tree = Tree::map([
        ("nothing", Tree::Null),
        ("amp", Tree::Bool(true)),
        ("seen", Tree::Int(-512)),
        ("seed", Tree::Big("340282366920938463463374607431768211455".into())),
        ("lr", Tree::Float(0.1)),
        ("best", Tree::Float(f64::NEG_INFINITY)),
        ("name", Tree::Str("b\u{e4}r\n".into())),
        ("rng", Tree::Bytes(vec![0, 255, 16])),
        ("order", Tree::List(vec![Tree::Int(2), Tree::Int(0)])),
        ("weight", Tree::Region("model/weight".into())),
    ]);
    let layout = Layout { regions: vec![weights, moments, other], tree };
    (RankManifest { format: FORMAT, epoch: 4, rank: 1, step: 9000, layout, chunks }, bytes)
}

#[test]
fn every_kind_of_thing_is_written_so_to_the_byte() {
    let (manifest, bytes) = kinds();
    let stored = [(0..16, &manifest.chunks[0]), (40..44, &manifest.chunks[2])];
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(golden("rank-kinds-1.json"), manifest.to_bytes()).unwrap();
        for (place, chunk) in stored {
            let path = golden(&name(chunk));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &bytes[place]).unwrap();
        }
        return;
    }
    assert_eq!(RankManifest::parse(&read("rank-kinds-1.json")).unwrap(), manifest);
    assert_eq!(read("rank-kinds-1.json"), manifest.to_bytes());
    for (place, chunk) in stored {
        let found = read(&name(chunk));
        assert_eq!(found, bytes[place]);
        assert_eq!(chunk.verify(&found), Ok(()));
    }
}

fn name(chunk: &Chunk) -> String {
    let address = chunk.address().unwrap();
    format!("chunks/{}/{}", address.attempt, address.digest)
}

#[test]
fn an_attempt_that_is_no_name_is_refused_before_it_is_part_of_a_key() {
    let (manifest, rank) = (read("manifest-1.json"), read("rank-1.json"));
    let (manifest, rank) = (String::from_utf8(manifest).unwrap(), String::from_utf8(rank).unwrap());
    let name = before().to_string();
    assert!(manifest.contains(&name) && rank.contains(&name));
    for other in ["", "..", "../../other", "/", "a1", "01796054246-", "1796054246", "%2e%2e"] {
        assert!(Manifest::parse(manifest.replace(&name, other).as_bytes()).is_err(), "{other}");
        assert!(RankManifest::parse(rank.replace(&name, other).as_bytes()).is_err(), "{other}");
    }
}

#[test]
fn a_missing_byte_a_flipped_bit_and_a_missing_chunk_are_refused_by_name() {
    let (manifest, bytes) = kinds();
    let chunk = manifest.chunks[0];
    assert!(matches!(chunk.verify(&bytes[..15]), Err(ChunkError::Size { found: 15, .. })));
    assert!(matches!(chunk.verify(&bytes[..17]), Err(ChunkError::Size { found: 17, .. })));
    assert!(matches!(chunk.verify(&[]), Err(ChunkError::Size { found: 0, .. })));
    for bit in 0..16 * 8 {
        let mut flipped = bytes[..16].to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(chunk.verify(&flipped), Err(ChunkError::Content { .. })), "bit {bit}");
    }
    for lost in 0..manifest.chunks.len() {
        let mut torn = manifest.clone();
        torn.chunks.remove(lost);
        assert!(matches!(
            RankManifest::parse(&torn.to_bytes()),
            Err(ManifestError::Sum { what: "bytes", .. })
        ));
    }
}

/// Every bit of both files: refused, or still the file that was committed in all that is restored.
#[test]
fn no_flipped_bit_of_a_manifest_changes_what_is_restored() {
    let (manifest, rank) = (read("manifest-1.json"), read("rank-1.json"));
    let whole = Manifest::parse(&manifest).unwrap();
    let mut changed = 0;
    for bit in 0..rank.len() * 8 {
        let mut flipped = rank.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let refused = whole.parse_rank(0, &flipped).unwrap_err();
        assert!(matches!(refused, ManifestError::Changed { rank: 0, .. }), "bit {bit}");
    }
    for bit in 0..manifest.len() * 8 {
        let mut flipped = manifest.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        // What still parses must name the very same rank, or none that can be read.
        if let Ok(other) = Manifest::parse(&flipped) {
            changed += 1;
            let restored = other.parse_rank(0, &rank);
            let same = |restored: RankManifest| restored.to_bytes() == rank;
            assert!(restored.map_or(true, same), "bit {bit}");
        }
    }
    assert!(changed > 0, "names and dates are not covered by any hash");
}

#[test]
fn no_number_in_a_manifest_is_believed() {
    let before = address_space_kib();
    let mut tried = 0;
    for name in ["manifest-1.json", "rank-1.json", "rank-kinds-1.json"] {
        let text = String::from_utf8(read(name)).unwrap();
        for place in numbers(&text) {
            for number in NUMBERS {
                let lying = format!("{}{number}{}", &text[..place.start], &text[place.end..]);
                // Most are refused. What is not was a step, or the like: no memory hangs on it.
                let whole = Manifest::parse(lying.as_bytes()).err();
                let rank = RankManifest::parse(lying.as_bytes()).err();
                for error in whole.into_iter().chain(rank) {
                    assert!(!error.to_string().is_empty());
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "{tried}");
    let taken = address_space_kib().saturating_sub(before);
    assert!(taken < TAKEN_MAX_KIB, "{taken} KiB were taken for files of a few hundred bytes");
}

#[test]
fn a_manifest_that_is_its_own_parent_is_refused() {
    let text = String::from_utf8(read("manifest-1.json")).unwrap();
    for parent in [3_u64, 4, u64::MAX] {
        let circle = text.replace("\"parent\":2", &format!("\"parent\":{parent}"));
        let refused = Manifest::parse(circle.as_bytes()).unwrap_err();
        assert!(refused.to_string().contains("comes after it"), "{refused}");
    }
}

#[test]
fn a_huge_manifest_is_refused_before_it_is_read() {
    let huge = vec![b' '; MANIFEST_MAX + 1];
    assert_eq!(Manifest::parse(&huge), Err(ManifestError::TooLarge { bytes: huge.len() }));
    assert_eq!(
        RankManifest::parse(&huge).unwrap_err(),
        ManifestError::TooLarge { bytes: huge.len() }
    );
    let (mut many, _) = kinds();
    let one = Region::new("r", Dtype::U8, &[0]);
    many.layout
        .regions
        .extend((0..=REGIONS_MAX).map(|number| Region { name: number.to_string(), ..one.clone() }));
    let refused = RankManifest::parse(&many.to_bytes()).unwrap_err();
    assert!(matches!(refused, ManifestError::Layout(LayoutError::TooMany { .. })), "{refused}");
}

#[test]
fn a_manifest_nested_without_end_is_refused() {
    let text = String::from_utf8(read("rank-1.json")).unwrap();
    for (open, close) in [("{\"list\":[", "]}"), ("[", "]"), ("{\"a\":", "}")] {
        let depth = 100_000;
        let deep = format!("{}\"null\"{}", open.repeat(depth), close.repeat(depth));
        let tree = format!("\"tree\":{deep},\"was\":");
        let refused = RankManifest::parse(text.replace("\"tree\":", &tree).as_bytes());
        assert!(matches!(refused, Err(ManifestError::Unreadable { .. })));
    }
}

#[test]
fn a_newer_format_is_refused_whatever_else_it_says() {
    for text in
        [r#"{"format":2}"#, r#"{"format":2,"kind":7,"ranks":[]}"#, r#"{"format":4294967296}"#]
    {
        let refused =
            [Manifest::parse(text.as_bytes()).err(), RankManifest::parse(text.as_bytes()).err()];
        for error in refused {
            assert!(matches!(error, Some(ManifestError::Newer { .. })), "{text}");
        }
    }
}

/// Where numbers stand in a JSON text, outside of its strings.
fn numbers(text: &str) -> Vec<std::ops::Range<usize>> {
    let (mut found, mut quoted, mut start) = (Vec::new(), false, None);
    for (place, byte) in text.bytes().enumerate() {
        quoted ^= byte == b'"';
        let digit = !quoted && (byte.is_ascii_digit() || byte == b'-');
        match (digit, start) {
            (true, None) => start = Some(place),
            (false, Some(begun)) => {
                found.push(begun..place);
                start = None;
            }
            (true, Some(_)) | (false, None) => (),
        }
    }
    found
}

/// The most of its address space that this process ever had.
fn address_space_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

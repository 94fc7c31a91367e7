//! A folder of files as the state of a rank: a table in the tree, and their bytes, one after the
//! other, as the stream.

use std::collections::BTreeMap;

use crate::region::Dtype;
use crate::region::Layout;
use crate::region::Region;
use crate::tree::Tree;

/// Most entries that a folder may have.
pub const ENTRIES_MAX: usize = 100_000;
/// Longest path of an entry, in bytes.
pub const PATH_MAX: usize = 4096;
/// Most folders above an entry.
pub const DEPTH_MAX: usize = 64;
/// Files from this size on share no chunk with others, so that they are stored again only when
/// they change. Smaller ones in a row share chunks of up to eight times that.
pub const ALONE_FROM: u64 = 1 << 20;

/// The table, among the keys of the tree.
const TABLE: &str = "folder";
/// Where the folder lies, if that is not on the node.
const ELSEWHERE: &str = "elsewhere";
/// The region that holds all bytes.
const REGION: &str = "folder";
/// Bits of a mode that are given back: no set-user-id, and no type.
const MODE_BITS: u32 = 0o777;

/// The files and folders of a rank, each after the folder that it lies in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    /// What is in it.
    pub entries: Vec<Entry>,
}

/// A file or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path below the top, with `/` between the names.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Its permissions.
    pub mode: u32,
    /// Who owns it.
    pub user: u32,
    /// Which group does.
    pub group: u32,
    /// When its content was changed, in nanoseconds since 1970.
    pub modified_ns: i64,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A file of this size.
    File {
        /// In bytes.
        bytes: u64,
    },
}

/// What a rank's tree says of its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// It is here.
    Here(Folder),
    /// It lies on a server, and outlived its node: there is nothing to bring back.
    Elsewhere(String),
}

/// A part of the stream: pieces of files that are stored as one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins in the stream.
    pub offset: u64,
    /// Its pieces, one after the other.
    pub pieces: Vec<Piece>,
}

/// Bytes of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which entry.
    pub entry: usize,
    /// Where they begin in the file.
    pub from: u64,
    /// How many.
    pub bytes: u64,
}

/// Why a tree is not that of a folder that can be brought back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FolderError {
    /// It was saved in another way.
    #[error("the state is not that of a folder. It was saved by an SDK, or by a newer Lifeboat.")]
    NoFolder,
    /// A row of the table is none.
    #[error("row {row} of the folder's table cannot be read")]
    Row {
        /// Which, from 0.
        row: usize,
    },
    /// Too many entries.
    #[error("the folder has {found} entries. At most {ENTRIES_MAX} are taken.")]
    TooMany {
        /// How many it has.
        found: usize,
    },
    /// A path that leads out of the folder, or that is none.
    #[error("`{path}` is not a path below the folder")]
    Path {
        /// The path.
        path: String,
    },
    /// The folder of an entry is not there before it, or the path is there twice.
    #[error("`{path}` is there twice, or lies in no folder")]
    Place {
        /// The path.
        path: String,
    },
    /// The files are not as large as the stream.
    #[error("the files make {found} bytes, the stream {stated}")]
    Size {
        /// By the table.
        found: u64,
        /// By the layout.
        stated: u64,
    },
}

impl Folder {
    /// What a rank announces of it.
    pub fn layout(&self) -> Layout {
        let bytes = self.bytes();
        let region = (bytes > 0).then(|| Region::new(REGION, Dtype::U8, &[bytes]));
        let rows = self.entries.iter().map(row).collect();
        Layout {
            regions: region.into_iter().collect(),
            tree: Tree::map([(TABLE, Tree::List(rows))]),
        }
    }

    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().fold(0, |sum, entry| sum.saturating_add(entry.bytes()))
    }

    /// The stream in parts of at most `chunk` bytes. Only what is in the order of the entries goes
    /// together, and a large file begins a part of its own.
    pub fn parts(&self, chunk: u64) -> Vec<Part> {
        let together = (ALONE_FROM * 8).min(chunk.max(1));
        let mut parts: Vec<Part> = Vec::new();
        let mut offset = 0_u64;
        let mut room = 0;
        let sizes = self.entries.iter().map(Entry::bytes).enumerate();
        for (entry, bytes) in sizes.filter(|(_, bytes)| *bytes > 0) {
            if bytes < ALONE_FROM && bytes <= room {
                if let Some(part) = parts.last_mut() {
                    part.pieces.push(Piece { entry, from: 0, bytes });
                }
                room -= bytes;
            } else {
                let mut from = 0;
                while from < bytes {
                    let piece = Piece { entry, from, bytes: (bytes - from).min(chunk.max(1)) };
                    parts.push(Part { offset: offset + from, pieces: vec![piece] });
                    from += piece.bytes;
                }
                room = if bytes < ALONE_FROM { together.saturating_sub(bytes) } else { 0 };
            }
            offset += bytes;
        }
        parts
    }
}

impl Content {
    /// Reads what a layout says. Nothing in it leads out of the folder.
    pub fn read(layout: &Layout) -> Result<Self, FolderError> {
        if let Some(Tree::Str(server)) = layout.tree.entry(ELSEWHERE) {
            return Ok(Self::Elsewhere(server.clone()));
        }
        let Some(Tree::List(rows)) = layout.tree.entry(TABLE) else {
            return Err(FolderError::NoFolder);
        };
        if rows.len() > ENTRIES_MAX {
            return Err(FolderError::TooMany { found: rows.len() });
        }
        let read = |(row, tree)| entry(tree).ok_or(FolderError::Row { row });
        let entries = rows.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        let folder = Folder { entries };
        folder.check()?;
        let (found, stated) = (folder.bytes(), layout.bytes());
        if found == stated {
            Ok(Self::Here(folder))
        } else {
            Err(FolderError::Size { found, stated })
        }
    }

    /// The layout of a folder that lies on a server.
    pub fn elsewhere(server: &str) -> Layout {
        let tree = Tree::map([(ELSEWHERE, Tree::Str(server.to_owned()))]);
        Layout { regions: Vec::new(), tree }
    }
}

impl Folder {
    /// Each entry lies in a folder that comes before it, under a path of its own.
    fn check(&self) -> Result<(), FolderError> {
        let mut kinds: BTreeMap<&str, Kind> = BTreeMap::new();
        for entry in &self.entries {
            let path = entry.path.as_str();
            if !is_below(path) {
                return Err(FolderError::Path { path: path.to_owned() });
            }
            let above = path.rsplit_once('/').map(|(above, _)| kinds.get(above));
            let placed = above.is_none_or(|above| above == Some(&Kind::Folder));
            if !placed || kinds.insert(path, entry.kind).is_some() {
                return Err(FolderError::Place { path: path.to_owned() });
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Size of its content; 0 for a folder.
    pub fn bytes(&self) -> u64 {
        match self.kind {
            Kind::Folder => 0,
            Kind::File { bytes } => bytes,
        }
    }
}

/// Whether a path leads to something below the folder, and only by names.
pub fn is_below(path: &str) -> bool {
    let plain = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('\0');
    path.len() <= PATH_MAX && path.split('/').count() <= DEPTH_MAX && path.split('/').all(plain)
}

/// Path, size (none for a folder), mode, user, group and time.
fn row(entry: &Entry) -> Tree {
    let size = match entry.kind {
        Kind::Folder => Tree::Null,
        Kind::File { bytes } => int(bytes),
    };
    Tree::List(vec![
        Tree::Str(entry.path.clone()),
        size,
        int(entry.mode),
        int(entry.user),
        int(entry.group),
        Tree::Int(entry.modified_ns),
    ])
}

fn entry(row: &Tree) -> Option<Entry> {
    let Tree::List(row) = row else { return None };
    let [Tree::Str(path), size, mode, user, group, Tree::Int(modified_ns), ..] = row.as_slice()
    else {
        return None;
    };
    let kind = if *size == Tree::Null { Kind::Folder } else { Kind::File { bytes: number(size)? } };
    Some(Entry {
        path: path.clone(),
        kind,
        mode: number::<u32>(mode)? & MODE_BITS,
        user: number(user)?,
        group: number(group)?,
        modified_ns: *modified_ns,
    })
}

/// No file has more than 2^63 bytes.
fn int(number: impl Into<u64>) -> Tree {
    Tree::Int(i64::try_from(number.into()).unwrap_or(i64::MAX))
}

fn number<T: TryFrom<i64>>(tree: &Tree) -> Option<T> {
    let Tree::Int(number) = tree else { return None };
    T::try_from(*number).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made(path: &str, kind: Kind) -> Entry {
        Entry { path: path.to_owned(), kind, mode: 0o640, user: 1000, group: 7, modified_ns: -5 }
    }

    fn file(path: &str, bytes: u64) -> Entry {
        made(path, Kind::File { bytes })
    }

    fn folder(entries: Vec<Entry>) -> Folder {
        Folder { entries }
    }

    #[test]
    fn a_folder_reads_back_as_it_was() {
        let kept = folder(vec![
            made("step-1", Kind::Folder),
            file("step-1/model.pt", 9 << 20),
            file("latest", 6),
            file("empty", 0),
        ]);
        let layout = kept.layout();
        layout.check().unwrap();
        let text = serde_json::to_string(&layout).unwrap();
        let read = serde_json::from_str(&text).unwrap();
        assert_eq!(Content::read(&read), Ok(Content::Here(kept)));
        let empty = folder(Vec::new());
        assert_eq!(Content::read(&empty.layout()), Ok(Content::Here(empty)));
        let layout = Content::elsewhere("nfs");
        assert_eq!(Content::read(&layout), Ok(Content::Elsewhere("nfs".to_owned())));
    }

    #[test]
    fn a_table_that_leads_out_of_its_folder_is_refused() {
        for path in ["", "/etc", "..", "a/../../b", "a//b", "./a", "a/", "a\0b", &"d/".repeat(64)] {
            let found = Content::read(&folder(vec![file(path, 0)]).layout());
            assert_eq!(found, Err(FolderError::Path { path: path.to_owned() }));
        }
        let place = |path: &str| Err(FolderError::Place { path: path.to_owned() });
        let twice = folder(vec![file("a", 0), file("a", 0)]);
        assert_eq!(Content::read(&twice.layout()), place("a"));
        let in_a_file = folder(vec![file("a", 0), file("a/b", 0)]);
        assert_eq!(Content::read(&in_a_file.layout()), place("a/b"));
        let in_none = folder(vec![file("a/b", 0)]);
        assert_eq!(Content::read(&in_none.layout()), place("a/b"));
    }

    #[test]
    fn a_table_that_does_not_add_up_or_is_another_is_refused() {
        let mut layout = folder(vec![file("a", 5)]).layout();
        layout.regions[0] = Region::new(REGION, Dtype::U8, &[4]);
        let found = Content::read(&layout);
        assert_eq!(found, Err(FolderError::Size { found: 5, stated: 4 }));
        assert_eq!(Content::read(&Layout::default()), Err(FolderError::NoFolder));
        let row = Tree::List(vec![Tree::Str("a".to_owned()), Tree::Int(-1)]);
        layout.tree = Tree::map([(TABLE, Tree::List(vec![row]))]);
        assert_eq!(Content::read(&layout), Err(FolderError::Row { row: 0 }));
        let many = folder((0..=ENTRIES_MAX).map(|n| file(&n.to_string(), 0)).collect());
        let found = ENTRIES_MAX + 1;
        assert_eq!(Content::read(&many.layout()), Err(FolderError::TooMany { found }));
        let set_user_id = folder(vec![Entry { mode: 0o4755, ..file("a", 0) }]);
        let Ok(Content::Here(read)) = Content::read(&set_user_id.layout()) else { panic!() };
        assert_eq!(read.entries[0].mode, 0o755);
    }

    #[test]
    fn a_large_file_shares_no_chunk_and_small_ones_do() {
        let kept = folder(vec![
            file("a", 10),
            made("folder", Kind::Folder),
            file("folder/b", 20),
            file("large", (3 << 20) + 1),
            file("c", 5),
            file("none", 0),
            file("d", 6),
        ]);
        let parts = kept.parts(2 << 20);
        let shown: Vec<String> = parts
            .iter()
            .map(|part| {
                let pieces = part.pieces.iter();
                let pieces: Vec<String> = pieces
                    .map(|piece| format!("{}+{}..{}", piece.entry, piece.from, piece.bytes))
                    .collect();
                format!("{} {}", part.offset, pieces.join(" "))
            })
            .collect();
        let expected = [
            "0 0+0..10 2+0..20",
            "30 3+0..2097152",
            "2097182 3+2097152..1048577",
            "3145759 4+0..5 6+0..6",
        ];
        assert_eq!(shown, expected);
    }

    proptest! {
        #[test]
        fn parts_are_the_stream_in_order(
            sizes in proptest::collection::vec(prop_oneof![Just(0_u64), 1..9_u64, 0_u64..3_000_000], 0..40),
            chunk in 1_u64..5_000_000,
        ) {
            let chunk = chunk.max(400_000);
            let entries = sizes.iter().enumerate().map(|(n, bytes)| file(&n.to_string(), *bytes));
            let kept = folder(entries.collect());
            let mut found = vec![0; sizes.len()];
            let mut next = 0;
            for part in kept.parts(chunk) {
                prop_assert_eq!(part.offset, next);
                let bytes: u64 = part.pieces.iter().map(|piece| piece.bytes).sum();
                prop_assert!(bytes > 0 && bytes <= chunk.max(1));
                for piece in &part.pieces {
                    prop_assert_eq!(piece.from, found[piece.entry]);
                    found[piece.entry] += piece.bytes;
                }
                next += bytes;
            }
            prop_assert_eq!(found, sizes);
        }
    }
}

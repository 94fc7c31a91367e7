//! Puts the stream of a restore into the files of a folder.

use std::io;
use std::sync::Arc;

use lifeboat_checkpoint::folder::Content;
use lifeboat_checkpoint::folder::Entry;
use lifeboat_checkpoint::folder::FolderError as TableError;
use lifeboat_checkpoint::region::Layout;
use lifeboat_protocol::frame::Filling as Slot;

use crate::adapters::folder::Folder;
use crate::adapters::folder::FolderError;
use crate::data::ring::Ring;
use crate::offload::Offload;

/// A folder that is being filled.
#[derive(Debug)]
pub(super) struct Filling {
    folder: Arc<Folder>,
    offload: Offload,
    entries: Vec<Entry>,
    /// Where each entry begins in the stream.
    begins: Vec<u64>,
    ring: Option<Ring>,
}

/// Why a folder was not filled.
#[derive(Debug, thiserror::Error)]
pub(super) enum FillError {
    /// What was saved is no folder that can be brought back.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The folder was not written.
    #[error("the folder was not filled")]
    Folder(#[from] FolderError),
    /// The ring was not read.
    #[error("the ring was not read")]
    Ring(#[from] io::Error),
}

impl Filling {
    /// Of a folder, as yet with nothing.
    pub(super) fn new(folder: Arc<Folder>, offload: Offload) -> Self {
        Self { folder, offload, entries: Vec::new(), begins: Vec::new(), ring: None }
    }

    /// Takes away whatever is there: what an agent before this one did not finish.
    pub(super) fn clear(&mut self) -> Result<(), FillError> {
        (self.entries, self.begins) = (Vec::new(), Vec::new());
        Ok(self.folder.clear()?)
    }

    /// Begins anew, with what is offered: every file is there, and all of zeros.
    pub(super) fn begin(&mut self, layout: &Layout) -> Result<(), FillError> {
        self.clear()?;
        self.entries = match Content::read(layout)? {
            Content::Here(folder) => folder.entries,
            Content::Elsewhere(_) => Vec::new(),
        };
        self.begins = begins(&self.entries);
        self.folder.lay_out(&self.entries)?;
        Ok(())
    }

    /// Reads from this ring from now on.
    pub(super) fn lend(&mut self, ring: Option<Ring>) {
        self.ring = ring;
    }

    /// Copies a slot to the files that it holds. They are opened here, and written elsewhere: a
    /// write that is late, and whose fill was given up, ends in a file that nobody sees.
    pub(super) async fn take(&self, slot: &Slot) -> Result<(), FillError> {
        let Some(ring) = self.ring.clone() else { return Ok(()) };
        let mut files = Vec::new();
        for piece in pieces(&self.begins, &self.entries, slot) {
            files.push((self.folder.writable(&self.entries[piece.0].path)?, piece.1, piece.2));
        }
        let (place, bytes) = (slot.slot, usize::try_from(slot.bytes).map_err(io::Error::other)?);
        let copy = move || {
            let mut buffer = vec![0; bytes];
            ring.read(place, &mut buffer, |_| ())?;
            let mut rest = buffer.as_slice();
            for (file, from, bytes) in files {
                let (own, others) = rest.split_at(bytes);
                file.write(own, from)?;
                rest = others;
            }
            Ok(())
        };
        self.offload.run(copy).await
    }

    /// All bytes are there: owners, permissions and times are given, and the top is opened.
    pub(super) fn finish(&self) -> Result<(), FillError> {
        self.folder.finish(&self.entries)?;
        self.folder.open_to_all()?;
        Ok(())
    }
}

fn begins(entries: &[Entry]) -> Vec<u64> {
    let places = entries.iter().scan(0_u64, |next, entry| {
        let begin = *next;
        *next = next.saturating_add(entry.bytes());
        Some(begin)
    });
    places.collect()
}

/// Which entries a slot holds, from where on in each, and how many bytes.
fn pieces(begins: &[u64], entries: &[Entry], slot: &Slot) -> Vec<(usize, u64, usize)> {
    let end = slot.offset.saturating_add(slot.bytes);
    let first = begins.partition_point(|begin| *begin <= slot.offset).saturating_sub(1);
    let mut found = Vec::new();
    for (place, begin) in begins.iter().copied().enumerate().skip(first) {
        if begin >= end {
            break;
        }
        let until = end.min(begin.saturating_add(entries[place].bytes()));
        let from = slot.offset.max(begin);
        if let Some(bytes) = until.checked_sub(from).filter(|bytes| *bytes > 0) {
            found.push((place, from - begin, usize::try_from(bytes).unwrap_or(usize::MAX)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use lifeboat_checkpoint::folder::Kind;

    use super::*;

    #[test]
    fn a_slot_is_spread_over_the_files_that_it_holds() {
        let entry = |bytes: Option<u64>| Entry {
            path: "a".to_owned(),
            kind: bytes.map_or(Kind::Folder, |bytes| Kind::File { bytes }),
            mode: 0,
            user: 0,
            group: 0,
            modified_ns: 0,
        };
        let entries = [None, Some(4), Some(0), None, Some(6), Some(2)].map(entry);
        let begins = begins(&entries);
        let check = |offset, bytes, expected: &[(usize, u64, usize)]| {
            let slot = Slot { offset, bytes, ..Slot::default() };
            assert_eq!(pieces(&begins, &entries, &slot), expected, "{offset}+{bytes}");
        };
        check(0, 4, &[(1, 0, 4)]);
        check(0, 12, &[(1, 0, 4), (4, 0, 6), (5, 0, 2)]);
        check(3, 2, &[(1, 3, 1), (4, 0, 1)]);
        check(4, 6, &[(4, 0, 6)]);
        check(9, 3, &[(4, 5, 1), (5, 0, 2)]);
        check(12, 0, &[]);
    }
}

//! Reads files that have holes: what was never written is not read, and a part that is nothing but
//! a hole costs neither a buffer nor a request.
//!
//! Looking for holes moves the offset of a descriptor, which nobody reads by.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::data::ring::read_exact_at;

/// Runs of bytes in one part between which holes are looked for. Beyond that all is read: whoever
/// punches a hole in every page does not make the agent seek for ever.
const RUNS_MAX: usize = 1024;

/// Whether a file is there up to the end of these bytes, and has none of them: all are zero.
///
/// A file system that knows no holes has none.
pub fn is_hole(file: impl AsFd, from: u64, bytes: u64) -> io::Result<bool> {
    let Some(end) = from.checked_add(bytes) else { return Ok(false) };
    Ok(next(&file, from, end)? == Next::Hole)
}

/// Reads exactly `buffer` from `from` on, as [`read_exact_at`] does, and takes what lies in holes
/// for zero without reading it.
pub fn read_around_holes(file: impl AsFd, buffer: &mut [u8], from: u64) -> io::Result<()> {
    let out_of_range = || io::Error::from(io::ErrorKind::InvalidInput);
    let length = |from: u64, to: u64| usize::try_from(to - from).map_err(io::Error::other);
    let mut rest = buffer;
    let mut at = from;
    for _ in 0..RUNS_MAX {
        let end = at.checked_add(rest.len() as u64).ok_or_else(out_of_range)?;
        let Next::Data { begins, ends } = next(&file, at, end)? else {
            rest.fill(0);
            return Ok(());
        };
        let (zeros, more) = rest.split_at_mut(length(at, begins)?);
        let (own, more) = more.split_at_mut(length(begins, ends)?);
        zeros.fill(0);
        read_exact_at(&file, own, begins)?;
        (rest, at) = (more, ends);
        if rest.is_empty() {
            return Ok(());
        }
    }
    read_exact_at(&file, rest, at)
}

/// What comes next in a part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing up to its end.
    Hole,
    /// Bytes, from there up to there, both within the part.
    Data { begins: u64, ends: u64 },
}

/// Looks at a file from `at` to `end`. What a file system says that makes no sense is taken for no
/// holes, and so is one that is too short: reading tells.
fn next(file: impl AsFd, at: u64, end: u64) -> io::Result<Next> {
    let all = Next::Data { begins: at, ends: end };
    let begins = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
        Ok(begins) if begins >= end && at < end => return Ok(Next::Hole),
        Ok(begins) if begins >= at && begins < end => begins,
        Err(Errno::NXIO) => {
            let size = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
            return Ok(if size >= end && at < end { Next::Hole } else { all });
        }
        Ok(_) | Err(_) => return Ok(all),
    };
    match rustix::fs::seek(&file, SeekFrom::Hole(begins)) {
        Ok(ends) if ends > begins => Ok(Next::Data { begins, ends: ends.min(end) }),
        Ok(_) | Err(_) => Ok(Next::Data { begins, ends: end }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::fs::MemfdFlags;

    use super::*;

    const MEBI: u64 = 1 << 20;

    /// A file of so many bytes, of which only these are there.
    fn file(bytes: u64, written: &[(u64, &[u8])]) -> OwnedFd {
        let file = rustix::fs::memfd_create("holes", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, bytes).unwrap();
        for (at, content) in written {
            assert_eq!(rustix::io::pwrite(&file, content, *at).unwrap(), content.len());
        }
        file
    }

    fn blocks(file: &OwnedFd) -> i64 {
        rustix::fs::fstat(file).unwrap().st_blocks
    }

    #[test]
    fn what_was_never_written_reads_as_zero_and_is_not_touched() {
        let file = file(8 * MEBI, &[(MEBI, b"one"), (5 * MEBI + 7, b"other")]);
        let before = blocks(&file);
        let length = usize::try_from(6 * MEBI).unwrap();
        let mut buffer = vec![0xee; length];
        read_around_holes(&file, &mut buffer, MEBI / 2).unwrap();
        let mut expected = vec![0; length];
        rustix::io::pread(&file, &mut expected, MEBI / 2).unwrap();
        assert!(buffer == expected);
        assert!(buffer.iter().filter(|byte| **byte != 0).count() == 8);
        assert_eq!(blocks(&file), before);
    }

    #[test]
    fn a_part_without_a_byte_is_a_hole_and_one_past_the_end_is_not() {
        let file = file(8 * MEBI, &[(2 * MEBI, b"x")]);
        assert!(is_hole(&file, 0, 2 * MEBI).unwrap());
        assert!(!is_hole(&file, 0, 2 * MEBI + 1).unwrap());
        assert!(is_hole(&file, 3 * MEBI, 5 * MEBI).unwrap());
        assert!(!is_hole(&file, 3 * MEBI, 5 * MEBI + 1).unwrap());
        assert!(!is_hole(&file, 9 * MEBI, 1).unwrap());
        assert!(!is_hole(&file, u64::MAX, 2).unwrap());
    }

    #[test]
    fn a_file_that_is_too_short_is_refused_though_it_ends_in_a_hole() {
        let file = file(MEBI, &[(0, b"x")]);
        let mut buffer = vec![0; usize::try_from(MEBI).unwrap() + 1];
        assert!(read_around_holes(&file, &mut buffer, 0).is_err());
    }

    #[test]
    fn a_hole_in_every_second_page_is_read_all_the_same() {
        let pages: Vec<(u64, &[u8])> = (0..2000).map(|page| (page * 8192, &b"page"[..])).collect();
        let file = file(2000 * 8192, &pages);
        let mut buffer = vec![0xee; 2000 * 8192];
        read_around_holes(&file, &mut buffer, 0).unwrap();
        let mut expected = vec![0; 2000 * 8192];
        read_exact_at(&file, &mut expected, 0).unwrap();
        assert!(buffer == expected);
    }

    #[test]
    fn what_has_no_offset_has_no_holes() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(!is_hole(&reader, 0, 1).unwrap());
        drop(writer);
    }
}

//! The rules of what goes and what stays.

use super::*;
use crate::chunk::Digest;
use crate::manifest::FORMAT;
use crate::manifest::Holder;
use crate::manifest::RankEntry;

const HOUR: u64 = 3600;
/// The time of every test.
const NOW: Second = 1_796_000_000;

/// The attempt that saved an epoch, begun when it was committed.
fn attempt(epoch: u64, written: Second) -> Attempt {
    Attempt::new(written, &[&epoch.to_string()])
}

fn digest(name: u8) -> Digest {
    Digest::of(&[name])
}

fn manifest(kind: Kind, epoch: u64, parent: Option<u64>) -> Manifest {
    Manifest {
        format: FORMAT,
        kind,
        cluster: "blue".into(),
        namespace: "ml".into(),
        job_key: "job".into(),
        epoch,
        step: epoch,
        world: 0,
        run: String::new(),
        parent,
        holder: Holder::default(),
        created_at: String::new(),
        deadline: None,
        bytes: 0,
        ranks: BTreeMap::new(),
    }
}

/// A folder in which things are put, each so many hours ago.
#[derive(Default)]
struct Folder(Contents);

impl Folder {
    /// A save that stored the chunks named first, and names the others where they lie.
    fn save(mut self, (epoch, hours): (u64, u64), stored: &[u8], before: &[Address]) -> Self {
        let written = NOW - hours * HOUR;
        let attempt = attempt(epoch, written);
        let entry = RankEntry { attempt, hash: digest(0), bytes: 0 };
        let manifest = Manifest {
            world: 1,
            ranks: BTreeMap::from([(0, entry)]),
            ..manifest(Kind::Save, epoch, None)
        };
        self.0.epochs.insert(epoch, Epoch { written, manifest: Some(manifest) });
        self.0.ranks.insert(RankFile { epoch, rank: 0, attempt }, written);
        let named = self.0.named.get_or_insert_default();
        named.extend(before);
        named.extend(stored.iter().map(|one| Address { attempt, digest: digest(*one) }));
        self.stored(attempt, hours, stored)
    }

    /// Chunks of an attempt.
    fn stored(mut self, attempt: Attempt, hours: u64, chunks: &[u8]) -> Self {
        let stored = Stored { written: NOW - hours * HOUR, bytes: 10 };
        let folder = self.0.chunks.entry(attempt).or_default();
        folder.extend(chunks.iter().map(|one| (digest(*one), stored)));
        self
    }

    fn other(mut self, kind: Kind, epoch: u64, parent: Option<u64>) -> Self {
        let manifest = Some(manifest(kind, epoch, parent));
        self.0.epochs.insert(epoch, Epoch { written: NOW - HOUR, manifest });
        self
    }

    /// An epoch whose state was let go of so many minutes ago; its chunks are named until an hour is
    /// over.
    fn collected(mut self, epoch: u64, minutes: u64) -> Self {
        let written = NOW - minutes * 60;
        let found = self.0.epochs.get_mut(&epoch).unwrap();
        let before = found.manifest.clone().unwrap();
        found.written = written;
        found.manifest = before.collected();
        if is_quiet(written, NOW) {
            let attempt = before.ranks[&0].attempt;
            self.0.named.as_mut().unwrap().retain(|address| address.attempt != attempt);
        }
        self
    }

    fn pinned(mut self, epoch: u64) -> Self {
        self.0.pins.insert(epoch);
        self
    }

    fn plan(&self) -> Plan {
        self.0.plan(2, NOW)
    }

    fn address(&self, epoch: u64, name: u8) -> Address {
        let attempt = self.0.epochs[&epoch].manifest.as_ref().unwrap().ranks[&0].attempt;
        Address { attempt, digest: digest(name) }
    }

    /// What is deleted, as `epoch chunk` or `rank epoch`.
    #[track_caller]
    fn deletes(&self, expected: &[Object]) {
        assert_eq!(self.plan().delete, expected);
    }
}

fn three() -> Folder {
    Folder::default().save((1, 9), &[1], &[]).save((2, 8), &[2], &[]).save((3, 7), &[3], &[])
}

#[test]
fn a_state_goes_when_two_later_ones_are_committed_and_its_chunks_an_hour_later() {
    assert_eq!(three().plan().collect, [1]);
    three().deletes(&[]);
    let just = three().collected(1, 59);
    assert_eq!(just.plan(), Plan::default());
    let later = three().collected(1, 61);
    let file = RankFile { epoch: 1, rank: 0, attempt: attempt(1, NOW - 9 * HOUR) };
    let rank = Object::Rank { epoch: 1, rank: 0, attempt: file.attempt };
    later.deletes(&[Object::Chunk(later.address(1, 1)), rank]);
}

#[test]
fn what_a_later_epoch_names_stays_though_another_attempt_stored_it() {
    let first = Folder::default().save((1, 9), &[1, 2], &[]);
    let shared = first.address(1, 2);
    let later = first.save((2, 8), &[], &[shared]).save((3, 7), &[], &[shared]).collected(1, 61);
    let mut named = later.0.named.clone().unwrap();
    named.insert(shared);
    let later = Folder(Contents { named: Some(named), ..later.0 });
    let rank = Object::Rank { epoch: 1, rank: 0, attempt: shared.attempt };
    later.deletes(&[Object::Chunk(later.address(1, 1)), rank]);
}

#[test]
fn the_state_that_the_newest_claim_names_stays_however_old_it_is() {
    let claimed = three().other(Kind::Claim, 4, Some(1));
    assert!(claimed.plan().collect.is_empty());
    // By itself, a claim counts as no state.
    let again = three().other(Kind::Claim, 4, Some(3)).other(Kind::Claim, 5, Some(3));
    assert_eq!(again.plan().collect, [1]);
}

#[test]
fn a_pinned_epoch_stays_and_finished_work_keeps_its_newest() {
    assert!(three().pinned(1).plan().collect.is_empty());
    let finished = three().other(Kind::Finished, 4, Some(3));
    assert_eq!(finished.plan().collect, [1]);
    assert_eq!(finished.0.plan(0, NOW).collect, [2, 1]);
}

#[test]
fn an_epoch_that_was_written_within_the_hour_stays() {
    let young =
        Folder::default().save((1, 0), &[1], &[]).save((2, 0), &[], &[]).save((3, 0), &[], &[]);
    assert_eq!(young.plan(), Plan::default());
}

#[test]
fn an_attempt_that_was_never_committed_goes_after_an_hour() {
    let lost = Attempt::new(NOW - 3 * HOUR, &["lost"]);
    let address = Address { attempt: lost, digest: digest(9) };
    let folder = || Folder::default().save((1, 9), &[1], &[]);
    folder().stored(lost, 1, &[9]).deletes(&[Object::Chunk(address)]);
    // One chunk that was added lately keeps the whole folder.
    folder().stored(lost, 2, &[9]).stored(lost, 0, &[8]).deletes(&[]);
    // So does the clock of whoever saves, unless it is in the future.
    let begun = Attempt::new(NOW - 60, &["lost"]);
    folder().stored(begun, 2, &[9]).deletes(&[]);
    let future = Attempt::new(NOW + 60, &["lost"]);
    let address = Address { attempt: future, digest: digest(9) };
    folder().stored(future, 2, &[9]).deletes(&[Object::Chunk(address)]);
}

#[test]
fn nothing_that_a_manifest_named_goes_while_a_save_may_be_under_way() {
    let open = Attempt::new(NOW - 60, &["open"]);
    let lost = Attempt::new(NOW - 3 * HOUR, &["lost"]);
    let busy = three().stored(open, 0, &[9]);
    assert_eq!((busy.plan().open, busy.plan().collect), (Some(open), Vec::new()));
    let busy = three().collected(1, 61).stored(open, 0, &[9]).stored(lost, 2, &[8]);
    let dead = Address { attempt: lost, digest: digest(8) };
    busy.deletes(&[Object::Chunk(dead)]);
}

#[test]
fn nothing_goes_while_not_everything_that_is_named_is_known() {
    let mut partial = three().collected(1, 61);
    partial.0.named = None;
    partial.deletes(&[]);
}

#[test]
fn a_collected_epoch_that_is_wanted_again_is_put_back_and_nothing_goes_before() {
    let claimed = three().collected(1, 5).other(Kind::Claim, 4, Some(1));
    assert_eq!(claimed.plan(), Plan { put_back: vec![1], ..Plan::default() });
    let pinned = three().collected(1, 5).pinned(1);
    assert_eq!(pinned.plan().put_back, [1]);
    let late = three().collected(1, 61).pinned(1).plan();
    assert_eq!((late.put_back, late.lost), (Vec::new(), vec![1]));
}

#[test]
fn only_manifests_that_may_name_something_are_read() {
    let folder = three().other(Kind::Claim, 4, Some(3)).other(Kind::Claim, 5, Some(3));
    assert_eq!(folder.0.needs(), [5, 3, 2, 1]);
    let mut bare = folder.0;
    bare.ranks.retain(|file, _| file.epoch != 1);
    assert_eq!(bare.needs(), [5, 3, 2]);
}

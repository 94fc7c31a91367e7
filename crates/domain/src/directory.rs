//! What of a workload's own folder is whole, and so may be saved, and where it need not be.

use std::time::Duration;

use jiff::Timestamp;

/// The file that says that the folder it lies in is whole. It is written last.
pub const MARKER: &str = ".lifeboat-complete";

/// How long what nobody writes must have been unchanged to count as whole.
pub const STILL: Duration = Duration::from_secs(5);

/// Most files and folders that a workload's folder may hold.
pub const FILES_MAX: usize = 100_000;

/// A set: a file or folder at the top of a workload's folder, with everything in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Size of its files.
    pub bytes: u64,
    /// The newest change of anything in it, by its filesystem.
    pub changed_at: Timestamp,
    /// When its marker was written; none if it has none.
    pub marked_at: Option<Timestamp>,
    /// When it was renamed into place, if that was seen and its name was not touched since.
    pub moved_at: Option<Timestamp>,
    /// How long it was seen unchanged.
    pub unchanged_for: Duration,
    /// Whether somebody has a file of it open for writing.
    pub writers: Writers,
    /// What is in it that cannot be saved: its path and what it is.
    pub oddity: Option<Oddity>,
}

/// Whether a set has writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// It has none.
    None,
    /// It has.
    Some,
    /// We could not look.
    Unknown,
}

/// Something that is neither a file nor a folder, or that has no name that we can write down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oddity {
    /// Where it is.
    pub path: String,
    /// What it is, as `a symbolic link`.
    pub what: &'static str,
}

/// Whether a set may be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// It may, for this reason.
    Complete(Sign),
    /// It may once so much more time has gone by, if nothing changes.
    Settling(Duration),
    /// It is being written, or may be.
    Unfinished,
    /// Something in it cannot be saved, and a part of a set is none.
    Refused,
}

/// Why a set counts as whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sign {
    /// Its marker is the last thing that was written.
    Marker,
    /// It was renamed into place, and nothing was changed since.
    Renamed,
    /// Nobody writes it, and it was unchanged for [`STILL`].
    Still,
}

/// What is saved of a folder, and what is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The names of the sets that are saved, the newest first.
    pub taken: Vec<String>,
    /// Whole, but older than one that is saved and too much for the time left.
    pub left_out: Vec<String>,
}

/// Where a folder lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// On the node, and lost with it.
    Node,
    /// On a server, by this protocol: it outlives the node.
    Elsewhere(&'static str),
}

impl Set {
    /// Whether it may be saved. A marker, a rename, or stillness without writers; nothing else.
    pub fn whole(&self) -> Whole {
        if self.oddity.is_some() {
            return Whole::Refused;
        }
        if self.marked_at.is_some_and(|marked| self.changed_at <= marked) {
            return Whole::Complete(Sign::Marker);
        }
        if self.moved_at.is_some_and(|moved| self.changed_at <= moved) {
            return Whole::Complete(Sign::Renamed);
        }
        match (self.writers, STILL.checked_sub(self.unchanged_for)) {
            (Writers::Some | Writers::Unknown, _) => Whole::Unfinished,
            (Writers::None, None | Some(Duration::ZERO)) => Whole::Complete(Sign::Still),
            (Writers::None, Some(left)) => Whole::Settling(left),
        }
    }
}

/// What is saved of these sets, where `room` bytes fit the time; none for no hurry.
///
/// Everything that is whole, since the folder goes with the pod; but the newest first, and the
/// newest whatever its size. An older one that does not fit leaves its room to those after it.
pub fn choose(sets: &[Set], room: Option<u64>) -> Choice {
    let mut whole: Vec<&Set> =
        sets.iter().filter(|set| matches!(set.whole(), Whole::Complete(_))).collect();
    whole.sort_by(|one, other| (other.changed_at, &one.name).cmp(&(one.changed_at, &other.name)));
    let mut choice = Choice::default();
    let mut left = room;
    for (place, set) in whole.into_iter().enumerate() {
        if place > 0 && left.is_some_and(|left| set.bytes > left) {
            choice.left_out.push(set.name.clone());
            continue;
        }
        left = left.map(|left| left.saturating_sub(set.bytes));
        choice.taken.push(set.name.clone());
    }
    choice
}

/// Where a folder lies, by the type of its filesystem.
///
/// Source: statfs(2), and Lustre's `lustre_user.h`.
pub fn home(filesystem: u64) -> Home {
    match filesystem & 0xffff_ffff {
        0x6969 => Home::Elsewhere("nfs"),
        0x0bd0_0bd0 => Home::Elsewhere("lustre"),
        0x6573_5546 => Home::Elsewhere("fuse"),
        _ => Home::Node,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn set(name: &str, second: i64, bytes: u64) -> Set {
        Set {
            name: name.to_owned(),
            bytes,
            changed_at: at(second),
            marked_at: None,
            moved_at: None,
            unchanged_for: STILL,
            writers: Writers::None,
            oddity: None,
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Set), expected: Whole) {
        let mut set = set("step-1", 100, 1);
        change(&mut set);
        assert_eq!(set.whole(), expected, "{set:?}");
    }

    #[test]
    fn a_set_is_whole_by_its_marker_by_a_rename_or_by_stillness_and_never_else() {
        let soon = |set: &mut Set| set.unchanged_for = Duration::from_secs(2);
        check(|_| (), Whole::Complete(Sign::Still));
        check(soon, Whole::Settling(Duration::from_secs(3)));
        check(|set| set.writers = Writers::Some, Whole::Unfinished);
        check(|set| set.writers = Writers::Unknown, Whole::Unfinished);
        let written = |set: &mut Set| {
            (set.unchanged_for, set.writers) = (Duration::ZERO, Writers::Some);
        };
        let marked = |second: i64| {
            move |set: &mut Set| {
                written(set);
                set.marked_at = Some(at(second));
            }
        };
        check(marked(100), Whole::Complete(Sign::Marker));
        check(marked(101), Whole::Complete(Sign::Marker));
        check(marked(99), Whole::Unfinished);
        let moved = |second: i64| {
            move |set: &mut Set| {
                written(set);
                set.moved_at = Some(at(second));
            }
        };
        check(moved(100), Whole::Complete(Sign::Renamed));
        check(moved(99), Whole::Unfinished);
    }

    #[test]
    fn what_cannot_be_saved_is_refused_whatever_its_signs() {
        let oddity = Oddity { path: "step-1/pipe".to_owned(), what: "a named pipe" };
        let odd = |set: &mut Set| {
            (set.marked_at, set.oddity) = (Some(at(101)), Some(oddity));
        };
        check(odd, Whole::Refused);
    }

    #[test]
    fn the_newest_is_saved_whatever_its_size_and_older_ones_where_they_fit() {
        let mut torn = set("step-4", 400, 1);
        torn.writers = Writers::Some;
        let sets = [set("step-1", 100, 5), set("step-2", 200, 50), set("step-3", 300, 90), torn];
        let names = |room| {
            let choice = choose(&sets, room);
            (choice.taken.join(" "), choice.left_out.join(" "))
        };
        let pair = |taken: &str, left: &str| (taken.to_owned(), left.to_owned());
        assert_eq!(names(None), pair("step-3 step-2 step-1", ""));
        assert_eq!(names(Some(100)), pair("step-3 step-1", "step-2"));
        assert_eq!(names(Some(0)), pair("step-3", "step-2 step-1"));
        assert_eq!(choose(&[], None), Choice::default());
    }

    #[test]
    fn a_folder_on_a_server_outlives_the_node() {
        assert_eq!(home(0x6969), Home::Elsewhere("nfs"));
        assert_eq!(home(0x0bd0_0bd0), Home::Elsewhere("lustre"));
        assert_eq!(home(0x6573_5546), Home::Elsewhere("fuse"));
        // ext4, xfs, overlayfs and tmpfs; the type is 32 bits wide, whatever its sign.
        for own in [0xef53, 0x5846_5342, 0x794c_7630, 0x0102_1994] {
            assert_eq!(home(own), Home::Node);
        }
        assert_eq!(home(0xffff_ffff_6573_5546), Home::Elsewhere("fuse"));
    }

    proptest! {
        #[test]
        fn a_set_with_writers_is_whole_only_by_a_sign_of_its_own(
            changed in 0_i64..9, marked in proptest::option::of(0_i64..9),
            moved in proptest::option::of(0_i64..9), still in 0_u64..9,
        ) {
            let mut set = set("step-1", changed, 1);
            set.marked_at = marked.map(at);
            set.moved_at = moved.map(at);
            set.unchanged_for = Duration::from_secs(still);
            set.writers = Writers::Some;
            let signed = marked.max(moved).is_some_and(|sign| changed <= sign);
            prop_assert_eq!(matches!(set.whole(), Whole::Complete(_)), signed);
        }

        #[test]
        fn what_is_taken_fits_but_for_the_newest(
            sizes in proptest::collection::vec(0_u64..50, 0..8), room in 0_u64..200,
        ) {
            let sets: Vec<Set> = (0_i64..)
                .zip(&sizes)
                .map(|(second, bytes)| set(&second.to_string(), second, *bytes))
                .collect();
            let choice = choose(&sets, Some(room));
            prop_assert_eq!(choice.taken.len() + choice.left_out.len(), sets.len());
            let bytes = |name: &String| sets.iter().find(|set| set.name == *name).unwrap().bytes;
            let sum: u64 = choice.taken.iter().map(bytes).sum();
            let newest = sizes.last().copied().unwrap_or(0);
            prop_assert!(sum <= room.max(newest));
            prop_assert_eq!(choice.taken.first(), sets.last().map(|set| &set.name));
        }
    }
}

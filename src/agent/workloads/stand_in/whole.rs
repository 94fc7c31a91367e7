//! Finds what of a folder is whole, and opens all of it at that moment.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_checkpoint::folder;
use lifeboat_checkpoint::region::Layout;
use lifeboat_domain::directory::Choice;
use lifeboat_domain::directory::Home;
use lifeboat_domain::directory::STILL;
use lifeboat_domain::directory::Set;
use lifeboat_domain::directory::Whole;
use lifeboat_domain::directory::Writers;
use lifeboat_domain::directory::choose;
use lifeboat_domain::ids::PodUid;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::adapters::folder::Entry;
use crate::adapters::folder::Folder;
use crate::adapters::folder::FolderError;
use crate::adapters::folder::Found;
use crate::adapters::folder::Kind;
use crate::adapters::folder::Sets;
use crate::adapters::folder::renames::Renames;
use crate::adapters::proc::File;
use crate::adapters::proc::Proc;
use crate::data::save::Part;
use crate::data::save::Source;
use crate::data::save::StillFile;
use crate::error::Chain;
use crate::offload::Offload;

/// How long sets that settle are waited for where others are whole already.
const PATIENCE: Duration = Duration::from_secs(10);

/// How soon a folder is looked at again in which nothing is whole.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Looks at one pod's folder.
#[derive(Debug)]
pub(super) struct Finder {
    pod: PodUid,
    folder: Arc<Folder>,
    renames: Option<Renames>,
    proc: Proc,
    offload: Offload,
    /// What was seen last of each set, and since when it is so.
    seen: BTreeMap<String, (Found, Instant)>,
}

/// What is to be handed over.
#[derive(Debug)]
pub(super) struct Opened {
    /// What is announced.
    pub(super) layout: Layout,
    /// Its stream.
    pub(super) parts: Vec<Part>,
}

/// What came of a look.
#[derive(Debug)]
pub(super) enum Looked {
    /// This is whole, and all of its files are open.
    Whole(Opened),
    /// Nothing is, or what may be soon; worth another look after so long.
    Again(Duration),
    /// What is there cannot be saved.
    Refused(String),
}

/// How a look is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Glance {
    /// Since when is looked.
    pub(super) since: Instant,
    /// Bytes that fit the time; none for no hurry.
    pub(super) room: Option<u64>,
    /// Whether there is time for another look.
    pub(super) time: Time,
    /// Largest part.
    pub(super) chunk: u64,
}

/// Whether there is time for another look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    /// There is.
    Enough,
    /// It is now or never.
    Over,
}

impl Finder {
    /// Of the folder of a pod.
    pub(super) fn new(
        pod: PodUid,
        (folder, renames): (Arc<Folder>, Option<Renames>),
        (proc, offload): (Proc, Offload),
    ) -> Self {
        Self { pod, folder, renames, proc, offload, seen: BTreeMap::new() }
    }

    /// Looks once.
    pub(super) async fn look(&mut self, glance: Glance) -> Looked {
        match self.folder.home() {
            Ok(Home::Node) => (),
            Ok(Home::Elsewhere(server)) => {
                info!(pod = %self.pod, server, "folder lies off the node, nothing to upload");
                let layout = folder::Content::elsewhere(server);
                return Looked::Whole(Opened { layout, parts: Vec::new() });
            }
            Err(error) => return Looked::Refused(Chain(&error).to_string()),
        }
        let folder = Arc::clone(&self.folder);
        let found = match self.offload.run(move || folder.look()).await {
            Ok(found) => found,
            Err(error) => return Looked::Refused(Chain(&error).to_string()),
        };
        let sets = self.judge(&found).await;
        if let Some(pause) = worth_waiting(&sets, glance) {
            return Looked::Again(pause);
        }
        let choice = choose(&sets, glance.room);
        if choice.taken.is_empty() && !sets.is_empty() {
            return Looked::Refused(reason(&sets));
        }
        self.tell(&sets, &choice);
        match self.open(&found, &choice, glance.chunk) {
            Ok(opened) => Looked::Whole(opened),
            Err(error @ FolderError::Changed { .. }) if glance.time == Time::Enough => {
                info!(pod = %self.pod, error = %Chain(&error), "looked at again");
                Looked::Again(Duration::from_millis(100))
            }
            Err(error) => Looked::Refused(Chain(&error).to_string()),
        }
    }

    async fn judge(&mut self, found: &Sets) -> Vec<Set> {
        let now = Instant::now();
        self.seen.retain(|name, _| found.contains_key(name));
        for (name, set) in found {
            let before = self.seen.get(name).filter(|(before, _)| before == set);
            let since = before.map_or(now, |(_, since)| *since);
            self.seen.insert(name.clone(), (set.clone(), since));
        }
        let written = match self.proc.written_by(&self.pod).await {
            Ok(written) => Some(written),
            Err(error) => {
                warn!(pod = %self.pod, error = %Chain(&error), "not known who writes");
                None
            }
        };
        let renamed = self.renames.as_mut().map(|renames| renames.names().clone());
        let renamed = renamed.unwrap_or_default();
        let since = |name: &str| self.seen.get(name).map_or(now, |(_, since)| *since);
        let judged = found.iter().map(|(name, set)| Set {
            name: name.clone(),
            bytes: set.bytes(),
            changed_at: timestamp(set.modified_ns().unwrap_or(0)),
            marked_at: set.marker(name).map(|marker| timestamp(marker.stamp.modified_ns)),
            moved_at: renamed.contains(name).then(|| moved_at(set)),
            unchanged_for: now.saturating_duration_since(since(name)),
            writers: writers(set, written.as_ref()),
            oddity: set.oddity.clone(),
        });
        judged.collect()
    }

    fn tell(&self, sets: &[Set], choice: &Choice) {
        for set in sets {
            if let Some(oddity) = &set.oddity {
                let (path, what) = (&oddity.path, oddity.what);
                warn!(pod = %self.pod, set = set.name, path, what, "set refused");
            }
        }
        if !choice.left_out.is_empty() {
            warn!(pod = %self.pod, sets = ?choice.left_out, "older sets do not fit the time left");
        }
        info!(pod = %self.pod, sets = ?choice.taken, "sets taken");
    }

    /// Opens every file of what was chosen: from here on the workload may do what it wants.
    fn open(&self, found: &Sets, choice: &Choice, chunk: u64) -> Result<Opened, FolderError> {
        let chosen = found.iter().filter(|(name, _)| choice.taken.contains(name));
        let entries: Vec<Entry> = chosen.flat_map(|(_, set)| set.entries.clone()).collect();
        let files = self.folder.take(&entries)?;
        let table = folder::Folder { entries: entries.iter().map(row).collect() };
        let parts = table.parts(chunk).into_iter().map(|part| {
            let pieces = part.pieces.iter().filter_map(|piece| {
                let file = Arc::clone(files[piece.entry].as_ref()?);
                let stamp = entries[piece.entry].stamp;
                let bytes = usize::try_from(piece.bytes).ok()?;
                Some(StillFile { file, from: piece.from, bytes, stamp })
            });
            let bytes = part.pieces.iter().map(|piece| piece.bytes).sum();
            Part { offset: part.offset, bytes, source: Source::Files(pieces.collect()) }
        });
        let parts = parts.collect();
        Ok(Opened { layout: table.layout(), parts })
    }
}

/// What settles is waited for, though not for ever where something else is whole; so is the
/// first that becomes so.
fn worth_waiting(sets: &[Set], glance: Glance) -> Option<Duration> {
    if glance.time == Time::Over || sets.is_empty() {
        return None;
    }
    let whole = sets.iter().any(|set| matches!(set.whole(), Whole::Complete(_)));
    let settling = sets.iter().filter_map(|set| match set.whole() {
        Whole::Settling(left) => Some(left),
        Whole::Complete(_) | Whole::Unfinished | Whole::Refused => None,
    });
    let unfinished = sets.iter().any(|set| set.whole() == Whole::Unfinished);
    match settling.max() {
        Some(left) if !whole || glance.since.elapsed() + left <= PATIENCE => Some(left),
        Some(_) => None,
        None => (!whole && unfinished).then_some(LOOK_AGAIN),
    }
}

fn row(entry: &Entry) -> folder::Entry {
    folder::Entry {
        path: entry.path.clone(),
        kind: match entry.kind {
            Kind::Folder => folder::Kind::Folder,
            Kind::File => folder::Kind::File { bytes: entry.stamp.bytes },
        },
        mode: entry.mode,
        user: entry.user,
        group: entry.group,
        modified_ns: entry.stamp.modified_ns,
    }
}

fn writers(set: &Found, written: Option<&BTreeSet<File>>) -> Writers {
    let Some(written) = written else { return Writers::Unknown };
    let is_written = |entry: &Entry| written.contains(&(entry.stamp.device, entry.stamp.inode));
    if set.entries.iter().any(is_written) { Writers::Some } else { Writers::None }
}

/// A rename changes the time of what is renamed, and of nothing in it.
fn moved_at(set: &Found) -> Timestamp {
    timestamp(set.entries.first().map_or(i64::MIN, |top| top.stamp.changed_ns))
}

fn timestamp(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::MIN)
}

/// Why nothing is saved of sets of which none is whole, for people.
fn reason(sets: &[Set]) -> String {
    let odd = sets.iter().find_map(|set| set.oddity.as_ref());
    if let Some(oddity) = odd {
        return format!("`{}` is {}. Only files and folders are saved.", oddity.path, oddity.what);
    }
    let names: Vec<&str> = sets.iter().map(|set| set.name.as_str()).take(3).collect();
    format!(
        "nothing in the folder is whole: `{}` is being written, or was less than {STILL:?} ago",
        names.join("`, `")
    )
}

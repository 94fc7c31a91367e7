//! Watches, folded into rows of our own.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::DefaultHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Object;

/// First pause after a watch broke, before it is spread; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause between two tries of a watch, before it is spread: short beside a window of two
/// minutes.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long one watch request lives before it is opened again, before it is spread: a connection
/// that died in silence is noticed no sooner, and kube's own 290 s would be longer than an
/// interruption.
const WATCH: Duration = Duration::from_mins(1);

/// What we keep of one object.
pub trait Row: Clone + Debug + Send + 'static {
    /// The kind it is read from.
    type Kind: Kind;
    /// What it is found by; unique.
    type Key: Clone + Debug + Ord + Send + 'static;

    /// Reads a row out of an object; `None` for one that does not concern us.
    fn read(object: &Object<Self::Kind>) -> Option<(Self::Key, Self)>;

    /// What it is grouped by, as pods are by node.
    fn group(&self) -> Option<&str>;
}

/// What a watch just told.
#[derive(Debug)]
pub enum Change<'a, R: Row> {
    /// A row is new or different.
    Put(&'a R::Key, &'a R),
    /// A row is gone, and this is what it was.
    Gone(&'a R::Key, &'a R),
    /// The whole list has been read.
    Synced,
    /// The watch broke, and will be tried again.
    Broken(&'a ClusterError),
}

/// The rows of one kind, shared between the watch that fills them and those who read.
#[derive(Debug)]
pub struct Rows<R: Row> {
    table: Arc<Mutex<Table<R>>>,
    synced: watch::Sender<bool>,
}

#[derive(Debug)]
struct Table<R: Row> {
    /// Each row with the generation of the list in which it was last seen.
    /// Boxed, for a tree leaves room for more in each of its nodes.
    rows: BTreeMap<R::Key, (u64, Box<R>)>,
    groups: BTreeMap<String, BTreeSet<R::Key>>,
    generation: u64,
}

impl<R: Row> Clone for Rows<R> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone(), synced: self.synced.clone() }
    }
}

impl<R: Row> Default for Rows<R> {
    fn default() -> Self {
        let table = Table { rows: BTreeMap::new(), groups: BTreeMap::new(), generation: 0 };
        Self { table: Arc::new(Mutex::new(table)), synced: watch::Sender::new(false) }
    }
}

impl<R: Row> Rows<R> {
    /// One row.
    pub fn row(&self, key: &R::Key) -> Option<R> {
        self.table().rows.get(key).map(|(_, row)| R::clone(row))
    }

    /// The rows of one group, in the order of their keys.
    pub fn group(&self, group: &str) -> Vec<R> {
        let table = self.table();
        let keys = table.groups.get(group).into_iter().flatten();
        keys.filter_map(|key| table.rows.get(key)).map(|(_, row)| R::clone(row)).collect()
    }

    /// Every row, in the order of their keys.
    pub fn all(&self) -> Vec<R> {
        self.table().rows.values().map(|(_, row)| R::clone(row)).collect()
    }

    /// What `pick` makes of each row, without a copy of those it passes over.
    pub fn select<T>(&self, mut pick: impl FnMut(&R) -> Option<T>) -> Vec<T> {
        self.table().rows.values().filter_map(|(_, row)| pick(row)).collect()
    }

    /// Whether the list has been read once.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Returns when the list has been read once.
    pub async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`, so the wait ends only by being true.
        drop(synced.wait_for(|synced| *synced).await);
    }

    /// Follows the objects for ever, telling `on_change` of each change after it is in the rows.
    ///
    /// An API server that comes back finds the watches of all agents broken at once: `whose`, the
    /// name of the program, spreads what each does then.
    pub async fn follow(
        &self,
        (api, selector): (Api<Object<R::Kind>>, Selector),
        whose: &str,
        mut on_change: impl FnMut(Change<'_, R>),
    ) {
        let path = <Object<R::Kind> as kube::Resource>::url_path(&(), None);
        let mut spread = Spread::of(whose, &path);
        let lifetime = spread.apply(WATCH);
        let mut events = pin!(watcher::watcher(api, selector.config(lifetime)));
        let mut pause = PAUSE_MIN;
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // That a list is begun says nothing of the server yet.
                    if !matches!(event, Event::Init) {
                        pause = PAUSE_MIN;
                    }
                    self.fold(event, &mut on_change);
                }
                Err(error) => {
                    on_change(Change::Broken(&watch_error(&path, error)));
                    tokio::time::sleep(spread.apply(pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    fn fold(&self, event: Event<Object<R::Kind>>, on_change: &mut impl FnMut(Change<'_, R>)) {
        match event {
            Event::Init => self.table().generation += 1,
            Event::Apply(object) | Event::InitApply(object) => {
                let Some((key, row)) = R::read(&object) else {
                    tracing::debug!(name = object.name(), "object passed over");
                    return;
                };
                self.table().put(key.clone(), row.clone());
                on_change(Change::Put(&key, &row));
            }
            Event::Delete(object) => {
                let Some((key, _)) = R::read(&object) else { return };
                let gone = self.table().remove(&key);
                if let Some(row) = gone {
                    on_change(Change::Gone(&key, &row));
                }
            }
            Event::InitDone => {
                let gone = self.table().sweep();
                self.synced.send_replace(true);
                for (key, row) in &gone {
                    on_change(Change::Gone(key, row));
                }
                on_change(Change::Synced);
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table<R>> {
        // Nothing that can panic runs under the lock, and a table is whole between any two lines.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Row> Table<R> {
    fn put(&mut self, key: R::Key, row: R) {
        self.ungroup(&key);
        if let Some(group) = row.group() {
            self.groups.entry(group.to_owned()).or_default().insert(key.clone());
        }
        self.rows.insert(key, (self.generation, Box::new(row)));
    }

    fn remove(&mut self, key: &R::Key) -> Option<R> {
        self.ungroup(key);
        self.rows.remove(key).map(|(_, row)| *row)
    }

    fn ungroup(&mut self, key: &R::Key) {
        let Some(group) = self.rows.get(key).and_then(|(_, row)| row.group()) else { return };
        let group = group.to_owned();
        if let Some(keys) = self.groups.get_mut(&group) {
            keys.remove(key);
            if keys.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    /// Takes out what the last whole list did not name.
    fn sweep(&mut self) -> Vec<(R::Key, R)> {
        let generation = self.generation;
        let stale = self.rows.iter().filter(|(_, (seen, _))| *seen < generation);
        let stale: Vec<R::Key> = stale.map(|(key, _)| key.clone()).collect();
        stale.into_iter().filter_map(|key| self.remove(&key).map(|row| (key, row))).collect()
    }
}

/// What keeps many programs from doing the same at the same moment: drawn from their names rather
/// than by chance, so that a simulated run is the same twice.
#[derive(Debug)]
struct Spread {
    drawn: u64,
}

impl Spread {
    fn of(whose: &str, path: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (whose, path).hash(&mut hasher);
        Self { drawn: hasher.finish() }
    }

    /// A duration between half of `about` and one and a half of it, another each time.
    fn apply(&mut self, about: Duration) -> Duration {
        let mut hasher = DefaultHasher::new();
        self.drawn.hash(&mut hasher);
        self.drawn = hasher.finish();
        let thousandths = u32::try_from(self.drawn % 1_000).unwrap_or_default();
        about / 2 + about * thousandths / 1_000
    }
}

/// Which objects a watch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Every object of the kind, in pages.
    All,
    /// Every object of a kind of which there are few, from the server's cache.
    Few,
    /// Those whose labels match.
    Labels(String),
    /// Those whose fields match, as a node's own pods, from the server's cache.
    Fields(String),
}

impl Selector {
    fn config(&self, lifetime: Duration) -> watcher::Config {
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let config = watcher::Config::default().page_size(100).timeout(seconds);
        // A page size would make the server read from etcd instead of its cache.
        let cached = watcher::Config { page_size: None, ..config.clone() }.any_semantic();
        match self {
            Self::All => config,
            Self::Labels(labels) if labels.is_empty() => config,
            Self::Labels(labels) => config.labels(labels),
            Self::Few => cached,
            Self::Fields(fields) => cached.fields(fields),
        }
    }
}

fn watch_error(path: &str, error: watcher::Error) -> ClusterError {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => ClusterError::from_client(path.to_owned(), error),
        watcher::Error::WatchError(status) => {
            ClusterError::from_client(path.to_owned(), kube::Error::Api(status))
        }
        watcher::Error::NoResourceVersion => ClusterError::Unreadable {
            path: path.to_owned(),
            source: serde::de::Error::missing_field("resourceVersion"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_do_at_once_is_spread_and_the_same_twice() {
        let firsts = |agents: std::ops::Range<u32>| -> Vec<Duration> {
            let first =
                |agent| Spread::of(&format!("gpu-{agent}"), "/api/v1/pods").apply(PAUSE_MAX);
            agents.map(first).collect()
        };
        let pauses = firsts(0..500);
        assert_eq!(pauses, firsts(0..500));
        let in_tenth = |tenth: u32| {
            let from = PAUSE_MAX / 2 + PAUSE_MAX * tenth / 10;
            pauses.iter().filter(|pause| (from..from + PAUSE_MAX / 10).contains(*pause)).count()
        };
        for tenth in 0..10 {
            assert!((20..=80).contains(&in_tenth(tenth)), "{} in tenth {tenth}", in_tenth(tenth));
        }
    }
}

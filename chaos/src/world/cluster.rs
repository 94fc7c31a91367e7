//! What the simulated API server knows: objects, their versions, and what happened to them.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::world::cluster::audit::Audit;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::NAMESPACE;
use crate::world::cluster::resource::Resource;

pub mod admission;
pub mod apply;
pub mod audit;
pub mod delete;
pub mod eviction;
pub mod fields;
pub mod object;
pub mod patch;
pub mod refusal;
pub mod resource;
pub mod rules;
pub mod schema;
pub mod selector;
mod tidy;
pub mod write;

/// Changes that a watch can still be told of; older ones are `410 Gone`.
const HISTORY: usize = 20_000;

/// The objects of the cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Who asked for what, and who wrote what.
    pub audit: Audit,
    now: Timestamp,
    random: fastrand::Rng,
    version: u64,
    oldest: u64,
    breaks: u64,
    objects: BTreeMap<Resource, BTreeMap<Key, Arc<Value>>>,
    newest: BTreeMap<Resource, u64>,
    changes: VecDeque<Change>,
}

/// Namespace (empty for what lives in the cluster) and name.
pub type Key = (String, String);

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// The version that it made.
    pub version: u64,
    /// The kind of the object.
    pub resource: Resource,
    /// The object after the change; for a deletion, as it was last.
    pub object: Arc<Value>,
    /// The object before the change.
    pub before: Option<Arc<Value>>,
    /// Whether the object is gone.
    pub fate: Fate,
}

/// Whether an object is there after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is there.
    Kept,
    /// It is gone.
    Gone,
}

/// One object by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Its kind.
    pub resource: Resource,
    /// Its namespace; empty for what lives in the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Who makes a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The program, as its user agent or the wire it came over says.
    pub agent: String,
    /// The field manager it writes as.
    pub manager: String,
}

impl Cluster {
    /// An empty cluster whose names and uids come from `seed`. It has the namespaces `default`,
    /// `kube-system` and `lifeboat-system`.
    pub fn new(seed: u64) -> Self {
        let mut cluster = Self {
            audit: Audit::default(),
            now: Timestamp::UNIX_EPOCH,
            random: fastrand::Rng::with_seed(seed),
            version: 0,
            oldest: 0,
            breaks: 0,
            objects: BTreeMap::new(),
            newest: BTreeMap::new(),
            changes: VecDeque::new(),
        };
        for namespace in ["default", "kube-system", "lifeboat-system"] {
            cluster.put(NAMESPACE, json!({ "metadata": { "name": namespace } }));
        }
        cluster
    }

    /// One object.
    pub fn get(&self, target: &Target) -> Option<&Arc<Value>> {
        self.objects.get(&target.resource)?.get(&target.key())
    }

    /// One object of a kind that lives in the cluster.
    pub fn find(&self, resource: Resource, name: &str) -> Option<&Arc<Value>> {
        self.objects.get(&resource)?.get(&(String::new(), name.to_owned()))
    }

    /// One object, or the 404 that its absence is.
    ///
    /// # Errors
    /// 404.
    pub fn expect(&self, target: &Target) -> Result<Arc<Value>, Refusal> {
        let found = self.get(target).cloned();
        found.ok_or_else(|| Refusal::not_found(target.resource, &target.name))
    }

    /// All objects of a kind, by namespace and name.
    pub fn list(&self, resource: Resource) -> impl DoubleEndedIterator<Item = &Arc<Value>> {
        self.objects.get(&resource).into_iter().flat_map(BTreeMap::values)
    }

    /// The objects of a kind as they were at a version, which must not be forgotten: those whose
    /// namespace and name come after these.
    pub fn list_at(
        &self,
        resource: Resource,
        version: u64,
        after: Option<&Key>,
    ) -> Vec<Arc<Value>> {
        let begins = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = (begins, Bound::Unbounded);
        let now = self.objects.get(&resource).into_iter().flat_map(|all| all.range::<Key, _>(rest));
        // Pages of a long list are mostly read while nothing of the kind changes.
        if self.newest_of(&[resource]) <= version {
            return now.map(|(_, object)| Arc::clone(object)).collect();
        }
        let mut objects: BTreeMap<Key, Arc<Value>> =
            now.map(|(key, object)| (key.clone(), Arc::clone(object))).collect();
        let changes: Vec<&Change> = self.changes_since(resource, version).collect();
        for change in changes.into_iter().rev() {
            let key = Target::of(resource, &change.object).key();
            if after.is_some_and(|after| key <= *after) {
                continue;
            }
            match &change.before {
                Some(before) => drop(objects.insert(key, Arc::clone(before))),
                None => drop(objects.remove(&key)),
            }
        }
        objects.into_values().collect()
    }

    /// The newest version; every change makes a new one.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The version of the last change of any of these kinds.
    pub fn newest_of(&self, kinds: &[Resource]) -> u64 {
        kinds.iter().filter_map(|kind| self.newest.get(kind)).copied().max().unwrap_or_default()
    }

    /// The oldest version that a watch may start from.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// What happened to one kind after a version.
    pub fn changes_since(&self, resource: Resource, version: u64) -> impl Iterator<Item = &Change> {
        let start = self.changes.partition_point(|change| change.version <= version);
        self.changes.range(start..).filter(move |change| change.resource == resource)
    }

    /// Forgets all history, as an API server's compaction does: whoever watches from an older
    /// version is told `410 Gone`.
    pub fn compact(&mut self) {
        self.changes.clear();
        self.oldest = self.version;
    }

    /// Breaks all watches that are open now; they end without a word.
    pub fn break_watches(&mut self) {
        self.breaks += 1;
    }

    /// How often watches were broken.
    pub fn breaks(&self) -> u64 {
        self.breaks
    }

    /// The time of the last change of the world.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    pub(super) fn set_time(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// Keeps an object as another API server has it, past all rules of ours.
    pub fn mirror(&mut self, resource: Resource, object: Value) -> Arc<Value> {
        self.store(resource, object)
    }

    /// Lets go of an object that another API server has no longer.
    pub fn unmirror(&mut self, target: &Target) {
        self.erase(target);
    }

    /// Stores an object and tells the watches.
    fn store(&mut self, resource: Resource, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let key = Target::of(resource, &object).key();
        let objects = self.objects.entry(resource).or_default();
        let before = objects.insert(key, Arc::clone(&object));
        self.remember(Change {
            version: self.version,
            resource,
            object: Arc::clone(&object),
            before,
            fate: Fate::Kept,
        });
        object
    }

    /// Removes an object and tells the watches.
    fn erase(&mut self, target: &Target) -> Option<Arc<Value>> {
        let before = self.objects.get_mut(&target.resource)?.remove(&target.key())?;
        self.version += 1;
        let mut last = Value::clone(&before);
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(last);
        self.remember(Change {
            version: self.version,
            resource: target.resource,
            object: Arc::clone(&object),
            before: Some(before),
            fate: Fate::Gone,
        });
        Some(object)
    }

    fn remember(&mut self, change: Change) {
        self.newest.insert(change.resource, change.version);
        self.changes.push_back(change);
        while self.changes.len() > HISTORY {
            if let Some(forgotten) = self.changes.pop_front() {
                self.oldest = forgotten.version;
            }
        }
    }
}

impl Target {
    /// An object of a kind that lives in the cluster.
    pub fn in_cluster(resource: Resource, name: &str) -> Self {
        Self { resource, namespace: String::new(), name: name.to_owned() }
    }

    /// An object in a namespace.
    pub fn in_namespace(resource: Resource, namespace: &str, name: &str) -> Self {
        Self { resource, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The name of an object that is at hand.
    pub fn of(resource: Resource, object: &Value) -> Self {
        Self::in_namespace(resource, object::namespace(object), object::name(object))
    }

    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.resource, self.name)
    }
}

impl Caller {
    /// A caller whose program and field manager have one name, as Kubernetes' own parts do.
    pub fn named(name: &str) -> Self {
        Self { agent: name.to_owned(), manager: name.to_owned() }
    }
}

//! Deleting objects: grace for pods, finalizers, preconditions, and what goes with its owner.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::items;
use crate::world::cluster::object::number;
use crate::world::cluster::object::second;
use crate::world::cluster::object::text;
use crate::world::cluster::object::time;
use crate::world::cluster::object::uid;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::POD;
use crate::world::cluster::resource::RESOURCES;
use crate::world::cluster::write::Door;

/// How an object is to be deleted.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Grace; `None` leaves it to the object. For pods only.
    pub grace_seconds: Option<i64>,
    /// The UID that the object must have.
    pub uid: Option<String>,
    /// The version that the object must have.
    pub version: Option<String>,
}

/// What became of an object that was deleted.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// It is gone.
    Gone(Arc<Value>),
    /// It is being deleted: its grace or its finalizers keep it.
    Going(Arc<Value>),
}

impl DeleteOptions {
    /// Reads a `DeleteOptions` object.
    pub fn read(options: &Value) -> Self {
        let given =
            |path: &str| Some(text(options, path).to_owned()).filter(|text| !text.is_empty());
        Self {
            grace_seconds: number(options, "/gracePeriodSeconds"),
            uid: given("/preconditions/uid"),
            version: given("/preconditions/resourceVersion"),
        }
    }

    /// Deletes only the object of this UID.
    pub fn of_uid(uid: &str) -> Self {
        Self { uid: Some(uid.to_owned()), ..Self::default() }
    }

    /// With this grace, in place of the object's own.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace_seconds: i64::try_from(grace.as_secs()).ok(), ..self }
    }

    pub(super) fn check(&self, target: &Target, object: &Value) -> Result<(), Refusal> {
        let version = text(object, "/metadata/resourceVersion");
        let checks = [
            ("UID", &self.uid, uid(object), " and then recreated"),
            ("ResourceVersion", &self.version, version, ""),
        ];
        for (what, wanted, found, after) in checks {
            if let Some(wanted) = wanted
                && wanted != found
            {
                let fate = if after.is_empty() { "modified" } else { "deleted" };
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {fate}{after}"
                );
                return Err(Refusal::precondition(target.resource, &target.name, &why));
            }
        }
        Ok(())
    }
}

impl Cluster {
    /// Deletes an object, or asks for it: a pod on a node goes when its kubelet says so, an object
    /// with finalizers when the last of them is gone. What it owns goes with it.
    ///
    /// # Errors
    /// 404; 409 where a precondition does not hold.
    pub fn delete(
        &mut self,
        caller: &Caller,
        target: &Target,
        options: &DeleteOptions,
    ) -> Result<Deleted, Refusal> {
        let old = self.expect(target)?;
        options.check(target, &old)?;
        let grace = if target.resource == POD { grace_of(&old, options) } else { 0 };
        let kept = !items(&old, "/metadata/finalizers").is_empty();
        if grace == 0 && !kept {
            // A pod is told to be going once more before it is told to be gone.
            let marked = self.marked(&old, grace).filter(|_| target.resource == POD);
            let was_marked = marked.map(|marked| self.store(target.resource, marked)).is_some();
            if was_marked {
                self.wrote(caller, "delete", target);
            }
            let last = self.erase(target).unwrap_or(old);
            if !was_marked {
                self.wrote(caller, "delete", target);
            }
            self.collect(uid(&last));
            return Ok(Deleted::Gone(last));
        }
        if let Some(marked) = self.marked(&old, grace) {
            let stored = self.store(target.resource, marked);
            self.wrote(caller, "delete", target);
            return Ok(Deleted::Going(stored));
        }
        Ok(Deleted::Going(old))
    }

    /// The object with its deletion's time set; nothing where that would change nothing.
    /// Grace is only ever shortened, and counts from the first request: where that is over already,
    /// one second is left.
    ///
    /// Source: `BeforeDelete` of the API server.
    fn marked(&self, old: &Value, grace: i64) -> Option<Value> {
        let mut new = old.clone();
        let mut grace = grace;
        let known = number(old, "/metadata/deletionGracePeriodSeconds").unwrap_or_default();
        let at = if is_deleting(old) {
            if grace >= known {
                return None;
            }
            let at = time(old, "/metadata/deletionTimestamp").unwrap_or(self.now);
            let due = at - jiff::SignedDuration::from_secs(known - grace);
            if due < self.now {
                grace = grace.min(1);
            }
            due.max(self.now)
        } else {
            if let Some(generation) = number(old, "/metadata/generation") {
                new["metadata"]["generation"] = json!(generation + 1);
            }
            self.now + jiff::SignedDuration::from_secs(grace)
        };
        new["metadata"]["deletionTimestamp"] = json!(second(at));
        new["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        Some(new)
    }

    /// The garbage collector: deletes what only this owner held, and tells what others hold, too,
    /// that it is theirs alone.
    fn collect(&mut self, owner: &str) {
        let caller = Caller::named("generic-garbage-collector");
        let is_owner = |known: &Value| text(known, "/uid") == owner;
        let mut held = Vec::new();
        for resource in RESOURCES {
            let is_held = |object: &&Arc<Value>| {
                items(object, "/metadata/ownerReferences").iter().any(is_owner)
            };
            held.extend(self.list(*resource).filter(is_held).map(|object| {
                let others = items(object, "/metadata/ownerReferences").iter();
                let others: Vec<Value> = others.filter(|known| !is_owner(known)).cloned().collect();
                (Target::of(*resource, object), others)
            }));
        }
        for (target, others) in held {
            // What is gone already is what was wanted.
            if others.is_empty() {
                drop(self.delete(&caller, &target, &DeleteOptions::default()));
            } else {
                drop(self.edit(&caller, (&target, Door::Back), |object| {
                    object["metadata"]["ownerReferences"] = Value::Array(others);
                }));
            }
        }
    }
}

/// The grace that a pod gets: none if no kubelet has it or its containers have ended.
fn grace_of(pod: &Value, options: &DeleteOptions) -> i64 {
    const DEFAULT: i64 = 30;
    let ended = ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"));
    if ended || text(pod, "/spec/nodeName").is_empty() {
        return 0;
    }
    let own = number(pod, "/spec/terminationGracePeriodSeconds").unwrap_or(DEFAULT);
    match options.grace_seconds.unwrap_or(own) {
        ..0 => 1,
        grace => grace,
    }
}

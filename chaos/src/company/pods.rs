//! The pods of a real cluster in the world's own books, so that the simulated kubelets run them.
//!
//! What the API server says of a pod comes in; what its kubelet says of it (the status, and that it
//! is gone) goes out, as from a real kubelet.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use futures::StreamExt;
use kube::api::DeleteParams;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::api::Preconditions;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use serde_json::Value;
use serde_json::json;

use crate::company::objects::Objects;
use crate::company::objects::POD as PODS;
use crate::company::objects::plain;
use crate::control_plane::stages;
use crate::world::State;
use crate::world::World;
use crate::world::cluster::Target;
use crate::world::cluster::object::annotation;
use crate::world::cluster::object::items;
use crate::world::cluster::object::remove;
use crate::world::cluster::object::text;
use crate::world::cluster::object::uid;
use crate::world::cluster::resource::POD;

/// What a kubelet alone writes into a pod's status.
const OF_KUBELET: [&str; 6] =
    ["phase", "reason", "startTime", "podIP", "initContainerStatuses", "containerStatuses"];
/// Conditions that it alone sets.
const CONDITIONS: [&str; 3] = ["Initialized", "ContainersReady", "Ready"];
/// How long a kubelet waits when the API server does not answer.
const AGAIN: Duration = Duration::from_millis(200);

/// The pods of a real cluster.
#[derive(Clone)]
pub(super) struct Pods {
    objects: Objects,
    world: World,
    book: Arc<Mutex<Book>>,
}

/// What was told to the API server.
#[derive(Default)]
struct Book {
    /// The status last told, by UID.
    told: BTreeMap<String, Value>,
    /// Pods that run here, by UID.
    here: BTreeMap<String, Target>,
    /// Pods that are over: what still comes of them from the API server is old.
    over: BTreeSet<String>,
}

/// Something to tell the API server.
enum Errand {
    Status(Target, String, Value),
    Gone(Target, String),
}

impl Pods {
    pub(super) fn new(objects: Objects, world: World) -> Self {
        Self { objects, world, book: Arc::default() }
    }

    /// Takes in what the API server says, for as long as it is polled.
    pub(super) async fn take_in(self) {
        let mut events = watcher(self.objects.api(PODS, ""), watcher::Config::default()).boxed();
        let mut listed = BTreeSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(pod)) => {
                    let pod = plain(&pod);
                    listed.insert(uid(&pod).to_owned());
                    self.appeared(pod);
                }
                Ok(Event::InitDone) => self.forget_all_but(&listed),
                Ok(Event::Apply(pod)) => self.appeared(plain(&pod)),
                Ok(Event::Delete(pod)) => self.forget(uid(&plain(&pod))),
                Err(error) => tracing::debug!(%error, "pods not watched"),
            }
        }
    }

    /// Tells the API server what the kubelets say, for as long as it is polled.
    pub(super) async fn tell(self) {
        let mut seen = 0;
        loop {
            let newest = |state: &State| Some(state.cluster.newest_of(&[POD]));
            let next = self.world.until(|state| newest(state).filter(|newest| *newest > seen));
            seen = next.await;
            for errand in self.errands() {
                while let Err(error) = self.run(&errand).await {
                    if matches!(&error, kube::Error::Api(status) if status.code < 500 && status.code != 429)
                    {
                        tracing::warn!(%error, "a kubelet's word was refused");
                        break;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn appeared(&self, mut pod: Value) {
        let id = uid(&pod).to_owned();
        let here = !annotation(&pod, stages::RUN_OUTSIDE).is_empty();
        if !here || text(&pod, "/spec/nodeName").is_empty() || self.book().over.contains(&id) {
            return;
        }
        // What others' finalizers keep is gone for a kubelet.
        remove(&mut pod, "/metadata/finalizers");
        let target = Target::of(POD, &pod);
        let remote = of_kubelet(&pod);
        self.world.update(|state| {
            let known = state.cluster.get(&target).filter(|known| uid(known) == id).cloned();
            let mut book = self.book();
            match &known {
                Some(known) => keep_own(&mut pod, known),
                // Its kubelet has let go of it, and that is about to be told.
                None if book.here.contains_key(&id) => return,
                None => (),
            }
            book.here.insert(id.clone(), target.clone());
            book.told.entry(id.clone()).or_insert(remote);
            drop(book);
            state.cluster.mirror(POD, pod);
        });
    }

    fn forget(&self, id: &str) {
        let target = {
            let mut book = self.book();
            book.over.insert(id.to_owned());
            book.told.remove(id);
            book.here.remove(id)
        };
        let Some(target) = target else { return };
        self.world.update(|state| {
            if state.cluster.get(&target).is_some_and(|pod| uid(pod) == id) {
                state.cluster.unmirror(&target);
            }
        });
    }

    fn forget_all_but(&self, listed: &BTreeSet<String>) {
        let here: Vec<String> = self.book().here.keys().cloned().collect();
        here.iter().filter(|id| !listed.contains(*id)).for_each(|id| self.forget(id));
    }

    fn errands(&self) -> Vec<Errand> {
        self.world.read(|state| {
            let mut book = self.book();
            let mut errands = Vec::new();
            for (id, target) in book.here.clone() {
                let pod = state.cluster.get(&target).filter(|pod| uid(pod) == id);
                let Some(pod) = pod else {
                    book.here.remove(&id);
                    book.over.insert(id.clone());
                    errands.push(Errand::Gone(target, id));
                    continue;
                };
                let status = of_kubelet(pod);
                if book.told.get(&id) != Some(&status) {
                    book.told.insert(id.clone(), status.clone());
                    errands.push(Errand::Status(target, id, status));
                }
            }
            errands
        })
    }

    async fn run(&self, errand: &Errand) -> kube::Result<()> {
        let answer = match errand {
            Errand::Status(target, id, status) => {
                let patch = json!({ "metadata": { "uid": id }, "status": status });
                let api = self.objects.api(PODS, &target.namespace);
                let params = PatchParams::default();
                api.patch_status(&target.name, &params, &Patch::Strategic(patch)).await.map(drop)
            }
            Errand::Gone(target, id) => {
                let api = self.objects.api(PODS, &target.namespace);
                let only = Preconditions { uid: Some(id.clone()), resource_version: None };
                let options = DeleteParams {
                    grace_period_seconds: Some(0),
                    preconditions: Some(only),
                    ..DeleteParams::default()
                };
                api.delete(&target.name, &options).await.map(drop)
            }
        };
        match answer {
            // It was forced out, or another has its name by now.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            answer => answer,
        }
    }
}

/// What the kubelet alone says of a pod.
fn of_kubelet(pod: &Value) -> Value {
    let mut status = json!({});
    for field in OF_KUBELET {
        if let Some(value) = pod.pointer(&format!("/status/{field}")) {
            status[field] = value.clone();
        }
    }
    let own = items(pod, "/status/conditions").iter().filter(|condition| is_own(condition));
    status["conditions"] = own.cloned().collect();
    status
}

fn is_own(condition: &Value) -> bool {
    CONDITIONS.contains(&text(condition, "/type"))
}

/// The kubelet's own word on a pod is newer than what comes back from the API server.
fn keep_own(pod: &mut Value, known: &Value) {
    let others = items(pod, "/status/conditions").iter().filter(|condition| !is_own(condition));
    let own = items(known, "/status/conditions").iter().filter(|condition| is_own(condition));
    let conditions: Value = others.chain(own).cloned().collect();
    for field in OF_KUBELET {
        match known.pointer(&format!("/status/{field}")) {
            Some(value) => pod["status"][field] = value.clone(),
            None => remove(pod, &format!("/status/{field}")),
        }
    }
    pod["status"]["conditions"] = conditions;
}

//! The Job controller: makes pods until enough of them have succeeded, or too many failed.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::world::World;
use crate::world::behave::follow;
use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::object::Condition;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::is_true;
use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::number;
use crate::world::cluster::object::remove;
use crate::world::cluster::object::second;
use crate::world::cluster::object::set;
use crate::world::cluster::object::set_condition;
use crate::world::cluster::object::text;
use crate::world::cluster::object::time;
use crate::world::cluster::object::uid;
use crate::world::cluster::resource::JOB;
use crate::world::cluster::resource::POD;
use crate::world::cluster::write::Door;
use crate::world::jobs::policy::Verdict;
use crate::world::jobs::policy::verdict;
use crate::world::scheduler::fit::has_ended;

mod policy;

/// Keeps a pod until its Job has counted it.
const TRACKED: &str = "batch.kubernetes.io/job-tracking";

/// How the Job controller behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Wait before the pod after a failed one, doubled with each further one. The real controller
    /// waits ten seconds; zero, the default, shows a successor beside its dying predecessor.
    pub backoff: Duration,
}

/// Runs Jobs for as long as it is polled.
pub async fn run(world: World, settings: Settings) {
    let again = tokio::sync::Notify::new();
    let following = follow(&world, &[JOB, POD], |state| {
        let jobs: Vec<Arc<Value>> = state.cluster.list(JOB).cloned().collect();
        let_go(&mut state.cluster, &jobs);
        let mut waits = false;
        for job in jobs.iter().filter(|job| !is_deleting(job)) {
            waits |= sync(&mut state.cluster, job, settings) == Pause::Waits;
        }
        if waits {
            again.notify_one();
        }
    });
    tokio::select! {
        biased;
        () = following => (),
        () = wait_out(&world, settings, &again) => (),
    }
}

/// Whether a Job has a pod to make later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    Waits,
    Rests,
}

/// Looks at waiting Jobs again when their pause is over.
async fn wait_out(world: &World, settings: Settings, again: &tokio::sync::Notify) {
    const TICK: Duration = Duration::from_secs(1);
    loop {
        again.notified().await;
        tokio::time::sleep(TICK).await;
        world.update(|state| {
            let jobs: Vec<Arc<Value>> = state.cluster.list(JOB).cloned().collect();
            let_go(&mut state.cluster, &jobs);
            for job in jobs.iter().filter(|job| !is_deleting(job)) {
                if sync(&mut state.cluster, job, settings) == Pause::Waits {
                    again.notify_one();
                }
            }
        });
    }
}

/// Nobody counts the pods of a Job that is gone.
fn let_go(cluster: &mut Cluster, jobs: &[Arc<Value>]) {
    let caller = Caller::named("job-controller");
    let has_job = |pod: &Value| {
        let mut owners = items(pod, "/metadata/ownerReferences").iter();
        owners.any(|owner| jobs.iter().any(|job| uid(job) == text(owner, "/uid")))
    };
    let left: Vec<Target> = cluster
        .list(POD)
        .filter(|pod| is_deleting(pod) && is_tracked(pod) && !has_job(pod))
        .map(|pod| Target::of(POD, pod))
        .collect();
    for target in left {
        let freed = cluster.edit(&caller, (&target, Door::Back), |pod| {
            let kept = items(pod, "/metadata/finalizers").iter().filter(|one| *one != TRACKED);
            let kept = kept.cloned().collect();
            set(pod, "/metadata/finalizers", Value::Array(kept));
        });
        freed.expect("a pod that was listed is there");
    }
}

fn is_tracked(pod: &Value) -> bool {
    items(pod, "/metadata/finalizers").iter().any(|one| one == TRACKED)
}

fn sync(cluster: &mut Cluster, job: &Value, settings: Settings) -> Pause {
    let caller = Caller::named("job-controller");
    let finished = has_finished(job);
    let mut job = job.clone();
    let before = job.clone();
    if job.pointer("/status/startTime").is_none() {
        set(&mut job, "/status/startTime", json!(second(cluster.now())));
    }
    for pod in pods_of(cluster, &job) {
        count(cluster, (&caller, &mut job), &pod);
    }
    let pods = pods_of(cluster, &job);
    let live: Vec<&Arc<Value>> = pods.iter().filter(|pod| !has_ended(pod)).collect();
    let terminating = live.iter().filter(|pod| is_deleting(pod)).count();
    let active = live.len() - terminating;
    let ready = live.iter().filter(|pod| condition(pod, "Ready") == "True").count();
    job["status"]["terminating"] = json!(terminating);
    job["status"]["ready"] = json!(ready);
    match active {
        0 => remove(&mut job, "/status/active"),
        active => job["status"]["active"] = json!(active),
    }
    if !finished {
        conclude(&mut job, cluster.now());
    }
    let done = has_finished(&job);
    let mut pause = Pause::Rests;
    if done {
        remove_pods(cluster, &caller, &live);
    } else if !is_true(&job, "/spec/suspend") {
        let waits = only_failed_are_replaced(&job);
        let taken = if waits { live.len() } else { active };
        pause = make(cluster, (&caller, &mut job), (taken, settings));
    }
    if job != before {
        let target = Target::of(JOB, &job);
        let stored = cluster.edit(&caller, (&target, Door::Back), |stored| {
            stored["status"] = job["status"].clone();
        });
        stored.expect("a Job that was listed is there");
    }
    pause
}

fn pods_of(cluster: &Cluster, job: &Value) -> Vec<Arc<Value>> {
    let own = |pod: &&Arc<Value>| {
        let owners = items(pod, "/metadata/ownerReferences");
        owners.iter().any(|owner| text(owner, "/uid") == uid(job))
    };
    cluster.list(POD).filter(own).cloned().collect()
}

/// Counts a pod that is over, once, and lets it go.
fn count(cluster: &mut Cluster, (caller, job): (&Caller, &mut Value), pod: &Value) {
    let tracked = items(pod, "/metadata/finalizers").iter().any(|finalizer| finalizer == TRACKED);
    let over = has_ended(pod) || (is_deleting(pod) && !only_failed_are_replaced(job));
    if !tracked || !over {
        return;
    }
    let now = cluster.now();
    if text(pod, "/status/phase") == "Succeeded" {
        raise(job, "/status/succeeded");
    } else {
        match verdict(job, pod) {
            Verdict::Count => {
                raise(job, "/status/failed");
                set(job, "/status/lastFailure", json!(second(now)));
            }
            Verdict::Ignore => (),
            Verdict::FailJob => {
                raise(job, "/status/failed");
                fail(job, "PodFailurePolicy", now);
            }
        }
    }
    let edited = cluster.edit(caller, (&Target::of(POD, pod), Door::Back), |pod| {
        let left = items(pod, "/metadata/finalizers").iter();
        let left = left.filter(|finalizer| *finalizer != TRACKED).cloned().collect();
        pod["metadata"]["finalizers"] = Value::Array(left);
    });
    edited.expect("a pod that was listed is there");
}

fn raise(job: &mut Value, path: &str) {
    let more = number(job, path).unwrap_or_default() + 1;
    set(job, path, json!(more));
}

fn only_failed_are_replaced(job: &Value) -> bool {
    text(job, "/spec/podReplacementPolicy") == "Failed"
}

fn has_finished(job: &Value) -> bool {
    condition(job, "Complete") == "True" || condition(job, "Failed") == "True"
}

/// Says that a Job is over, if it is.
fn conclude(job: &mut Value, now: Timestamp) {
    let succeeded = number(job, "/status/succeeded").unwrap_or_default();
    let failed = number(job, "/status/failed").unwrap_or_default();
    if succeeded >= number(job, "/spec/completions").unwrap_or(1) {
        for kind in ["SuccessCriteriaMet", "Complete"] {
            let (reason, message) =
                ("CompletionsReached", "Reached expected number of succeeded pods");
            set_condition(job, Condition { kind, status: "True", reason, message }, now);
        }
        set(job, "/status/completionTime", json!(second(now)));
    } else if failed > number(job, "/spec/backoffLimit").unwrap_or(6) {
        fail(job, "BackoffLimitExceeded", now);
    }
}

fn fail(job: &mut Value, reason: &str, now: Timestamp) {
    for kind in ["FailureTarget", "Failed"] {
        set_condition(job, Condition { kind, status: "True", reason, message: "" }, now);
    }
}

fn remove_pods(cluster: &mut Cluster, caller: &Caller, live: &[&Arc<Value>]) {
    for pod in live.iter().filter(|pod| !is_deleting(pod)) {
        let options = DeleteOptions::of_uid(uid(pod));
        let deleted = cluster.delete(caller, &Target::of(POD, pod), &options);
        deleted.expect("a pod that was listed is there");
    }
}

/// Makes the pods that are missing, unless a failure is too recent.
fn make(
    cluster: &mut Cluster,
    (caller, job): (&Caller, &mut Value),
    (taken, settings): (usize, Settings),
) -> Pause {
    let left = number(job, "/spec/completions").unwrap_or(1)
        - number(job, "/status/succeeded").unwrap_or_default();
    let wanted = number(job, "/spec/parallelism").unwrap_or(1).min(left);
    let missing = wanted - i64::try_from(taken).unwrap_or(i64::MAX);
    if missing <= 0 {
        return Pause::Rests;
    }
    if rests_until(job, settings).is_some_and(|until| cluster.now() < until) {
        return Pause::Waits;
    }
    for _ in 0..missing {
        let made = cluster.create(caller, POD, pod_for(job));
        made.expect("the template of a Job is a whole pod");
        raise(job, "/status/active");
    }
    Pause::Rests
}

fn rests_until(job: &Value, settings: Settings) -> Option<Timestamp> {
    const DOUBLED_MAX: u32 = 5;
    let failed = u32::try_from(number(job, "/status/failed")?).ok()?;
    let pause = settings.backoff * 2_u32.pow(failed.saturating_sub(1).min(DOUBLED_MAX));
    time(job, "/status/lastFailure").map(|last| last + pause)
}

fn pod_for(job: &Value) -> Value {
    let mut pod = job.pointer("/spec/template").cloned().unwrap_or_default();
    pod["metadata"]["generateName"] = json!(format!("{}-", name(job)));
    pod["metadata"]["namespace"] = json!(namespace(job));
    pod["metadata"]["finalizers"] = json!([TRACKED]);
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "batch/v1", "kind": "Job", "name": name(job), "uid": uid(job),
        "controller": true, "blockOwnerDeletion": true,
    }]);
    pod
}

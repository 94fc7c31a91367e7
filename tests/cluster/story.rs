//! What the tests of our programs look at: where jobs run, what was saved when, who ended whom.

use jiff::Timestamp;
use lifeboat_chaos::chronicle::Event;
use lifeboat_chaos::chronicle::What;
use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::objects::NODE;
use lifeboat_chaos::company::objects::NODE_CLAIM;
use lifeboat_chaos::company::objects::POD;
use lifeboat_chaos::control_plane::audit::Entry;
use lifeboat_chaos::control_plane::cloud::Asked;
use lifeboat_chaos::stage::JOB_LABEL;
use lifeboat_chaos::world::cluster::object::is_deleting;
use lifeboat_chaos::world::cluster::object::label;
use lifeboat_chaos::world::cluster::object::name;
use lifeboat_chaos::world::cluster::object::text;
use lifeboat_checkpoint::manifest::Kind;
use serde_json::Value;

use crate::theater::Turn;
use crate::theater::eventually;

/// A pod and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pod: String,
    pub(crate) node: String,
}

/// The pods of a job that are not being ended.
pub(crate) async fn pods_of(company: &Company, job: &str) -> Vec<Value> {
    let pods = company.objects.list(POD, &format!("{JOB_LABEL}={job}")).await;
    let ended = |pod: &Value| matches!(text(pod, "/status/phase"), "Failed" | "Succeeded");
    pods.into_iter().filter(|pod| !is_deleting(pod) && !ended(pod)).collect()
}

/// Waits until the program of a job says something, and names where it does.
pub(crate) async fn until_it_says(company: &Company, job: &str, words: &str) -> Place {
    let what = format!("`{words}` of {job}");
    eventually(&what, async || {
        let pods = pods_of(company, job).await;
        let events = company.events();
        let says = |pod: &&Value| said(&events, name(pod), words).is_some();
        let pod = pods.iter().find(says)?;
        Some(Place { pod: name(pod).to_owned(), node: text(pod, "/spec/nodeName").to_owned() })
    })
    .await
}

/// Waits until a job's program trains for the first time.
pub(crate) async fn until_it_trains(company: &Company, job: &str) -> Place {
    until_it_says(company, job, "starts anew").await
}

/// Waits until a job's program has gone on where it was saved, and says at which step.
pub(crate) async fn until_it_resumes(company: &Company, job: &str) -> (Place, u64) {
    let place = until_it_says(company, job, "resumed at step").await;
    let events = company.events();
    let (_, line) = said(&events, &place.pod, "resumed at step").unwrap();
    let step = line.split("resumed at step ").nth(1).and_then(|rest| rest.split(' ').next());
    (place, step.unwrap().parse().unwrap())
}

/// When a pod's program said something first, and the whole line.
pub(crate) fn said(events: &[Event], pod: &str, words: &str) -> Option<(Timestamp, String)> {
    events.iter().find_map(|event| match &event.what {
        What::Said(line) if line.starts_with(pod) && line.contains(words) => {
            Some((event.at, line.clone()))
        }
        _ => None,
    })
}

/// When the state of a pod became durable, and at which step.
pub(crate) fn saved(events: &[Event], pod: &str) -> Option<(Timestamp, u64)> {
    events.iter().find_map(|event| match &event.what {
        What::Committed(commit) if commit.kind == Kind::Save && commit.pod == pod => {
            Some((event.at, commit.step))
        }
        _ => None,
    })
}

/// When the container of a pod ended, and with which code.
pub(crate) fn exited(events: &[Event], pod: &str) -> Option<(Timestamp, i64)> {
    events.iter().find_map(|event| match &event.what {
        What::Exited { pod: known, code, .. } if known == pod => Some((event.at, *code)),
        _ => None,
    })
}

/// Who asked for the end of a pod and was not refused, in order.
pub(crate) fn ended_by(turn: &Turn, pod: &str) -> Vec<Entry> {
    let mut entries = turn.asked_by("");
    entries.retain(|entry| {
        let evicted = entry.resource == "pods" && entry.subresource == "eviction";
        let deleted = entry.resource == "pods" && entry.verb == "delete";
        entry.name == pod && (evicted || deleted) && !only_clears(entry)
    });
    entries
}

/// A kubelet takes a pod out that has ended, and the controller manager what is left of one whose
/// node is gone: neither ends anything.
fn only_clears(entry: &Entry) -> bool {
    entry.user == "admin" || entry.user.ends_with(":pod-garbage-collector")
}

/// The claims of a company, with those that were made for an instance that was taken.
pub(crate) async fn claims(company: &Company) -> Vec<Value> {
    company.objects.list(NODE_CLAIM, &company.selector()).await
}

/// A node as it is now.
pub(crate) async fn node(company: &Company, name: &str) -> Option<Value> {
    company.objects.find(NODE, ("", name)).await
}

/// The instance type and zone of a node or claim.
pub(crate) fn offering(object: &Value) -> (String, String) {
    let of = |key: &str| label(object, key).to_owned();
    (of("node.kubernetes.io/instance-type"), of("topology.kubernetes.io/zone"))
}

/// What was asked of the cloud for claims of ours that replace an instance.
pub(crate) fn asked_for(turn: &Turn, instance: &str) -> Vec<Asked> {
    let mut asked = turn.plane().cloud().asked().unwrap();
    asked.retain(|one| one.claim.starts_with(instance) && one.what != "terminate");
    asked
}

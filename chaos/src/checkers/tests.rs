//! Each checker, failing on a planted fault and content without it.

use std::time::Duration;

use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat_checkpoint::manifest::Kind;
use serde_json::Value;
use serde_json::json;

use super::*;
use crate::chronicle::Commit;
use crate::world::World;
use crate::world::bucket::Blob;
use crate::world::bucket::Condition;
use crate::world::bucket::Object;
use crate::world::cluster::Caller;
use crate::world::cluster::Target;
use crate::world::cluster::resource::POD;
use crate::world::cluster::write::Door;

const INSTANCE: &str = "i-0123456789abcdef0";

/// A world with one record of one node, and on it one pod with one sharer.
struct Planted {
    world: World,
    events: Vec<(u64, What)>,
    quiet: Option<u64>,
    end: u64,
}

fn second(second: u64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(second)
}

fn planted() -> Planted {
    let world = World::new(Clock::starting_at(Timestamp::UNIX_EPOCH, 0), 1);
    let record = json!({
        "metadata": { "name": INSTANCE },
        "spec": { "node": "gpu-1", "zone": "us-east-1a" },
        "status": {
            "phase": "Released",
            "deadline": second(120).to_string(),
            "closedAt": second(60).to_string(),
            "workloads": {
                "uid-a": workload("train-a-x"),
                "uid-b": workload("train-b-x"),
            },
        },
    });
    world.update(|state| state.cluster.put(INTERRUPTION, record));
    let recorded = What::Recorded { instance: INSTANCE.to_owned(), node: "gpu-1".to_owned() };
    Planted { world, events: vec![(0, recorded)], quiet: None, end: 100 }
}

fn workload(pod: &str) -> Value {
    json!({
        "namespace": "default", "pod": pod, "mode": "sdk",
        "release": { "slice": format!("GPU-1::{pod}"), "kind": "time-sliced" },
        "drain": { "decided": second(9).to_string(), "by": "Evict", "reason": "Durable", "grace": 15 },
    })
}

fn commit(pod: &str, uid: &str, kind: Kind) -> What {
    What::Committed(Commit {
        key: format!("{uid}/epochs/2/MANIFEST.json"),
        kind,
        epoch: 2,
        step: 9,
        bytes: 1,
        pod: pod.to_owned(),
        uid: uid.to_owned(),
    })
}

fn end_of(pod: &str, uid: &str) -> What {
    What::Ending {
        pod: pod.to_owned(),
        uid: uid.to_owned(),
        verb: "evict",
        by: "lifeboat-controller".to_owned(),
        grace: 15,
    }
}

impl Planted {
    fn then(mut self, at: u64, what: What) -> Self {
        self.events.push((at, what));
        self
    }

    fn both_saved(self) -> Self {
        self.then(8, commit("train-a-x", "uid-a", Kind::Save))
            .then(9, commit("train-b-x", "uid-b", Kind::Save))
    }

    fn change(self, resource: crate::world::cluster::resource::Resource, object: Value) -> Self {
        self.world.update(|state| state.cluster.put(resource, object));
        self
    }

    fn set(self, path: &str, value: &Value) -> Self {
        self.world.update(|state| {
            let record = state.cluster.find(INTERRUPTION, INSTANCE).expect("it was planted");
            let mut record = Value::clone(record);
            object::set(&mut record, path, value.clone());
            state.cluster.put(INTERRUPTION, record);
        });
        self
    }

    fn store(self, key: &str, bytes: &[u8]) -> Self {
        self.world.update(|state| {
            let blob = Blob::Memory(vec![bytes::Bytes::copy_from_slice(bytes)]);
            let object = Object::new(blob, 0, second(1));
            state.bucket.put(key, object, &Condition::Any).expect("there is room");
        });
        self
    }

    #[track_caller]
    fn breaks(self, rules: &[&str]) {
        let events: Vec<Event> = self
            .events
            .iter()
            .map(|(at, what)| Event { at: second(*at), what: what.clone() })
            .collect();
        let found = self.world.read(|state| {
            let (end, quiet_since) = (second(self.end), self.quiet.map(second));
            check(&Run { events: &events, state, end, quiet_since })
        });
        let mut names: Vec<&str> = found.iter().map(|broken| broken.rule).collect();
        names.dedup();
        assert_eq!(names, rules, "{found:?}");
    }
}

#[test]
fn a_run_in_which_all_is_well_breaks_nothing() {
    planted().both_saved().then(10, end_of("train-a-x", "uid-a")).breaks(&[]);
}

#[test]
fn s1_a_pod_ended_before_it_is_durable() {
    planted().then(95, end_of("train-a-x", "uid-a")).breaks(&["S1"]);
}

#[test]
fn s1_a_pod_ended_before_its_sharer_is_durable() {
    let early = planted().then(8, commit("train-a-x", "uid-a", Kind::Save));
    early.then(10, end_of("train-a-x", "uid-a")).breaks(&["S1"]);
}

#[test]
fn s1_out_of_time_is_no_fault_if_it_is_recorded() {
    planted()
        .set("/status/workloads/uid-a/drain/reason", &json!("OutOfTime"))
        .then(100, end_of("train-a-x", "uid-a"))
        .breaks(&[]);
}

#[test]
fn s2_a_manifest_that_names_what_is_not_there() {
    let manifest = json!({
        "format": 1, "kind": "save", "cluster": "c", "namespace": "n", "job_key": "k", "epoch": 1,
        "world": 1, "bytes": 4,
        "ranks": { "0": {
            "attempt": "01796054246-5f0c2ad1b96e7743", "hash": "0".repeat(64), "bytes": 4,
        } },
    });
    let keys = lifeboat_checkpoint::key::Keys::new("", "c", "n", "k").unwrap();
    planted().store(&keys.manifest(1), manifest.to_string().as_bytes()).breaks(&["S2"]);
    // A state that was let go of may be gone, unless the newest goes on from it.
    let text = manifest.to_string().replace("\"save\"", "\"collected\"");
    planted().store(&keys.manifest(1), text.as_bytes()).breaks(&[]);
    let claim = json!({
        "format": 1, "kind": "claim", "cluster": "c", "namespace": "n", "job_key": "k", "epoch": 2,
        "parent": 1,
    });
    let collected = planted().store(&keys.manifest(1), text.as_bytes());
    collected.store(&keys.manifest(2), claim.to_string().as_bytes()).breaks(&["S2"]);
}

#[test]
fn s3_an_instance_recorded_twice() {
    let again = What::Recorded { instance: INSTANCE.to_owned(), node: "gpu-1".to_owned() };
    planted().then(5, again).breaks(&["S3"]);
}

#[test]
fn s4_a_message_deleted_that_cannot_be_read() {
    let deleted =
        What::Message { queue: "lifeboat".to_owned(), fate: "deleted", body: "{".to_owned() };
    planted().then(5, deleted).breaks(&["S4"]);
}

#[test]
fn s5_a_deadline_that_moves_later() {
    let moved =
        What::Deadline { node: "gpu-1".to_owned(), until: second(121), before: Some(second(120)) };
    planted().then(5, moved).breaks(&["S5"]);
}

#[test]
fn s6_a_pod_ended_after_the_deadline() {
    planted().both_saved().then(121, end_of("train-a-x", "uid-a")).breaks(&["S6"]);
}

#[test]
fn s7_released_while_a_process_is_there() {
    let released = What::Released {
        node: "gpu-1".to_owned(),
        pod: "train-a-x".to_owned(),
        uid: "uid-a".to_owned(),
        still_there: 1,
    };
    planted().then(5, released).breaks(&["S7"]);
}

#[test]
fn s8_a_pod_of_a_node_that_was_not_interrupted_yet() {
    let mut early = planted().both_saved().then(10, end_of("train-a-x", "uid-a"));
    early.events.remove(0);
    early.breaks(&["S8"]);
}

#[test]
fn s9_two_claims_at_a_time() {
    let claim = |number| What::Claim {
        claim: format!("{INSTANCE}-{number}"),
        came: true,
        by: "lifeboat-controller".to_owned(),
    };
    planted().then(1, claim(1)).then(2, claim(2)).breaks(&["S9"]);
}

#[test]
fn s10_a_taint_of_somebody_else_lost() {
    let lost = What::Lost { object: "gpu-1".to_owned(), what: "dedicated".to_owned() };
    planted().then(5, lost).breaks(&["S10"]);
}

#[test]
fn s11_a_hold_that_outlives_its_interruption() {
    let held = json!({
        "metadata": {
            "name": "train-a-x", "namespace": "default",
            "annotations": { "lifeboat.dev/held": INSTANCE },
        },
        "spec": { "nodeName": "gpu-1" },
    });
    planted().change(POD, held).breaks(&["S11"]);
}

#[test]
fn s12_an_epoch_committed_twice() {
    let again = commit("train-a-x", "uid-a", Kind::Save);
    planted().both_saved().then(10, again).breaks(&["S12"]);
}

#[test]
fn s13_a_pod_ended_on_advice() {
    planted()
        .set("/status/phase", &json!("Withdrawn"))
        .both_saved()
        .then(10, end_of("train-a-x", "uid-a"))
        .breaks(&["S13"]);
}

#[test]
fn s14_a_manifest_under_another_key() {
    let manifest = json!({
        "format": 1, "kind": "claim", "cluster": "c", "namespace": "n", "job_key": "k", "epoch": 1,
    });
    let key = lifeboat_checkpoint::key::Keys::new("", "c", "n", "other").unwrap().manifest(1);
    planted().store(&key, manifest.to_string().as_bytes()).breaks(&["S14"]);
}

#[test]
fn s15_a_record_written_again_and_again() {
    let noisy = planted();
    let (caller, record) =
        (Caller::named("lifeboat-x"), Target::in_cluster(INTERRUPTION, INSTANCE));
    for number in 0..=2 * WRITES_POD {
        noisy.world.update(|state| {
            let written = state.cluster.edit(&caller, (&record, Door::Status), |record| {
                object::set(record, "/status/slack", json!(number.to_string()));
            });
            written.map(drop).expect("the record can be written");
        });
    }
    noisy.breaks(&["S15"]);
}

#[test]
fn s16_a_saved_job_that_is_complete() {
    let complete = What::Job { job: "train-a".to_owned(), condition: "Complete" };
    planted().both_saved().then(50, complete).breaks(&["S16"]);
}

#[test]
fn s16_a_pod_bound_to_the_dying_node() {
    let fence =
        What::Taint { node: "gpu-1".to_owned(), taint: "fence", came: true, cordoned: true };
    let bound = What::Bound { pod: "train-a-y".to_owned(), node: "gpu-1".to_owned() };
    planted().then(1, fence).then(2, bound).breaks(&["S16"]);
}

#[test]
fn l1_an_interruption_that_never_ends() {
    let mut late = planted().set("/status/closedAt", &json!(null));
    late.end = 181;
    late.breaks(&["L1"]);
}

#[test]
fn l1_counts_from_the_end_of_the_faults() {
    let mut late = planted().set("/status/closedAt", &json!(null));
    (late.end, late.quiet) = (181, Some(150));
    late.breaks(&[]);
}

#[test]
fn l2_a_workload_that_parked_with_all_away_and_is_not_durable() {
    planted()
        .then(1, What::Act("* fault kube away for 3m".to_owned()))
        .then(1, What::Act("* fault sqs away for 3m".to_owned()))
        .then(2, What::Act("* announce gpu-1 by imds".to_owned()))
        .then(3, What::Said("train-a-x parked at step 9".to_owned()))
        .breaks(&["L2"]);
}

#[test]
fn l3_a_restore_that_waits_for_ever() {
    let waits = What::Said("train-a-y waits to resume: the gate is shut".to_owned());
    let mut stuck = planted().then(20, waits);
    stuck.end = 300;
    stuck.breaks(&["L3"]);
}

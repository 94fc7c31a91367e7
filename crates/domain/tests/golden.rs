//! Facts that were recorded are read again, by this version and by others.

#![allow(clippy::unwrap_used)] // Clippy sees tests only in functions that are marked so.
#![allow(clippy::disallowed_methods)] // Only decisions may not read and write files.

#[path = "../src/samples.rs"]
mod samples;

use std::path::Path;

use lifeboat_domain::cluster;
use lifeboat_domain::cluster::facts::ClusterFacts;
use lifeboat_domain::cluster::facts::Eviction;
use lifeboat_domain::cluster::facts::Fate;
use lifeboat_domain::node::facts::NodeFacts;
use lifeboat_domain::policy::Policy;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::Mode;
use samples::Changed;
use samples::at;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[test]
fn facts_of_the_cluster_are_read_as_they_were_recorded() {
    check("cluster-facts.json", &cluster_facts());
}

#[test]
fn facts_of_the_node_are_read_as_they_were_recorded() {
    check("node-facts.json", &node_facts());
}

#[test]
fn what_a_later_version_adds_is_passed_over_or_read_as_unknown() {
    let text = serde_json::to_string(&cluster_facts()).unwrap();
    let later = text
        .replacen(r#""mode":"sdk""#, r#""mode":"criu","mood":"calm""#, 1)
        .replacen(r#""fate":{"state":"running"}"#, r#""fate":{"state":"moved","to":"the sea"}"#, 1)
        .replacen(r#""state":"refused""#, r#""state":"postponed""#, 1)
        .replacen(r#""state":"saving""#, r#""state":"beaming","up":1"#, 1);
    let facts: ClusterFacts = serde_json::from_str(&later).unwrap();
    assert_eq!(facts.fate, Fate::Unknown);
    let workloads: Vec<_> = facts.workloads.values().collect();
    assert_eq!(workloads[0].mode, Mode::Unknown);
    assert_eq!(workloads[0].pod.eviction, Eviction::Unknown);
    assert_eq!(workloads[1].report.checkpoint, Checkpoint::Unknown);
    let plan = cluster::plan(&facts, &Policy::standard(), at(40));
    assert_eq!(plan.refused, []);
}

fn cluster_facts() -> ClusterFacts {
    let durable = samples::workload("train-0").with(|one| {
        one.report.checkpoint = Checkpoint::Durable(samples::stored(20));
        one.pod.eviction = Eviction::Refused { times: 1, last: at(21) };
    });
    let saving = samples::workload("train-1").with(|one| one.report.checkpoint = samples::saving());
    samples::facts([durable, saving])
}

fn node_facts() -> NodeFacts {
    let saving =
        samples::handed_over("train-1", 1024).with(|one| one.report.checkpoint = samples::saving());
    samples::node_facts([samples::served("train-0"), saving])
}

/// Compares with the record; with `UPDATE_GOLDEN` set, writes it.
#[track_caller]
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, facts: &T) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(facts).unwrap() + "\n").unwrap();
    }
    let recorded = std::fs::read_to_string(&path).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&recorded).unwrap(), facts);
    let written = serde_json::to_value(facts).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&recorded).unwrap(), written);
}

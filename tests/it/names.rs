//! The names that users and readers meet: each stands where the documents say it does.

use std::fs;

use crate::sources::root;
use crate::sources::rust_files;

/// The words of the design, with the crate's folder that must define each.
const TYPES: &[(&str, &[&str])] = &[
    (
        "crates/domain/src",
        &[
            "enum Checkpoint",
            "enum Reason",
            "enum Slice",
            "fn drain",
            "fn grace",
            "fn plan",
            "struct ClusterFacts",
            "struct Deadline",
            "struct NodeFacts",
            "struct Plan",
            "struct Report",
            "struct Signal",
            "struct Step",
        ],
    ),
    ("src/controller", &["enum Outcome"]),
    ("src/crd", &["struct NodeInterruptionSpec", "struct WorkloadCheckpointSpec"]),
    ("sdk/rust/src", &["struct Boat", "fn step", "fn safe_point", "fn restore", "fn finish"]),
    ("crates/checkpoint/src", &["struct Manifest"]),
    ("crates/protocol/src", &["enum FromWorkload", "enum ToWorkload"]),
];

/// What users write and read, and that must stand in the program's sources.
const TEXTS: &[&str] = &[
    "lifeboat.dev/interrupted",
    "lifeboat.dev/at-risk",
    "lifeboat.dev/agent-not-ready",
    "lifeboat.dev/checkpoint",
    "lifeboat.dev/job-key",
    "lifeboat.dev/restore",
    "lifeboat.dev/priority",
    "lifeboat.dev/hold",
    "lifeboat.dev/paused",
    "karpenter.sh/do-not-disrupt",
    "lifeboat-controller",
    "MANIFEST.json",
];

#[test]
fn the_design_and_the_code_use_the_same_words() {
    let mut missing = Vec::new();
    for (folder, names) in TYPES {
        let text = all(folder);
        for name in *names {
            let found =
                ["<", "(", " ", "{", ";"].iter().any(|end| text.contains(&format!("{name}{end}")));
            if !found {
                missing.push(format!("{folder}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn what_users_write_stands_in_the_sources() {
    let text = all("src") + &all("crates");
    let missing: Vec<&&str> = TEXTS.iter().filter(|name| !text.contains(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn all(folder: &str) -> String {
    let files = rust_files(&root().join(folder));
    files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

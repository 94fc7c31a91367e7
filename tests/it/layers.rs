//! The layers of `src/`: a module may name itself and modules of lower layers, nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::sources::root;
use crate::sources::rust_files;

/// Lowest first. Modules of one layer do not name each other; each child of `adapters` is a module
/// of its own.
const LAYERS: &[&[&str]] = &[
    &["clock", "config", "error"],
    &["crd", "metrics", "retry", "offload", "shutdown", "telemetry"],
    &["adapters"],
    &["data"],
    &["controller", "agent"],
    &["commands"],
    &["wiring"],
    &["cli"],
];

#[test]
fn imports_point_down() {
    let source = root().join("src");
    let mut wrong = Vec::new();
    for file in rust_files(&source) {
        let inside = file.strip_prefix(&source).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        wrong.extend(faults(inside, &text));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_root_exports_modules_only() {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    assert!(!text.contains("pub use"), "a name that is exported at the root hides an arrow");
}

#[test]
fn an_arrow_that_points_up_or_aside_is_found() {
    check("retry.rs", "use crate::clock::Clock;", &[]);
    check("agent/act.rs", "use crate::adapters::nvml::Nvml;\nuse super::Deps;", &[]);
    check("retry.rs", "use crate::crd::X;", &["retry.rs: `retry` names `crd`"]);
    check("agent.rs", "use crate::controller::X;", &["agent.rs: `agent` names `controller`"]);
    check(
        "adapters/sqs.rs",
        "use crate::adapters::imds::X;\nuse crate::adapters::sqs::Y;",
        &["adapters/sqs.rs: `adapters::sqs` names `adapters::imds`"],
    );
    check("adapters/sqs.rs", "use super::imds::X;", &["adapters/sqs.rs: names `super::imds`"]);
    check("adapters/cluster/pods.rs", "use super::nodes::X;", &[]);
    check("clock.rs", "use super::wiring::X;", &["clock.rs: names `super::wiring`"]);
    check("data/save.rs", "use super::super::agent;", &["data/save.rs: climbs by `super::super`"]);
    check("data.rs", "use crate::{clock, agent};", &["data.rs: groups names under `crate`"]);
    check("new.rs", "", &["new.rs: `new` is in no layer"]);
}

#[track_caller]
fn check(file: &str, text: &str, expected: &[&str]) {
    assert_eq!(faults(Path::new(file), text), expected);
}

fn faults(file: &Path, text: &str) -> Vec<String> {
    let shown = file.display();
    let Some(own) = module_of(file) else { return Vec::new() };
    let layers = layers();
    let Some(&layer) = layers.get(top(&own)) else {
        return vec![format!("{shown}: `{own}` is in no layer")];
    };
    let mut wrong = Vec::new();
    if text.contains("crate::{") {
        wrong.push(format!("{shown}: groups names under `crate`"));
    }
    if text.contains("super::super") {
        wrong.push(format!("{shown}: climbs by `super::super`"));
    }
    for named in text.split("crate::").skip(1).filter_map(module_named) {
        let lower = layers.get(top(&named)).is_some_and(|other| *other < layer);
        if named != own && !lower {
            wrong.push(format!("{shown}: `{own}` names `{named}`"));
        }
    }
    wrong.extend(siblings(file, text));
    wrong
}

/// What the first file of a module names by `super`: there it means a neighbour.
fn siblings(file: &Path, text: &str) -> Vec<String> {
    let below = |folder: &str, depth: usize| {
        file.starts_with(folder) && file.iter().count() == depth && file != Path::new("adapters.rs")
    };
    let neighbours: Vec<&str> = if below("adapters", 2) {
        text.split("super::").skip(1).map(word).filter(|name| adapters().contains(name)).collect()
    } else if below("", 1) {
        let layers = layers();
        text.split("super::").skip(1).map(word).filter(|name| layers.contains_key(name)).collect()
    } else {
        Vec::new()
    };
    neighbours.iter().map(|name| format!("{}: names `super::{name}`", file.display())).collect()
}

/// `plan.rs` and `plan/x.rs` are both module `plan`; `adapters/sqs.rs` is `adapters::sqs`; `lib.rs`
/// and `main.rs` are none.
fn module_of(file: &Path) -> Option<String> {
    let mut parts = file.iter().map(|part| part.to_str().unwrap());
    let first = parts.next()?.trim_end_matches(".rs");
    match (first, parts.next()) {
        ("lib" | "main", None) => None,
        ("adapters", Some(second)) => Some(format!("adapters::{}", second.trim_end_matches(".rs"))),
        (first, _) => Some(first.to_owned()),
    }
}

/// The module that stands behind `crate::`.
fn module_named(text: &str) -> Option<String> {
    let first = word(text);
    let rest = text[first.len()..].strip_prefix("::");
    match (first, rest.map(word)) {
        ("", _) => None,
        ("adapters", Some(second)) => Some(format!("adapters::{second}")),
        (first, _) => Some(first.to_owned()),
    }
}

fn top(module: &str) -> &str {
    module.split("::").next().unwrap()
}

fn layers() -> BTreeMap<&'static str, usize> {
    let numbered = LAYERS.iter().enumerate();
    numbered
        .flat_map(|(layer, modules)| modules.iter().map(move |module| (*module, layer)))
        .collect()
}

fn adapters() -> Vec<&'static str> {
    include_str!("../../src/adapters.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect()
}

fn word(text: &str) -> &str {
    let end = text.find(|letter: char| letter != '_' && !letter.is_alphanumeric());
    &text[..end.unwrap_or(text.len())]
}

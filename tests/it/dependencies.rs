//! What we stand on: licences, sources, one TLS provider, and a light SDK.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::sources::root;

/// Licences that `deny.toml` allows.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that must not come in, and why.
const BANNED: &[(&str, &str)] = &[
    ("aws-lc-rs", "a second TLS provider makes rustls panic at start"),
    ("aws-lc-sys", "a second TLS provider makes rustls panic at start"),
    ("backoff", "unmaintained, RUSTSEC-2025-0012; backon takes its place"),
    ("native-tls", "one TLS stack"),
    ("openssl-sys", "one TLS stack"),
];

/// Packages of which there must be one version: TLS and HTTP.
const SINGLE: &[&str] = &["rustls", "ring", "hyper", "http", "h2", "tokio", "kube", "object_store"];

#[test]
fn every_package_comes_from_the_registry() {
    let strange: Vec<&toml::Value> = packages()
        .iter()
        .filter_map(|package| package.get("source").cloned())
        .filter(|source| {
            source.as_str() != Some("registry+https://github.com/rust-lang/crates.io-index")
        })
        .map(|source| &*Box::leak(Box::new(source)))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn nothing_banned_comes_in() {
    let names = versions();
    for (name, reason) in BANNED {
        assert!(!names.contains_key(*name), "`{name}` is in Cargo.lock: {reason}");
    }
}

#[test]
fn there_is_one_version_of_what_speaks_to_the_world() {
    let names = versions();
    for name in SINGLE {
        let found = names.get(*name).map_or(0, BTreeSet::len);
        assert_eq!(found, 1, "versions of `{name}`: {:?}", names.get(*name));
    }
}

#[test]
fn every_licence_is_allowed() {
    let arguments =
        ["metadata", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"];
    let text = cargo(&arguments);
    let metadata: serde_json::Value = serde_json::from_str(&text).unwrap();
    let refused: Vec<String> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| !allowed(package["license"].as_str().unwrap_or("none")))
        .map(|package| format!("{} {}", package["name"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "\n{}", refused.join("\n"));
}

#[test]
fn the_list_of_licences_is_that_of_deny_toml() {
    let deny: toml::Table = fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    let allow = deny["licenses"]["allow"].as_array().unwrap();
    let listed: Vec<&str> = allow.iter().map(|entry| entry.as_str().unwrap()).collect();
    assert_eq!(listed, ALLOWED);
    let banned = deny["bans"]["deny"].as_array().unwrap();
    let named: Vec<&str> = banned.iter().map(|entry| entry["crate"].as_str().unwrap()).collect();
    assert_eq!(named, BANNED.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}

#[test]
fn the_sdk_brings_no_runtime_into_a_trainer() {
    let text = cargo(&["tree", "--package=lifeboat-sdk", "--edges=normal", "--prefix=none"]);
    let names: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    for heavy in ["tokio", "reqwest", "object_store", "hyper", "kube", "aws-config"] {
        assert!(!names.contains(heavy), "lifeboat-sdk brings `{heavy}`");
    }
    assert!(names.contains("lifeboat-protocol"), "{names:?}");
}

#[test]
fn only_one_crate_names_the_heavy_sdk() {
    let naming: Vec<&str> = ["", "crates/ec2/", "crates/domain/", "chaos/", "sdk/rust/"]
        .into_iter()
        .filter(|folder| {
            let manifest = root().join(folder).join("Cargo.toml");
            let table: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
            table["dependencies"].as_table().unwrap().contains_key("aws-sdk-ec2")
        })
        .collect();
    assert_eq!(naming, ["crates/ec2/"]);
}

/// Whether some choice of the expression's licences is allowed: `OR` offers, `AND` asks for both.
fn allowed(expression: &str) -> bool {
    let inner = expression.replace('/', " OR ");
    let (first, rest) = match inner.split_once(" AND ") {
        Some((first, rest)) if balanced(first) => (first.to_owned(), Some(rest.to_owned())),
        _ => (inner, None),
    };
    let choices = first.trim_matches(['(', ')', ' ']).to_owned();
    let offered =
        choices.split(" OR ").any(|one| ALLOWED.contains(&one.trim_matches(['(', ')', ' '])));
    offered && rest.is_none_or(|rest| allowed(&rest))
}

fn balanced(text: &str) -> bool {
    text.matches('(').count() == text.matches(')').count()
}

fn versions() -> BTreeMap<String, BTreeSet<String>> {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let text = |key: &str| package[key].as_str().unwrap().to_owned();
        versions.entry(text("name")).or_default().insert(text("version"));
    }
    versions
}

fn packages() -> Vec<toml::Table> {
    let lock: toml::Table = fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    packages.iter().map(|package| package.as_table().unwrap().clone()).collect()
}

#[track_caller]
fn cargo(arguments: &[&str]) -> String {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program)
        .args(arguments)
        .arg("--offline")
        .current_dir(root())
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

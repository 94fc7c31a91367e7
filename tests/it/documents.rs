//! What is generated from the code, and must stand in the repository as the code says it.

use std::fmt::Write;
use std::fs;

use lifeboat::commands::crds;
use lifeboat::metrics;

use crate::sources::golden;
use crate::sources::root;

#[test]
fn the_table_of_configuration_is_the_one_that_the_program_prints() {
    golden("docs/configuration.md", &lifeboat::config::document());
}

#[test]
fn the_definitions_are_the_ones_that_the_program_prints() {
    for (name, definition) in crds::definitions() {
        golden(&format!("deploy/helm/lifeboat/files/crds/{name}"), &crds::document(&definition));
    }
}

#[test]
fn every_metric_and_every_reason_is_documented() {
    let mut text = METRICS.to_owned();
    for metric in metrics::described() {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "—".to_owned() } else { labels.join(", ") };
        writeln!(text, "| `{}` | {labels} | {} |", metric.name, metric.question).unwrap();
    }
    text.push_str(REASONS);
    for (side, file) in [("cluster", "cluster/plan.rs"), ("node", "node/plan.rs")] {
        for (name, meaning) in reasons(file) {
            writeln!(text, "| `{name}` | {side} | {meaning} |").unwrap();
        }
    }
    golden("docs/metrics.md", &text);
}

const METRICS: &str = "\
# Metrics and reasons

The admin server (`admin.listen`) answers `/metrics` in the OpenMetrics text format. Labels come from closed lists: never a name, an id or an error's text. This page is written by a test from the code, and compared.

| metric | labels | the question it answers |
|---|---|---|
";

const REASONS: &str = "
## Reasons

Why a step was taken: the label `reason` of `lifeboat_actions_total`, the reason of Kubernetes Events, and what `status.workloads.*.drain.reason` says.

| reason | side | what it means |
|---|---|---|
";

/// Names and first lines of the variants of the domain's `Reason` in `file`.
fn reasons(file: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("crates/domain/src").join(file)).unwrap();
    let (_, body) = text.split_once("pub enum Reason {").unwrap();
    let body = body.split("\n}").next().unwrap();
    let mut found = Vec::new();
    let mut meaning = String::new();
    for line in body.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("///") {
            let longer = format!("{meaning} {}", words.trim());
            longer.trim().clone_into(&mut meaning);
        } else if line.starts_with(char::is_uppercase) {
            let end = line.find(|letter: char| !letter.is_alphanumeric()).unwrap_or(line.len());
            found.push((line[..end].to_owned(), std::mem::take(&mut meaning)));
        }
    }
    assert!(!found.is_empty(), "{file} has no reasons");
    found
}

//! The Helm chart names nothing that is not there, and leaves out nothing that is.

use std::collections::BTreeSet;
use std::fs;

use lifeboat::metrics;
use serde_json::Value;

use crate::sources::files;
use crate::sources::root;

const CHART: &str = "deploy/helm/lifeboat";

/// Keys that the chart decides from values of its own, from the downward API, or for its mounts.
const DECIDED: [&str; 11] = [
    "account",
    "admin.listen",
    "agent.hostRoot",
    "agent.nodeName",
    "cluster",
    "lease.identity",
    "namespace",
    "queue.url",
    "region",
    "store.bucket",
    "webhook.listen",
];

/// What Prometheus adds to the name of a histogram.
const PARTS: [&str; 3] = ["_bucket", "_count", "_sum"];

#[test]
fn every_key_of_the_configuration_can_be_set_and_no_other() {
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let mut known = BTreeSet::new();
    leaves(&schema["properties"]["config"], "", &mut known);
    let keys: BTreeSet<String> = keys().map(|(key, _)| key).collect();
    let decided: BTreeSet<String> = DECIDED.map(str::to_owned).into();
    assert!(decided.is_subset(&keys), "{:?}", decided.difference(&keys));
    assert_eq!(known, &keys - &decided);
}

#[test]
fn every_variable_in_the_chart_is_one_of_the_programs() {
    let mut known: BTreeSet<String> = keys().map(|(_, variable)| variable).collect();
    known.insert("LIFEBOAT_CONFIG".to_owned());
    let named = words("LIFEBOAT_", &all());
    assert!(!named.is_empty() && named.is_subset(&known), "{:?}", &named - &known);
}

#[test]
fn every_metric_is_on_the_board_or_in_an_alert_and_no_other() {
    let described = metrics::described().iter().map(|metric| metric.name.to_owned());
    let described: BTreeSet<String> = described.collect();
    let text = read("files/alerts.yaml") + &read("files/board.json");
    let named = words("lifeboat_", &text).into_iter().map(|name| {
        let part = PARTS.iter().find_map(|part| name.strip_suffix(part));
        part.map(str::to_owned).unwrap_or(name)
    });
    assert_eq!(named.collect::<BTreeSet<String>>(), described);
}

#[test]
fn every_alert_has_its_runbook_and_only_lost_work_pages() {
    let rules: Value = serde_yaml_ng::from_str(&read("files/alerts.yaml")).unwrap();
    let mut alerts = BTreeSet::new();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap().to_owned();
        let severity = if name == "LifeboatWorkLost" { "page" } else { "warning" };
        assert_eq!(rule["labels"]["severity"], severity, "{name}");
        let page = format!("docs/runbooks/{name}.md");
        assert_eq!(rule["annotations"]["runbook_url"], page.as_str());
        let text = fs::read_to_string(root().join(&page)).unwrap();
        assert!(text.starts_with(&format!("# {name}\n")), "{page}");
        assert!(alerts.insert(name.clone()), "{name} is there twice");
    }
    let pages = files(&root().join("docs/runbooks"));
    let pages = pages.iter().map(|page| page.file_stem().unwrap().to_str().unwrap().to_owned());
    assert_eq!(pages.collect::<BTreeSet<String>>(), alerts);
}

/// Each key of the configuration with its variable, as the program prints them.
fn keys() -> impl Iterator<Item = (String, String)> {
    let table = lifeboat::config::document();
    let rows: Vec<String> =
        table.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect();
    rows.into_iter().map(|row| {
        let mut quoted = row.split('`');
        let key = quoted.nth(1).unwrap().to_owned();
        (key, row.rsplit('`').nth(1).unwrap().to_owned())
    })
}

/// The paths of what is no object itself.
fn leaves(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        found.insert(path.to_owned());
        return;
    };
    assert_eq!(schema["additionalProperties"], false, "`{path}` takes anything");
    for (name, inner) in properties {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        leaves(inner, &path, found);
    }
}

/// The words of a text that begin so.
fn words(prefix: &str, text: &str) -> BTreeSet<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let all = text.split(|letter| !is_part(letter));
    all.filter(|word| word.starts_with(prefix)).map(str::to_owned).collect()
}

fn all() -> String {
    let files = files(&root().join(CHART));
    files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(CHART).join(path)).unwrap()
}

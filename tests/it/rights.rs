//! What the chart and the policies for AWS allow our programs is what they do in the scripts: nothing
//! less, and nothing more.

use std::collections::BTreeSet;
use std::fs;

use lifeboat_chaos::world::cluster::audit::Request;
use serde::Deserialize;
use serde_json::Value;

use crate::scripts::outcomes;
use crate::sources::root;

/// One thing that a program may do, as `lifeboat-agent list pods`.
type Right = String;

/// Rights that no script reaches, each with who does.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "lifeboat-controller delete nodeclaims.karpenter.sh",
        "a replacement whose pods never came, after minutes: `tests/cluster/replacing.rs`",
    ),
    (
        "lifeboat-controller delete nodeinterruptions.lifeboat.dev",
        "a record, a day after it was closed",
    ),
    (
        "lifeboat-controller get jobs.batch",
        "what stands above a pod that is being made: `tests/cluster/webhook.rs`",
    ),
    (
        "lifeboat-controller get mutatingwebhookconfigurations.admissionregistration.k8s.io",
        "the webhook, which is served to real API servers alone: the same",
    ),
    (
        "lifeboat-controller get nodeinterruptions.lifeboat.dev",
        "a signal that the server refused: another replica may have told it otherwise",
    ),
    (
        "lifeboat-controller get persistentvolumeclaims",
        "the zone of a pod's volume: pods of scripts name a zone, and no claim",
    ),
    ("lifeboat-controller get persistentvolumes", "the same, from the claim to the volume"),
    ("lifeboat-controller get pods", "a hold that met a change of somebody else: read, and again"),
    (
        "lifeboat-controller get rayclusters.ray.io",
        "the same as of Jobs, for pods of a RayCluster: `tests/it/webhook.rs`",
    ),
    ("lifeboat-controller get secrets", "the webhook's certificate"),
    (
        "lifeboat-controller patch mutatingwebhookconfigurations.admissionregistration.k8s.io",
        "the webhook's authority",
    ),
    ("lifeboat-controller update secrets", "the webhook's certificate"),
];

#[test]
fn every_right_of_the_chart_is_used_and_no_other_is_needed() {
    let asked = outcomes().iter().flat_map(|(_, outcome)| &outcome.asked);
    let used: BTreeSet<Right> = asked.flat_map(rights_for).collect();
    let granted = granted();
    let missing: Vec<&Right> = used.difference(&granted).collect();
    assert!(missing.is_empty(), "used, and not granted: {missing:#?}");
    let unused: Vec<&str> = granted.difference(&used).map(String::as_str).collect();
    let elsewhere: Vec<&str> = ELSEWHERE.iter().map(|(right, _)| *right).collect();
    assert_eq!(unused, elsewhere, "granted, and used by no script");
}

#[test]
fn every_action_of_the_policies_is_used_and_no_other_is_needed() {
    for program in ["controller", "agent"] {
        let asked = outcomes().iter().flat_map(|(_, outcome)| &outcome.actions);
        let ours = asked.filter(|(client, _)| client.starts_with(&format!("lifeboat-{program}")));
        let mut used: BTreeSet<String> = ours.map(|(_, action)| action.clone()).collect();
        if program == "controller" {
            // Only at the start of the built program, and by doctor: whether there is a queue.
            assert!(used.insert("sqs:GetQueueAttributes".to_owned()));
            // By doctor alone, which `helm test` runs with the controller's role.
            let looked_at = [
                "events:DescribeRule",
                "events:ListRuleNamesByTarget",
                "s3:GetLifecycleConfiguration",
            ];
            used.extend(looked_at.map(str::to_owned));
        }
        let path = root().join(format!("deploy/iam/{program}.json"));
        let policy: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let mut allowed = BTreeSet::new();
        for statement in policy["Statement"].as_array().unwrap() {
            let action = &statement["Action"];
            if let Value::String(one) = action {
                allowed.insert(one.clone());
            } else {
                allowed.extend(strings(action).into_iter().map(str::to_owned));
            }
        }
        assert_eq!(used, allowed, "{program}");
    }
}

/// What a request needs; nothing where it is none of our programs that asks.
fn rights_for(request: &Request) -> Vec<Right> {
    let programs = ["lifeboat-controller", "lifeboat-agent"];
    let Some(program) = programs.iter().find(|name| request.agent.starts_with(**name)) else {
        return Vec::new();
    };
    let verbs: &[&str] = match (request.verb, request.code) {
        ("evict", _) => &["create"],
        // An apply that makes an object is a creation, too.
        ("apply", 201) => &["patch", "create"],
        ("apply", _) => &["patch"],
        (verb, _) => &[verb],
    };
    verbs.iter().map(|verb| format!("{program} {verb} {}", request.resource)).collect()
}

/// What the roles of the chart say.
fn granted() -> BTreeSet<Right> {
    let path = root().join("deploy/helm/lifeboat/files/rbac.yaml");
    let text = fs::read_to_string(path).unwrap();
    let mut rights = BTreeSet::new();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let object = Value::deserialize(document).unwrap();
        let program = object["metadata"]["name"].as_str().unwrap();
        for rule in object["rules"].as_array().into_iter().flatten() {
            for resource in strings(&rule["resources"]) {
                let resource = named(strings(&rule["apiGroups"])[0], resource);
                let verbs = strings(&rule["verbs"]);
                rights.extend(verbs.iter().map(|verb| format!("{program} {verb} {resource}")));
            }
        }
    }
    rights
}

/// A resource as the simulated server counts it, as `workloadcheckpoints.lifeboat.dev/status`.
fn named(group: &str, resource: &str) -> String {
    match (group, resource.split_once('/')) {
        ("", _) => resource.to_owned(),
        (group, Some((resource, subresource))) => format!("{resource}.{group}/{subresource}"),
        (group, None) => format!("{resource}.{group}"),
    }
}

fn strings(list: &Value) -> Vec<&str> {
    let all: Vec<&str> = list.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(!all.is_empty() && !all.contains(&"*"), "{list}: each is named");
    all
}

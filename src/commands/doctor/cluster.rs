//! What doctor asks the API server.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::Client;
use lifeboat_domain::policy::KarpenterMode;
use lifeboat_domain::signal::NOTICE;
use lifeboat_domain::workload::Hold;
use serde_json::Value;

use super::Finding;
use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::Slots;
use crate::adapters::cluster::nodes;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::overlays;
use crate::adapters::cluster::pods;
use crate::adapters::cluster::pods::PodRow;
use crate::adapters::cluster::pools::Pools;
use crate::commands::CommandError;
use crate::commands::crds;
use crate::commands::list;
use crate::commands::rows;
use crate::config::Config;
use crate::error::Chain;

/// The label of a node whose GPUs are shared: replicas of each.
const REPLICAS: &str = "nvidia.com/gpu.replicas";

pub(super) async fn examine(config: &Config, client: &Client) -> Vec<Finding> {
    let cluster = Cluster::routine(client.clone(), &Slots::new(64, 16));
    let mut findings = definitions(client).await;
    let nodes = match rows::<NodeRow>(&nodes::api(&cluster), "the list of nodes").await {
        Ok(nodes) => nodes,
        Err(error) => return unread(findings, &error),
    };
    let pods = match rows::<PodRow>(&pods::api(&cluster), "the list of pods").await {
        Ok(pods) => pods,
        Err(error) => return unread(findings, &error),
    };
    let protected: Vec<PodRow> = pods.into_iter().filter(PodRow::is_protected).collect();
    findings.push(scope(config, &nodes));
    findings.push(holds(config, &protected));
    findings.extend(karpenter(config, &cluster, &protected).await);
    findings.extend(slices(config, &cluster, &nodes).await);
    findings
}

fn unread(mut findings: Vec<Finding>, error: &CommandError) -> Vec<Finding> {
    findings.push(Finding::red(Chain(error).to_string(), "check the role's list on it"));
    findings
}

async fn definitions(client: &Client) -> Vec<Finding> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let remedy = "`lifeboat crds | kubectl apply -f -` installs what this release knows";
    let mut findings = Vec::new();
    for (_, ours) in crds::definitions() {
        let name = ours.metadata.name.clone().unwrap_or_default();
        findings.push(match api.get_opt(&name).await {
            Ok(None) => Finding::red(format!("definition `{name}` is not installed"), remedy),
            Ok(Some(theirs)) if columns(&theirs) == columns(&ours) => {
                Finding::green(format!("definition `{name}` is installed"))
            }
            Ok(Some(_)) => {
                Finding::yellow(format!("definition `{name}` is of another release"), remedy)
            }
            Err(error) => {
                let found = format!("definition `{name}` was not read: {}", Chain(&error));
                Finding::yellow(found, "check the role's get on customresourcedefinitions")
            }
        });
    }
    findings
}

/// What tells releases apart and what no server rewrites: the names of all fields.
fn columns(definition: &CustomResourceDefinition) -> Vec<String> {
    let mut names = Vec::new();
    let text = serde_json::to_value(&definition.spec.versions).unwrap_or_default();
    collect(&text, "", &mut names);
    names.sort();
    names
}

fn collect(schema: &Value, path: &str, names: &mut Vec<String>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| collect(item, path, names)),
        Value::Object(fields) => {
            for (name, value) in fields {
                if name != "properties" {
                    collect(value, path, names);
                    continue;
                }
                for (field, schema) in value.as_object().into_iter().flatten() {
                    let path = format!("{path}.{field}");
                    names.push(path.clone());
                    collect(schema, &path, names);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (),
    }
}

fn scope(config: &Config, nodes: &[NodeRow]) -> Finding {
    let selector = &config.nodes.selector;
    let taken = nodes.iter().filter(|row| selector.takes(&row.labels, &row.extended)).count();
    let found = format!("{taken} of {} nodes are cared for", nodes.len());
    match taken {
        0 => Finding::yellow(found, "check `nodes.selector`, if there are GPU Spot nodes now"),
        _ => Finding::green(found),
    }
}

fn holds(config: &Config, protected: &[PodRow]) -> Finding {
    let count = protected.len();
    let loose: Vec<String> = protected
        .iter()
        .filter(|pod| !pod.is_held())
        .map(|pod| format!("`{}/{}`", pod.namespace, pod.name))
        .collect();
    match (config.policy().karpenter, config.policy().hold) {
        (KarpenterMode::None, _) => {
            Finding::green(format!("{count} protected pods; without Karpenter there is no hold"))
        }
        (KarpenterMode::Beside, Hold::OnSignal | Hold::Unknown) => Finding::yellow(
            "`hold.default` is `on-signal`, and Karpenter's own queue cannot be seen from here",
            "set DelaySeconds to 5 on Karpenter's queue: without it a drain can win the race",
        ),
        (KarpenterMode::Beside, Hold::Always) if loose.is_empty() => {
            Finding::green(format!("{count} protected pods, all held"))
        }
        (KarpenterMode::Beside, Hold::Always) => Finding::yellow(
            format!("{} of {count} protected pods are not held: {}", loose.len(), few(&loose)),
            "put `karpenter.sh/do-not-disrupt: \"true\"` on them",
        ),
    }
}

async fn karpenter(config: &Config, cluster: &Cluster, protected: &[PodRow]) -> Vec<Finding> {
    let api: Api<Object<Pools>> = Api::all(cluster.watch_client());
    let pools = list(&api, "the list of NodePools").await;
    match (config.policy().karpenter, pools) {
        (KarpenterMode::Beside, Err(error)) => vec![Finding::red(
            format!("Karpenter's NodePools were not read: {}", Chain(&error)),
            "install Karpenter 1.x, or set `karpenter.mode` to `none`",
        )],
        (KarpenterMode::None, Ok(pools)) if !pools.is_empty() => vec![Finding::red(
            format!("`karpenter.mode` is `none`, and there are {} NodePools", pools.len()),
            "set it to `beside`: otherwise nothing holds the pods against Karpenter's drain",
        )],
        (KarpenterMode::None, _) => vec![Finding::green("`karpenter.mode` is `none`")],
        (KarpenterMode::Beside, Ok(pools)) => {
            let longest = protected.iter().map(|pod| pod.grace).max().unwrap_or_default();
            let findings: Vec<Finding> =
                pools.iter().filter_map(|pool| short(pool, NOTICE + longest)).collect();
            if findings.is_empty() {
                return vec![Finding::green(format!("{} NodePools leave the time", pools.len()))];
            }
            findings
        }
    }
}

/// A pool whose own limit ends a hold before the notice does.
fn short(pool: &Object<Pools>, least: Duration) -> Option<Finding> {
    let text = pool.spec.template["spec"]["terminationGracePeriod"].as_str()?;
    // Karpenter writes Go durations, `1h30m`; what is no number of units is no limit that we know.
    let limit = humantime::parse_duration(text).ok()?;
    (limit < least).then(|| {
        Finding::red(
            format!("NodePool `{}` has terminationGracePeriod {text}", pool.name()),
            format!(
                "make it {} or longer (the notice and the longest grace): Karpenter ends held pods \
                 that much before it",
                humantime::format_duration(least)
            ),
        )
    })
}

async fn slices(config: &Config, cluster: &Cluster, nodes: &[NodeRow]) -> Option<Finding> {
    let shared = |labels: &BTreeMap<String, String>| {
        let replicas = labels.get(REPLICAS).and_then(|count| count.parse::<u32>().ok());
        replicas.is_some_and(|count| count > 1)
    };
    let sliced = nodes.iter().filter(|row| {
        config.nodes.selector.takes(&row.labels, &row.extended) && shared(&row.labels)
    });
    let sliced = sliced.count();
    if sliced == 0 || config.policy().karpenter == KarpenterMode::None {
        return None;
    }
    let overlays = overlays::list(cluster, super::PATIENCE).await.unwrap_or_default();
    if overlays
        .iter()
        .any(|overlay| overlay.spec.capacity.keys().any(|key| key.starts_with("nvidia.com/")))
    {
        return Some(Finding::green(format!(
            "{sliced} nodes are sliced, and a NodeOverlay says so"
        )));
    }
    Some(Finding::red(
        format!("{sliced} nodes are sliced, and no NodeOverlay says so"),
        "make a NodeOverlay with the replicas: without one Karpenter buys a node for each pod, and \
         Lifeboat asks for no replacement",
    ))
}

/// The first few of many names.
fn few(names: &[String]) -> String {
    let more = if names.len() > 5 { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(5)].join(", "))
}

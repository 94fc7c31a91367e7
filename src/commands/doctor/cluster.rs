//! What doctor reads of the cluster, and what it makes of it.

use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Finding;
use super::agents;
use super::beside;
use super::nodes as checks;
use super::rights;
use super::workloads;
use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::Slots;
use crate::adapters::cluster::nodes;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::others::DaemonSets;
use crate::adapters::cluster::others::Deployments;
use crate::adapters::cluster::others::Jobs;
use crate::adapters::cluster::others::NodeClasses;
use crate::adapters::cluster::overlays::Overlays;
use crate::adapters::cluster::pods;
use crate::adapters::cluster::pods::PodRow;
use crate::adapters::cluster::pools::Pools;
use crate::commands::CommandError;
use crate::commands::crds;
use crate::commands::list;
use crate::commands::rows;
use crate::config::Config;
use crate::crd::workload_checkpoint::WorkloadCheckpoint;
use crate::error::Chain;

/// What was read of the cluster; `None` where it was not, which is said by a finding.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) nodes: Option<Vec<NodeRow>>,
    pub(super) pods: Option<Vec<PodRow>>,
    pub(super) jobs: Option<Vec<Object<Jobs>>>,
    pub(super) deployments: Option<Vec<Object<Deployments>>>,
    pub(super) daemons: Option<Vec<Object<DaemonSets>>>,
    pub(super) pools: Option<Vec<Object<Pools>>>,
    pub(super) overlays: Option<Vec<Object<Overlays>>>,
    pub(super) classes: Option<Vec<Object<NodeClasses>>>,
    pub(super) checkpoints: Option<Vec<WorkloadCheckpoint>>,
}

impl Seen {
    /// Karpenter, where its Deployment was seen.
    pub(super) fn karpenter(&self) -> Option<beside::Karpenter> {
        beside::karpenter(self.deployments.as_deref()?)
    }

    /// The largest state that is saved, by its job key.
    pub(super) fn largest(&self) -> Option<(String, u64)> {
        let all = self.checkpoints.iter().flatten();
        let sizes = all.filter_map(|index| {
            let newest = index.status.as_ref()?.newest.as_ref()?;
            Some((workloads::key(index), newest.bytes))
        });
        sizes.max_by_key(|(_, bytes)| *bytes)
    }

    fn protected(&self) -> Vec<PodRow> {
        let pods = self.pods.iter().flatten();
        pods.filter(|pod| pod.is_protected() && pod.ended().is_none()).cloned().collect()
    }
}

/// Reads what there is, and says what was not to be read.
pub(super) async fn examine(
    config: &Config,
    client: &Client,
    now: Timestamp,
) -> (Seen, Vec<Finding>) {
    let mut findings = definitions(client).await;
    findings.extend(rights::examine(config, client).await);
    let seen = read(client, &mut findings).await;
    findings.extend(judge(config, &seen, now));
    if let (Some(pods), Some(daemons)) = (&seen.pods, &seen.daemons) {
        let agents = checks::agents_of(config, daemons);
        let agents: Vec<&PodRow> =
            pods.iter().filter(|pod| checks::is_agent(pod, agents.as_deref())).collect();
        findings.extend(agents::examine(config, client, &agents).await);
    }
    (seen, findings)
}

/// Everything that follows from what was read, and from nothing else.
fn judge(config: &Config, seen: &Seen, now: Timestamp) -> Vec<Finding> {
    let mut findings = Vec::new();
    let protected = seen.protected();
    let karpenter = seen.karpenter();
    if let Some(nodes) = &seen.nodes {
        findings.push(checks::scope(config, nodes));
    }
    if let (Some(nodes), Some(pods), Some(daemons)) = (&seen.nodes, &seen.pods, &seen.daemons) {
        findings.extend(checks::agents(config, nodes, (pods, daemons)));
    }
    if let Some(classes) = &seen.classes {
        findings.extend(checks::metadata_service(classes));
    }
    if seen.pods.is_some() {
        findings.push(workloads::holds(config, &protected));
    }
    if let Some(pods) = &seen.pods {
        findings.extend(workloads::annotations(config, pods));
    }
    if let Some(jobs) = &seen.jobs {
        findings.extend(workloads::jobs(jobs, &protected));
    }
    if let Some(checkpoints) = &seen.checkpoints {
        findings.extend(workloads::at_risk(checkpoints));
        findings.extend(workloads::ages(config, checkpoints, now));
    }
    if let Some(pools) = &seen.pools {
        findings.extend(beside::pools(config, pools, &protected));
    }
    if let (Some(nodes), Some(overlays)) = (&seen.nodes, &seen.overlays) {
        findings.extend(beside::slices(config, (nodes, overlays), karpenter.as_ref()));
    }
    findings.extend(karpenter.iter().flat_map(|found| beside::itself(config, found)));
    if let (Some(deployments), Some(daemons)) = (&seen.deployments, &seen.daemons) {
        findings.extend(beside::termination_handlers(config, deployments, daemons));
    }
    findings
}

async fn read(client: &Client, findings: &mut Vec<Finding>) -> Seen {
    let cluster = Cluster::routine(client.clone(), &Slots::new(64, 16));
    // Without these two nothing can be said; the others are looked at where we may.
    let needed = |findings: &mut Vec<Finding>, error: &CommandError| {
        findings.push(Finding::red(Chain(error).to_string(), "check the role's list on it"));
    };
    let nodes = rows::<NodeRow>(&nodes::api(&cluster), "the list of nodes").await;
    let pods = rows::<PodRow>(&pods::api(&cluster), "the list of pods").await;
    Seen {
        nodes: nodes.inspect_err(|error| needed(findings, error)).ok(),
        pods: pods.inspect_err(|error| needed(findings, error)).ok(),
        jobs: all(Api::all(client.clone()), "the list of Jobs", findings).await,
        deployments: all(Api::all(client.clone()), "the list of Deployments", findings).await,
        daemons: all(Api::all(client.clone()), "the list of DaemonSets", findings).await,
        pools: all(Api::all(client.clone()), "the list of NodePools", findings).await,
        overlays: all(Api::all(client.clone()), "the list of NodeOverlays", findings).await,
        classes: all(Api::all(client.clone()), "the list of EC2NodeClasses", findings).await,
        checkpoints: all(Api::all(client.clone()), "the list of checkpoints", findings).await,
    }
}

/// A whole list; empty where the cluster has no such kind.
async fn all<K>(api: Api<K>, what: &'static str, findings: &mut Vec<Finding>) -> Option<Vec<K>>
where
    K: Clone + Debug + DeserializeOwned,
{
    match list(&api, what).await {
        Ok(found) => Some(found),
        Err(CommandError::NoDefinitions) => Some(Vec::new()),
        Err(error) => {
            let remedy = "what depends on it was not checked: ask as somebody who may list it";
            findings.push(Finding::yellow(Chain(&error).to_string(), remedy));
            None
        }
    }
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

//! `lifeboat doctor`: what can be checked before the first interruption, and what to do about it.
//!
//! Each part reads, and judges apart from that: what was not to be read is a finding, and the rest
//! is judged all the same.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;
use serde::Serialize;

use crate::adapters::signed::Signed;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Chain;

pub mod reach;

mod agents;
mod beside;
mod bucket;
mod cluster;
mod nodes;
mod queue;
mod rights;
mod workloads;

/// The oldest Kubernetes that we know: 1.33.
const OLDEST: (u32, u32) = (1, 33);

/// What doctor looks at.
#[derive(Clone)]
pub struct Clients {
    /// The API server, or why there is none: the rest is looked at all the same.
    pub kube: Result<kube::Client, String>,
    /// The queue.
    pub sqs: aws_sdk_sqs::Client,
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
    /// The settings of bucket and rules.
    pub signed: Signed,
    /// The time.
    pub clock: Clock,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Green,
    /// It works, and something should be looked at.
    Yellow,
    /// It will not work.
    Red,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it is.
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    fn green(found: impl Into<String>) -> Self {
        Self { health: Health::Green, found: found.into(), remedy: String::new() }
    }

    fn yellow(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { health: Health::Yellow, found: found.into(), remedy: remedy.into() }
    }

    fn red(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { health: Health::Red, found: found.into(), remedy: remedy.into() }
    }
}

/// Checks everything that can be checked from here.
pub async fn examine(config: &Config, clients: &Clients) -> Vec<Finding> {
    let mut findings = vec![Finding::green("the configuration is right")];
    for warning in &config.warnings {
        findings.push(Finding::yellow(warning, "check its spelling against docs/configuration.md"));
    }
    let (seen, found) = api_server(config, clients).await;
    findings.extend(found);
    findings.extend(queue::examine(config, (&clients.sqs, &clients.signed)).await);
    let karpenter = seen.karpenter();
    let on_signal = workloads::on_signal(config, seen.pods.as_deref().unwrap_or_default());
    let beside = (karpenter.as_ref(), on_signal.as_slice());
    findings.extend(queue::karpenters(config, &clients.sqs, beside).await);
    let bucket = (&*clients.store, &clients.signed);
    findings.extend(bucket::examine(config, bucket, seen.largest()).await);
    findings
}

/// As a person reads it.
pub fn table(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let sign = match finding.health {
            Health::Green => "ok  ",
            Health::Yellow => "look",
            Health::Red => "BAD ",
        };
        let remedy = match finding.remedy.as_str() {
            "" => String::new(),
            remedy => format!("      {remedy}\n"),
        };
        format!("{sign}  {}\n{remedy}", finding.found)
    };
    findings.iter().map(line).collect()
}

/// As a program reads it.
pub fn json(findings: &[Finding]) -> String {
    let text = serde_json::to_string_pretty(findings).expect("findings are plain data");
    format!("{text}\n")
}

/// How the worst of them is.
pub fn worst(findings: &[Finding]) -> Health {
    findings.iter().map(|finding| finding.health).max().unwrap_or(Health::Green)
}

async fn api_server(config: &Config, clients: &Clients) -> (cluster::Seen, Vec<Finding>) {
    let unseen = |said: String| {
        let remedy = "check `kubernetes.server`, the service account or the kubeconfig: what is \
                      asked of the cluster was not checked";
        (cluster::Seen::default(), vec![Finding::red(said, remedy)])
    };
    let client = match &clients.kube {
        Ok(client) => client,
        Err(said) => return unseen(said.clone()),
    };
    match reach::api_server(client).await {
        Err(error) => unseen(Chain(&error).to_string()),
        Ok(version) => {
            let now = clients.clock.now();
            let (seen, mut findings) = cluster::examine(config, client, now).await;
            findings.insert(0, version_of(version));
            (seen, findings)
        }
    }
}

fn version_of((major, minor): (u32, u32)) -> Finding {
    let found = format!("the API server is Kubernetes {major}.{minor}");
    if (major, minor) >= OLDEST {
        return Finding::green(found);
    }
    Finding::red(found, format!("Lifeboat needs {}.{} or later", OLDEST.0, OLDEST.1))
}

/// Where doctor's own object lies, beside the namespaces.
pub fn probe_path(config: &Config) -> Path {
    bucket::probe_path(config)
}

/// The first few of many names.
fn few(names: &[String]) -> String {
    let more = if names.len() > 5 { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(5)].join(", "))
}

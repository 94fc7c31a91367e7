//! `lifeboat doctor`: what can be checked before the first interruption, and what to do about it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::PutMode;
use object_store::PutOptions;
use object_store::path::Path;
use serde::Serialize;

use crate::config::Config;
use crate::error::Chain;

pub mod reach;

mod cluster;

/// The oldest Kubernetes that we know: 1.33.
const OLDEST: (u32, u32) = (1, 33);

/// What doctor writes into the bucket, and reads again.
const PROBE: &[u8] = b"lifeboat doctor was here\n";

/// How long a write of a few bytes may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What doctor looks at.
#[derive(Clone)]
pub struct Clients {
    /// The API server.
    pub kube: kube::Client,
    /// The queue.
    pub sqs: aws_sdk_sqs::Client,
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
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
    findings.extend(api_server(config, &clients.kube).await);
    findings.extend(queue(config, &clients.sqs).await);
    findings.push(bucket(config, &*clients.store).await);
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

async fn api_server(config: &Config, client: &kube::Client) -> Vec<Finding> {
    match reach::api_server(client).await {
        Err(error) => {
            let remedy = "check `kubernetes.server`, the service account or the kubeconfig";
            vec![Finding::red(Chain(&error).to_string(), remedy)]
        }
        Ok(version) => {
            let mut findings = vec![version_of(version)];
            findings.extend(cluster::examine(config, client).await);
            findings
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

async fn queue(config: &Config, client: &aws_sdk_sqs::Client) -> Vec<Finding> {
    let url = &config.queue.url;
    let attributes = match reach::queue(client, url).await {
        Ok(attributes) => attributes,
        Err(error) => {
            let remedy = "check `queue.url`, the region and the role's sqs:GetQueueAttributes, \
                          sqs:ReceiveMessage, sqs:DeleteMessage and sqs:ChangeMessageVisibility";
            return vec![Finding::red(Chain(&error).to_string(), remedy)];
        }
    };
    let mut findings = vec![Finding::green(format!("queue `{url}` answers"))];
    if !attributes.contains_key("RedrivePolicy") {
        findings.push(Finding::red(
            "the queue has no dead-letter queue",
            "give it one: a message that nobody can read is left to the redrive",
        ));
    }
    let delay = attributes.get("DelaySeconds").map_or("0", String::as_str);
    if delay != "0" {
        findings.push(Finding::red(
            format!("the queue delays each message by {delay} s"),
            "set DelaySeconds to 0 on ours: only Karpenter's own queue is to wait",
        ));
    }
    findings
}

/// Writes, reads, and tries to create what is there: only a store that refuses that is safe.
async fn bucket(config: &Config, store: &dyn ObjectStore) -> Finding {
    let name = &config.store.bucket;
    let remedy = "check `store.bucket`, `store.region` and the role's s3:PutObject, s3:GetObject \
                  and s3:ListBucket";
    let path = probe_path(config);
    let written = tokio::time::timeout(PATIENCE, write_twice(store, &path)).await;
    match written {
        Err(_elapsed) => Finding::red(format!("bucket `{name}` was not reached in time"), remedy),
        Ok(Err(error)) => {
            Finding::red(format!("bucket `{name}` was not written: {}", Chain(&error)), remedy)
        }
        Ok(Ok(Create::Refused)) => match reach::bucket(store, name, &path).await {
            Ok(Some(content)) if content == PROBE => {
                Finding::green(format!("bucket `{name}` is written, read and created once"))
            }
            Ok(_) => Finding::red(format!("bucket `{name}` gives back something else"), remedy),
            Err(error) => Finding::red(Chain(&error).to_string(), remedy),
        },
        Ok(Ok(Create::Done)) => Finding::red(
            format!("bucket `{name}` creates an object that is there already"),
            "use a store with conditional writes (If-None-Match): without them two writers of one \
             checkpoint cannot be told apart",
        ),
    }
}

/// What became of creating an object that is there already.
enum Create {
    Done,
    Refused,
}

async fn write_twice(store: &dyn ObjectStore, path: &Path) -> object_store::Result<Create> {
    let content = Bytes::from_static(PROBE);
    store.put(path, content.clone().into()).await?;
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.put_opts(path, content.into(), options).await {
        Ok(_) => Ok(Create::Done),
        Err(object_store::Error::AlreadyExists { .. }) => Ok(Create::Refused),
        Err(error) => Err(error),
    }
}

/// Where doctor's own object lies, beside the namespaces.
pub fn probe_path(config: &Config) -> Path {
    Path::from(format!("{}/{}/_doctor/probe", config.store.prefix, config.cluster))
}

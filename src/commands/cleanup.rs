//! `lifeboat cleanup`: takes back every mark of ours, and nothing that anybody else set.

use kube::Client;
use serde_json::json;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::Slots;
use crate::adapters::cluster::Write;
use crate::adapters::cluster::claims;
use crate::adapters::cluster::claims::ClaimRow;
use crate::adapters::cluster::namespaces;
use crate::adapters::cluster::nodes;
use crate::adapters::cluster::nodes::NodeRow;
use crate::adapters::cluster::pods;
use crate::adapters::cluster::pods::PodRow;
use crate::commands::CommandError;
use crate::commands::list;
use crate::commands::rows;
use crate::crd::marks;
use crate::error::Chain;

/// Whether marks are taken back, or only named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Take them back.
    TakeBack,
    /// Only say which there are.
    Name,
}

/// What was found, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One line for each mark.
    pub lines: Vec<String>,
    /// How many could not be taken back.
    pub failed: usize,
}

/// Something that carries marks of ours.
#[derive(Clone, Debug)]
enum Marked {
    /// Taints, cordon, block or pause of a node.
    Node(Box<NodeRow>),
    /// The hold of a pod, and for what it was set.
    Pod(Box<PodRow>, String),
    /// The hold of a replacement that has its node.
    Claim(Box<ClaimRow>),
    /// The pause of a namespace.
    Namespace(String),
}

/// Finds every mark of ours, and takes it back if that is wished.
///
/// The two records stay: they go with their definitions.
pub async fn run(client: &Client, wish: Wish) -> Result<Report, CommandError> {
    let cluster = Cluster::routine(client.clone(), &Slots::new(64, 16));
    let mut report = Report::default();
    for marked in find(&cluster).await? {
        let outcome = match wish {
            Wish::Name => Ok(()),
            Wish::TakeBack => take_back(&cluster, &marked).await,
        };
        let verb = match (wish, &outcome) {
            (Wish::Name, _) => "would take back",
            (Wish::TakeBack, Ok(())) => "took back",
            (Wish::TakeBack, Err(_)) => "did not take back",
        };
        let why = outcome.as_ref().err().map(|error| format!(": {}", Chain(error)));
        report.failed += usize::from(outcome.is_err());
        report.lines.push(format!("{verb} {}{}", named(&marked), why.unwrap_or_default()));
    }
    Ok(report)
}

async fn find(cluster: &Cluster) -> Result<Vec<Marked>, CommandError> {
    let mut found = Vec::new();
    for row in rows::<NodeRow>(&nodes::api(cluster), "the list of nodes").await? {
        if is_marked(&row) {
            found.push(Marked::Node(Box::new(row)));
        }
    }
    for row in rows::<PodRow>(&pods::api(cluster), "the list of pods").await? {
        if let Some(instance) = row.annotation(marks::HELD).map(str::to_owned) {
            found.push(Marked::Pod(Box::new(row), instance));
        }
    }
    // Without Karpenter there are no claims, and no list of them.
    let claims = rows::<ClaimRow>(&claims::api(cluster), "the list of claims").await;
    for row in claims.unwrap_or_default() {
        if row.replaces.is_some() && row.is_kept() {
            found.push(Marked::Claim(Box::new(row)));
        }
    }
    for object in list(&namespaces::api(cluster), "the list of namespaces").await? {
        if object.annotation(marks::PAUSED).is_some() {
            found.push(Marked::Namespace(object.name().to_owned()));
        }
    }
    Ok(found)
}

fn is_marked(row: &NodeRow) -> bool {
    let taints = [marks::INTERRUPTED, marks::AT_RISK];
    let annotations = [marks::CORDONED, marks::BLOCKED, marks::PAUSED];
    taints.iter().any(|key| row.has_taint(key))
        || annotations.iter().any(|key| row.annotation(key).is_some())
}

async fn take_back(cluster: &Cluster, marked: &Marked) -> Result<(), ClusterError> {
    match marked {
        Marked::Node(row) => {
            nodes::take_back(cluster, row).await?;
            match row.annotation(marks::PAUSED) {
                Some(_) => resume(cluster, &format!("/api/v1/nodes/{}", row.name)).await,
                None => Ok(()),
            }
        }
        Marked::Pod(row, instance) => pods::unhold(cluster, row, instance).await,
        Marked::Claim(row) => claims::unblock(cluster, row).await,
        Marked::Namespace(name) => resume(cluster, &format!("/api/v1/namespaces/{name}")).await,
    }
}

async fn resume(cluster: &Cluster, path: &str) -> Result<(), ClusterError> {
    let unmarked = json!({"metadata": {"annotations": {marks::PAUSED: null}}});
    cluster.write(path, Write::MergePatch(unmarked), REQUEST_MAX).await.map(drop)
}

fn named(marked: &Marked) -> String {
    match marked {
        Marked::Node(row) => format!("the marks on node `{}`", row.name),
        Marked::Pod(row, _) => format!("the hold of pod `{}/{}`", row.namespace, row.name),
        Marked::Claim(row) => format!("the hold of claim `{}`", row.name),
        Marked::Namespace(name) => format!("the pause of namespace `{name}`"),
    }
}

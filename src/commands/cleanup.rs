//! `lifeboat cleanup`: takes back every mark of ours, and nothing that anybody else set.

use std::collections::BTreeSet;
use std::time::Duration;

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

/// The controller's Deployment, as the chart calls it.
const CONTROLLER: &str = "lifeboat-controller";
/// How often it is looked for, and the pause between: as long as its grace, twice.
const LOOKS: usize = 60;
const LOOK: Duration = Duration::from_secs(1);
/// Pods that a refusal names.
const NAMED_MAX: usize = 20;

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
    /// Pods that use the volume: while there are any, nothing is taken back.
    pub users: Vec<String>,
}

/// Something that carries marks of ours.
#[derive(Clone, Debug)]
enum Marked {
    /// Taints, cordon, block or pause of a node.
    Node(Box<NodeRow>),
    /// The hold of a pod, and for what it was set.
    Pod(Box<PodRow>, String),
    /// What the webhook could not do for a pod.
    Note(Box<PodRow>),
    /// The hold of a replacement that pods of ours are on.
    Claim(Box<ClaimRow>),
    /// A replacement without a pod of ours, which nobody else deletes.
    Unused(Box<ClaimRow>),
    /// The pause of a namespace.
    Namespace(String),
}

/// Finds every mark of ours, and takes it back if that is wished.
///
/// Refused while pods use the volume: without an agent kubelet cannot take it from them, and they
/// never end. The two records stay: they go with their definitions.
pub async fn run(client: &Client, wish: Wish) -> Result<Report, CommandError> {
    let cluster = Cluster::routine(client.clone(), &Slots::new(64, 16));
    let pods = rows::<PodRow>(&pods::api(&cluster), "the list of pods").await?;
    let users = users(&pods);
    let mut report = Report { users, ..Report::default() };
    if wish == Wish::TakeBack && !report.users.is_empty() {
        return Err(refusal(&report.users));
    }
    for marked in find(&cluster, pods).await? {
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

/// Ends the controller, which would mark again what is taken back, and waits until it has ended.
pub async fn end_controller(client: &Client, namespace: &str) -> Result<(), CommandError> {
    let cluster = Cluster::routine(client.clone(), &Slots::new(64, 16));
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{CONTROLLER}/scale");
    let none = Write::MergePatch(json!({"spec": {"replicas": 0}}));
    match cluster.write(&path, none, REQUEST_MAX).await {
        Ok(_) | Err(ClusterError::NotFound { .. }) => (),
        Err(source) => {
            return Err(CommandError::Write {
                what: format!("deployment `{CONTROLLER}`"),
                source: source.into(),
            });
        }
    }
    let prefix = format!("{CONTROLLER}-");
    for _ in 0..LOOKS {
        let pods = rows::<PodRow>(&pods::api(&cluster), "the list of pods").await?;
        let here = |pod: &&PodRow| pod.namespace == namespace && pod.name.starts_with(&prefix);
        if !pods.iter().filter(here).any(|pod| pod.ended().is_none()) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(CommandError::Refused { what: "the controller has not ended. Run it again".to_owned() })
}

/// Refuses while pods use the volume.
pub async fn check_users(client: &Client) -> Result<(), CommandError> {
    let cluster = Cluster::routine(client.clone(), &Slots::new(64, 16));
    let pods = rows::<PodRow>(&pods::api(&cluster), "the list of pods").await?;
    let users = users(&pods);
    if users.is_empty() { Ok(()) } else { Err(refusal(&users)) }
}

fn users(pods: &[PodRow]) -> Vec<String> {
    // Of one that has ended and is not deleted, kubelet has taken the volume already.
    let uses = |pod: &&PodRow| pod.has_volume && (pod.ended().is_none() || pod.deletion.is_some());
    let using = pods.iter().filter(uses);
    using.map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect()
}

fn refusal(users: &[String]) -> CommandError {
    let named = users.iter().take(NAMED_MAX).map(|user| format!("`{user}`")).collect::<Vec<_>>();
    let rest = users.len().saturating_sub(NAMED_MAX);
    let and_more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let (who, them) = match users.len() {
        1 => ("1 pod still uses".to_owned(), "it"),
        count => (format!("{count} pods still use"), "them"),
    };
    CommandError::Refused {
        what: format!(
            "{who} the volume of Lifeboat's, and would never end without its agent: {}{and_more}. \
             End {them} first",
            named.join(", ")
        ),
    }
}

async fn find(cluster: &Cluster, pods: Vec<PodRow>) -> Result<Vec<Marked>, CommandError> {
    let mut found = Vec::new();
    let protected = pods.iter().filter(|pod| pod.is_protected() && pod.ended().is_none());
    let used: BTreeSet<String> = protected.filter_map(|pod| pod.node.clone()).collect();
    for row in rows::<NodeRow>(&nodes::api(cluster), "the list of nodes").await? {
        if is_marked(&row) {
            found.push(Marked::Node(Box::new(row)));
        }
    }
    for row in pods {
        if row.annotation(marks::NOT_INJECTED).is_some() {
            found.push(Marked::Note(Box::new(row.clone())));
        }
        if let Some(instance) = row.annotation(marks::HELD).map(str::to_owned) {
            found.push(Marked::Pod(Box::new(row), instance));
        }
    }
    // Without Karpenter there are no claims, and no list of them.
    let claims = rows::<ClaimRow>(&claims::api(cluster), "the list of claims").await;
    for row in claims.unwrap_or_default() {
        if row.replaces.is_none() || !row.is_kept() || row.deleted_at.is_some() {
            continue;
        }
        let is_used = row.node.as_ref().is_some_and(|node| used.contains(node));
        let row = Box::new(row);
        found.push(if is_used { Marked::Claim(row) } else { Marked::Unused(row) });
    }
    for object in list(&namespaces::api(cluster), "the list of namespaces").await? {
        if object.annotation(marks::PAUSED).is_some() {
            found.push(Marked::Namespace(object.name().to_owned()));
        }
    }
    Ok(found)
}

fn is_marked(row: &NodeRow) -> bool {
    let taints = [marks::INTERRUPTED, marks::AT_RISK, marks::AGENT_NOT_READY];
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
        Marked::Note(row) => {
            let path = format!("/api/v1/namespaces/{}/pods/{}", row.namespace, row.name);
            let unmarked = json!({"metadata": {"annotations": {marks::NOT_INJECTED: null}}});
            cluster.write(&path, Write::MergePatch(unmarked), REQUEST_MAX).await.map(drop)
        }
        Marked::Claim(row) => claims::unblock(cluster, row).await,
        Marked::Unused(row) => claims::delete(cluster, row).await,
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
        Marked::Note(row) => format!("the note on pod `{}/{}`", row.namespace, row.name),
        Marked::Claim(row) => format!("the hold of claim `{}`", row.name),
        Marked::Unused(row) => format!("claim `{}`, which nobody uses", row.name),
        Marked::Namespace(name) => format!("the pause of namespace `{name}`"),
    }
}

//! What goes wrong in the midst of a storm, and what the API server's own log says of it afterwards.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use http::Request;
use jiff::Timestamp;
use lifeboat::crd::marks;
use serde::Serialize;
use serde_json::Value;

use crate::bench::fleet::Fleet;
use crate::control_plane::audit::Entry;
use crate::world::cluster::object::items;
use crate::world::cluster::object::text;

/// How long etcd stands still, and how long it works in between.
pub(super) const ETCD_STANDS: Duration = Duration::from_millis(300);
/// See [`ETCD_STANDS`].
pub(super) const ETCD_WORKS: Duration = Duration::from_millis(100);
/// How long the other replica may take until it leads and has looked at everything.
const TAKEN_OVER_WITHIN: Duration = Duration::from_mins(2);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(100);
/// Where the Lease is.
const LEASE: &str =
    "/apis/coordination.k8s.io/v1/namespaces/lifeboat-system/leases/lifeboat-controller";
/// Where the records are.
const RECORDS: &str = "/apis/lifeboat.dev/v1alpha1/nodeinterruptions";

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ordeal {
    /// The replica that leads is killed with -9.
    LeaderKilled,
    /// The API server is killed with -9, and started again.
    ApiServerRestarted,
    /// etcd stands still three quarters of the time.
    EtcdSlow,
}

/// What was seen of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Aftermath {
    /// What went wrong.
    pub(super) ordeal: Ordeal,
    /// From the kill of the leader until another replica held the Lease.
    pub(super) taken_over_ms: Option<f64>,
    /// Records that the holder of the Lease has looked at.
    pub(super) reconciled: usize,
    /// Bytes of the body of a fence, a hold and a record, as they were asked for.
    pub(super) bytes: BTreeMap<&'static str, usize>,
    /// Fences, holds and records that were written more than once.
    pub(super) written_twice: Vec<String>,
    /// Nodes of which anything else came before their fence.
    pub(super) fence_not_first: Vec<String>,
    /// Lists of agents since it went wrong.
    pub(super) lists: usize,
    /// Those of them that were not served from the server's cache.
    pub(super) lists_past_the_cache: usize,
    /// Lists in the busiest second, and seconds in which any came.
    pub(super) lists_spread: [usize; 2],
}

/// What is waited for after it: who leads, and that every record was looked at.
pub(super) struct Watched {
    pub(super) taken_over: Option<Duration>,
    pub(super) reconciled: usize,
}

/// The holder of the Lease; empty for nobody.
pub(super) async fn leader(client: &kube::Client) -> anyhow::Result<String> {
    let request = Request::get(LEASE).body(Vec::new())?;
    let lease: Value = serde_json::from_str(&client.request_text(request).await?)?;
    Ok(text(&lease, "/spec/holderIdentity").to_owned())
}

/// Waits until another than `before` leads, where that is given, and each of so many records has a
/// phase.
pub(super) async fn settle(
    client: &kube::Client,
    before: Option<&str>,
    records: usize,
) -> anyhow::Result<Watched> {
    let began = tokio::time::Instant::now();
    let mut watched = Watched { taken_over: None, reconciled: 0 };
    while began.elapsed() < TAKEN_OVER_WITHIN {
        if let (None, Some(before)) = (watched.taken_over, before) {
            let now = leader(client).await?;
            watched.taken_over = (now != before && !now.is_empty()).then(|| began.elapsed());
        }
        watched.reconciled = reconciled(client).await?;
        let taken_over = before.is_none() || watched.taken_over.is_some();
        if taken_over && watched.reconciled >= records {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(watched)
}

async fn reconciled(client: &kube::Client) -> anyhow::Result<usize> {
    let request = Request::get(RECORDS).body(Vec::new())?;
    let records = client.request_text(request).await.context("the records")?;
    let records: Value = serde_json::from_str(&records)?;
    let records = items(&records, "/items");
    Ok(records.iter().filter(|record| !text(record, "/status/phase").is_empty()).count())
}

impl Aftermath {
    /// What the requests of controllers and agents say; it went wrong at `since`.
    pub(super) fn read(
        (ordeal, since): (Ordeal, Timestamp),
        watched: &Watched,
        fleet: &Fleet,
        entries: &[Entry],
    ) -> Self {
        let aid: Vec<(Aid, &Entry)> =
            entries.iter().filter_map(|entry| Some((Aid::of(entry)?, entry))).collect();
        let lists = entries.iter().filter(|entry| {
            entry.verb == "list" && entry.received >= since && entry.uri.contains("fieldSelector=")
        });
        let lists: Vec<&Entry> = lists.collect();
        let mut seconds: BTreeMap<i64, usize> = BTreeMap::new();
        for list in &lists {
            *seconds.entry(list.received.as_second()).or_default() += 1;
        }
        Self {
            ordeal,
            taken_over_ms: watched.taken_over.map(|took| took.as_secs_f64() * 1000.0),
            reconciled: watched.reconciled,
            bytes: bytes(&aid),
            written_twice: written_twice(&aid),
            fence_not_first: fence_not_first(&aid, fleet),
            lists: lists.len(),
            lists_past_the_cache: lists
                .iter()
                .filter(|list| !list.uri.contains("resourceVersion=0"))
                .count(),
            lists_spread: [seconds.values().copied().max().unwrap_or(0), seconds.len()],
        }
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{}: {} records looked at by the holder of the Lease, {} writes done twice, \
             {} nodes not fenced first",
            self.ordeal.label(),
            self.reconciled,
            self.written_twice.len(),
            self.fence_not_first.len()
        )];
        let bytes: Vec<String> =
            self.bytes.iter().map(|(what, bytes)| format!("{what} {bytes}")).collect();
        lines.push(format!("bytes of a request's body: {}", bytes.join(", ")));
        if let Some(took) = self.taken_over_ms {
            lines.push(format!("the Lease was taken over after {took:.0} ms"));
        }
        if self.lists > 0 {
            let [most, seconds] = self.lists_spread;
            lines.push(format!(
                "{} lists of agents, {} not from the cache; {most} in the busiest of {seconds} s",
                self.lists, self.lists_past_the_cache
            ));
        }
        lines
    }
}

impl Ordeal {
    fn label(self) -> &'static str {
        match self {
            Self::LeaderKilled => "leader killed",
            Self::ApiServerRestarted => "API server restarted",
            Self::EtcdSlow => "etcd slow",
        }
    }
}

/// What a request did for a node, if it is of first aid and was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aid {
    Fence,
    Hold,
    Record,
}

impl Aid {
    fn label(self) -> &'static str {
        match self {
            Self::Fence => "fence",
            Self::Hold => "hold",
            Self::Record => "record",
        }
    }

    fn of(entry: &Entry) -> Option<Self> {
        let accepted = (200..300).contains(&entry.code) && entry.subresource.is_empty();
        if !accepted || entry.verb != "patch" {
            return None;
        }
        match entry.resource.as_str() {
            "nodes" => entry.names(marks::INTERRUPTED).then_some(Self::Fence),
            "pods" => entry.names(marks::HELD).then_some(Self::Hold),
            // An apply that makes the object is answered with 201.
            "nodeinterruptions" => (entry.code == 201).then_some(Self::Record),
            _ => None,
        }
    }
}

impl Entry {
    /// Whether what was sent speaks of this.
    fn names(&self, what: &str) -> bool {
        // Slashes are escaped in the paths of a JSON patch.
        let escaped = what.replace('/', "~1");
        let sent = self.sent.as_ref().map(Value::to_string).unwrap_or_default();
        sent.contains(what) || sent.contains(&escaped)
    }
}

fn bytes(aid: &[(Aid, &Entry)]) -> BTreeMap<&'static str, usize> {
    let mut sums: BTreeMap<&'static str, [usize; 2]> = BTreeMap::new();
    for (aid, entry) in aid {
        let sum = sums.entry(aid.label()).or_default();
        sum[0] += entry.sent.as_ref().map_or(0, |sent| sent.to_string().len());
        sum[1] += 1;
    }
    sums.into_iter().map(|(what, [bytes, count])| (what, bytes / count)).collect()
}

fn written_twice(aid: &[(Aid, &Entry)]) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (aid, entry) in aid {
        *counts.entry(format!("{} {}", aid.label(), entry.name)).or_default() += 1;
    }
    counts.into_iter().filter(|(_, count)| *count > 1).map(|(what, _)| what).collect()
}

/// Nodes that were not fenced before their record and their holds were asked for.
fn fence_not_first(aid: &[(Aid, &Entry)], fleet: &Fleet) -> Vec<String> {
    let mut fenced = BTreeMap::new();
    let mut others: Vec<(usize, Timestamp)> = Vec::new();
    for (aid, entry) in aid {
        let number = match aid {
            Aid::Fence => fleet.number(&entry.name),
            // Pods are named after their node.
            Aid::Hold => entry.name.rsplit_once('-').and_then(|(node, _)| fleet.number(node)),
            Aid::Record => fleet.number_of(&entry.name),
        };
        match (aid, number) {
            (Aid::Fence, Some(number)) => drop(fenced.insert(number, entry.received)),
            (Aid::Hold | Aid::Record, Some(number)) => others.push((number, entry.received)),
            (_, None) => (),
        }
    }
    let late =
        |(number, at): &(usize, Timestamp)| fenced.get(number).is_none_or(|fence| at < fence);
    let late: BTreeSet<usize> = others.iter().filter(|one| late(one)).map(|one| one.0).collect();
    late.into_iter().map(|number| fleet.node(number)).collect()
}

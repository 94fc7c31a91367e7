//! Agents, as far as the API server sees them: each with a client of its own, and the watches that
//! production opens.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use lifeboat::adapters::cluster::Cluster;
use lifeboat::adapters::cluster::Slots;
use lifeboat::adapters::cluster::interruptions;
use lifeboat::adapters::cluster::interruptions::InterruptionRow;
use lifeboat::adapters::cluster::namespaces;
use lifeboat::adapters::cluster::namespaces::NamespaceRow;
use lifeboat::adapters::cluster::nodes;
use lifeboat::adapters::cluster::nodes::NodeRow;
use lifeboat::adapters::cluster::pods;
use lifeboat::adapters::cluster::pods::PodRow;
use lifeboat::adapters::cluster::rows::Change;
use lifeboat::adapters::cluster::rows::Row;
use lifeboat::adapters::cluster::rows::Rows;
use lifeboat::agent::listen::objects::Own;
use lifeboat_domain::ids::NodeName;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::bench::fleet::Fleet;
use crate::bench::ground::Ground;

/// Watches of each agent.
const WATCHES: usize = 4;
/// How long it may take until all of them are open.
const OPEN_WITHIN: Duration = Duration::from_mins(3);

/// Agents of a fleet's nodes, and beyond them of nodes that are not there; dropping it closes their
/// watches.
pub(super) struct Crowd {
    agents: usize,
    synced: Arc<Counted>,
    _watches: JoinSet<()>,
}

/// Lists that were read, over all agents.
#[derive(Default)]
struct Counted {
    lists: AtomicUsize,
    more: Notify,
}

impl Crowd {
    /// Opens them, and returns when each has read its lists.
    pub(super) async fn gather(
        ground: &Ground,
        fleet: &Fleet,
        agents: usize,
    ) -> anyhow::Result<Self> {
        let (synced, mut watches) = (Arc::<Counted>::default(), JoinSet::new());
        for number in 0..agents {
            let node: NodeName = fleet.node(number).parse().context("the name of a node")?;
            let cluster = Cluster::routine(ground.client().await?, &Slots::new(8, 0));
            watches.spawn(follow(cluster, node, synced.clone()));
        }
        let crowd = Self { agents: watches.len(), synced, _watches: watches };
        crowd.has_read(WATCHES * crowd.agents).await.context("agents that read their lists")?;
        Ok(crowd)
    }

    /// How many there are.
    pub(super) fn agents(&self) -> usize {
        self.agents
    }

    async fn has_read(&self, lists: usize) -> anyhow::Result<()> {
        let all = async {
            loop {
                let more = self.synced.more.notified();
                if self.synced.lists.load(Ordering::Relaxed) >= lists {
                    return;
                }
                more.await;
            }
        };
        Ok(tokio::time::timeout(OPEN_WITHIN, all).await?)
    }
}

async fn follow(cluster: Cluster, node: NodeName, synced: Arc<Counted>) {
    let (own, whose) = (Own::of(&node), node.as_str());
    let pods_api = pods::api(&cluster);
    let (pods, nodes) = (Rows::<PodRow>::default(), Rows::<NodeRow>::default());
    let records = Rows::<InterruptionRow>::default();
    let namespaces = Rows::<NamespaceRow>::default();
    futures::join!(
        pods.follow((pods_api, own.pods), whose, |change| synced.count(&change)),
        nodes.follow((nodes::api(&cluster), own.node), whose, |change| synced.count(&change)),
        records.follow((interruptions::api(&cluster), own.records), whose, |change| {
            synced.count(&change);
        }),
        namespaces.follow((namespaces::api(&cluster), own.namespaces), whose, |change| {
            synced.count(&change);
        }),
    );
}

impl Counted {
    fn count<R: Row>(&self, change: &Change<'_, R>) {
        if let Change::Synced = change {
            self.lists.fetch_add(1, Ordering::Relaxed);
            self.more.notify_waiters();
        }
    }
}

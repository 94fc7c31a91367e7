//! Puts the programs together: clients from the configuration, and the services over any clients.

mod connect;
mod reach;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use lifeboat_domain::policy::BackgroundPolicy;
use object_store::ObjectStore;
use tokio::net::TcpListener;
use tracing::warn;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::Slots;
use crate::adapters::imds;
use crate::adapters::store::Store;
use crate::agent;
use crate::agent::workloads::Means;
use crate::agent::workloads::Place;
use crate::clock::Clock;
use crate::config::Config;
use crate::controller;
use crate::data::scheduler::Limits;
use crate::data::scheduler::Scheduler;
use crate::data::spool::Spool;
use crate::offload::Offload;
use crate::shutdown::Shutdown;

pub use connect::ConnectError;
pub use connect::bucket;
pub use connect::kubernetes;
pub use connect::queue;
pub use connect::signed;
pub use reach::reach_agent;
pub use reach::reach_controller;

/// Requests to the API server that an agent has in flight at a time.
const AGENT_SLOTS: usize = 8;

/// What the controller speaks to the world with. Tests hand in clients that end in simulators.
#[derive(Clone)]
pub struct ControllerClients {
    /// The API server. Nothing is tried again by itself.
    pub kube: kube::Client,
    /// The API server, on a connection of its own: first aid waits for nobody.
    pub first_aid: kube::Client,
    /// The queue.
    pub sqs: aws_sdk_sqs::Client,
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
}

/// What the agent speaks to the world with.
#[derive(Clone)]
pub struct AgentClients {
    /// The API server, which it can do without.
    pub kube: kube::Client,
    /// The instance metadata service.
    pub imds: imds::Service,
    /// The bucket.
    pub store: Arc<dyn ObjectStore>,
}

/// What the agent takes from its process: a simulation hands in its own.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The time.
    pub clock: Clock,
    /// Where blocking work runs.
    pub offload: Offload,
}

/// Why a service ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The port of the webhook.
    #[error("`webhook.listen` {listen} was not bound")]
    Webhook {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Something of the machine that it cannot do without.
    #[error("the {service} did not start")]
    Start {
        /// Which service.
        service: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Runs the controller until it is asked to end.
pub async fn controller(
    config: Config,
    clients: ControllerClients,
    clock: Clock,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let webhook = match config.webhook.listen {
        Some(listen) => {
            let bound = TcpListener::bind(listen).await;
            Some(bound.map_err(|source| RunError::Webhook { listen, source })?)
        }
        None => None,
    };
    let parts = controller::Parts {
        webhook,
        kube: clients.kube,
        first_aid: clients.first_aid,
        sqs: clients.sqs,
        store: clients.store,
        clock,
        config,
    };
    controller::run(parts, shutdown).await;
    Ok(())
}

/// Runs the agent until it is asked to end, and its work is done.
pub async fn agent(
    config: Config,
    clients: AgentClients,
    runtime: Runtime,
    shutdown: Shutdown,
) -> Result<(), RunError> {
    let Runtime { clock, offload } = runtime;
    let limits = Limits {
        in_flight: config.store.in_flight,
        connections: config.store.connections,
        bandwidth: config.agent.bandwidth,
        ring_budget: config.agent.ring_budget,
    };
    let place = Place {
        cluster: config.cluster.clone(),
        node: config.agent.node_name.clone(),
        instance: None,
        prefix: config.store.prefix.clone(),
        chunk: config.store.chunk,
        in_flight: config.store.in_flight,
    };
    let spool = spool(&config);
    let store = Store::new(clients.store, clock.clone(), offload);
    let node = config.agent.node_name.parse().map_err(|fault| start("agent", fault))?;
    let policy = config.policy().clone();
    let deps = agent::Deps {
        node,
        namespace: config.namespace,
        host_root: config.agent.host_root,
        nvml_library: config.agent.nvml_library,
        grace: config.agent.grace,
        policy,
        cluster: Cluster::routine(clients.kube, &Slots::new(AGENT_SLOTS, 0)),
        imds: clients.imds,
        imds_endpoint: config.agent.imds_endpoint,
        means: Means {
            scheduler: Scheduler::new(limits, store.slow_downs(), offload),
            store,
            clock: clock.clone(),
            offload,
            place,
            spool,
        },
        clock,
        offload,
    };
    agent::run(deps, shutdown).await.map_err(|fault| start("agent", fault))
}

/// Where memory is put that is saved in the background; none where that is not wanted. Without a
/// folder of it work goes on as without a spool.
fn spool(config: &Config) -> Option<Spool> {
    let folder = config.agent.spool.as_ref()?;
    if config.policy().background == BackgroundPolicy::Never {
        return None;
    }
    let below = folder.strip_prefix("/").unwrap_or(folder);
    let folder = config.agent.host_root.join(below);
    match Spool::open(&folder, config.agent.spool_budget) {
        Ok(spool) => Some(spool),
        Err(error) => {
            let folder = folder.display();
            warn!(%folder, %error, "no spool: memory is not saved in the background");
            None
        }
    }
}

fn start(service: &'static str, fault: impl std::error::Error + Send + Sync + 'static) -> RunError {
    RunError::Start { service, source: Box::new(fault) }
}

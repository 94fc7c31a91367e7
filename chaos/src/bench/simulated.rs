//! The storm in the simulator: virtual time, the production controller, and an API server that
//! carries no more than was measured, so that the curve beyond this machine is checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::Method;
use lifeboat::clock::Clock;
use lifeboat::config::Config;
use lifeboat::config::Program;
use lifeboat::config::Sources;
use lifeboat::shutdown::Shutdown;
use lifeboat::wiring;
use lifeboat::wiring::ControllerClients;
use serde_json::Value;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bench::figures::Figures;
use crate::bench::figures::Floor;
use crate::bench::figures::Quantiles;
use crate::bench::fleet::Fleet;
use crate::bench::fleet::NAMESPACE;
use crate::bench::floor;
use crate::bench::post::Post;
use crate::bench::storm;
use crate::bench::storm::Options;
use crate::bench::witness::Edge;
use crate::bench::witness::Sight;
use crate::bench::witness::Witness;
use crate::programs;
use crate::serve;
use crate::wire;
use crate::wire::Wire;
use crate::world::World;
use crate::world::cluster::resource::NAMESPACE as NAMESPACES;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::POD;

/// Requests that the API server works on at a time: the processors of the machine that was measured.
const WORKERS: u32 = 2;
/// What one request costs besides work: the way there and back, and etcd's disk.
const LATENCY: Duration = Duration::from_millis(2);
/// How long one call of SQS takes, as within a region.
const QUEUE_LATENCY: Duration = Duration::from_millis(10);
/// How long all nodes together may take, in virtual time.
const ANSWERED_WITHIN: Duration = Duration::from_hours(1);

/// Runs it in virtual time; answers whether every node got all that it waits for.
pub(super) fn run(options: &Options) -> anyhow::Result<bool> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    let figures = runtime.block_on(storm(options))?;
    storm::show(options, &figures)?;
    Ok(figures.is_whole())
}

async fn storm(options: &Options) -> anyhow::Result<Figures> {
    let beginning = "2026-11-22T12:00:00Z".parse().context("a time")?;
    let world = World::new(Clock::starting_at(beginning, 1_000), 1);
    let fleet = Fleet::new("storm", options.nodes, options.pods).held(options.hold);
    let others = Fleet::new("floor", options.nodes, 0);
    put(&world, &[&fleet, &others]);
    let server = Server::new(options.patches_per_second);
    let watched = serve::kube_client(&wire::kube::wire(&world, "bench"), "default");
    let (witness, _watches) = Witness::start(&watched, (&fleet, Sight::OURS), world.clock()).await;
    let bare = serve::kube_client(&server.before(wire::kube::wire(&world, "floor")), "default");
    let patches = floor::Patches { at_a_time: 64, pauses: None };
    let floor = floor::pass((&bare, world.clock()), (&others, &witness), patches).await?;
    let post = Post::new(&world, &fleet, &witness);
    let mut controllers = JoinSet::new();
    for replica in 0..options.replicas {
        controllers.spawn(controller(world.clone(), server.clone(), post.wire(), replica));
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    let before = requests(&world);
    for number in 0..fleet.nodes {
        post.send(number)?;
    }
    witness.all(fleet.nodes, ANSWERED_WITHIN).await;
    let after = requests(&world);
    Ok(figures(options, (&witness, &post), floor, (&before, &after)))
}

fn put(world: &World, fleets: &[&Fleet]) {
    world.update(|state| {
        for name in [NAMESPACE, "lifeboat-system"] {
            state.cluster.put(NAMESPACES, json!({ "metadata": { "name": name } }));
        }
        for fleet in fleets {
            for number in 0..fleet.nodes {
                state.cluster.put(NODE, fleet.node_object(number));
                for pod in 0..fleet.pods {
                    let name = format!("{}-{pod}", fleet.node(number));
                    state.cluster.put(POD, running(fleet.pod_object(number, &name)));
                }
            }
        }
    });
}

fn running(mut pod: Value) -> Value {
    pod["status"] = json!({
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "True" }],
        "containerStatuses": [{ "name": "train", "state": { "running": {} } }],
    });
    pod
}

async fn controller(world: World, server: Server, queue: Wire, replica: usize) {
    let name = format!("lifeboat-controller-{replica}");
    let kube = || {
        let wire = server.before(wire::kube::wire(&world, &name));
        serve::kube_client(&wire, "lifeboat-system")
    };
    let store = serve::s3_store(&wire::s3::s3(world.clone()), programs::BUCKET);
    let clients = ControllerClients {
        kube: kube(),
        first_aid: kube(),
        sqs: serve::sqs_client(&late(queue)),
        store: Arc::new(store.expect("the simulated store has all it needs")),
    };
    let config = config(&world, &name);
    let ended = wiring::controller(config, clients, world.clock().clone(), Shutdown::new()).await;
    if let Err(error) = ended {
        tracing::error!(%error, name, "controller ended");
    }
}

fn config(world: &World, name: &str) -> Config {
    let account = world.read(|state| state.instances.account().to_owned());
    let queue = format!("http://sqs.simulated/{account}/{}", programs::QUEUE);
    let flags = [
        ("cluster", "simulated"),
        ("region", serve::REGION),
        ("queue.url", &queue),
        ("store.bucket", programs::BUCKET),
        ("lease.identity", name),
    ];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let sources = Sources { flags, ..Sources::default() };
    Config::load(Program::Controller, &sources)
        .unwrap_or_else(|faults| panic!("the bench's settings: {faults}"))
}

/// An API server that works on a few requests at a time.
#[derive(Clone)]
struct Server {
    workers: Arc<Semaphore>,
    patch: Duration,
}

impl Server {
    fn new(patches_per_second: f64) -> Self {
        Self {
            workers: Arc::new(Semaphore::new(WORKERS as usize)),
            patch: Duration::from_secs_f64(f64::from(WORKERS) / patches_per_second),
        }
    }

    /// The wire behind it. Reads are served from its cache, and cost nothing here.
    fn before(&self, inner: Wire) -> Wire {
        let server = self.clone();
        wire::wire(move |request: wire::Request| {
            let (server, inner) = (server.clone(), inner.clone());
            async move {
                if request.method() != Method::GET {
                    let work = server.workers.acquire().await?;
                    tokio::time::sleep(server.work(&request)).await;
                    drop(work);
                    tokio::time::sleep(LATENCY).await;
                }
                wire::call(&inner, request).await
            }
        })
    }

    /// What a request costs, in patches: a record is applied, which takes its schema and owners.
    fn work(&self, request: &wire::Request) -> Duration {
        let path = request.uri().path();
        if path.contains("/nodeinterruptions/") { self.patch.mul_f64(APPLY) } else { self.patch }
    }
}

/// What an apply of a record costs, in fencing patches.
const APPLY: f64 = 1.5;

/// A queue as far away as SQS is.
fn late(inner: Wire) -> Wire {
    wire::wire(move |request| {
        let inner = inner.clone();
        async move {
            tokio::time::sleep(QUEUE_LATENCY).await;
            wire::call(&inner, request).await
        }
    })
}

fn requests(world: &World) -> BTreeMap<String, f64> {
    world.read(|state| {
        let mut requests = BTreeMap::new();
        for (request, count) in state.cluster.audit.requests() {
            if request.agent.starts_with("lifeboat-controller") && request.verb != "watch" {
                let name = format!("{} {}", request.verb.to_uppercase(), request.resource);
                #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
                let count = *count as f64;
                *requests.entry(name).or_insert(0.0) += count;
            }
        }
        requests
    })
}

#[expect(clippy::cast_precision_loss, reason = "a count of nodes")]
fn figures(
    options: &Options,
    (witness, post): (&Witness, &Post),
    floor: Floor,
    (before, after): (&BTreeMap<String, f64>, &BTreeMap<String, f64>),
) -> Figures {
    let edges = Edge::ALL
        .map(|edge| (edge.label(), Quantiles::of(witness.times(edge), witness.last(edge))));
    let edges = BTreeMap::from(edges);
    let nodes = options.nodes as f64;
    let requests: BTreeMap<String, f64> = after
        .iter()
        .map(|(name, count)| {
            (name.clone(), (count - before.get(name).copied().unwrap_or(0.0)) / nodes)
        })
        .filter(|(_, count)| *count >= 0.005)
        .collect();
    Figures {
        nodes: options.nodes,
        pods: options.pods,
        replicas: options.replicas,
        order: "all at once",
        ground: format!(
            "simulated, in virtual time: {} patches a second, SQS {} ms away",
            options.patches_per_second,
            QUEUE_LATENCY.as_millis()
        ),
        load: 0.0,
        times_floor: Some(edges["fenced"].last_ms / floor.whole_ms()),
        aftermath: None,
        agents: 0,
        floors: vec![floor],
        edges,
        requests_settled: requests.clone(),
        requests,
        requests_floor: BTreeMap::new(),
        etcd_bytes: [0.0; 3],
        queue: post.counts(),
        programs: Vec::new(),
    }
}

//! The node's side of an interruption: hears, observes, decides, acts and reports, in that order,
//! again and again.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lifeboat_domain::cluster::plan::Next;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::ids::NodeName;
use lifeboat_domain::ids::NotAName;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node;
use lifeboat_domain::node::facts::NodeFacts;
use lifeboat_domain::node::facts::Restore;
use lifeboat_domain::node::plan::Hand;
use lifeboat_domain::node::plan::Plan;
use lifeboat_domain::policy::Policy;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;
use tracing::debug;
use tracing::error;
use tracing::info;
use tracing::info_span;
use tracing::warn;

use crate::adapters::cluster::Cluster;
use crate::adapters::imds;
use crate::adapters::imds::Imds;
use crate::adapters::kubelet::PodResourcesClient;
use crate::adapters::proc;
use crate::adapters::proc::Motion;
use crate::adapters::proc::Proc;
use crate::agent::act::Hands;
use crate::agent::bell::Bell;
use crate::agent::bell::Ear;
use crate::agent::csi::Csi;
use crate::agent::csi::Host;
use crate::agent::csi::Listeners;
use crate::agent::listen::Ears;
use crate::agent::listen::objects::Objects;
use crate::agent::observe::Observer;
use crate::agent::observe::Sources;
use crate::agent::pods::Pods;
use crate::agent::pods::Presence;
use crate::agent::pods::Volume;
use crate::agent::proofs::Proofs;
use crate::agent::proofs::Question;
use crate::agent::records::Records;
use crate::agent::release::Eyes;
use crate::agent::report::Post;
use crate::agent::report::Reporter;
use crate::agent::senses::Organs;
use crate::agent::senses::Senses;
use crate::agent::workloads::Driver;
use crate::agent::workloads::Means;
use crate::clock::Clock;
use crate::error::Chain;
use crate::metrics;
use crate::offload::Offload;
use crate::shutdown::Shutdown;
use crate::telemetry;

pub mod act;
pub mod bell;
pub mod csi;
pub mod listen;
pub mod observe;
pub mod outlook;
pub mod pods;
pub mod proofs;
pub mod records;
pub mod release;
pub mod report;
pub mod senses;
pub mod workloads;

/// Shortest time between two passes: many changes at once are one.
const PASS_GAP: Duration = Duration::from_millis(20);

/// Longest time between two passes, whatever the plan says.
const PASS_MAX: Duration = Duration::from_secs(30);

/// How long a pod is known after its end.
const KEPT_AFTER_END: Duration = Duration::from_mins(2);

/// How long the last reports may take once all else is done.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the agent is given.
#[derive(Clone)]
pub struct Deps {
    /// The node.
    pub node: NodeName,
    /// Our own namespace.
    pub namespace: String,
    /// What all host paths begin with.
    pub host_root: PathBuf,
    /// The NVML library; absent, the loader searches.
    pub nvml_library: Option<PathBuf>,
    /// How long the agent goes on after SIGTERM with work in hand.
    pub grace: Duration,
    /// The operator's knobs.
    pub policy: Policy,
    /// The API server, which it can do without.
    pub cluster: Cluster,
    /// The metadata service.
    pub imds: imds::Service,
    /// Where that is.
    pub imds_endpoint: String,
    /// The means of the registry of workloads.
    pub means: Means,
    /// The time.
    pub clock: Clock,
    /// Where blocking work runs.
    pub offload: Offload,
}

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// `agent.nodeName` is none.
    #[error("the agent's node has no name")]
    Node(#[from] NotAName),
    /// Kubelet's folders are not there, or not ours to write.
    #[error("the volume driver's sockets were not made below `{}`", root.display())]
    Sockets {
        /// The host's root.
        root: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something of it ended that should not: the program is started again.
    #[error("a part of the agent ended by itself")]
    Part,
}

/// Runs the agent until it is asked to end and its work is done. All it does ends with it.
pub async fn run(deps: Deps, shutdown: Shutdown) -> Result<(), AgentError> {
    proc::allow_open_files();
    let agent = Agent::start(deps).await?;
    agent.run(shutdown).await
}

/// The agent, put together.
struct Agent {
    deps: Deps,
    sources: Sources,
    observer: Observer,
    hands: Hands,
    ear: Ear,
    tasks: JoinSet<()>,
}

/// What woke the loop.
enum Woken {
    ByChange,
    ByTime,
    ToEnd,
    ToEndAtOnce,
    ByFault,
}

impl Agent {
    /// What was known before this life comes first: then a notice finds everybody.
    async fn start(deps: Deps) -> Result<Self, AgentError> {
        let bell = Bell::new();
        let ear = bell.ear();
        let records = Records::new(&deps.host_root, deps.offload);
        let name = format!("agent/{}", deps.node);
        let clock = deps.clock.clone();
        let ears = Ears::load(records.clone(), clock.clone(), &name, bell.clone()).await;
        let mut means = deps.means.clone();
        means.place.instance = ears.instance().map(|instance| instance.to_string());
        let (workloads, driver) = workloads::registry(means);
        let pods = Pods::load(records, workloads.clone(), bell.clone()).await;
        let host = Host::new(&deps.host_root);
        pods.mount_again(&host);

        let proc = Proc::new(&deps.host_root, deps.offload);
        let frozen = frozen(&proc, &pods).await;
        let reporter = Reporter::new(bell.clone());
        let sources = Sources {
            node: deps.node.clone(),
            clock: clock.clone(),
            ears,
            pods: pods.clone(),
            objects: Objects::new(deps.node.clone(), &deps.namespace, bell.clone()),
            senses: Senses::new(clock, bell.clone()),
            workloads: workloads.clone(),
            proofs: Proofs::new(bell),
            reporter: reporter.clone(),
        };
        let csi = Csi::new(deps.node.as_str(), host, pods);
        let listeners = csi.listen().map_err(|source| {
            let root = deps.host_root.clone();
            AgentError::Sockets { root, source }
        })?;
        let senses = sources.senses.clone();
        let mut agent = Self {
            observer: Observer::new(sources.clone(), frozen),
            hands: Hands::new(workloads, senses, proc, reporter),
            deps,
            sources,
            ear,
            tasks: JoinSet::new(),
        };
        agent.spawn(driver, csi, listeners);
        Ok(agent)
    }

    /// Everything that goes on by itself. Dropping the agent ends it.
    fn spawn(&mut self, driver: Driver, csi: Csi, listeners: Listeners) {
        let (deps, sources) = (self.deps.clone(), self.sources.clone());
        self.task("workloads", driver.run());
        let imds = Imds::new(deps.imds, &deps.imds_endpoint);
        let ears = sources.ears.clone();
        self.task("imds", async move { ears.follow_imds(imds).await });
        self.task("csi", csi.serve(listeners));
        let pods = sources.pods.clone();
        self.task("records", async move { pods.keep().await });
        let organs = Organs {
            kubelet: PodResourcesClient::new(&deps.host_root),
            eyes: Eyes::new(deps.nvml_library, self.hands.proc.clone(), deps.offload),
            pods: sources.pods.clone(),
        };
        let senses = sources.senses.clone();
        self.task("senses", async move { senses.run(organs).await });
        let (objects, cluster) = (sources.objects.clone(), deps.cluster.clone());
        let pods = sources.pods.clone();
        self.task("objects", async move { objects.follow(&cluster, &pods).await });
        let (proofs, cluster) = (sources.proofs.clone(), deps.cluster.clone());
        self.task("proofs", async move { proofs.run(cluster).await });
        let post = Post {
            cluster: deps.cluster,
            ears: sources.ears,
            objects: sources.objects,
            node: deps.node,
            clock: deps.clock,
        };
        let reporter = sources.reporter;
        self.task("report", async move { reporter.run(post).await });
    }

    fn task(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work.instrument(info_span!("task", name)));
    }

    async fn run(mut self, shutdown: Shutdown) -> Result<(), AgentError> {
        telemetry::ready("agent");
        let mut leave_by = None;
        let mut outcome = Ok(());
        loop {
            let began = Instant::now();
            let plan = self.pass().await;
            let is_time = leave_by.is_some_and(|by| Instant::now() >= by);
            if is_time || (leave_by.is_some() && plan.hand == Hand::Idle) {
                self.leave(plan.hand).await;
                return outcome;
            }
            tokio::time::sleep_until(began + PASS_GAP).await;
            let until = self.due(&plan, leave_by);
            match self.wait(&shutdown, until, leave_by.is_some()).await {
                Woken::ByChange | Woken::ByTime => (),
                Woken::ToEnd => {
                    info!(hand = ?plan.hand, "asked to end");
                    leave_by = Some(Instant::now() + self.deps.grace);
                }
                Woken::ByFault => {
                    outcome = Err(AgentError::Part);
                    leave_by = leave_by.or(Some(Instant::now() + self.deps.grace));
                }
                Woken::ToEndAtOnce => {
                    warn!(hand = ?plan.hand, "asked twice to end");
                    return outcome;
                }
            }
        }
    }

    /// One look, one plan, and what it says.
    async fn pass(&mut self) -> Plan {
        let facts = self.observer.observe();
        let plan = node::plan::plan(&facts, &self.deps.policy, facts.observed_at);
        note(&facts, &plan);
        self.hands.foretell(&facts);
        self.hands.act(&plan, &facts, &mut self.observer).await;
        self.sources.senses.know(&facts);
        self.sources.proofs.ask(questions(&facts));
        for (pod, job_key, stored) in self.sources.workloads.ends() {
            self.sources.reporter.finished(&pod, &job_key, stored);
        }
        self.sweep(&facts);
        metrics::workloads(facts.workloads.len());
        plan
    }

    /// When to look again at the latest.
    fn due(&self, plan: &Plan, leave_by: Option<Instant>) -> Instant {
        let now = self.deps.clock.now();
        let pause = match plan.next {
            Next::At(at) => Deadline::new(at).left(now).min(PASS_MAX),
            Next::OnChange | Next::Never => PASS_MAX,
        };
        let until = Instant::now() + pause;
        leave_by.map_or(until, |by| until.min(by))
    }

    async fn wait(&mut self, shutdown: &Shutdown, until: Instant, leaving: bool) -> Woken {
        tokio::select! {
            biased;
            () = shutdown.at_once() => Woken::ToEndAtOnce,
            () = shutdown.requested(), if !leaving => Woken::ToEnd,
            () = self.ear.rung() => Woken::ByChange,
            () = self.hands.workloads.changed() => Woken::ByChange,
            Some(ended) = self.tasks.join_next() => {
                error!(panicked = ended.is_err(), "a part of the agent ended");
                Woken::ByFault
            }
            () = tokio::time::sleep_until(until) => Woken::ByTime,
        }
    }

    /// Forgets the pods that have been over for a while: kubelet took their volume or the API
    /// server has them no more, and nothing interrupts the node, where all that happened is still
    /// to be told. Until then their end is what lets a successor on this node through.
    fn sweep(&mut self, facts: &NodeFacts) {
        if facts.signals.deadline().is_some() {
            return;
        }
        for pod in self.sources.pods.all() {
            let is_gone = pod.presence == Presence::Gone && pod.volume != Volume::Mounted;
            if !is_gone && pod.volume != Volume::Unmounted {
                continue;
            }
            let uid = &pod.record.pod.uid;
            let ended_at = self.observer.ended_at(uid).unwrap_or(facts.observed_at);
            if elapsed(ended_at, facts.observed_at) < KEPT_AFTER_END {
                continue;
            }
            let saving = facts.workloads.get(uid).is_some_and(|known| {
                !known.report.checkpoint.is_settled() && known.asked != node::facts::Asked::Nothing
            });
            if !saving {
                debug!(pod = %pod.record.pod, "pod forgotten");
                self.sources.pods.forget(uid);
                self.observer.forget(uid);
                self.hands.forget(uid);
            }
        }
    }

    async fn leave(self, hand: Hand) {
        let told = tokio::time::timeout(LAST_WORDS, self.sources.reporter.drained()).await;
        info!(hand = ?hand, told = told.is_ok(), "agent ends");
    }
}

/// Facts and plan of every pass that takes a step, so that they can be decided again.
fn note(facts: &NodeFacts, plan: &Plan) {
    if plan.steps.is_empty() || !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    let facts = serde_json::to_string(facts).unwrap_or_default();
    let plan = serde_json::to_string(plan).unwrap_or_default();
    debug!(facts, plan, "pass");
}

/// The pods that an agent before this one left frozen.
async fn frozen(proc: &Proc, pods: &Pods) -> BTreeSet<PodUid> {
    let mut frozen = BTreeSet::new();
    for pod in pods.all() {
        let uid = pod.record.pod.uid;
        match proc.motion(&uid).await {
            Ok(Motion::Frozen) => {
                frozen.insert(uid);
            }
            Ok(Motion::Running) => (),
            Err(error) => debug!(pod = %uid, error = %Chain(&error), "not known if frozen"),
        }
    }
    frozen
}

/// Whose end is waited for by the restores of this node.
fn questions(facts: &NodeFacts) -> BTreeSet<Question> {
    let waiting = facts.workloads.values().filter_map(|workload| match &workload.restore {
        Restore::Waiting { from, .. } => Some(Question {
            namespace: workload.pod.namespace.clone(),
            job_key: workload.job_key.clone()?,
            from: from.clone(),
        }),
        Restore::No | Restore::Allowed { .. } | Restore::Unknown => None,
    });
    waiting.collect()
}

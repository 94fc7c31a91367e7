//! `chaos bench storm`: as many notices at once as there are nodes, and how soon each is answered.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use lifeboat::clock::Clock;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::bench::beside_us;
use crate::bench::counters::Counters;
use crate::bench::crowd::Crowd;
use crate::bench::figures::Figures;
use crate::bench::figures::Floor;
use crate::bench::figures::Quantiles;
use crate::bench::fleet;
use crate::bench::fleet::Fleet;
use crate::bench::fleet::Hold;
use crate::bench::floor;
use crate::bench::ground::Ground;
use crate::bench::ordeal;
use crate::bench::ordeal::Aftermath;
use crate::bench::ordeal::Ordeal;
use crate::bench::post::Doors;
use crate::bench::post::Post;
use crate::bench::program;
use crate::bench::program::Controller;
use crate::bench::screen;
use crate::bench::screen::Screen;
use crate::bench::witness::Edge;
use crate::bench::witness::Sight;
use crate::bench::witness::Witness;
use crate::control_plane::Audit;
use crate::control_plane::Durability;
use crate::world::World;

/// How long all nodes together may take.
const ANSWERED_WITHIN: Duration = Duration::from_mins(5);

/// How a storm is made.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Nodes that get a notice.
    #[arg(long, default_value_t = 100)]
    pub(super) nodes: usize,
    /// Protected pods on each, on slices of its GPUs.
    #[arg(long, default_value_t = 4)]
    pub(super) pods: usize,
    /// When those are held.
    #[arg(long, value_enum, default_value = "on-signal")]
    pub(super) hold: Hold,
    /// One notice after another, this many times, in place of all at once.
    #[arg(long)]
    rounds: Option<usize>,
    /// The mean rest between those, in milliseconds: a machine that rests in between answers later
    /// than one that is kept busy.
    #[arg(long, default_value_t = 500, requires = "rounds")]
    rest_ms: u64,
    /// Replicas of the controller.
    #[arg(long, default_value_t = 1)]
    pub(super) replicas: usize,
    /// Agents whose watches are open meanwhile: those of the nodes first.
    #[arg(long, default_value_t = 0)]
    agents: usize,
    /// What goes wrong in the midst of it, on an API server of our own.
    #[arg(long, value_enum, conflicts_with_all = ["rounds", "simulated", "kubeconfig"])]
    ordeal: Option<Ordeal>,
    /// Seconds after the last answer in which the rest of the writes is counted.
    #[arg(long, default_value_t = 10)]
    settle: u64,
    /// An API server that is there, in place of one of our own.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Where that server's etcd shows its metrics, as `http://127.0.0.1:2379`.
    #[arg(long)]
    etcd: Option<String>,
    /// In the simulator, in virtual time, with an API server of the capacity that was measured.
    #[arg(long)]
    pub(super) simulated: bool,
    /// Fencing patches a second that the simulated API server carries.
    #[arg(long, default_value_t = 450.0)]
    pub(super) patches_per_second: f64,
    /// Lets etcd answer before the disk has it: not for figures of latency.
    #[arg(long)]
    no_fsync: bool,
    /// The program whose controller is measured; without it, the one beside this program.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Writes the figures as JSON in place of a table.
    #[arg(long)]
    json: bool,
}

/// Everything that takes part in a storm.
struct Field {
    ground: Ground,
    client: kube::Client,
    /// The nodes that get a notice.
    fleet: Fleet,
    /// The nodes of the bare loop.
    others: Fleet,
    witness: Witness,
    post: Post,
    doors: Doors,
    controllers: Vec<Controller>,
    crowd: Crowd,
    _watches: JoinSet<()>,
    logs: TempDir,
}

/// What was counted on the way.
#[derive(Default)]
struct Tally {
    floors: Vec<Floor>,
    load: f64,
    aftermath: Option<Aftermath>,
    floor: [Counters; 2],
    storm: [Counters; 3],
}

/// Runs it; answers whether every node got all that it waits for.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let screen = Screen::of_this_process();
    let mut field = Field::set(options, screen).await?;
    let tally = field.play(options).await;
    let figures = tally.map(|tally| field.figures(options, tally));
    field.clear().await;
    let figures = figures?;
    show(options, &figures)?;
    Ok(figures.is_whole())
}

/// Prints the figures as they were asked for.
pub(super) fn show(options: &Options, figures: &Figures) -> anyhow::Result<()> {
    if options.json {
        screen::print(&serde_json::to_string(figures)?);
    } else {
        figures.lines().iter().for_each(|line| screen::print(line));
    }
    Ok(())
}

impl Options {
    /// Rests of no fixed length about the mean.
    fn rests(&self) -> Range<Duration> {
        let mean = Duration::from_millis(self.rest_ms);
        mean.mul_f64(0.4)..mean.mul_f64(1.6)
    }

    async fn ground(&self) -> anyhow::Result<Ground> {
        let durability = if self.no_fsync { Durability::NoFsync } else { Durability::Fsync };
        // What went wrong is told by the server's own log.
        let audit = if self.ordeal.is_some() { Audit::Requests } else { Audit::Off };
        match &self.kubeconfig {
            Some(kubeconfig) => Ok(Ground::there(kubeconfig, self.etcd.as_deref())),
            None => Ground::ours(durability, audit).await,
        }
    }
}

impl Field {
    async fn set(options: &Options, screen: Screen) -> anyhow::Result<Self> {
        let ground = options.ground().await?;
        let client = ground.admin().await?;
        fleet::prepare(&client).await?;
        fleet::clear(&client).await?;
        let nodes = options.rounds.unwrap_or(options.nodes);
        let fleet = Fleet::new("storm", nodes, options.pods).held(options.hold);
        let others = Fleet::new("floor", nodes, 0);
        fleet.make(&client, screen).await?;
        if options.ordeal.is_none() {
            others.make(&client, screen).await?;
        }
        let world = World::new(Clock::system(), 1);
        let (witness, watches) =
            Witness::start(&client, (&fleet, Sight::OURS), world.clock()).await;
        let post = Post::new(&world, &fleet, &witness);
        let doors = post.serve().await?;
        let crowd = Crowd::gather(&ground, &fleet, options.agents).await?;
        let mut field = Self {
            ground,
            client,
            fleet,
            others,
            witness,
            post,
            doors,
            controllers: Vec::new(),
            crowd,
            _watches: watches,
            logs: tempfile::tempdir()?,
        };
        field.start(options).await?;
        Ok(field)
    }

    async fn start(&mut self, options: &Options) -> anyhow::Result<()> {
        let program = match &options.program {
            Some(program) => program.clone(),
            None => beside_us("lifeboat")?,
        };
        screen::say("the controller reads its lists");
        for replica in 0..options.replicas {
            let mut environment = self.doors.environment();
            environment.extend([
                ("KUBECONFIG", self.ground.kubeconfig().display().to_string()),
                ("LIFEBOAT_CLUSTER", "bench".to_owned()),
                ("LIFEBOAT_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
                ("LIFEBOAT_LEASE_IDENTITY", format!("controller-{replica}")),
            ]);
            let log = self.logs.path().join(format!("controller-{replica}.log"));
            let mut command = Command::new(&program);
            command.arg("controller").envs(&environment);
            let mut controller = Controller::start(&mut command, &log)?;
            controller.rests().await?;
            self.controllers.push(controller);
        }
        Ok(())
    }

    async fn play(&mut self, options: &Options) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        tally.floor[0] = self.count().await?;
        tally.floors = self.floor(options).await?;
        tally.floor[1] = self.count().await?;
        screen::say("the storm");
        tally.load = program::load();
        tally.storm[0] = self.count().await?;
        match (options.rounds, options.ordeal) {
            (Some(_), _) => self.one_by_one(options.rests()).await?,
            (None, None) => self.all_at_once().await?,
            (None, Some(ordeal)) => tally.aftermath = Some(self.suffer(ordeal).await?),
        }
        tally.storm[1] = self.count().await?;
        tokio::time::sleep(Duration::from_secs(options.settle)).await;
        tally.storm[2] = self.count().await?;
        tally.floors.extend(self.floor(options).await?);
        Ok(tally)
    }

    async fn all_at_once(&self) -> anyhow::Result<()> {
        for number in 0..self.fleet.nodes {
            self.post.send(number)?;
        }
        self.witness.all(self.fleet.nodes, ANSWERED_WITHIN).await;
        Ok(())
    }

    /// The storm, and what goes wrong in the midst of it.
    async fn suffer(&mut self, ordeal: Ordeal) -> anyhow::Result<Aftermath> {
        let began = Clock::system().now();
        let mut since = began;
        let leader = ordeal::leader(&self.client).await?;
        let mut before = None;
        match ordeal {
            Ordeal::EtcdSlow => {
                let slow = self.ground.slow_etcd(ordeal::ETCD_STANDS, ordeal::ETCD_WORKS);
                tokio::select! {
                    biased;
                    answered = self.all_at_once() => answered?,
                    stopped = slow => stopped?,
                }
                self.ground.thaw_etcd();
            }
            Ordeal::LeaderKilled | Ordeal::ApiServerRestarted => {
                for number in 0..self.fleet.nodes {
                    self.post.send(number)?;
                }
                self.witness.some(Edge::Fenced, self.fleet.nodes / 3, ANSWERED_WITHIN).await;
                since = Clock::system().now();
                if ordeal == Ordeal::LeaderKilled {
                    self.kill(&leader).await?;
                    before = Some(leader.as_str());
                } else {
                    self.ground.restart_server().await?;
                }
            }
        }
        let (watched, _) = tokio::join!(
            ordeal::settle(&self.client, before, self.fleet.nodes),
            self.witness.all(self.fleet.nodes, ANSWERED_WITHIN),
        );
        let entries = self.ground.asked_since(began)?;
        Ok(Aftermath::read((ordeal, since), &watched?, &self.fleet, &entries))
    }

    /// Kills the replica of that name with -9.
    async fn kill(&mut self, leader: &str) -> anyhow::Result<()> {
        let place = leader.strip_prefix("controller-").and_then(|number| number.parse().ok());
        let place = place.filter(|place: &usize| *place < self.controllers.len());
        let mut killed = self.controllers.remove(place.context("nobody leads")?);
        killed.kill().await;
        Ok(())
    }

    async fn one_by_one(&self, rests: Range<Duration>) -> anyhow::Result<()> {
        for number in 0..self.fleet.nodes {
            tokio::time::sleep(floor::drawn(&rests)).await;
            self.post.send(number)?;
            self.witness.all(number + 1, Duration::from_secs(30)).await;
        }
        Ok(())
    }

    async fn floor(&self, options: &Options) -> anyhow::Result<Vec<Floor>> {
        // Where something goes wrong there is nothing to compare with.
        if options.ordeal.is_some() {
            return Ok(Vec::new());
        }
        screen::say("the bare loop");
        let client = self.ground.client().await?;
        match options.rounds {
            Some(_) => {
                let fleet = (&self.others, &self.witness);
                floor::one_by_one(&client, fleet, options.rests()).await
            }
            None => floor::measure(&client, &self.others, &self.witness).await,
        }
    }

    async fn count(&self) -> anyhow::Result<Counters> {
        let counted = Counters::read(&self.client, self.ground.etcd.as_deref()).await;
        counted.context("counters of the API server")
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of nodes and passes")]
    fn figures(&self, options: &Options, tally: Tally) -> Figures {
        let nodes = self.fleet.nodes as f64;
        let passes = nodes * (tally.floors.len() / 2).max(1) as f64;
        let [rest, floor] = &tally.floor;
        let [before, done, settled] = &tally.storm;
        let edges = Edge::ALL.map(|edge| {
            let quantiles = Quantiles::of(self.witness.times(edge), self.witness.last(edge));
            (edge.label(), quantiles)
        });
        let edges = BTreeMap::from(edges);
        let fenced = &edges["fenced"];
        let (order, times_floor) = if options.rounds.is_some() {
            let first = tally.floors.first();
            ("one after another", first.map(|floor| fenced.p50_ms / floor.patch.p50_ms))
        } else {
            let fastest = tally.floors.iter().map(Floor::whole_ms).reduce(f64::min);
            ("all at once", fastest.map(|fastest| fenced.last_ms / fastest))
        };
        Figures {
            nodes: self.fleet.nodes,
            pods: self.fleet.pods,
            replicas: self.controllers.len(),
            order,
            ground: self.ground.described.clone(),
            load: tally.load,
            requests: done.requests_since(before, nodes),
            requests_settled: settled.requests_since(before, nodes),
            requests_floor: floor.requests_since(rest, passes),
            etcd_bytes: [
                done.bytes_since(before) / nodes,
                settled.bytes_since(before) / nodes,
                floor.bytes_since(rest) / passes,
            ],
            queue: self.post.counts(),
            programs: self.controllers.iter().map(|one| [one.at_rest(), one.taken()]).collect(),
            aftermath: tally.aftermath,
            agents: self.crowd.agents(),
            floors: tally.floors,
            edges,
            times_floor,
        }
    }

    async fn clear(self) {
        for mut controller in self.controllers {
            controller.kill().await;
        }
        if !self.ground.is_ours() {
            // The figures are there: what could not be cleared is cleared by the next run.
            drop(fleet::clear(&self.client).await);
        }
        drop(self.logs);
    }
}

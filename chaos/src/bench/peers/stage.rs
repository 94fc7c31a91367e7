//! One run: a server, nodes and a queue of its own, and one of those who are compared on it.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use lifeboat::clock::Clock;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::bench::fleet;
use crate::bench::fleet::Fleet;
use crate::bench::floor;
use crate::bench::ground::Ground;
use crate::bench::peers::Options;
use crate::bench::peers::claims;
use crate::bench::peers::instances;
use crate::bench::peers::programs::Programs;
use crate::bench::peers::programs::Surroundings;
use crate::bench::peers::row::Asked;
use crate::bench::peers::row::Memory;
use crate::bench::peers::row::Row;
use crate::bench::peers::subject::Subject;
use crate::bench::peers::subject::Who;
use crate::bench::post::Doors;
use crate::bench::post::Post;
use crate::bench::program;
use crate::bench::program::Controller;
use crate::bench::program::Taken;
use crate::bench::screen::Screen;
use crate::bench::witness::Witness;
use crate::control_plane::Audit;
use crate::control_plane::Durability;
use crate::programs;
use crate::serve;
use crate::serve::Served;
use crate::world::World;
use crate::world::queue;

/// How long a notice may take that is sent alone.
const ALONE: Duration = Duration::from_mins(1);
/// The rests between notices that come one after another.
const RESTS: Range<Duration> = Duration::from_millis(200)..Duration::from_millis(2_200);

/// Everything that takes part.
pub(super) struct Stage {
    subject: Subject,
    ground: Ground,
    client: kube::Client,
    fleet: Fleet,
    folder: TempDir,
    controllers: Vec<Controller>,
}

/// A queue, served, and who sees what comes of its messages.
struct Office {
    post: Post,
    witness: Witness,
    doors: Doors,
    aws: Served,
    _watches: JoinSet<()>,
}

impl Stage {
    /// A fresh server; the nodes come later.
    pub(super) async fn set(
        subject: Subject,
        (nodes, pods): (usize, usize),
    ) -> anyhow::Result<Self> {
        let ground = Ground::ours(Durability::Fsync, Audit::Metadata).await?;
        let client = ground.admin().await?;
        fleet::prepare(&client).await?;
        if subject.who == Who::Karpenter {
            ground.define_karpenter().await?;
        }
        let fleet = Fleet::new("storm", nodes, pods).without_grace();
        let folder = tempfile::tempdir()?;
        Ok(Self { subject, ground, client, fleet, folder, controllers: Vec::new() })
    }

    /// Makes the nodes, sends the notices and sees what comes of them.
    pub(super) async fn play(
        &mut self,
        options: &Options,
        programs: &Programs,
        nodes_at_once: usize,
    ) -> anyhow::Result<Row> {
        let empty = self.memory_without_nodes(programs).await?;
        self.fleet.make(&self.client, Screen::of_this_process()).await?;
        if self.subject.who == Who::Karpenter {
            claims::make(&self.client, &self.fleet, self.folder.path()).await?;
        }
        let office = self.open().await?;
        if self.subject.who == Who::Floor {
            return self.bare_loop(&office.witness, nodes_at_once).await;
        }
        self.start(programs, &office).await?;
        let resting = self.memory();
        let (began, load) = (Clock::system().now(), program::load());
        match nodes_at_once {
            1 => self.one_by_one(&office).await?,
            _ => self.all_at_once(&office, options.within()).await?,
        }
        tokio::time::sleep(options.settle()).await;
        let asked = Asked::of(&self.ground.asked_since(began)?, self.fleet.nodes);
        let memory = Memory::of([empty, resting, self.memory()], self.fleet.nodes);
        let seen = (&office.witness, &office.post);
        Ok(Row::new((self.subject, nodes_at_once, load), seen, asked, memory))
    }

    /// Ends what was started.
    pub(super) async fn clear(mut self) {
        self.end().await;
    }

    /// What the program takes where there is no node yet.
    async fn memory_without_nodes(&mut self, programs: &Programs) -> anyhow::Result<Taken> {
        if self.subject.who == Who::Floor {
            return Ok(Taken::default());
        }
        let office = self.open().await?;
        self.start(programs, &office).await?;
        let empty = self.memory();
        self.end().await;
        Ok(empty)
    }

    /// A queue that nobody has asked for anything: one who has ended may still hold a receive of
    /// another one.
    async fn open(&self) -> anyhow::Result<Office> {
        let world = World::new(Clock::system(), 1);
        let sight = (&self.fleet, self.subject.sight());
        let (witness, watches) = Witness::start(&self.client, sight, world.clock()).await;
        let post = Post::new(&world, &self.fleet, &witness);
        // As their documentation sets queues up, with nothing behind that takes messages away.
        world.update(|state| state.queues.create(programs::QUEUE, queue::Settings::default()));
        let doors = post.serve().await?;
        let aws = serve::serve(instances::beside(post.wire(), &self.fleet)).await?;
        Ok(Office { post, witness, doors, aws, _watches: watches })
    }

    async fn start(&mut self, programs: &Programs, office: &Office) -> anyhow::Result<()> {
        let around = Surroundings {
            kubeconfig: self.ground.kubeconfig(),
            doors: office.doors.environment(),
            aws: office.aws.url(),
            account: office.post.account(),
            folder: self.folder.path(),
        };
        for replica in 0..self.subject.replicas() {
            let mut command = programs.command(self.subject, &around)?;
            let log = self.folder.path().join(log_name(replica));
            self.controllers.push(Controller::start(&mut command, &log)?);
        }
        for (replica, controller) in self.controllers.iter_mut().enumerate() {
            let rests = controller.rests().await;
            rests.with_context(|| last_words(&self.folder.path().join(log_name(replica))))?;
        }
        Ok(())
    }

    async fn end(&mut self) {
        for mut controller in self.controllers.drain(..) {
            controller.kill().await;
        }
    }

    /// All replicas together.
    fn memory(&self) -> Taken {
        self.controllers.iter().map(Controller::taken).fold(Taken::default(), |all, one| Taken {
            resident_mib: all.resident_mib + one.resident_mib,
            peak_mib: all.peak_mib + one.peak_mib,
            cpu_seconds: all.cpu_seconds + one.cpu_seconds,
        })
    }

    async fn all_at_once(&self, office: &Office, within: Duration) -> anyhow::Result<()> {
        for number in 0..self.fleet.nodes {
            office.post.send(number)?;
        }
        office.witness.all(self.fleet.nodes, within).await;
        Ok(())
    }

    /// With pauses as long as the slowest clock's two seconds, and of no fixed length, so that
    /// nobody's clock ticks with ours.
    async fn one_by_one(&self, office: &Office) -> anyhow::Result<()> {
        for number in 0..self.fleet.nodes {
            tokio::time::sleep(floor::drawn(&RESTS)).await;
            office.post.send(number)?;
            office.witness.all(number + 1, ALONE).await;
        }
        Ok(())
    }

    async fn bare_loop(&self, witness: &Witness, nodes_at_once: usize) -> anyhow::Result<Row> {
        let (client, load) = (self.ground.client().await?, program::load());
        let passes = match nodes_at_once {
            1 => floor::one_by_one(&client, (&self.fleet, witness), RESTS).await?,
            _ => floor::measure(&client, &self.fleet, witness).await?,
        };
        let best =
            passes.into_iter().min_by(|one, other| one.whole_ms().total_cmp(&other.whole_ms()));
        Ok(Row::bare((self.subject, nodes_at_once, load), best.context("no pass")?.patch))
    }
}

fn log_name(replica: usize) -> String {
    format!("replica-{replica}.log")
}

/// The last line that a program wrote.
fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    last.unwrap_or("it said nothing").to_owned()
}

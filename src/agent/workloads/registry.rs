//! The registry itself: takes orders and frames one at a time, and starts what is then due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lifeboat_domain::ids::PodUid;
use lifeboat_domain::node::facts::Asked;
use lifeboat_domain::node::outlook;
use lifeboat_domain::node::outlook::Outlook;
use lifeboat_domain::node::plan::Notice;
use lifeboat_domain::workload::Checkpoint;
use lifeboat_domain::workload::Proof;
use lifeboat_domain::workload::Purpose;
use lifeboat_protocol::frame;
use lifeboat_protocol::frame::ToWorkload;
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::info;
use tracing::warn;

use crate::adapters::pod_http::Address;
use crate::adapters::proc::Proc;
use crate::adapters::workload_socket;
use crate::adapters::workload_socket::Connection;
use crate::agent::workloads::FolderVolume;
use crate::agent::workloads::Known;
use crate::agent::workloads::Means;
use crate::agent::workloads::Order;
use crate::agent::workloads::PodEntry;
use crate::agent::workloads::frames;
use crate::agent::workloads::life::Deed;
use crate::agent::workloads::life::Life;
use crate::agent::workloads::life::LifeId;
use crate::agent::workloads::life::Outcome;
use crate::agent::workloads::life::Session;
use crate::agent::workloads::life::Speaker;
use crate::agent::workloads::life::Task;
use crate::agent::workloads::line;
use crate::agent::workloads::line::Heard;
use crate::agent::workloads::line::SessionId;
use crate::agent::workloads::line::Unsaid;
use crate::agent::workloads::lives::TOGETHER;
use crate::agent::workloads::saving;
use crate::agent::workloads::session::Input;
use crate::agent::workloads::session::Next;
use crate::agent::workloads::session::State;
use crate::agent::workloads::stand_in::Seat;
use crate::agent::workloads::stand_in::directory::Directory;
use crate::agent::workloads::stand_in::http::Caller;
use crate::data::buffers::Buffers;
use crate::data::handed::Allowance;
use crate::data::handed::Handed;
use crate::data::history::History;
use crate::data::history::Owner;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// Frames of all workloads that may wait for the registry.
const HEARD_MAX: usize = 256;
/// Most connections of one pod.
const CONNECTIONS_MAX: usize = 32;
/// Most descriptors of one pod that are held at a time, beside those of its lines and of the one
/// frame on each that is being read.
const DESCRIPTORS_MAX: usize = 1024;
/// How long a connection may say nothing at first.
const HELLO: Duration = Duration::from_secs(10);
/// How long a workload that saw SIGTERM waits until somebody asks it to save.
const LEAVE: Duration = Duration::from_secs(3);
/// How long a workload that an agent before this one parked waits for a reason to stay so.
const UNPARK: Duration = Duration::from_secs(15);
/// How long a pod that is no more served is told of.
const REMEMBERED: Duration = Duration::from_mins(10);
/// How long a pod's workload may take to come back before the bucket is asked about it.
const SILENT: Duration = Duration::from_secs(5);
/// How soon a socket is tried again that could not be accepted from.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The registry's whole state. One task owns it.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) means: Means,
    pub(super) buffers: Buffers,
    pub(super) numbers: Arc<AtomicU64>,
    pub(super) stirred: Arc<Notify>,
    pub(super) pods: BTreeMap<PodUid, Pod>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) lives: BTreeMap<LifeId, Life>,
    pub(super) tasks: JoinSet<Done>,
    /// Everything that was due by then is done.
    looked_at: Instant,
    tell: mpsc::Sender<(SessionId, Heard)>,
    heard: mpsc::Receiver<(SessionId, Heard)>,
    connect: mpsc::Sender<(PodUid, Connection)>,
    connected: mpsc::Receiver<(PodUid, Connection)>,
}

/// A pod that is or was served.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) entry: PodEntry,
    pub(super) history: Option<History>,
    pub(super) service: Service,
    pub(super) asked: Asked,
    /// The life that it runs now, or ran last.
    pub(super) life: Option<LifeId>,
    /// What the bucket says of a pod whose workload is silent.
    pub(super) before: Before,
    /// How many descriptors it may hand over at a time.
    pub(super) allowance: Allowance,
}

/// Whether a pod's socket is there, or its folder.
#[derive(Debug)]
pub(super) enum Service {
    /// It is.
    Open {
        /// Accepts from it, or speaks for it.
        _task: Task,
        /// Tells who speaks for its folder that its containers have ended.
        vacate: Option<watch::Sender<bool>>,
    },
    /// It was; the pod is remembered until then.
    Closed(Instant),
}

/// What is known of what a pod did under an agent before this one.
#[derive(Debug)]
pub(super) enum Before {
    /// Nothing yet; the bucket is asked then, unless the workload comes back.
    Unasked(Instant),
    /// It is being asked.
    Asking,
    /// Its state is durable.
    Durable(lifeboat_domain::workload::Stored),
    /// There is nothing to know.
    Nothing,
}

/// A task that ended, and how.
#[derive(Debug)]
pub(super) enum Done {
    /// A line, or a socket.
    Nothing,
    /// A save, by its number.
    Saved(LifeId, u64, Result<crate::data::save::Committed, crate::data::save::SaveError>),
    /// A restore.
    Restored(LifeId, Result<super::restoring::Resumed, crate::data::restore::RestoreError>),
    /// A look at a life's history.
    Looked(LifeId, super::look::Looked),
    /// The end of a life's work.
    Finished(LifeId, Result<crate::data::save::Committed, crate::data::save::SaveError>),
    /// A look at what a silent pod has saved.
    Remembered(PodUid, Option<lifeboat_domain::workload::Stored>),
}

impl Registry {
    pub(super) fn new(means: Means) -> Self {
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        let (connect, connected) = mpsc::channel(CONNECTIONS_MAX);
        let place = &means.place;
        let warm = usize::try_from(place.in_flight / place.chunk.max(1)).unwrap_or(1).max(1);
        Self {
            buffers: Buffers::new(warm),
            numbers: Arc::new(AtomicU64::new(1)),
            stirred: Arc::new(Notify::new()),
            pods: BTreeMap::new(),
            sessions: BTreeMap::new(),
            lives: BTreeMap::new(),
            tasks: JoinSet::new(),
            looked_at: Instant::now(),
            means,
            tell,
            heard,
            connect,
            connected,
        }
    }

    /// Works for ever.
    pub(super) async fn run(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        known: watch::Sender<Arc<Vec<Known>>>,
    ) {
        loop {
            let due = self.due();
            tokio::select! {
                biased;
                Some(order) = orders.recv() => self.obey(order),
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    // A task that was given up is told of by whoever gave it up.
                    if let Ok(done) = done {
                        self.on_done(done);
                    }
                }
                Some((number, heard)) = self.heard.recv() => self.on_heard(number, heard),
                Some((uid, connection)) = self.connected.recv() => self.on_connection(uid, connection),
                () = self.stirred.notified() => (),
                () = sleep_until(due), if due.is_some() => (),
            }
            self.on_time(Instant::now());
            let now = Arc::new(self.known());
            known.send_if_modified(|before| {
                let changed = **before != *now;
                *before = now;
                changed
            });
        }
    }

    /// The next number of a save, a restore, a ring, a session or a life.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Publish(entry, listener) => self.publish(entry, listener),
            Order::Update(entry) => {
                if let Some(pod) = self.pods.get_mut(&entry.pod.uid) {
                    pod.entry = entry;
                }
            }
            Order::Occupy(entry, volume) => self.occupy(entry, volume),
            Order::Vacate(uid) => self.vacate(&uid),
            Order::Call(entry, address) => self.call(entry, address),
            Order::Unpublish(uid) => self.unpublish(&uid),
            Order::Ask(uid, notice) => self.ask(&uid, notice),
            Order::Save(uid) => self.let_store(&uid),
            Order::CallOff(uid) => self.call_off(&uid),
            Order::Expect(uid, outlook) => self.expect(&uid, &outlook),
            Order::AllowRestore(uid, proof) => self.allow_restore(&uid, proof),
        }
    }

    fn publish(&mut self, entry: PodEntry, listener: UnixListener) {
        let uid = entry.pod.uid.clone();
        let accepting = accept(uid, listener, self.connect.clone());
        let accepting = Task(self.tasks.spawn(accepting));
        self.serve(entry, Service::Open { _task: accepting, vacate: None });
    }

    /// Has a stand-in speak for a pod's folder.
    fn occupy(&mut self, entry: PodEntry, volume: FolderVolume) {
        let uid = entry.pod.uid.clone();
        let (number, unsaid) = self.begin_session(uid.clone(), None, Speaker::StandIn);
        let (vacate, vacated) = watch::channel(false);
        let directory = Directory {
            pod: uid.clone(),
            path: volume.path,
            coming: volume.coming,
            tell: volume.tell,
            vacated,
            chunk: self.means.place.chunk,
            proc: Proc::new(&volume.host_root, self.means.offload),
            scheduler: self.means.scheduler.clone(),
            clock: self.means.clock.clone(),
            offload: self.means.offload,
        };
        let seat = Seat::new(number, unsaid, self.tell.clone());
        let served = self.tasks.spawn(async move {
            directory.serve(seat).await;
            Done::Nothing
        });
        self.serve(entry, Service::Open { _task: Task(served), vacate: Some(vacate) });
    }

    /// Calls a pod where a save of it is wanted.
    fn call(&mut self, entry: PodEntry, address: Address) {
        let uid = entry.pod.uid.clone();
        let (number, unsaid) = self.begin_session(uid.clone(), None, Speaker::StandIn);
        let caller = Caller { pod: uid, address, clock: self.means.clock.clone() };
        let seat = Seat::new(number, unsaid, self.tell.clone());
        let served = self.tasks.spawn(async move {
            caller.serve(seat).await;
            Done::Nothing
        });
        self.serve(entry, Service::Open { _task: Task(served), vacate: None });
    }

    fn serve(&mut self, entry: PodEntry, service: Service) {
        let uid = entry.pod.uid.clone();
        if let Some(pod) = self.pods.get_mut(&uid) {
            (pod.entry, pod.service) = (entry, service);
            return;
        }
        let history = self.history(&entry);
        let before = match history {
            Some(_) => Before::Unasked(Instant::now() + SILENT),
            None => Before::Nothing,
        };
        let asked = Asked::Nothing;
        let allowance = Allowance::new(DESCRIPTORS_MAX);
        let pod = Pod { entry, history, service, asked, life: None, before, allowance };
        self.pods.insert(uid, pod);
        metrics::workloads(self.pods.len());
    }

    /// Nobody writes in a pod's folder any more.
    fn vacate(&self, uid: &PodUid) {
        if let Some(Pod { service: Service::Open { vacate: Some(vacate), .. }, .. }) =
            self.pods.get(uid)
        {
            vacate.send_replace(true);
        }
    }

    fn history(&self, entry: &PodEntry) -> Option<History> {
        let owner = Owner {
            cluster: self.means.place.cluster.clone(),
            namespace: entry.pod.namespace.to_string(),
            job_key: entry.wishes.job_key.as_ref()?.to_string(),
        };
        match History::new(self.means.store.clone(), &self.means.place.prefix, owner) {
            Ok(history) => Some(history),
            Err(error) => {
                warn!(pod = %entry.pod, error = %Chain(&error), "pod has no place in the bucket");
                None
            }
        }
    }

    /// The pod's containers have ended: its lines are cut, and what was handed over is stored.
    fn unpublish(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.service = Service::Closed(Instant::now() + REMEMBERED);
        let numbers: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.pod == *uid)
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.forget(number);
        }
    }

    fn ask(&mut self, uid: &PodUid, notice: Notice) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let Notice { purpose, deadline } = notice;
        pod.asked = Asked::Save { purpose, deadline };
        let Some(id) = pod.life else { return };
        info!(pod = %pod.entry.pod, ?purpose, "workload asked for its state");
        let told = frames::notice(&self.means.clock, &notice);
        // Nothing is coming, where time has merely passed.
        if purpose != Purpose::Background {
            self.tell(id, &ToWorkload::Notice(told));
        }
        if let Some(life) = self.lives.get_mut(&id)
            && let Outcome::Failed(_) = life.outcome
        {
            life.outcome = Outcome::Pending;
        }
        if let Some(life) = self.lives.get_mut(&id) {
            life.uninsured = None;
        }
        self.tighten(id, notice);
        self.advance(id);
    }

    /// Tells a pod's ranks what is to be expected of their save.
    fn expect(&self, uid: &PodUid, outlook: &Outlook) {
        let Some(id) = self.pods.get(uid).and_then(|pod| pod.life) else { return };
        let Some(life) = self.lives.get(&id) else { return };
        let told = match (outlook.of, &life.deed) {
            (outlook::Save::AtNotice, _) => ToWorkload::Forecast(frames::forecast(outlook)),
            (outlook::Save::UnderWay { .. }, Deed::Saving(save)) => {
                ToWorkload::Pace(frames::expected(&self.means.clock, save, outlook))
            }
            (outlook::Save::UnderWay { .. }, _) => return,
        };
        self.tell(id, &told);
    }

    fn allow_restore(&mut self, uid: &PodUid, proof: Proof) {
        let life = self.pods.get(uid).and_then(|pod| pod.life);
        if let Some(life) = life.and_then(|id| self.lives.get(&id)) {
            life.proof.send_replace(Some(proof));
        }
    }

    fn on_connection(&mut self, uid: PodUid, connection: Connection) {
        let open = self.sessions.values().filter(|session| session.pod == uid).count();
        let allowance = self.pods.get(&uid).map(|pod| pod.allowance.clone());
        let Some(allowance) = allowance.filter(|_| open < CONNECTIONS_MAX) else {
            metrics::overflow("workload_connections");
            return;
        };
        let (number, unsaid) = self.begin_session(uid, connection.pid, Speaker::Itself);
        let tell = self.tell.clone();
        self.tasks.spawn(async move {
            line::serve(connection, number, (unsaid, allowance), tell).await;
            Done::Nothing
        });
    }

    fn begin_session(
        &mut self,
        pod: PodUid,
        pid: Option<u32>,
        speaker: Speaker,
    ) -> (SessionId, Unsaid) {
        let number = self.number();
        let (mouth, unsaid) = line::mouth();
        let session = Session {
            pod,
            speaker,
            pid,
            mouth,
            state: State::New,
            hello_by: Instant::now() + HELLO,
            member: None,
            step: None,
            step_time: None,
            bytes: None,
            parked_at: None,
            parked_since: None,
            wants: None,
            terminating: None,
            left: false,
            saving: None,
            restoring: None,
        };
        self.sessions.insert(number, session);
        (number, unsaid)
    }

    fn on_heard(&mut self, number: SessionId, heard: Heard) {
        match heard {
            Heard::Frame(frame, descriptors) => self.on_frame(number, *frame, descriptors),
            Heard::Files { save, parts } => {
                if let Next::Go(_) = self.step(number, Input::Part { save }) {
                    self.hand_on(number, saving::FromRank::Files(parts));
                }
            }
            Heard::Closed => self.forget(number),
        }
    }

    fn on_frame(
        &mut self,
        number: SessionId,
        frame: frame::FromWorkload,
        descriptors: Vec<Handed>,
    ) {
        if self.sessions.contains_key(&number)
            && self.take_frame(number, frame, descriptors).is_err()
        {
            metrics::error("workload_socket", "protocol");
            warn!(session = number, "line of a workload cut: it says what no workload says");
            self.forget(number);
        }
    }

    /// Moves a session; tells whether its input is to be acted upon.
    pub(super) fn step(&mut self, number: SessionId, input: Input) -> Next {
        let Some(session) = self.sessions.get_mut(&number) else { return Next::Ignore };
        let next = session.state.on(input);
        if let Next::Go(state) = next {
            session.state = state;
        }
        next
    }

    /// Forgets a session: its line is closed, or is cut by this.
    pub(super) fn forget(&mut self, number: SessionId) {
        let Some(session) = self.sessions.remove(&number) else { return };
        let Some(member) = session.member else { return };
        let Some(life) = self.lives.get_mut(&member.life) else { return };
        if life.ranks.get(&member.rank) == Some(&Some(number)) {
            life.ranks.insert(member.rank, None);
        }
        let emptied = life.sessions().next().is_none();
        if emptied && matches!(life.deed, Deed::Restoring { .. }) {
            life.deed = Deed::Nothing;
        }
        self.advance(member.life);
    }

    /// Tells every connected rank of a life.
    pub(super) fn tell(&self, life: LifeId, frame: &ToWorkload) {
        let Some(life) = self.lives.get(&life) else { return };
        for (_, number) in life.sessions() {
            self.say(number, frame.clone());
        }
    }

    /// Tells one rank. One that does not read is noticed when its line is written.
    pub(super) fn say(&self, number: SessionId, frame: ToWorkload) {
        if let Some(session) = self.sessions.get(&number)
            && session.mouth.say(frame).is_err()
        {
            warn!(session = number, "frame to a workload lost: it does not read");
        }
    }

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Nothing => (),
            Done::Saved(life, save, result) => self.on_saved(life, save, result),
            Done::Restored(life, result) => self.on_restored(life, result),
            Done::Looked(life, looked) => self.on_looked(life, looked),
            Done::Finished(life, result) => self.on_finished(life, result),
            Done::Remembered(uid, stored) => {
                if let Some(pod) = self.pods.get_mut(&uid) {
                    pod.before = stored.map_or(Before::Nothing, Before::Durable);
                }
            }
        }
    }

    /// The next moment at which something is given up or begun.
    fn due(&self) -> Option<Instant> {
        let sessions = self.sessions.values().flat_map(|session| {
            let hello = (session.state == State::New).then_some(session.hello_by);
            let leave = session.terminating.map(|(_, since)| since + LEAVE);
            let together = session.wants.map(|wants| wants.since + TOGETHER);
            [hello, leave, together, session.parked_since.map(|since| since + UNPARK)]
        });
        let lives = self.lives.values().map(|life| match &life.deed {
            Deed::Saving(save) => save.until(),
            Deed::Nothing
            | Deed::Looking { .. }
            | Deed::Claiming { .. }
            | Deed::Restoring { .. }
            | Deed::Finishing { .. } => None,
        });
        let pods = self.pods.values().flat_map(|pod| {
            let forget = match &pod.service {
                Service::Closed(until) => Some(*until),
                Service::Open { .. } => None,
            };
            let look = match &pod.before {
                Before::Unasked(at) => Some(*at),
                Before::Asking | Before::Durable(_) | Before::Nothing => None,
            };
            [forget, look]
        });
        sessions.chain(lives).chain(pods).flatten().filter(|at| *at > self.looked_at).min()
    }

    fn on_time(&mut self, now: Instant) {
        self.looked_at = now;
        let silent = |session: &Session| session.state == State::New && session.hello_by <= now;
        let mute: Vec<SessionId> = self.numbers_of(silent);
        for number in mute {
            self.forget(number);
        }
        let left_alone = |session: &Session| {
            let waited = session.terminating.is_some_and(|(_, since)| since + LEAVE <= now);
            waited && !session.left && session.state == State::Running
        };
        for number in self.numbers_of(left_alone) {
            if let Some(session) = self.sessions.get_mut(&number) {
                session.left = true;
            }
            let reason = "nobody asks for its state".to_owned();
            self.say(number, ToWorkload::Leave(frame::Leave { reason }));
        }
        let lives: Vec<LifeId> = self.lives.keys().copied().collect();
        for life in lives {
            self.unpark(life, now);
            self.give_up(life, now);
        }
        self.look_back(now);
        self.clean_up(now);
    }

    /// Lets a life go on that is parked for no reason that this agent knows.
    fn unpark(&mut self, id: LifeId, now: Instant) {
        let Some(life) = self.lives.get(&id) else { return };
        let parked = |number: SessionId| {
            let since = self.sessions.get(&number).and_then(|session| session.parked_since);
            since.is_some_and(|since| since + UNPARK <= now)
        };
        let numbers: Vec<SessionId> =
            life.sessions().map(|(_, number)| number).filter(|number| parked(*number)).collect();
        let wanted = self.wanted(life).is_some();
        for number in numbers {
            if let Some(session) = self.sessions.get_mut(&number) {
                session.parked_since = None;
            }
            if !wanted {
                let reason = "this agent knows of no reason to stay parked".to_owned();
                self.say(number, ToWorkload::Unpark(frame::Unpark { reason }));
                self.step(number, Input::GoOn);
            }
        }
    }

    fn numbers_of(&self, wanted: impl Fn(&Session) -> bool) -> Vec<SessionId> {
        let found = self.sessions.iter().filter(|(_, session)| wanted(session));
        found.map(|(number, _)| *number).collect()
    }

    /// Asks the bucket about pods whose workload has not come back since the agent started.
    fn look_back(&mut self, now: Instant) {
        for (uid, pod) in &mut self.pods {
            let Before::Unasked(at) = pod.before else { continue };
            if pod.life.is_some() {
                pod.before = Before::Nothing;
                continue;
            }
            let (Some(history), true) = (&pod.history, at <= now) else { continue };
            pod.before = Before::Asking;
            let (uid, history) = (uid.clone(), history.clone());
            let clock = self.means.clock.clone();
            self.tasks.spawn(async move {
                let stored = super::look::remembered(&history, &clock, uid.as_str()).await;
                Done::Remembered(uid, stored)
            });
        }
    }

    fn clean_up(&mut self, now: Instant) {
        let lives = &self.lives;
        self.pods.retain(|_, pod| match &pod.service {
            Service::Open { .. } => true,
            Service::Closed(until) => {
                let life = pod.life.and_then(|id| lives.get(&id));
                let busy = life.is_some_and(|life| !matches!(life.deed, Deed::Nothing));
                busy || *until > now
            }
        });
        let pods = &self.pods;
        self.lives.retain(|id, life| {
            let current = pods.values().any(|pod| pod.life == Some(*id));
            let idle = matches!(life.deed, Deed::Nothing) && life.sessions().next().is_none();
            current || !idle
        });
        metrics::workloads(self.pods.len());
    }

    /// What a pod was last asked that is still wanted, the gravest of a life's pods.
    pub(super) fn wanted(&self, life: &Life) -> Option<Notice> {
        let asked = life.pods.iter().filter_map(|uid| match self.pods.get(uid)?.asked {
            Asked::Save { purpose, deadline } => Some(Notice { purpose, deadline }),
            Asked::Nothing | Asked::Unknown => None,
        });
        asked.max_by_key(|notice| (notice.purpose, std::cmp::Reverse(notice.deadline)))
    }

    /// Whether a pod has nothing more to run for: what it began is saved, and then it ends.
    pub(super) fn is_ending(&self, uid: &PodUid) -> bool {
        self.pods.get(uid).is_some_and(|pod| match pod.asked {
            Asked::Save { purpose, .. } => !purpose.goes_on(),
            Asked::Nothing | Asked::Unknown => false,
        })
    }

    /// How far the saving of a pod is, by its life, or by the bucket if that is silent.
    pub(super) fn checkpoint(&self, pod: &Pod) -> Checkpoint {
        match (pod.life.and_then(|id| self.lives.get(&id)), &pod.before) {
            (Some(life), _) => life.checkpoint(),
            (None, Before::Durable(stored)) => Checkpoint::Durable(*stored),
            (None, Before::Unasked(_) | Before::Asking) => Checkpoint::Unknown,
            (None, Before::Nothing) => Checkpoint::Idle,
        }
    }
}

/// Accepts from a pod's socket, for as long as the pod is served.
async fn accept(
    uid: PodUid,
    listener: UnixListener,
    connect: mpsc::Sender<(PodUid, Connection)>,
) -> Done {
    loop {
        match workload_socket::accept(&listener).await {
            Ok(connection) => {
                if connect.send((uid.clone(), connection)).await.is_err() {
                    return Done::Nothing;
                }
            }
            Err(error) => {
                metrics::error("workload_socket", error.label());
                warn!(pod = %uid, error = %Chain(&error), "workload not accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

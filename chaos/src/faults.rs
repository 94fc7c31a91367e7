//! Faults as data, and the one layer in front of any wire that makes them happen.
//!
//! A fault reads as a line of text, in a script or in a recorded plan:
//!
//! ```text
//! kube away from 5s until 120s
//! s3 503 from 30s for 10s chance 50
//! kube lose-response client controller method PATCH path /nodes/ most 1
//! ```

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::StatusCode;
use serde::Deserialize;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::wire::BoxError;
use crate::wire::Request;
use crate::wire::Response;
use crate::wire::Wire;
use crate::wire::call;
use crate::wire::collect;
use crate::wire::full;
use crate::wire::wire;

mod cut;
mod draw;
mod refusal;
mod text;

pub use text::FaultError;

use cut::Cut;

/// Most strikes that are remembered one by one.
const LOG_CAPACITY: usize = 10_000;

/// Most reads that are kept for stale ones; later ones are answered as they are.
const READS_CAPACITY: usize = 1_000;

/// The wires that a fault can be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WireName {
    /// The Kubernetes API.
    Kube,
    /// The queues.
    Sqs,
    /// The bucket.
    S3,
    /// The metadata service.
    Imds,
    /// Kubelet's pod-resources service.
    Kubelet,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The server cannot be reached, and streams that were open break.
    Away,
    /// It comes later.
    Delay(Duration),
    /// It comes later, by any time up to this, so that others overtake it.
    Reorder(Duration),
    /// It is answered with this status.
    Refuse(u16),
    /// It is never answered; streams that were open fall silent.
    Hang,
    /// The connection breaks before it arrives.
    LoseRequest,
    /// The connection breaks after it was done: it happened, and nobody is told.
    LoseResponse,
    /// It is done twice, and answered once.
    Duplicate,
    /// A read is answered with what was true at most this long ago.
    StaleRead(Duration),
    /// A watch ends with 410 Gone.
    WatchGone,
}

/// One fault: what happens, to which requests, and when.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct Fault {
    /// On which wire.
    pub wire: WireName,
    /// What happens.
    pub kind: FaultKind,
    /// From when on, since the start of the run.
    pub from: Duration,
    /// Until when, since the start of the run; the end is outside.
    pub until: Duration,
    /// Only to requests of this client.
    pub client: Option<String>,
    /// Only to requests of this method.
    pub method: Option<String>,
    /// Only to requests whose path and query contain this.
    pub path: Option<String>,
    /// To so many of a hundred of them, drawn from the seed.
    pub chance: u8,
    /// To so many of them at most.
    pub most: Option<u32>,
}

/// The faults of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Plan {
    /// In the order in which they act on a request.
    pub faults: Vec<Fault>,
}

/// A fault that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// When, since the start of the run.
    pub at: Duration,
    /// To whose request.
    pub client: String,
    /// Which request, by method and path.
    pub request: String,
    /// By which fault, as text.
    pub fault: String,
}

/// Makes the faults of a plan happen; every clone is the same.
#[derive(Clone, Debug)]
pub struct Faults {
    started: Instant,
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Inner {
    active: Vec<Active>,
    random: fastrand::Rng,
    log: Vec<Strike>,
    reads: BTreeMap<String, Read>,
}

#[derive(Debug)]
struct Active {
    fault: Fault,
    left: u32,
}

/// An answer to a read, kept for those that come later and shall not see what is new.
#[derive(Clone, Debug)]
struct Read {
    at: Duration,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// What a fault looks at in a request.
struct About {
    wire: WireName,
    client: String,
    method: String,
    path: String,
}

/// A stream, as it was opened.
struct Opened {
    about: About,
    at: Duration,
    known: usize,
}

impl Faults {
    /// Makes the faults of a plan happen from now on; chances are drawn from the seed.
    pub fn new(plan: Plan, seed: u64) -> Self {
        let inner = Inner {
            active: plan.faults.into_iter().map(Active::new).collect(),
            random: fastrand::Rng::with_seed(seed),
            log: Vec::new(),
            reads: BTreeMap::new(),
        };
        let (inner, changed) = (Arc::new(Mutex::new(inner)), Arc::new(Notify::new()));
        Self { started: Instant::now(), inner, changed }
    }

    /// Puts the faults in front of a wire that this client is handed.
    pub fn before(&self, name: WireName, client: &str, inner: Wire) -> Wire {
        let (faults, client) = (self.clone(), client.to_owned());
        wire(move |request: Request| {
            let (faults, inner) = (faults.clone(), inner.clone());
            let about = About::new(name, &client, &request);
            async move { faults.pass(about, inner, request).await }
        })
    }

    /// Adds a fault; its times count from the start of the run.
    pub fn add(&self, fault: Fault) {
        self.inner().active.push(Active::new(fault));
        self.changed.notify_waiters();
    }

    /// Adds a fault; its times count from now.
    pub fn add_from_now(&self, mut fault: Fault) {
        let now = self.elapsed();
        fault.from += now;
        fault.until = fault.until.saturating_add(now);
        self.add(fault);
    }

    /// Ends every fault at once; streams that were cut stay cut.
    pub fn end(&self) {
        self.inner().active.clear();
        self.changed.notify_waiters();
    }

    /// Since the start of the run.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// When the last fault ends, since the start of the run.
    pub fn quiet_from(&self) -> Duration {
        let inner = self.inner();
        inner.active.iter().map(|active| active.fault.until).max().unwrap_or_default()
    }

    /// What happened, in order.
    pub fn log(&self) -> Vec<Strike> {
        self.inner().log.clone()
    }

    async fn pass(
        &self,
        about: About,
        inner: Wire,
        request: Request,
    ) -> Result<Response, BoxError> {
        let mut after = Vec::new();
        for kind in self.draw(&about) {
            match kind {
                FaultKind::Delay(by) | FaultKind::Reorder(by) => tokio::time::sleep(by).await,
                FaultKind::Away => return Err("connection refused".into()),
                FaultKind::LoseRequest => return Err("connection reset before the request".into()),
                FaultKind::Hang => return pending().await,
                FaultKind::Refuse(status) => return Ok(refusal::refusal(about.wire, status)),
                FaultKind::WatchGone => return Ok(refusal::gone()),
                FaultKind::StaleRead(by) => {
                    if let Some(read) = self.read_before(&about, by) {
                        return Ok(read.response());
                    }
                }
                FaultKind::LoseResponse | FaultKind::Duplicate => after.push(kind),
            }
        }
        let response = forward(inner, request, after.contains(&FaultKind::Duplicate)).await;
        if after.contains(&FaultKind::LoseResponse) {
            return Err("connection reset before the answer".into());
        }
        self.remember(about, response?).await
    }

    /// What strikes this request. Chance is asked only where a fault could strike.
    fn draw(&self, about: &About) -> Vec<FaultKind> {
        let now = self.elapsed();
        let mut inner = self.inner();
        let Inner { active, random, log, .. } = &mut *inner;
        let mut kinds = Vec::new();
        for active in active.iter_mut().filter(|active| active.may_strike(about, now)) {
            if random.u8(0..100) >= active.fault.chance {
                continue;
            }
            active.left -= 1;
            if log.len() < LOG_CAPACITY {
                log.push(Strike {
                    at: now,
                    client: about.client.clone(),
                    request: format!("{} {}", about.method, about.path),
                    fault: active.fault.to_string(),
                });
            }
            kinds.push(active.fault.kind.drawn(random));
        }
        kinds
    }

    fn read_before(&self, about: &About, by: Duration) -> Option<Read> {
        let now = self.elapsed();
        let read = self.inner().reads.get(&about.key()).cloned();
        read.filter(|read| read.at + by >= now)
    }

    /// Keeps a read for stale ones, and lets a stream end when a fault that cuts it begins.
    async fn remember(&self, about: About, response: Response) -> Result<Response, BoxError> {
        if about.watches() {
            let opened = self.opened(about);
            return Ok(response.map(|body| cut::cut(body, self.clone(), opened)));
        }
        let stale = |active: &Active| {
            active.fault.concerns(&about) && matches!(active.fault.kind, FaultKind::StaleRead(_))
        };
        if about.method != "GET" || !self.inner().active.iter().any(stale) {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let read = Read {
            at: self.elapsed(),
            status: parts.status,
            headers: parts.headers,
            body: collect(body).await?,
        };
        let (mut inner, key) = (self.inner(), about.key());
        if inner.reads.len() < READS_CAPACITY || inner.reads.contains_key(&key) {
            inner.reads.insert(key, read.clone());
        }
        drop(inner);
        Ok(read.response())
    }

    /// Who opens a stream now, and which faults were known then.
    fn opened(&self, about: About) -> Opened {
        Opened { about, at: self.elapsed(), known: self.inner().active.len() }
    }

    /// When the next fault that cuts this stream begins, of those that began after it was opened.
    fn next_cut(&self, opened: &Opened) -> Option<(Instant, Cut)> {
        let inner = self.inner();
        let cuts = inner.active.iter().enumerate().filter_map(|(index, active)| {
            let later = index >= opened.known || active.fault.from > opened.at;
            let how = Cut::by(active.fault.kind).filter(|_| active.fault.concerns(&opened.about));
            how.filter(|_| later).map(|how| (self.started + active.fault.from, how))
        });
        cuts.min_by_key(|(at, _)| *at)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FaultKind {
    /// The same, with what is left to chance drawn.
    fn drawn(self, random: &mut fastrand::Rng) -> Self {
        if let Self::Reorder(most) = self {
            return Self::Reorder(draw::up_to(random, most));
        }
        self
    }
}

impl Fault {
    /// Something that happens to every request on a wire, all the time.
    pub fn new(wire: WireName, kind: FaultKind) -> Self {
        Self {
            wire,
            kind,
            from: Duration::ZERO,
            until: Duration::MAX,
            client: None,
            method: None,
            path: None,
            chance: 100,
            most: None,
        }
    }

    fn concerns(&self, about: &About) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        };
        self.wire == about.wire
            && is(&self.client, &about.client)
            && is(&self.method, &about.method)
            && self.path.as_ref().is_none_or(|part| about.path.contains(part))
    }

    fn fits(&self, about: &About) -> bool {
        match self.kind {
            FaultKind::WatchGone => about.watches(),
            FaultKind::StaleRead(_) => about.method == "GET" && !about.watches(),
            FaultKind::Away
            | FaultKind::Delay(_)
            | FaultKind::Reorder(_)
            | FaultKind::Refuse(_)
            | FaultKind::Hang
            | FaultKind::LoseRequest
            | FaultKind::LoseResponse
            | FaultKind::Duplicate => true,
        }
    }
}

impl Active {
    fn new(fault: Fault) -> Self {
        Self { left: fault.most.unwrap_or(u32::MAX), fault }
    }

    fn may_strike(&self, about: &About, now: Duration) -> bool {
        let now = self.fault.from <= now && now < self.fault.until;
        now && self.left > 0 && self.fault.concerns(about) && self.fault.fits(about)
    }
}

impl Read {
    fn response(self) -> Response {
        let mut response = http::Response::new(full(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

impl About {
    fn new(wire: WireName, client: &str, request: &Request) -> Self {
        let path = request.uri().path_and_query().map(ToString::to_string);
        Self {
            wire,
            client: client.to_owned(),
            method: request.method().to_string(),
            path: path.unwrap_or_default(),
        }
    }

    fn watches(&self) -> bool {
        self.wire == WireName::Kube && self.method == "GET" && self.path.contains("watch=")
    }

    fn key(&self) -> String {
        format!("{:?} {} {}", self.wire, self.client, self.path)
    }
}

/// Sends a request on, once or twice; the first answer counts.
async fn forward(inner: Wire, request: Request, twice: bool) -> Result<Response, BoxError> {
    if !twice {
        return call(&inner, request).await;
    }
    let (parts, body) = request.into_parts();
    let body = collect(body).await?;
    let again = http::Request::from_parts(parts.clone(), full(body.clone()));
    let first = call(&inner, http::Request::from_parts(parts, full(body))).await;
    drop(call(&inner, again).await);
    first
}

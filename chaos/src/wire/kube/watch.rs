//! A watch: the changes of one kind as a body that never ends by itself.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream;
use http_body_util::BodyExt;
use hyper::body::Frame;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;

use super::View;
use crate::wire::Body;
use crate::world::World;
use crate::world::cluster::Change;
use crate::world::cluster::Cluster;
use crate::world::cluster::Fate;
use crate::world::cluster::refusal::Refusal;

/// Between two bookmarks. Source: Kubernetes' watch cache, about once a minute.
const BOOKMARK: Duration = Duration::from_mins(1);

/// From the last bookmark to the end of a watch. Source: the same.
const BEFORE_END: Duration = Duration::from_secs(2);

/// What a watch was asked for.
pub(super) struct Watch {
    /// What it sees.
    pub(super) view: View,
    /// The version to start after.
    pub(super) start: Start,
    /// Whether it gets bookmarks.
    pub(super) bookmarks: Bookmarks,
    /// When the server ends it.
    pub(super) ends: Duration,
}

/// From where a watch starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// With what there is, each object as `ADDED`.
    Now,
    /// With what there is, and a bookmark that says where that ends.
    Listed,
    /// After this version.
    After(u64),
}

/// Whether a watch gets bookmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bookmarks {
    /// It does.
    Sent,
    /// It does not.
    Absent,
}

struct Running {
    world: World,
    watch: Watch,
    version: u64,
    breaks: u64,
    ends: Instant,
    bookmark: Instant,
    lines: VecDeque<Bytes>,
    over: bool,
}

/// What a look at the world tells a watch.
enum Look {
    Lines(Vec<Bytes>),
    Expired(Bytes),
    Broken,
}

/// The body of a watch.
pub(super) fn body(world: World, watch: Watch) -> Body {
    let now = Instant::now();
    let (version, breaks, lines) = world.read(|state| {
        let cluster = &state.cluster;
        let version = match watch.start {
            Start::After(version) => version,
            Start::Now | Start::Listed => cluster.version(),
        };
        (version, cluster.breaks(), watch.first(cluster))
    });
    let ends = now + watch.ends;
    let bookmark = next_bookmark(now, ends);
    let running =
        Running { world, watch, version, breaks, ends, bookmark, lines: lines.into(), over: false };
    let lines = stream::unfold(running, |mut running| async move {
        let line = running.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), running))
    });
    Streamed { lines: Mutex::new(Box::pin(lines)) }.map_err(|never| match never {}).boxed()
}

impl Running {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            let wake = self.ends.min(self.bookmark);
            let (world, watch) = (&self.world, &self.watch);
            let (version, breaks) = (self.version, self.breaks);
            let look = world.until(|state| watch.look(&state.cluster, (version, breaks)));
            tokio::select! {
                biased;
                look = look => self.saw(look),
                () = tokio::time::sleep_until(wake) => self.woke(),
            }
        }
    }

    fn saw(&mut self, (version, look): (u64, Look)) {
        self.version = version;
        match look {
            Look::Lines(lines) => self.lines.extend(lines),
            Look::Expired(line) => {
                self.lines.push_back(line);
                self.over = true;
            }
            Look::Broken => self.over = true,
        }
    }

    fn woke(&mut self) {
        let now = Instant::now();
        self.over = now >= self.ends;
        if self.over {
            return;
        }
        self.bookmark = next_bookmark(now, self.ends);
        let newest = self.world.read(|state| state.cluster.version());
        self.version = self.version.max(newest);
        if self.watch.bookmarks == Bookmarks::Sent {
            self.lines.push_back(self.watch.bookmark(self.version, &json!({})));
        }
    }
}

impl Watch {
    /// The lines that a watch begins with.
    fn first(&self, cluster: &Cluster) -> Vec<Bytes> {
        if matches!(self.start, Start::After(_)) {
            return Vec::new();
        }
        let seen = cluster.list(self.view.address.resource);
        let seen = seen.filter(|object| self.view.sees(object));
        let mut lines: Vec<Bytes> =
            seen.map(|object| line("ADDED", &self.view.shown(object))).collect();
        if self.start == Start::Listed {
            let annotations = json!({ "k8s.io/initial-events-end": "true" });
            lines.push(self.bookmark(cluster.version(), &annotations));
        }
        lines
    }

    /// What happened after `version`; nothing if there is nothing to tell.
    fn look(&self, cluster: &Cluster, (version, breaks): (u64, u64)) -> Option<(u64, Look)> {
        if cluster.breaks() > breaks {
            return Some((version, Look::Broken));
        }
        if version < cluster.oldest() {
            let status = Refusal::expired(version, cluster.oldest()).status();
            return Some((version, Look::Expired(line("ERROR", &status))));
        }
        // Most changes of a cluster are of other kinds.
        if cluster.newest_of(&[self.view.address.resource]) <= version {
            return None;
        }
        let changes = cluster.changes_since(self.view.address.resource, version);
        let lines: Vec<Bytes> = changes.filter_map(|change| self.told(change)).collect();
        (!lines.is_empty()).then(|| (cluster.version(), Look::Lines(lines)))
    }

    /// How a change looks through this watch's selector.
    fn told(&self, change: &Change) -> Option<Bytes> {
        let before = change.before.as_ref().is_some_and(|object| self.view.sees(object));
        let after = change.fate == Fate::Kept && self.view.sees(&change.object);
        let kind = match (before, after) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => return Some(line("DELETED", &self.view.shown(&last(change)))),
        };
        Some(line(kind, &self.view.shown(&change.object)))
    }

    fn bookmark(&self, version: u64, annotations: &Value) -> Bytes {
        let resource = self.view.address.resource;
        let object = json!({
            "kind": resource.kind, "apiVersion": resource.api_version(),
            "metadata": {
                "resourceVersion": version.to_string(), "creationTimestamp": null,
                "annotations": annotations,
            },
        });
        line("BOOKMARK", &Arc::new(object))
    }
}

/// An object as a watch saw it last, with the version of the change that took it away.
fn last(change: &Change) -> Arc<Value> {
    let Some(before) = &change.before else { return Arc::clone(&change.object) };
    let mut last = Value::clone(before);
    last["metadata"]["resourceVersion"] = json!(change.version.to_string());
    Arc::new(last)
}

/// Once a minute, and once shortly before the watch ends.
fn next_bookmark(now: Instant, ends: Instant) -> Instant {
    let shortly = ends.checked_sub(BEFORE_END).unwrap_or(now);
    match now + BOOKMARK {
        later if later <= shortly => later,
        _ if shortly > now => shortly,
        _ => ends,
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut text = json!({ "type": kind, "object": object }).to_string();
    text.push('\n');
    text.into()
}

/// A stream of frames as a body. The lock is never held by two: a body is polled by one owner, but
/// bodies have to be `Sync`.
struct Streamed {
    lines: Mutex<Lines>,
}

type Lines = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let lines = self.get_mut().lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        lines.as_mut().poll_next(context)
    }
}

//! Who asked the simulated API server for what: counters of requests, and a list of all writes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::world::cluster::Caller;
use crate::world::cluster::Target;
use crate::world::cluster::resource::Resource;

/// Writes that are kept.
const KEPT: usize = 200_000;

/// The counters and the list.
#[derive(Debug, Default)]
pub struct Audit {
    requests: BTreeMap<Request, u64>,
    unsupported: BTreeMap<String, u64>,
    writes: Vec<Write>,
    forgotten: u64,
}

/// What requests are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// The program.
    pub agent: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `apply`, `delete`, `evict`.
    pub verb: &'static str,
    /// Kind and subresource, as `nodeinterruptions.lifeboat.dev/status`.
    pub resource: String,
    /// HTTP status of the answer.
    pub code: u16,
}

/// One write that took place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub caller: Caller,
    /// What was done.
    pub verb: &'static str,
    /// To which object.
    pub target: Target,
    /// The version it made.
    pub version: u64,
}

impl Audit {
    /// Counts a request.
    pub fn count(&mut self, request: Request) {
        *self.requests.entry(request).or_default() += 1;
    }

    /// Counts a request for something that this server has not.
    pub fn count_unsupported(&mut self, what: &str) {
        *self.unsupported.entry(what.to_owned()).or_default() += 1;
    }

    /// All requests, counted.
    pub fn requests(&self) -> &BTreeMap<Request, u64> {
        &self.requests
    }

    /// Requests for what this server has not; a run that leaves something here is not to be trusted.
    pub fn unsupported(&self) -> &BTreeMap<String, u64> {
        &self.unsupported
    }

    /// All writes, oldest first. The behaviours of the world are among them, by their names.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// Writes that one program made to one kind.
    pub fn writes_by<'a>(
        &'a self,
        agent: &'a str,
        resource: Resource,
    ) -> impl Iterator<Item = &'a Write> {
        let wanted =
            move |write: &&Write| write.caller.agent == agent && write.target.resource == resource;
        self.writes.iter().filter(wanted)
    }

    /// Writes that were too many to be kept.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub(super) fn wrote(&mut self, write: Write) {
        if self.writes.len() < KEPT {
            self.writes.push(write);
        } else {
            self.forgotten += 1;
        }
    }
}

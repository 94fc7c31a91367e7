//! One workload's line: what is heard goes to the registry, what is to be said waits in a queue.

use std::os::fd::AsFd;
use std::time::Duration;

use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::ToWorkload;
use tokio::sync::mpsc;
use tracing::debug;

use crate::adapters::workload_socket::Connection;
use crate::adapters::workload_socket::SocketError;
use crate::data::handed::Allowance;
use crate::data::handed::Handed;
use crate::data::ring::Ring;
use crate::data::save::Part;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// Frames that may wait until a workload reads them. One that reads none is cut off.
const FRAMES_MAX: usize = 256;

/// How long a workload whose pod has handed over as many descriptors as it may waits until some are
/// stored. Its line is not read meanwhile, so that what it sends stays its own.
const ROOM: Duration = Duration::from_mins(1);

/// Numbers the connections of this agent's life.
pub(super) type SessionId = u64;

/// What a line tells the registry.
#[derive(Debug)]
pub(super) enum Heard {
    /// A frame, with its descriptors.
    Frame(Box<FromWorkload>, Vec<Handed>),
    /// A stand-in's parts of the stream of a save.
    Files {
        /// Which save.
        save: u64,
        /// All of its parts.
        parts: Vec<Part>,
    },
    /// It is closed, by either side.
    Closed,
}

/// Where frames are said. When all clones are dropped the line is closed.
#[derive(Clone, Debug)]
pub(super) struct Mouth(mpsc::Sender<Said>);

/// What is still to be said.
pub(super) type Unsaid = mpsc::Receiver<Said>;

/// A frame to be said.
#[derive(Debug)]
pub(super) struct Said {
    /// What is said.
    pub(super) frame: ToWorkload,
    /// The ring beside it.
    pub(super) ring: Option<Ring>,
}

/// A line that is closed, or whose workload does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dead;

/// A mouth, and what is said by it.
pub(super) fn mouth() -> (Mouth, Unsaid) {
    let (say, said) = mpsc::channel(FRAMES_MAX);
    (Mouth(say), said)
}

impl Mouth {
    /// Says a frame, soon. Never waits: a workload must not hold up the agent.
    pub(super) fn say(&self, frame: ToWorkload) -> Result<(), Dead> {
        self.queue(Said { frame, ring: None })
    }

    /// Says a frame with a ring beside it.
    pub(super) fn lend(&self, frame: ToWorkload, ring: &Ring) -> Result<(), Dead> {
        self.queue(Said { frame, ring: Some(ring.clone()) })
    }

    fn queue(&self, said: Said) -> Result<(), Dead> {
        self.0.try_send(said).map_err(|refused| {
            if matches!(refused, mpsc::error::TrySendError::Full(_)) {
                metrics::overflow("workload_frames");
            }
            Dead
        })
    }
}

/// Serves a line until it is closed, and says so.
pub(super) async fn serve(
    connection: Connection,
    number: SessionId,
    (unsaid, allowance): (Unsaid, Allowance),
    tell: mpsc::Sender<(SessionId, Heard)>,
) {
    let served = tokio::select! {
        biased;
        written = write(&connection.sender, unsaid) => written,
        read = read(connection.receiver, (number, allowance), &tell) => read,
    };
    if let Err(error) = served {
        metrics::error("workload_socket", error.label());
        debug!(session = number, error = %Chain(&error), "line of a workload broke");
    }
    // The registry is gone only when the agent ends.
    tell.send((number, Heard::Closed)).await.ok();
}

async fn write(
    sender: &crate::adapters::workload_socket::Sender,
    mut unsaid: Unsaid,
) -> Result<(), SocketError> {
    while let Some(said) = unsaid.recv().await {
        let descriptor = said.ring.as_ref().map(AsFd::as_fd);
        sender.send(&said.frame, descriptor).await?;
    }
    Ok(())
}

async fn read(
    mut receiver: crate::adapters::workload_socket::Receiver,
    (number, allowance): (SessionId, Allowance),
    tell: &mpsc::Sender<(SessionId, Heard)>,
) -> Result<(), SocketError> {
    while let Some((frame, descriptors)) = receiver.receive().await? {
        let counted = tokio::time::timeout(ROOM, allowance.count(descriptors)).await;
        let Ok(descriptors) = counted else {
            metrics::overflow("workload_descriptors");
            break;
        };
        let heard = Heard::Frame(Box::new(frame), descriptors);
        if tell.send((number, heard)).await.is_err() {
            break;
        }
    }
    Ok(())
}

//! What can go wrong, by what the caller can do about it.

use std::io;
use std::path::PathBuf;

use lifeboat_checkpoint::chunk::ChunkError;
use lifeboat_checkpoint::key::KeyError;
use lifeboat_checkpoint::manifest::ManifestError;
use lifeboat_checkpoint::region::LayoutError;
use lifeboat_protocol::frame::Failure;

/// Why something was not done for the program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An environment variable has a value that it cannot have.
    #[error("`{name}` is `{value}`, which is not {allowed}")]
    Setting {
        /// Which variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// Nobody answers at the socket.
    #[error(
        "agent at `{socket}` did not answer. Is the pod's `lifeboat.dev` volume mounted, and the \
         agent running on this node? Without `LIFEBOAT_REQUIRED=1` the program runs unprotected."
    )]
    AgentUnreachable {
        /// Where.
        socket: PathBuf,
    },
    /// The agent does not serve this program.
    #[error("agent does not serve this program: {reason}")]
    Refused {
        /// What it says.
        reason: String,
    },
    /// Another program holds this job key and rank.
    #[error(
        "job key is in use by {holder}. Two programs with one key would overwrite each other: give \
         one of them another `lifeboat.dev/job-key`."
    )]
    KeyInUse {
        /// Who.
        holder: String,
    },
    /// Two parts of the state have one name.
    #[error("`{name}` is registered already. Give each part a name of its own.")]
    RegisteredTwice {
        /// The name.
        name: String,
    },
    /// A part of the state was held by somebody when it had to be saved or restored.
    #[error("`{name}` was locked. Drop its guard before `step`, `safe_point` and `restore`.")]
    Busy {
        /// Which part.
        name: String,
    },
    /// A part of the state has a name that lies within another's.
    #[error("`{name}` lies within `{other}`, which is registered already. Give it another name.")]
    Nested {
        /// Its name.
        name: String,
        /// The other's.
        other: String,
    },
    /// A part of the state did not say what it consists of.
    #[error("`{name}` was not read: {reason}")]
    NotRead {
        /// Which part.
        name: String,
        /// Why.
        reason: String,
    },
    /// The boat was closed while the program waited for it.
    #[error("boat is closed. Nothing is saved any more.")]
    Closed,
    /// The state cannot be described.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The checkpoint was saved by another number of ranks.
    #[error("checkpoint is of {saved} ranks, this job has {own}. Start with as many as it had.")]
    OtherWorld {
        /// How many it was saved from.
        saved: u32,
        /// How many there are.
        own: u32,
    },
    /// A part of the state has another shape or type than what was saved.
    #[error(
        "`{name}` is {own} here and {saved} in the checkpoint. Build the state as it was saved, or \
         begin anew with the annotation `lifeboat.dev/restore: never`."
    )]
    OtherShape {
        /// Which part.
        name: String,
        /// As registered.
        own: String,
        /// As saved.
        saved: String,
    },
    /// A part of the state is not in the checkpoint.
    #[error(
        "checkpoint has no `{name}`. Register what was saved, or begin anew with the annotation \
         `lifeboat.dev/restore: never`."
    )]
    Missing {
        /// Which part.
        name: String,
    },
    /// A part of the state could not take what was saved.
    #[error("`{name}` does not take what was saved: {reason}")]
    NotTaken {
        /// Which part.
        name: String,
        /// Why.
        reason: String,
    },
    /// A save did not work.
    #[error("state was not saved: {reason}.{}", advice(*why))]
    NotSaved {
        /// What kind of failure.
        why: Failure,
        /// In words.
        reason: String,
    },
    /// A restore did not work. The state may be partly overwritten: do not go on with it.
    #[error("state was not restored: {reason}.{}", advice(*why))]
    NotRestored {
        /// What kind of failure.
        why: Failure,
        /// In words.
        reason: String,
    },
    /// A file of the state, or of the local folder, could not be read or written.
    #[error("`{path}` was not {what}")]
    File {
        /// Which file.
        path: PathBuf,
        /// `read`, `written` and so on.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What lies in the local folder is no checkpoint.
    #[error("`{path}` is not a checkpoint that can be used")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Damage,
    },
    /// The system did not give what the boat needs.
    #[error("{what} was not set up")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with a file of a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A chunk.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Error {
    /// Its name in logs and metrics, from a closed list.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Setting { .. } => "setting",
            Self::AgentUnreachable { .. } => "agent-unreachable",
            Self::Refused { .. } => "refused",
            Self::KeyInUse { .. } => "key-in-use",
            Self::RegisteredTwice { .. } => "registered-twice",
            Self::Busy { .. } => "busy",
            Self::Nested { .. } => "nested",
            Self::NotRead { .. } => "not-read",
            Self::Closed => "closed",
            Self::Layout(_) => "layout",
            Self::OtherWorld { .. } => "other-world",
            Self::OtherShape { .. } => "other-shape",
            Self::Missing { .. } => "missing",
            Self::NotTaken { .. } => "not-taken",
            Self::NotSaved { why: Failure::TooLate, .. } => "too-late",
            Self::NotSaved { why: Failure::Superseded, .. }
            | Self::NotRestored { why: Failure::Superseded, .. } => "superseded",
            Self::NotSaved { .. } => "not-saved",
            Self::NotRestored { .. } => "not-restored",
            Self::File { .. } => "file",
            Self::Damaged { .. } => "damaged",
            Self::System { .. } => "system",
        }
    }
}

/// What to do about a failure, as a sentence after the reason.
fn advice(why: Failure) -> &'static str {
    match why {
        Failure::TooLate => {
            " State and step did not fit the time that was left: make the step shorter, call \
             `safe_point` within it, or register less."
        }
        Failure::Superseded => {
            " A newer run of this job holds its key: end this one, or give it another \
             `lifeboat.dev/job-key`."
        }
        Failure::Store => " `lifeboat doctor` says whether the agent may use the bucket.",
        Failure::Damaged => " Name an older epoch by the annotation `lifeboat.dev/restore`.",
        Failure::HandOver => {
            " Is anything else writing to the state meanwhile, and is `agent.ringBudget` large enough \
             for all workloads of the node?"
        }
        Failure::Rank => " The logs of the other ranks say why.",
        Failure::CalledOff | Failure::Unknown => "",
    }
}

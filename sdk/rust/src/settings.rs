//! What the environment says: where the agent is, and which rank this is.

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::Error;
use crate::event::Event;
use crate::event::Observer;

/// How a [`Boat`](crate::Boat) is set up.
#[derive(Clone)]
pub struct Settings {
    /// The agent's socket; none to run without an agent. `LIFEBOAT_SOCKET`.
    pub socket: Option<PathBuf>,
    /// Whether to run without protection if nobody answers there. `LIFEBOAT_REQUIRED`.
    pub required: Required,
    /// Where to save without an agent; none for nowhere. `LIFEBOAT_DIR`.
    pub folder: Option<PathBuf>,
    /// Which rank this is.
    pub rank: Rank,
    /// The life of the job. `LIFEBOAT_RUN_ID`, or torchrun's.
    pub run_id: String,
    /// How often it was restarted in that life. torchrun's `TORCHELASTIC_RESTART_COUNT`.
    pub restart_count: u32,
    /// Whether the boat listens to SIGTERM.
    pub signals: Signals,
    /// Who is told what happens; by default a line each on stderr.
    pub observer: Observer,
    /// What a thread of the program does while it waits; by default nothing.
    pub pulse: Option<Pulse>,
}

/// Called about ten times a second on a thread of the program that waits in a call, but not while
/// its state is being handed over. `Break` closes the boat, and the call returns.
///
/// For languages whose signal handlers run on the program's own threads.
pub type Pulse = Arc<dyn Fn() -> ControlFlow<()> + Send + Sync>;

/// Which rank this is, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Among all.
    pub rank: u32,
    /// On this node.
    pub local_rank: u32,
    /// How many there are.
    pub world: u32,
    /// How many in this pod; 0 if that is not known.
    pub local_world: u32,
}

/// What to do when nobody answers at the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Required {
    /// Warn, go on, and keep trying.
    No,
    /// Fail.
    Yes,
}

/// Whether SIGTERM is listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// It means: save, and end. Handlers that were there before are called as before.
    Heard,
    /// The program sees to it, and nothing is saved on SIGTERM unless the agent asks.
    Left,
}

impl Settings {
    /// Without an agent and without a folder: nothing is saved.
    pub fn alone() -> Self {
        Self {
            socket: None,
            required: Required::No,
            folder: None,
            rank: Rank { rank: 0, local_rank: 0, world: 1, local_world: 0 },
            run_id: String::new(),
            restart_count: 0,
            signals: Signals::Heard,
            observer: Arc::new(print),
            pulse: None,
        }
    }

    /// As the environment says, which is read through `variable`.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name| variable(name).map(PathBuf::from);
        let run_id = ["LIFEBOAT_RUN_ID", "TORCHELASTIC_RUN_ID"].into_iter().find_map(&variable);
        Ok(Self {
            socket: path("LIFEBOAT_SOCKET"),
            required: required(variable("LIFEBOAT_REQUIRED").as_deref())?,
            folder: path("LIFEBOAT_DIR"),
            rank: rank(&variable)?,
            run_id: run_id.unwrap_or_default(),
            restart_count: number(&variable, &["TORCHELASTIC_RESTART_COUNT"])?.unwrap_or(0),
            ..Self::alone()
        })
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Settings")
            .field("socket", &self.socket)
            .field("required", &self.required)
            .field("folder", &self.folder)
            .field("rank", &self.rank)
            .field("run_id", &self.run_id)
            .field("restart_count", &self.restart_count)
            .field("signals", &self.signals)
            .finish_non_exhaustive()
    }
}

fn required(value: Option<&str>) -> Result<Required, Error> {
    match value {
        None | Some("0" | "false") => Ok(Required::No),
        Some("1" | "true") => Ok(Required::Yes),
        Some(value) => {
            let (name, allowed) = ("LIFEBOAT_REQUIRED", "1 or 0");
            Err(Error::Setting { name, value: value.to_owned(), allowed })
        }
    }
}

/// By the names of torchrun, then of Open MPI; the completion index only beside a world size,
/// since the pods of an indexed Job need not belong together.
fn rank(variable: &impl Fn(&str) -> Option<String>) -> Result<Rank, Error> {
    let world = number(variable, &["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])?;
    let own = number(variable, &["RANK", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX"])?;
    let local = number(variable, &["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"])?;
    let local_world = number(variable, &["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"])?;
    let Some(world) = world else {
        return Ok(Settings::alone().rank);
    };
    let rank = own.unwrap_or(0);
    if rank >= world {
        let value = rank.to_string();
        return Err(Error::Setting { name: "RANK", value, allowed: "below `WORLD_SIZE`" });
    }
    let (local_rank, local_world) = (local.unwrap_or(0), local_world.unwrap_or(0));
    Ok(Rank { rank, local_rank, world, local_world })
}

fn number(
    variable: &impl Fn(&str) -> Option<String>,
    names: &[&'static str],
) -> Result<Option<u32>, Error> {
    for name in names {
        if let Some(value) = variable(name) {
            let refused = |_| Error::Setting { name, value: value.clone(), allowed: "a number" };
            return value.parse().map(Some).map_err(refused);
        }
    }
    Ok(None)
}

#[expect(clippy::print_stderr, reason = "the one place where the boat speaks to people")]
fn print(event: &Event) {
    eprintln!("lifeboat: {event}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::from_environment(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_set_is_a_laptop() {
        let settings = check(&[]).unwrap();
        assert_eq!((settings.socket, settings.folder), (None, None));
        assert_eq!(settings.rank, Rank { rank: 0, local_rank: 0, world: 1, local_world: 0 });
    }

    #[test]
    fn ranks_are_those_of_torchrun_or_mpi() {
        let settings = check(&[("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")]).unwrap();
        assert_eq!(settings.rank, Rank { rank: 3, local_rank: 1, world: 4, local_world: 0 });
        let settings =
            check(&[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")]).unwrap();
        assert_eq!(settings.rank.rank, 1);
    }

    #[test]
    fn a_completion_index_alone_is_no_rank() {
        assert_eq!(check(&[("JOB_COMPLETION_INDEX", "3")]).unwrap().rank.rank, 0);
        let beside = check(&[("JOB_COMPLETION_INDEX", "3"), ("WORLD_SIZE", "4")]).unwrap();
        assert_eq!(beside.rank.rank, 3);
    }

    #[test]
    fn a_value_that_cannot_be_is_refused_by_name() {
        let refused = check(&[("LIFEBOAT_REQUIRED", "yes")]).unwrap_err();
        assert_eq!(refused, "`LIFEBOAT_REQUIRED` is `yes`, which is not 1 or 0");
        assert!(check(&[("WORLD_SIZE", "two")]).unwrap_err().contains("`WORLD_SIZE` is `two`"));
        assert!(check(&[("WORLD_SIZE", "2"), ("RANK", "2")]).is_err());
    }
}

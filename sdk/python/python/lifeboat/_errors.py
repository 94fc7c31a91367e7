"""What can go wrong, by what the program or its owner can do about it."""

AS_IT_WAS = (
    "Build the state as it was saved, or begin anew with the annotation "
    "`lifeboat.dev/restore: never`."
)
"""What to do about a checkpoint that does not fit."""


class LifeboatError(Exception):
    """Anything that Lifeboat did not do. Its text says what to do about it."""


class SettingError(LifeboatError, ValueError):
    """An environment variable has a value that it cannot have."""


class AgentUnreachableError(LifeboatError, ConnectionError):
    """Nobody answers at the socket, and `LIFEBOAT_REQUIRED=1` or `required=True` asks for it."""


class RefusedError(LifeboatError):
    """The agent does not serve this program."""


class KeyInUseError(LifeboatError):
    """Another program holds this job key and rank: give one of them another."""


class NameTakenError(LifeboatError, ValueError):
    """Two parts of the state have one name, or one lies within the other's."""


class UnsupportedStateError(LifeboatError, TypeError):
    """Something in the state cannot be saved as it is. `path` says where it is."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class PickleRefusedError(UnsupportedStateError):
    """A pickle, in a boat that was connected without `allow_pickle=True`."""


class BusyError(LifeboatError):
    """A part of the state was held by somebody when it had to be saved or restored."""


class OtherWorldError(LifeboatError):
    """The checkpoint was saved by another number of ranks: start with as many."""


class OtherShapeError(LifeboatError):
    """A part of the state has another shape or type than what was saved."""


class MissingError(LifeboatError, LookupError):
    """A part of the state is not in the checkpoint."""


class NotTakenError(LifeboatError):
    """A part of the state could not take what was saved."""


class NotSavedError(LifeboatError):
    """A save did not work. The program may go on."""


class TooLateError(NotSavedError):
    """State and step did not fit the time that was left."""


class SupersededError(LifeboatError):
    """A newer run of this job holds its key: this one is to end."""


class NotRestoredError(LifeboatError):
    """A restore did not work. The state may be partly overwritten: do not go on with it."""


class FileError(LifeboatError, OSError):
    """A file of the local folder could not be read or written."""


class DamagedError(LifeboatError):
    """What lies in the local folder is no checkpoint that can be used."""


class SystemRefusedError(LifeboatError, OSError):
    """The system did not give what the boat needs, as a thread."""


class ClosedError(LifeboatError):
    """The boat is closed, and nothing is saved any more."""


BY_LABEL: dict[str, type[LifeboatError]] = {
    "setting": SettingError,
    "agent-unreachable": AgentUnreachableError,
    "refused": RefusedError,
    "key-in-use": KeyInUseError,
    "registered-twice": NameTakenError,
    "nested": NameTakenError,
    "busy": BusyError,
    "not-read": UnsupportedStateError,
    "closed": ClosedError,
    "layout": UnsupportedStateError,
    "other-world": OtherWorldError,
    "other-shape": OtherShapeError,
    "missing": MissingError,
    "not-taken": NotTakenError,
    "not-saved": NotSavedError,
    "too-late": TooLateError,
    "superseded": SupersededError,
    "not-restored": NotRestoredError,
    "file": FileError,
    "damaged": DamagedError,
    "system": SystemRefusedError,
}
"""The exception for each label of the Rust SDK's errors."""

"""The boat: what a program calls."""

import atexit
from collections.abc import Callable
from os import PathLike, fspath
from types import TracebackType
from typing import Self, TypeVar

from lifeboat import _signals
from lifeboat._core import Core, Event, Notice
from lifeboat._files import Files
from lifeboat._replicas import Replicas
from lifeboat._state import Part

_Hook = TypeVar("_Hook", bound=Callable[[Notice], object])


def connect(
    *,
    socket: str | PathLike[str] | None = None,
    folder: str | PathLike[str] | None = None,
    required: bool | None = None,
    allow_pickle: bool = False,
    observer: Callable[[Event], object] | None = None,
) -> "Boat":
    """Connects to the agent, as the environment says unless it is said here.

    Without an agent (`LIFEBOAT_SOCKET`) the program runs as it is; with a folder (`LIFEBOAT_DIR`)
    it is saved there on SIGTERM, and goes on from there. Blocks if the node is interrupted
    already: a program started there has nothing to do.

    To be called from the main thread, since only there Python lets SIGTERM be heard. From another
    one the agent alone asks for saves.

    `required`: whether it is an error if no agent answers (`LIFEBOAT_REQUIRED`).
    `allow_pickle`: whether `lifeboat.pickled` may be saved, and what a checkpoint holds unpickled.
    Whoever can write to the bucket then runs code in this program.
    `observer`: called with everything that happens, on a thread of its own, in the place of the
    lines on stderr.
    """
    _signals.listen()
    with _signals.connecting():
        boat = Boat(Core.connect(socket, folder, (required, observer)), allow_pickle)
    _signals.add(boat._core)
    # The observer is called on another thread, which must not write while Python ends.
    atexit.register(boat._core.quiet)
    return boat


class Boat:
    """The program's side of Lifeboat: one for each rank, for as long as it runs.

    In a process that was forked from the program's, as a data loader's worker is, its calls do
    nothing.
    """

    def __init__(self, core: Core, allow_pickle: bool) -> None:
        self._core = core
        self._allow_pickle = allow_pickle
        self._replicas = Replicas()

    def register(self, name: str, obj: object, *, replicated: bool | None = None) -> None:
        """Adds a part to the state. All are to be added before `restore` and the first `step`.

        `obj` is anything that can be filled in place: an object with `state_dict` and
        `load_state_dict`, a NumPy array, a PyTorch tensor, a writable buffer, a random number
        generator, or a dict or list of these and of plain values. What it holds is read when it is
        saved, so it may change and grow, but the object itself must stay the same.

        `replicated`: all ranks hold the same tensors, so that one of them can hand them over. By
        itself for a model under DDP that has no buffers, and for the optimizer of its parameters.

        Raises UnsupportedStateError, with the path of what cannot be saved.
        """
        if replicated is None:
            replicated = self._replicas.hold(obj)
        self._core.register(name, Part(name, obj, replicated, self._allow_pickle))

    def register_files(
        self,
        *,
        save: Callable[[str], object],
        load: Callable[[str], object],
        name: str = "files",
        scratch: str | PathLike[str] | None = None,
    ) -> None:
        """Adds state that a framework keeps for itself: DeepSpeed, Accelerate, Megatron.

        `save(folder)` writes all of it into an empty folder, and returns when the files are
        complete; `load(folder)` takes it from a folder with the same files. Both are called within
        `step`, `save` and `restore`, on the thread that calls these.

        The files go to the agent by descriptor and are unlinked at once. `scratch` is where the
        folder is made, by default where `tempfile` makes its own: it needs room for one state.
        """
        place = None if scratch is None else fspath(scratch)
        self._core.register(name, Files(name, save, load, place))

    def restore(self, default: int = 0, *, newer_than: int | None = None) -> int:
        """Fills the state with the newest that was saved; returns how many steps it has.

        `default` if there is nothing, or if the work is finished. With `newer_than`, nothing is
        restored unless it has more steps than that. Reads at once, and returns when it is proven
        that the old life is over, which may take minutes.
        """
        _signals.check()
        step = self._core.restore(newer_than)
        return default if step is None else step

    def step(self, step: int) -> None:
        """Says that `step` steps are complete. To be called once for each, after the optimizer.

        When a save is due the state is handed over in here, and the program stands still; on
        SIGTERM it ends in here, with exit code 143.
        """
        self._core.step(step)

    def safe_point(self) -> None:
        """A safe point in the midst of a step, where the state is that of the last `step` still."""
        self._core.safe_point()

    def save(self) -> int | None:
        """Saves now, says as which epoch, and goes on. None if there is nowhere to save to."""
        return self._core.save()

    def finish(self) -> None:
        """Says that the work is done: nothing is resumed after it. Blocks until that is stored."""
        self._core.finish()

    def on_notice(self, hook: _Hook) -> _Hook:
        """Calls `hook` at each notice, on a thread of its own; the deadline may come nearer."""
        self._core.on_notice(hook)
        return hook

    def close(self) -> None:
        """Lets go of the agent, and of SIGTERM. Nothing is saved any more."""
        _signals.remove(self._core)
        self._core.close()
        self._core.quiet()
        atexit.unregister(self._core.quiet)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

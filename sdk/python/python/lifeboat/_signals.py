"""SIGTERM, heard as Python hears signals: the program's own handler is kept, and called at the end.

The boat's handler takes its place while there is a boat that can save. It tells the boat, which
saves at the next safe point; the program's handler is called, with what it would have been given,
when that is done and before the program ends.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from lifeboat._core import Core

_Handler = Callable[[int, FrameType | None], object]

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a program that SIGTERM ended."""

_PATIENCE = 5.0
"""How long the main thread has to begin with the program's handler, in seconds."""

_GRACE = 3600.0
"""How long that handler may take; whoever ends the pod has a shorter grace."""

_boats: list[Core] = []
_before: object = signal.SIG_DFL
_connecting = 0
_ending: int | None = None
_finishing = threading.Event()


def listen() -> None:
    """Hears SIGTERM from now on, if this is the main thread."""
    global _before
    if threading.current_thread() is not threading.main_thread():
        _say("connect() was not called from the main thread: SIGTERM is heard by the agent only")
        return
    there = signal.getsignal(signal.SIGTERM)
    if there is not _on_sigterm:
        _before = there
        signal.signal(signal.SIGTERM, _on_sigterm)


def add(core: Core) -> None:
    """Tells this boat of SIGTERM."""
    _boats.append(core)


def remove(core: Core) -> None:
    """No more; without a boat SIGTERM is the program's again."""
    with contextlib.suppress(ValueError):
        _boats.remove(core)
    if not _boats:
        _give_back()


def check() -> None:
    """Says so if another handler took the boat's place."""
    if _boats and _is_main() and signal.getsignal(signal.SIGTERM) is not _on_sigterm:
        _say(
            "WARNING: SIGTERM has a handler that was set after connect(), and is heard by the "
            "agent only. Set it before, and it is called when the state is saved"
        )


def retake() -> None:
    """Takes SIGTERM back from a framework whose own handler would end the program unsaved."""
    if _is_main() and any(boat.saves for boat in _boats):
        signal.signal(signal.SIGTERM, _on_sigterm)


@contextlib.contextmanager
def connecting() -> Iterator[None]:
    """While a boat is being connected there is nothing to save yet."""
    global _connecting
    _connecting += 1
    try:
        yield
    finally:
        _connecting -= 1
        if not _boats and not _connecting and sys.exc_info()[0] is not None:
            _give_back()


def end(code: int) -> None:
    """Ends the program, after its own handler of SIGTERM. Called on the thread that decided it."""
    global _ending
    _ending = code
    if _is_main():
        _finish(None)
    if callable(signal.getsignal(signal.SIGTERM)) and _own_handler() is not None:
        # Handlers belong on the main thread, wherever it is.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        if _finishing.wait(_PATIENCE):
            time.sleep(_GRACE)
    _leave(code)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if _ending is not None:
        _finish(frame)
    boats = [boat for boat in _boats if boat.saves and not boat.finished]
    if boats:
        for boat in boats:
            boat.terminate()
    elif (own := _own_handler()) is not None:
        own(number, frame)
    elif _connecting or any(not boat.finished for boat in _boats):
        _say("told to end, and there is nothing to save")
        _leave(TERMINATED)


def _own_handler() -> _Handler | None:
    """The program's, if it had one."""
    return _before if callable(_before) else None


def _finish(frame: FrameType | None) -> NoReturn:
    own = None if _finishing.is_set() else _own_handler()
    _finishing.set()
    if own is not None:
        try:
            own(signal.SIGTERM, frame)
        except SystemExit:
            pass
        except BaseException:
            sys.excepthook(*sys.exc_info())
    _leave(_ending if _ending is not None else TERMINATED)


def _leave(code: int) -> NoReturn:
    """Ends at once: what stands in buffers is written, and nothing else of the program runs."""
    with contextlib.suppress(Exception):
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


def _give_back() -> None:
    if _is_main() and signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, _before)  # type: ignore[arg-type]


def _in_fork() -> None:
    global _connecting
    _boats.clear()
    _connecting = 0
    _give_back()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _say(text: str) -> None:
    print(f"lifeboat: {text}", file=sys.stderr, flush=True)


os.register_at_fork(after_in_child=_in_fork)

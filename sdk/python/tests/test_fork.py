"""In a fork the boat does nothing, and the parent's is none the worse."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import lifeboat
import numpy as np
import pytest
from conftest import Connect
from peer import Peer


def in_child(boat: lifeboat.Boat) -> None:
    """Everything a program may call; each must return at once."""
    boat.register("late", np.zeros(1))
    assert boat.restore(default=5) == 5
    boat.step(9)
    boat.safe_point()
    assert boat.save() is None
    boat.on_notice(print)
    boat.finish()
    boat.close()


def test_the_childs_boat_is_inert(connect: Connect, tmp_path: Path) -> None:
    boat = connect()
    boat.register("weights", np.zeros(3))
    boat.step(1)
    child = os.fork()
    if child == 0:
        try:
            in_child(boat)
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert boat.save() == 1, "the parent's still saves"


def worker(boat: lifeboat.Boat, _: int) -> int:
    in_child(boat)
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("method", ["fork"])
def test_workers_of_a_loader_are_ended_without_the_parent(
    peer: Peer, connect: Connect, method: str
) -> None:
    peer.plays(lambda line: line.read_to_end())
    boat = connect(socket=peer.path)
    boat.register("weights", np.zeros(3))
    boat.step(1)
    started = multiprocessing.get_context(method)
    process = started.Process(target=time.sleep, args=(60,))
    process.start()
    time.sleep(0.1)
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGTERM, "SIGTERM ends it as if there were no boat"
    begun = time.monotonic()
    for _ in range(20):
        boat.step(2)
        time.sleep(0.01)
    assert time.monotonic() - begun < 20, "and the parent was not told to end"


def test_a_child_may_have_a_boat_of_its_own(connect: Connect, tmp_path: Path) -> None:
    parents = connect()
    child = os.fork()
    if child == 0:
        try:
            own, weights = lifeboat.connect(folder=tmp_path / "own"), np.ones(2)
            own.register("weights", weights)
            own.step(3)
            os._exit(0 if own.save() == 1 and own.restore() == 3 else 2)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    parents.close()

"""What a program calls: without an agent, with a folder, and with an agent spoken by hand."""

import os
import subprocess
import sys
import textwrap
import threading
import time
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lifeboat
import numpy as np
import pytest
from conftest import Connect
from peer import HEADER, PATIENCE, Line, Peer


def test_alone_everything_is_a_word_in_the_wind() -> None:
    with lifeboat.connect() as boat:
        weights = np.ones(2)
        boat.register("weights", weights)
        assert boat.restore() == 0 and boat.restore(default=4) == 4
        boat.step(1)
        boat.safe_point()
        assert boat.save() is None
        boat.finish()


def test_the_newest_state_comes_back_and_nothing_after_the_end(connect: Connect) -> None:
    weights = np.zeros(2)
    boat = connect()
    boat.register("weights", weights)
    for step in (5, 6):
        weights[:] = step
        boat.step(step)
        assert boat.save() == step - 4
    weights[:] = 0
    assert boat.restore(newer_than=6) == 0 and weights.tolist() == [0, 0]
    assert boat.restore(default=6, newer_than=6) == 6
    assert boat.restore(newer_than=5) == 6 and weights.tolist() == [6, 6]
    boat.finish()
    assert boat.restore(default=9) == 9


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIFEBOAT_DIR", str(tmp_path))
    with lifeboat.connect() as boat:
        boat.register("state", {"a": 1})
        boat.step(1)
        assert boat.save() == 1
    monkeypatch.setenv("LIFEBOAT_REQUIRED", "maybe")
    with pytest.raises(lifeboat.SettingError, match="`LIFEBOAT_REQUIRED` is `maybe`"):
        lifeboat.connect()


def test_a_damaged_folder_is_refused_by_name(connect: Connect, tmp_path: Path) -> None:
    boat = connect()
    boat.register("weights", np.ones(2))
    boat.step(1)
    boat.save()
    for chunk in (tmp_path / "folder").rglob("chunks/**/*"):
        if chunk.is_file():
            chunk.write_bytes(bytes(16))
    with pytest.raises(lifeboat.DamagedError, match="is not a checkpoint that can be used: "):
        boat.restore()


def test_a_folder_that_cannot_be_written_is_said(connect: Connect) -> None:
    boat = connect(folder="/proc/none")
    boat.register("weights", np.ones(2))
    boat.step(1)
    with pytest.raises(lifeboat.FileError, match="`/proc/none.*was not made"):
        boat.save()


def test_a_required_agent_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(lifeboat.AgentUnreachableError, match="Is the pod's `lifeboat.dev` volume"):
        lifeboat.connect(socket=tmp_path / "nobody", required=True)


@pytest.fixture
def quick() -> Iterator[None]:
    """A test that must not wait for any timeout."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < PATIENCE / 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        ({"frame": "key-in-use", "holder": "pod `a`", "wait": False}, "KeyInUseError", "pod `a`"),
        ({"frame": "refused", "reason": "not here"}, "RefusedError", "not here"),
        (
            {"frame": "welcome", "version": {"major": 9, "minor": 0}},
            "RefusedError",
            "version 9 of the protocol, this SDK 1. Update the SDK in this image",
        ),
        (
            {"frame": "welcome", "version": {"major": 0, "minor": 7}},
            "RefusedError",
            "version 0 of the protocol, this SDK 1. Update the agent of this node",
        ),
    ],
)
def test_an_agent_that_does_not_serve_it_is_an_error(
    peer: Peer, frame: dict[str, Any], error: str, words: str
) -> None:
    peer.answers(frame)
    with pytest.raises(getattr(lifeboat, error), match=words):
        lifeboat.connect(socket=peer.path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("offer", "error", "words"),
    [
        ({"world": 2}, "OtherWorldError", "of 2 ranks, this job has 1"),
        ({"layout": {"regions": []}}, "MissingError", "no `weights`.* begin anew with"),
        ({"shape": [4]}, "OtherShapeError", r"f64 \[2\] here and f64 \[4\] in .* as it was"),
        ({"failed": "store"}, "NotRestoredError", "it was so. `lifeboat doctor` says whether"),
        ({"failed": "damaged"}, "NotRestoredError", "it was so. Name an older epoch"),
        ({"failed": "superseded"}, "SupersededError", "A newer run of this job holds its key"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(
    peer: Peer, offer: dict[str, Any], error: str, words: str
) -> None:
    def play(line: Line) -> None:
        line.hear("restore")
        if "failed" in offer:
            line.say("restore-failed", restore=1, why=offer["failed"], reason="it was so")
            return
        shape = offer.get("shape", [2])
        region = {"name": "weights", "dtype": "f64", "shape": shape, "bytes": 8 * shape[0]}
        layout = {"regions": [region], "tree": {"map": []}}
        full = {"restore": 1, "epoch": 1, "step": 3, "world": 1, "layout": layout, **offer}
        full["layout"] = {"tree": {"map": []}, **full["layout"]}
        line.say("restore-offer", **full)
        line.hear("decline")

    peer.plays(play)
    with lifeboat.connect(socket=peer.path) as boat:
        boat.register("weights", np.zeros(2))
        with pytest.raises(getattr(lifeboat, error), match=words):
            boat.restore()


def test_what_the_agent_wrote_into_the_ring_comes_to_its_place(peer: Peer) -> None:
    import os

    def play(line: Line) -> None:
        line.lend(2, 4096)
        line.hear("restore")
        regions = [
            {"name": "model/a", "dtype": "f32", "shape": [1024], "bytes": 4096},
            {"name": "model/b", "dtype": "u8", "shape": [10], "bytes": 10},
        ]
        values = [[{"str": name}, {"region": f"model/{name}"}] for name in ("a", "b")]
        tree = {"map": [[{"str": "model"}, {"map": [*values, [{"str": "lr"}, {"float": "0.1"}]]}]]}
        layout = {"regions": regions, "tree": tree}
        line.say("restore-offer", restore=1, epoch=1, step=3, world=1, layout=layout)
        line.hear("accept")
        os.pwrite(line.ring, np.arange(1024, dtype=np.float32).tobytes(), HEADER + 4096)
        line.say("filled", restore=1, slot=1, offset=0, bytes=4096)
        assert line.hear("emptied")["slot"] == 1
        line.say("zeros", restore=1, offset=4096, bytes=10)
        line.say("waiting", restore=1, reason="for the end of pod `a`")
        line.say("opened", restore=1, epoch=2, step=3, proof="Released")
        line.hear("resumed")

    peer.plays(play)
    model = {"a": np.zeros(1024, np.float32), "b": np.ones(10, np.uint8), "lr": 0.5}
    with lifeboat.connect(socket=peer.path) as boat:
        boat.register("model", model)
        assert boat.restore() == 3
    assert (model["a"] == np.arange(1024)).all() and not model["b"].any() and model["lr"] == 0.1


def test_a_save_for_insurance_is_taken_and_the_program_goes_on(peer: Peer) -> None:
    saved: list[Any] = []

    def play(line: Line) -> None:
        line.lend(2, 4096)
        for save in (1, 2):
            while line.next()["frame"] != "save-wanted":
                pass
            line.ask(save, "insurance")
            saved.append(line.take(save))
            line.say("durable", save=save, step=1, epoch=4, bytes=0, took_ns=0, spare_ns=None)

    peer.plays(play)
    weights = np.arange(3000, dtype=np.uint16)
    with lifeboat.connect(socket=peer.path) as boat:
        boat.register("state", {"weights": weights, "epoch": 3})
        boat.step(1)
        assert boat.save() == 4
        weights += 1
        boat.save()
    (begin, first), (_, second) = saved
    assert first == np.arange(3000, dtype=np.uint16).tobytes() and second == weights.tobytes()
    assert begin["layout"]["regions"][0]["name"] == "state/weights"
    assert [{"str": "epoch"}, {"int": 3}] in begin["layout"]["tree"]["map"][0][1]["map"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("why", "error", "words"),
    [
        ("too-late", "TooLateError", "call `safe_point` within it, or register less"),
        ("superseded", "SupersededError", "end this one, or give it another `lifeboat.dev/job-key"),
        ("store", "NotSavedError", "`lifeboat doctor` says whether"),
        ("hand-over", "NotSavedError", "is `agent.ringBudget` large enough"),
        ("rank", "NotSavedError", "The logs of the other ranks say why"),
        ("of-a-newer-agent", "NotSavedError", "state was not saved: it was so.$"),
    ],
)
def test_a_save_that_does_not_work_says_what_to_do(
    peer: Peer, why: str, error: str, words: str
) -> None:
    def play(line: Line) -> None:
        line.lend(1, 4096)
        line.hear("save-wanted")
        line.ask(1, "insurance")
        line.hear("save-begin")
        line.say("save-failed", save=1, why=why, reason="it was so")

    peer.plays(play)
    with lifeboat.connect(socket=peer.path) as boat:
        boat.register("weights", np.ones(2))
        boat.step(1)
        with pytest.raises(getattr(lifeboat, error), match=words):
            boat.save()
        boat.step(2)


def test_a_full_ring_is_waited_for(peer: Peer) -> None:
    taken: list[bytes] = []

    def play(line: Line) -> None:
        line.lend(1, 4096)
        line.hear("save-wanted")
        line.ask(1, "insurance")
        line.hear("save-begin")
        while (frame := line.next())["frame"] != "save-end":
            # The only slot is the agent's for a while.
            time.sleep(0.05)
            taken.append(os.pread(line.ring, frame["bytes"], HEADER))
            line.say("freed", save=1, slot=0)
        line.say("taken", save=1)
        line.say("durable", save=1, step=1, epoch=1)

    peer.plays(play)
    weights = np.arange(5000, dtype=np.uint16)
    with lifeboat.connect(socket=peer.path) as boat:
        boat.register("weights", weights)
        boat.step(1)
        assert boat.save() == 1
    assert b"".join(taken) == weights.tobytes() and len(taken) == 3


def test_replicated_parts_are_told_so(peer: Peer) -> None:
    heard: list[Any] = []

    told = threading.Event()

    def play(line: Line) -> None:
        heard.append(line.hear("register"))
        told.set()

    peer.plays(play)
    with lifeboat.connect(socket=peer.path) as boat:
        boat.register("model", {"w": np.zeros(2)}, replicated=True)
        assert told.wait(PATIENCE)
    (region,) = heard[0]["layout"]["regions"]
    assert (region["name"], region["spread"]) == ("model/w", "replicated")


def test_hooks_are_told_of_a_notice_and_how_long_there_is(peer: Peer) -> None:
    def play(line: Line) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        deadline = {"boottime_ns": now + 90 * 10**9, "unix_ms": 0}
        time.sleep(0.3)
        line.say("notice", cause="interruption", deadline=deadline, text="it will be taken")

    peer.plays(play)
    told = threading.Event()
    notices: list[lifeboat.Notice] = []
    with lifeboat.connect(socket=peer.path) as boat:

        @boat.on_notice
        def hook(notice: lifeboat.Notice) -> None:
            notices.append(notice)
            told.set()

        assert told.wait(PATIENCE)
    (notice,) = notices
    remaining = notice.remaining()
    assert (notice.cause, notice.text) == ("interruption", "it will be taken")
    assert remaining is not None and 80 < remaining < 90


def test_other_threads_run_while_the_program_waits(peer: Peer) -> None:
    def play(line: Line) -> None:
        line.hear("restore")
        time.sleep(0.5)
        line.say("nothing-to-restore", reason="it is new")

    peer.plays(play)
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.005):
            ticks += 1

    done = threading.Event()
    thread = threading.Thread(target=tick)
    with lifeboat.connect(socket=peer.path) as boat:
        thread.start()
        boat.restore()
        done.set()
        thread.join()
    assert ticks > 20


def test_a_step_costs_little(connect: Connect) -> None:
    boat = connect()
    boat.register("weights", np.zeros(3))
    seconds = min(timeit.repeat(lambda: boat.step(1), number=10_000, repeat=20)) / 10_000
    print(f"boat.step: {seconds * 1e9:.0f} ns")
    # Below 2 µs when it is built for release; this may be a debug build on a busy machine.
    assert seconds < 10e-6


def test_what_was_not_restored_tells_no_lies_about_steps(connect: Connect) -> None:
    with pytest.raises(OverflowError):
        connect().step(-1)
    with pytest.raises(TypeError):
        connect().step("3")  # type: ignore[arg-type]


def test_an_observer_that_writes_does_not_meet_the_end_of_python(tmp_path: Path) -> None:
    program = """
    import sys, lifeboat
    def observe(event):
        for _ in range(2000):
            print(event, file=sys.stderr)
    boat = lifeboat.connect(observer=observe)
    boat.register("state", {"a": 1})
    boat.restore()
    boat.finish()
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["LIFEBOAT_DIR"] = str(tmp_path)
    run = [sys.executable, "-c", textwrap.dedent(program)]
    for _ in range(5):
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr.count("finished, nothing will be resumed\n") == 2000

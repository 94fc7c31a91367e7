"""SIGTERM, Ctrl-C and the program's own handlers, in programs of their own."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from peer import PATIENCE, Peer

PROGRAM = """
import signal, sys, threading, time
import lifeboat, numpy as np

{before}
boat = lifeboat.connect()
{after}
weights = np.zeros(1000, np.uint32)
boat.register("weights", weights)
start = boat.restore()
assert (weights == start).all()
print("from", start, flush=True)
for step in range(start + 1, 10_000):
    weights[:] = step
    boat.step(step)
    if step == start + 1:
        print("stepping", flush=True)
    time.sleep(0.01)
"""


class Program:
    """The program above, with some lines more."""

    def __init__(
        self, *, before: str = "", after: str = "", text: str = PROGRAM, **more: str
    ) -> None:
        dedent = textwrap.dedent
        environment = {**os.environ, **{name: str(value) for name, value in more.items()}}
        self.child = subprocess.Popen(
            [sys.executable, "-c", text.format(before=dedent(before), after=dedent(after))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, line: str) -> list[str]:
        assert self.child.stdout is not None
        return until(self.child.stdout, line)

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def ends(self, code: int) -> tuple[str, str]:
        """What it says on stdout and stderr up to its end."""
        out, err = self.child.communicate(timeout=PATIENCE)
        assert self.child.returncode == code, (out, err)
        return out, err


def until(stream: IO[str], line: str) -> list[str]:
    lines: list[str] = []
    for text in stream:
        lines.append(text.strip())
        if lines[-1] == line:
            return lines
    raise AssertionError(f"no `{line}` in {lines}")


def test_with_a_folder_it_saves_there_and_goes_on_from_there(tmp_path: Path) -> None:
    first = Program(LIFEBOAT_DIR=str(tmp_path))
    first.until("stepping")
    first.signal(signal.SIGTERM)
    _, said = first.ends(143)
    assert "is saved" in said, said
    again = Program(LIFEBOAT_DIR=str(tmp_path))
    lines = again.until("stepping")
    assert int(lines[0].removeprefix("from ")) >= 1
    again.signal(signal.SIGTERM)
    again.ends(143)


OWN = """
def own(number, frame):
    print("own handler:", number == signal.SIGTERM)
    {does}
signal.signal(signal.SIGTERM, own)
"""


@pytest.mark.parametrize("does", ["pass", "sys.exit(3)", "raise RuntimeError('of its own')"])
def test_the_programs_handler_is_called_once_when_all_is_saved(tmp_path: Path, does: str) -> None:
    program = Program(before=OWN.format(does=does), LIFEBOAT_DIR=str(tmp_path))
    program.until("stepping")
    program.signal(signal.SIGTERM)
    out, said = program.ends(143)
    assert out == "own handler: True\n", "and what it prints is not lost"
    assert said.index("is saved") and ("of its own" in said) == ("Runtime" in does)


def test_a_handler_that_waits_is_given_the_time(tmp_path: Path) -> None:
    does = OWN.format(does="time.sleep(6); print('slow', flush=True)")
    program = Program(before=does, LIFEBOAT_SOCKET=str(tmp_path / "nobody"))
    program.until("stepping")
    program.signal(signal.SIGTERM)
    out, said = program.ends(143)
    assert out.endswith("slow\n") and "no agent answers" in said


def test_a_handler_that_was_set_later_is_not_replaced_and_said(tmp_path: Path) -> None:
    program = Program(after=OWN.format(does="sys.exit(3)"), LIFEBOAT_DIR=str(tmp_path))
    program.until("stepping")
    program.signal(signal.SIGTERM)
    out, said = program.ends(3)
    assert "WARNING: SIGTERM has a handler that was set after connect()" in said


def test_with_nowhere_to_save_a_handler_of_the_program_is_called_as_before() -> None:
    program = Program(before=OWN.format(does="sys.exit(3)"))
    program.until("stepping")
    program.signal(signal.SIGTERM)
    assert program.ends(3)[0] == "own handler: True\n"


def test_with_nowhere_to_save_and_no_handler_it_ends_at_once() -> None:
    program = Program()
    program.until("stepping")
    program.signal(signal.SIGTERM)
    program.ends(143)


def test_a_boat_that_is_closed_leaves_sigterm_as_it_was(tmp_path: Path) -> None:
    program = Program(
        text="""
import lifeboat, signal, time
with lifeboat.connect() as boat:
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
print("closed", flush=True)
time.sleep(60)
""",
        LIFEBOAT_DIR=str(tmp_path),
    )
    program.until("closed")
    program.signal(signal.SIGTERM)
    program.ends(-signal.SIGTERM)


def test_connect_on_another_thread_says_what_that_means(tmp_path: Path) -> None:
    program = Program(
        text="""
import lifeboat, threading
thread = threading.Thread(target=lambda: lifeboat.connect().close())
thread.start()
thread.join()
""",
        LIFEBOAT_DIR=str(tmp_path),
    )
    assert "SIGTERM is heard by the agent only" in program.ends(0)[1]


def under(peer: Peer, **more: str) -> Program:
    return Program(LIFEBOAT_SOCKET=str(peer.path), **more)


def restored(line: object) -> None:
    line.hear("restore")  # type: ignore[attr-defined]
    line.say("nothing-to-restore", reason="it is new")  # type: ignore[attr-defined]


def test_under_an_agent_it_stays_until_its_last_byte_is_taken(peer: Peer) -> None:
    program = under(peer, before=OWN.format(does="pass"))
    line, hello = peer.welcome()
    assert hello["pid"] == program.child.pid
    line.lend(1, 4096)
    restored(line)
    program.until("stepping")
    program.signal(signal.SIGTERM)
    told = line.hear("terminating")
    ready = line.ask(1, "park")
    assert ready["step"] >= told["step"]
    begin, taken = line.take(1)
    assert taken == int(begin["step"]).to_bytes(4, "little") * 1000
    out, said = program.ends(143)
    assert out == "own handler: True\n" and "is handed over" in said


def test_signals_wait_while_state_is_handed_over_and_are_heard_after(peer: Peer) -> None:
    noting = """
    def note(number, frame):
        print("noted", flush=True)
    signal.signal(signal.SIGUSR1, note)
    """
    program = under(peer, before=noting)
    line, _ = peer.welcome()
    line.lend(1, 4096)
    restored(line)
    program.until("stepping")
    line.ask(1, "park")
    line.hear("save-begin")
    program.signal(signal.SIGUSR1)
    program.signal(signal.SIGTERM)
    time.sleep(0.5)
    assert program.child.poll() is None, "the slot is not taken yet"
    taken = 0
    while (frame := line.next())["frame"] != "save-end":
        taken += frame.get("bytes", 0)
        line.say("freed", save=1, slot=0)
    assert taken == 4000
    line.say("taken", save=1)
    out, _ = program.ends(143)
    assert out == "noted\n"


def test_a_parked_program_ends_as_soon_as_it_is_told_to(peer: Peer) -> None:
    program = under(peer)
    line, _ = peer.welcome()
    line.lend(4, 4096)
    restored(line)
    program.until("stepping")
    line.ask(1, "park")
    line.take(1)
    time.sleep(0.3)
    assert program.child.poll() is None
    program.signal(signal.SIGTERM)
    program.ends(143)


def test_with_nothing_to_wait_for_it_ends_at_once(peer: Peer) -> None:
    program = under(peer)
    line, _ = peer.welcome()
    restored(line)
    program.until("stepping")
    program.signal(signal.SIGTERM)
    line.hear("terminating")
    line.say("leave", reason="nothing is saved here")
    program.ends(143)


@pytest.mark.parametrize("where", ["restore", "step"])
def test_ctrl_c_is_heard_while_the_program_waits(peer: Peer, where: str) -> None:
    program = under(peer)
    line, _ = peer.welcome()
    if where == "restore":
        line.hear("restore")
    else:
        line.lend(4, 4096)
        restored(line)
        program.until("stepping")
        line.ask(1, "park")
        line.take(1)
        time.sleep(0.3)
    program.signal(signal.SIGINT)
    _, said = program.ends(-signal.SIGINT)
    assert "KeyboardInterrupt" in said


def test_sigterm_on_a_program_that_waits_to_restore_ends_it(peer: Peer) -> None:
    program = under(peer)
    line, _ = peer.welcome()
    line.hear("restore")
    program.signal(signal.SIGTERM)
    _, said = program.ends(143)
    assert "nothing is to be saved yet" in said


def test_a_program_that_is_started_on_an_interrupted_node_stands_and_can_be_ended(
    peer: Peer,
) -> None:
    program = under(peer)
    line, _ = peer.welcome(
        park={"cause": "interruption", "text": "the node goes", "deadline": None}
    )
    time.sleep(0.5)
    assert program.child.poll() is None
    program.signal(signal.SIGTERM)
    _, said = program.ends(143)
    assert "parked: the node goes" in said


def wait(for_it: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not for_it():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_the_observer_is_told_everything_up_to_the_end(tmp_path: Path) -> None:
    program = Program(
        text=PROGRAM.replace(
            "lifeboat.connect()",
            "lifeboat.connect(observer=lambda one: print('*', one.name, one.step, one.code))",
        ),
        LIFEBOAT_DIR=str(tmp_path),
    )
    program.until("stepping")
    program.signal(signal.SIGTERM)
    out, said = program.ends(143)
    assert "* terminating None None\n* exiting None 143\n" in out and said == ""

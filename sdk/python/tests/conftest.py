"""What the tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import lifeboat
import pytest
from peer import Peer

for name in ("LIFEBOAT_SOCKET", "LIFEBOAT_DIR", "LIFEBOAT_REQUIRED", "WORLD_SIZE", "RANK"):
    os.environ.pop(name, None)

Connect = Callable[..., lifeboat.Boat]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """A boat that saves to a folder of this test, as often as it is called."""
    boats = []

    def connected(**settings: object) -> lifeboat.Boat:
        boat = lifeboat.connect(**{"folder": tmp_path / "folder", **settings})  # type: ignore[arg-type]
        boats.append(boat)
        return boat

    yield connected
    for boat in boats:
        boat.close()


@pytest.fixture
def peer(tmp_path: Path) -> Peer:
    """An agent that is spoken by hand."""
    return Peer(tmp_path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What is skipped is said."""
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.write_line(f"{report.nodeid}: {reason}")
    passed, failed, skipped = (
        sum(len(terminalreporter.stats.get(kind, [])) for kind in kinds)
        for kinds in (["passed"], ["failed", "error"], ["skipped"])
    )
    verdict = "FAILED" if failed else "ok"
    # As cargo says it, so that one count holds all.
    terminalreporter.write_line(
        f"test result: {verdict}. {passed} passed; {failed} failed; {skipped} ignored"
    )

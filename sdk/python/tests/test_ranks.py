"""Four ranks on one node, interrupted for real at a moment that is drawn.

`LIFEBOAT_NOTICES=50` gives so many notices to each kind of training, in the place of one.
`LIFEBOAT_SEED` draws other moments.
"""

import importlib.util
import os
import random
import shlex
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from interrupt import EXAMPLES, built, ends_as_if_nothing_had_happened, interrupted

KINDS = {"DDP": (), "FSDP2": ("--fsdp",)}
RANKS, STEPS, PACE = 4, 240, 20
LATEST = PACE * STEPS // 2
"""Milliseconds of training before the notice: half of the steps are left then, at least."""
NOTICES = int(os.environ.get("LIFEBOAT_NOTICES", "1"))
SEED = int(os.environ.get("LIFEBOAT_SEED", "1"))

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), "--")
FORKED = (str(Path(__file__).with_name("forked.py")), str(RANKS))

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed; its tests did not run", allow_module_level=True)


def command(launcher: tuple[str, ...], kind: str) -> str:
    program = (str(EXAMPLES / "ranks_trainer.py"), "--pace", str(PACE), *KINDS[kind])
    return shlex.join([sys.executable, *launcher, *program])


def interruptions(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The first under torchrun; the others without, and all beside one run that goes through."""
    moments = random.Random(f"{SEED} {kind}")
    whole = folder / "digest"
    for number in range(1, NOTICES + 1):
        after, begun = moments.randrange(LATEST), time.monotonic()
        trainer = command(TORCHRUN if number == 1 else FORKED, kind)
        known = shlex.join(["sh", "-c", 'cat "$0"', str(whole)])
        reference = known if whole.exists() else command(FORKED, kind)
        options = ("--bytes", str(1 << 20), "--steps", str(STEPS), "--after", str(after))
        seen = interrupted(folder / str(number), trainer, *options, reference=reference)
        whole.write_text(str(seen["reference"]))
        shown = {name: str(seen[name])[:12] for name in ("saved", "resumed", "digest", "reference")}
        took = f"{time.monotonic() - begun:.0f} s"
        print(
            f"{kind}: {number} of {NOTICES}, notice after {after} ms: {shown}, {took}", flush=True
        )
        yield seen


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    """Both kinds at once: they wait more than they work."""
    built()
    with ThreadPoolExecutor(len(KINDS)) as pool:
        yield {kind: pool.submit(all_well, tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def all_well(folder: Path, kind: str) -> None:
    for number, seen in enumerate(interruptions(folder, kind)):
        # Its ranks end with 143, torchrun with a traceback that says so.
        ends_as_if_nothing_had_happened(seen, exit_code=143 if number else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_end_as_if_nothing_had_happened_whenever_they_are_interrupted(
    runs: dict[str, Future[Any]], kind: str
) -> None:
    runs[kind].result()

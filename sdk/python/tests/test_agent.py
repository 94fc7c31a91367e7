"""A trainer under the real agent, interrupted by a notice, over real processes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(os.environ.get("LIFEBOAT_PROGRAMS") or ROOT / "target/release")
TRAINER = ROOT / "sdk/python/examples/numpy_trainer.py"


def interrupted(folder: Path, trainer: str, *options: str) -> dict[str, object]:
    """What `chaos interrupt` saw of a trainer."""
    for program in ("chaos", "lifeboat"):
        if not (PROGRAMS / program).exists():
            pytest.skip(f"`{program}` is not built (`make build` does it)")
    examples = folder / "programs" / "examples"
    examples.mkdir(parents=True)
    (examples.parent / "lifeboat").symlink_to(PROGRAMS / "lifeboat")
    (examples / "trainer").write_text(f'#!/bin/sh\nexec {trainer} "$@"\n')
    (examples / "trainer").chmod(0o755)
    arguments = ["--programs", str(examples.parent), "--logs", str(folder / "logs"), *options]
    run = [str(PROGRAMS / "chaos"), "interrupt", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1) and done.stdout, done
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("megabytes", "options"), [(1, ""), (64, ""), (16, " --files")])
def test_an_interrupted_trainer_ends_as_one_that_nothing_interrupts(
    tmp_path: Path, megabytes: int, options: str
) -> None:
    trainer = f"{shlex.quote(sys.executable)} {shlex.quote(str(TRAINER))}{options}"
    seen = interrupted(tmp_path, trainer, "--bytes", str(megabytes << 20), "--steps", "60")
    said = "\n".join(str(line) for line in seen.pop("said"))  # type: ignore[attr-defined]
    assert seen["exit_code"] == 143, said
    assert seen["saved"] is not None and seen["saved"] == seen["resumed"], said
    assert seen["digest"] is not None and seen["digest"] == seen["reference"], said
    assert seen["broken"] == [], said

"""Trainers under the real agent, interrupted by a notice, over real processes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = Path(os.environ.get("LIFEBOAT_PROGRAMS") or ROOT / "target/release")
EXAMPLES = ROOT / "sdk/python/examples"
PATIENCE = 900.0


def example(name: str, *options: str, launcher: tuple[str, ...] = ()) -> str:
    """The command of an example's trainer."""
    return shlex.join([sys.executable, *launcher, str(EXAMPLES / name), *options])


def built() -> None:
    """Skips the test if the programs are not there."""
    for program in ("chaos", "lifeboat"):
        if not (PROGRAMS / program).exists():
            pytest.skip(f"`{program}` is not built (`make build` does it)")


def interrupted(
    folder: Path, trainer: str, *options: str, reference: str | None = None
) -> dict[str, Any]:
    """What `chaos interrupt` saw of a trainer.

    `reference`: the command of the run that nothing interrupts, if it is another.
    """
    examples = folder / "programs" / "examples"
    examples.mkdir(parents=True)
    (examples.parent / "lifeboat").symlink_to(PROGRAMS / "lifeboat")
    whole = f'case " $* " in *" --reference "*) exec {reference or trainer} "$@" ;; esac'
    (examples / "trainer").write_text(f'#!/bin/sh\n{whole}\nexec {trainer} "$@"\n')
    (examples / "trainer").chmod(0o755)
    arguments = ["--programs", str(examples.parent), "--logs", str(folder / "logs"), *options]
    run = [str(PROGRAMS / "chaos"), "interrupt", *arguments]
    # More threads than cores would spin, and nothing is to be fetched.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        run, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment
    )
    assert done.returncode in (0, 1) and done.stdout, done
    return dict(json.loads(done.stdout))


def ends_as_if_nothing_had_happened(seen: dict[str, Any], exit_code: int = 143) -> None:
    """Whether it was saved, resumed there, and ended with the same bits."""
    said = "\n".join(str(line) for line in seen["said"])
    assert seen["exit_code"] == exit_code, said
    assert seen["saved"] is not None and seen["saved"] == seen["resumed"], said
    assert seen["digest"] is not None and seen["digest"] == seen["reference"], said
    assert seen["broken"] == [], said

"""A trainer with NumPy alone, interrupted for real."""

from pathlib import Path

import pytest
from interrupt import built, ends_as_if_nothing_had_happened, example, interrupted


@pytest.mark.parametrize(("megabytes", "options"), [(1, ()), (64, ()), (16, ("--files",))])
def test_an_interrupted_trainer_ends_as_one_that_nothing_interrupts(
    tmp_path: Path, megabytes: int, options: tuple[str, ...]
) -> None:
    built()
    trainer = example("numpy_trainer.py", *options)
    sizes = ("--bytes", str(megabytes << 20), "--steps", "60")
    ends_as_if_nothing_had_happened(interrupted(tmp_path, trainer, *sizes))

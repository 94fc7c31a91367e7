"""Each adapter in a whole program, interrupted for real."""

import importlib.util
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from interrupt import built, ends_as_if_nothing_had_happened, example, interrupted

NEEDS = {
    "torch_trainer.py": ("torch", "torchdata"),
    "transformers_trainer.py": ("torch", "transformers", "accelerate"),
    "lightning_trainer.py": ("torch", "lightning"),
    "checkpoint_trainer.py": ("torch",),
    "accelerate_trainer.py": ("torch", "accelerate"),
}
SIZES = ("--bytes", str(1 << 20), "--steps", "60")


def missing(trainer: str) -> list[str]:
    return [name for name in NEEDS[trainer] if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    """All of them at once, two at a time: most of it is the import of the frameworks."""
    built()
    with ThreadPoolExecutor(2) as pool:
        yield {
            trainer: pool.submit(
                interrupted, tmp_path_factory.mktemp(trainer), example(trainer), *SIZES
            )
            for trainer in NEEDS
            if not missing(trainer)
        }


@pytest.mark.parametrize("trainer", NEEDS)
def test_an_interrupted_trainer_ends_as_one_that_nothing_interrupts(
    runs: dict[str, Future[Any]], trainer: str
) -> None:
    if missing(trainer):
        pytest.skip(f"{' and '.join(missing(trainer))}: not installed; {trainer} did not run")
    ends_as_if_nothing_had_happened(runs[trainer].result())

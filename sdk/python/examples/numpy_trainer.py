"""A real trainer with NumPy alone: Adam, on samples that it draws from its own generator.

    python numpy_trainer.py --steps 200                  under Lifeboat, or alone
    python numpy_trainer.py --steps 200 --reference      the digest it has to end with

After N steps its state is a function of N and the seed alone, interrupted or not. It ends with 0
when all steps are done, and with 143 when it was saved and told to end. With LIFEBOAT_DIR set to a
folder it can be tried on any machine: send it SIGTERM, and start it again.
"""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lifeboat
import numpy as np
from harness import Log, Pace, digest, main

PARTS = 16
RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-8


class Trainer:
    """Fits a vector to noisy samples of a hidden one, a part of it in each step."""

    def __init__(self, seed: int, size: int) -> None:
        hidden = np.random.default_rng(seed)
        self.target = hidden.standard_normal(size, dtype=np.float32)
        # All that a step reads and writes; the rest is made anew from the seed.
        self.weights = np.zeros(size, dtype=np.float32)
        self.adam = {"mean": np.zeros_like(self.weights), "variance": np.zeros_like(self.weights)}
        self.progress: dict[str, Any] = {"samples": 0, "loss": None, "betas": (BETA_1, BETA_2)}
        self.rng = np.random.default_rng([seed, 1])
        self.parts = np.array_split(np.arange(size), PARTS)

    def register(self, boat: lifeboat.Boat) -> None:
        boat.register("weights", self.weights)
        boat.register("adam", self.adam)
        boat.register("progress", self.progress)
        boat.register("rng", self.rng)

    def save(self, folder: str) -> None:
        """As a framework does that writes its checkpoints itself."""
        np.savez(f"{folder}/state.npz", weights=self.weights, **self.adam)
        rest = {"progress": self.progress, "rng": self.rng.bit_generator.state}
        Path(folder, "rest.json").write_text(json.dumps(rest))

    def load(self, folder: str) -> None:
        """Takes it back."""
        with np.load(f"{folder}/state.npz") as saved:
            for name, array in {"weights": self.weights, **self.adam}.items():
                array[:] = saved[name]
        rest = json.loads(Path(folder, "rest.json").read_text())
        self.progress.update(rest["progress"], betas=(BETA_1, BETA_2))
        self.rng.bit_generator.state = rest["rng"]

    def step(self) -> None:
        part = self.parts[self.rng.integers(len(self.parts))]
        block = slice(part[0], part[-1] + 1)
        noise = self.rng.standard_normal(len(part), dtype=np.float32)
        error = self.weights[block] - self.target[block] + noise / 10
        beta_1, beta_2 = self.progress["betas"]
        mean, variance = self.adam["mean"][block], self.adam["variance"][block]
        mean += (1 - beta_1) * (error - mean)
        variance += (1 - beta_2) * (error * error - variance)
        self.weights[block] -= RATE * mean / (np.sqrt(variance) + EPSILON)
        self.progress["samples"] += len(part)
        self.progress["loss"] = float(np.mean(error * error))

    def state(self) -> list[object]:
        rest = (self.progress, self.rng.bit_generator.state)
        return [self.weights, self.adam["mean"], self.adam["variance"], rest]


def train(options: Any, log: Log) -> str:
    trainer = Trainer(options.seed, max(options.bytes // 12, PARTS))
    if options.teardown:
        # A handler of the program's own is called when the state is saved, before the end.
        signal.signal(signal.SIGTERM, lambda *_: time.sleep(options.teardown / 1000))
    boat = lifeboat.connect(observer=log.observe)
    if options.files:
        boat.register_files(save=trainer.save, load=trainer.load)
    else:
        trainer.register(boat)
    start = boat.restore(default=0)
    log.write("training", **{"from": start})
    pace = Pace(options.pace)
    for step in range(start + 1, options.steps + 1):
        trainer.step()
        pace.keep()
        boat.step(step)
    boat.finish()
    return digest(trainer.state())


if __name__ == "__main__":
    sys.exit(main(train, ("--files", "hand the state over as files that it writes itself")))

"""A real trainer with NumPy alone: Adam, on samples that it draws from its own generator.

    python numpy_trainer.py --steps 200                  under Lifeboat, or alone
    python numpy_trainer.py --steps 200 --reference      the digest it has to end with

After N steps its state is a function of N and the seed alone, interrupted or not. It ends with 0
when all steps are done, and with 143 when it was saved and told to end. With LIFEBOAT_DIR set to a
folder it can be tried on any machine: send it SIGTERM, and start it again.
"""

import argparse
import hashlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lifeboat
import numpy as np

RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-8


class Trainer:
    """Fits a vector to noisy samples of a hidden one, a part of it in each step."""

    def __init__(self, seed: int, size: int, parts: int) -> None:
        hidden = np.random.default_rng(seed)
        self.target = hidden.standard_normal(size, dtype=np.float32)
        # All that a step reads and writes; the rest is made anew from the seed.
        self.weights = np.zeros(size, dtype=np.float32)
        self.adam = {"mean": np.zeros_like(self.weights), "variance": np.zeros_like(self.weights)}
        self.progress: dict[str, Any] = {"samples": 0, "loss": None, "betas": (BETA_1, BETA_2)}
        self.rng = np.random.default_rng([seed, 1])
        self.parts = np.array_split(np.arange(size), parts)

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

    def digest(self) -> str:
        state = hashlib.blake2b()
        for array in (self.weights, self.adam["mean"], self.adam["variance"]):
            state.update(array)
        state.update(repr((self.progress, self.rng.bit_generator.state)).encode())
        return state.hexdigest()


class Log:
    """One line of JSON for each thing that happens."""

    def __init__(self, name: str, path: Path | None) -> None:
        self.name = name
        self.file = path.open("a", buffering=1) if path else None

    def write(self, event: str, **more: Any) -> None:
        if self.file is not None:
            self.file.write(json.dumps({"event": event, "name": self.name, **more}) + "\n")

    def observe(self, event: lifeboat.Event) -> None:
        print(f"{self.name}: lifeboat: {event}", file=sys.stderr, flush=True)
        more = {
            "step": event.step,
            "epoch": event.epoch,
            "bytes": event.bytes,
            "seconds": event.seconds,
            "spare_seconds": event.spare_seconds,
            "code": event.code,
            "reason": event.reason,
            "proof": event.reason,
        }
        known = {key: value for key, value in more.items() if value is not None}
        self.write(event.name if event.name != "finished" else "note", text=str(event), **known)


def main() -> int:
    options = arguments()
    trainer = Trainer(options.seed, max(options.bytes // 12, options.blocks), options.blocks)
    if options.reference:
        for _ in range(options.steps):
            trainer.step()
        print(trainer.digest())
        return 0
    if options.teardown:
        # A handler of the program's own is called when the state is saved, before the end.
        signal.signal(signal.SIGTERM, lambda *_: time.sleep(options.teardown / 1000))
    log = Log(options.name, options.log)
    boat = lifeboat.connect(observer=log.observe)
    if options.files:
        boat.register_files(save=trainer.save, load=trainer.load)
    else:
        trainer.register(boat)
    start = boat.restore(default=0)
    log.write("training", **{"from": start})
    for step in range(start + 1, options.steps + 1):
        begun = time.monotonic()
        trainer.step()
        time.sleep(max(0.0, options.pace / 1000 - (time.monotonic() - begun)))
        log.write("step", step=step)
        boat.step(step)
    boat.finish()
    log.write("finished", step=options.steps, digest=trainer.digest())
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Adam over a vector, under Lifeboat or alone.")
    parser.add_argument("--name", default="trainer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--bytes", type=int, default=24 << 20, help="size of the state")
    parser.add_argument(
        "--blocks", type=int, default=16, help="parts of the state; a step trains one"
    )
    parser.add_argument(
        "--pace", type=int, default=100, help="least time of a step, in milliseconds"
    )
    parser.add_argument(
        "--files", action="store_true", help="hand the state over as files that it writes itself"
    )
    parser.add_argument("--teardown", type=int, default=0, help="milliseconds that it takes to end")
    parser.add_argument("--log", type=Path, help="file for what happens, as JSON lines")
    parser.add_argument("--reference", action="store_true", help="only print the digest in the end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

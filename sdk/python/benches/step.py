"""What a healthy `boat.step()` costs, alone and beside an agent that wants nothing.

    python benches/step.py [--json]

The machine's own limit stands beside it: a call of a Python method that does nothing.
"""

import argparse
import json
import sys
import tempfile
import timeit
from pathlib import Path

import lifeboat

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from peer import Peer  # noqa: E402

CALLS, ROUNDS = 200_000, 7
GOAL = 2000.0


class Nothing:
    def step(self, step: int) -> None:
        pass


def nanoseconds(one: object) -> float:
    """The best of some rounds, with its loop."""
    rounds = timeit.repeat("one.step(7)", globals={"one": one}, number=CALLS, repeat=ROUNDS)
    return round(min(rounds) / CALLS * 1e9, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print it as data")
    options = parser.parse_args()
    seen = {"empty call": nanoseconds(Nothing())}
    with lifeboat.connect() as boat:
        boat.register("state", {"a": 1})
        seen["step, alone"] = nanoseconds(boat)
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(Path(folder))
        peer.plays(lambda line: None)
        with lifeboat.connect(socket=peer.path) as boat:
            boat.register("state", {"a": 1})
            seen["step, beside an agent"] = nanoseconds(boat)
    if options.json:
        print(json.dumps({"nanoseconds": seen, "goal": GOAL}))
    else:
        for name, figure in seen.items():
            print(f"{name:24} {figure:8.1f} ns")
    return int(seen["step, beside an agent"] >= GOAL)


if __name__ == "__main__":
    sys.exit(main())

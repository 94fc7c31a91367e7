"""What the trainers here have in common: their options, their log and the digest of their end.

Nothing of it is needed for Lifeboat.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lifeboat


class Log:
    """One line of JSON for each thing that happens."""

    def __init__(self, name: str, path: Path | None) -> None:
        self.name = name
        self.file = path.open("a", buffering=1) if path else None

    def write(self, event: str, **more: Any) -> None:
        if self.file is not None:
            self.file.write(json.dumps({"event": event, "name": self.name, **more}) + "\n")

    def observe(self, event: lifeboat.Event) -> None:
        """What `lifeboat.connect` tells."""
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


class Pace:
    """Steps that take a while, as those of larger models."""

    def __init__(self, milliseconds: int) -> None:
        self.seconds = milliseconds / 1000
        self.begun = time.monotonic()

    def keep(self) -> None:
        """At the end of a step."""
        time.sleep(max(0.0, self.seconds - (time.monotonic() - self.begun)))
        self.begun = time.monotonic()


def digest(values: Iterable[object]) -> str:
    """Of arrays and tensors by their bytes, of anything else by its text."""
    state = hashlib.blake2b()
    for value in values:
        if hasattr(value, "detach"):
            value = value.detach().contiguous().numpy()
        state.update(value if hasattr(value, "__array_interface__") else repr(value).encode())  # type: ignore[arg-type]
    return state.hexdigest()


def main(train: Callable[[argparse.Namespace, Log], str], *flags: tuple[str, str]) -> int:
    """Runs the training; prints its digest if nothing is to interrupt it, else logs it.

    Of several ranks the first one does.
    """
    options = arguments(flags)
    first = os.environ.get("RANK", "0") == "0"
    options.log = options.log if first else None
    if options.reference:
        for name in ("LIFEBOAT_SOCKET", "LIFEBOAT_DIR"):
            os.environ.pop(name, None)
        options.pace = 0
        # A framework may have something to say, too.
        with contextlib.redirect_stdout(sys.stderr):
            digest = train(options, Log(options.name, None))
        if first:
            print(digest)
        return 0
    log = Log(options.name, options.log)
    log.write("finished", step=options.steps, digest=train(options, log))
    return 0


def arguments(flags: tuple[tuple[str, str], ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    number = {"type": int}
    parser.add_argument("--name", default="trainer")
    parser.add_argument("--seed", default=1, **number)
    parser.add_argument("--steps", default=600, **number)
    parser.add_argument("--bytes", default=24 << 20, help="size of the state", **number)
    parser.add_argument("--pace", default=100, help="least milliseconds of a step", **number)
    parser.add_argument("--teardown", default=0, help="milliseconds that it takes to end", **number)
    parser.add_argument("--log", type=Path, help="file for what happens, as JSON lines")
    parser.add_argument("--reference", action="store_true", help="only print the digest in the end")
    for flag, help in flags:
        parser.add_argument(flag, action="store_true", help=help)
    return parser.parse_args()

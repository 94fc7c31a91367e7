"""The format of a checkpoint, read without Lifeboat: the smallest reader there is.

It reads the same bytes as the test in Rust (crates/checkpoint/tests/format.rs), by what
docs/checkpoint-format.md says.
"""

import base64
import json
import re
import struct
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[3] / "crates/checkpoint/tests/golden"


def read(name: str) -> dict:
    manifest = json.loads((GOLDEN / name).read_bytes())
    if manifest["format"] > 1:
        raise ValueError("a newer Lifeboat reads it")
    return manifest


def stream(rank: dict) -> bytes:
    """The bytes of a rank, from its chunks."""
    parts = []
    for chunk in rank["chunks"]:
        if chunk.get("zero"):
            parts.append(bytes(chunk["bytes"]))
        else:
            assert re.fullmatch("[0-9]{11}-[0-9a-f]{16}", chunk["attempt"])
            part = (GOLDEN / "chunks" / chunk["attempt"] / chunk["hash"]).read_bytes()
            assert len(part) == chunk["bytes"]
            check(part, chunk["hash"])
            parts.append(part)
    return b"".join(parts)


def check(part: bytes, hash: str) -> None:
    """Compares the BLAKE3 of some bytes, where Python has it."""
    try:
        from blake3 import blake3
    except ImportError:
        return
    assert blake3(part).hexdigest() == hash


def regions(rank: dict) -> dict[str, bytes]:
    """Each region's own bytes."""
    whole, found, offset = stream(rank), {}, 0
    for region in rank["layout"]["regions"]:
        found[region["name"]] = whole[offset : offset + region["bytes"]]
        offset += region["bytes"]
    assert offset == len(whole)
    return found


def value(tree: object, tensors: dict[str, bytes]) -> object:
    """What is not a tensor, as Python has it."""
    if tree == "null":
        return None
    ((kind, inner),) = tree.items()  # type: ignore[attr-defined]
    match kind:
        case "bool" | "int" | "str":
            return inner
        case "big":
            return int(inner)
        case "float":
            return float(inner)
        case "bytes":
            return base64.b64decode(inner)
        case "list":
            return [value(one, tensors) for one in inner]
        case "map":
            return {value(key, tensors): value(one, tensors) for key, one in inner}
        case "region":
            return tensors[inner]
    raise ValueError(f"`{kind}` is of a newer writer")


def test_the_golden_rank_holds_what_was_put_into_it() -> None:
    rank = read("rank-kinds-1.json")
    tensors = regions(rank)
    assert struct.unpack("<4f", tensors["model/weight"])[:3] == (0.5, -1.0, 3.25)
    assert struct.unpack("<3d", tensors["moments"]) == (0, 0, 0)
    assert tensors["other"] == bytes([1, 2, 3, 4])
    assert value(rank["layout"]["tree"], tensors) == {
        "nothing": None,
        "amp": True,
        "seen": -512,
        "seed": 2**128 - 1,
        "lr": 0.1,
        "best": float("-inf"),
        "name": "bär\n",
        "rng": bytes([0, 255, 16]),
        "order": [2, 0],
        "weight": tensors["model/weight"],
    }


def test_the_golden_manifest_names_its_rank() -> None:
    manifest = read("manifest-1.json")
    assert (manifest["kind"], manifest["epoch"], manifest["parent"]) == ("save", 3, 2)
    assert [int(rank) for rank in manifest["ranks"]] == list(range(manifest["world"]))
    rank = manifest["ranks"]["0"]
    check((GOLDEN / "rank-1.json").read_bytes(), rank["hash"])
    assert manifest["bytes"] == sum(chunk["bytes"] for chunk in read("rank-1.json")["chunks"])


def test_what_a_newer_writer_adds_is_not_guessed_at() -> None:
    with pytest.raises(ValueError, match="newer writer"):
        value({"tensor2": [1]}, {})

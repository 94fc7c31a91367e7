"""torch.distributed.checkpoint: what is written comes back, and nothing is unpickled."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; its tests did not run")
dcp = pytest.importorskip("torch.distributed.checkpoint", reason="torch has no checkpoints")
torch.set_num_threads(1)


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder, none of whose bytes may go through a pickle."""
    load = pickle.load

    def loaded(file: Any, *args: Any, **kwargs: Any) -> Any:
        assert not hasattr(file, "name"), "a file was unpickled"
        return load(file, *args, **kwargs)

    monkeypatch.setattr(pickle, "load", loaded)
    return tmp_path / "state"


def state(fill: float) -> dict[str, Any]:
    model = torch.nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.fill_(fill)
    optimizer = torch.optim.AdamW(model.parameters(), lr=fill)
    model(torch.ones(5)).sum().backward()
    optimizer.step()
    values = {"text": "a", "flag": True, "none": None, "pair": (1, 0.1, b"\0\xff"), "step": 3}
    half = torch.full((7,), fill, dtype=torch.bfloat16)
    more = {"half": half, "none": torch.empty(0, 3), "one": torch.tensor(fill), "values": values}
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **more}


def save(folder: Path, what: dict[str, Any]) -> None:
    from lifeboat.checkpoint import Writer

    dcp.save(what, storage_writer=Writer(folder), no_dist=True)


def load(folder: Path, what: dict[str, Any]) -> None:
    from lifeboat.checkpoint import Reader

    dcp.load(what, storage_reader=Reader(folder), no_dist=True)


def text(value: Any) -> str:
    return repr(value)


def test_what_was_saved_comes_back_to_the_bit(no_pickle: Path) -> None:
    saved, fresh = state(0.1), state(0.7)
    fresh["values"] = {name: None for name in saved["values"]}
    save(no_pickle, saved)
    assert sorted(path.name for path in no_pickle.iterdir()) == ["0.bin", "index.json"]
    load(no_pickle, fresh)
    assert text(fresh) == text(saved)
    assert torch.equal(fresh["model"]["weight"], saved["model"]["weight"])


def test_what_is_neither_tensor_nor_plain_is_refused_by_name(no_pickle: Path) -> None:
    with pytest.raises(BaseException, match="`thing` is a set: make it a tensor or a plain value"):
        save(no_pickle, {"thing": {1, 2}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index.update(format=9), "is of format 9: update lifeboat"),
        (lambda index: index.pop("tensors"), "is no index of a checkpoint"),
        (
            lambda index: index["tensors"]["w"]["chunks"][0].update(at=1 << 60),
            "`w` does not lie in `0.bin`, which ends before",
        ),
        (
            lambda index: index["tensors"]["w"]["chunks"][0].update(sizes=[1 << 40]),
            "`w` does not lie in `0.bin`, which ends before",
        ),
        (lambda index: index["values"].update(v={"set": []}), "of no type that is known here"),
    ],
)
def test_an_index_that_was_changed_is_refused(no_pickle: Path, change: Any, words: str) -> None:
    save(no_pickle, {"w": torch.ones(3), "v": 5})
    index = json.loads((no_pickle / "index.json").read_text())
    change(index)
    (no_pickle / "index.json").write_text(json.dumps(index))
    with pytest.raises(BaseException, match=words):
        load(no_pickle, {"w": torch.zeros(3), "v": 0})

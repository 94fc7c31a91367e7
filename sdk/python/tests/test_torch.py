"""PyTorch: tensors of every type, a training loop, and what compiling and DDP do to names."""

import os
import random
import subprocess
import sys
import textwrap
from typing import Any

import lifeboat
import pytest
from conftest import Connect

torch = pytest.importorskip("torch", reason="torch is not installed; its tests did not run")
torch.set_num_threads(1)

DTYPES = [
    name
    for name in (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    )
    if hasattr(torch, name)
]


def again(connect: Connect, before: object, after: object) -> None:
    """Saves what `before` is, and restores it into `after`."""
    boat = connect()
    boat.register("state", before)
    boat.step(7)
    assert boat.save() is not None
    boat.close()
    boat = connect()
    boat.register("state", after)
    assert boat.restore() == 7
    boat.close()


def raw(tensor: Any) -> bytes:
    flat = tensor.detach().contiguous()
    flat = torch.view_as_real(flat) if flat.is_complex() else flat
    return bytes(flat.view(-1).view(torch.uint8).numpy().tobytes())


def drawn(dtype: str, shape: tuple[int, ...]) -> Any:
    kind = getattr(torch, dtype)
    size = torch.empty(shape, dtype=kind).numel() * torch.empty((), dtype=kind).element_size()
    top = 2 if dtype == "bool" else 256
    values = torch.randint(0, top, (size,), dtype=torch.uint8)
    if dtype.startswith("complex"):
        half = torch.float32 if dtype == "complex64" else torch.float64
        return torch.view_as_complex(values.view(half).view(*shape, 2)).clone()
    return values.view(kind).view(shape).clone()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_of_each_type_comes_back_to_the_bit(connect: Connect, dtype: str) -> None:
    saved = drawn(dtype, (3, 5))
    fresh = torch.zeros((3, 5), dtype=torch.uint8).to(getattr(torch, dtype))
    place = fresh.data_ptr()
    grown: dict[str, Any] = {}
    again(connect, {"there": saved, "new": saved.clone()}, state := {"there": fresh, **grown})
    assert raw(state["there"]) == raw(saved) and state["there"] is fresh
    assert fresh.data_ptr() == place
    assert raw(state["new"]) == raw(saved) and state["new"].dtype == saved.dtype


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(24.0).view(4, 6).t(),
        lambda: torch.arange(24.0).view(4, 6)[:, ::2],
        lambda: torch.tensor(3.5),
        lambda: torch.empty(0, 3),
        lambda: torch.nn.Parameter(torch.arange(4.0)),
        lambda: torch.arange(16.0).view(1, 2, 2, 4).to(memory_format=torch.channels_last),
    ],
)
def test_a_tensor_of_any_layout_is_filled_in_its_place(connect: Connect, make: Any) -> None:
    saved, fresh = make(), make()
    with torch.no_grad():
        fresh.mul_(0).sub_(1)
    again(connect, saved, fresh)
    assert torch.equal(fresh, make())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.empty(3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
)
def test_a_tensor_that_is_none_of_bytes_is_refused_by_path(connect: Connect, make: Any) -> None:
    with pytest.raises(lifeboat.UnsupportedStateError, match="`state/w` is a tensor"):
        connect().register("state", {"w": make()})


def test_bytes_that_are_not_in_host_memory_are_copied_piece_by_piece(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a GPU, which is not here: the same path with tensors that pretend."""
    from lifeboat import _arrays

    monkeypatch.setattr(_arrays, "in_host_memory", lambda tensor: False)
    saved = {"a": torch.randn(1000, 3), "b": torch.randn(70_000).to(torch.bfloat16)}
    fresh = {name: torch.zeros_like(one) for name, one in saved.items()}
    again(connect, saved, fresh)
    assert all(torch.equal(fresh[name], one) for name, one in saved.items())


class Training:
    """A loop with everything that has state."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        random.seed(5)
        layers = [torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1)]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, amsgrad=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.loader = torch.Generator().manual_seed(9)

    def register(self, boat: lifeboat.Boat) -> None:
        boat.register("model", self.model)
        boat.register("optimizer", self.optimizer)
        boat.register("scheduler", self.scheduler)
        boat.register("rng", lifeboat.rng(self.loader))

    def step(self) -> None:
        batch = torch.randn(32, 8, generator=self.loader)
        loss = (self.model(batch) - batch.sum(1, keepdim=True) * random.random()).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def weights(self) -> list[bytes]:
        return [raw(one) for one in self.model.state_dict().values()]


def test_a_training_goes_on_as_if_nothing_had_happened(connect: Connect) -> None:
    whole = Training()
    for _ in range(12):
        whole.step()

    boat, first = connect(), Training()
    first.register(boat)
    for step in range(1, 8):
        first.step()
        boat.step(step)
    boat.save()
    boat.close()

    boat, second = connect(), Training()
    random.seed(77)
    torch.manual_seed(77)
    second.register(boat)
    assert boat.restore() == 7
    assert isinstance(second.optimizer.state_dict()["param_groups"][0]["betas"], tuple)
    for _ in range(5):
        second.step()
    assert second.weights() == whole.weights()
    assert second.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


class Wrapped(torch.nn.Module):
    """Names its parameters as a compiled model and DDP do."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.module = torch.nn.Module()
        self.module._orig_mod = model

    def forward(self, batch: Any) -> Any:
        return self.module._orig_mod(batch)


@pytest.mark.parametrize("wrapped", ["saved", "fresh"])
def test_a_wrapped_model_takes_what_a_plain_one_saved(connect: Connect, wrapped: str) -> None:
    saved, fresh = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = Wrapped(saved) if wrapped == "saved" else saved
    after = Wrapped(fresh) if wrapped == "fresh" else fresh
    again(connect, before, after)
    assert torch.equal(fresh.weight, saved.weight) and torch.equal(fresh.bias, saved.bias)


def test_a_model_of_another_shape_is_refused_by_name(connect: Connect) -> None:
    fresh = torch.nn.Linear(3, 4)
    before = raw(fresh.weight)
    words = r"`state/weight` is f32 \[4, 3\] here and f32 \[2, 3\] in the checkpoint"
    with pytest.raises(lifeboat.OtherShapeError, match=words):
        again(connect, torch.nn.Linear(3, 2), fresh)
    assert raw(fresh.weight) == before


def test_tied_weights_are_saved_once(connect: Connect) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(4, 3)
            self.head = torch.nn.Linear(3, 4, bias=False)
            self.head.weight = self.embedding.weight

    saved, fresh = Tied(), Tied()
    again(connect, saved, fresh)
    assert torch.equal(fresh.head.weight, saved.embedding.weight)
    assert fresh.head.weight.data_ptr() == fresh.embedding.weight.data_ptr()


def test_workers_of_a_loader_do_not_touch_the_boat(connect: Connect) -> None:
    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, at: int) -> Any:
            boat.step(0)
            return torch.tensor(at)

    boat = connect()
    boat.register("model", torch.nn.Linear(2, 2))
    boat.step(3)
    loader = torch.utils.data.DataLoader(Rows(), batch_size=8, num_workers=2)
    assert sum(int(batch.sum()) for batch in loader) == sum(range(40))
    del loader
    boat.step(4)
    assert boat.save() == 1


def test_torch_is_not_imported_by_the_package() -> None:
    program = """
    import sys, lifeboat
    with lifeboat.connect() as boat:
        boat.register("state", {"a": 1, "rng": lifeboat.rng()})
    assert not {"torch", "numpy"} & set(sys.modules), "imported"
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, env=environment)

"""What ranks share: shards of FSDP2, and what DDP keeps the same. Here by a world of one rank."""

from collections.abc import Iterator
from typing import Any

import lifeboat
import pytest
from conftest import Connect
from lifeboat._replicas import Replicas

torch = pytest.importorskip("torch", reason="torch is not installed; its tests did not run")
dist = torch.distributed
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Sharded:
    def __init__(self, seed: int, width: int = 6) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 1))
        fully_shard(self.model, mesh=init_device_mesh("cpu", (1,)))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)

    def step(self) -> None:
        self.model(torch.ones(2, 4)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def register(self, boat: lifeboat.Boat) -> None:
        boat.register("model", self.model)
        boat.register("optimizer", self.optimizer)

    def weights(self) -> list[Any]:
        return [one.full_tensor().tolist() for one in self.model.state_dict().values()]


@pytest.mark.usefixtures("world")
def test_shards_come_back_and_the_optimizer_goes_on(connect: Connect) -> None:
    boat, saved = connect(), Sharded(1)
    saved.register(boat)
    saved.step()
    boat.step(1)
    boat.save()
    boat.close()

    boat, fresh = connect(), Sharded(2)
    fresh.register(boat)
    place = next(fresh.model.parameters()).to_local().data_ptr()
    assert boat.restore() == 1 and fresh.weights() == saved.weights()
    assert next(fresh.model.parameters()).to_local().data_ptr() == place
    for one in (saved, fresh):
        one.step()
        one.step()
    assert fresh.weights() == saved.weights()


@pytest.mark.usefixtures("world")
def test_a_tensor_that_was_shared_otherwise_is_refused_by_name(connect: Connect) -> None:
    boat = connect()
    Sharded(1).register(boat)
    boat.step(1)
    boat.save()
    boat.close()
    boat = connect()
    boat.register("model", Sharded(1, width=7).model)
    with pytest.raises(lifeboat.OtherShapeError, match="`model/0.weight` is shared by ranks as"):
        boat.restore()


@pytest.mark.usefixtures("world")
def test_what_ddp_keeps_the_same_is_known_by_itself() -> None:
    parallel = torch.nn.parallel.DistributedDataParallel
    replicas, model = Replicas(), parallel(torch.nn.Linear(2, 2))
    other = torch.nn.Linear(2, 2)
    assert not replicas.hold(torch.optim.SGD(model.parameters())), "its model comes first"
    assert replicas.hold(model) and replicas.hold(torch.optim.SGD(model.parameters()))
    assert not replicas.hold(other) and not replicas.hold(torch.optim.SGD(other.parameters()))
    assert not replicas.hold(parallel(torch.nn.BatchNorm1d(2)))

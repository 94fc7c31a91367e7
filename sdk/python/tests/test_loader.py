"""A loader goes on in the midst of an epoch, in the order that it had."""

from collections.abc import Callable
from typing import Any

import lifeboat
import pytest
from conftest import Connect

torch = pytest.importorskip("torch", reason="torch is not installed; its tests did not run")
torch.set_num_threads(1)


class Rows(torch.utils.data.Dataset[Any]):
    """Some of it is drawn where it is read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> Any:
        return number + torch.rand(())


def plain(workers: int) -> Any:
    return torch.utils.data.DataLoader(Rows(), 3, shuffle=True, num_workers=workers)


def with_generator(workers: int) -> Any:
    generator = torch.Generator().manual_seed(5)
    return torch.utils.data.DataLoader(
        Rows(), 3, shuffle=True, num_workers=workers, generator=generator
    )


def with_accelerate(workers: int) -> Any:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    return accelerate.Accelerator(cpu=True).prepare(plain(workers))


def stateful(workers: int) -> Any:
    of = pytest.importorskip("torchdata.stateful_dataloader", reason="torchdata is not installed")
    return of.StatefulDataLoader(Rows(), 3, shuffle=True, num_workers=workers)


def trained(
    make: Callable[[], Any], boat: lifeboat.Boat, seed: int, save_at: int | None = None
) -> list[tuple[list[float], float]]:
    """What a loop sees that draws between batches, too, from where it goes on."""
    torch.manual_seed(seed)
    loader = lifeboat.Loader(make())
    boat.register("loader", loader)
    boat.register("rng", lifeboat.rng())
    step, seen = boat.restore(default=0), []
    while True:
        for batch in loader:
            seen.append((batch.tolist(), float(torch.rand(()))))
            step += 1
            boat.step(step)
            if step == save_at:
                boat.save()
                boat.close()
                return seen
            if step == 10:
                return seen


@pytest.mark.parametrize(
    ("make", "workers", "places"),
    [
        (plain, 0, (1, 3, 4, 5, 8)),
        (plain, 2, (3,)),
        (with_generator, 0, (3, 4, 6)),
        (with_accelerate, 0, (3, 4)),
        (stateful, 0, (1, 3, 4, 5, 8)),
        (stateful, 2, (4,)),
    ],
)
def test_a_loop_sees_what_it_would_have_seen(
    connect: Connect, tmp_path: Any, make: Callable[[int], Any], workers: int, places: Any
) -> None:
    def loader() -> Any:
        return make(workers)

    whole = trained(loader, lifeboat.connect(), 1)
    assert len(whole) == 10
    for place in places:
        folder = tmp_path / str(place)
        first = trained(loader, connect(folder=folder), 1, place)
        second = trained(loader, connect(folder=folder), 77)
        assert first + second == whole, f"saved at step {place}"


def test_a_loader_passes_on_what_the_other_has() -> None:
    loader = lifeboat.Loader(plain(0))
    assert (len(loader), loader.batch_size) == (4, 3)
    with pytest.raises(AttributeError):
        _ = loader.nothing

"""A data loader that goes on in the midst of an epoch, in the order that it had."""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from lifeboat._rng import Rng

_Batch = TypeVar("_Batch")


class Loader(Generic[_Batch]):
    """Wraps a PyTorch `DataLoader` or a `StatefulDataLoader`, to be iterated in its place.

    A loader draws from the random number generators when an epoch begins: its order, and the seeds
    of its workers. So the generators are put back to where they were then, the epoch begins as it
    began, and they are put forward again: the loader's own and those given here to where they were
    when it was saved, the shared ones to where they are, since `lifeboat.rng()` is for these.

    A loader that has `state_dict` goes on from its own
    state; any other passes over the batches that were seen, which costs the time to read them.
    Accelerate's loaders read one batch ahead: what that batch drew is drawn again.

    To be registered; Lightning saves it by itself.
    """

    def __init__(self, loader: Iterable[_Batch], *generators: object) -> None:
        own = getattr(loader, "generator", None)
        self.loader = loader
        self._own = Rng((*generators, *([] if own is None else [own])), shared=False)
        self._shared = Rng((), shared=True)
        self._begun: Any = None
        self._seen = 0
        self._before: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[_Batch]:
        # Not a generator itself: an epoch begins when it is asked for, not at its first batch.
        resumed, self._resumed = self._resumed, None
        if resumed is None or resumed["begun"] is None:
            if resumed is not None:
                self._own.load_state_dict(resumed["own"])
            self._begun = [self._own.state_dict(), self._shared.state_dict()]
            self._seen = 0
            return self._count(iter(self.loader))
        now = self._shared.state_dict()
        self._own.load_state_dict(resumed["begun"][0])
        self._shared.load_state_dict(resumed["begun"][1])
        iterator = self._again(resumed)
        self._own.load_state_dict(resumed["own"])
        self._shared.load_state_dict(now)
        self._begun, self._seen = resumed["begun"], resumed["seen"]
        self._before = resumed["before"]
        return self._count(iterator)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        if self._resumed is not None:
            return self._resumed
        own = self._own.state_dict()
        state = {"begun": self._begun, "seen": self._seen, "own": own, "before": self._before}
        if self._begun is not None and _has_state(self.loader):
            state["loader"] = self.loader.state_dict()  # type: ignore[attr-defined]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lets the next iteration go on from there."""
        self._resumed = dict(state)

    def _again(self, resumed: dict[str, Any]) -> Iterator[_Batch]:
        if "loader" in resumed and _has_state(self.loader):
            self.loader.load_state_dict(resumed["loader"])  # type: ignore[attr-defined]
            return iter(self.loader)
        iterator = iter(self.loader)
        for number in range(resumed["seen"]):
            if number + 1 == resumed["seen"] and resumed["before"] is not None:
                self._shared.load_state_dict(resumed["before"])
            next(iterator, None)
        return iterator

    def _count(self, iterator: Iterator[_Batch]) -> Iterator[_Batch]:
        ahead = hasattr(self.loader, "use_stateful_dataloader")
        while True:
            # The generators as the batch after this one will be read with.
            before = self._shared.state_dict() if ahead else None
            batch = next(iterator, iterator)
            if batch is iterator:
                break
            self._seen, self._before = self._seen + 1, before
            yield batch  # type: ignore[misc]
        self._begun, self._seen, self._before = None, 0, None


def _has_state(loader: object) -> bool:
    # Accelerate's loaders have the methods, and only sometimes a loader that has them, too.
    if not getattr(loader, "use_stateful_dataloader", True):
        return False
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")

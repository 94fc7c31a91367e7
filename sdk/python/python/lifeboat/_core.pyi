"""The native half; not for programs."""

from collections.abc import Callable
from os import PathLike
from typing import final

__version__: str

@final
class Core:
    @staticmethod
    def connect(
        socket: str | PathLike[str] | None,
        folder: str | PathLike[str] | None,
        given: tuple[bool | None, Callable[[Event], object] | None],
    ) -> Core: ...
    def register(self, name: str, object: object) -> None: ...
    def restore(self, newer_than: int | None) -> int | None: ...
    def step(self, step: int) -> None: ...
    def safe_point(self) -> None: ...
    def save(self) -> int | None: ...
    def finish(self) -> None: ...
    def on_notice(self, hook: Callable[[Notice], object]) -> None: ...
    def terminate(self) -> None: ...
    def close(self) -> None: ...
    def quiet(self) -> None: ...
    @property
    def finished(self) -> bool: ...
    @property
    def saves(self) -> bool: ...

@final
class Event:
    """Something that happened to the program. `str()` of it is the line that is logged."""

    @property
    def name(self) -> str:
        """What kind, as `durable`."""

    @property
    def step(self) -> int | None: ...
    @property
    def epoch(self) -> int | None: ...
    @property
    def bytes(self) -> int | None: ...
    @property
    def seconds(self) -> float | None:
        """How long it took, or how much time is left."""

    @property
    def spare_seconds(self) -> int | None:
        """To the deadline; negative past it."""

    @property
    def reason(self) -> str | None: ...
    @property
    def code(self) -> int | None:
        """The exit code."""

@final
class Notice:
    """That the node's or the program's end is near, or may be."""

    @property
    def cause(self) -> str:
        """As `interruption`, `rebalance`, `maintenance`, `ending`, `asked` or `background`."""

    @property
    def text(self) -> str:
        """In words."""

    def remaining(self) -> float | None:
        """Seconds that are left; none for advice. It may only become less."""

@final
class Region:
    """In the place of a tensor: the region of this name."""

    def __new__(cls, name: str) -> Region: ...
    @property
    def name(self) -> str: ...

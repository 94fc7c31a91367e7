"""Objects as state: their tensors as regions, and the rest as a typed tree.

What the tree has no type for is written as a map of one key: `lifeboat.tuple`, `lifeboat.tensor`,
`lifeboat.shard`, `lifeboat.buffer`, `lifeboat.scalar`, `lifeboat.object`, `lifeboat.pickle`. A
region alone is an array.
"""

import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lifeboat import _arrays
from lifeboat._arrays import Kind, Leaf
from lifeboat._core import Region
from lifeboat._errors import (
    AS_IT_WAS,
    LifeboatError,
    MissingError,
    NotTakenError,
    OtherShapeError,
    PickleRefusedError,
    UnsupportedStateError,
)
from lifeboat._rng import Rng, is_generator

_MARK = "lifeboat."
_DEPTH_MAX = 32
"""A reader refuses what is nested deeper, as JSON, than 128; a map in a map is three of those."""

Told = tuple[str, str, tuple[int, ...], object]
"""A region: name within the part, type, dimensions, bytes."""
Build = Callable[[], Any]
"""Makes a value once all bytes are in their places."""

_ABSENT = object()


class Pickled:
    """A value that is saved as a pickle; `value` is replaced on restore."""

    def __init__(self, value: object) -> None:
        self.value: Any = value


def pickled(value: object) -> Pickled:
    """Lets a value be saved as a pickle, which `connect(allow_pickle=True)` has to allow.

    To be registered, or put into what is; `value` of what this returns is the value, also after a
    restore. Whoever can write to the bucket then runs code in this program.
    """
    return Pickled(value)


@dataclass(frozen=True)
class _Manner:
    """How a checkpoint is put into what is there."""

    in_place: bool
    """Dicts and lists are the program's own, and stay the same objects."""
    strict: bool
    """A tensor of another shape is refused; else the object that takes it decides."""


class Part:
    """What is registered under one name, as the native half asks for it."""

    def __init__(self, name: str, obj: object, replicated: bool, allow_pickle: bool) -> None:
        self.replicated = replicated
        self._name = name
        self._obj = obj
        self._allow_pickle = allow_pickle
        self._settle: Build | None = None
        self._check()

    def known(self) -> tuple[list[Told], object]:
        """Its regions when it is registered."""
        return self.collect()

    def collect(self) -> tuple[list[Told], object]:
        """Its regions and its tree, now."""
        collected = _Collected(self._name, self._allow_pickle)
        root = _arrays.leaf(self._obj, self._name)
        if root is not None:
            return [("", root.dtype, root.shape, root.source())], None
        tree = collected.tree(self._obj, self._name, 0)
        return collected.regions, tree

    def room(self, saved: list[tuple[str, str, list[int]]], tree: object) -> list[object]:
        """Where the bytes of these regions go; refused if they do not fit."""
        fitting = _Fitting(self._name, saved, self._allow_pickle)
        root = _arrays.leaf(self._obj, self._name)
        if root is not None:
            if [name for name, _, _ in saved] != [""]:
                raise MissingError(
                    f"checkpoint has no `{self._name}` that is one tensor. {AS_IT_WAS}"
                )
            fitting.assign("", root.kind, self._obj, (self._name, True))
            self._settle = fitting.put
            return fitting.places()
        if tree is None:
            raise MissingError(f"checkpoint has no `{self._name}`. {AS_IT_WAS}")
        build = fitting.build(tree, self._obj, (self._name, _Manner(in_place=True, strict=True)))

        def settle() -> None:
            fitting.put()
            build()

        self._settle = settle
        return fitting.places()

    def settle(self) -> None:
        """Takes what was saved: all bytes are in their places."""
        settle, self._settle = self._settle, None
        if settle is not None:
            settle()

    def _check(self) -> None:
        obj, name = self._obj, self._name
        root = _arrays.leaf(obj, name)
        if root is not None:
            if root.place() is None:
                raise UnsupportedStateError(
                    f"`{name}` is read-only: a restore could not fill it", name
                )
            return
        if isinstance(obj, (dict, list, Pickled)) or is_generator(obj) or _has_state(obj):
            return
        kind = type(obj).__name__
        raise UnsupportedStateError(
            f"`{name}` is a {kind}, which cannot be filled in place: register a dict that "
            "holds it, or an object with state_dict and load_state_dict",
            name,
        )


class _Collected:
    """What a save finds."""

    def __init__(self, name: str, allow_pickle: bool) -> None:
        self.regions: list[Told] = []
        self._name = name
        self._allow_pickle = allow_pickle
        self._names: set[str] = set()
        # With the leaves, so that nothing is freed and its place taken meanwhile.
        self._shared: dict[object, tuple[Region, Leaf]] = {}

    def tree(self, value: Any, path: str, depth: int) -> object:
        """The value, with regions in the place of tensors."""
        if depth > _DEPTH_MAX:
            raise UnsupportedStateError(f"`{path}` is nested deeper than {_DEPTH_MAX}", path)
        if value is None or type(value) in (bool, int, float, bytes):
            return value
        if type(value) is str:
            return _text(value, path)
        leaf = _arrays.leaf(value, path)
        if leaf is not None:
            region, split = self._region(leaf, path), _arrays.split(leaf)
            if split is not None:
                return {_MARK + "shard": [region, *(list(sides) for sides in split)]}
            return region if leaf.kind == "array" else {_MARK + leaf.kind: region}
        if isinstance(value, Pickled):
            return {_MARK + "pickle": self._pickle(value, path)}
        if _is_scalar(value, path):
            return {_MARK + "scalar": [value.dtype.str, value.tobytes()]}
        if is_generator(value) or _has_state(value):
            return {_MARK + "object": self.tree(_state_of(value), path, depth + 1)}
        return self._container(value, path, depth + 1)

    def _container(self, value: Any, path: str, depth: int) -> object:
        if isinstance(value, dict):
            return {
                _key(key, path): self.tree(one, f"{path}/{_named(key)}", depth)
                for key, one in value.items()
            }
        is_size = isinstance(value, tuple) and type(value).__name__ == "Size"
        if type(value) in (list, tuple) or is_size:
            values = [self.tree(one, f"{path}/{at}", depth) for at, one in enumerate(value)]
            return values if type(value) is list else {_MARK + "tuple": values}
        kind = type(value).__qualname__
        raise UnsupportedStateError(
            f"`{path}` is a {kind}, which a checkpoint has no type for: leave it out, give it "
            "state_dict and load_state_dict, or wrap it in lifeboat.pickled()",
            path,
        )

    def _region(self, leaf: Leaf, path: str) -> Region:
        known = self._shared.get(leaf.identity())
        if known is not None:
            return known[0]
        name = path
        while name in self._names:
            name += "~"
        self._names.add(name)
        region = Region(name)
        self._shared[leaf.identity()] = (region, leaf)
        within = name.removeprefix(self._name).removeprefix("/")
        self.regions.append((within, leaf.dtype, leaf.shape, leaf.source()))
        return region

    def _pickle(self, value: Pickled, path: str) -> bytes:
        _allowed(self._allow_pickle, path)
        try:
            return pickle.dumps(value.value)
        except Exception as error:
            raise UnsupportedStateError(f"`{path}` cannot be pickled: {error}", path) from error


class _Fitting:
    """What a restore puts where."""

    def __init__(
        self, name: str, saved: list[tuple[str, str, list[int]]], allow_pickle: bool
    ) -> None:
        self._name = name
        self._saved = {within: (dtype, tuple(shape)) for within, dtype, shape in saved}
        self._leaves: dict[str, Leaf] = {}
        self._places: dict[str, object] = {}
        self._staged: list[Callable[[], None]] = []
        self._allow_pickle = allow_pickle

    def places(self) -> list[object]:
        """The places of all regions, in their order."""
        lost = [within for within in self._saved if within not in self._places]
        if lost:
            raise NotTakenError(
                f"`{self._name}/{lost[0]}` is in the checkpoint, and nothing names it"
            )
        return [self._places[within] for within in self._saved]

    def put(self) -> None:
        """Moves what could not be written to its place at once."""
        for put in self._staged:
            put()

    def assign(self, within: str, kind: Kind, live: object, where: tuple[str, bool]) -> Leaf:
        """The leaf that takes a region: the program's own if it fits, else a new one."""
        path, strict = where
        if within in self._leaves:
            return self._leaves[within]
        if within not in self._saved:
            raise NotTakenError(f"`{path}` has no bytes in the checkpoint")
        dtype, shape = self._saved[within]
        own = None if live is _ABSENT else _arrays.leaf(live, path)
        if own is not None and (own.dtype, own.shape) != (dtype, shape):
            if isinstance(live, bytearray) and dtype == "u8" and len(shape) == 1:
                return self._resized(within, live, path)
            if strict:
                here, there = f"{own.dtype} {list(own.shape)}", f"{dtype} {list(shape)}"
                raise OtherShapeError(
                    f"`{path}` is {here} here and {there} in the checkpoint. {AS_IT_WAS}"
                )
            own = None
        place = own.place() if own is not None and own.kind == kind else None
        if own is None or place is None:
            own = _arrays.new(kind, dtype, shape, path)
            place = own.place()
        if place is None:
            raise NotTakenError(f"`{path}` cannot be written to")
        self._leaves[within] = own
        self._places[within] = place[0]
        if place[1] is not None:
            self._staged.append(place[1])
        return own

    def _resized(self, within: str, live: bytearray, path: str) -> Leaf:
        """A bytearray may have had another length."""
        dtype, shape = self._saved[within]
        staged = _arrays.new("buffer", dtype, shape, path)
        place = staged.place()
        self._places[within] = place[0] if place is not None else None

        def put() -> None:
            live[:] = staged.value
            staged.value = live

        self._staged.append(put)
        self._leaves[within] = staged
        return staged

    def build(self, tree: Any, live: Any, where: tuple[str, _Manner]) -> Build:
        """Finds places for what the tree names; what is returned makes the value of it."""
        path, manner = where
        if isinstance(tree, Region):
            return self._tensor(tree, "array", live, where)
        if isinstance(tree, list):
            return self._list(tree, live, where)
        if not isinstance(tree, dict):
            return lambda: tree
        mark = next(iter(tree), None) if len(tree) == 1 else None
        if not isinstance(mark, str) or not mark.startswith(_MARK):
            return self._dict(tree, live, where)
        rest, inner = mark.removeprefix(_MARK), tree[mark]
        if rest in ("tensor", "buffer"):
            return self._tensor(inner, rest, live, where)
        if rest == "shard":
            return self._shard(inner, live, where)
        if rest == "tuple":
            there = list(live) if isinstance(live, tuple) else _ABSENT
            built = self._list(inner, there, (path, _Manner(False, manner.strict)))
            return lambda: tuple(built())
        if rest == "scalar":
            return _scalar(inner, path)
        if rest == "pickle":
            return self._pickle(inner, live, path)
        if rest == "object":
            return self._object(inner, live, path)
        raise NotTakenError(f"`{path}` was saved by a newer version, as {mark}")

    def _tensor(self, region: Any, kind: Any, live: Any, where: tuple[str, _Manner]) -> Build:
        path, manner = where
        if not isinstance(region, Region):
            raise NotTakenError(f"`{path}` has no bytes in the checkpoint")
        within = region.name.removeprefix(self._name).removeprefix("/")
        leaf = self.assign(within, kind, live, (path, manner.strict))
        return lambda: leaf.value

    def _shard(self, inner: Any, live: Any, where: tuple[str, _Manner]) -> Build:
        path, _ = where
        region: Any = inner[0]
        split: Any = tuple(tuple(sides) for sides in inner[1:])
        own = None if live is _ABSENT else _arrays.leaf(live, path)
        here = None if own is None else _arrays.split(own)
        if own is not None and here != split:
            how = "not shared by ranks" if here is None else f"shared by ranks as {here}"
            raise OtherShapeError(
                f"`{path}` is {how} here and as {split} in the checkpoint: shard as it was"
            )
        if own is None and isinstance(region, Region):
            within = region.name.removeprefix(self._name).removeprefix("/")
            dtype, shape = self._saved[within]
            live = _arrays.new_shard(dtype, shape, split, path).value
        return self._tensor(region, "tensor", live, where)

    def _list(self, tree: list[Any], live: Any, where: tuple[str, _Manner]) -> Build:
        path, manner = where
        own = live if isinstance(live, list) else []
        if manner.strict:
            for at in range(len(tree), len(own)):
                _not_missing(own[at], f"{path}/{at}")
        builds = [
            self.build(one, own[at] if at < len(own) else _ABSENT, (f"{path}/{at}", manner))
            for at, one in enumerate(tree)
        ]

        def built() -> list[Any]:
            values = [build() for build in builds]
            if manner.in_place and isinstance(live, list):
                live[:] = values
                return live
            return values

        return built

    def _dict(self, tree: dict[Any, Any], live: Any, where: tuple[str, _Manner]) -> Build:
        path, manner = where
        own = live if isinstance(live, dict) else {}
        if manner.strict:
            for key, value in own.items():
                if key not in tree:
                    _not_missing(value, f"{path}/{_named(key)}")
        builds = {
            key: self.build(one, own.get(key, _ABSENT), (f"{path}/{_named(key)}", manner))
            for key, one in tree.items()
        }

        def built() -> dict[Any, Any]:
            values = {key: build() for key, build in builds.items()}
            if manner.in_place and isinstance(live, dict):
                live.clear()
                live.update(values)
                return live
            return values

        return built

    def _pickle(self, inner: Any, live: Any, path: str) -> Build:
        _allowed(self._allow_pickle, path)

        def built() -> Pickled:
            holder = live if isinstance(live, Pickled) else Pickled(None)
            holder.value = pickle.loads(inner)
            return holder

        return built

    def _object(self, inner: Any, live: Any, path: str) -> Build:
        if live is _ABSENT or not (is_generator(live) or _has_state(live)):
            what = "nothing" if live is _ABSENT else f"a {type(live).__name__}"
            raise NotTakenError(
                f"`{path}` is an object in the checkpoint and {what} here: put the object there "
                "before restore()"
            )
        template = _state_of(live)
        manner = _Manner(in_place=False, strict=_is_module(live))
        build = self.build(inner, template, (path, manner))

        def built() -> object:
            _load(live, build(), path)
            return live

        return built


def _has_state(value: object) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    )


def _state_of(value: Any) -> Any:
    if is_generator(value):
        return Rng((value,), shared=False).state_dict()
    state = value.state_dict()
    if _is_module(value):
        return {_plain(key, state): one for key, one in state.items()}
    return state


def _load(value: Any, state: Any, path: str) -> None:
    if is_generator(value):
        return Rng((value,), shared=False).load_state_dict(state)
    if _is_module(value):
        own = value.state_dict()
        names = {_plain(key, own): key for key in own}
        state = {names.get(key, key): one for key, one in state.items()}
    try:
        value.load_state_dict(state)
    except LifeboatError:
        raise
    except Exception as error:
        raise NotTakenError(f"`{path}` does not take what was saved: {error}") from error
    return None


def _plain(key: str, keys: Any) -> str:
    """The name of a parameter without what compiling and DDP put into it."""
    key = ".".join(part for part in key.split(".") if part != "_orig_mod")
    wrapped = all(one.replace("_orig_mod.", "").startswith("module.") for one in keys)
    return key.removeprefix("module.") if wrapped else key


def _is_module(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _is_scalar(value: object, path: str) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.generic):
        return False
    if value.dtype.kind not in "biufc":
        raise UnsupportedStateError(
            f"`{path}` is a NumPy scalar of {value.dtype}: convert it", path
        )
    return True


def _scalar(inner: Any, path: str) -> Build:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        raise NotTakenError(f"`{path}` is of NumPy: import numpy before restore()")
    dtype, data = inner
    return lambda: numpy.frombuffer(data, dtype=numpy.dtype(dtype))[0]


def _not_missing(value: object, path: str) -> None:
    """What the checkpoint lacks may go, unless it holds a tensor: that would stay as it was."""
    if _arrays.leaf(value, path) is not None or _has_state(value):
        raise MissingError(f"checkpoint has no `{path}`. {AS_IT_WAS}")
    if isinstance(value, dict):
        for key, one in value.items():
            _not_missing(one, f"{path}/{_named(key)}")
    elif isinstance(value, (list, tuple)):
        for at, one in enumerate(value):
            _not_missing(one, f"{path}/{at}")


def _key(key: object, path: str) -> object:
    if type(key) is str:
        if key.startswith(_MARK):
            raise UnsupportedStateError(
                f"`{path}` has a key `{key}`, which Lifeboat uses itself", path
            )
        return _text(key, path)
    if key is None or type(key) in (bool, int, float, bytes):
        return key
    kind = type(key).__qualname__
    raise UnsupportedStateError(f"`{path}` has a {kind} for a key: use text or numbers", path)


def _text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnsupportedStateError(
            f"`{path}` is no text that can be written as UTF-8", path
        ) from None
    return text


def _named(key: object) -> str:
    """A key as part of a path."""
    return str(key).replace("~", "~0").replace("/", "~1")


def _allowed(allow_pickle: bool, path: str) -> None:
    if not allow_pickle:
        raise PickleRefusedError(
            f"`{path}` is a pickle: connect(allow_pickle=True) takes it, if you trust whoever can "
            "write to the bucket",
            path,
        )

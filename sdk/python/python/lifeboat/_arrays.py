"""Arrays, tensors and buffers as bytes: without a copy where they lie in one piece."""

import math
import sys
from collections.abc import Callable, Hashable
from typing import Any, Literal, Protocol

from lifeboat._errors import NotTakenError, UnsupportedStateError

Kind = Literal["array", "tensor", "buffer"]
Split = tuple[tuple[int, ...], tuple[int | None, ...], tuple[int, ...]]
"""How ranks share a tensor: its whole size; for each dimension of the mesh, along which of its own
it is split, or none; the mesh's sides."""

_meshes: dict[tuple[int, ...], Any] = {}
"""Meshes that were seen, by their sides: what an optimizer holds lies on those of its model."""

_BY_NUMPY = {
    "|b1": "bool",
    "|u1": "u8",
    "|i1": "i8",
    "<u2": "u16",
    "<i2": "i16",
    "<f2": "f16",
    "<u4": "u32",
    "<i4": "i32",
    "<f4": "f32",
    "<u8": "u64",
    "<i8": "i64",
    "<f8": "f64",
    "<c8": "c64",
    "<c16": "c128",
}
# By their names, which the package ml_dtypes gives to NumPy.
_BY_OTHERS = {"bfloat16": "bf16", "float8_e4m3fn": "f8_e4m3", "float8_e5m2": "f8_e5m2"}
_BY_TORCH = {
    "torch.bool": "bool",
    "torch.uint8": "u8",
    "torch.int8": "i8",
    "torch.uint16": "u16",
    "torch.int16": "i16",
    "torch.float16": "f16",
    "torch.bfloat16": "bf16",
    "torch.uint32": "u32",
    "torch.int32": "i32",
    "torch.float32": "f32",
    "torch.uint64": "u64",
    "torch.int64": "i64",
    "torch.float64": "f64",
    "torch.complex64": "c64",
    "torch.complex128": "c128",
    "torch.float8_e4m3fn": "f8_e4m3",
    "torch.float8_e5m2": "f8_e5m2",
}
# One byte an element, as the format counts for a type that it does not know.
_BY_TORCH |= {
    f"torch.{name}": name
    for name in ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2")
}
_BY_FORMAT = {
    "?": "bool",
    "B": "u8",
    "c": "u8",
    "b": "i8",
    "H": "u16",
    "h": "i16",
    "e": "f16",
    "I": "u32",
    "i": "i32",
    "f": "f32",
    "L": "u64",
    "Q": "u64",
    "l": "i64",
    "q": "i64",
    "d": "f64",
}


class Leaf(Protocol):
    """Something whose bytes are a region."""

    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    value: Any

    def source(self) -> object:
        """Its bytes, to read: a buffer, or something with `read_into`."""

    def place(self) -> tuple[object, Callable[[], None] | None] | None:
        """Where to write them, and what is to be done then; none if it cannot be written to."""

    def identity(self) -> Hashable:
        """What it has in common with another name of the same memory."""


def leaf(value: object, path: str) -> Leaf | None:
    """The value as bytes, if it is such; refused if it is and cannot be saved."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _Sharded(value, path) if hasattr(value, "to_local") else _Tensor(value, path)
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _Array(value, path)
    if isinstance(value, (bytes, str)) or (numpy is not None and isinstance(value, numpy.generic)):
        return None
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    return _Buffer(value, view, path)


def new(kind: Kind, dtype: str, shape: tuple[int, ...], path: str) -> Leaf:
    """Room for bytes that the program has no place for yet."""
    if kind == "tensor":
        torch = _module("torch", path)
        return _Tensor(torch.empty(shape, dtype=_named(torch, _BY_TORCH, dtype, path)), path)
    if kind == "array":
        numpy = _module("numpy", path)
        names = [name for name, known in _BY_NUMPY.items() if known == dtype]
        if not names:
            raise UnsupportedStateError(
                f"`{path}` is an array of {dtype}, which NumPy has not", path
            )
        return _Array(numpy.empty(shape, dtype=names[0]), path)
    room = bytearray(math.prod(shape))
    return _Buffer(room, memoryview(room), path)


def split(leaf: Leaf) -> Split | None:
    """How ranks share it; none if each has its own."""
    return leaf.split if isinstance(leaf, _Sharded) else None


def new_shard(dtype: str, shape: tuple[int, ...], split: Split, path: str) -> Leaf:
    """Room for this rank's part of a tensor that the program has no place for yet."""
    torch = _module("torch", path)
    from torch.distributed.tensor import DTensor, Replicate, Shard

    size, sides, mesh = split
    if mesh not in _meshes:
        raise NotTakenError(
            f"`{path}` is shared by ranks in the checkpoint: register the model that is sharded "
            "before what belongs to it"
        )
    local = torch.empty(
        shape, dtype=_named(torch, _BY_TORCH, dtype, path), device=_meshes[mesh].device_type
    )
    placements = [Replicate() if side is None else Shard(side) for side in sides]
    stride = tuple(math.prod(size[at + 1 :]) for at in range(len(size)))
    whole = DTensor.from_local(
        local, _meshes[mesh], placements, run_check=False, shape=torch.Size(size), stride=stride
    )
    return _Sharded(whole, path)


class _Array:
    """A NumPy array."""

    kind: Kind = "array"

    def __init__(self, array: Any, path: str) -> None:
        dtype = _BY_NUMPY.get(array.dtype.str) or _BY_OTHERS.get(array.dtype.name)
        if dtype is None or hasattr(array, "mask"):
            what = "a masked array" if dtype is not None else f"an array of {array.dtype}"
            advice = "save its parts as arrays of numbers, little-endian"
            raise UnsupportedStateError(f"`{path}` is {what}: {advice}", path)
        self.value = array
        self.dtype = dtype
        self.shape = tuple(array.shape)

    def source(self) -> object:
        numpy = sys.modules["numpy"]
        return numpy.ascontiguousarray(self.value).reshape(-1).view(numpy.uint8)

    def place(self) -> tuple[object, Callable[[], None] | None] | None:
        numpy, array = sys.modules["numpy"], self.value
        if not array.flags.writeable:
            return None
        if array.flags.c_contiguous:
            return array.reshape(-1).view(numpy.uint8), None
        staged = numpy.empty(array.shape, dtype=array.dtype)

        def put() -> None:
            array[...] = staged

        return staged.reshape(-1).view(numpy.uint8), put

    def identity(self) -> Hashable:
        array = self.value
        place = array.__array_interface__["data"][0] if array.size else id(array)
        return (place, self.shape, array.strides, self.dtype)


class _Tensor:
    """A PyTorch tensor."""

    kind: Kind = "tensor"

    def __init__(self, tensor: Any, path: str) -> None:
        torch = sys.modules["torch"]
        dtype = _BY_TORCH.get(str(tensor.dtype))
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            what = f"a tensor of {tensor.dtype} on {tensor.device}, {tensor.layout}: make it dense"
        elif dtype is None:
            what = f"a tensor of {tensor.dtype}: convert it"
        else:
            self.value = self._local = tensor
            self.dtype = dtype
            self.shape = tuple(tensor.shape)
            return
        raise UnsupportedStateError(f"`{path}` is {what}", path)

    def source(self) -> object:
        tensor = self._local.detach().resolve_conj().resolve_neg().contiguous()
        return _bytes(tensor)

    def place(self) -> tuple[object, Callable[[], None] | None] | None:
        tensor = self._local.detach()
        if tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
            return _bytes(tensor), None
        torch = sys.modules["torch"]
        staged = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

        def put() -> None:
            with torch.no_grad():
                tensor.copy_(staged)

        return _bytes(staged), put

    def identity(self) -> Hashable:
        tensor = self._local
        place = (tensor.device, tensor.data_ptr()) if tensor.numel() else id(self.value)
        return (place, self.shape, tuple(tensor.stride()), self.dtype)


class _Sharded(_Tensor):
    """A DTensor, by the part that this rank has of it."""

    def __init__(self, tensor: Any, path: str) -> None:
        torch = sys.modules["torch"]
        with torch.no_grad():
            super().__init__(tensor.detach().to_local(), path)
        self.value = tensor
        mesh = tuple(tensor.device_mesh.shape)
        sides = tuple(_side(placement, path) for placement in tensor.placements)
        self.split: Split = (tuple(tensor.shape), sides, mesh)
        _meshes[mesh] = tensor.device_mesh


def _side(placement: Any, path: str) -> int | None:
    """The dimension that is split, if one is."""
    if placement.is_replicate():
        return None
    if type(placement).__name__ == "Shard":
        return int(placement.dim)
    raise UnsupportedStateError(
        f"`{path}` is a DTensor of {placement}: only Shard and Replicate are taken", path
    )


class _Buffer:
    """Anything else with the buffer protocol."""

    kind: Kind = "buffer"

    def __init__(self, value: object, view: memoryview, path: str) -> None:
        dtype = _BY_FORMAT.get(view.format.lstrip("@<"))
        if dtype is None or not view.c_contiguous:
            what = f"a buffer of `{view.format}`, or one that is scattered"
            raise UnsupportedStateError(f"`{path}` is {what}: make it one of bytes", path)
        self.value = value
        self.dtype = dtype
        self.shape = tuple(view.shape or ())
        # No export is kept: a bytearray could not grow.
        view.release()

    def source(self) -> object:
        return _flat(memoryview(self.value))  # type: ignore[arg-type]

    def place(self) -> tuple[object, Callable[[], None] | None] | None:
        view = memoryview(self.value)  # type: ignore[arg-type]
        return None if view.readonly else (_flat(view), None)

    def identity(self) -> Hashable:
        return id(self.value)


class DeviceBytes:
    """Bytes that are not in host memory: copied piece by piece, straight to where they go."""

    def __init__(self, flat: Any) -> None:
        self._flat = flat

    def read_into(self, offset: int, into: memoryview) -> None:
        """Copies bytes from `offset` on."""
        self._host(into).copy_(self._flat[offset : offset + len(into)])

    def write_from(self, offset: int, data: memoryview) -> None:
        """Puts bytes at `offset`."""
        self._flat[offset : offset + len(data)].copy_(self._host(bytearray(data)))

    @staticmethod
    def _host(view: memoryview | bytearray) -> Any:
        torch = sys.modules["torch"]
        return torch.frombuffer(view, dtype=torch.uint8)


def in_host_memory(tensor: Any) -> bool:
    """Whether its bytes can be reached by pointer."""
    return bool(tensor.device.type == "cpu")


def _bytes(tensor: Any) -> object:
    """Of one piece; `.numpy()` alone refuses types that NumPy has not."""
    torch = sys.modules["torch"]
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.view(-1).view(torch.uint8)
    if not in_host_memory(flat):
        return DeviceBytes(flat)
    return flat.numpy()


def _flat(view: memoryview) -> memoryview:
    # A view of no bytes cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _named(torch: Any, names: dict[str, str], dtype: str, path: str) -> Any:
    found = [name for name, known in names.items() if known == dtype]
    own = getattr(torch, found[0].removeprefix("torch."), None) if found else None
    if own is None:
        raise UnsupportedStateError(f"`{path}` is a tensor of {dtype}, which torch has not", path)
    return own


def _module(name: str, path: str) -> Any:
    module = sys.modules.get(name)
    if module is None:
        raise UnsupportedStateError(
            f"`{path}` in the checkpoint is of {name}: import {name} before restore()", path
        )
    return module

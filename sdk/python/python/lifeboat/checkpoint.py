"""torch.distributed.checkpoint in folders that the boat hands over, without a pickle in them.

    boat.register_files(
        save=lambda folder: dcp.save(state(), storage_writer=Writer(folder)),
        load=lambda folder: dcp.load(state(), storage_reader=Reader(folder)),
    )

A folder has one file of bytes for each rank, and `index.json`, which is written last and says where
each tensor lies. What is not a tensor stands in it as typed values. Nothing is unpickled that was
read: torch's planner asks for a pickle, and gets one that is made here from such a value.
"""

import io
import json
import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, WriteItemType
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from lifeboat import _arrays
from lifeboat._errors import NotTakenError, UnsupportedStateError

_INDEX = "index.json"
_FORMAT = 1
_PLAIN = (type(None), bool, int, str)


class _Folder:
    """What both sides are asked that does not concern a folder of one's own."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self._folder = Path(checkpoint_id)

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: Any) -> Any:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class Writer(_Folder, StorageWriter):  # type: ignore[misc]
    """For `dcp.save(..., storage_writer=Writer(folder))`."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def write_data(self, plan: Any, planner: Any) -> Any:
        rank = dist.get_rank() if dist.is_initialized() else 0
        results = []
        with open(self._folder / f"{rank}.bin", "wb") as file:
            for item in plan.items:
                name = item.index.fqn
                if item.type == WriteItemType.BYTE_IO:
                    where = {"value": _typed(planner.lookup_object(item.index), name)}
                    size = 0
                else:
                    leaf = _arrays.leaf(planner.resolve_data(item).detach().cpu(), name)
                    assert leaf is not None, "a tensor is one"
                    where = {"rank": rank, "at": file.tell(), "dtype": leaf.dtype}
                    size = file.write(memoryview(leaf.source()))  # type: ignore[arg-type]
                results.append(WriteResult(item.index, size, where))
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        stored = {result.index: result.storage_data for some in results for result in some}
        tensors, values = {}, {}
        for name, kind in metadata.state_dict_metadata.items():
            if isinstance(kind, TensorStorageMetadata):
                chunks = [
                    {
                        "offsets": list(chunk.offsets),
                        "sizes": list(chunk.sizes),
                        **stored[MetadataIndex(name, chunk.offsets)],
                    }
                    for chunk in kind.chunks
                ]
                tensors[name] = {"size": list(kind.size), "chunks": chunks}
            else:
                values[name] = stored[MetadataIndex(name)]["value"]
        index = {"format": _FORMAT, "tensors": tensors, "values": values}
        partial = self._folder / f"{_INDEX}.partial"
        partial.write_text(json.dumps(index))
        partial.rename(self._folder / _INDEX)


class Reader(_Folder, StorageReader):  # type: ignore[misc]
    """For `dcp.load(..., storage_reader=Reader(folder))`, of any number of ranks."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._values: dict[str, Any] = {}
        self._chunks: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = self._folder / _INDEX
        try:
            index = json.loads(path.read_text())
            if index["format"] != _FORMAT:
                raise NotTakenError(f"`{path}` is of format {index['format']}: update lifeboat")
            self._values = index["values"]
            self._chunks = {
                (name, tuple(chunk["offsets"])): chunk
                for name, tensor in index["tensors"].items()
                for chunk in tensor["chunks"]
            }
            tensors = {name: _tensor(name, one) for name, one in index["tensors"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotTakenError(f"`{path}` is no index of a checkpoint: {error!r}") from error
        return Metadata({**tensors, **{name: BytesStorageMetadata() for name in self._values}})

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        if not self._chunks and not self._values:
            self.read_metadata()

    def read_data(self, plan: Any, planner: Any) -> Any:
        for item in plan.items:
            name = item.storage_index.fqn
            if item.type == LoadItemType.BYTE_IO:
                pickled = io.BytesIO()
                torch.save(_value(self._values[name], name), pickled)
                pickled.seek(0)
                planner.load_bytes(item, pickled)
                continue
            tensor = self._read(name, self._chunks[name, tuple(item.storage_index.offset)])
            for side, (begin, length) in enumerate(
                zip(item.storage_offsets, item.lengths, strict=True)
            ):
                tensor = tensor.narrow(side, begin, length)
            place = planner.resolve_tensor(item).detach()
            place.copy_(tensor)
            planner.commit_tensor(item, place)
        return _done(None)

    def _read(self, name: str, chunk: dict[str, Any]) -> Any:
        sizes = tuple(chunk["sizes"])
        path = self._folder / f"{int(chunk['rank'])}.bin"
        with open(path, "rb") as file:
            leaf = _arrays.new("tensor", chunk["dtype"], (), name)
            needed = leaf.value.element_size()
            for side in sizes:
                needed *= side
            # Before room is made for it: a size is not to be trusted.
            if min(sizes, default=0) < 0 or chunk["at"] + needed > path.stat().st_size:
                raise NotTakenError(f"`{name}` does not lie in `{path.name}`, which ends before")
            leaf = _arrays.new("tensor", chunk["dtype"], sizes, name)
            place = leaf.place()
            assert place is not None, "a new tensor can be written to"
            file.seek(chunk["at"])
            file.readinto(memoryview(place[0]))  # type: ignore[arg-type]
        return leaf.value


def _tensor(name: str, tensor: dict[str, Any]) -> TensorStorageMetadata:
    dtype = _arrays.new("tensor", tensor["chunks"][0]["dtype"], (), name).value.dtype
    chunks = [
        ChunkStorageMetadata(torch.Size(chunk["offsets"]), torch.Size(chunk["sizes"]))
        for chunk in tensor["chunks"]
    ]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(tensor["size"]), chunks)


def _typed(value: Any, path: str) -> Any:
    """A value as JSON from which it comes back as it was."""
    if type(value) in _PLAIN:
        return value
    if type(value) is float:
        return {"float": value.hex()}
    if type(value) is bytes:
        return {"bytes": b64encode(value).decode()}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_typed(one, path) for one in value]}
    if type(value) is dict:
        return {"dict": [[_typed(key, path), _typed(one, path)] for key, one in value.items()]}
    raise UnsupportedStateError(
        f"`{path}` is a {type(value).__qualname__}: make it a tensor or a plain value", path
    )


def _value(typed: Any, path: str) -> Any:
    """The value that it was."""
    if type(typed) in _PLAIN:
        return typed
    if isinstance(typed, dict) and len(typed) == 1:
        [(kind, inner)] = typed.items()
        if kind == "float":
            return float.fromhex(inner)
        if kind == "bytes":
            return b64decode(inner)
        if kind in ("list", "tuple"):
            values = [_value(one, path) for one in inner]
            return values if kind == "list" else tuple(values)
        if kind == "dict":
            return {_value(key, path): _value(one, path) for key, one in inner}
    raise NotTakenError(f"`{path}` in the checkpoint is of no type that is known here")


def _done(value: Any) -> Any:
    future: Any = Future()
    future.set_result(value)
    return future

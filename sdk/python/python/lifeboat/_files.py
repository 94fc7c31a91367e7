"""State that a framework writes to a folder and reads from one: handed over as files."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from lifeboat._errors import (
    FileError,
    LifeboatError,
    NotSavedError,
    NotTakenError,
    UnsupportedStateError,
)

_MARK = "lifeboat.files"
"""What the tree of such a part has: its folders, since a file's name says only where it lies."""

Told = tuple[str, str, tuple[int, ...], object]
"""A region: name within the part, type, dimensions, the open file."""
Use = Callable[[str], object]
"""Writes all state to an empty folder, or takes it from one."""


class Files:
    """What is registered under one name, as the native half asks for it."""

    replicated = False

    def __init__(self, name: str, save: Use, load: Use, scratch: str | None) -> None:
        self._name = name
        self._save = save
        self._load = load
        self._scratch = scratch
        self._folder: _Folder | None = None

    def known(self) -> tuple[list[Told], object]:
        """Nothing is known before the first save."""
        return [], None

    def collect(self) -> tuple[list[Told], object]:
        """The files that `save` writes. They are unlinked as soon as they are open."""
        with _Folder(self._name, self._scratch) as folder:
            self._call(self._save, folder.path, NotSavedError, "was not saved")
            regions: list[Told] = []
            folders: list[str] = []
            for path, within in _walk(folder.path, self._name):
                if path.is_dir():
                    folders.append(within)
                else:
                    file = _Open(path, os.O_RDONLY)
                    regions.append((within, "u8", (file.size(),), file))
            if not regions:
                raise NotSavedError(
                    f"`{self._name}` was not saved: `save` left no file in the folder"
                )
            return regions, {_MARK: folders}

    def room(self, saved: list[tuple[str, str, list[int]]], tree: object) -> list[object]:
        """Files to write to, in a new folder."""
        if not isinstance(tree, dict) or not isinstance(tree.get(_MARK), list):
            raise NotTakenError(
                f"`{self._name}` is no files in the checkpoint: register it as it was saved"
            )
        self._forget()
        self._folder = folder = _Folder(self._name, self._scratch)
        for within in tree[_MARK]:
            folder.inside(within).mkdir(parents=True, exist_ok=True)
        return [folder.file(within, shape) for within, _, shape in saved]

    def settle(self) -> None:
        """Takes what was saved: all bytes are in their files."""
        folder = self._folder
        if folder is not None:
            try:
                self._call(self._load, folder.path, NotTakenError, "does not take what was saved")
            finally:
                self._forget()

    def _forget(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.remove()

    def _call(self, use: Use, folder: Path, kind: type[LifeboatError], what: str) -> None:
        try:
            use(str(folder))
        except (LifeboatError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # torch.distributed.checkpoint's is no Exception
            why = f"`{getattr(use, '__name__', use)}` raised {type(error).__name__}: {error}"
            raise kind(f"`{self._name}` {what}: {why}") from error


class _Folder:
    """A folder for as long as it is needed."""

    def __init__(self, name: str, scratch: str | None) -> None:
        try:
            self.path = Path(tempfile.mkdtemp(prefix="lifeboat-", dir=scratch))
        except OSError as error:
            advice = "name one that can be written to: register_files(..., scratch=...)"
            raise FileError(f"folder for `{name}` was not made: {error}. {advice}") from error

    def inside(self, within: object) -> Path:
        """A path below it. What a checkpoint says is not to be trusted."""
        path = PurePosixPath(within if isinstance(within, str) else "/")
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in str(path):
            raise NotTakenError(f"`{within}` in the checkpoint is not the name of a file")
        return self.path / path

    def file(self, within: str, shape: list[int]) -> "_Open":
        """A new file of that size."""
        path = self.inside(within)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _Open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        file.grow(shape[0])
        return file

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> "_Folder":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Open:
    """An open file, which the native half takes for itself by its number."""

    def __init__(self, path: Path, flags: int) -> None:
        self._number = -1
        self._path = path
        try:
            self._number = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise FileError(f"`{path}` was not opened: {error}") from error

    def fileno(self) -> int:
        return self._number

    def size(self) -> int:
        return os.fstat(self._number).st_size

    def grow(self, size: int) -> None:
        try:
            if size:
                os.posix_fallocate(self._number, 0, size)
        except OSError as error:
            raise FileError(
                f"`{self._path}` has no room for {size} bytes: {error}. Name a folder that has: "
                "register_files(..., scratch=...)"
            ) from error

    def __del__(self) -> None:
        if self._number >= 0:
            os.close(self._number)


def _walk(top: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Folders and files below it, in order; anything else is refused by name."""
    for path in sorted(top.rglob("*")):
        within = path.relative_to(top).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UnsupportedStateError(
                f"`{name}/{within}` is neither a file nor a folder: write a copy",
                f"{name}/{within}",
            )
        try:
            within.encode()
        except UnicodeEncodeError:
            raise UnsupportedStateError(
                f"`{name}` has a file whose name is not UTF-8: give it another", name
            ) from None
        yield path, within

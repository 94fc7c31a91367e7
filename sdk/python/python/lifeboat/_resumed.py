"""Files of a checkpoint that a framework reads by itself, and not all of them at once."""

import shutil
import tempfile


class Resumed:
    """A folder of them, for as long as the framework needs it."""

    def __init__(self, scratch: str | None) -> None:
        self.folder: str | None = None
        self._scratch = scratch

    def take(self, folder: str) -> None:
        """Takes the files of a folder that goes away."""
        self.forget()
        self.folder = tempfile.mkdtemp(prefix="lifeboat-resumed-", dir=self._scratch)
        shutil.copytree(folder, self.folder, dirs_exist_ok=True, copy_function=shutil.move)

    def forget(self) -> None:
        """Nothing is read from it any more."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None

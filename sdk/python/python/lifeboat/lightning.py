"""Lightning's Trainer under Lifeboat.

    boat = lifeboat.connect()
    callback = LifeboatCallback(boat)
    trainer = Trainer(callbacks=[callback], ...)
    loader = lifeboat.Loader(DataLoader(...))
    trainer.fit(module, loader, ckpt_path=callback.restore(), weights_only=True)
    boat.finish()

Lightning saves neither the random number generators nor how far a plain loader is: the callback
adds the first, `lifeboat.Loader` the second.
"""

import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lifeboat import _signals
from lifeboat._boat import Boat
from lifeboat._errors import NotSavedError, UnsupportedStateError
from lifeboat._resumed import Resumed
from lifeboat._rng import Rng

_FILE = "lightning.ckpt"


class LifeboatCallback(Callback):  # type: ignore[misc]
    """Makes each optimizer step of a Trainer a safe point.

    What is saved is the checkpoint that Lightning itself resumes from, written within
    `on_train_batch_end`, in which the program also stands still; `should_stop` is not set. While
    it trains SIGTERM is heard by the boat, and not by Lightning's own handler. `generators` are
    those of the program's own, beside the shared ones.
    """

    def __init__(self, boat: Boat, *generators: object, scratch: str | None = None) -> None:
        self._boat = boat
        self._rng = Rng(generators, shared=True)
        self._drawn: dict[str, Any] | None = None
        self._resumed = Resumed(scratch)
        self._trainer: Trainer | None = None
        self._step = 0
        boat.register_files(
            save=self._save, load=self._resumed.take, name="trainer", scratch=scratch
        )

    def restore(self, *, newer_than: int | None = None) -> str | None:
        """The file for `ckpt_path`; none if the training begins anew.

        With `newer_than`, none as well unless it has more steps than that: then your own
        checkpoint is the one to resume from.
        """
        self._boat.restore(newer_than=newer_than)
        folder = self._resumed.folder
        return None if folder is None else os.path.join(folder, _FILE)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the trainer that it is a callback of."""
        if trainer.world_size > 1:
            raise UnsupportedStateError(
                f"`trainer` is one of {trainer.world_size} ranks, whose files each alone could not "
                "resume from: use a loop of your own with register(..., replicated=True)",
                "trainer",
            )
        self._trainer = trainer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All of the checkpoint is read; and SIGTERM is the boat's.

        Lightning's own handler would end the program between two steps, and with exit code 0.
        """
        _signals.retake()
        self._resumed.forget()
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What a loader draws to begin an epoch is over, so the generators may be put back."""
        drawn, self._drawn = self._drawn, None
        if drawn is not None:
            self._rng.load_state_dict(drawn)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The safe point, once for each step of the optimizer."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._boat.step(self._step)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning saves of it: the generators."""
        return self._rng.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps it until the first batch."""
        self._drawn = dict(state_dict)

    def _save(self, folder: str) -> None:
        if self._trainer is None:
            raise NotSavedError("`trainer` was not saved: fit() has not begun")
        self._trainer.save_checkpoint(os.path.join(folder, _FILE))

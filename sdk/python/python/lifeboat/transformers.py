"""Hugging Face's Trainer under Lifeboat.

boat = lifeboat.connect()
callback = LifeboatCallback(boat, trainer)
trainer.train(resume_from_checkpoint=callback.restore())
boat.finish()
"""

import os
import warnings
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from lifeboat._boat import Boat
from lifeboat._errors import UnsupportedStateError
from lifeboat._resumed import Resumed

_STATE = "trainer_state.json"


class LifeboatCallback(TrainerCallback):  # type: ignore[misc]
    """Makes each optimizer step of a Trainer a safe point. It adds itself to the trainer.

    What is saved are the files that the Trainer itself resumes from, written within `on_step_end`,
    in which the program also stands still; no flag of the Trainer is set. Its own checkpoints
    (`save_strategy`) stay as they are.
    """

    def __init__(self, boat: Boat, trainer: Trainer, *, scratch: str | None = None) -> None:
        if trainer.args.world_size > 1:
            raise UnsupportedStateError(
                f"`trainer` is one of {trainer.args.world_size} ranks, whose files alone could "
                "not resume from: use a loop of your own with register(..., replicated=True)",
                "trainer",
            )
        if getattr(trainer.args, "enable_jit_checkpoint", False):
            warnings.warn(
                "enable_jit_checkpoint also saves on SIGTERM, and stops the Trainer, so that the "
                "program may end as if it were done. Switch it off: Lifeboat saves.",
                stacklevel=2,
            )
        self._boat = boat
        self._trainer = trainer
        # The Trainer reads some of its files only at its first step.
        self._resumed = Resumed(scratch)
        boat.register_files(
            save=self._save, load=self._resumed.take, name="trainer", scratch=scratch
        )
        trainer.add_callback(self)

    def restore(self, *, newer_than: int | None = None) -> str | None:
        """The folder for `resume_from_checkpoint`; none if the training begins anew.

        With `newer_than`, none as well unless it has more steps than that: then your own
        checkpoint is the one to resume from.
        """
        self._boat.restore(newer_than=newer_than)
        return self._resumed.folder

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The safe point: after optimizer, scheduler and `zero_grad`."""
        self._resumed.forget()
        self._boat.step(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing is resumed from any more."""
        self._resumed.forget()

    def _save(self, folder: str) -> None:
        trainer = self._trainer
        trainer.save_model(folder, _internal_call=True)
        trainer._save_optimizer_and_scheduler(folder)
        trainer._save_scaler(folder)
        trainer._save_rng_state(folder)
        state = trainer.state
        for callback in [*trainer.callback_handler.callbacks, trainer.control]:
            if isinstance(callback, ExportableState):
                state.stateful_callbacks[type(callback).__name__] = callback.state()
        state.save_to_json(os.path.join(folder, _STATE))

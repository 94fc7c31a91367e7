"""Hugging Face's Trainer with a tiny GPT-2 that is made here, so nothing is fetched.

    pip install torch transformers accelerate
    python transformers_trainer.py --steps 60                  under Lifeboat, or alone
    python transformers_trainer.py --steps 60 --reference      the digest it has to end with

With LIFEBOAT_DIR set to a folder it can be tried on any machine: send it SIGTERM, and start it
again.
"""

import sys
import tempfile
from typing import Any

import lifeboat
import torch
from harness import Log, Pace, digest, main
from lifeboat.transformers import LifeboatCallback
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

WORDS, LENGTH = 64, 16


class Sentences(torch.utils.data.Dataset[Any]):
    """Each is a function of its number."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, number: int) -> Any:
        generator = torch.Generator().manual_seed(number)
        words = torch.randint(0, WORDS, (LENGTH,), generator=generator)
        return {"input_ids": words, "labels": words}


class Watch(TrainerCallback):
    """For the log, and for steps that take a while."""

    def __init__(self, options: Any, log: Log) -> None:
        self.pace, self.log = Pace(options.pace), log

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.log.write("training", **{"from": state.global_step})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.pace.keep()


def train(options: Any, log: Log) -> str:
    torch.set_num_threads(1)
    set_seed(options.seed)
    shape = GPT2Config(vocab_size=WORDS, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            seed=options.seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(GPT2LMHeadModel(shape), arguments, train_dataset=Sentences())
        trainer.add_callback(Watch(options, log))

        boat = lifeboat.connect(observer=log.observe)
        callback = LifeboatCallback(boat, trainer)
        trainer.train(resume_from_checkpoint=callback.restore())
        boat.finish()
    return digest(trainer.model.state_dict().values())


if __name__ == "__main__":
    sys.exit(main(train))

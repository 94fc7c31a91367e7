"""Lightning's Trainer with a small network, a scheduler and a plain loader with two workers.

    pip install torch lightning
    python lightning_trainer.py --steps 60                  under Lifeboat, or alone
    python lightning_trainer.py --steps 60 --reference      the digest it has to end with

With LIFEBOAT_DIR set to a folder it can be tried on any machine: send it SIGTERM, and start it
again.
"""

import sys
from typing import Any

import lifeboat
import torch
from harness import Log, Pace, digest, main
from lifeboat.lightning import LifeboatCallback
from lightning.pytorch import Callback, LightningModule, Trainer
from task import BATCH, Samples, network


class Net(LightningModule):
    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        self.network = network(options.seed, options.bytes)

    def training_step(self, batch: Any, number: int) -> Any:
        inputs, targets = batch
        return (self.network(inputs) - targets).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Watch(Callback):
    """For the log, and for steps that take a while."""

    def __init__(self, options: Any, log: Log) -> None:
        self.pace, self.lines = Pace(options.pace), log

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.lines.write("training", **{"from": trainer.global_step})

    def on_train_batch_start(self, *_: Any) -> None:
        self.pace.keep()


def train(options: Any, log: Log) -> str:
    net = Net(options)
    samples = torch.utils.data.DataLoader(Samples(options.seed), BATCH, shuffle=True, num_workers=2)

    boat = lifeboat.connect(observer=log.observe)
    callback = LifeboatCallback(boat)
    trainer = Trainer(
        max_steps=options.steps,
        callbacks=[callback, Watch(options, log)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    checkpoint = callback.restore()
    trainer.fit(net, lifeboat.Loader(samples), ckpt_path=checkpoint, weights_only=True)
    boat.finish()
    return digest(net.state_dict().values())


if __name__ == "__main__":
    sys.exit(main(train))

"""A loop of Accelerate, which writes and reads its own checkpoints.

    pip install torch accelerate
    python accelerate_trainer.py --steps 200                  under Lifeboat, or alone
    python accelerate_trainer.py --steps 200 --reference      the digest it has to end with

DeepSpeed and Megatron are saved in the same way, by functions of theirs. With LIFEBOAT_DIR set to a
folder it can be tried on any machine: send it SIGTERM, and start it again.
"""

import sys
from typing import Any

import lifeboat
import torch
from accelerate import Accelerator
from harness import Log, Pace, digest, main
from task import BATCH, Samples, network


def train(options: Any, log: Log) -> str:
    accelerator = Accelerator(cpu=True)
    model = network(options.seed, options.bytes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    samples = torch.utils.data.DataLoader(Samples(options.seed), BATCH, shuffle=True)
    model, optimizer, scheduler, samples = accelerator.prepare(model, optimizer, scheduler, samples)
    # Accelerate saves no place in the data.
    loader = lifeboat.Loader(samples)

    boat = lifeboat.connect(observer=log.observe)
    boat.register_files(save=accelerator.save_state, load=accelerator.load_state)
    boat.register("loader", loader)
    boat.register("rng", lifeboat.rng())
    step = boat.restore(default=0)
    log.write("training", **{"from": step})

    pace = Pace(options.pace)
    while step < options.steps:
        for inputs, targets in loader:
            accelerator.backward((model(inputs) - targets).square().mean())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            pace.keep()
            boat.step(step)
            if step == options.steps:
                break
    boat.finish()
    return digest([*model.state_dict().values(), scheduler.get_last_lr()])


if __name__ == "__main__":
    sys.exit(main(train))

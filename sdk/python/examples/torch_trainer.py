"""A PyTorch loop with everything that has state: mixed precision with its scaler, a scheduler, and
a loader with two workers that says how far it is.

    pip install torch torchdata
    python torch_trainer.py --steps 200                  under Lifeboat, or alone
    python torch_trainer.py --steps 200 --reference      the digest it has to end with

With LIFEBOAT_DIR set to a folder it can be tried on any machine: send it SIGTERM, and start it
again.
"""

import sys
from typing import Any

import lifeboat
import torch
from harness import Log, Pace, digest, main
from task import BATCH, Samples, network
from torchdata.stateful_dataloader import StatefulDataLoader


def train(options: Any, log: Log) -> str:
    model = network(options.seed, options.bytes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=8)
    samples = Samples(options.seed)
    loader = lifeboat.Loader(StatefulDataLoader(samples, BATCH, shuffle=True, num_workers=2))

    boat = lifeboat.connect(observer=log.observe)
    boat.register("model", model)
    boat.register("optimizer", optimizer)
    boat.register("scheduler", scheduler)
    boat.register("scaler", scaler)
    boat.register("loader", loader)
    boat.register("rng", lifeboat.rng())
    step = boat.restore(default=0)
    log.write("training", **{"from": step})

    pace = Pace(options.pace)
    while step < options.steps:
        for inputs, targets in loader:  # goes on in the midst of an epoch, too
            with torch.autocast("cpu", torch.bfloat16):
                loss = (model(inputs) - targets).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scheduler.step()
            step += 1
            pace.keep()
            boat.step(step)
            if step == options.steps:
                break
    boat.finish()
    return digest([*model.state_dict().values(), scheduler.get_last_lr(), scaler.get_scale()])


if __name__ == "__main__":
    sys.exit(main(train))

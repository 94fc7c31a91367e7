"""A PyTorch loop whose state torch.distributed.checkpoint saves.

    pip install torch
    python checkpoint_trainer.py --steps 200                  under Lifeboat, or alone
    python checkpoint_trainer.py --steps 200 --reference      the digest it has to end with

With LIFEBOAT_DIR set to a folder it can be tried on any machine: send it SIGTERM, and start it
again.
"""

import sys
from typing import Any

import lifeboat
import torch
import torch.distributed.checkpoint as dcp
from harness import Log, Pace, digest, main
from lifeboat.checkpoint import Reader, Writer
from task import BATCH, Samples, network
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


def train(options: Any, log: Log) -> str:
    model = network(options.seed, options.bytes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    samples = torch.utils.data.DataLoader(Samples(options.seed), BATCH, shuffle=True)
    loader = lifeboat.Loader(samples)

    def save(folder: str) -> None:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.save(state, storage_writer=Writer(folder), no_dist=True)

    def load(folder: str) -> None:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, storage_reader=Reader(folder), no_dist=True)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)

    boat = lifeboat.connect(observer=log.observe)
    boat.register_files(save=save, load=load, name="state")
    boat.register("loader", loader)
    boat.register("rng", lifeboat.rng())
    step = boat.restore(default=0)
    log.write("training", **{"from": step})

    pace = Pace(options.pace)
    while step < options.steps:
        for inputs, targets in loader:
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            pace.keep()
            boat.step(step)
            if step == options.steps:
                break
    boat.finish()
    return digest(model.state_dict().values())


if __name__ == "__main__":
    sys.exit(main(train))

"""Several ranks on one node: data parallel (DDP), or with --fsdp sharded (FSDP2).

    pip install torch
    torchrun --standalone --nproc-per-node 4 ranks_trainer.py --steps 200
    torchrun --standalone --nproc-per-node 4 ranks_trainer.py --steps 200 --fsdp --reference

Ranks agree on the step that is saved through the agent, so nothing of this needs a collective. What
DDP keeps the same on all ranks one of them hands over; its data and its random numbers each rank
has for itself.

To end with the same bits as a run that nothing interrupts, DDP needs one backward pass before
`restore`; see `warm_up`.
"""

import os
import sys
from typing import Any

import lifeboat
import torch
import torch.distributed as dist
from harness import Log, Pace, digest, main
from task import BATCH, WIDTH, Samples, network
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def train(options: Any, log: Log) -> str:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model: Any = network(options.seed, options.bytes)
    if options.fsdp:
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model, mesh=mesh)
    else:
        model = DistributedDataParallel(model)
        warm_up(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(options.seed * world + rank)
    samples = Samples(options.seed * world + rank)
    loader = lifeboat.Loader(torch.utils.data.DataLoader(samples, BATCH, shuffle=True))

    boat = lifeboat.connect(observer=log.observe)
    boat.register("model", model)
    boat.register("optimizer", optimizer)
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

    whole = [one.full_tensor() if options.fsdp else one for one in model.state_dict().values()]
    ends: list[Any] = [None] * world
    dist.all_gather_object(ends, digest([*whole, torch.get_rng_state()]))
    dist.destroy_process_group()
    return digest(ends)


def warm_up(model: torch.nn.Module) -> None:
    """Lets DDP lay its gradients out as it does from its second step on.

    Before its first backward pass it does not know in which order they come, so that in the first
    step of each process they lie elsewhere in what the ranks add up. Of three numbers and more the
    sum depends on who begins, and a ring of ranks begins each part of it at another one.
    """
    model(torch.zeros(1, WIDTH)).sum().backward()
    model.zero_grad()


if __name__ == "__main__":
    # Gloo looks for the address of the machine's name, which need not have one.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sys.exit(main(train, ("--fsdp", "shard the model and its optimizer")))

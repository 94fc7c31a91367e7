"""Starts the ranks of a program as torchrun does, but imports PyTorch once for all of them.

    python forked.py RANKS PROGRAM [OPTION...]

With torchrun each rank imports it for itself, which costs ten times what a small training does.
"""

import ctypes
import importlib
import os
import runpy
import signal
import socket
import sys

ONCE = ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def main() -> int:
    world, sys.argv = int(sys.argv[1]), sys.argv[2:]
    for module in ONCE:
        importlib.import_module(module)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ranks: set[int] = set()

    def end_all(*_: object) -> None:
        for rank in ranks:
            os.kill(rank, signal.SIGTERM)

    for rank in range(world):
        child = os.fork()
        if child == 0:
            become(rank, world, port)
            runpy.run_path(sys.argv[0], run_name="__main__")
            return 0
        ranks.add(child)
    signal.signal(signal.SIGTERM, end_all)
    code = 0
    while ranks:
        child, status = os.wait()
        ranks.discard(child)
        ended = os.waitstatus_to_exitcode(status)
        if ended != 0 and code == 0:
            # The others would wait for it in their next collective.
            code = ended if ended > 0 else 128 - ended
            end_all()
    return code


def become(rank: int, world: int, port: int) -> None:
    """In the child: what torchrun tells a rank, and that it ends with its parent."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    number = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {name: str(value) for name, value in number.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.path.insert(0, os.path.dirname(sys.argv[0]))


if __name__ == "__main__":
    sys.exit(main())

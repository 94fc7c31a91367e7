"""What DDP keeps the same on all ranks, so that one of them can hand it over."""

import sys


class Replicas:
    """The parameters that were registered so."""

    def __init__(self) -> None:
        self._parameters: set[int] = set()

    def hold(self, obj: object) -> bool:
        """Whether it is the same on all ranks.

        Buffers are not: a norm's running mean is each rank's until the next step begins, and then
        that of rank 0.
        """
        torch = sys.modules.get("torch")
        if torch is None:
            return False
        if isinstance(obj, torch.nn.parallel.DistributedDataParallel):
            if any(True for _ in obj.buffers()):
                return False
            self._parameters |= {id(parameter) for parameter in obj.parameters()}
            return True
        # Others, as ZeroRedundancyOptimizer, share their state out.
        if isinstance(obj, torch.optim.Optimizer) and type(obj).__module__.startswith(
            "torch.optim"
        ):
            groups = [group["params"] for group in obj.param_groups]
            return all(id(one) in self._parameters for group in groups for one in group)
        return False

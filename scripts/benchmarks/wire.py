"""Count and time the communication between ranks: every collective of torch.distributed."""

import math
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.hardware import synchronise
from pipeline.cluster.world import World

# Bytes that a rank sends, as multiples of (ranks - 1) / ranks of the larger of its buffers, and rounds of messages,
# as multiples of log2(ranks); by Thakur et al., "Optimization of Collective Communication Operations in MPICH", 2005.
COSTS = {
    "allreduce_": 2,
    "_allgather_base_": 1,
    "_reduce_scatter_base_": 1,
    "broadcast_": 1,
    "barrier": 0,
}


class Wire(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts collectives within its context.

    Attributes:
        sent: bytes that each rank sends, for collectives by ring or recursive halving and doubling.
        rounds: consecutive messages, as multiples of log2(ranks).
    """

    def __init__(self, ranks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent, self.rounds = 0.0, 0
        self._share = (ranks - 1) / ranks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            cost = COSTS[func._opname]
            tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
            self.sent += cost * self._share * max(tensor.nbytes for tensor in tensors)
            self.rounds += cost
        return func(*args, **(kwargs or {}))


def latency_and_bandwidth(
    world: World, dtype: torch.dtype, elements: int = 2**23, times: int = 10
) -> tuple[float, float]:
    """Measure the seconds of a round of messages, and bytes per second, by all-reduces of one and many numbers."""

    def all_reduce(buffer: Tensor) -> float:
        seconds = []
        for _ in range(times):
            world.barrier()
            begin = time.perf_counter()
            dist.all_reduce(buffer)
            synchronise(world.device)
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)

    small, large = (torch.zeros(n, dtype=dtype, device=world.device) for n in (1, elements))
    all_reduce(large)
    latency, whole = all_reduce(small), all_reduce(large)
    sent = COSTS["allreduce_"] * (world.size - 1) / world.size * large.nbytes
    return latency / (COSTS["allreduce_"] * math.log2(world.size)), sent / (whole - latency)

"""Measure all ranks together: the speed of an all-reduce, and the differences of their clocks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from pipeline.cluster.world import World

_ROUNDS = 5  # all-reduces that are timed, after the first
_PINGS = 8  # the fastest gives a clock's offset best


@dataclass(frozen=True)
class AllReduce:
    """The seconds that summing this many bytes over this many ranks takes, and whether the sum was right."""

    bytes: int
    ranks: int
    seconds: float
    correct: bool

    @property
    def bus_bandwidth(self) -> float:
        """Bytes per second over the slowest link: in a ring, a rank sends 2 (n - 1) / n of the buffer (nccl-tests)."""
        return 2 * (self.ranks - 1) / self.ranks * self.bytes / self.seconds


@dataclass(frozen=True)
class Clock:
    """The seconds by which a clock is ahead of rank 0's, and their uncertainty."""

    ahead: float
    bound: float


def all_reduce(world: World, size: int) -> AllReduce:
    """Sum a buffer of `size` bytes over all ranks, which call this together, and time it."""
    buffer = torch.full((max(1, size // 4),), float(world.rank + 1), device=world.device)
    world.sum(buffer)  # opens the connections
    correct = bool((buffer == world.size * (world.size + 1) // 2).all())
    buffer.zero_()
    world.barrier()
    begin = time.perf_counter()
    for _ in range(_ROUNDS):
        world.sum(buffer)
    if world.gpu is not None:
        torch.cuda.synchronize(world.device)
    seconds = (time.perf_counter() - begin) / _ROUNDS
    told = world.gather((seconds, correct))
    return AllReduce(
        buffer.nbytes, world.size, max(seconds for seconds, _ in told), all(correct for _, correct in told)
    )


def clocks(world: World, timeout: float) -> list[Clock]:
    """Compare the clock of each node with rank 0's, after Cristian, "Probabilistic clock synchronization", 1989.

    All ranks call this together, and get the same.
    """
    if world.size == 1:
        return [Clock(0.0, 0.0)]
    group: Any = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    first_of_node = world.gather(world.rank - world.local_rank)
    now = torch.zeros(1, dtype=torch.float64)
    known = {0: Clock(0.0, 0.0)}
    for node in sorted(set(first_of_node) - {0}):
        exchanges = []
        for _ in range(_PINGS):
            if world.rank == 0:
                sent = time.time()
                distributed.send(now, node, group)
                distributed.recv(now, node, group)
                exchanges.append((sent, now.item(), time.time()))
            elif world.rank == node:
                distributed.recv(now, 0, group)
                distributed.send(now.fill_(time.time()), 0, group)
        if world.rank == 0:
            known[node] = clock_of(exchanges)
    known = world.from_first(known)
    return [known[first] for first in first_of_node]


def clock_of(exchanges: Sequence[tuple[float, float, float]]) -> Clock:
    """Estimate a clock from the times of a ping, the other clock's answer, and its return; the fastest is best."""
    sent, answered, back = min(exchanges, key=lambda exchange: exchange[2] - exchange[0])
    return Clock(answered - (sent + back) / 2, (back - sent) / 2)

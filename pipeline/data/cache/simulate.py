"""Predict a run's load on storage and on the nodes' caches, from the plan and the sizes of the shards alone.

Every node has a cache of whole shards. A shard in use stays; when space is needed, the shard whose next use is
furthest away is evicted (L. A. Belady, "A study of replacement algorithms", 1966). Nothing is simulated per sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from pipeline.data.cache.schedule import Schedule, Uses
from pipeline.data.order import Int64s, Order

_USES = 2_000_000  # most uses to simulate, which takes seconds; in a larger run, evenly spaced nodes represent all
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Fleet:
    """The machines of a run, each of which has `ranks_per_node` processes and a cache of `cache` bytes."""

    nodes: int
    ranks_per_node: int
    batch_size: int  # samples per global batch
    cache: int


@dataclass(frozen=True)
class Forecast:
    """The prediction for the nodes of a run, sizes in bytes.

    The lists have one entry per epoch; they are empty where the cache is smaller than `smallest_cache`.
    """

    nodes_simulated: int
    smallest_cache: int  # the most bytes in use at one step on one node
    shards_in_use: int  # the most at one step on one node
    node_reads: list[float]  # mean bytes that a node reads from storage
    most_node_reads: list[int]  # bytes of the node that reads most
    hit_rate: list[float]  # share of the bytes of the nodes' shards that is already cached
    egress: list[float]  # bytes that all nodes read from storage
    first_batch: float  # bytes of the samples in a node's part of the first batch, with mean sizes; the most
    first_batch_shards: int  # bytes of the shards of a node's part of the first batch; the most


def forecast(plan: Order, shard_bytes: Int64s, fleet: Fleet, epochs: int) -> Forecast:
    """Simulate a run from its start, with empty caches, as if every shard arrived whole and in time.

    Ranges that a node reads while a shard is still being fetched are not included.

    Args:
        plan: the order of the samples.
        shard_bytes: the size of every shard, (shards,) int64.
        fleet: the machines.
        epochs: the number to simulate. The caches also know the epoch after them, as in a run.

    Raises:
        ValueError: a batch does not have samples for some of the nodes.
    """
    schedules = _schedules(plan, fleet, epochs)
    # By epochs, then by nodes, since the plan caches an epoch's line for all nodes.
    needs = [schedule.working_set(epoch, shard_bytes) for epoch in range(epochs) for schedule in schedules]
    smallest_cache = max(size for size, _ in needs)
    reads = np.zeros((0, len(schedules)), dtype=np.int64)
    used = reads
    if fleet.cache >= smallest_cache:
        uses = [[schedule.uses(epoch) for schedule in schedules] for epoch in range(epochs + 1)]
        reads = np.stack([_reads(of_node, shard_bytes, fleet.cache) for of_node in zip(*uses, strict=True)], axis=1)
        used = np.array([[shard_bytes[use.shard].sum() for use in of_epoch] for of_epoch in uses[:epochs]])
    batch = np.searchsorted(np.cumsum(plan.counts), plan.batch(0, fleet.batch_size), side="right")  # its shards
    parts = [batch[schedule.part] for schedule in schedules]
    return Forecast(
        nodes_simulated=len(schedules),
        smallest_cache=smallest_cache,
        shards_in_use=max(count for _, count in needs),
        node_reads=reads.mean(axis=1).tolist(),
        most_node_reads=reads.max(axis=1, initial=0).tolist(),
        hit_rate=(1 - reads.sum(axis=1) / used.sum(axis=1)).tolist(),
        egress=(reads.mean(axis=1) * fleet.nodes).tolist(),
        first_batch=max((shard_bytes[part] / plan.counts[part]).sum() for part in parts),
        first_batch_shards=max(int(shard_bytes[np.unique(part)].sum()) for part in parts),
    )


def _schedules(plan: Order, fleet: Fleet, epochs: int) -> list[Schedule]:
    """Return the schedules of all nodes, or of evenly spaced ones."""
    ranks, world_size = fleet.ranks_per_node, fleet.nodes * fleet.ranks_per_node
    uses = (epochs + 1) * max(1, len(Schedule(plan, fleet.batch_size, 0, ranks, world_size).uses(0).shard))
    followed = np.linspace(0, fleet.nodes - 1, min(fleet.nodes, max(1, _USES // uses))).round().astype(int)
    return [Schedule(plan, fleet.batch_size, int(node) * ranks, ranks, world_size) for node in followed]


def _reads(uses: Sequence[Uses], shard_bytes: Int64s, cache: int) -> Int64s:
    """Return the bytes that a node reads from storage in every epoch but the last of `uses`, (epochs - 1,) int64.

    `cache` is at least the node's working set.
    """
    shards = np.concatenate([use.shard for use in uses])
    first_steps = np.concatenate([use.first_step for use in uses])
    last_steps = np.concatenate([use.last_step for use in uses])
    by_shard = np.lexsort((first_steps, shards))
    again = np.flatnonzero(shards[by_shard[1:]] == shards[by_shard[:-1]])
    next_uses = np.full(len(shards), _NEVER)
    next_uses[by_shard[again]] = first_steps[by_shard[again + 1]]

    reads = np.zeros(len(uses) - 1, dtype=np.int64)
    shard, size = shards.tolist(), shard_bytes[shards].tolist()
    first_step, last_step, next_use = first_steps.tolist(), last_steps.tolist(), next_uses.tolist()
    held = 0
    latest: dict[int, int] = {}  # the cached shards, and the latest use of each
    in_use: list[tuple[int, int]] = []  # heap of (last step, use)
    idle: list[tuple[int, int]] = []  # heap of (minus the step of the next use, use), including outdated uses
    use = 0
    for epoch in range(len(reads)):
        for _ in range(len(uses[epoch].shard)):
            while in_use and in_use[0][0] < first_step[use]:
                _, over = heappop(in_use)
                heappush(idle, (-next_use[over], over))
            if shard[use] not in latest:
                reads[epoch] += size[use]
                held += size[use]
                while held > cache:
                    _, evicted = heappop(idle)
                    if latest.get(shard[evicted]) == evicted:
                        held -= size[evicted]
                        del latest[shard[evicted]]
            latest[shard[use]] = use
            heappush(in_use, (last_step[use], use))
            use += 1
    return reads

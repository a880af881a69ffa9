"""Data sets for `maskfeat-shards plan`: the sizes of their shards, and the needs of smaller ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.data.cache.simulate import Fleet, forecast
from pipeline.data.mixture import mixture_of
from pipeline.data.order import Int64s, Order
from pipeline.data.plan import Plan
from shards.files import ShardError
from shards.manifest import Dataset

MOST_SAMPLES = 10**15  # so that products fit into 64 bits

# Tried where a cache is too small: lanes, blocks or shards divided by these, up to this many shards.
_FRACTIONS = [2, 4, 8, 16, 32, 64, 128, 256]
_MOST_SHARDS = 4_000_000
Candidate = tuple[str, Order, Int64s]  # the change, the order with it, the bytes of its shards


@dataclass(frozen=True)
class ShardSizes:
    """Data sets and their weights.

    Attributes:
        counts, sizes: for each data set, the samples and the bytes of every shard, (shards,).
        weights: see `whole`.
        media: the medium of each, see `mixture_of`.
    """

    counts: list[Int64s]
    sizes: list[Int64s]
    weights: list[int]
    media: Sequence[str] | None = None

    @property
    def shard_bytes(self) -> Int64s:
        """Return the bytes of the shards of all data sets, (shards,)."""
        return np.concatenate(self.sizes)

    def order(self, seed: int, lanes: int, block: int, batch_size: int) -> Order:
        """Return the order in which a run takes their samples, `batch_size` per step."""
        if len(self.counts) == 1:
            return Plan(self.counts[0], seed, lanes, block)
        return mixture_of(self.counts, self.weights, seed, lanes, block, batch_size, self.media)

    def cut(self, n: int) -> "ShardSizes":
        """Return the same data sets with every shard cut into `n`."""
        counts, sizes = ([np.repeat(of_set // n, n) for of_set in column] for column in (self.counts, self.sizes))
        return replace(self, counts=counts, sizes=sizes)


def shards_of(root: str) -> tuple[Int64s, Int64s]:
    """Return the samples and the bytes of every shard of a data set, two of (shards,)."""
    dataset = Dataset.load(root)
    if dataset.samples > MOST_SAMPLES or sum(shard.samples for shard in dataset.shards) != dataset.samples:
        raise ShardError(f"{root}: its dataset.json has a wrong number of samples, {dataset.samples:,}; build it again")
    found = dataset.shards
    return np.array([shard.samples for shard in found]), np.array([shard.bytes for shard in found])


def shared_out(total: int, shards: int) -> Int64s:
    """Divide `total` into `shards` parts that differ by at most one, (shards,)."""
    return total // shards + (np.arange(shards) < total % shards).astype(np.int64)


def remedies(sets: ShardSizes, order: Order, fleet: Fleet) -> Iterator[tuple[str, int]]:
    """Yield the smallest changes that fit a node's working set into its cache, and the new working set in bytes."""

    def smaller_blocks(n: int) -> Candidate | None:
        plan = sets.order(0, order.lanes, max(order.block // n, 1), fleet.batch_size)
        return f"--block {plan.block}", plan, sets.shard_bytes

    def fewer_lanes(n: int) -> Candidate | None:
        plan = sets.order(0, max(order.lanes // n, 1), order.block, fleet.batch_size)
        return (f"--lanes {plan.lanes}", plan, sets.shard_bytes) if plan.lanes >= fleet.nodes else None

    def smaller_shards(n: int) -> Candidate | None:
        if n * len(order.counts) > _MOST_SHARDS or n > min(of_set.max() for of_set in sets.counts):
            return None
        plan = (cut := sets.cut(n)).order(0, order.lanes, order.block, fleet.batch_size)
        return f"shards of {plan.counts.max()} samples", plan, cut.shard_bytes

    for change in (smaller_blocks, fewer_lanes, smaller_shards):
        for n in _FRACTIONS:
            if (candidate := change(n)) is None:
                break
            text, plan, sizes = candidate
            need = forecast(plan, sizes, replace(fleet, cache=0), epochs=1).smallest_cache
            if need <= fleet.cache:
                yield text, need
                break

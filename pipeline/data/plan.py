"""Which sample is used when: a pure function of (seed, position), with no state to save and none to lose.

A run visits positions p = 0, 1, 2, ... Position p belongs to epoch p // N and to lane p % lanes. For each epoch
the shards are permuted and their samples laid in a line; the line is cut into one contiguous stretch a lane;
within blocks of a lane the samples are permuted by a keyed bijection. So

- every epoch visits every sample exactly once, for ragged shards and any batch size: a batch may straddle two
  epochs, nothing is padded, dropped or repeated;
- batch `step` is a slice of positions, in the order of the lanes: it does not depend on ranks or workers, and a
  rank that takes a contiguous part of every batch reads a contiguous group of lanes, hence few shards;
- any step opens at once, in memory proportional to the number of shards.

The order is part of a run's identity: whoever changes what `ids` returns raises `PLAN_VERSION`.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.random import derive, mix

Int64s = NDArray[np.int64]

PLAN_VERSION = 1
_SHARDS, _BLOCKS = 1, 2  # the streams of randomness drawn from one epoch's key
_ROUNDS = 6  # even, so that the two halves of an odd width return to their places


class Plan:
    """The sample order of a whole run.

    Args:
        counts: samples in each shard, (shards,) non-negative integers. Ids number the samples in this order.
        seed: another seed is another order.
        lanes: contiguous stretches an epoch is cut into. More lanes mean that a rank touches fewer shards;
            one lane with `block >= sum(counts)` is a true permutation of everything.
        block: samples of a lane that are permuted among themselves.

    Raises:
        ValueError: no samples, or lanes or block below one.
    """

    def __init__(self, counts: ArrayLike, seed: int = 0, lanes: int = 64, block: int = 8192) -> None:
        self.counts: Int64s = np.asarray(counts, dtype=np.int64)
        if self.counts.ndim != 1 or (self.counts < 0).any() or self.counts.sum() == 0:
            raise ValueError("a plan needs the sample counts of its shards: one or more, none negative, not all zero")
        if lanes < 1 or block < 1:
            raise ValueError(f"a plan needs at least one lane and blocks of at least one: {lanes=}, {block=}")
        self.seed, self.lanes, self.block = seed, lanes, block
        self.samples = int(self.counts.sum())
        self._first_id: Int64s = np.cumsum(self.counts) - self.counts
        self._epoch_layout = lru_cache(maxsize=2)(self._lay_out)  # two: a batch may straddle an epoch's end

    def batch(self, step: int, batch_size: int) -> Int64s:
        """Sample ids of the whole global batch `step`, (batch_size,) int64; rank r of W takes the r-th of W parts."""
        return self.ids(self.positions(step, batch_size))

    def positions(self, step: int, batch_size: int) -> Int64s:
        """Positions of global batch `step`, (batch_size,) int64, lane by lane and ascending within a lane."""
        positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
        return positions[np.argsort(positions % self.lanes, kind="stable")]

    def epochs(self, positions: Int64s) -> Int64s:
        """The epoch of every position."""
        return positions // self.samples

    def ids(self, positions: Int64s) -> Int64s:
        """The sample id at every position; int64, the shape of `positions`."""
        ids = np.empty_like(positions)
        epochs = self.epochs(positions)
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            here = epochs == epoch
            ids[here] = self._ids_of_epoch(epoch, positions[here])
        return ids

    def _ids_of_epoch(self, epoch: int, positions: Int64s) -> Int64s:
        key, order, starts = self._epoch_layout(epoch)
        # Positions of this epoch before the first one of the lane, then of each lane: lane(p) = p % lanes holds
        # across epochs, so every batch of a multiple of `lanes` draws equally from every lane.
        begin, end = epoch * self.samples, (epoch + 1) * self.samples
        lane = positions % self.lanes
        in_lane = _count_congruent(positions, lane, self.lanes) - _count_congruent(begin, lane, self.lanes)
        lane_size = _count_congruent(end, lane, self.lanes) - _count_congruent(begin, lane, self.lanes)
        lane_start = _before_lane(end, lane, self.lanes) - _before_lane(begin, lane, self.lanes)

        block = in_lane // self.block
        block_size = np.minimum(self.block, lane_size - block * self.block)
        keys = derive(derive(np.full_like(lane, key), lane), block)
        line = lane_start + block * self.block + _permute(in_lane - block * self.block, block_size, keys)

        place = np.searchsorted(starts, line, side="right") - 1
        shard = order[place]
        return self._first_id[shard] + line - starts[place]

    def _lay_out(self, epoch: int) -> tuple[int, Int64s, Int64s]:
        """The key of an epoch's blocks, its order of the shards, and where in its line each of these starts."""
        epoch_key = derive(np.array([self.seed], dtype=np.int64), epoch)
        shards = np.flatnonzero(self.counts)
        order = shards[np.argsort(derive(derive(epoch_key, _SHARDS), shards), kind="stable")]
        counts = self.counts[order]
        return int(derive(epoch_key, _BLOCKS)[0]), order, np.cumsum(counts) - counts


def _count_congruent(end: Int64s | int, lane: Int64s, lanes: int) -> Int64s:
    """How many of the positions 0 .. end-1 lie in `lane`."""
    return (end - lane + lanes - 1) // lanes


def _before_lane(end: Int64s | int, lane: Int64s, lanes: int) -> Int64s:
    """How many of the positions 0 .. end-1 lie in lanes before `lane`."""
    return end // lanes * lane + np.minimum(end % lanes, lane)


def _permute(x: Int64s, size: Int64s, key: Int64s) -> Int64s:
    """A keyed bijection of range(size), element by element: x, size and key are (n,) int64, x < size.

    A Feistel network on the smallest power of two that holds `size`; values that leave range(size) walk on along
    their cycle until they return (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    width = np.ceil(np.log2(np.maximum(size, 2))).astype(np.int64)
    x = _feistel(x, width, key)
    outside = np.flatnonzero(x >= size)
    while outside.size:
        x[outside] = _feistel(x[outside], width[outside], key[outside])
        outside = outside[x[outside] >= size[outside]]
    return x


def _feistel(x: Int64s, width: Int64s, key: Int64s) -> Int64s:
    """A keyed bijection of range(2**width)."""
    low = width // 2
    high = width - low
    left, right = x >> low, x & ((1 << low) - 1)
    for round_ in range(_ROUNDS):
        # The halves of an odd width differ by one bit and swap places every round.
        left, right = (
            right,
            left ^ (mix(right + key + round_) & ((1 << (high if round_ % 2 == 0 else low)) - 1)),
        )
    return (left << low) | right

"""The order of samples: a pure function of (seed, position), without state to save or lose.

A run visits positions p = 0, 1, 2, ... Position p belongs to epoch p // N and to lane p % lanes. The shards are
assigned to lanes once; for each epoch they are permuted within their lanes, and their samples form a line, which is
cut into one contiguous stretch per lane; within blocks of a lane, the samples are permuted by a keyed bijection. Blocks
of different lanes are staggered, so that a node starts new shards a few at a time. So

- every epoch visits every sample exactly once, for ragged shards and any batch size: a batch may straddle two
  epochs, nothing is padded, dropped or repeated;
- batch `step` is a slice of positions, in the order of the lanes: it does not depend on ranks or workers, and a
  rank that takes a contiguous part of every batch reads a contiguous group of lanes, hence few shards, and the same
  ones in every epoch;
- any step can be computed at once, in memory proportional to the number of shards.

The order is part of a run's identity: increase `PLAN_VERSION` with every change of the result of `ids`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.data.order import Int64s, InTurn, Passage
from pipeline.random import derive, mix

PLAN_VERSION = 2
LANES, BLOCK = 64, 8192
MOST_LANES, MOST_IN_BLOCK = 2**20, 2**40  # so that all products fit into 64 bits
_SHARDS, _BLOCKS = 1, 2  # streams of randomness from an epoch's key ...
_DEAL = -1  # ... and from the seed
_HASH_BITS = 40  # for a shard's place in its lane; the other bits are the lane
_PART = 1 << 16  # shards hashed at once: for a million, the temporaries would be larger than the plan
_GOLDEN = 648056  # the golden ratio less one, times 2**20
_ALWAYS = 64  # epochs at once above which all shards count as always in use
_ROUNDS = 6  # even, so that the two halves of an odd width end in their places


class Plan:
    """The sample order of a whole run of one data set.

    Args:
        counts: samples in each shard, (shards,) non-negative integers. Ids number the samples in this order.
        seed: another seed is another order.
        lanes: number of contiguous stretches of an epoch. More lanes mean that a rank touches fewer shards;
            one lane with `block >= sum(counts)` is a true permutation of everything.
        block: samples of a lane that are permuted among themselves; a lane's first block is shorter.

    Raises:
        ValueError: there are no samples, or too few or too many lanes or samples in a block.
    """

    def __init__(self, counts: ArrayLike, seed: int = 0, lanes: int = LANES, block: int = BLOCK) -> None:
        self.counts: Int64s = np.asarray(counts, dtype=np.int64)
        if self.counts.ndim != 1 or (self.counts < 0).any() or self.counts.sum() == 0:
            raise ValueError("a plan needs the sample counts of its shards: one or more, none negative, not all zero")
        if not 1 <= lanes <= MOST_LANES or not 1 <= block <= MOST_IN_BLOCK:
            raise ValueError(
                f"a plan has 1 to {MOST_LANES} lanes and blocks of 1 to {MOST_IN_BLOCK}: {lanes=}, {block=}"
            )
        self.seed, self.lanes, self.block = seed, lanes, block
        self.samples = int(self.counts.sum())
        self._first_id: Int64s = np.cumsum(self.counts) - self.counts
        self._dealt = self._deal()
        self._lines: dict[int, tuple[NDArray[np.int32], Int64s]] = {}

    def batch(self, step: int, batch_size: int) -> Int64s:
        """Return the sample ids of global batch `step`, (batch_size,) int64; rank r of W takes the r-th of W parts."""
        return self.ids(self.positions(step, batch_size))

    def positions(self, step: int, batch_size: int) -> Int64s:
        """Return the positions of global batch `step`, (batch_size,) int64, lane by lane, ascending within a lane."""
        positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
        return positions[np.argsort(self.lane_of(positions), kind="stable")]

    def epochs(self, positions: Int64s) -> Int64s:
        """Return the epoch of every position."""
        return positions // self.samples

    def ids(self, positions: Int64s) -> Int64s:
        """Return the sample id at every position; int64, the shape of `positions`."""
        ids = np.empty_like(positions)
        epochs = self.epochs(positions)
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            here = epochs == epoch
            ids[here] = self._ids_of_epoch(epoch, positions[here])
        return ids

    def lane_of(self, positions: Int64s) -> Int64s:
        """Return the lane of every position."""
        return positions % self.lanes

    def passages(self, begin: int, end: int) -> list[Passage]:
        """See `Order`."""
        epochs = range(begin // self.samples, -(-end // self.samples))
        found = [None] if len(epochs) > _ALWAYS else epochs
        return [Passage(self, epoch, 0, lambda positions: positions) for epoch in found]

    def in_turn(self, batch_size: int) -> list[InTurn]:
        """See `Order`: all of the batch."""
        return [[(batch_size, batch_size)]]

    def line(self, epoch: int) -> tuple[NDArray[np.int32], Int64s]:
        """Return an epoch's shards that have samples, in the order of its line, and where each begins in the line.

        Both are of shape (shards with samples,), int32 and int64. Two neighbouring epochs are cached, since a batch may
        straddle an epoch's end.
        """
        line = self._lines.get(epoch)
        if line is None:
            # The old line is dropped before the new one is made: a line of a million shards takes 12 MB.
            self._lines = {kept: line for kept, line in self._lines.items() if abs(kept - epoch) == 1}
            line = self._lines[epoch] = self._lay_out(epoch)
        return line

    def stretch(self, epoch: int, lane: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        """Return the part of an epoch in every lane; three int64 arrays of the shape of `lane`.

        They are the first position of its stretch, whose next position is `lanes` further; the place in the epoch's
        line where the stretch begins; and the number of its samples. Lane(p) = p % lanes holds across epochs, so that
        every batch of a multiple of `lanes` draws equally from every lane.
        """
        begin, end = epoch * self.samples, (epoch + 1) * self.samples
        first = begin + (lane - begin) % self.lanes
        start = _before_lane(end, lane, self.lanes) - _before_lane(begin, lane, self.lanes)
        return first, start, (end - first + self.lanes - 1) // self.lanes

    def block_around(self, lane: Int64s, lane_size: Int64s, in_lane: Int64s) -> tuple[Int64s, Int64s]:
        """Return the begin and end, within its stretch, of the block around a lane's `in_lane`-th sample of an epoch.

        All arrays are int64 of one shape; `lane_size` is a result of `stretch`.
        """
        # Multiples of the golden ratio, taken modulo one, spread neighbouring lanes evenly (Weyl's sequence).
        lead = np.where(self.block < lane_size, lane * _GOLDEN % 2**20 * self.block >> 20, 0)
        begin = (in_lane + lead) // self.block * self.block - lead
        return np.maximum(begin, 0), np.minimum(begin + self.block, lane_size)

    def _ids_of_epoch(self, epoch: int, positions: Int64s) -> Int64s:
        order, starts = self.line(epoch)
        lane = positions % self.lanes
        first, lane_start, lane_size = self.stretch(epoch, lane)
        in_lane = (positions - first) // self.lanes

        begin, end = self.block_around(lane, lane_size, in_lane)
        keys = derive(derive(derive(self._epoch_key(epoch), _BLOCKS), lane), begin)
        line = lane_start + begin + _permute(in_lane - begin, end - begin, keys)

        place = np.searchsorted(starts, line, side="right") - 1
        shard = order[place]
        return self._first_id[shard] + line - starts[place]

    def _lay_out(self, epoch: int) -> tuple[NDArray[np.int32], Int64s]:
        """Order the shards of an epoch: they keep their lane, and move within it."""
        keys = self._dealt.astype(np.int64)
        begin, key = 0, derive(self._epoch_key(epoch), _SHARDS)
        for part in range(0, len(keys), _PART):
            here = slice(part, part + _PART)
            ends = begin + np.cumsum(self.counts[self._dealt[here]])
            lane = (ends - 1) * self.lanes // self.samples
            keys[here] = lane << _HASH_BITS | derive(key, keys[here]) & (1 << _HASH_BITS) - 1
            begin = int(ends[-1])
        places = np.argsort(keys, kind="stable")
        del keys
        order = self._dealt[places]
        del places
        starts = np.cumsum(self.counts[order])
        starts -= self.counts[order]
        return order, starts

    def _deal(self) -> NDArray[np.int32]:
        """Return the shards that have samples, in a fixed random order that decides their lanes."""
        key, keys = derive(np.array([self.seed], dtype=np.int64), _DEAL), np.arange(len(self.counts), dtype=np.int64)
        for part in range(0, len(keys), _PART):
            keys[part : part + _PART] = derive(key, keys[part : part + _PART])
        order = np.argsort(keys, kind="stable").astype(np.int32)
        return order[self.counts[order] > 0]

    def _epoch_key(self, epoch: int) -> Int64s:
        return derive(np.array([self.seed], dtype=np.int64), epoch)


def _before_lane(end: int, lane: Int64s, lanes: int) -> Int64s:
    """Return how many of the positions 0 .. end-1 lie in lanes before `lane`."""
    return end // lanes * lane + np.minimum(end % lanes, lane)


def _permute(x: Int64s, size: Int64s, key: Int64s) -> Int64s:
    """Apply a keyed bijection of range(size) to each element: x, size and key are (n,) int64, x < size.

    A Feistel network on the smallest power of two that holds `size`; values outside range(size) are mapped again along
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
    """Apply a keyed bijection of range(2**width)."""
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

"""Compute which shards a node reads at which steps, for fetching ahead and eviction.

A lane reads its stretch of an epoch's line block by block, so a shard is in use from the first step of the first block
that overlaps it to the last step of the last such block. Nothing is computed sample by sample.
"""

from dataclasses import dataclass
from math import gcd

import numpy as np

from pipeline.data.order import Int64s, InTurn, Order, Passage

_MOST_STARTS = 1024  # of batches in different lanes; beyond, their positions are bounded instead


@dataclass(frozen=True, eq=False)
class Uses:
    """The steps at which a node reads its shards, sorted by first step and then by shard; int64 arrays of (n,).

    Row i: `shard[i]` is read between the steps `first_step[i]` and `last_step[i]`, both included. A shard in two lanes
    has a row for each where these are apart in time; at any step a shard has at most one row.
    """

    shard: Int64s
    first_step: Int64s
    last_step: Int64s


class Schedule:
    """The use of shards by the ranks `first_rank` .. `first_rank + ranks - 1` of a run, that is, by a node.

    Nothing is read outside the uses. They exceed the actual reads by the permutation within blocks, hence by less
    than a block's steps at either end, and where ranks of several nodes share a lane, which happens unless `lanes` is
    a multiple of the nodes and `batch_size` of `lanes`: each node then counts all of that lane.

    Args:
        plan: the order of the samples, of one data set or of several.
        batch_size: samples per global batch.
        first_rank: the node's first rank.
        ranks: number of ranks on the node.
        world_size: number of ranks in the run.

    Raises:
        ValueError: these are not ranks of the run, or none of a batch's samples is theirs.
    """

    def __init__(self, plan: Order, batch_size: int, first_rank: int, ranks: int, world_size: int) -> None:
        if ranks < 1 or first_rank < 0 or first_rank + ranks > world_size:
            raise ValueError(f"{ranks} ranks from {first_rank} on are not ranks of a run of {world_size}")
        self.plan, self.batch_size = plan, batch_size
        begin, end = first_rank * batch_size // world_size, (first_rank + ranks) * batch_size // world_size
        if begin == end:
            raise ValueError(f"a batch of {batch_size} has nothing for ranks {first_rank} to {first_rank + ranks - 1}")
        self.part = slice(begin, end)  # this node's part of every global batch
        of_batches = [_lanes(plan.lanes, in_turn, begin, end) for in_turn in plan.in_turn(batch_size)]
        self.lanes = np.unique(np.concatenate(of_batches))

    def uses(self, epoch: int) -> Uses:
        """Return the uses of one epoch. Its first and last step may also belong to the neighbouring epochs."""
        samples = self.plan.samples
        begin, end = epoch * samples // self.batch_size, ((epoch + 1) * samples - 1) // self.batch_size
        passages = self.plan.passages(epoch * samples, (epoch + 1) * samples)
        found = [self._uses_of(passage, begin, end) for passage in passages]
        shard, first_step, last_step = (np.concatenate(column) for column in zip(*found, strict=True))
        # An epoch of a data set may reach into several epochs of a mixture, each of which has its part.
        here = (first_step <= end) & (last_step >= begin)
        return _merged(shard[here], np.maximum(first_step[here], begin), np.minimum(last_step[here], end))

    def _uses_of(self, passage: Passage, begin: int, end: int) -> tuple[Int64s, Int64s, Int64s]:
        """Return shards, first and last steps of an epoch of one data set; `begin` and `end` are the run's."""
        plan = passage.plan
        if passage.epoch is None:
            always = np.flatnonzero(plan.counts) + passage.first_shard
            return always, np.full(len(always), begin), np.full(len(always), end)
        order, starts = plan.line(passage.epoch)
        first, start, size = plan.stretch(passage.epoch, self.lanes)
        has = size > 0
        first, start, size = first[has], start[has], size[has]
        # A row for every shard of every lane.
        begins = np.searchsorted(starts, start, side="right") - 1
        shards = np.searchsorted(starts, start + size - 1, side="right") - begins
        lane = np.repeat(np.arange(len(size)), shards)
        place = np.arange(len(lane)) + np.repeat(begins - (np.cumsum(shards) - shards), shards)
        # Its blocks, and the steps of the first block's first position and of the last block's last position.
        lanes, sizes = self.lanes[has][lane], size[lane]
        first_sample = np.maximum(starts[place] - start[lane], 0)
        last_sample = np.minimum(starts[place] + plan.counts[order[place]] - start[lane], sizes) - 1
        first_in_lane, _ = plan.block_around(lanes, sizes, first_sample)
        _, after_last = plan.block_around(lanes, sizes, last_sample)
        first_position = first[lane] + first_in_lane * plan.lanes
        last_position = first[lane] + (after_last - 1) * plan.lanes
        return (
            order[place].astype(np.int64) + passage.first_shard,
            passage.in_run(first_position) // self.batch_size,
            passage.in_run(last_position) // self.batch_size,
        )

    def working_set(self, epoch: int, shard_bytes: Int64s) -> tuple[int, int]:
        """Return the most bytes, and the most shards, in use at one step of an epoch.

        Shards of the next epoch count if they are used before this one ends.

        Args:
            epoch: the epoch.
            shard_bytes: the size of every shard, (shards,) int64.
        """
        this, after = self.uses(epoch), self.uses(epoch + 1)
        soon = after.first_step <= (epoch + 1) * self.plan.samples // self.batch_size
        used = _merged(
            np.concatenate([this.shard, after.shard[soon]]),
            np.concatenate([this.first_step, after.first_step[soon]]),
            np.concatenate([this.last_step, after.last_step[soon]]),
        )
        size = shard_bytes[used.shard]
        return _peak(used, size), _peak(used, np.ones_like(size))


def _lanes(lanes: int, in_turn: InTurn, begin: int, end: int) -> Int64s:
    """Return the lanes that ever fill the places `begin` .. `end` - 1 of batches, ascending; int64 (n,).

    Args:
        lanes: the number of lanes.
        in_turn: that of one kind of batch, see `Order`.
        begin, end: the part of every batch.
    """
    lane = np.arange(lanes, dtype=np.int64)
    starts = lanes // gcd(lanes, in_turn[0][0])  # later batches start in the same lanes again
    if len(in_turn) > 1 or starts > _MOST_STARTS:
        # `rest` successive lanes of a data set give one more sample; `before` counts those before each lane.
        before, most_before, most_in = np.zeros((3, lanes), dtype=np.int64)
        for least, most in in_turn:
            whole, rest = divmod(least, lanes)
            before += lane * whole + np.maximum(lane - (lanes - rest), 0)
            whole, rest = divmod(most, lanes)
            most_before += lane * whole + np.minimum(lane, rest)
            most_in += whole + (rest > 0)
        return np.flatnonzero((before < end) & (most_before + most_in > begin))
    batch_size = in_turn[0][0]
    whole, rest = divmod(batch_size, lanes)
    used = np.zeros(lanes, dtype=bool)
    for step in range(starts):
        samples = whole + ((lane - step * batch_size) % lanes < rest)
        before = np.cumsum(samples) - samples
        used |= np.maximum(before, begin) < np.minimum(before + samples, end)
    return np.flatnonzero(used)


def _merged(shard: Int64s, first_step: Int64s, last_step: Int64s) -> Uses:
    """Merge uses of a shard that overlap or are adjacent."""
    order = np.lexsort((first_step, shard))
    shard, first_step, last_step = shard[order], first_step[order], last_step[order]
    # Shifting every shard to a separate time range restarts the running maximum for each.
    offset = shard * (last_step.max(initial=0) - first_step.min(initial=0) + 2)
    until = np.maximum.accumulate(last_step + offset)
    until_before = np.append(np.iinfo(np.int64).min, until)[:-1]
    opens = np.flatnonzero(first_step + offset > until_before + 1)
    closes = np.append(opens, len(shard))[1:] - 1
    shard, first_step, last_step = shard[opens], first_step[opens], (until - offset)[closes]
    order = np.lexsort((shard, first_step))
    return Uses(shard[order], first_step[order], last_step[order])


def _peak(uses: Uses, weight: Int64s) -> int:
    """Return the largest sum of weights, (n,), of simultaneous uses."""
    steps = np.concatenate([uses.first_step, uses.last_step + 1])
    change = np.concatenate([weight, -weight])
    return int(np.cumsum(change[np.lexsort((change, steps))]).max(initial=0))

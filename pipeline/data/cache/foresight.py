"""Compute which shards a node reads next, and when: the order in which its cache fetches and evicts shards."""

from functools import lru_cache

import numpy as np

from pipeline.data.cache.schedule import Schedule
from pipeline.data.order import Int64s

_NEVER = np.iinfo(np.int64).max  # the step of a next use beyond the foreseen epochs
_EPOCHS = 8  # the most that are foreseen


class Foresight:
    """The next uses of all shards, seen from one step; `look` moves to another step.

    Attributes:
        shard: the shards in the order of their next uses, up to the end of the next epoch; int64 (n,).
        ahead: for each of these, the bytes of the shards before it that are not in use yet; int64 (n,).
        next_use: the step at which each shard is read next, this step for those in use; int64 (shards,).

    Args:
        schedule: the node's.
        shard_bytes: the size of every shard; int64 (shards,).
        limit: size of the cache in bytes. As many epochs are foreseen as fill it, so that cached shards can be
            ranked, but at most 8.
    """

    def __init__(self, schedule: Schedule, shard_bytes: Int64s, limit: int) -> None:
        self._schedule, self._bytes, self._limit = schedule, shard_bytes, limit
        self._uses = lru_cache(_EPOCHS)(schedule.uses)
        self._epoch = self._step = -1
        self.shard: Int64s = np.empty(0, np.int64)
        self.ahead: Int64s = np.empty(0, np.int64)
        self.next_use: Int64s = np.full(len(shard_bytes), _NEVER)

    def look(self, step: int) -> None:
        """Look ahead from `step`."""
        if step == self._step:
            return
        epoch = step * self._schedule.batch_size // self._schedule.plan.samples
        if epoch != self._epoch:
            self._foresee(epoch)
        self._epoch, self._step = epoch, step

        live = self._last_step >= step
        shard, begins = self._line[live], np.maximum(self._first_step[live], step)
        self.next_use = np.full(len(self._bytes), _NEVER)
        self.next_use[shard[::-1]] = begins[::-1]  # backwards, so that the first of several uses is written last
        fetched = np.count_nonzero(live[: self._to_fetch])
        next_ones = np.flatnonzero(begins[:fetched] == self.next_use[shard[:fetched]])
        self.shard = shard[next_ones]
        size = np.where(begins[next_ones] > step, self._bytes[self.shard], 0)
        self.ahead = np.cumsum(size) - size

    def _foresee(self, epoch: int) -> None:
        """Concatenate the uses of this epoch and of those after it."""
        uses = [self._uses(epoch), self._uses(epoch + 1)]
        self._to_fetch = sum(len(of_epoch.shard) for of_epoch in uses)
        while sum(self._bytes[later.shard].sum() for later in uses[1:]) < self._limit and len(uses) < _EPOCHS:
            uses.append(self._uses(epoch + len(uses)))
        self._line: Int64s = np.concatenate([of_epoch.shard for of_epoch in uses])
        self._first_step: Int64s = np.concatenate([of_epoch.first_step for of_epoch in uses])
        self._last_step: Int64s = np.concatenate([of_epoch.last_step for of_epoch in uses])

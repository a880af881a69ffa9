"""Which sample of which data set is used when, where a run reads several: a pure function of (seed, step), too.

A run takes slots s = 0, 1, 2, ... Every slot belongs to one data set, by its weight, and is the next position of that
data set's own `Plan`. So each data set is visited as it would be alone, every sample exactly once in each of its
epochs, and only how fast it is passed through follows from its weight.

The first data set has floor(k w / W) of the first k slots, where w is its weight and W the sum of all. What it leaves
is numbered anew and dealt out to the others in the same way. Each of these is a line as Bresenham draws it ("Algorithm
for computer control of a digital plotter", IBM Systems Journal 4, 1965), whose points can be counted and found without
walking along it: from slot to position and back it takes a few operations on whole numbers for each data set. After any
number of slots every data set has had its share, to within as many samples as there are data sets.

Where batches are large beside the number of lanes, whole rounds of all lanes are dealt out instead of single slots.
Then every batch draws equally from every lane, as it does from one data set, and each node keeps to its own shards.

Like that of a plan, this order is part of a run's identity: whoever changes it raises `MIXTURE_VERSION`.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from math import gcd, lcm

import numpy as np

from pipeline.data.order import Int64s, Passage
from pipeline.data.plan import Plan
from pipeline.random import mix_int

MIXTURE_VERSION = 1
_MOST = 2**31  # more than the sum of whole weights, so that 64 bits hold products of two of them
_ROUNDS = 16  # of all lanes in a batch, at least, where they are dealt out whole: fewer would mix a batch unevenly
_ALWAYS = 64  # epochs of a data set within one of the mixture, above which all its shards count as always in use


def whole(weights: Sequence[float]) -> list[int]:
    """Return the smallest whole numbers in the ratio of these weights, above 0.

    Where their sum would be 2**31 or more, they are rounded to parts of 2**30, and a data set has at least one.
    """
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, as it was written
    scale = lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * scale) for weight in exact]
    total = sum(numbers)
    if total // gcd(*numbers) >= _MOST:
        numbers = [max(1, round(Fraction(number * 2**30, total))) for number in numbers]
    return [number // gcd(*numbers) for number in numbers]


class Mixture:
    """The sample order of a run of several data sets, an `Order`.

    Args:
        counts: of each data set, the samples in each of its shards. Ids number the samples of all in this order.
        weights: how often each is drawn from, see `whole`.
        seed: another seed is another order.
        lanes: of the plan of each data set.
        block: samples of a lane of the run that are permuted among themselves; a data set has its share of it.
        batch_size: samples of a step.

    Attributes:
        counts: samples in each shard of all data sets, int64.
        samples: of an epoch: as many slots as the data sets have samples together.
        plans: those of the data sets.
        first_ids: the first sample of each, int64 (data sets,).
    """

    def __init__(
        self, counts: Sequence[Int64s], weights: Sequence[int], seed: int, lanes: int, block: int, batch_size: int
    ) -> None:
        self.seed, self.lanes, self.block = seed, lanes, block
        self.weights = list(weights)
        self._left = [sum(self.weights[number:]) for number in range(len(self.weights))]  # from each data set on
        self.plans = [
            Plan(of_set, mix_int(mix_int(seed) + number), lanes, -(-block * weight // self._left[0]))
            for number, (of_set, weight) in enumerate(zip(counts, self.weights, strict=True))
        ]
        self.counts: Int64s = np.concatenate([plan.counts for plan in self.plans])
        self._sizes: Int64s = np.array([plan.samples for plan in self.plans], np.int64)
        self.samples = int(self._sizes.sum())
        self.first_ids: Int64s = np.cumsum(self._sizes) - self._sizes
        self._first_shards = np.cumsum([0, *(len(plan.counts) for plan in self.plans)])
        self._round = lanes if batch_size % lanes == 0 and batch_size >= _ROUNDS * lanes else 1  # slots dealt at once

    def batch(self, step: int, batch_size: int) -> Int64s:
        """See `Plan.batch`."""
        return self.ids(self.positions(step, batch_size))

    def positions(self, step: int, batch_size: int) -> Int64s:
        """Return the slots of global batch `step`, (batch_size,) int64, lane by lane and ascending within a lane."""
        slots = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
        _, positions = self.dealt(slots)
        return slots[np.argsort(positions % self.lanes, kind="stable")]

    def epochs(self, slots: Int64s) -> Int64s:
        """Return at every slot the epoch of the data set that it belongs to."""
        number, positions = self.dealt(slots)
        return positions // self._sizes[number]

    def ids(self, slots: Int64s) -> Int64s:
        """Return the sample id at every slot; int64, the shape of `slots`."""
        number, positions = self.dealt(slots)
        ids = np.empty_like(slots)
        for place, plan in enumerate(self.plans):
            here = number == place
            if here.any():
                ids[here] = self.first_ids[place] + plan.ids(positions[here])
        return ids

    def dealt(self, slots: Int64s) -> tuple[Int64s, Int64s]:
        """Return of every slot the number of its data set, and the position in that one's plan; int64, of one shape."""
        rounds, places = np.divmod(slots, self._round)
        number = np.zeros_like(slots)
        for candidate, (weight, left) in enumerate(zip(self.weights, self._left, strict=True)):
            here = number == candidate
            before, after = (_times(rounds[here] + more, weight, left) for more in (0, 1))
            other = after == before
            number[here] += other
            rounds[here] = np.where(other, rounds[here] - before, before)
        return number, rounds * self._round + places

    def slots(self, number: int, positions: Int64s) -> Int64s:
        """Return the slot of each position in the plan of a data set: the inverse of `dealt`."""
        rounds, places = np.divmod(positions, self._round)
        rounds = -_times(-(rounds + 1), self._left[number], self.weights[number]) - 1
        for before in range(number - 1, -1, -1):
            rounds = _times(rounds, self._left[before], self._left[before + 1])
        return rounds * self._round + places

    def taken(self, slots: int) -> list[int]:
        """Return how many of the first so many slots each data set has."""
        rounds, rest = divmod(slots, self._round)
        before, after = self._rounds_of(rounds), self._rounds_of(rounds + 1)
        return [had * self._round + (will_have - had) * rest for had, will_have in zip(before, after, strict=True)]

    def _rounds_of(self, rounds: int) -> list[int]:
        """Return how many of the first so many rounds each data set has."""
        had = []
        for weight, left in zip(self.weights, self._left, strict=True):
            had.append(rounds * weight // left)
            rounds -= had[-1]
        return had

    def passages(self, epoch: int) -> list[Passage]:
        """See `Order`."""
        begins, ends = self.taken(epoch * self.samples), self.taken((epoch + 1) * self.samples)
        found = []
        for number, (plan, begin, end) in enumerate(zip(self.plans, begins, ends, strict=True)):
            own = range(begin // plan.samples, -(-end // plan.samples)) if begin < end else range(0)
            epochs = [None] if len(own) > _ALWAYS else own
            in_run = partial(self.slots, number)
            found += [Passage(plan, one, int(self._first_shards[number]), in_run) for one in epochs]
        return found

    def in_turn(self, batch_size: int) -> list[tuple[int, int]]:
        """See `Order`."""
        if self._round > 1:
            return [(batch_size, batch_size)]
        found, least, most = [], batch_size, batch_size  # of the slots that are left to a data set and those after it
        for weight, left in zip(self.weights, self._left, strict=True):
            found.append((least * weight // left, -(-most * weight // left)))
            least, most = least * (left - weight) // left, -(-most * (left - weight) // left)
        return found


def _times(numbers: Int64s, factor: int, divisor: int) -> Int64s:
    """Return numbers * factor / divisor, rounded down, of factors and divisors below 2**31, without an overflow."""
    quotients, rests = np.divmod(numbers, divisor)
    product: Int64s = quotients * factor + rests * factor // divisor
    return product

"""The order of samples in a mixture of data sets: a pure function of (seed, step).

A run takes slots s = 0, 1, 2, ... Every slot belongs to one data set, by its weight, and is the next position of that
data set's own `Plan`. So each data set is visited as it would be alone, every sample exactly once in each of its
epochs; the weight only decides how fast.

The first data set has floor(k w / W) of the first k slots, where w is its weight and W the sum of all. The remaining
slots are renumbered and assigned to the other data sets in the same way. Each assignment is a line as Bresenham draws
it ("Algorithm for computer control of a digital plotter", IBM Systems Journal 4, 1965), whose points can be counted and
found directly: the conversion between slot and position takes a few integer operations per data set. After any number
of slots, every data set has had its share, to within as many samples as there are data sets.

Where batches are large relative to the number of lanes, whole rounds of all lanes are assigned instead of single slots.
Then every batch draws equally from every lane, as it does from one data set, and each node keeps to its own shards.

Images and videos do not fit into one batch. A run of both assigns whole steps by the same rule: first to the media, by
the total weights of their data sets, and then the slots of a medium's steps to its data sets. So every step has one
medium, for any number of ranks and micro-batches. Girdhar et al. train on alternating batches of single media, too, in
"Omnivore: A Single Model for Many Visual Modalities", CVPR 2022.

Like that of a plan, this order is part of a run's identity: increase `MIXTURE_VERSION` with every change.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import groupby
from math import gcd, lcm

import numpy as np

from pipeline.data.order import Int64s, InTurn, Order, Passage
from pipeline.data.plan import Plan
from pipeline.random import mix_int

MIXTURE_VERSION = 1
_MOST = 2**31  # more than the sum of whole weights, so that 64 bits hold products of two of them
_ROUNDS = 16  # least rounds of all lanes in a batch to assign them whole; fewer would mix a batch unevenly


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
    """The sample order of a run of several data sets, an `Order`. `mixture_of` builds it.

    Args:
        parts: their orders, all with `lanes`: plans or, for images and videos in one run, a mixture of each.
            Ids number the samples of all parts in this sequence.
        weights: how often each part is drawn from, see `whole`.
        seed: another seed is another order.
        lanes: number of lanes of each part.
        block: samples of a lane of the run that are permuted among themselves; a data set has its share of it.
        at_once: slots that are assigned together.

    Attributes:
        counts: samples in each shard of all parts, int64.
        samples: samples per epoch, the sum of all parts.
        parts, weights: as above.
        first_ids: the first sample of each part, int64 (parts,).
    """

    def __init__(
        self, parts: Sequence[Order], weights: Sequence[int], seed: int, lanes: int, block: int, at_once: int
    ) -> None:
        self.parts, self.weights = parts, list(weights)
        self.seed, self.lanes, self.block = seed, lanes, block
        self._left = [sum(self.weights[number:]) for number in range(len(self.weights))]  # from each part on
        self.counts: Int64s = np.concatenate([part.counts for part in parts])
        sizes = np.array([part.samples for part in parts], np.int64)
        self.samples = int(sizes.sum())
        self.first_ids: Int64s = np.cumsum(sizes) - sizes
        self._first_shards = np.cumsum([0, *(len(part.counts) for part in parts)])
        self._at_once = at_once

    def batch(self, step: int, batch_size: int) -> Int64s:
        """See `Plan.batch`."""
        return self.ids(self.positions(step, batch_size))

    def positions(self, step: int, batch_size: int) -> Int64s:
        """Return the slots of global batch `step`, (batch_size,) int64, lane by lane and ascending within a lane."""
        slots = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
        return slots[np.argsort(self.lane_of(slots), kind="stable")]

    def lane_of(self, slots: Int64s) -> Int64s:
        """Return the lane of the part that has each slot."""
        return self._asked(slots, lambda _, part, positions: part.lane_of(positions))

    def epochs(self, slots: Int64s) -> Int64s:
        """Return the epoch of its data set at every slot."""
        return self._asked(slots, lambda _, part, positions: part.epochs(positions))

    def ids(self, slots: Int64s) -> Int64s:
        """Return the sample id at every slot; int64, the shape of `slots`."""
        return self._asked(slots, lambda number, part, positions: self.first_ids[number] + part.ids(positions))

    def _asked(self, slots: Int64s, ask: Callable[[int, Order, Int64s], Int64s]) -> Int64s:
        """Return for each slot the result of `ask`, given its part and positions in it; the shape of `slots`."""
        numbers, positions = self.dealt(slots)
        answers = np.empty_like(slots)
        for number, part in enumerate(self.parts):
            here = numbers == number
            if here.any():
                answers[here] = ask(number, part, positions[here])
        return answers

    def dealt(self, slots: Int64s) -> tuple[Int64s, Int64s]:
        """Return the number of the part that has each slot, and the position in that part; int64, of one shape."""
        rounds, places = np.divmod(slots, self._at_once)
        number = np.zeros_like(slots)
        for candidate, (weight, left) in enumerate(zip(self.weights, self._left, strict=True)):
            here = number == candidate
            before, after = (_times(rounds[here] + more, weight, left) for more in (0, 1))
            other = after == before
            number[here] += other
            rounds[here] = np.where(other, rounds[here] - before, before)
        return number, rounds * self._at_once + places

    def slots(self, number: int, positions: Int64s) -> Int64s:
        """Return the slot of each position in a part: the inverse of `dealt`."""
        rounds, places = np.divmod(positions, self._at_once)
        rounds = -_times(-(rounds + 1), self._left[number], self.weights[number]) - 1
        for before in range(number - 1, -1, -1):
            rounds = _times(rounds, self._left[before], self._left[before + 1])
        return rounds * self._at_once + places

    def taken(self, slots: int) -> list[int]:
        """Return how many of the first `slots` slots each part has."""
        rounds, rest = divmod(slots, self._at_once)
        before, after = self._rounds_of(rounds), self._rounds_of(rounds + 1)
        return [had * self._at_once + (will_have - had) * rest for had, will_have in zip(before, after, strict=True)]

    def _rounds_of(self, rounds: int) -> list[int]:
        """Return how many of the first `rounds` rounds each part has."""
        had = []
        for weight, left in zip(self.weights, self._left, strict=True):
            had.append(rounds * weight // left)
            rounds -= had[-1]
        return had

    def passages(self, begin: int, end: int) -> list[Passage]:
        """See `Order`."""
        begins, ends = self.taken(begin), self.taken(end)
        return [
            replace(
                passage,
                first_shard=passage.first_shard + int(self._first_shards[number]),
                in_run=partial(self._in_run, number, passage.in_run),
            )
            for number, part in enumerate(self.parts)
            if begins[number] < ends[number]
            for passage in part.passages(begins[number], ends[number])
        ]

    def _in_run(self, number: int, in_part: Callable[[Int64s], Int64s], positions: Int64s) -> Int64s:
        return self.slots(number, in_part(positions))

    def in_turn(self, batch_size: int) -> list[InTurn]:
        """See `Order`."""
        if self._at_once == batch_size:
            return [in_turn for part in self.parts for in_turn in part.in_turn(batch_size)]
        if self._at_once > 1:
            return [[(batch_size, batch_size)]]
        found, least, most = [], batch_size, batch_size  # of the slots for a data set and those after it
        for weight, left in zip(self.weights, self._left, strict=True):
            found.append((least * weight // left, -(-most * weight // left)))
            least, most = least * (left - weight) // left, -(-most * (left - weight) // left)
        return [found]


def mixture_of(
    counts: Sequence[Int64s],
    weights: Sequence[int],
    seed: int,
    lanes: int,
    block: int,
    batch_size: int,
    media: Sequence[str] | None = None,
) -> Mixture:
    """Build the order of several data sets.

    Args:
        counts: for each data set, the samples in each of its shards. Ids number the samples in this sequence.
        weights: how often each is drawn from, see `whole`.
        seed, lanes, block: see `Mixture`.
        batch_size: samples per step.
        media: the medium of each data set, data sets of one medium in a row; None: all have the same. With several
            media, every step has one of them.
    """
    total = sum(weights)
    plans = [
        Plan(of_set, mix_int(mix_int(seed) + number), lanes, -(-block * weight // total))
        for number, (of_set, weight) in enumerate(zip(counts, weights, strict=True))
    ]
    at_once = lanes if batch_size % lanes == 0 and batch_size >= _ROUNDS * lanes else 1
    if media is None or len(set(media)) == 1:
        return Mixture(plans, weights, seed, lanes, block, at_once)
    of_media, shares = list[Mixture](), list[int]()
    for _, of_one in groupby(zip(media, plans, weights, strict=True), key=lambda row: row[0]):
        _, own_plans, own_weights = zip(*of_one, strict=True)
        of_media.append(Mixture(own_plans, own_weights, seed, lanes, block, at_once))
        shares.append(sum(own_weights))
    return Mixture(of_media, shares, seed, lanes, block, batch_size)


def _times(numbers: Int64s, factor: int, divisor: int) -> Int64s:
    """Return numbers * factor / divisor, rounded down, of factors and divisors below 2**31, without an overflow."""
    quotients, rests = np.divmod(numbers, divisor)
    product: Int64s = quotients * factor + rests * factor // divisor
    return product

"""The interface of an order of samples, for one data set or several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.data.plan import Plan

Int64s = NDArray[np.int64]
InTurn = list[tuple[int, int]]  # see `Order.in_turn`


@dataclass(frozen=True)
class Passage:
    """An epoch of one data set within a run.

    Attributes:
        plan: the plan of the data set.
        epoch: an epoch of this plan; None: so many epochs in a short time that all shards are always in use.
        first_shard: the number of the data set's first shard in the run's `counts`.
        in_run: maps positions of the plan to positions of the run, int64 of one shape.
    """

    plan: "Plan"
    epoch: int | None
    first_shard: int
    in_run: Callable[[Int64s], Int64s]


class Order(Protocol):
    """The sample order of a whole run. `plan.Plan` is that of one data set, `mixture.Mixture` that of several.

    Attributes:
        counts: samples in each shard, int64 (shards,). Ids number the samples in this order.
        samples: samples per epoch.
        seed, lanes, block: see `Plan`.
    """

    counts: Int64s
    samples: int
    seed: int
    lanes: int
    block: int

    def batch(self, step: int, batch_size: int) -> Int64s:
        """Return the sample ids of the whole global batch `step`, (batch_size,) int64."""
        ...

    def positions(self, step: int, batch_size: int) -> Int64s:
        """Return the positions of global batch `step`, (batch_size,) int64, in the order of the lanes."""
        ...

    def epochs(self, positions: Int64s) -> Int64s:
        """Return the epoch of its data set at every position."""
        ...

    def ids(self, positions: Int64s) -> Int64s:
        """Return the sample id at every position; int64, the shape of `positions`."""
        ...

    def lane_of(self, positions: Int64s) -> Int64s:
        """Return the lane of every position."""
        ...

    def passages(self, begin: int, end: int) -> Sequence[Passage]:
        """Return the epochs of data sets that overlap the positions `begin` to `end` - 1."""
        ...

    def in_turn(self, batch_size: int) -> list[InTurn]:
        """Return how many samples of a batch come from successive lanes, each from the lane after that of the last.

        It is one pair for all samples, or one for each data set: the fewest and the most. Where batches are composed
        in several ways, each has an entry.
        """
        ...

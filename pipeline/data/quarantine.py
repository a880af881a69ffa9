"""Bad samples: each keeps its slot in the batch and counts for nothing; too many of them end the run.

Leaving a sample out would shift every later one, and give ranks unequal batches. So the plan never changes: a bad
sample's weight in the loss is 0, it is written to quarantine.jsonl, and it is tried again in the next epoch.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.errors import DataError


@dataclass(frozen=True)
class BadSample:
    """One sample that could not be had at one step, and why."""

    step: int
    id: int
    reason: str


class TooManyBad(DataError):
    """So many samples are bad that something larger is wrong; `bad` are the last ones of this rank."""

    def __init__(self, message: str, bad: list[BadSample]) -> None:
        super().__init__(message)
        self.bad = bad


class BadRowLimit:
    """Counts the bad samples of one reader that come one after the other, of each data set of a mixture by itself.

    Args:
        in_a_row: so many are too many.
        remedy: what to do about it, for the message.
    """

    def __init__(self, in_a_row: int, remedy: str) -> None:
        self._in_a_row, self._remedy = in_a_row, remedy
        self._rows: defaultdict[int, int] = defaultdict(int)

    def check(self, samples: list[BadSample | None], data_sets: Sequence[int] | None = None) -> None:
        """Count the next samples, in their order, None for each good one.

        Args:
            samples: the samples.
            data_sets: numbers of their data sets; None: all are of one.

        Raises:
            TooManyBad: there were too many in a row.
        """
        for sample, data_set in zip(samples, data_sets or [0] * len(samples), strict=True):
            row = self._rows[data_set] = self._rows[data_set] + 1 if sample else 0
            if sample and row >= self._in_a_row:
                raise TooManyBad(
                    f"{row:,} bad samples in a row, the last at step {sample.step}, sample {sample.id}: "
                    f"{sample.reason}; {self._remedy}",
                    [bad for bad in samples if bad],
                )


def too_many(bad: int, seen: int, at_least: int, share: float) -> bool:
    """Whether so many bad samples of all that the ranks have seen are too many: more than either allowance."""
    return bad > max(at_least, share * seen)

"""Bad samples: each stays in its batch with a loss weight of zero; too many of them end the run.

Omitting a sample would shift every later one, and give ranks unequal batches. So the plan never changes: a bad
sample's loss weight is 0, it is written to quarantine.jsonl, and it is tried again in the next epoch.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.errors import DataError


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used at one step, and why."""

    step: int
    id: int
    reason: str


class TooManyBad(DataError):
    """Too many samples are bad, so that there must be a larger problem; `bad` are the last ones of this rank."""

    def __init__(self, message: str, bad: list[BadSample]) -> None:
        super().__init__(message)
        self.bad = bad


class BadRowLimit:
    """Counts consecutive bad samples of one reader, separately for each data set of a mixture.

    Args:
        in_a_row: the number of consecutive bad samples that is too many.
        remedy: the advice, for the message.
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
    """Return whether the bad samples of all ranks exceed both allowances."""
    return bad > max(at_least, share * seen)

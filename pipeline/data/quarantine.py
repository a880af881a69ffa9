"""Bad samples: each keeps its slot in the batch and counts for nothing; too many of them end the run.

Leaving a sample out would shift every later one, and give ranks unequal batches. So the plan never changes: a bad
sample's weight in the loss is 0, it is written to quarantine.jsonl, and it is tried again in the next epoch.
"""

from dataclasses import dataclass

from pipeline.data.errors import DataError


@dataclass(frozen=True)
class BadSample:
    """One sample that could not be had at one step, and why."""

    step: int
    id: int
    reason: str


class Budget:
    """How many bad samples a rank puts up with.

    Args:
        in_a_row: so many one after the other are too many.
        share: and so is this share of the samples seen, once there were more than `in_a_row` bad ones.
        remedy: what to do about it, for the message.
    """

    def __init__(self, in_a_row: int, share: float, remedy: str) -> None:
        self._in_a_row, self._share, self._remedy = in_a_row, share, remedy
        self._seen = self._bad = self._row = 0

    def spend(self, bad: list[BadSample | None]) -> None:
        """Count the next samples, in their order, None for each good one.

        Raises:
            DataError: too many were bad.
        """
        for sample in bad:
            self._seen += 1
            if sample is None:
                self._row = 0
                continue
            self._bad += 1
            self._row += 1
            if self._row >= self._in_a_row or self._bad > max(self._in_a_row, self._share * self._seen):
                raise DataError(
                    f"{self._bad:,} of {self._seen:,} samples are bad, the last {self._row:,} in a row; "
                    f"at step {sample.step} sample {sample.id}: {sample.reason}; {self._remedy}"
                )

"""Handle steps whose gradient is not finite: they change nothing, and after too many in a row the run rolls back once.

The engine skips such a step on the device (`Engine.update`), and nothing waits for the result before the next log. A
run that rolls back restarts from its last checkpoint and skips the batches that led there.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, stack

from pipeline.files import json_lines, replace
from pipeline.train.errors import TrainingError
from shards.files import parse_json
from shards.text import one_line


class TooManyNonFinite(Exception):
    """Too many consecutive steps had no finite gradient. `steps` are those, counted from 0."""

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__(f"no finite gradient in {len(steps)} steps in a row, {steps[0]} to {steps[-1]}")
        self.steps = list(steps)


class NonFinite:
    """Records which steps had no finite gradient.

    Args:
        in_a_row: the number of consecutive steps that is too many.
    """

    def __init__(self, in_a_row: int) -> None:
        self._in_a_row = in_a_row
        self._noted: list[tuple[int, Tensor]] = []
        self._row: list[int] = []

    def note(self, step: int, not_finite: Tensor) -> None:
        """Record a step by a scalar on the device, 1 or 0."""
        self._noted.append((step, not_finite))

    def count(self) -> int:
        """Return how many of the steps recorded since the last call were not finite. Waits for the device.

        Raises:
            TooManyNonFinite: there were too many in a row.
        """
        if not self._noted:
            return 0
        flags = stack([flag for _, flag in self._noted]).tolist()
        steps = [step for step, _ in self._noted]
        self._noted.clear()
        for step, flag in zip(steps, flags, strict=True):
            self._row = [*self._row, step] if flag else []
            if len(self._row) == self._in_a_row:
                raise TooManyNonFinite(self._row)
        return int(sum(flags))


def left_out(folder: Path) -> list[int]:
    """Return the steps that a run skips since it rolled back, empty if it never did.

    Raises:
        TrainingError: their record cannot be read.
    """
    path = _record(folder)
    if not path.exists():
        return []
    try:
        if not path.is_file():
            raise ValueError("it is not a regular file")
        found = parse_json(path.read_bytes())
        steps = found.get("steps") if isinstance(found, dict) else None
        if not isinstance(steps, list) or not all(type(step) is int and step >= 0 for step in steps):
            raise ValueError("its steps are not a list of whole numbers")
        if len(set(steps)) < len(steps):
            raise ValueError("it has a step twice")
        return steps
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path} cannot be read ({one_line(str(error))}), but it lists the steps to skip: restore it, or remove "
            "it to take them again"
        ) from error


def leave_out(folder: Path, steps: list[int]) -> Path:
    """Record the steps that the next attempt of a run is to skip."""
    path = _record(folder)
    replace(path, json_lines([{"steps": steps, "reason": "no finite gradient"}]))
    return path


def _record(folder: Path) -> Path:
    return folder / "left-out.json"

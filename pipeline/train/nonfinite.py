"""Steps whose gradient is not finite: they change nothing, and after too many in a row the run rolls back, once.

The engine leaves such a step out on the device (`Engine.update`), and nobody waits to learn of it before the next log.
A run that rolls back starts again from its last checkpoint and passes over the batches that led there.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, stack

from pipeline.files import json_lines, replace
from pipeline.train.errors import TrainingError
from shards.files import parse_json
from shards.text import one_line


class TooManyNonFinite(Exception):
    """So many steps in a row had no finite gradient. `steps` are those, counted from 0."""

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__(f"no finite gradient in {len(steps)} steps in a row, {steps[0]} to {steps[-1]}")
        self.steps = list(steps)


class NonFinite:
    """Remembers which steps had no finite gradient.

    Args:
        in_a_row: so many are too many.
    """

    def __init__(self, in_a_row: int) -> None:
        self._in_a_row = in_a_row
        self._noted: list[tuple[int, Tensor]] = []
        self._row: list[int] = []

    def note(self, step: int, not_finite: Tensor) -> None:
        """Keep what is known of a step, a scalar on the device, 1 or 0."""
        self._noted.append((step, not_finite))

    def count(self) -> int:
        """How many of the steps noted since the last call were not finite. Waits for the device.

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
    """The steps that a run passes over since it rolled back, empty if it never did.

    Raises:
        TrainingError: the record of them cannot be read.
    """
    path = _record(folder)
    if not path.exists():
        return []
    try:
        if not path.is_file():
            raise ValueError("it is not a plain file")
        found = parse_json(path.read_bytes())
        steps = found.get("steps") if isinstance(found, dict) else None
        if not isinstance(steps, list) or not all(type(step) is int and step >= 0 for step in steps):
            raise ValueError("its steps are not a list of whole numbers")
        if len(set(steps)) < len(steps):
            raise ValueError("it has a step twice")
        return steps
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path} cannot be read ({one_line(str(error))}), which steps the run passes over: restore it, or remove "
            "it to take them again"
        ) from error


def leave_out(folder: Path, steps: list[int]) -> Path:
    """Write down which steps the next life of a run is to pass over."""
    path = _record(folder)
    replace(path, json_lines([{"steps": steps, "reason": "no finite gradient"}]))
    return path


def _record(folder: Path) -> Path:
    return folder / "left-out.json"

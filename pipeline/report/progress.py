"""Measure the progress of a run, and estimate the time that the rest of it takes."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The steps of one attempt of a run.

    Attributes:
        first: steps done when it starts.
        end: steps done when the run is complete.
        samples: images or videos that a step reads.
        steps_per_epoch: steps in which all samples are read once.
    """

    first: int
    end: int
    samples: float
    steps_per_epoch: float


class Progress:
    """Tells of each logged step what share of the run is done. Call it at log steps only.

    The first one, before which models are compiled, is where the time to go is measured from.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._began = time.monotonic()
        self._measured_from: tuple[int, float] | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the attempt began."""
        return time.monotonic() - self._began

    def seconds_left(self, step: int) -> float | None:
        """Return the seconds that the steps after this one take at the pace so far; None where that is not known."""
        now = time.monotonic()
        if self._measured_from is None:
            self._measured_from = step, now
        begin, since = self._measured_from
        if not begin < step < self._schedule.end:
            return None
        return (self._schedule.end - step) * (now - since) / (step - begin)

    def numbers(self, step: int, seconds_left: float | None) -> dict[str, float]:
        """Return `epoch`, `samples_seen` and, where it is known, `hours_left`."""
        schedule = self._schedule
        numbers = {"epoch": step / schedule.steps_per_epoch, "samples_seen": step * schedule.samples}
        return numbers | ({} if seconds_left is None else {"hours_left": seconds_left / 3600})


def duration(seconds: float) -> str:
    """Return a duration in two units, such as 2 h 03 min, or in seconds below a minute."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"

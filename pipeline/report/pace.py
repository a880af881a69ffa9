"""How fast a run goes, what it waits for, and which rank holds the others up."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median_low

import torch

SLOW = 1.5  # times the median of the ranks ...
IN_A_ROW = 3  # ... in so many logs


class Clock:
    """Measures the time since the last log, the part of it spent waiting for data, and this rank's own work.

    Ranks end every step together, so the time of a step does not tell who was slow. What each does before it has to
    wait for others does: fetching its data and the forward pass (which at ZeRO 3 waits for weights, too).
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self.wait = 0.0
        self._gpu = device.type == "cuda"
        self._work = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._begin = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made, without those stopped."""
        return time.perf_counter() - self._begin

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what happens inside as waiting for data."""
        begin = time.perf_counter()
        yield
        self.wait += time.perf_counter() - begin

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count what happens inside as work of this rank alone. Does not wait for the device."""
        if self._gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            start = time.perf_counter()
            yield
            self._work += time.perf_counter() - start

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave out what happens inside."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin

    def own_seconds(self) -> float:
        """Return the seconds a step that this rank took by itself. Waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
        on_device: float = sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        return (self.wait + self._work + on_device) / self.steps


class Stragglers:
    """Finds the ranks that keep the others waiting log after log; once in a while any rank does."""

    def __init__(self) -> None:
        self._row: dict[int, int] = {}  # logs in a row that a rank was slow in

    def slow_ranks(self, seconds: Sequence[float]) -> dict[int, float]:
        """Return the ranks that have just become slow, and how many times as long as the median rank they take.

        Args:
            seconds: of every rank's own work, since the last log.
        """
        usual = median_low(seconds)  # of two ranks, the faster one
        slow = {rank: own / usual for rank, own in enumerate(seconds) if own > SLOW * usual > 0}
        self._row = {rank: self._row.get(rank, 0) + 1 for rank in slow}
        return {rank: times for rank, times in slow.items() if self._row[rank] == IN_A_ROW}

"""Measure the speed of a run, its waiting for data, and which rank delays the others."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median_low

import torch

SLOW = 1.5  # times the median of the ranks ...
IN_A_ROW = 3  # ... in this many consecutive logs


class Clock:
    """Measures the time since the last log, the part spent waiting for data, and this rank's own work.

    Ranks end every step together, so the time of a step does not show which rank was slow. The time before a rank waits
    for others does: fetching its data and the forward pass (which at ZeRO 3 waits for weights, too).
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
        """Return the seconds since the clock was made, without those stopped."""
        return time.perf_counter() - self._begin

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        begin = time.perf_counter()
        yield
        self.wait += time.perf_counter() - begin

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the block as work of this rank alone. Does not wait for the device."""
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
        """Exclude the block from the time."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin

    def own_seconds(self) -> float:
        """Return the seconds per step of this rank's own work. Waits for the device."""
        if self._events:
            self._events[-1][1].synchronize()
        on_device: float = sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        return (self.wait + self._work + on_device) / self.steps


class Stragglers:
    """Finds ranks that delay the others in log after log; any rank does so once in a while."""

    def __init__(self) -> None:
        self._row: dict[int, int] = {}  # consecutive logs in which a rank was slow

    def slow_ranks(self, seconds: Sequence[float]) -> dict[int, float]:
        """Return the ranks that have just become slow, with their time relative to the median rank.

        Args:
            seconds: every rank's own work since the last log.
        """
        usual = median_low(seconds)  # of two ranks, the faster one
        slow = {rank: own / usual for rank, own in enumerate(seconds) if own > SLOW * usual > 0}
        self._row = {rank: self._row.get(rank, 0) + 1 for rank in slow}
        return {rank: times for rank, times in slow.items() if self._row[rank] == IN_A_ROW}

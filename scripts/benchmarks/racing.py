"""Time contestants in turns, so that a drift of the machine's speed affects all of them."""

import statistics
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from benchmarks.figures import Figure

ROUNDS = 5

Rates = dict[str, float]  # items per second, by contestant


def race(contestants: Mapping[str, Callable[[], int]], rounds: int = ROUNDS) -> Rates:
    """Return each one's items per second, the median over rounds in turns; each call returns its number of items."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # warm up: compile, fill queues
    for _ in range(rounds):
        for name, run in contestants.items():
            begin = time.perf_counter()
            items = run()
            rates[name].append(items / (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in rates.items()}


def compare(
    name: str, unit: str, rates: Rates, limits: Collection[str] = (), settings: Mapping[str, Any] | None = None
) -> Figure:
    """Compare the first contestant with the others, of which `limits` are limits of the hardware, not peers."""
    (_, achieved), *others = rates.items()
    return Figure(
        name,
        unit,
        achieved,
        {other: rate for other, rate in others if other not in limits},
        {other: rate for other, rate in others if other in limits},
        settings or {},
    )

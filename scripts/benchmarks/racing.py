"""Contestants that take turns, so that a machine whose speed drifts slows all of them."""

import statistics
import time
from collections.abc import Callable

ROUNDS = 5

Rates = dict[str, float]  # items a second, by contestant


def race(contestants: dict[str, Callable[[], int]]) -> Rates:
    """Items a second of each, the median over rounds in which they take turns; each call returns its items."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # warm up: compile, fill queues
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            begin = time.perf_counter()
            items = run()
            rates[name].append(items / (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in rates.items()}

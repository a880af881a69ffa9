"""A rank's own work, and which rank delays the others."""

import time
from collections.abc import Callable

import pytest
import torch

from pipeline.report.pace import Clock, Stragglers


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time pass, on a clock of the test's own."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passed(seconds: float) -> None:
        now[0] += seconds

    return passed


def test_own_time_is_waiting_for_data_and_work_but_not_the_rest(sleep: Callable[[float], None]) -> None:
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        with clock.waiting():
            sleep(1)
        with clock.working():
            sleep(2)
        sleep(20)  # for other ranks
        clock.steps += 1
    assert (clock.own_seconds(), clock.wait, clock.elapsed) == (3, 2, 46)


def test_time_that_is_stopped_does_not_count(sleep: Callable[[float], None]) -> None:
    clock = Clock(torch.device("cpu"))
    with clock.stopped():
        sleep(3)
    sleep(1)
    assert clock.elapsed == 1


def test_ranks_that_stay_far_slower_than_the_median_are_named_once() -> None:
    usual, slow = [1.0, 1.1, 0.9, 1.0, 1.0], [1.0, 1.1, 0.9, 3.0, 1.0]
    watch = Stragglers()
    named = [watch.slow_ranks(seconds) for seconds in (slow, slow, usual, slow, slow, slow, slow)]
    assert named == [{}, {}, {}, {}, {}, {3: pytest.approx(3.0)}, {}]
    pair = Stragglers()
    assert [pair.slow_ranks([1.0, 1.6]) for _ in range(3)] == [{}, {}, {1: pytest.approx(1.6)}]
    for ordinary in ([1.0, 1.4, 1.2], [2.0], [0.0, 0.0]):
        watch = Stragglers()
        assert [watch.slow_ranks(ordinary) for _ in range(5)] == [{}] * 5

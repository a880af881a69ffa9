"""A rank's own work, and which rank delays the others."""

import time

import pytest
import torch

from pipeline.report.pace import Clock, Stragglers


def test_own_time_is_waiting_for_data_and_work_but_not_the_rest() -> None:
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        with clock.waiting():
            time.sleep(0.01)
        with clock.working():
            time.sleep(0.02)
        time.sleep(0.2)  # for other ranks
        clock.steps += 1
    assert 0.03 <= clock.own_seconds() < 0.2
    assert 0.02 <= clock.wait < 0.2
    assert clock.elapsed >= 0.46


def test_time_that_is_stopped_does_not_count() -> None:
    clock = Clock(torch.device("cpu"))
    with clock.stopped():
        time.sleep(0.3)
    assert clock.elapsed < 0.3


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

"""The sample order: exactly once, the same for every world size, open at any step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.plan import Plan

plans = st.builds(
    Plan,
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0),
    seed=st.integers(0, 2**62),
    lanes=st.integers(1, 9),
    block=st.integers(1, 50),
)


@settings(max_examples=200, deadline=None)
@given(plan=plans, epochs=st.integers(1, 3), batch_size=st.integers(1, 70))
def test_every_epoch_visits_every_sample_once(plan: Plan, epochs: int, batch_size: int) -> None:
    steps = -(-plan.samples * epochs // batch_size)
    positions = np.concatenate([plan.positions(step, batch_size) for step in range(steps)])
    ids = np.concatenate([plan.batch(step, batch_size) for step in range(steps)])
    for epoch in range(epochs):
        visited = ids[plan.epochs(positions) == epoch]
        np.testing.assert_array_equal(np.sort(visited), np.arange(plan.samples))


@settings(max_examples=50, deadline=None)
@given(plan=plans, step=st.integers(0, 10**9), batch_size=st.integers(1, 70))
def test_a_step_opens_without_the_steps_before_it(plan: Plan, step: int, batch_size: int) -> None:
    fresh = Plan(plan.counts, plan.seed, plan.lanes, plan.block)
    plan.batch(0, batch_size)
    np.testing.assert_array_equal(plan.batch(step, batch_size), fresh.batch(step, batch_size))


def test_the_order_is_a_promise() -> None:
    """A checkpoint names samples by position alone: this order may only change with PLAN_VERSION."""
    plan = Plan([5, 3, 0, 4], seed=7, lanes=2, block=4)
    assert [plan.batch(step, 6).tolist() for step in (0, 1, 2, 1000)] == ORDER


def test_a_rank_reads_only_the_shards_of_its_lanes() -> None:
    """16 ranks of 64 lanes: a part of a batch never leaves its lanes, whatever the epoch's phase."""
    plan = Plan([97] * 131, seed=3, lanes=64, block=512)
    for rank in range(16):
        parts = [plan.positions(step, 256).reshape(16, 16)[rank] for step in range(0, 200)]
        assert set(np.concatenate(parts) % 64) == set(range(rank * 4, rank * 4 + 4))
    epoch = [plan.batch(step, 256).reshape(16, 16) for step in range(plan.samples // 256)]
    touched = [len(np.unique(np.concatenate([ids[rank] for ids in epoch]) // 97)) for rank in range(16)]
    assert max(touched) <= 131 // 16 + 3


def test_epochs_and_seeds_are_unrelated_orders() -> None:
    plan, other = Plan([10] * 1000, seed=1), Plan([10] * 1000, seed=2)
    first, second = plan.ids(np.arange(10_000)), plan.ids(np.arange(10_000, 20_000))
    for a, b in ((first, second), (first, other.ids(np.arange(10_000))), (first, np.arange(10_000))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
        assert (a == b).sum() < 12  # 1 expected of a random permutation


def test_one_lane_and_one_block_are_a_true_shuffle() -> None:
    """Neighbours in the order come from places of the data set as far apart as in a random permutation."""
    ids = Plan([100] * 100, seed=5, lanes=1, block=10_000).ids(np.arange(10_000))
    assert np.abs(np.diff(ids)).mean() == pytest.approx(10_000 / 3, rel=0.03)


@pytest.mark.parametrize(
    ("counts", "lanes", "block"), [([], 1, 1), ([0], 1, 1), ([-1, 2], 1, 1), ([1], 0, 1), ([1], 1, 0)]
)
def test_impossible_plans_are_refused(counts: list[int], lanes: int, block: int) -> None:
    with pytest.raises(ValueError, match="a plan needs"):
        Plan(counts, 0, lanes, block)


ORDER = [[0, 6, 5, 8, 4, 3], [7, 2, 1, 9, 11, 10], [11, 8, 10, 2, 4, 3], [6, 5, 7, 9, 3, 8]]

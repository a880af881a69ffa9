"""The sample order: exactly once, the same for every world size, open at any step."""

import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.plan import Plan
from pipeline.data.request import training_requests
from pipeline.data.settings import Data
from shards.manifest import Manifest

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


@settings(max_examples=12, deadline=None)
@given(plan=plans, first_step=st.integers(0, 10**6), per_rank=st.integers(1, 3))
def test_8_or_2_or_12_ranks_see_the_same_global_batches(plan: Plan, first_step: int, per_rank: int) -> None:
    """Ids, crops, flips and masks, whatever the ranks and the micro-batches that their parts are cut into."""
    samples, batch_size, steps = plan.samples, 24 * per_rank, 4
    columns = {
        name: np.zeros(samples, np.int32) for name in ("shard", "offset", "size", "label", "height", "width", "crc32c")
    }
    columns["height"][:], columns["width"][:] = 200 + np.arange(samples) % 50, 300 + np.arange(samples) % 70
    manifest = Manifest(
        root="",
        shard_names=[],
        shard_bytes=np.zeros(0, np.int64),
        counts=plan.counts,
        classes=[],
        video=None,
        media=frozenset({"image"}),
        identity="",
        **columns,
    )

    def run(world_size: int, micro_batch: int) -> list[np.ndarray]:
        """Return everything that decides the pixels of `steps` global batches, in the order of the ranks' parts."""
        found = []
        for rank in range(world_size):
            requests = training_requests(
                plan,
                manifest,
                Data(shards="set"),
                first_step=first_step,
                batch_size=batch_size,
                micro_batch=micro_batch,
                rank=rank,
                world_size=world_size,
            )
            share = batch_size // world_size
            found.append(list(islice(requests, steps * -(-share // micro_batch))))
        requests = sorted((request for of_rank in found for request in of_rank), key=lambda request: request.step)
        assert sorted({request.step for request in requests}) == list(range(first_step, first_step + steps))
        fields = ("ids", "boxes", "flips", "keys")
        return [np.concatenate([getattr(request, field) for request in requests]) for field in fields]

    undivided = run(1, batch_size)
    steps_ids = [plan.batch(step, batch_size) for step in range(first_step, first_step + steps)]
    np.testing.assert_array_equal(undivided[0], np.concatenate(steps_ids))
    for world_size, micro_batch in ((8, 1), (2, 3 * per_rank), (2, 5), (12, 2 * per_rank)):
        for expected, found in zip(undivided, run(world_size, micro_batch), strict=True):
            np.testing.assert_array_equal(found, expected)


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


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**62),
    epoch=st.integers(0, 10**4),
    lanes=st.sampled_from([1, 8, 64]),
    block=st.sampled_from([64, 8192]),
)
def test_where_a_sample_comes_says_nothing_of_the_next_epoch(seed: int, epoch: int, lanes: int, block: int) -> None:
    """The rank correlation of places in consecutive epochs is that of 1,000 shards thrown anew: below 5 sigma."""
    plan = Plan([20] * 1000, seed, lanes, block)
    first, second = (
        np.argsort(plan.ids(np.arange(which * plan.samples, (which + 1) * plan.samples)))
        for which in (epoch, epoch + 1)
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(1000)


def test_samples_that_met_in_a_batch_meet_again_as_if_by_chance() -> None:
    plan = Plan([100] * 1000, seed=9, lanes=64, block=1024)
    batch = 2000  # 50 batches an epoch, none of which straddles its end
    met = np.empty((2, plan.samples), dtype=np.int64)
    for step in range(100):
        met[step // 50, plan.batch(step, batch)] = step % 50
    pairs = np.bincount(met[0] * 50 + met[1], minlength=2500)
    expected = 50 * batch * (batch - 1) * (batch - 1) / (plan.samples - 1)
    assert (pairs * (pairs - 1)).sum() / expected == pytest.approx(1, abs=0.05)


def test_a_million_shards_fit_into_64_mib() -> None:
    """With the counts and both epochs of a batch that straddles; numpy reports its arrays to tracemalloc."""
    tracemalloc.start()
    plan = Plan(np.full(10**6, 10**4), seed=1, lanes=4096)
    ids = plan.batch(10**10 // 4096, 4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(ids)) == 4096 and plan.epochs(plan.positions(10**10 // 4096, 4096)).max() == 1
    assert peak < 64 * 2**20


def test_one_lane_and_one_block_are_a_true_shuffle() -> None:
    """Neighbours in the order come from places of the data set as far apart as in a random permutation."""
    ids = Plan([100] * 100, seed=5, lanes=1, block=10_000).ids(np.arange(10_000))
    assert np.abs(np.diff(ids)).mean() == pytest.approx(10_000 / 3, rel=0.03)


@pytest.mark.parametrize(
    ("counts", "lanes", "block"), [([], 1, 1), ([0], 1, 1), ([-1, 2], 1, 1), ([1], 0, 1), ([1], 1, 0)]
)
def test_impossible_plans_are_refused(counts: list[int], lanes: int, block: int) -> None:
    with pytest.raises(ValueError, match=r"a plan (needs|has)"):
        Plan(counts, 0, lanes, block)


ORDER = [[3, 1, 0, 10, 9, 7], [2, 4, 8, 11, 5, 6], [3, 0, 2, 10, 9, 11], [1, 0, 2, 9, 10, 5]]

"""The order of a mixture: exact shares, every sample once in each epoch of its data set, any step at once."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.mixture import Mixture, mixture_of, whole

counts = st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(lambda found: sum(found) > 0)
mixtures = st.builds(
    lambda sets, seed, lanes, block, batch_size: mixture_of(
        [np.array(of_set) for of_set, _ in sets], [weight for _, weight in sets], seed, lanes, block, batch_size
    ),
    sets=st.lists(st.tuples(counts, st.integers(1, 9)), min_size=1, max_size=5),
    seed=st.integers(0, 2**62),
    lanes=st.integers(1, 9),
    block=st.integers(1, 50),
    batch_size=st.integers(1, 40) | st.just(2520 * 16),  # single slots, or whole rounds of any of these lanes
)


@settings(max_examples=60, deadline=None)
@given(mixture=mixtures, batch_size=st.integers(1, 40))
def test_each_data_set_is_visited_as_if_it_were_alone(mixture: Mixture, batch_size: int) -> None:
    """Slot by slot, its samples are its own plan's, from the first position on, none left out or twice."""
    steps = -(-3 * mixture.samples // batch_size)
    slots = np.concatenate([mixture.positions(step, batch_size) for step in range(steps)])
    ids, epochs = mixture.ids(slots), mixture.epochs(slots)
    np.testing.assert_array_equal(np.sort(slots), np.arange(steps * batch_size))
    order = np.argsort(slots)
    for plan, first in zip(mixture.parts, mixture.first_ids.tolist(), strict=True):
        own = ids[order][(ids[order] >= first) & (ids[order] < first + plan.samples)] - first
        if not len(own):  # of few slots in many lanes, all may belong to other data sets
            continue
        np.testing.assert_array_equal(own, plan.ids(np.arange(len(own))))
        of_set = epochs[order][(ids[order] >= first) & (ids[order] < first + plan.samples)]
        np.testing.assert_array_equal(of_set, np.arange(len(own)) // plan.samples)
        for epoch in range(len(own) // plan.samples):
            np.testing.assert_array_equal(np.sort(own[of_set == epoch]), np.arange(plan.samples))


@settings(max_examples=60, deadline=None)
@given(
    images=st.lists(st.tuples(counts, st.integers(1, 9)), min_size=1, max_size=3),
    videos=st.lists(st.tuples(counts, st.integers(1, 9)), min_size=1, max_size=3),
    seed=st.integers(0, 2**62),
    lanes=st.integers(1, 9),
    batch_size=st.integers(1, 24),
)
def test_every_step_of_images_and_videos_is_of_one_of_them(
    images: list[tuple[list[int], int]], videos: list[tuple[list[int], int]], seed: int, lanes: int, batch_size: int
) -> None:
    """A medium has its share of the steps, and its data sets are visited as if there were no other medium."""
    sets = [*images, *videos]
    sizes, weights = [np.array(of_set) for of_set, _ in sets], [weight for _, weight in sets]
    media = ["image"] * len(images) + ["video"] * len(videos)
    mixture = mixture_of(sizes, weights, seed, lanes, 8, batch_size, media)
    steps = -(-3 * mixture.samples // batch_size)
    slots = np.concatenate([mixture.positions(step, batch_size) for step in range(steps)])
    ids = np.concatenate([mixture.batch(step, batch_size) for step in range(steps)])
    epochs = mixture.epochs(slots)
    of_video = (ids >= sum(of_set.sum() for of_set in sizes[: len(images)])).reshape(steps, batch_size)
    assert (of_video.all(1) | ~of_video.any(1)).all()
    due = np.arange(1, steps + 1) * sum(weights[len(images) :]) / sum(weights)
    assert np.abs(np.cumsum(of_video[:, 0]) - due).max() < 1
    np.testing.assert_array_equal(np.sort(slots), np.arange(steps * batch_size))
    first, order = 0, np.argsort(slots)
    for of_set in sizes:
        here = (ids[order] >= first) & (ids[order] < first + of_set.sum())
        own, own_epochs = ids[order][here] - first, epochs[order][here]
        np.testing.assert_array_equal(own_epochs, np.arange(len(own)) // of_set.sum())
        for epoch in range(len(own) // of_set.sum()):
            np.testing.assert_array_equal(np.sort(own[own_epochs == epoch]), np.arange(of_set.sum()))
        first += of_set.sum()


def test_the_steps_of_a_medium_are_those_of_a_run_on_it_alone() -> None:
    """The k-th step of images has what the k-th step has without the videos, whose numbers come after theirs."""
    photos, sketches, clips = np.full(9, 50), np.full(3, 20), np.full(5, 30)
    mixture = mixture_of([photos, sketches, clips], [4, 2, 3], 7, 4, 90, 64, ["image", "image", "video"])
    alone = mixture_of([photos, sketches], [4, 2], 7, 4, 60, 64)
    batches = [mixture.batch(step, 64) for step in range(30)]
    of_images = [batch for batch in batches if batch[0] < 9 * 50 + 3 * 20]
    assert len(of_images) == 20
    for step, batch in enumerate(of_images):
        np.testing.assert_array_equal(batch, alone.batch(step, 64))


@settings(max_examples=150, deadline=None)
@given(
    weights=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    slots=st.integers(1, 400),
    lanes=st.sampled_from([1, 16]),
)
def test_shares_are_exact_after_every_slot(weights: list[int], slots: int, lanes: int) -> None:
    """With 16 lanes, 16 slots are assigned together."""
    mixture = mixture_of([np.array([3])] * len(weights), weights, 0, lanes, 8, 16 * 16)
    number, positions = mixture.dealt(np.arange(slots))
    had = np.cumsum(number[:, None] == np.arange(len(weights)), axis=0)  # (slots, data sets)
    np.testing.assert_array_equal(positions, had[np.arange(slots), number] - 1)
    assert had[-1].tolist() == mixture.taken(slots)
    due = np.arange(1, slots + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(had - due).max() < lanes * max(len(weights), 1.0001)
    whole_rounds = np.arange(lanes * sum(weights), slots + 1, lanes * sum(weights)) - 1
    np.testing.assert_array_equal(had[whole_rounds], np.round(due[whole_rounds]))


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(1, 2**28), min_size=1, max_size=7),
    first=st.integers(0, 2**55),
    lanes=st.sampled_from([1, 16]),
)
def test_slots_are_found_from_positions(weights: list[int], first: int, lanes: int) -> None:
    mixture = mixture_of([np.array([3])] * len(weights), weights, 0, lanes, 8, 16 * 16)
    slots = np.arange(first, first + 50)
    number, positions = mixture.dealt(slots)
    for of_set in np.unique(number).tolist():
        here = number == of_set
        np.testing.assert_array_equal(mixture.slots(of_set, positions[here]), slots[here])
    before, after = mixture.taken(first), mixture.taken(first + 50)
    assert [int((number == of_set).sum()) for of_set in range(len(weights))] == [
        last - one for one, last in zip(before, after, strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(mixture=mixtures, batch_size=st.integers(1, 40), step=st.integers(0, 10**6))
def test_a_batch_has_of_each_data_set_what_was_foreseen(mixture: Mixture, batch_size: int, step: int) -> None:
    """All of it, or of each data set a number within limits, follow each other lane after lane."""
    slots = mixture.positions(step, batch_size)
    number, positions = mixture.dealt(slots)
    in_turn = mixture.in_turn(batch_size)[0]
    for of_set, (least, most) in enumerate(in_turn):
        here = number == of_set if len(in_turn) == len(mixture.weights) > 1 else np.ones(batch_size, bool)
        assert least <= here.sum() <= most
        lanes = positions[here][np.argsort(slots[here])] % mixture.lanes
        assert (np.diff(lanes) % mixture.lanes == 1 % mixture.lanes).all()


def test_large_batches_draw_equally_from_all_lanes() -> None:
    """As of one data set, so that a node keeps to its own shards; small ones mix their data sets evenly instead."""
    sets = [np.full(100, 1000), np.full(30, 500)]
    large, small = (mixture_of(sets, [5, 2], 4, 8, 8192, batch_size) for batch_size in (128, 120))
    for step in range(9):
        number, positions = large.dealt(large.positions(step, 128))
        np.testing.assert_array_equal(positions % 8, np.arange(128) // 16)
        number, _ = small.dealt(small.positions(step, 120))
        assert abs((number == 1).sum() - 120 * 2 / 7) < 1


def test_a_data_set_has_its_share_of_a_block() -> None:
    mixture = mixture_of([np.array([9])] * 3, [5, 2, 1], 0, 4, 8192, 64)
    assert [plan.block for plan in mixture.parts] == [5120, 2048, 1024]


def test_a_step_far_away_opens_at_once() -> None:
    """The mixture has three large data sets; a fresh one gives the same in the middle of the trillionth sample."""
    sets = [np.full(1000, 10_000), np.full(300, 50_000), np.array([7])]
    mixture, fresh = (mixture_of(sets, [5, 3, 1], 4, 64, 8192, 4096) for _ in range(2))
    mixture.batch(0, 4096)
    far = mixture.batch(10**12 // 4096, 4096)
    np.testing.assert_array_equal(far, fresh.batch(10**12 // 4096, 4096))
    assert len(np.unique(far)) > 3000


def test_the_order_of_a_mixture_is_a_promise() -> None:
    """A checkpoint names samples by position alone: this order may only change with MIXTURE_VERSION."""
    small, large = (
        mixture_of([np.array([5, 3]), np.array([4])], [3, 1], 7, 2, 4, batch_size) for batch_size in (6, 32)
    )
    assert [small.batch(step, 6).tolist() for step in (0, 1, 2, 1000)] == ORDER
    assert large.batch(1000, 32).tolist() == ORDER_OF_ROUNDS
    media = mixture_of([np.array([5, 3]), np.array([4])], [3, 1], 7, 2, 4, 6, ["image", "video"])
    assert [media.batch(step, 6).tolist() for step in (0, 1, 2, 3, 1000)] == ORDER_OF_MEDIA


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1], [1]),
        ([3, 1], [3, 1]),
        ([0.3, 0.1], [3, 1]),
        ([0.75, 0.25], [3, 1]),
        ([1_281_167, 50_000], [1_281_167, 50_000]),
        ([1_200_000, 50_000], [24, 1]),
        ([2**40, 2**40], [1, 1]),
        ([1e6, 1e-6], [2**30, 1]),
    ],
)
def test_weights_are_ratios(weights: list[float], expected: list[int]) -> None:
    assert whole(weights) == expected


def test_huge_weights_are_rounded_to_a_billionth() -> None:
    sizes = [7_000_000_003, 3_000_000_001]
    rounded = whole(sizes)
    assert sum(rounded) < 2**31
    assert abs(Fraction(rounded[0], sum(rounded)) - Fraction(sizes[0], sum(sizes))) < Fraction(1, 2**29)


ORDER = [[8, 7, 6, 2, 10, 1], [5, 9, 0, 5, 4, 3], [6, 8, 7, 11, 1, 2], [8, 7, 0, 4, 10, 3]]
ORDER_OF_ROUNDS = [8, 7, 5, 6, 9, 0, 6, 5, 8, 7, 0, 7, 9, 6, 5, 0, 10, 1, 2, 4, 11, 3, 2, 1, 10, 4, 3, 1, 11, 2, 4, 3]
ORDER_OF_MEDIA = [
    [8, 9, 8, 10, 11, 10],
    [7, 6, 5, 2, 1, 4],
    [0, 5, 6, 3, 1, 2],
    [7, 0, 5, 4, 3, 1],
    [8, 9, 8, 10, 11, 10],
]

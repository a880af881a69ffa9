"""The order of a mixture: exact shares, every sample once in each epoch of its data set, any step at once."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.mixture import Mixture, whole

counts = st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(lambda found: sum(found) > 0)
mixtures = st.builds(
    lambda sets, seed, lanes, block: Mixture(
        [np.array(of_set) for of_set, _ in sets], [weight for _, weight in sets], seed, lanes, block
    ),
    sets=st.lists(st.tuples(counts, st.integers(1, 9)), min_size=1, max_size=5),
    seed=st.integers(0, 2**62),
    lanes=st.integers(1, 9),
    block=st.integers(1, 50),
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
    for plan, first in zip(mixture.plans, mixture.first_ids.tolist(), strict=True):
        own = ids[order][(ids[order] >= first) & (ids[order] < first + plan.samples)] - first
        np.testing.assert_array_equal(own, plan.ids(np.arange(len(own))))
        of_set = epochs[order][(ids[order] >= first) & (ids[order] < first + plan.samples)]
        np.testing.assert_array_equal(of_set, np.arange(len(own)) // plan.samples)
        for epoch in range(len(own) // plan.samples):
            np.testing.assert_array_equal(np.sort(own[of_set == epoch]), np.arange(plan.samples))


@settings(max_examples=150, deadline=None)
@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=8), slots=st.integers(1, 400))
def test_shares_are_exact_after_every_slot(weights: list[int], slots: int) -> None:
    mixture = Mixture([np.array([3])] * len(weights), weights, 0, 1, 8)
    number, positions = mixture.dealt(np.arange(slots))
    had = np.cumsum(number[:, None] == np.arange(len(weights)), axis=0)  # (slots, data sets)
    np.testing.assert_array_equal(positions, had[np.arange(slots), number] - 1)
    assert had[-1].tolist() == mixture.taken(slots)
    due = np.arange(1, slots + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(had - due).max() < max(len(weights), 1.0001)
    whole_rounds = np.arange(sum(weights), slots + 1, sum(weights)) - 1
    np.testing.assert_array_equal(had[whole_rounds], np.round(due[whole_rounds]))


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(1, 2**28), min_size=1, max_size=7),
    first=st.integers(0, 2**55),
)
def test_slots_are_found_from_positions(weights: list[int], first: int) -> None:
    mixture = Mixture([np.array([3])] * len(weights), weights, 0, 1, 8)
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
    number, _ = mixture.dealt(mixture.positions(step, batch_size))
    for of_set, (least, most) in enumerate(mixture.shares(batch_size)):
        assert least <= (number == of_set).sum() <= most


def test_a_step_far_away_opens_at_once() -> None:
    """Of three large data sets, in the middle of the trillionth sample; a fresh one gives the same."""
    sets = [np.full(1000, 10_000), np.full(300, 50_000), np.array([7])]
    mixture, fresh = (Mixture(sets, [5, 3, 1], 4, 64, 8192) for _ in range(2))
    mixture.batch(0, 4096)
    far = mixture.batch(10**12 // 4096, 4096)
    np.testing.assert_array_equal(far, fresh.batch(10**12 // 4096, 4096))
    assert len(np.unique(far)) > 3000


def test_the_order_of_a_mixture_is_a_promise() -> None:
    """A checkpoint names samples by position alone: this order may only change with MIXTURE_VERSION."""
    mixture = Mixture([np.array([5, 3]), np.array([4])], [3, 1], 7, 2, 4)
    assert [mixture.batch(step, 6).tolist() for step in (0, 1, 2, 1000)] == ORDER


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


ORDER = [[8, 7, 6, 3, 10, 4], [5, 9, 0, 5, 2, 1], [0, 8, 7, 11, 1, 2], [9, 7, 0, 1, 11, 4]]

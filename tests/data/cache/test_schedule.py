"""The schedule of shards against the shards of the plan's ids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.cache.schedule import Schedule, Uses
from pipeline.data.mixture import Mixture, mixture_of
from pipeline.data.order import Order
from pipeline.data.plan import Plan

ragged = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)


@st.composite
def nodes(draw: st.DrawFn) -> tuple[Plan, int, int, int, int]:
    """A plan, and the batch size, first rank, ranks and world size of a node."""
    plan = Plan(
        draw(ragged), draw(st.integers(0, 2**62)), lanes=draw(st.integers(1, 20)), block=draw(st.integers(1, 50))
    )
    world = draw(st.integers(1, 6))
    first = draw(st.integers(0, world - 1))
    return plan, world * draw(st.integers(1, 12)), first, draw(st.integers(1, world - first)), world


@st.composite
def nodes_of_mixtures(draw: st.DrawFn) -> tuple[Mixture, int, int, int, int]:
    """Draw the same for a mixture of one to four data sets."""
    plan, *node = draw(nodes())
    sets = [np.array(of_set) for of_set in draw(st.lists(ragged, min_size=1, max_size=4))]
    weights = draw(st.lists(st.integers(1, 20), min_size=len(sets), max_size=len(sets)))
    made_for = draw(st.sampled_from([node[0], 16 * plan.lanes]))  # so that whole rounds of lanes are dealt out, too
    if draw(st.booleans()):  # steps of one medium each, as which the first data sets count
        split = draw(st.integers(1, len(sets)))
        media = ["image"] * split + ["video"] * (len(sets) - split)
        return mixture_of(sets, weights, plan.seed, plan.lanes, plan.block, node[0], media), *node
    return mixture_of(sets, weights, plan.seed, plan.lanes, plan.block, made_for), *node


def touched(plan: Order, batch_size: int, first_rank: int, ranks: int, world: int, epoch: int) -> set[tuple[int, int]]:
    """Return every (shard, step) that the node's ranks read in an epoch, from the plan's ids of all samples."""
    shard_of = np.repeat(np.arange(len(plan.counts)), plan.counts)
    part = batch_size // world
    pairs = set()
    for step in range(epoch * plan.samples // batch_size, ((epoch + 1) * plan.samples - 1) // batch_size + 1):
        mine = plan.positions(step, batch_size)[first_rank * part : (first_rank + ranks) * part]
        mine = mine[mine // plan.samples == epoch]
        if len(mine):
            pairs |= {(int(shard), step) for shard in shard_of[plan.ids(mine)]}
    return pairs


def predicted(uses: Uses) -> set[tuple[int, int]]:
    rows = [uses.shard.tolist(), uses.first_step.tolist(), uses.last_step.tolist()]
    return {(shard, step) for shard, first, last in zip(*rows, strict=True) for step in range(first, last + 1)}


@settings(max_examples=300, deadline=None)
@given(node=nodes(), epoch=st.integers(0, 5))
def test_a_node_reads_nothing_outside_its_uses(node: tuple[Plan, int, int, int, int], epoch: int) -> None:
    uses = Schedule(*node).uses(epoch)
    assert touched(*node, epoch) <= predicted(uses)
    keys = list(zip(uses.first_step.tolist(), uses.shard.tolist(), strict=True))
    assert keys == sorted(keys)
    assert (uses.last_step >= uses.first_step).all()
    rows = uses.last_step - uses.first_step + 1
    assert rows.sum() == len(predicted(uses)), "a shard has two rows at one step"


@settings(max_examples=150, deadline=None)
@given(node=nodes_of_mixtures(), epoch=st.integers(0, 5))
def test_a_node_reads_of_a_mixture_nothing_outside_its_uses(
    node: tuple[Mixture, int, int, int, int], epoch: int
) -> None:
    plan, batch_size, *_ = node
    uses = Schedule(*node).uses(epoch)
    assert touched(*node, epoch) <= predicted(uses)
    keys = list(zip(uses.first_step.tolist(), uses.shard.tolist(), strict=True))
    assert keys == sorted(keys)
    assert (uses.last_step - uses.first_step + 1).sum() == len(predicted(uses)), "a shard has two rows at one step"
    assert (uses.first_step >= epoch * plan.samples // batch_size).all()
    assert (uses.last_step <= ((epoch + 1) * plan.samples - 1) // batch_size).all()


@pytest.mark.parametrize(("batch_size", "lanes", "shards", "in_use"), [(2048, 8, 80, 30), (2040, 11, 100, 35)])
def test_a_node_keeps_to_its_shards_of_all_data_sets(batch_size: int, lanes: int, shards: int, in_use: int) -> None:
    """Each of 8 nodes reads an eighth of 704 shards, and a few more if batches are not whole rounds of lanes."""
    mixture = mixture_of([np.full(640, 1000), np.full(64, 500)], [5, 2], 5, 64, 1024, batch_size)
    for node in range(8):
        schedule = Schedule(mixture, batch_size, node, 1, 8)
        assert len(schedule.lanes) <= lanes
        assert len(np.unique(schedule.uses(0).shard)) <= shards
        assert schedule.working_set(0, np.ones(704, np.int64))[1] <= in_use


def test_a_small_data_set_that_is_passed_through_all_the_time_is_always_in_use() -> None:
    mixture = mixture_of([np.full(50, 1000), np.array([3, 0, 2])], [1, 1], 5, 4, 1024, 64)
    uses = Schedule(mixture, 64, 0, 1, 1).uses(2)
    rows = dict(zip(uses.shard, zip(uses.first_step, uses.last_step, strict=True), strict=True))
    assert rows[50] == rows[52] == (2 * mixture.samples // 64, (3 * mixture.samples - 1) // 64) and 51 not in rows


@settings(max_examples=200, deadline=None)
@given(node=nodes(), epoch=st.integers(0, 5))
def test_without_permutation_and_with_whole_lanes_uses_are_exact(
    node: tuple[Plan, int, int, int, int], epoch: int
) -> None:
    plan, _, first, ranks, world = node
    lanes = world * plan.lanes
    node = (Plan(plan.counts, plan.seed, lanes, block=1), 3 * lanes, first, ranks, world)
    assert touched(*node, epoch) == predicted(Schedule(*node).uses(epoch))


@settings(max_examples=200, deadline=None)
@given(node=nodes(), epoch=st.integers(0, 5))
def test_uses_are_wider_than_reads_by_less_than_a_block(node: tuple[Plan, int, int, int, int], epoch: int) -> None:
    """With whole lanes: a block takes `steps` steps, and in each of its first and last one something of it is read."""
    plan, _, first, ranks, world = node
    plan = Plan(plan.counts, plan.seed, world * plan.lanes, plan.block)
    node = (plan, 2 * plan.lanes, first, ranks, world)
    steps = (plan.block + 1) // 2 + 1
    read = touched(*node, epoch)
    uses = Schedule(*node).uses(epoch)
    for shard, begin, end in zip(uses.shard, uses.first_step, uses.last_step, strict=True):
        mine = [step for other, step in read if other == shard and begin <= step <= end]
        assert min(mine) - begin < steps and end - max(mine) < steps


@pytest.mark.parametrize(("lanes", "batch_size"), [(8, 12), (12, 8), (64, 6), (5, 7), (3, 30)])
def test_only_the_lanes_of_a_node_count(lanes: int, batch_size: int) -> None:
    """All phases of batch against lanes: the lanes are those that the node's part of some batch comes from."""
    plan = Plan([1000], lanes=lanes)
    part = batch_size // 2
    for rank in range(2):
        parts = [plan.positions(step, batch_size)[rank * part : (rank + 1) * part] for step in range(200)]
        np.testing.assert_array_equal(
            Schedule(plan, batch_size, rank, 1, 2).lanes, np.unique(np.concatenate(parts) % lanes)
        )


@settings(max_examples=100, deadline=None)
@given(node=nodes(), epoch=st.integers(0, 3))
def test_the_working_set_is_the_fullest_step(node: tuple[Plan, int, int, int, int], epoch: int) -> None:
    schedule, plan = Schedule(*node), node[0]
    shard_bytes = np.random.default_rng(plan.seed % 1000).integers(1, 1000, len(plan.counts))
    in_use: dict[int, set[int]] = {}
    final = (epoch + 1) * plan.samples // node[1]
    for uses, last in ((schedule.uses(epoch), None), (schedule.uses(epoch + 1), final)):
        for shard, begin, end in zip(uses.shard, uses.first_step, uses.last_step, strict=True):
            for step in range(int(begin), int(end) + 1):
                if last is None or step <= last:
                    in_use.setdefault(step, set()).add(int(shard))
    most = max((sum(shard_bytes[list(shards)]) for shards in in_use.values()), default=0)
    expected = (most, max(map(len, in_use.values()), default=0))
    assert schedule.working_set(epoch, shard_bytes) == expected


def test_a_node_of_few_lanes_reads_few_shards() -> None:
    """ImageNet's size on 16 nodes: each reads a sixteenth of the shards, and a few that lanes cut."""
    plan = Plan([1000] * 1281, seed=3, lanes=64)
    shards = [len(np.unique(Schedule(plan, 2048, node, 1, 16).uses(0).shard)) for node in range(16)]
    assert max(shards) <= 1281 // 16 + 2
    assert sum(shards) <= 1281 + 16


@pytest.mark.parametrize(
    ("batch_size", "first", "ranks", "world"), [(8, 0, 0, 4), (8, 3, 2, 4), (8, -1, 1, 4), (2, 0, 1, 4)]
)
def test_ranks_that_do_not_exist_or_get_nothing_are_refused(
    batch_size: int, first: int, ranks: int, world: int
) -> None:
    with pytest.raises(ValueError, match="ranks"):
        Schedule(Plan([10]), batch_size, first, ranks, world)

"""Measure shuffle quality and its cost in reads, for docs/explanation/shuffling.md. Nothing is timed."""

import random
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from webdataset.filters import _shuffle as webdataset_buffer

from pipeline.data.plan import Plan

Ids = NDArray[np.int64]
NODES, RANKS, BATCH, SHARDS, PER_SHARD, CLASSES = 8, 64, 2048, 1281, 1000, 1000
SAMPLES = SHARDS * PER_SHARD

# An epoch of each contestant: ids of (steps, NODES, BATCH // NODES), the whole batches of the epoch.


def own(lanes: int, block: int, epoch: int) -> Ids:
    """Return this project's order."""
    plan = Plan([PER_SHARD] * SHARDS, seed=1, lanes=lanes, block=block)
    steps = range(-(-epoch * SAMPLES // BATCH), (epoch + 1) * SAMPLES // BATCH)
    return np.stack([plan.batch(step, BATCH) for step in steps]).reshape(len(steps), NODES, -1)


def webdataset(buffer: int, epoch: int) -> Ids:
    """Return shuffled shards, divided among the ranks, with a buffer per rank, until one rank has no more samples."""
    dealt = np.random.default_rng(epoch).permutation(SHARDS)
    ranks = []
    for rank in range(RANKS):
        line = (dealt[rank::RANKS, None] * PER_SHARD + np.arange(PER_SHARD)).ravel()
        shuffled = webdataset_buffer(
            iter(line.tolist()), buffer, initial=buffer, rng=random.Random(epoch * RANKS + rank)
        )
        ranks.append(np.fromiter(shuffled, dtype=np.int64))
    return in_batches(ranks)


def py1e(nodes: int, block: int, epoch: int) -> Ids:
    """Return MosaicML Streaming's default order, with this many canonical nodes and this block size."""
    from streaming.base.shuffle.py1e import get_shuffle_py1e

    line = get_shuffle_py1e(np.full(SHARDS, PER_SHARD), nodes, seed=1, epoch=epoch, block_size=block)
    return in_batches([line[SAMPLES * node // nodes : SAMPLES * (node + 1) // nodes] for node in range(nodes)])


def permutation(epoch: int) -> Ids:
    """Return a true permutation."""
    return in_batches([np.random.default_rng(epoch).permutation(SAMPLES)])


def in_batches(streams: list[Ids]) -> Ids:
    """Combine streams, equally many samples of each per batch; consecutive streams belong to one node."""
    share = BATCH // len(streams)
    steps = min(map(len, streams)) // share
    batches = [stream[: steps * share].reshape(steps, share) for stream in streams]
    return np.concatenate(batches, axis=1).reshape(steps, NODES, -1)


CONTESTANTS: dict[str, Callable[[int], Ids]] = {
    "true permutation": permutation,
    "ours, 1 lane, one block": partial(own, 1, SAMPLES),
    "ours, 64 lanes, block 8,192 (default)": partial(own, 64, 8192),
    "ours, 64 lanes, block 2,048": partial(own, 64, 2048),
    "ours, 64 lanes, whole lanes": partial(own, 64, SAMPLES),
    "ours, 16 lanes, block 8,192": partial(own, 16, 8192),
    "ours, 512 lanes, whole lanes": partial(own, 512, SAMPLES),
    "py1e, 8 canonical nodes, block 500,000": partial(py1e, 8, 500_000),
    "py1e, 64 canonical nodes, block 262,144": partial(py1e, 64, 1 << 18),
    "py1e, 64 canonical nodes, block 8,192": partial(py1e, 64, 8192),
    "webdataset, buffer of 1,000 a rank": partial(webdataset, 1000),
    "webdataset, buffer of 10,000 a rank": partial(webdataset, 10_000),
}


def measures(first: Ids, second: Ids) -> list[str]:
    """Measure a contestant's two consecutive epochs: one text per column of `shuffle`'s table."""
    batches = first.reshape(len(first), -1)
    by_class = np.arange(SAMPLES) * CLASSES // SAMPLES  # classes in a data set sorted by class
    shuffled = np.random.default_rng(0).permutation(by_class)  # classes in a data set shuffled at its build

    places = [place_of(epoch) for epoch in (first, second)]
    both = (places[0] >= 0) & (places[1] >= 0)
    neighbours = both[1:] & both[:-1]
    distance = np.abs(np.diff(places[0]))[neighbours].mean() / (SAMPLES / 3)
    displacement = np.abs(places[0] - np.arange(SAMPLES))[both].mean() / (SAMPLES / 3)
    correlation = np.corrcoef(places[0][both], places[1][both])[0, 1]
    pairs = np.unique(places[0][both] // BATCH * SAMPLES + places[1][both] // BATCH, return_counts=True)[1]
    together = np.unique(places[0][both] // BATCH, return_counts=True)[1]
    chance = (together * (together - 1)).sum() * (BATCH - 1) / (SAMPLES - 1)
    met_again = (pairs * (pairs - 1)).sum() / chance

    shards, in_use = zip(
        *[shards_of_node(epoch[:, node]) for epoch in (first, second) for node in range(NODES)], strict=True
    )
    again = np.mean([again_of_node(first[:, node], second[:, node]) for node in range(NODES)])
    return [
        *classes(by_class[batches]),
        *classes(shuffled[batches]),
        f"{displacement:.3f}",
        f"{distance:.3f}",
        f"{correlation:+.3f}",
        f"{met_again:.2f}",
        f"{np.mean(shards):,.0f}",
        f"{max(in_use):,}",
        f"{again:.0%}",
    ]


def classes(labels: Ids) -> list[str]:
    """Return the mean number of classes in a batch, and the variance of a class's count relative to a random draw's.

    `labels` are (steps, BATCH).
    """
    counts = np.stack([np.bincount(of_batch, minlength=CLASSES) for of_batch in labels])
    expected = BATCH / CLASSES
    dispersion = ((counts - expected) ** 2).mean() / (expected * (1 - 1 / CLASSES))
    return [f"{(counts > 0).sum(axis=1).mean():.0f}", f"{dispersion:.2f}"]


def place_of(epoch: Ids) -> Ids:
    """Return the position of each sample in an epoch, (SAMPLES,); -1 where it does not occur."""
    place = np.full(SAMPLES, -1)
    place[epoch.ravel()] = np.arange(epoch.size)
    return place


def shards_of_node(ids: Ids) -> tuple[int, int]:
    """Return the shards that a node reads, and the most that it has started but not finished; `ids` are (steps, n)."""
    steps = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    begun, ended = np.full(SHARDS, len(ids)), np.full(SHARDS, -1)
    np.minimum.at(begun, ids // PER_SHARD, steps)
    np.maximum.at(ended, ids // PER_SHARD, steps)
    used = ended >= 0
    change = np.bincount(begun[used], minlength=len(ids) + 1) - np.bincount(ended[used] + 1, minlength=len(ids) + 1)
    return int(used.sum()), int(change.cumsum().max())


def again_of_node(first: Ids, second: Ids) -> float:
    """Return the share of a node's shards in one epoch that it also had in the previous one."""
    before, now = np.unique(first // PER_SHARD), np.unique(second // PER_SHARD)
    return len(np.intersect1d(before, now)) / len(now)


def shuffle() -> None:
    """Print the table of docs/explanation/shuffling.md."""
    columns = [
        "classes a batch, sorted",
        "variance",
        "shuffled",
        "variance",
        "displacement",
        "neighbours",
        "correlation",
        "together again",
    ]
    table = Table("order", *columns, "shards a node", "in use", "had before")
    for name, contestant in CONTESTANTS.items():
        try:
            table.add_row(name, *measures(contestant(0), contestant(1)))
        except ImportError:
            table.add_row(name, "mosaicml-streaming is not installed")
    Console(width=170).print(table)

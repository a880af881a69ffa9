"""The node cache, from real servers: bytes, order, limit, eviction."""

import json
from contextlib import closing
from pathlib import Path

import fsspec
import numpy as np
import pytest
from cache_process import BATCH, schedule
from caching import ALL, PLENTY, SHARDS, assert_right, fetches, foreseen, make_set, shards_in, until, watching
from servers import S3, http_server

from pipeline.data.cache.node import NodeCache
from pipeline.data.errors import DataError
from shards.manifest import Manifest


def test_shards_come_whole_in_the_order_of_their_first_use(remote_set: Path, node_folder: Path) -> None:
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        with closing(NodeCache(manifest, node_folder, PLENTY, schedule(manifest), threads=1)) as cache:
            assert cache.path(3) is None
            cache.advance(5)
            until(lambda: cache.counters()["cache_shards"] == SHARDS)
            assert cache.counters() == {
                "cache_bytes": manifest.shard_bytes.sum(),
                "cache_shards": SHARDS,
                "cache_fetched_bytes": manifest.shard_bytes.sum(),
                "cache_evictions": 0,
                "cache_errors": 0,
                "cache_owners": 1,
            }
            path = cache.path(3)
            assert path and path.read_bytes() == (remote_set / "3.tar").read_bytes()
        asked = fetches(server.requests)
    next_use = {shard: use for use, shard in foreseen(manifest, 5, epochs=2)}
    assert sorted(asked) == list(range(SHARDS))
    assert [next_use[shard] for shard in asked] == sorted(next_use.values())
    assert_right(node_folder, manifest, remote_set)


def test_a_second_epoch_and_a_second_run_fetch_nothing(remote_set: Path, node_folder: Path) -> None:
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        order = schedule(manifest)
        for run in range(2):
            with closing(NodeCache(manifest, node_folder, int(manifest.shard_bytes.sum()), order)) as cache:
                for step in range(0, 3 * order.plan.samples // BATCH, 10):
                    cache.advance(step)
                    until(lambda: cache.counters()["cache_shards"] == SHARDS)
                assert cache.counters()["cache_fetched_bytes"] == (0 if run else manifest.shard_bytes.sum())
        assert len(fetches(server.requests)) == SHARDS


@pytest.mark.parametrize(("epochs", "spare"), [(2, 0), (4, 0), (4, 25_000)])
def test_eviction_is_by_next_use_and_keeps_within_the_limit(
    remote_set: Path, node_folder: Path, epochs: int, spare: int
) -> None:
    """This includes a cache that is large enough for the first two epochs, but not for the third."""
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        order, size = schedule(manifest), manifest.shard_bytes.tolist()
        limit = max(order.working_set(epoch, manifest.shard_bytes)[0] for epoch in range(epochs)) + spare
        cached: set[int] = set()
        fetched = evicted = 0
        with watching(node_folder) as most, closing(NodeCache(manifest, node_folder, limit, order, threads=3)) as cache:
            for step in range(0, 3 * order.plan.samples // BATCH):
                came, went = follow(manifest, step, cached, size, limit)
                fetched, evicted = fetched + came, evicted + went
                cache.advance(step)
                until(lambda: shards_in(node_folder, manifest) == cached)
                until(lambda: cache.counters()["cache_fetched_bytes"] == fetched)  # noqa: B023
                in_use = {shard for use, shard in foreseen(manifest, step, epochs=2) if use == step}
                assert in_use <= cached or epochs < 3
            assert cache.counters()["cache_evictions"] == evicted > SHARDS
        assert limit / 2 < max(most) <= limit
        assert_right(node_folder, manifest, remote_set)


def follow(manifest: Manifest, step: int, cached: set[int], size: list[int], limit: int) -> tuple[int, int]:
    """Simulate a step of the cache shard by shard; change `cached`, return the bytes fetched and the shards evicted."""
    fetched = evicted = ahead = 0
    next_use = {shard: use for use, shard in foreseen(manifest, step, epochs=8)}
    for use, shard in foreseen(manifest, step, epochs=2):
        soon, ahead = ahead < limit / 8, ahead + (size[shard] if use > step else 0)
        if shard in cached:
            continue
        later = [other for other in cached if next_use.get(other, np.inf) > use]
        later.sort(key=lambda other: (-next_use.get(other, np.inf), other))
        room, victims = limit - sum(size[other] for other in cached), set[int]()
        while room < size[shard] and soon and later:
            victims.add(later.pop(0))
            room = limit - sum(size[other] for other in cached - victims)
        if room < size[shard]:
            break
        cached -= victims
        evicted += len(victims)
        cached.add(shard)
        fetched += size[shard]
    return fetched, evicted


def test_a_cache_below_the_working_set_is_refused_with_the_number_that_does(
    remote_set: Path, node_folder: Path
) -> None:
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        order = schedule(manifest)
        needed = 0
        for step in range(2 * order.plan.samples // BATCH + 1):  # the last one begins in the second epoch
            in_use = {shard for use, shard in foreseen(manifest, step, epochs=2) if use == step}
            needed = max(needed, int(manifest.shard_bytes[list(in_use)].sum()))
        remedy = f"{needed:,} bytes.*limited to {needed - 1:,}: set data.cache_size={needed} or"
        with pytest.raises(DataError, match=remedy):
            NodeCache(manifest, node_folder, needed - 1, order)
        with closing(NodeCache(manifest, node_folder, needed, order)) as cache:
            cache.advance(0)
            first = {shard for use, shard in foreseen(manifest, 0, epochs=1) if use == 0}
            until(lambda: first <= shards_in(node_folder, manifest))
    with pytest.raises(DataError, match=r"0\.tar: .*; set data\.cache to a folder"):
        NodeCache(manifest, remote_set / "0.tar", PLENTY, order)


def test_data_sets_share_a_limit_and_unused_ones_make_room(tmp_path: Path, remote_set: Path, node_folder: Path) -> None:
    second = make_set(tmp_path / "second", seed=1)
    (node_folder / "notes").mkdir(parents=True)
    kept = node_folder / "notes" / "000001-5000.tar"  # no data set's
    kept.write_bytes(b"mine")
    with http_server(remote_set) as server, http_server(second) as other_server, watching(node_folder) as most:
        manifest, other = Manifest.load(server.url), Manifest.load(other_server.url)
        limit = int(other.shard_bytes.sum()) + 10_000
        with (
            closing(NodeCache(manifest, node_folder, limit, schedule(manifest))) as cache,
            closing(NodeCache(other, node_folder, limit, schedule(other))) as other_cache,
        ):
            cache.advance(0)
            until(lambda: shards_in(node_folder, manifest) == ALL)
            other_cache.advance(0)
            until(lambda: len(fetches(other_server.requests)) > 0)
        with closing(NodeCache(other, node_folder, limit, schedule(other))) as other_cache:
            other_cache.advance(0)
            until(lambda: shards_in(node_folder, other) == ALL)
            assert other_cache.counters()["cache_evictions"] == 0
        assert 0 < len(shards_in(node_folder, manifest)) < SHARDS
        assert max(most) <= limit + len("mine")
        assert_right(node_folder, manifest, remote_set)
        assert_right(node_folder, other, second)
    assert kept.read_bytes() == b"mine"


def test_shards_on_disks_stay_where_they_are(tmp_path: Path, node_folder: Path) -> None:
    remote_set = make_set(tmp_path / "set")
    description = json.loads((remote_set / "dataset.json").read_text())
    description["shards"][2]["name"] = str(tmp_path / "elsewhere.tar")
    (remote_set / "dataset.json").write_text(json.dumps(description))
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        with closing(NodeCache(manifest, node_folder, PLENTY, schedule(manifest), threads=1)) as cache:
            cache.advance(0)
            until(lambda: shards_in(node_folder, manifest) == ALL - {2})
            assert cache.path(2) is None
            assert cache.counters()["cache_errors"] == 0


def test_shards_come_from_s3(remote_set: Path, node_folder: Path, s3: S3) -> None:
    fsspec.filesystem("s3").put(str(remote_set), f"{s3.bucket}/cache", recursive=True)
    manifest = Manifest.load(f"{s3.bucket}/cache")
    with closing(NodeCache(manifest, node_folder, PLENTY, schedule(manifest))) as cache:
        cache.advance(0)
        until(lambda: shards_in(node_folder, manifest) == ALL, seconds=60)
    assert_right(node_folder, manifest, remote_set)

"""The node cache under faults: processes that are killed, servers that fail or stall, disks that are full."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from cache_process import BATCH, schedule
from caching import ALL, PLENTY, SHARDS, assert_right, fetches, foreseen, make_set, shards_in, until, watching
from disks import disk_of
from servers import http_server

from pipeline.data.cache import folder as cache_folder
from pipeline.data.cache import node as cache_module
from pipeline.data.cache.node import NodeCache
from shards.manifest import Manifest

TESTS = Path(__file__).resolve().parents[2]


@contextmanager
def rank(url: str, node_folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a process with a cache that is ready to read."""
    command = [sys.executable, str(TESTS / "cache_process.py"), url, str(node_folder), str(PLENTY)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert process.stdout and process.stdout.readline() == "ready\n"
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def begin(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_of_a_node_fetch_every_shard_once_and_leave_at_once(remote_set: Path, node_folder: Path) -> None:
    with http_server(remote_set) as server, ExitStack() as stack:
        manifest = Manifest.load(server.url)
        server.stall(0.1, times=SHARDS)  # so that each has the time to start what another has started
        ranks = [stack.enter_context(rank(server.url, node_folder)) for _ in range(3)]
        for process in ranks:
            begin(process)
        until(lambda: shards_in(node_folder, manifest) == ALL)
        assert sorted(fetches(server.requests)) == sorted(ALL)
        server.stall(600, match="/7.tar")
        with closing(NodeCache(manifest, node_folder, PLENTY, schedule(manifest))) as cache:
            for process in ranks:  # the last one to be owner dies waiting for a shard
                cache.discard(7)
                process.stdin.close()
                assert process.wait(60) == 0
            cache.advance(0)  # as owner it removes what one that left in the middle of a shard has left behind
            until(lambda: cache.counters()["cache_owners"] == 1)
    assert_right(node_folder, manifest, remote_set)


def test_another_process_takes_over_from_an_owner_killed_in_the_middle_of_a_shard(
    remote_set: Path, node_folder: Path
) -> None:
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        stuck = foreseen(manifest, 0, epochs=2)[0][1]
        server.stall(600, match=f"/{stuck}.tar")
        with rank(server.url, node_folder) as owner, rank(server.url, node_folder) as other:
            begin(owner)
            until(lambda: shards_in(node_folder, manifest) == ALL - {stuck})
            assert len(list(node_folder.glob(f"*/{stuck:06d}-*.partial"))) == 1
            begin(other)
            owner.kill()
            until(lambda: shards_in(node_folder, manifest) == ALL, seconds=30)
            assert_right(node_folder, manifest, remote_set)
        assert sorted(fetches(server.requests)) == sorted([*ALL, stuck])


def test_what_killed_owners_leave_is_used_or_cleared_away(remote_set: Path, node_folder: Path) -> None:
    rng = random.Random(0)
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        server.stall(0.05, times=10**6)
        for _ in range(3):
            enough = len(shards_in(node_folder, manifest)) + rng.randrange(6)
            with rank(server.url, node_folder) as owner:
                begin(owner)
                until(lambda: len(shards_in(node_folder, manifest)) >= enough)  # noqa: B023
                owner.kill()
        survived = shards_in(node_folder, manifest)
        inside = node_folder / manifest.identity[:16]
        torn = min(survived)
        (file,) = inside.glob(f"{torn:06d}-*.tar")
        file.write_bytes(b"torn")
        (inside / "000001-5.0123abcd.partial").write_bytes(b"stale")
        for left in inside.iterdir():
            os.utime(left, (2**33, 2**33))  # the clock was wrong

        server.requests.clear()
        with closing(NodeCache(manifest, node_folder, PLENTY, schedule(manifest))) as cache:
            cache.advance(0)
            until(lambda: shards_in(node_folder, manifest) == ALL)
        assert sorted(fetches(server.requests)) == sorted(ALL - survived | {torn})
    assert_right(node_folder, manifest, remote_set)


def test_a_failing_server_costs_only_the_shards_that_it_does_not_give(
    tmp_path: Path, node_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "_PAUSE", 0.2)
    remote_set = make_set(tmp_path / "set")
    (remote_set / "5.tar").rename(tmp_path / "5.tar")
    (remote_set / "6.tar").write_bytes(b"another file")
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        server.fail(503, times=3, match="/1.tar")
        server.reset(times=2, match="/2.tar")
        server.stall(1, match="/3.tar")
        server.truncate(times=2, match="/4.tar")
        with closing(NodeCache(manifest, node_folder, PLENTY, schedule(manifest), threads=3)) as cache:
            cache.advance(0)
            until(lambda: shards_in(node_folder, manifest) == ALL - {5, 6})
            assert cache.path(5) is None
            assert cache.counters()["cache_errors"] >= 2
            (tmp_path / "5.tar").rename(remote_set / "5.tar")  # it is tried again
            until(lambda: shards_in(node_folder, manifest) == ALL - {6})
        (message,) = [record.getMessage() for record in caplog.records if record.name == "pipeline.data.cache.node"]
        assert f"{node_folder}/{manifest.identity[:16]}: reading continues without" in message
        assert f"{server.url}/" in message
    assert_right(node_folder, manifest, remote_set)


def test_a_store_that_refuses_everything_is_asked_less_and_less(tmp_path: Path, node_folder: Path) -> None:
    remote_set = make_set(tmp_path / "set")
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        for shard in ALL:
            (remote_set / f"{shard}.tar").unlink()
        with closing(NodeCache(manifest, node_folder, PLENTY, schedule(manifest), threads=2)) as cache:
            begun = time.monotonic()
            cache.advance(0)
            until(lambda: cache.counters()["cache_errors"] >= 4)  # 2 at once, and 2 more after a second
            assert time.monotonic() - begun > 1


def test_a_cache_deleted_under_a_run_is_filled_again(
    remote_set: Path, node_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_RESCAN", 0.3)
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        with closing(NodeCache(manifest, node_folder, PLENTY, schedule(manifest))) as cache:
            cache.advance(0)
            for _ in range(2):
                until(lambda: shards_in(node_folder, manifest) == ALL)
                shutil.rmtree(node_folder, ignore_errors=True)  # the cache may fill it again meanwhile
            until(lambda: shards_in(node_folder, manifest) == ALL)
    assert_right(node_folder, manifest, remote_set)


def test_closing_does_not_wait_for_a_stalled_server(remote_set: Path, node_folder: Path) -> None:
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        server.stall(600, times=100)
        cache = NodeCache(manifest, node_folder, PLENTY, schedule(manifest), threads=2)
        cache.advance(0)
        until(lambda: len(fetches(server.requests)) == 2)
        begun = time.monotonic()
        cache.close()
        assert time.monotonic() - begun < 30
        assert [file.name for file in (node_folder / manifest.identity[:16]).iterdir()] == ["owner.lock"]


@pytest.fixture(scope="module")
def paged_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose files take no more than their bytes on a tmpfs."""
    return make_set(tmp_path_factory.mktemp("source") / "set", page=os.sysconf("SC_PAGE_SIZE"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 KB."""
    with disk_of(100 * 1024, tmp_path / "disk") as disk:
        yield disk


def test_a_disk_smaller_than_the_limit_is_not_filled(paged_source: Path, small_disk: Path) -> None:
    with http_server(paged_source) as server:
        manifest = Manifest.load(server.url)
        order = schedule(manifest)
        with (
            watching(small_disk / "cache") as most,
            closing(NodeCache(manifest, small_disk / "cache", None, order)) as cache,
        ):
            (small_disk / "other").write_bytes(bytes(20 * 1024))
            for step in range(0, 2 * order.plan.samples // BATCH):
                cache.advance(step)
                in_use = {shard for use, shard in foreseen(manifest, step, epochs=2) if use == step}
                until(lambda: in_use <= shards_in(small_disk / "cache", manifest))  # noqa: B023
            assert cache.counters()["cache_evictions"] > 0
            until(lambda: max(most) > 60 * 1024)
            assert cache.counters()["cache_errors"] == 0
        assert max(most) < 80 * 1024
        assert_right(small_disk / "cache", manifest, paged_source)


def test_a_full_disk_stops_the_cache_until_there_is_room(
    paged_source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "_PAUSE", 0.2)
    monkeypatch.setattr(cache_folder, "_OF_FREE", 100)  # as with quotas, which no figure of the disk's tells
    node_folder = small_disk / "cache"
    with http_server(paged_source) as server:
        manifest = Manifest.load(server.url)
        with closing(NodeCache(manifest, node_folder, PLENTY, schedule(manifest))) as cache:
            cache.advance(0)
            until(lambda: cache.counters()["cache_errors"] >= 1)
            there = shards_in(node_folder, manifest)
            assert 5 < len(there) < SHARDS
            subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
            until(lambda: shards_in(node_folder, manifest) == ALL)
            assert cache.counters()["cache_evictions"] == 0
        (message,) = [record.getMessage() for record in caplog.records if record.name == "pipeline.data.cache.node"]
        assert "No space left on device" in message
    assert_right(node_folder, manifest, paged_source)


def test_a_discarded_shard_is_fetched_again(
    remote_set: Path, node_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_RESCAN", 0.3)
    with http_server(remote_set) as server:
        manifest = Manifest.load(server.url)
        order = schedule(manifest)
        with (
            closing(NodeCache(manifest, node_folder, PLENTY, order)) as owner,
            closing(NodeCache(manifest, node_folder, PLENTY, order)) as other,
        ):
            owner.advance(0)
            until(lambda: shards_in(node_folder, manifest) == ALL)
            for cache, shard in ((owner, 3), (other, 4)):
                path = cache.path(shard)
                path.write_bytes(bytes(path.stat().st_size))
                cache.discard(shard)
                right = (remote_set / f"{shard}.tar").read_bytes()
                until(lambda: path.exists() and path.read_bytes() == right)  # noqa: B023
            assert [cache.counters()["cache_owners"] for cache in (owner, other)] == [1, 0]
        assert sorted(fetches(server.requests)) == sorted([*ALL, 3, 4])

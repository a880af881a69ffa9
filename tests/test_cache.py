"""The node cache, from real servers, in real processes that are killed: bytes, order, limit, eviction, faults."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
from cache_process import BATCH, schedule
from servers import S3, http_server

from pipeline.data import cache as cache_module
from pipeline.data import cache_folder
from pipeline.data.cache import NodeCache
from pipeline.data.errors import DataError
from shards.manifest import Dataset, Manifest, Shard, write_manifest

TESTS = Path(__file__).resolve().parent
SHARDS = 24
ALL = set(range(SHARDS))
PLENTY = 10**9


def make_set(folder: Path, seed: int = 0, page: int = 1) -> Path:
    """24 shards of 5 to 29 samples and 1 to 8 KB, in multiples of `page` bytes; random, as a cache looks at none."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    listed, columns = [], []
    for index in range(SHARDS):
        count, data = int(rng.integers(5, 30)), rng.bytes(-(-int(rng.integers(1000, 8000)) // page) * page)
        (folder / f"{index}.tar").write_bytes(data)
        listed.append(Shard(f"{index}.tar", count, len(data), hashlib.sha256(data).hexdigest()))
        numbers = {name: [0] * count for name in ("offset", "size", "label", "height", "width", "crc32c")}
        columns.append({"key": [""] * count, "path": [""] * count, **numbers})
    write_manifest(folder / "manifest.parquet", columns)
    identity = hashlib.sha256((folder / "manifest.parquet").read_bytes()).hexdigest()
    samples = sum(shard.samples for shard in listed)
    (folder / "dataset.json").write_text(Dataset(samples, 0, [], listed, identity, 0, 0, None, "").dump())
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("source") / "set")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def shards_in(folder: Path, manifest: Manifest) -> set[int]:
    """The whole shards that lie in the cache, by their names."""
    return {int(file.name.split("-")[0]) for file in (folder / manifest.identity[:16]).glob("*.tar")}


def bytes_in(folder: Path) -> int:
    """What a cache takes by the real sizes of its files, of all data sets."""
    total = 0
    for file in folder.glob("*/*-*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


def assert_right(folder: Path, manifest: Manifest, source: Path) -> None:
    """Every cached shard has the bytes of its source, and nothing else lies about."""
    inside = folder / manifest.identity[:16]
    for shard in shards_in(folder, manifest):
        (file,) = inside.glob(f"{shard:06d}-*")
        assert file.read_bytes() == (source / f"{shard}.tar").read_bytes()
    assert {file.suffix for file in inside.iterdir()} <= {".tar", ".lock"}


def fetches(requests: list[tuple[str, str]]) -> list[int]:
    """The shards that a server was asked for, in order. One request is a whole shard here."""
    return [int(path.split("/")[-1][:-4]) for path, _ in requests if path.endswith(".tar")]


def foreseen(manifest: Manifest, step: int, epochs: int) -> list[tuple[int, int]]:
    """(next use, shard) by going through all the uses of this epoch and those after it."""
    plan = schedule(manifest)
    epoch = step * BATCH // plan.plan.samples
    first: dict[int, int] = {}
    for later in range(epoch, epoch + epochs):
        uses = plan.uses(later)
        for shard, begin, end in zip(*(a.tolist() for a in (uses.shard, uses.first_step, uses.last_step)), strict=True):
            if end >= step:
                first.setdefault(shard, max(begin, step))
    return sorted(((use, shard) for shard, use in first.items()), key=lambda pair: pair[0])


def test_shards_come_whole_in_the_order_of_their_first_use(source: Path, folder: Path) -> None:
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        with closing(NodeCache(manifest, folder, PLENTY, schedule(manifest), threads=1)) as cache:
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
            assert path and path.read_bytes() == (source / "3.tar").read_bytes()
        asked = fetches(server.requests)
    next_use = {shard: use for use, shard in foreseen(manifest, 5, epochs=2)}
    assert sorted(asked) == list(range(SHARDS))
    assert [next_use[shard] for shard in asked] == sorted(next_use.values())
    assert_right(folder, manifest, source)


def test_a_second_epoch_and_a_second_run_fetch_nothing(source: Path, folder: Path) -> None:
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        order = schedule(manifest)
        for run in range(2):
            with closing(NodeCache(manifest, folder, int(manifest.shard_bytes.sum()), order)) as cache:
                for step in range(0, 3 * order.plan.samples // BATCH, 10):
                    cache.advance(step)
                    until(lambda: cache.counters()["cache_shards"] == SHARDS)
                assert cache.counters()["cache_fetched_bytes"] == (0 if run else manifest.shard_bytes.sum())
        assert len(fetches(server.requests)) == SHARDS


@pytest.mark.parametrize(("epochs", "spare"), [(2, 0), (4, 0), (4, 25_000)])
def test_eviction_is_by_next_use_and_keeps_within_the_limit(
    source: Path, folder: Path, epochs: int, spare: int
) -> None:
    """Also of a cache that holds what the first two epochs use at any step, but not all that the third does."""
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        order, size = schedule(manifest), manifest.shard_bytes.tolist()
        limit = max(order.working_set(epoch, manifest.shard_bytes)[0] for epoch in range(epochs)) + spare
        cached: set[int] = set()
        fetched = evicted = 0
        with watching(folder) as most, closing(NodeCache(manifest, folder, limit, order, threads=3)) as cache:
            for step in range(0, 3 * order.plan.samples // BATCH):
                came, went = follow(manifest, step, cached, size, limit)
                fetched, evicted = fetched + came, evicted + went
                cache.advance(step)
                until(lambda: shards_in(folder, manifest) == cached)
                until(lambda: cache.counters()["cache_fetched_bytes"] == fetched)  # noqa: B023
                in_use = {shard for use, shard in foreseen(manifest, step, epochs=2) if use == step}
                assert in_use <= cached or epochs < 3
            assert cache.counters()["cache_evictions"] == evicted > SHARDS
        assert limit / 2 < max(most) <= limit
        assert_right(folder, manifest, source)


def follow(manifest: Manifest, step: int, cached: set[int], size: list[int], limit: int) -> tuple[int, int]:
    """What the cache does at a step, told shard by shard: changes `cached`; the bytes fetched, the shards evicted."""
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


@contextmanager
def watching(folder: Path) -> Iterator[list[int]]:
    """The bytes that a cache takes, looked at all the while."""
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(bytes_in(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_a_cache_below_the_working_set_is_refused_with_the_number_that_does(source: Path, folder: Path) -> None:
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        order = schedule(manifest)
        needed = 0
        for step in range(2 * order.plan.samples // BATCH + 1):  # the last one begins in the second epoch
            in_use = {shard for use, shard in foreseen(manifest, step, epochs=2) if use == step}
            needed = max(needed, int(manifest.shard_bytes[list(in_use)].sum()))
        with pytest.raises(DataError, match=f"{needed:,} bytes.*only {needed - 1:,}: set data.cache_size={needed} or"):
            NodeCache(manifest, folder, needed - 1, order)
        with closing(NodeCache(manifest, folder, needed, order)) as cache:
            cache.advance(0)
            first = {shard for use, shard in foreseen(manifest, 0, epochs=1) if use == 0}
            until(lambda: first <= shards_in(folder, manifest))
    with pytest.raises(DataError, match=r"0\.tar: .*; set data\.cache to a folder"):
        NodeCache(manifest, source / "0.tar", PLENTY, order)


@contextmanager
def rank(url: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process with a cache that is ready to read."""
    command = [sys.executable, str(TESTS / "cache_process.py"), url, str(folder), str(PLENTY)]
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


def test_processes_of_a_node_fetch_every_shard_once_and_leave_at_once(source: Path, folder: Path) -> None:
    with http_server(source) as server, ExitStack() as stack:
        manifest = Manifest.load(server.url)
        server.stall(0.1, times=SHARDS)  # so that each has the time to start what another has started
        ranks = [stack.enter_context(rank(server.url, folder)) for _ in range(3)]
        for process in ranks:
            begin(process)
        until(lambda: shards_in(folder, manifest) == ALL)
        assert sorted(fetches(server.requests)) == sorted(ALL)
        server.stall(600, match="/7.tar")
        with closing(NodeCache(manifest, folder, PLENTY, schedule(manifest))) as cache:
            for process in ranks:  # the last one to be owner dies waiting for a shard
                cache.discard(7)
                process.stdin.close()
                assert process.wait(10) == 0
    assert_right(folder, manifest, source)


def test_another_process_takes_over_from_an_owner_killed_in_the_middle_of_a_shard(source: Path, folder: Path) -> None:
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        stuck = foreseen(manifest, 0, epochs=2)[0][1]
        server.stall(600, match=f"/{stuck}.tar")
        with rank(server.url, folder) as owner, rank(server.url, folder) as other:
            begin(owner)
            until(lambda: shards_in(folder, manifest) == ALL - {stuck})
            assert len(list(folder.glob(f"*/{stuck:06d}-*.partial"))) == 1
            begin(other)
            owner.kill()
            until(lambda: shards_in(folder, manifest) == ALL, seconds=10)
            assert_right(folder, manifest, source)
        assert sorted(fetches(server.requests)) == sorted([*ALL, stuck])


def test_what_killed_owners_leave_is_used_or_cleared_away(source: Path, folder: Path) -> None:
    rng = random.Random(0)
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        server.stall(0.05, times=10**6)
        for _ in range(3):
            enough = len(shards_in(folder, manifest)) + rng.randrange(6)
            with rank(server.url, folder) as owner:
                begin(owner)
                until(lambda: len(shards_in(folder, manifest)) >= enough)  # noqa: B023
                owner.kill()
        survived = shards_in(folder, manifest)
        inside = folder / manifest.identity[:16]
        torn = min(survived)
        (file,) = inside.glob(f"{torn:06d}-*.tar")
        file.write_bytes(b"torn")
        (inside / "000001-5.0123abcd.partial").write_bytes(b"stale")
        for left in inside.iterdir():
            os.utime(left, (2**33, 2**33))  # the clock was wrong

        server.requests.clear()
        with closing(NodeCache(manifest, folder, PLENTY, schedule(manifest))) as cache:
            cache.advance(0)
            until(lambda: shards_in(folder, manifest) == ALL)
        assert sorted(fetches(server.requests)) == sorted(ALL - survived | {torn})
    assert_right(folder, manifest, source)


def test_a_failing_server_costs_only_the_shards_that_it_does_not_give(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "_PAUSE", 0.2)
    source = make_set(tmp_path / "set")
    (source / "5.tar").rename(tmp_path / "5.tar")
    (source / "6.tar").write_bytes(b"another file")
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        server.fail(503, times=3, match="/1.tar")
        server.reset(times=2, match="/2.tar")
        server.stall(1, match="/3.tar")
        server.truncate(times=2, match="/4.tar")
        with closing(NodeCache(manifest, folder, PLENTY, schedule(manifest), threads=3)) as cache:
            cache.advance(0)
            until(lambda: shards_in(folder, manifest) == ALL - {5, 6})
            assert cache.path(5) is None
            assert cache.counters()["cache_errors"] >= 2
            (tmp_path / "5.tar").rename(source / "5.tar")  # it is tried again
            until(lambda: shards_in(folder, manifest) == ALL - {6})
        (message,) = [record.getMessage() for record in caplog.records if record.name == "pipeline.data.cache"]
        assert f"{folder}/{manifest.identity[:16]}: reading goes on without" in message
        assert f"{server.url}/" in message
    assert_right(folder, manifest, source)


def test_a_store_that_refuses_everything_is_asked_less_and_less(tmp_path: Path, folder: Path) -> None:
    source = make_set(tmp_path / "set")
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        for shard in ALL:
            (source / f"{shard}.tar").unlink()
        with closing(NodeCache(manifest, folder, PLENTY, schedule(manifest), threads=2)) as cache:
            begun = time.monotonic()
            cache.advance(0)
            until(lambda: cache.counters()["cache_errors"] >= 4)  # 2 at once, and 2 more after a second
            assert time.monotonic() - begun > 1


def test_a_cache_deleted_under_a_run_is_filled_again(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_RESCAN", 0.3)
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        with closing(NodeCache(manifest, folder, PLENTY, schedule(manifest))) as cache:
            cache.advance(0)
            for _ in range(2):
                until(lambda: shards_in(folder, manifest) == ALL)
                shutil.rmtree(folder, ignore_errors=True)  # the cache may fill it again meanwhile
            until(lambda: shards_in(folder, manifest) == ALL)
    assert_right(folder, manifest, source)


def test_closing_does_not_wait_for_a_stalled_server(source: Path, folder: Path) -> None:
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        server.stall(600, times=100)
        cache = NodeCache(manifest, folder, PLENTY, schedule(manifest), threads=2)
        cache.advance(0)
        until(lambda: len(fetches(server.requests)) == 2)
        begun = time.monotonic()
        cache.close()
        assert time.monotonic() - begun < 2
        assert [file.name for file in (folder / manifest.identity[:16]).iterdir()] == ["owner.lock"]


@pytest.fixture(scope="module")
def paged_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose files take no more than their bytes on a tmpfs."""
    return make_set(tmp_path_factory.mktemp("source") / "set", page=os.sysconf("SC_PAGE_SIZE"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", disk]).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


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
            assert cache.counters()["cache_errors"] == 0
        assert 60 * 1024 < max(most) < 80 * 1024
        assert_right(small_disk / "cache", manifest, paged_source)


def test_a_full_disk_stops_the_cache_until_there_is_room(
    paged_source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "_PAUSE", 0.2)
    monkeypatch.setattr(cache_folder, "_OF_FREE", 100)  # as with quotas, which no figure of the disk's tells
    folder = small_disk / "cache"
    with http_server(paged_source) as server:
        manifest = Manifest.load(server.url)
        with closing(NodeCache(manifest, folder, PLENTY, schedule(manifest))) as cache:
            cache.advance(0)
            until(lambda: cache.counters()["cache_errors"] >= 1)
            there = shards_in(folder, manifest)
            assert 5 < len(there) < SHARDS
            subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
            until(lambda: shards_in(folder, manifest) == ALL)
            assert cache.counters()["cache_evictions"] == 0
        (message,) = [record.getMessage() for record in caplog.records if record.name == "pipeline.data.cache"]
        assert "No space left on device" in message
    assert_right(folder, manifest, paged_source)


def test_a_discarded_shard_is_fetched_again(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_RESCAN", 0.3)
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        order = schedule(manifest)
        with (
            closing(NodeCache(manifest, folder, PLENTY, order)) as owner,
            closing(NodeCache(manifest, folder, PLENTY, order)) as other,
        ):
            owner.advance(0)
            until(lambda: shards_in(folder, manifest) == ALL)
            for cache, shard in ((owner, 3), (other, 4)):
                path = cache.path(shard)
                path.write_bytes(bytes(path.stat().st_size))
                cache.discard(shard)
                right = (source / f"{shard}.tar").read_bytes()
                until(lambda: path.exists() and path.read_bytes() == right)  # noqa: B023
            assert [cache.counters()["cache_owners"] for cache in (owner, other)] == [1, 0]
        assert sorted(fetches(server.requests)) == sorted([*ALL, 3, 4])


def test_data_sets_share_a_limit_and_unused_ones_make_room(tmp_path: Path, source: Path, folder: Path) -> None:
    second = make_set(tmp_path / "second", seed=1)
    (folder / "notes").mkdir(parents=True)
    kept = folder / "notes" / "000001-5000.tar"  # no data set's
    kept.write_bytes(b"mine")
    with http_server(source) as server, http_server(second) as other_server, watching(folder) as most:
        manifest, other = Manifest.load(server.url), Manifest.load(other_server.url)
        limit = int(other.shard_bytes.sum()) + 10_000
        with (
            closing(NodeCache(manifest, folder, limit, schedule(manifest))) as cache,
            closing(NodeCache(other, folder, limit, schedule(other))) as other_cache,
        ):
            cache.advance(0)
            until(lambda: shards_in(folder, manifest) == ALL)
            other_cache.advance(0)
            until(lambda: len(fetches(other_server.requests)) > 0)
        with closing(NodeCache(other, folder, limit, schedule(other))) as other_cache:
            other_cache.advance(0)
            until(lambda: shards_in(folder, other) == ALL)
            assert other_cache.counters()["cache_evictions"] == 0
        assert 0 < len(shards_in(folder, manifest)) < SHARDS
        assert max(most) <= limit + len("mine")
        assert_right(folder, manifest, source)
        assert_right(folder, other, second)
    assert kept.read_bytes() == b"mine"


def test_shards_on_disks_stay_where_they_are(tmp_path: Path, folder: Path) -> None:
    source = make_set(tmp_path / "set")
    description = json.loads((source / "dataset.json").read_text())
    description["shards"][2]["name"] = str(tmp_path / "elsewhere.tar")
    (source / "dataset.json").write_text(json.dumps(description))
    with http_server(source) as server:
        manifest = Manifest.load(server.url)
        with closing(NodeCache(manifest, folder, PLENTY, schedule(manifest), threads=1)) as cache:
            cache.advance(0)
            until(lambda: shards_in(folder, manifest) == ALL - {2})
            assert cache.path(2) is None
            assert cache.counters()["cache_errors"] == 0


def test_shards_come_from_s3(source: Path, folder: Path, s3: S3) -> None:
    fsspec.filesystem("s3").put(str(source), f"{s3.bucket}/cache", recursive=True)
    manifest = Manifest.load(f"{s3.bucket}/cache")
    with closing(NodeCache(manifest, folder, PLENTY, schedule(manifest))) as cache:
        cache.advance(0)
        until(lambda: shards_in(folder, manifest) == ALL, seconds=60)
    assert_right(folder, manifest, source)

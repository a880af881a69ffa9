"""Web servers that answer otherwise than they were asked: an error that says so, at once and in little memory."""

import errno
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from making_images import make_tree
from servers import HttpServer, http_server

from pipeline.data.errors import DataError
from pipeline.data.reader import Reader
from shards import storage
from shards.build import build
from shards.files import ShardError
from shards.index import index_tars
from shards.manifest import Dataset, Manifest
from shards.preview import write_preview
from shards.storage import StorageError, Traffic, read
from shards.verify import verify

NO_RANGES = "its server ignores ranges; use one that does not"
REDIRECTS = "its server redirects in circles, or away from the web; use one that does not"
MOST = 8 * 2**20  # bytes that a test may hold at once
WAYS: dict[str, Callable[[HttpServer], None]] = {
    "endless": lambda server: server.endless(100, match="large"),
    "overstated": lambda server: server.overstate(100, match="large"),
    "compressed": lambda server: server.compress(100, match="large"),
    "without ranges": lambda server: server.ignore_ranges(),
    "without ranges, slowly": lambda server: server.ignore_ranges(hold=True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 40 MB, and a data set `set` of 12 images in four shards."""
    folder = tmp_path_factory.mktemp("served")
    with (folder / "large").open("wb") as file:
        file.truncate(40 * 2**20)
    build(make_tree(folder / "source", 12), folder / "set", samples_per_shard=3, workers=1)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[HttpServer]:
    with http_server(folder) as server:
        yield server


def refused(call: Callable[[], object]) -> StorageError:
    """The error that the call ends with, at once and without much memory."""
    begun = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(StorageError) as caught:
            call()
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begun < 5.0 and not caught.value.transient
    return caught.value


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_the_part_that_was_asked_for_is_never_held(server: HttpServer, way: str) -> None:
    WAYS[way](server)
    traffic = Traffic()
    error = refused(lambda: read(f"{server.url}/large?token=x", 1_000_000, 2_000, traffic=traffic))
    assert error.strerror == {
        "endless": "its server sends more than 2,000 bytes",
        "overstated": "its server sends more than 2,000 bytes",
        "compressed": "its server compresses it; use one that does not",
    }.get(way, NO_RANGES)
    assert error.filename == f"{server.url}/large"
    assert (error.errno == errno.EOPNOTSUPP) == (error.strerror == NO_RANGES)
    assert (traffic.requests, traffic.failures, traffic.retries) == (1, 1, 0)
    if way != "without ranges, slowly":
        assert read(f"{server.url}/set/dataset.json") == (server.folder / "set/dataset.json").read_bytes()


@pytest.mark.parametrize("way", ["endless", "compressed", "as it is"])
def test_a_whole_file_ends_at_a_ceiling(server: HttpServer, way: str) -> None:
    WAYS.get(way, lambda server: None)(server)
    error = refused(lambda: read(f"{server.url}/large", at_most=2**20))
    assert error.strerror == {"compressed": "its server compresses it; use one that does not"}.get(
        way, "its server sends more than 1,048,576 bytes"
    )
    assert (error.errno == errno.EFBIG) == (way != "compressed")


def test_many_requests_at_once_hold_no_whole_files(server: HttpServer) -> None:
    server.ignore_ranges()
    with ThreadPoolExecutor(64) as pool:

        def ask(at: int) -> str | None:
            with pytest.raises(StorageError) as caught:
                read(f"{server.url}/large", at, 2_000)
            return caught.value.strerror

        tracemalloc.start()
        assert set(pool.map(ask, range(0, 64_000, 1_000))) == {NO_RANGES}
        assert tracemalloc.get_traced_memory()[1] < 8 * MOST  # with what the server itself has on the way
        tracemalloc.stop()


def test_a_file_longer_than_its_ceiling_is_refused_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    for file in (str(folder / "large"), f"file://{folder}/large"):
        error = refused(lambda file=file: read(file, at_most=2**20))
        assert (error.errno, error.strerror) == (errno.EFBIG, "has more than 1,048,576 bytes")
        assert len(read(file, at_most=40 * 2**20)) == 40 * 2**20
        with pytest.raises(OSError, match="cannot be read at once") as caught:
            read(file, 0, 2**40)
        assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data://x", "{}/large"])
def test_a_web_server_sends_nobody_elsewhere_but_to_the_web(server: HttpServer, location: str) -> None:
    server.redirect(location.format(server.url), times=100, match="/set")
    begun = time.monotonic()
    if location.startswith("{}"):
        assert read(f"{server.url}/set/x", 5, 7) == bytes(7)
        return
    for call in (lambda: read(f"{server.url}/set/x"), lambda: storage.size_of(f"{server.url}/set/x")):
        with pytest.raises(StorageError) as caught:
            call()
        assert (caught.value.transient, caught.value.strerror) == (False, REDIRECTS)
    assert time.monotonic() - begun < 5.0


def test_a_circle_of_redirects_ends(server: HttpServer) -> None:
    server.redirect(f"{server.url}/set/x", times=1000, match="/set")
    assert refused(lambda: read(f"{server.url}/set/x")).strerror == REDIRECTS


def test_a_time_out_is_called_one(server: HttpServer) -> None:
    server.stall(60, times=100)
    with pytest.raises(StorageError) as caught:
        read(f"{server.url}/set/dataset.json", deadline=1.0)
    assert caught.value.transient and caught.value.strerror == "timed out; tried for 1 s"


def test_a_server_without_ranges_is_named_when_a_data_set_is_opened(server: HttpServer, tmp_path: Path) -> None:
    root = f"{server.url}/set"
    index_tars([f"{root}/shard-000000.tar"], tmp_path / "indexed", workers=1)
    there, indexed = Manifest.load(root), Manifest.load(tmp_path / "indexed")
    server.ignore_ranges()
    opened: list[Callable[[], object]] = [
        lambda: Dataset.load(root),
        lambda: Manifest.load(root),
        lambda: verify(root),
        lambda: write_preview(root, tmp_path / "page.html"),
        lambda: index_tars([f"{root}/shard-000001.tar"], tmp_path / "more", workers=1),
        lambda: Reader(there),
        lambda: Reader(indexed),
    ]
    for call in opened:
        begun = time.monotonic()
        with pytest.raises((ShardError, DataError)) as caught:
            call()
        assert NO_RANGES in str(caught.value) and "\n" not in str(caught.value)
        assert time.monotonic() - begun < 5.0


def test_a_server_that_loses_its_ranges_later_costs_samples_that_say_why(server: HttpServer) -> None:
    manifest = Manifest.load(f"{server.url}/set")
    reader = Reader(manifest)
    ids = np.arange(len(manifest))
    assert not any(isinstance(sample, str) for sample in reader.submit(ids).result())
    server.ignore_ranges()
    for sample, reason in enumerate(reader.submit(ids).result()):
        assert reason == f"{manifest.shard_location(manifest.shard[sample])}: {NO_RANGES}"


def test_one_missing_shard_is_no_reason_not_to_begin(server: HttpServer, folder: Path) -> None:
    manifest = Manifest.load(f"{server.url}/set")
    server.fail(404, times=100, match="shard-000000.tar")
    samples = Reader(manifest).submit(np.arange(len(manifest))).result()
    assert [isinstance(sample, str) for sample in samples] == (manifest.shard == 0).tolist()


def test_a_web_server_lists_nothing_and_takes_nothing(server: HttpServer, folder: Path, tmp_path: Path) -> None:
    assert verify(f"{server.url}/set") == []
    with pytest.raises(
        ShardError, match=r"/out: is on a web server, to which no files can be written; give a folder"
    ) as caught:
        build(folder / "source", f"{server.url}/out", workers=1)
    assert "\n" not in str(caught.value)


def test_a_file_larger_than_the_disk_is_not_fetched(
    server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="No space left"):
        storage.download(f"{server.url}/large", tmp_path / "copy")
    assert server.sent == 0

"""Requests against real servers whose faults are scripted: the right bytes, or one right error in time."""

import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from servers import S3, HttpServer, http_server

from shards import storage
from shards.remote import request
from shards.storage import StorageError, Traffic, read

SECRET = "not-for-your-eyes"
DATA = np.random.default_rng(0).bytes(100_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "data").write_bytes(DATA)
    (folder / "large").write_bytes(np.random.default_rng(1).bytes(20 * 2**20 + 5))
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[HttpServer]:
    with http_server(folder) as server:
        yield server


def given_up(call: Callable[[], object], within: float) -> StorageError:
    """The error that the call ends with in time; nothing that is shown of it tells a secret."""
    begun = time.monotonic()
    with pytest.raises(StorageError) as caught:
        call()
    assert time.monotonic() - begun < within
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in shown
    return caught.value


PASSING: dict[str, Callable[[HttpServer], None]] = {
    "503": lambda server: server.fail(503, times=2),
    "500": lambda server: server.fail(500, times=2),
    "429": lambda server: server.fail(429, times=2),
    "reset": lambda server: server.reset(times=2),
    "stall": lambda server: server.stall(60, times=2),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(server: HttpServer, fault: str) -> None:
    PASSING[fault](server)
    traffic = Traffic()
    assert read(f"{server.url}/data", 1_000, 50_000, traffic=traffic, deadline=16.0) == DATA[1_000:51_000]
    counted = traffic.snapshot()
    assert counted.pop("seconds") > (8.0 if fault == "stall" else 0.0)  # two attempts of a quarter of the deadline
    assert counted == {"requests": 3, "retries": 2, "failures": 0, "bytes": 50_000}
    assert server.requests == [("/data", "bytes=1000-50999")] * 3


@pytest.mark.parametrize(("status", "why"), [(503, "503 Service Unavailable; tried for 1 s"), (403, "403 Forbidden")])
def test_the_reason_is_not_that_the_deadline_cut_an_attempt_short(
    status: int, why: str, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is one also then."""
    now, limits = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def fail(filesystem: object, method: str, limit: float, *arguments: object, **options: object) -> None:
        limits.append(limit)
        if limit < 0.25 and status == 503:
            raise TimeoutError
        error = OSError("no")
        error.status = 503 if limit == 0.25 else status  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(request, "_call", fail)
    monkeypatch.setattr(request, "_JITTER", SimpleNamespace(uniform=lambda *_: 0.3))
    monkeypatch.setattr(request, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    error = given_up(lambda: read(f"{server.url}/data", deadline=1.0), within=20.0)
    assert error.strerror == why and limits == [0.25, 0.25, 0.25, pytest.approx(0.1)]


@pytest.mark.parametrize("fault", PASSING)
def test_an_outage_is_given_up_at_the_deadline(server: HttpServer, fault: str) -> None:
    server.fail(503, times=1)
    for _ in range(100):
        PASSING[fault](server)
    traffic = Traffic()
    error = given_up(lambda: read(f"{server.url}/data?sig={SECRET}", traffic=traffic, deadline=4.0), within=20.0)
    assert error.transient
    assert error.filename == f"{server.url}/data"
    assert error.strerror.endswith("; tried for 4 s")
    assert (traffic.failures, traffic.retries, traffic.bytes) == (1, traffic.requests - 1, 0)
    assert traffic.requests >= len(server.requests) >= 2  # one may be cut off before it is heard


def test_a_server_that_is_down_or_has_no_name_is_an_outage(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for host in (f"127.0.0.1:{port}", "host.invalid"):
        assert given_up(lambda host=host: read(f"http://{host}/a?sig={SECRET}", deadline=1.0), within=20.0).transient
        download = partial(storage.download, f"http://{host}/a?sig={SECRET}", tmp_path / "copy", deadline=1.0)
        assert given_up(download, within=20.0).transient


def test_a_refusal_is_final_at_once(server: HttpServer) -> None:
    for status, what in ((403, "403 Forbidden"), (404, "404 Not Found|not found"), (410, "410 Gone")):
        server.fail(status)
        error = given_up(lambda: read(f"{server.url}/data?sig={SECRET}", deadline=30.0), within=5.0)
        assert not error.transient
        assert error.strerror in what.split("|")
    assert not given_up(lambda: read(f"{server.url}/gone"), within=5.0).transient
    assert not given_up(lambda: read(f"{server.url}/data", 200_000, 5), within=5.0).transient
    assert len(server.requests) == 5


def test_other_than_the_size_asked_for_is_refused_and_says_why(server: HttpServer, folder: Path) -> None:
    server.truncate()
    error = given_up(lambda: read(f"{server.url}/data", 0, 1_000), within=5.0)
    assert (error.transient, error.strerror) == (False, "500 bytes were received instead of 1000")
    assert not given_up(lambda: read(f"{server.url}/data", len(DATA) - 5, 10), within=5.0).transient
    assert given_up(lambda: read(str(folder / "data"), len(DATA) - 5, 10), within=5.0).strerror == (
        "5 bytes were received instead of 10"
    )


@pytest.mark.parametrize("url", ["http://me:{}@127.0.0.1/a", "https://{}@h/a", "s3://key:{}@bucket/a"])
def test_a_password_in_a_url_is_refused(url: str) -> None:
    url = url.format(SECRET)
    error = given_up(lambda: read(url), within=5.0)
    assert not error.transient
    assert "credentials come from the environment" in error.strerror
    assert SECRET not in (storage.why_unsupported(url) or "")


def test_what_is_shown_of_a_url() -> None:
    assert storage.printable_url("s3://bucket/a/b.tar") == "s3://bucket/a/b.tar"
    assert storage.printable_url("/a file?.tar") == "/a file?.tar"
    assert storage.printable_url("https://me:pass@word@host:80/a/b.tar?sig=x&t=1#top") == "https://host:80/a/b.tar"
    assert storage.printable_url("at 'https://t@h/a?b=c' and s3://k:s@b/x.") == "at 'https://h/a' and s3://b/x."


def test_jumps_of_the_clock_change_nothing(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(lambda: -1, 0)
    monkeypatch.setattr(time, "time", lambda: next(jumps) * np.random.default_rng().uniform(0, 1e9))
    server.fail(times=2)
    assert read(f"{server.url}/data", 0, 10, deadline=8.0) == DATA[:10]
    server.fail(times=100)
    assert given_up(lambda: read(f"{server.url}/data", deadline=1.0), within=20.0).transient


def test_a_download_repeats_only_the_range_that_failed(server: HttpServer, folder: Path, tmp_path: Path) -> None:
    size = 20 * 2**20 + 5
    server.reset(times=2, match="large")
    traffic = Traffic()
    storage.download(f"{server.url}/large", tmp_path / "copy", size=size, traffic=traffic)
    assert (tmp_path / "copy").read_bytes() == (folder / "large").read_bytes()
    ranges = [f"bytes={start}-{min(start + 8 * 2**20, size) - 1}" for start in range(0, size, 8 * 2**20)]
    assert server.requests == [("/large", part) for part in [ranges[0], ranges[0], *ranges]]
    counted = traffic.snapshot()
    assert (counted["bytes"], counted["retries"], counted["failures"]) == (size, 2, 0)

    error = given_up(lambda: storage.download(f"{server.url}/large", tmp_path / "copy", size=size + 1), within=5.0)
    assert (error.transient, error.strerror) == (False, f"has {size} bytes instead of {size + 1}")
    with storage.opened(f"{server.url}/large") as remote:
        remote.seek(-7, os.SEEK_END)
        assert remote.read(100) == (folder / "large").read_bytes()[-7:]


def test_threads_share_connections_and_counters(server: HttpServer) -> None:
    traffic = Traffic()
    server.fail(times=5)
    with ThreadPoolExecutor(16) as pool:
        parts = pool.map(lambda at: read(f"{server.url}/data", at, 100, traffic=traffic), range(0, 40_000, 100))
        assert b"".join(parts) == DATA[:40_000]
    counted = traffic.snapshot()
    del counted["seconds"]
    assert counted == {"requests": 405, "retries": 5, "failures": 0, "bytes": 40_000}
    assert server.sent == 40_000


def test_an_error_passes_between_processes(server: HttpServer) -> None:
    server.fail(times=10)
    error = given_up(lambda: read(f"{server.url}/data?sig={SECRET}", deadline=0.5), within=20.0)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.transient, copy.filename) == (str(error), True, f"{server.url}/data")


def test_s3_keeps_files_and_reads_parts_of_them(s3: S3, folder: Path, tmp_path: Path) -> None:
    root = f"{s3.bucket}/storage"
    assert storage.listing(root) == {}
    for name in ("data", "large"):
        storage.upload(folder / name, storage.join(root, name))
    storage.upload(folder / "data", f"{root}/below/data")
    large = (folder / "large").read_bytes()
    assert storage.listing(root) == {"data": len(DATA), "large": len(large)}
    assert read(f"{root}/data") == DATA
    assert read(f"{root}/large", 9_000_000, 12_345) == large[9_000_000:9_012_345]
    storage.download(f"{root}/large", tmp_path / "copy", size=len(large))
    assert (tmp_path / "copy").read_bytes() == large
    assert (storage.size_of(f"{root}/data"), storage.size_of(f"{root}/gone")) == (len(DATA), None)
    for refused in (lambda: read(f"{root}/gone"), lambda: read(f"{root}/data", len(DATA) - 5, 10)):
        assert not given_up(refused, within=5.0).transient
    storage.delete(root)
    storage.delete(root)
    assert storage.listing(root) == {}


def test_wrong_keys_are_a_refusal(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = fsspec.get_filesystem_class("s3")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    filesystem.clear_instance_cache()
    error = given_up(lambda: read(f"{s3.bucket}/data"), within=10.0)
    assert (error.transient, error.strerror) == (False, "403 Forbidden")
    monkeypatch.undo()
    filesystem.clear_instance_cache()
    assert storage.listing(f"{s3.bucket}/nothing") == {}


def test_a_local_file_needs_no_store(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert (read(str(tmp_path / "a")), read(str(tmp_path / "a"), 3, 4)) == (b"0123456789", b"3456")
    assert storage.listing(str(tmp_path)) == {"a": 10}
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "b"), 0, 1)
    assert storage.join(tmp_path, "a") == str(tmp_path / "a")
    assert storage.join("s3://bucket/set", "x.tar") == "s3://bucket/set/x.tar"
    assert storage.join("s3://bucket/set", "https://h/x.tar") == "https://h/x.tar"
    assert storage.join("/set", "/elsewhere/x.tar") == "/elsewhere/x.tar"
    assert storage.join("http://h/set", "/else where/x.tar") == "/else where/x.tar"
    assert storage.join("http://h/set", "a/#1 50%?\udcff.tar") == "http://h/set/a/%231%2050%25%3F%FF.tar"
    assert storage.join("s3://bucket/set", "a/#1 50%?.tar") == "s3://bucket/set/a/#1 50%?.tar"

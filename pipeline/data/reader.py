"""Encoded images by sample id, read from the shards at the offsets the manifest gives and checked on the way.

A sample of a remote shard comes from the node's cache if the shard is there, and otherwise by a range request of its
own: nobody ever waits for a whole shard, so the first batch comes at once and a cache cannot hold up a run.
"""

import errno
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.data.cache.node import NodeCache
from pipeline.data.errors import DataError
from shards.files import open_regular, read_at
from shards.manifest import Manifest
from shards.remote.urls import is_url
from shards.storage import DEADLINE, StorageError, Traffic, printable_url, read, refuse_without_ranges

Encoded = NDArray[np.uint8]
Sample = Encoded | str  # the bytes of an image, or why it cannot be had

TIMEOUT = 600  # seconds a batch may take, beyond the deadline of its requests
_OPEN_SHARDS = 256  # descriptors kept a process; the usual limit for all files is 1,024
_PIECE = 8  # samples that a thread reads one after the other


class Reading:
    """Samples on their way."""

    def __init__(self, pieces: list["Future[list[Sample]]"], timeout: float) -> None:
        self._pieces, self._timeout = pieces, timeout

    def result(self) -> list[Sample]:
        """Wait for them: for each the encoded image, uint8 (bytes,), or the reason why it cannot be had.

        Raises:
            DataError: the storage is out of reach, or hangs.
        """
        try:
            end = time.monotonic() + self._timeout
            return [sample for piece in self._pieces for sample in piece.result(max(0, end - time.monotonic()))]
        except TimeoutError:
            raise DataError(
                f"reading a batch took more than {self._timeout:g} s: the storage hangs; mend it and start again"
            ) from None


class Reader:
    """Reads samples with a pool of threads.

    Args:
        manifest: a data set, its shards on disks or behind URLs.
        threads: reads from disks under way at once.
        requests: the same of remote storage.
        deadline: seconds until such a request is given up, with all its retries.
        cache: where the node keeps remote shards.
        traffic: counts the requests.

    Raises:
        DataError: the shards are on a web server that ignores ranges, or that is out of reach.
    """

    def __init__(
        self,
        manifest: Manifest,
        threads: int = 4,
        requests: int = 64,
        deadline: float = DEADLINE,
        cache: NodeCache | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._manifest, self._cache, self._deadline = manifest, cache, deadline
        self._locations = [manifest.shard_location(shard) for shard in range(len(manifest.counts))]
        self._remote = manifest.remote
        self._pool = ThreadPoolExecutor(requests if self._remote else threads, thread_name_prefix="reader")
        self._open = lru_cache(_OPEN_SHARDS)(_OpenFile)
        self._traffic = Traffic() if traffic is None else traffic
        self._cached = _Counter()
        self._refuse_without_ranges()

    def _refuse_without_ranges(self) -> None:
        """Say at the start what every sample would say: ask for a byte of the first shard of a web server."""
        shard = next((shard for shard, location in enumerate(self._locations) if is_url(location)), None)
        if shard is None:
            return
        location = printable_url(self._locations[shard])
        try:
            refuse_without_ranges(self._locations[shard], traffic=self._traffic, deadline=self._deadline)
        except StorageError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise DataError(f"{location}: {error.strerror}") from None
            if error.transient:
                raise _out_of_reach(location, error) from None
            # else it is one shard, whose samples are bad

    def submit(self, ids: NDArray[np.int64]) -> Reading:
        """Start reading samples, in the order of `ids`."""
        piece = 1 if self._remote else _PIECE
        starts = range(0, len(ids), piece)
        return Reading(
            [self._pool.submit(self._read, ids[start : start + piece]) for start in starts], self._deadline + TIMEOUT
        )

    def counters(self) -> dict[str, float]:
        """What was asked of remote storage so far, and how many samples the cache had; empty for local shards."""
        return self._traffic.snapshot() | {"samples_from_cache": self._cached.value} if self._remote else {}

    def _read(self, ids: NDArray[np.int64]) -> list[Sample]:
        manifest = self._manifest
        columns = (manifest.shard, manifest.offset, manifest.size, manifest.crc32c)
        samples = []
        for shard, *place in zip(*(column[ids].tolist() for column in columns), strict=True):
            url = is_url(self._locations[shard])
            samples.append(self._from_url(shard, *place) if url else self._from_disk(shard, *place))
        return samples

    def _from_disk(self, shard: int, offset: int, size: int, crc32c: int) -> Sample:
        location = self._locations[shard]
        try:
            return _checked(self._open(location).read(size, offset), size, crc32c, location)
        except OSError as error:
            return f"{location}: {error.strerror or error}"

    def _from_url(self, shard: int, offset: int, size: int, crc32c: int) -> Sample:
        torn = False
        path = self._cache.path(shard) if self._cache else None
        if path:
            # Not kept open: an evicted shard has to give its room back
            with suppress(OSError):  # evicted a moment ago
                sample = _checked(_OpenFile(str(path)).read(size, offset), size, crc32c, str(path))
                if not isinstance(sample, str):
                    self._cached.add(1)
                    return sample
                torn = True
        sample = self._requested(self._locations[shard], offset, size, crc32c)
        if self._cache and torn and not isinstance(sample, str):  # or else the shard is torn at its source
            self._cache.discard(shard)
        return sample

    def _requested(self, url: str, offset: int, size: int, crc32c: int) -> Sample:
        location = printable_url(url)
        try:
            for _ in range(2):  # bits may have flipped on the way
                data = read(url, offset, size, traffic=self._traffic, deadline=self._deadline)
                sample = _checked(data, size, crc32c, location)
                if not isinstance(sample, str):
                    break
            return sample
        except StorageError as error:
            if not error.transient:
                return f"{location}: {error.strerror}"
            raise _out_of_reach(location, error) from error


def _out_of_reach(location: str, error: StorageError) -> DataError:
    return DataError(
        f"{location}: {error.strerror}; the storage is out of reach: start again once it is back, "
        "and the run resumes from its last checkpoint"
    )


def _checked(data: bytes, size: int, crc32c: int, location: str) -> Sample:
    if len(data) != size:
        return f"{location}: ends inside the sample"
    if google_crc32c.value(data) != crc32c:
        return f"{location}: the sample does not match its checksum"
    return np.frombuffer(data, dtype=np.uint8)


class _Counter:
    """A number that threads may add to."""

    def __init__(self) -> None:
        self.value, self._lock = 0, threading.Lock()

    def add(self, more: int) -> None:
        with self._lock:
            self.value += more


class _OpenFile:
    """An open file that closes itself once nobody reads from it and the cache has let go of it."""

    def __init__(self, path: str) -> None:
        self._file = open_regular(path)

    def read(self, size: int, offset: int) -> bytes:
        return read_at(self._file, offset, size)

    def __del__(self) -> None:
        with suppress(AttributeError):  # of a file that could not be opened
            self._file.close()

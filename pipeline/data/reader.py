"""Read encoded samples by id, at the offsets in the manifest, and verify their checksums.

A sample of a remote shard is read from the node's cache if the shard is there, and otherwise by a separate range
request: nothing ever waits for a whole shard, so the first batch is fast and a cache cannot block a run. From videos
that are stored as JPEGs, only the frames of clips are read.
"""

import errno
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cache.node import NodeCache
from pipeline.data.clips import Frames
from pipeline.data.errors import DataError
from pipeline.data.pieces import Encoded as Encoded
from pipeline.data.pieces import Piece, gather
from pipeline.data.pieces import Sample as Sample
from shards.files import open_regular, read_at
from shards.manifest import Manifest
from shards.remote.urls import is_url
from shards.storage import DEADLINE, StorageError, Traffic, printable_url, read, refuse_without_ranges

TIMEOUT = 600  # seconds that a batch may take beyond the deadline of its requests
_OPEN_SHARDS = 256  # open files per process; the usual limit is 1,024
_AT_ONCE = 8  # samples that a thread reads in sequence
_GAP = 2**16  # bytes between frames that are read, not skipped: disks read about as much ahead anyway
_REMOTE_GAP = 2**18  # the same for a store, where a request takes as long as reading more bytes than these


class Reading:
    """Samples being read."""

    def __init__(self, parts: list["Future[list[Sample]]"], timeout: float) -> None:
        self._parts, self._timeout = parts, timeout

    def result(self) -> list[Sample]:
        """Wait for the samples, and return each as uint8 (bytes,), or the reason why it cannot be read.

        Raises:
            DataError: the storage is unreachable, or hangs.
        """
        try:
            end = time.monotonic() + self._timeout
            return [sample for part in self._parts for sample in part.result(max(0, end - time.monotonic()))]
        except TimeoutError:
            raise DataError(
                f"reading a batch took more than {self._timeout:g} s: the storage hangs; fix it and start again"
            ) from None


class Reader:
    """Reads samples with a pool of threads.

    Args:
        manifest: a data set, its shards on disks or behind URLs.
        threads: concurrent reads from disks.
        requests: concurrent requests to remote storage.
        deadline: seconds until such a request is given up, with all its retries.
        cache: the node's cache of remote shards.
        traffic: counts the requests.

    Raises:
        DataError: the shards are on a web server that ignores ranges, or that is unreachable.
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
        self._jpegs = manifest.video.jpegs if manifest.video is not None else None
        self._locations = [manifest.shard_location(shard) for shard in range(len(manifest.counts))]
        self._remote = manifest.remote
        self._pool = ThreadPoolExecutor(requests if self._remote else threads, thread_name_prefix="reader")
        self._open = lru_cache(_OPEN_SHARDS)(_OpenFile)
        self._traffic = Traffic() if traffic is None else traffic
        self._cached = _Counter()
        self._refuse_without_ranges()

    def _refuse_without_ranges(self) -> None:
        """Fail at the start instead of for every sample: request a byte of the first shard on a web server."""
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
            # else the problem is one shard, whose samples are bad

    def submit(self, ids: NDArray[np.int64], frames: Frames | None = None) -> Reading:
        """Start reading samples, in the order of `ids`.

        Args:
            ids: (m,).
            frames: frames of the clips, (n, T), those of a sample in a row. From videos that are stored as JPEGs, only
            these frames are read, each once and in ascending order; None: whole files are read.
        """
        clips = [None] * len(ids) if frames is None or self._jpegs is None else list(frames.reshape(len(ids), -1))
        samples = list(zip(ids.tolist(), clips, strict=True))
        at_once = 1 if self._remote else _AT_ONCE
        parts = [samples[start : start + at_once] for start in range(0, len(ids), at_once)]
        return Reading([self._pool.submit(self._read, part) for part in parts], self._deadline + TIMEOUT)

    def counters(self) -> dict[str, float]:
        """Return the requests to remote storage so far, and the samples found in the cache; empty for local shards."""
        return self._traffic.snapshot() | {"samples_from_cache": self._cached.value} if self._remote else {}

    def _read(self, samples: list[tuple[int, Frames | None]]) -> list[Sample]:
        read = []
        for sample, frames in samples:
            shard = int(self._manifest.shard[sample])
            from_where = self._from_url if is_url(self._locations[shard]) else self._from_disk
            read.append(from_where(shard, self._pieces(sample, frames)))
        return read

    def _pieces(self, sample: int, frames: Frames | None) -> list[Piece]:
        """Return the pieces to read of a sample: its file, or some of its frames."""
        manifest = self._manifest
        offset = int(manifest.offset[sample])
        if frames is None or self._jpegs is None:
            return [Piece(offset, int(manifest.size[sample]), int(manifest.crc32c[sample]))]
        wanted = np.unique(frames)
        places = zip(wanted.tolist(), self._jpegs.places(sample, wanted), strict=True)
        return [Piece(offset + start, size, crc32c, f"frame {frame}") for frame, (start, size, crc32c) in places]

    def _from_disk(self, shard: int, pieces: list[Piece]) -> Sample:
        location = self._locations[shard]
        try:
            return gather(self._open(location).read, pieces, _GAP, location)
        except OSError as error:
            return f"{location}: {error.strerror or error}"

    def _from_url(self, shard: int, pieces: list[Piece]) -> Sample:
        torn = False
        path = self._cache.path(shard) if self._cache else None
        if path:
            # Not kept open, so that an evicted shard frees its space
            with suppress(OSError):  # evicted a moment ago
                sample = gather(_OpenFile(str(path)).read, pieces, _GAP, str(path))
                if not isinstance(sample, str):
                    self._cached.add(1)
                    return sample
                torn = True
        sample = self._requested(self._locations[shard], pieces)
        if self._cache and torn and not isinstance(sample, str):  # else the shard is damaged at its source
            self._cache.discard(shard)
        return sample

    def _requested(self, url: str, pieces: list[Piece]) -> Sample:
        location = printable_url(url)

        def request(offset: int, size: int) -> bytes:
            return read(url, offset, size, traffic=self._traffic, deadline=self._deadline)

        try:
            for _ in range(2):  # bits may have flipped in transit
                sample = gather(request, pieces, _REMOTE_GAP, location)
                if not isinstance(sample, str):
                    break
            return sample
        except StorageError as error:
            if not error.transient:
                return f"{location}: {error.strerror}"
            raise _out_of_reach(location, error) from error


def _out_of_reach(location: str, error: StorageError) -> DataError:
    return DataError(
        f"{location}: {error.strerror}; the storage is unreachable: start again once it is back, "
        "and the run resumes from its last checkpoint"
    )


class _Counter:
    """A thread-safe counter."""

    def __init__(self) -> None:
        self.value, self._lock = 0, threading.Lock()

    def add(self, more: int) -> None:
        with self._lock:
            self.value += more


class _OpenFile:
    """An open file that closes itself once nothing reads from it and it is no longer cached."""

    def __init__(self, path: str) -> None:
        self._file = open_regular(path)

    def read(self, offset: int, size: int) -> bytes:
        return read_at(self._file, offset, size)

    def __del__(self) -> None:
        with suppress(AttributeError):  # the file could not be opened
            self._file.close()

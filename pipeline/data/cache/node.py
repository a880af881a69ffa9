"""Cache the shards of a remote data set on a node's own disk, before they are read.

Free space is filled with the shards that are read next. Once it is full, the shard whose next use is furthest away is
evicted (L. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5, 1966),
but only for shards that are needed soon: evicting long before that would cause needless fetches.

One process of a node, the owner of the data set's folder, does this for all; if it dies, another takes over within
about a second.
"""

import logging
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.data.cache.folder import CacheFolder
from pipeline.data.cache.foresight import Foresight
from pipeline.data.cache.schedule import Schedule
from pipeline.data.errors import DataError
from shards.manifest import Manifest
from shards.remote.urls import is_url
from shards.storage import Traffic, download
from shards.terminal import shown

_SOON = 1 / 8  # share of the limit: only the next shards up to it displace others
_BEAT = 1.0  # seconds between attempts to become the owner
_RESCAN = 30.0  # seconds between scans of the folder, where other processes discard shards
_PAUSE = 60.0  # seconds until a failed shard is retried; also the longest pause of all fetching
_CLOSING = 3.0  # seconds

_log = logging.getLogger(__name__)


class NodeCache:
    """The cache of one data set, in one process of a node.

    Nothing waits for it: a shard that is not cached is read by range requests, and a cache that fails, for instance for
    lack of disk space, costs only speed. Data sets that no run uses are evicted for those in use; among these it is
    first come, first served.

    Args:
        manifest: the data set. Local shards are not cached.
        folder: on a local disk of the node; other runs and data sets may share it.
        limit: bytes of all shards under `folder`; None: the space of its disk, which is never exceeded.
        schedule: when this node reads which shard; its plan must not be shared, since the cache has its own threads.
        threads: shards fetched in parallel.
        traffic: counts the requests.

    Raises:
        DataError: the cache is too small for the shards of one step, or `folder` cannot be written.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        limit: int | None,
        schedule: Schedule,
        *,
        threads: int = 8,
        traffic: Traffic | None = None,
    ) -> None:
        self._manifest, self._threads, self._traffic = manifest, threads, traffic
        self._local = np.array([not is_url(manifest.shard_location(shard)) for shard in range(len(manifest.counts))])
        self._bytes = np.where(self._local, 0, manifest.shard_bytes)
        try:
            self._folder = CacheFolder(folder, manifest.identity, self._bytes, limit)
        except OSError as error:
            raise DataError(f"{folder}: {error.strerror}; set data.cache to a folder that can be written") from error
        needed = max(schedule.working_set(epoch, self._bytes)[0] for epoch in (0, 1))  # which represent all epochs
        if needed > self._folder.limit:
            raise DataError(
                f"{folder}: the shards of one step have {needed:,} bytes, but the cache is limited to "
                f"{self._folder.limit:,}: set data.cache_size={needed} or more on a disk that has it, lower data.lanes "
                "or data.block, or build the data set with smaller shards"
            )
        self._foresight = Foresight(schedule, self._bytes, self._folder.limit)

        self._lock = threading.Lock()  # guards the next five attributes
        self._cached = np.zeros(len(self._bytes), bool)
        self._fetching: dict[int, Path] = {}
        self._retry_at: dict[int, float] = {}  # in monotonic time, like all times here
        self._failures, self._resume_at = 0, 0.0  # consecutive failures

        self._scan_at = 0.0
        self._step: int | None = None
        self._fetched = self._evicted = self._errors = 0
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="cache", daemon=True)
        self._thread.start()

    def path(self, shard: int) -> Path | None:
        """Return the path of the whole shard, if it is cached. It may be gone before the caller opens it."""
        file = self._folder.file(shard)
        with suppress(OSError):  # disk errors
            return file if file.exists() else None
        return None

    def advance(self, step: int) -> None:
        """Set the step that is being read. Fetching starts with the first call. Never blocks."""
        self._step = step
        self._wake.set()

    def discard(self, shard: int) -> None:
        """Remove a shard with wrong bytes. The owner, if it is another process, notices within a minute."""
        with self._lock:
            self._cached[shard] = False
            with suppress(OSError):
                self._folder.file(shard).unlink()
        self._wake.set()

    def counters(self) -> dict[str, float]:
        """Return what this process holds and has done as the owner; sum these over the node's processes."""
        return {
            "cache_bytes": int(self._bytes[self._cached].sum()),
            "cache_shards": int(self._cached.sum()),
            "cache_fetched_bytes": self._fetched,
            "cache_evictions": self._evicted,
            "cache_errors": self._errors,
            "cache_owners": int(self._folder.owned),
        }

    def close(self) -> None:
        """Stop within a few seconds. Shards being fetched are dropped; a request in progress ends by itself."""
        self._closed.set()
        self._wake.set()
        self._thread.join(_CLOSING)

    def _run(self) -> None:
        """Run the cache's own thread."""
        while not self._closed.is_set():
            try:
                if self._step is not None:  # else the step is unknown here, and another process may fill it
                    self._fill(self._step)
            except OSError as error:  # of the disk; another process may try
                self._release()
                with self._lock:
                    self._failed(error)
            self._wake.wait(_BEAT)
            self._wake.clear()
        self._release()

    def _fill(self, step: int) -> None:
        """Start all fetches that are possible now, if this process is the owner, or becomes it."""
        if self._folder.own() or (self._folder.owned and time.monotonic() > self._scan_at):
            with self._lock:
                self._cached = self._folder.scan(self._fetching.values())
            self._scan_at = time.monotonic() + _RESCAN
        if self._folder.owned:
            self._foresight.look(step)
            while self._start():
                pass

    def _release(self) -> None:
        with self._lock:
            self._cached[:] = False
            for partial in self._fetching.values():
                with suppress(OSError):
                    partial.unlink()
            self._fetching.clear()
        self._folder.disown()

    def _start(self) -> bool:
        """Start to fetch the shard that is needed first. Return whether there was one."""
        with self._lock, self._folder.locked() as locked:
            shard = self._choose() if locked else None
            if shard is None:
                return False
            partial = self._folder.partial(shard)
            partial.touch(exist_ok=False)  # reserves the space
            self._fetching[shard] = partial
        threading.Thread(target=self._fetch, args=(shard, partial), name="cache-fetch", daemon=True).start()
        return True

    def _choose(self) -> int | None:
        """Return the shard to fetch now, if any, after making room for it."""
        now = time.monotonic()
        if len(self._fetching) >= self._threads or now < self._resume_at:
            return None
        self._retry_at = {shard: then for shard, then in self._retry_at.items() if now < then}
        out = self._cached | self._local
        out[[*self._fetching, *self._retry_at]] = True
        missing = np.flatnonzero(~out[self._foresight.shard])
        if not missing.size:
            return None
        shard = int(self._foresight.shard[missing[0]])
        soon = self._foresight.ahead[missing[0]] < _SOON * self._folder.limit
        return shard if self._make_room(shard, soon) else None

    def _make_room(self, shard: int, soon: bool) -> bool:
        """Return whether the shard fits, after evicting others if it is needed soon."""
        cached = int(self._bytes[self._cached].sum())
        lacking = int(self._bytes[shard]) - self._folder.room(cached, self._fetching.values())
        if lacking > 0:
            lacking -= self._folder.clear_unused(lacking)
        if lacking <= 0 or not soon:
            return lacking <= 0
        next_use = self._foresight.next_use
        later = np.flatnonzero(self._cached & (next_use > next_use[shard]))
        victims = later[np.argsort(-next_use[later], kind="stable")]
        enough = np.searchsorted(np.cumsum(self._bytes[victims]), lacking) + 1
        if enough > len(victims):
            return False
        for victim in victims[:enough].tolist():
            self._folder.file(victim).unlink(missing_ok=True)
            self._cached[victim] = False
            self._evicted += 1
        return True

    def _fetch(self, shard: int, partial: Path) -> None:
        """Fetch one shard, in a thread of its own, which is abandoned if it hangs when the cache closes."""
        try:
            url, size = self._manifest.shard_location(shard), int(self._bytes[shard])
            download(url, partial, size=size, traffic=self._traffic)
            with self._lock:
                if self._fetching.get(shard) == partial:  # the folder may have been released
                    partial.rename(self._folder.file(shard))
                    del self._fetching[shard]
                    self._cached[shard] = True
                    self._fetched += size
                    self._failures = 0
        except Exception as error:  # of the store or the disk; reading continues without this shard
            with self._lock:
                self._retry_at[shard] = time.monotonic() + _PAUSE
                self._failed(error)
        finally:
            with self._lock:
                with suppress(OSError):
                    partial.unlink()
                if self._fetching.get(shard) == partial:
                    del self._fetching[shard]
            self._wake.set()

    def _failed(self, error: Exception) -> None:
        if not self._errors:
            told = shown(f"{self._folder.path}: reading continues without shards that cannot be cached: {error}")
            _log.warning("%s", told)
        self._errors += 1
        self._failures += 1
        if self._failures >= self._threads:  # the cause is not one shard, but the store or the disk
            self._resume_at = time.monotonic() + min(2.0 ** min(self._failures - self._threads, 16), _PAUSE)

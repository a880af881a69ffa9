"""The folder of a node's cache: processes communicate by the names of its files alone.

    ROOT/lock                          held while room is counted and taken
    ROOT/DATASET/owner.lock            held by the one process of the node that fills this folder
    ROOT/DATASET/SHARD-BYTES.tar       a whole shard
    ROOT/DATASET/SHARD-BYTES.TOKEN.partial

DATASET is a prefix of the data set's identity. A file name contains the size that the shard has or will have, so the
names show how much of the limit is taken. Locks are flocks, which the kernel releases with their owner: a killed
process never blocks another one or the next run. Files with other names are never touched.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pipeline.data.order import Int64s
from pipeline.files import flock

_NAME = re.compile(r"(\d+)-(\d+)\.(?:tar|\w+\.partial)")
_OWNER = "owner.lock"
_OF_FREE = 0.95  # share of a disk's free space that may be used


class CacheFolder:
    """One data set's folder in a cache. Only its owner writes to it. All methods raise OSError for disk errors.

    Args:
        root: the cache, shared by the processes of a node and by data sets.
        identity: that of the data set.
        shard_bytes: the size of every shard; int64 (shards,).
        limit: bytes of all shards under `root`; None: the space of its disk.
    """

    def __init__(self, root: Path, identity: str, shard_bytes: Int64s, limit: int | None) -> None:
        self.root, self.path = root, root / identity[:16]
        self._bytes = shard_bytes
        self._lease: int | None = None
        self.path.mkdir(parents=True, exist_ok=True)
        on_disk = sum(map(_taken, self._data_sets())) + int(_OF_FREE * shutil.disk_usage(root).free)
        self.limit = on_disk if limit is None else min(limit, on_disk)

    def file(self, shard: int) -> Path:
        """Return the path of a shard, whether it exists or not."""
        return self.path / f"{shard:06d}-{self._bytes[shard]}.tar"

    def partial(self, shard: int) -> Path:
        """Return a new, unpredictable path for an unfinished shard, since containers may share the folder."""
        return self.file(shard).with_suffix(f".{uuid4().hex}.partial")

    @property
    def owned(self) -> bool:
        """Return whether this process owns the folder."""
        return self._lease is not None

    def own(self) -> bool:
        """Become the owner if there is none. Return whether this process has just become it."""
        if self.owned:
            return False
        self.path.mkdir(parents=True, exist_ok=True)
        self._lease = flock(self.path / _OWNER)
        if self._lease is not None:
            os.utime(self._lease)  # for `clear_unused`
        return self.owned

    def disown(self) -> None:
        """Release ownership, so that another process can become the owner."""
        if self._lease is not None:
            os.close(self._lease)
        self._lease = None

    def scan(self, fetching: Collection[Path]) -> NDArray[np.bool_]:
        """Return which shards exist, (shards,). Delete torn ones, and partial files other than those in `fetching`."""
        there = np.zeros(len(self._bytes), bool)
        for file, shard, size in _shards(self.path):
            with suppress(FileNotFoundError):  # another process has discarded it
                if shard < len(there) and file == self.file(shard) and file.stat().st_size == size:
                    there[shard] = True
                elif file not in fetching:
                    file.unlink()
        return there

    def locked(self) -> AbstractContextManager[bool]:
        """Prevent other owners from taking space. Yields False, at once, if another owner holds the lock."""
        return _held(self.root / "lock")

    def room(self, cached: int, fetching: Collection[Path]) -> int:
        """Return the bytes that may still be taken, besides those of this folder's shards and partial files."""
        others = sum(_taken(data_set) for data_set in self._data_sets() if data_set != self.path)
        unwritten = sum(_size(file) - file.stat().st_size for file in fetching)
        on_disk = int(_OF_FREE * shutil.disk_usage(self.root).free) - unwritten
        return min(self.limit - others - cached - sum(map(_size, fetching)), on_disk)

    def clear_unused(self, wanted: int) -> int:
        """Delete up to `wanted` bytes and a shard of unowned data sets, least recently used first; return the bytes."""
        freed = 0
        for data_set in sorted(self._data_sets(), key=lambda path: (path / _OWNER).stat().st_mtime_ns):
            if data_set == self.path:
                continue
            with _held(data_set / _OWNER) as unused:
                for file, _, size in _shards(data_set) if unused else ():
                    if freed >= wanted:
                        return freed
                    file.unlink(missing_ok=True)
                    freed += size
        return freed

    def _data_sets(self) -> list[Path]:
        return [owner.parent for owner in self.root.glob(f"*/{_OWNER}")]


def _shards(data_set: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield the shards in a data set's folder, whole or not: file, number, size in bytes once it is whole."""
    for file in data_set.iterdir():
        if parts := _NAME.fullmatch(file.name):
            yield file, int(parts[1]), int(parts[2])


def _taken(data_set: Path) -> int:
    return sum(size for _, _, size in _shards(data_set))


def _size(file: Path) -> int:
    """Return the size of a shard once it is whole."""
    return int(file.name.partition("-")[2].partition(".")[0])


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Hold a lock within the context, if it is free. Yields whether it is held."""
    descriptor = flock(lock)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)

"""What lies in a node's cache: files whose names say all that processes have to know of each other.

    ROOT/lock                          held while room is counted and taken
    ROOT/DATASET/owner.lock            held by the one process of the node that fills this folder
    ROOT/DATASET/SHARD-BYTES.tar       a whole shard
    ROOT/DATASET/SHARD-BYTES.TOKEN.partial

DATASET is the beginning of a data set's identity. A name has the size that the shard has or will have, so the names
tell what is taken of the limit. Locks are flocks, which the kernel drops with their owner: whatever is killed, nothing
stays that blocks another process or the next run. Files of other names are never touched.
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
_OF_FREE = 0.95  # of a disk's free space may be taken


class CacheFolder:
    """One data set's folder in a cache. Only its owner writes to it. All methods raise OSError where the disk does.

    Args:
        root: the cache, shared by the processes of a node and by data sets.
        identity: of the data set.
        shard_bytes: the size of every shard; int64 (shards,).
        limit: bytes of all shards under `root`; None: what its disk has.
    """

    def __init__(self, root: Path, identity: str, shard_bytes: Int64s, limit: int | None) -> None:
        self.root, self.path = root, root / identity[:16]
        self._bytes = shard_bytes
        self._lease: int | None = None
        self.path.mkdir(parents=True, exist_ok=True)
        on_disk = sum(map(_taken, self._data_sets())) + int(_OF_FREE * shutil.disk_usage(root).free)
        self.limit = on_disk if limit is None else min(limit, on_disk)

    def file(self, shard: int) -> Path:
        """Where a shard lies, or would."""
        return self.path / f"{shard:06d}-{self._bytes[shard]}.tar"

    def partial(self, shard: int) -> Path:
        """A new name for a shard until it is whole, which nobody can foresee: containers may share the folder."""
        return self.file(shard).with_suffix(f".{uuid4().hex}.partial")

    @property
    def owned(self) -> bool:
        """Whether this process owns the folder."""
        return self._lease is not None

    def own(self) -> bool:
        """Become the owner if there is none. Whether this process just became it."""
        if self.owned:
            return False
        self.path.mkdir(parents=True, exist_ok=True)
        self._lease = flock(self.path / _OWNER)
        if self._lease is not None:
            os.utime(self._lease)  # for `clear_unused`
        return self.owned

    def disown(self) -> None:
        """Let another process become the owner."""
        if self._lease is not None:
            os.close(self._lease)
        self._lease = None

    def scan(self, fetching: Collection[Path]) -> NDArray[np.bool_]:
        """Which shards are there, (shards,). Deletes torn ones, and partial files other than those in `fetching`."""
        there = np.zeros(len(self._bytes), bool)
        for file, shard, size in _shards(self.path):
            with suppress(FileNotFoundError):  # another process discarded it meanwhile
                if shard < len(there) and file == self.file(shard) and file.stat().st_size == size:
                    there[shard] = True
                elif file not in fetching:
                    file.unlink()
        return there

    def locked(self) -> AbstractContextManager[bool]:
        """Keep other owners from taking room. False, at once, if one of them is doing so."""
        return _held(self.root / "lock")

    def room(self, cached: int, fetching: Collection[Path]) -> int:
        """Bytes that may still be taken, beside those of this folder's cached shards and partial files."""
        others = sum(_taken(data_set) for data_set in self._data_sets() if data_set != self.path)
        unwritten = sum(_size(file) - file.stat().st_size for file in fetching)
        on_disk = int(_OF_FREE * shutil.disk_usage(self.root).free) - unwritten
        return min(self.limit - others - cached - sum(map(_size, fetching)), on_disk)

    def clear_unused(self, wanted: int) -> int:
        """Delete up to `wanted` bytes and a shard of data sets without an owner, the longest unused first; how many."""
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
    """The shards in a data set's folder, whole or not: file, number, size in bytes once it is whole."""
    for file in data_set.iterdir():
        if parts := _NAME.fullmatch(file.name):
            yield file, int(parts[1]), int(parts[2])


def _taken(data_set: Path) -> int:
    return sum(size for _, _, size in _shards(data_set))


def _size(file: Path) -> int:
    """Of a shard once it is whole."""
    return int(file.name.partition("-")[2].partition(".")[0])


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Hold a lock for a while, if nobody else has it."""
    descriptor = flock(lock)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)

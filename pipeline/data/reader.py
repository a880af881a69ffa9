"""Encoded images by sample id, read from the shards at the offsets the manifest gives and checked on the way."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from shards.listing import is_url
from shards.manifest import Manifest

Encoded = NDArray[np.uint8]

_OPEN_SHARDS = 256  # descriptors kept a process; the usual limit for all files is 1,024


class DataError(Exception):
    """A sample cannot be had. The message names the shard, the sample and what to do."""


class Reader:
    """Reads samples with a pool of threads.

    Args:
        manifest: a data set on a local or mounted disk.
        threads: reads under way at once.

    Raises:
        DataError: a shard is somewhere else.
    """

    def __init__(self, manifest: Manifest, threads: int = 4) -> None:
        for name in manifest.shard_names:
            if is_url(name):
                raise DataError(
                    f"{name}: training reads shards from disks; copy this data set to one and index it there"
                )
        self._manifest = manifest
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
        self._open = lru_cache(_OPEN_SHARDS)(_OpenFile)

    def submit(self, ids: NDArray[np.int64]) -> "Future[list[Encoded]]":
        """Start reading samples; the result is their encoded bytes, uint8 (size,) each, in the order of `ids`.

        The future raises:
            DataError: a shard is missing or short, or a sample's bytes do not match their checksum.
        """
        return self._pool.submit(lambda: [self.read(int(sample)) for sample in ids])

    def read(self, sample: int) -> Encoded:
        """The encoded image of one sample, uint8 (size,), read now. Raises DataError as `submit` does."""
        manifest = self._manifest
        size = int(manifest.size[sample])
        shard = manifest.root / manifest.shard_names[manifest.shard[sample]]
        try:
            data = self._open(str(shard)).read(size, int(manifest.offset[sample]))
        except OSError as error:
            raise DataError(f"{shard}: {error.strerror or error}; {self._remedy(sample)}") from error
        if len(data) != size:
            raise DataError(f"{shard}: ends inside sample {sample}; {self._remedy(sample)}")
        if google_crc32c.value(data) != manifest.crc32c[sample]:
            raise DataError(f"{shard}: sample {sample} does not match its checksum; {self._remedy(sample)}")
        return np.frombuffer(data, dtype=np.uint8)

    def _remedy(self, sample: int) -> str:
        manifest = self._manifest
        return (
            f"it holds {manifest.path(sample)}: run `maskfeat-shards verify {manifest.root}` and restore what it names"
        )


class _OpenFile:
    """An open file that closes itself once nobody reads from it and the cache has let go of it."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

"""A small data set of shards for tests of the node cache, and functions that inspect a cache of it."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from cache_process import BATCH, schedule

from shards.manifest import Dataset, Manifest, Shard
from shards.tables.columns import write_manifest

SHARDS = 24
ALL = set(range(SHARDS))
PLENTY = 10**9


def make_set(folder: Path, seed: int = 0, page: int = 1) -> Path:
    """Make 24 random shards of 5 to 29 samples and 1 to 8 KB, in multiples of `page` bytes."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    listed, columns = [], []
    for index in range(SHARDS):
        count, data = int(rng.integers(5, 30)), rng.bytes(-(-int(rng.integers(1000, 8000)) // page) * page)
        (folder / f"{index}.tar").write_bytes(data)
        listed.append(Shard(f"{index}.tar", count, len(data), hashlib.sha256(data).hexdigest()))
        numbers = {name: [1] * count for name in ("offset", "size", "height", "width", "crc32c")}
        columns.append({"key": [""] * count, "path": [""] * count, "label": [None] * count, **numbers})
    write_manifest(folder / "manifest.parquet", columns)
    identity = hashlib.sha256((folder / "manifest.parquet").read_bytes()).hexdigest()
    samples = sum(shard.samples for shard in listed)
    (folder / "dataset.json").write_text(Dataset(samples, 0, [], listed, identity, 0, 0, None, "").dump())
    return folder


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def shards_in(folder: Path, manifest: Manifest) -> set[int]:
    """Return the whole shards in the cache, by name."""
    return {int(file.name.split("-")[0]) for file in (folder / manifest.identity[:16]).glob("*.tar")}


def bytes_in(folder: Path) -> int:
    """Return the bytes of a cache's files that are there together, of all data sets.

    The cache may work meanwhile, so only files that a second look finds as well are counted: what gave way to others
    between the first file and the last would make the sum larger than it ever was.
    """
    seen, still = _sizes(folder), _sizes(folder)
    return sum(size for file, size in seen.items() if file in still)


def _sizes(folder: Path) -> dict[tuple[str, int], int]:
    """Return the bytes of every file of a cache, by name and inode."""
    sizes = {}
    for file in folder.glob("*/*-*"):
        with suppress(FileNotFoundError):
            status = file.stat()
            sizes[str(file), status.st_ino] = status.st_size
    return sizes


def assert_right(folder: Path, manifest: Manifest, source: Path) -> None:
    """Assert that every cached shard has the bytes of its source, and that there are no other files."""
    inside = folder / manifest.identity[:16]
    for shard in shards_in(folder, manifest):
        (file,) = inside.glob(f"{shard:06d}-*")
        assert file.read_bytes() == (source / f"{shard}.tar").read_bytes()
    # A fetch that was in progress when the cache was closed removes its file when it ends
    until(lambda: {file.suffix for file in inside.iterdir()} <= {".tar", ".lock"})


def fetches(requests: list[tuple[str, str]]) -> list[int]:
    """Return the shards requested from a server, in order. One request is a whole shard here."""
    return [int(path.split("/")[-1][:-4]) for path, _ in requests if path.endswith(".tar")]


def foreseen(manifest: Manifest, step: int, epochs: int) -> list[tuple[int, int]]:
    """Return (next use, shard) by going through all uses of this epoch and those after it."""
    plan = schedule(manifest)
    epoch = step * BATCH // plan.plan.samples
    first: dict[int, int] = {}
    for later in range(epoch, epoch + epochs):
        uses = plan.uses(later)
        for shard, begin, end in zip(*(a.tolist() for a in (uses.shard, uses.first_step, uses.last_step)), strict=True):
            if end >= step:
                first.setdefault(shard, max(begin, step))
    return sorted(((use, shard) for shard, use in first.items()), key=lambda pair: pair[0])


@contextmanager
def watching(folder: Path) -> Iterator[list[int]]:
    """Record the bytes that a cache takes, continuously."""
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

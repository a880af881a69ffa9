"""Compares a data set on disk with what its build recorded, down to the damaged image."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from shards.engines import available_cpus
from shards.files import ShardError, sha256_of
from shards.manifest import DATASET, Dataset, Manifest, Shard
from shards.rejects import count_rejects
from shards.storage import StorageError, as_local, join, listing, read
from shards.tarfiles import dali_index, idx_name, samples_of
from shards.text import printable


@dataclass(frozen=True)
class Problem:
    """Something that is not as it was built: the file, and what is wrong with it or with which sample."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify(
    root: str | Path, workers: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Problem]:
    """Reads every byte of the data set in `root`, a folder or a URL, and returns all that is wrong with it.

    `workers` threads share the work, by default one a CPU core, each with at most one shard of a URL among its
    temporary files. `progress` gets (samples done, samples in all) after every shard. Raises ShardError when there
    is no manifest to compare with.
    """
    dataset, manifest = Dataset.load(root), Manifest.load(root)
    problems = _descriptions(dataset, manifest)
    stops = np.cumsum(manifest.counts).tolist()
    starts = [0, *stops[:-1]]
    with ThreadPoolExecutor(workers or available_cpus()) as pool:  # hashing and reading release the interpreter lock
        checked = pool.map(lambda shard, *rows: _check(manifest, shard, *rows), dataset.shards, starts, stops)
        for stop, found in zip(stops, checked, strict=True):
            problems += found
            progress(stop, len(manifest))
    try:
        names = set(listing(str(root)))
    except StorageError:
        names = set()  # few web servers list what they have
    strays = sorted(name for name in names - set(manifest.shard_names) if name.endswith(".tar"))
    return problems + [Problem(name, "is not part of the data set; move it away") for name in strays]


def _descriptions(dataset: Dataset, manifest: Manifest) -> list[Problem]:
    """What dataset.json says of itself, of the manifest and of the rejects."""
    problems = []
    if dataset.samples != len(manifest):
        problems.append(Problem(DATASET, "its number of samples is not that of the manifest"))
    if dataset.bytes != manifest.size.sum():
        problems.append(Problem(DATASET, "its number of bytes is not that of the manifest"))
    try:
        rejects = count_rejects(manifest.root).total()
        if rejects != dataset.rejects:
            problems.append(Problem(DATASET, f"counts {dataset.rejects} rejects, rejects.parquet {rejects}"))
    except ShardError as error:
        problems.append(Problem(DATASET, str(error)))
    return problems


def _check(manifest: Manifest, shard: Shard, start: int, stop: int) -> list[Problem]:
    """One shard, whose samples are the rows `start` to `stop` - 1 of the manifest."""
    idx = idx_name(shard.name)
    try:
        with as_local(join(manifest.root, shard.name)) as tar_path:
            if tar_path.stat().st_size != shard.bytes or sha256_of(tar_path) != shard.sha256:
                return _damage(manifest, shard, tar_path, start, stop)
            # A tar made elsewhere may hold samples that are not part of the data set.
            known = {key for key, _ in manifest.names(start, stop)}
            samples = [sample for sample in samples_of(tar_path) if printable(sample.key) in known]
        if read(join(manifest.root, idx)).decode("utf-8", "surrogateescape") == dali_index(samples):
            return []
        return [Problem(idx, f"does not describe {shard.name}; build the data set again")]
    except ShardError as error:  # of a tar that was like this when it was indexed
        return [Problem(shard.name, str(error).removeprefix(f"{tar_path}: "))]
    except OSError as error:
        return [Problem(Path(error.filename or shard.name).name, f"cannot be read: {error.strerror}")]


def _damage(manifest: Manifest, shard: Shard, tar_path: Path, start: int, stop: int) -> list[Problem]:
    """Names the damaged images of a tar that is not the one that was built."""
    damaged = []
    with tar_path.open("rb") as tar:
        for sample in range(start, stop):
            tar.seek(manifest.offset[sample])
            if google_crc32c.value(tar.read(manifest.size[sample])) != manifest.crc32c[sample]:
                damaged.append(sample)
    size = tar_path.stat().st_size
    what = "has other bytes" if size == shard.bytes else f"has {size} bytes instead of {shard.bytes}"
    where = f"{len(damaged)} of its {stop - start} images are damaged"
    if not damaged:
        where = "all its images are intact, so the damage is in headers, labels or padding"
    names = manifest.names(start, stop)
    return [Problem(shard.name, f"{what}: {where}")] + [
        Problem(shard.name, "sample {} ({}) is damaged".format(*names[sample - start])) for sample in damaged
    ]

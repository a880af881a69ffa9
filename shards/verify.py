"""Compare a data set with the records of its build, down to the damaged image and the wrong row."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

from shards.files import ShardError, parse_json, sha256_of
from shards.making.engines import available_cpus
from shards.making.rows import facts
from shards.manifest import DATASET, Dataset, Manifest, Shard
from shards.media.media import Rejected
from shards.media.registry import media_of
from shards.storage import StorageError, as_local, join, listing, read
from shards.tables.columns import JPEG_COLUMNS, MANIFEST_SCHEMA
from shards.tables.duplicates import DUPLICATES, load_duplicates
from shards.tables.rejects import count_rejects
from shards.tars.samples import Sample, dali_index, idx_name, samples_of
from shards.text import escaped

_MOST_FACTS = 2**20  # bytes of a .json
_ROWS = 65_536  # read at once: a row group


@dataclass(frozen=True)
class Problem:
    """A deviation from what was built: the file, and what is wrong with it or with one of its samples."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify(
    root: str | Path, workers: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Problem]:
    """Read every byte of the data set in `root`, a folder or a URL, and return all problems.

    `workers` threads share the work, by default one per CPU core, each with at most one temporary copy of a remote
    shard. `progress` gets (samples done, samples in total) after every shard. Raises ShardError when there is
    no manifest to compare with.
    """
    dataset, manifest = Dataset.load(root), Manifest.load(root)
    problems = _descriptions(dataset, manifest)
    stops = np.cumsum(manifest.counts).tolist()
    starts = [0, *stops[:-1]]
    comparison = _Comparison(dataset, manifest)
    # Hashing and reading release the interpreter lock. Pillow warns of odd metadata, as in the build
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(workers or available_cpus()) as pool:
        checked = pool.map(comparison.check, dataset.shards, starts, stops)
        for stop, found in zip(stops, checked, strict=True):
            problems += found
            progress(stop, len(manifest))
    try:
        names = set(listing(str(root)))
    except StorageError:
        names = set()  # few web servers list their files
    strays = sorted(name for name in names - set(manifest.shard_names) if name.endswith(".tar"))
    return problems + [Problem(name, "is not part of the data set; move it away") for name in strays]


def _descriptions(dataset: Dataset, manifest: Manifest) -> list[Problem]:
    """Compare dataset.json with the manifest, the rejects and the duplicates."""
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
    try:
        pairs = np.array(load_duplicates(manifest.root, len(manifest)), np.int64).reshape(-1, 2)
        if any((column[pairs[:, 0]] != column[pairs[:, 1]]).any() for column in (manifest.size, manifest.crc32c)):
            problems.append(Problem(DUPLICATES, "names samples whose bytes are not equal"))
    except ShardError as error:
        problems.append(Problem(DUPLICATES, str(error)))
    return problems


class _Comparison:
    """Compares the tars of a data set with its manifest."""

    def __init__(self, dataset: Dataset, manifest: Manifest) -> None:
        self._built = dataset.options is not None  # by `build`, so the tars have all facts of the manifest
        self._manifest = manifest
        self._column = lru_cache(maxsize=4 * len(MANIFEST_SCHEMA))(self._read_column)

    def check(self, shard: Shard, start: int, stop: int) -> list[Problem]:
        """Check one shard, whose samples are the rows `start` to `stop` - 1 of the manifest."""
        rows = range(start, stop)
        try:
            with as_local(join(self._manifest.root, shard.name)) as tar_path:
                if tar_path.stat().st_size != shard.bytes or sha256_of(tar_path) != shard.sha256:
                    return self._damage(shard, tar_path, rows)
                samples = samples_of(tar_path)
                with tar_path.open("rb") as tar:
                    wrong = [Problem(shard.name, what) for what in self._wrong_rows(tar, samples, rows)]
        except ShardError as error:  # of a tar that was so when it was indexed, or of the manifest
            return [Problem(shard.name, str(error).removeprefix(f"{tar_path}: "))]
        except OSError as error:
            return [Problem(shard.name, f"cannot be read: {error.strerror}")]
        if wrong:
            return wrong
        # A tar made elsewhere may hold samples that are not part of the data set.
        known = {self._names(row)[0] for row in rows}
        return self._index(shard, dali_index(sample for sample in samples if escaped(sample.key) in known))

    def _index(self, shard: Shard, expected: str) -> list[Problem]:
        idx = idx_name(shard.name)
        file = join(self._manifest.root, idx)
        try:
            if read(file).decode("utf-8", "surrogateescape") == expected:
                return []
        except OSError as error:
            return [Problem(idx, f"cannot be read: {error.strerror}")]
        return [Problem(idx, f"does not describe {shard.name}; build the data set again")]

    def _wrong_rows(self, tar: BinaryIO, samples: list[Sample], rows: range) -> Iterator[str]:
        """Yield the differences between the rows and their tar."""
        manifest = self._manifest
        images = {
            (escaped(sample.key), offset): (sample, size, name)
            for sample in samples
            for offset, size, name in sample.members.values()
        }
        for row in rows:
            key, path = self._names(row)
            shown = f"sample {row} ({key}, {path})"
            # Removed, so that a second row of the same image is found
            sample, size, name = images.pop((key, int(manifest.offset[row])), (None, 0, ""))
            if sample is None:
                yield f"{shown}: the tar has no sample of that key at its offset, or the manifest has it twice"
                continue
            if size != manifest.size[row]:
                yield f"{shown}: its size is {manifest.size[row]} in the manifest, {size} in the tar"
                continue
            data = _member(tar, int(manifest.offset[row]), size)
            label = int(manifest.label[row])
            listed: dict[str, Any] = {"path": path, "label": label}
            listed |= {column: int(getattr(manifest, column)[row]) for column in ("size", "crc32c", "height", "width")}
            try:
                listed["class"] = escaped(manifest.classes[label]) if label >= 0 else None
                media = media_of(name)
                said = facts(media, media.probe(data))
                listed |= {column: self._on_disk(row, column) for column in said.keys() - listed.keys()}
                if listed.get("jpeg_sizes") is None:  # listed only by `build --frames jpeg`
                    said = {fact: value for fact, value in said.items() if fact not in JPEG_COLUMNS}
                said |= self._said_beside(tar, sample, escaped(name), path)
            except (Rejected, ValueError) as error:
                yield f"{shown}: {error.detail if isinstance(error, Rejected) else error}"
                continue
            differing = [
                f"its {fact} is {listed[fact]} in the manifest, {value} in the tar"
                for fact, value in said.items()
                if listed[fact] != value
            ]
            if differing:
                yield f"{shown}: {'; '.join(differing)}"

    def _said_beside(self, tar: BinaryIO, sample: Sample, member: str, path: str) -> dict[str, Any]:
        """Return the facts in an image's name and the members beside it. Raises ValueError."""
        if not self._built and path == member:
            return {}
        offset, size, _ = sample.members.get("json", (0, 0, ""))
        facts = parse_json(_member(tar, offset, min(size, _MOST_FACTS))) if size else {}
        if not isinstance(facts, dict):
            raise ValueError("its .json is not an object")
        if not self._built:  # labels have many forms in other tars
            return {"path": facts.get("path", member)}
        label = int(_member(tar, *sample.members["cls"][:2])) if "cls" in sample.members else -1
        return {"label": label} | {name: escaped(str(facts[name])) for name in facts.keys() & {"path", "class"}}

    def _damage(self, shard: Shard, tar_path: Path, rows: range) -> list[Problem]:
        """Name the damaged images of a tar that is not the one that was built."""
        manifest = self._manifest
        with tar_path.open("rb") as tar:
            damaged = [
                row
                for row in rows
                if google_crc32c.value(_member(tar, int(manifest.offset[row]), int(manifest.size[row])))
                != manifest.crc32c[row]
            ]
        size = tar_path.stat().st_size
        what = "has other bytes" if size == shard.bytes else f"has {size} bytes instead of {shard.bytes}"
        where = f"{len(damaged)} of its {len(rows)} samples are damaged"
        if not damaged:
            where = f"all its {self._manifest.noun}s are intact, so the damage is in headers, labels or padding"
        return [Problem(shard.name, f"{what}: {where}")] + [
            Problem(shard.name, "sample {} ({}) is damaged".format(*self._names(row))) for row in damaged
        ]

    def _names(self, row: int) -> tuple[str, str]:
        return self._on_disk(row, "key"), self._on_disk(row, "path")

    def _on_disk(self, row: int, column: str) -> Any:
        part, place = divmod(row, _ROWS)
        return self._column(part, column)[place]

    def _read_column(self, part: int, column: str) -> list[Any]:
        """Read a column, for `_ROWS` rows from row `part` * `_ROWS` on."""
        start = part * _ROWS
        rows = self._manifest.rows(start, min(start + _ROWS, len(self._manifest)), [column])
        return list(rows[column].to_pylist())


def _member(tar: BinaryIO, offset: int, size: int) -> bytes:
    tar.seek(offset)
    return tar.read(size)

"""Read manifest.parquet, which has a row for every sample; see docs/reference/data-format.md."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.dataset import DATASET, Dataset, Options, Shard
from shards.files import ShardError, sha256_of
from shards.media.registry import MEDIA
from shards.remote.urls import is_url
from shards.storage import DEADLINE, join, opened, printable_url
from shards.tables.columns import (
    JPEG_COLUMNS,
    MANIFEST,
    MANIFEST_SCHEMA,
    NULLABLE,
    SINCE_VERSION_2,
    completed,
    media_in,
)
from shards.tables.reading import local_copy, read_columns, readable, unusable
from shards.tables.videos import COLUMNS as VIDEO_COLUMNS
from shards.tables.videos import Videos
from shards.text import excerpt, one_line, portable

__all__ = ["DATASET", "MANIFEST", "Dataset", "Manifest", "Options", "Shard"]

_OF_SAMPLES = ("offset", "size", "label", "height", "width", "crc32c")
_IN_MEMORY = ("shard", *_OF_SAMPLES)


@dataclass(frozen=True, eq=False)
class Manifest:
    """All samples of a data set, in memory: a sample's id is its row number.

    Rows follow the shards and, within a shard, the tar. Columns are arrays of shape (samples,): `shard`
    indexes `shard_names`, each relative to `root`, an absolute path or a URL; `offset` and `size`, in bytes,
    delimit the sample's file in its tar; `label` is -1 for unlabelled samples; `height` and `width` are in pixels after
    EXIF rotation; `crc32c` is the checksum of the file. `media` holds the kinds of samples that occur, and `video`
    describes the videos, None where there are none. `counts` and `shard_bytes`, of shape (shards,), are the number of
    samples and the bytes of each shard's tar. `identity`, the SHA-256 of manifest.parquet, identifies the data set. All
    other columns stay on disk, where `rows` reads them.
    """

    root: str
    shard_names: list[str]
    shard_bytes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    label: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    crc32c: npt.NDArray[np.uint32]
    media: frozenset[str]
    video: Videos | None
    classes: list[str]
    identity: str

    @classmethod
    def load(cls, root: str | Path) -> "Manifest":
        """Read the manifest of a finished build from a folder or a URL.

        Raises ShardError when the folder or its dataset.json is missing, of another version, or when
        manifest.parquet is not the file that the build wrote.
        """
        dataset, location = Dataset.load(root), join(root, MANIFEST)
        with local_copy(root, MANIFEST) as path:
            if sha256_of(path) != dataset.manifest_sha256:
                raise ShardError(
                    f"{printable_url(location)}: does not match {DATASET}; copy both from one build or build again"
                )
            table = read_columns(path, MANIFEST_SCHEMA, _IN_MEMORY, ["label"], SINCE_VERSION_2)
            media = media_in(path)
            video = None
            if "video" in media:
                columns = read_columns(path, MANIFEST_SCHEMA, VIDEO_COLUMNS, NULLABLE, JPEG_COLUMNS)
                video = Videos.of(completed(columns, VIDEO_COLUMNS))
        counts, shard = np.array([shard.samples for shard in dataset.shards], np.int64), table["shard"].to_numpy()
        if len(shard) != sum(counts.tolist()) or not np.array_equal(np.repeat(np.arange(len(counts)), counts), shard):
            raise ShardError(
                f"{printable_url(str(root))}: {DATASET} and {MANIFEST} disagree on the samples of shards; copy both "
                "from one build or build again"
            )
        _check_rows(location, dataset, table)
        if unknown := media - MEDIA.keys():
            kind = one_line(excerpt(min(unknown)))
            raise ShardError(
                f"{printable_url(location)}: has samples of the kind {kind}, which this version does not read; update "
                "maskfeat-pipeline"
            )
        return cls(
            root=str(root),
            shard_names=[shard.name for shard in dataset.shards],
            shard_bytes=np.array([shard.bytes for shard in dataset.shards], np.int64),
            counts=counts,
            shard=shard,
            offset=table["offset"].to_numpy(),
            size=table["size"].to_numpy(),
            label=table["label"].fill_null(-1).to_numpy(),
            height=table["height"].to_numpy(),
            width=table["width"].to_numpy(),
            crc32c=table["crc32c"].to_numpy(),
            media=media,
            video=video,
            classes=dataset.classes,
            identity=dataset.manifest_sha256,
        )

    @classmethod
    def joined(cls, parts: "Sequence[Manifest]") -> "tuple[Manifest, list[Manifest]]":
        """Join data sets. Return the whole, and the data sets with their columns as views of its memory.

        Samples and shards of the second data set are numbered after those of the first, and so on. The whole is not
        stored: its `root` names all parts, and its rows are read from them. Its classes are those of the parts that
        have labels; if these differ, it has none.
        """
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _OF_SAMPLES
        }
        samples = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        shared = [
            replace(part, **{name: column[begin:end] for name, column in columns.items()})
            for part, (begin, end) in zip(parts, pairwise(samples), strict=True)
        ]
        shards = np.cumsum([0, *(len(part.counts) for part in parts[:-1])]).tolist()
        lists = [part.classes for part in parts if part.classes]
        classes = lists[0] if lists else []
        if any(of_part != classes for of_part in lists):
            classes = []
            columns["label"] = np.full_like(columns["label"], -1)
        media = frozenset[str]().union(*(part.media for part in parts))
        videos = [part.video or Videos.none(len(part)) for part in parts] if "video" in media else []
        whole = cls(
            root=", ".join(part.root for part in parts),
            shard_names=[_anywhere(part.shard_location(shard)) for part in parts for shard in range(len(part.counts))],
            shard_bytes=np.concatenate([part.shard_bytes for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
            shard=np.concatenate([part.shard + first for part, first in zip(parts, shards, strict=True)]),
            media=media,
            video=Videos.joined(videos) if videos else None,
            classes=classes,
            identity=hashlib.sha256("".join(part.identity for part in parts).encode()).hexdigest(),
            **columns,
        )
        return whole, shared

    def __len__(self) -> int:
        return len(self.size)

    @property
    def noun(self) -> str:
        """Return the word for a sample: `image` or `video` where all are of that kind, else `sample`."""
        return next(iter(self.media)) if len(self.media) == 1 else "sample"

    def samples_by_medium(self) -> list[npt.NDArray[np.int64]]:
        """Return the samples of each medium that there is, images before videos."""
        of_video = np.zeros(len(self), bool) if self.video is None else self.video.frames > 0
        return [samples for samples in (np.flatnonzero(~of_video), np.flatnonzero(of_video)) if len(samples)]

    @property
    def remote(self) -> bool:
        """Return whether any shard is behind a URL."""
        return any(is_url(join(self.root, name)) for name in self.shard_names)

    def shard_location(self, shard: int) -> str:
        """Return the path or URL of a shard, given its position."""
        return join(self.root, self.shard_names[shard])

    def key(self, sample: int) -> str:
        """Return the sample's key in its tar, read from disk."""
        return self.names(sample, sample + 1)[0][0]

    def path(self, sample: int) -> str:
        """Return the sample's path in the source, read from disk."""
        return self.names(sample, sample + 1)[0][1]

    def names(self, start: int, stop: int, deadline: float = DEADLINE) -> list[tuple[str, str]]:
        """Return (key, path) of the samples `start` to `stop` - 1; see `rows`."""
        table = self.rows(start, stop, ["key", "path"], deadline)
        return list(zip(table["key"].to_pylist(), table["path"].to_pylist(), strict=True))

    def rows(self, start: int, stop: int, columns: Sequence[str], deadline: float = DEADLINE) -> pa.Table:
        """Read columns of the samples `start` to `stop` - 1 from disk or store: slow, since whole row groups are read.

        `deadline` is that of a request to a store. Raises ShardError where the manifest can no longer be read, or has
        been replaced.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"samples {start} to {stop} of {len(self)}")
        found = [MANIFEST_SCHEMA.empty_table().select(columns)]
        first = 0
        location = join(self.root, MANIFEST)
        # In one thread, since no thread of Arrow may hold a Python file; see `arrow_file`.
        with (
            readable(location),
            opened(location, deadline=deadline) as raw,
            pq.ParquetFile(raw, pre_buffer=False) as file,
        ):
            if file.metadata.num_rows != len(self):
                raise ValueError("it has been replaced")
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if first < stop and start < end:
                    table = file.read_row_group(group, columns=[*columns, "crc32c"], use_threads=False)
                    if not np.array_equal(table["crc32c"].to_numpy(), self.crc32c[first:end]):
                        raise ValueError("it has been replaced")
                    table = table.slice(max(start - first, 0), min(stop, end) - max(start, first))
                    found.append(completed(table, columns))
                    if nulls := [name for name in columns if name not in NULLABLE and found[-1][name].null_count]:
                        raise ValueError(f"column {nulls[0]} has nulls")
                first = end
            return pa.concat_tables(found)


def _anywhere(location: str) -> str:
    """Return the name of a shard in a form that does not depend on the folder of its data set."""
    return location if is_url(location) else portable(str(Path(location).absolute()))


def _check_rows(location: str, dataset: Dataset, table: pa.Table) -> None:
    """Raise ShardError for a row that is impossible, whatever the tars hold."""
    offset, size, height, width = (table[name].to_numpy() for name in ("offset", "size", "height", "width"))
    label, labelled = table["label"].fill_null(0).to_numpy(), table["label"].is_valid().to_numpy()
    counts = [shard.samples for shard in dataset.shards]
    ends = np.repeat([shard.bytes for shard in dataset.shards], counts)
    impossible = {
        "its offset and size are not inside its tar": (offset < 0)
        | (size < 1)
        | (size > ends)
        | (offset > ends - size),
        "its height and width are not positive": (height < 1) | (width < 1),
        "its label is not that of a class": labelled & ((label < 0) | (label >= len(dataset.classes))),
    }
    if dataset.options:
        pixels = height.astype(np.int64) * width
        impossible["it has more pixels than the build allowed"] = pixels > dataset.options.max_pixels
    for what, rows in impossible.items():
        if rows.any():
            raise unusable(location, f"sample {rows.argmax()}: {what}")

"""The formats of the files beside the tars, and the reader `Manifest`; docs/data-format.md describes them.

`dataset.json` is written last: a folder without it is an unfinished build.
"""

import errno
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.check import Check
from shards.files import ShardError, arrow_file, sha256_of
from shards.listing import is_url
from shards.storage import (
    as_local,
    has_query,
    join,
    opened,
    printable_url,
    read,
    refuse_without_ranges,
    why_refused,
)

MANIFEST = "manifest.parquet"
REJECTS = "rejects.parquet"
DUPLICATES = "duplicates.parquet"
DATASET = "dataset.json"
FORMAT = "maskfeat-shards"
VERSION = 1

MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),  # index into the shard list of dataset.json
        ("offset", pa.int64()),  # of the image bytes in the tar
        ("size", pa.int64()),  # of the image bytes
        ("label", pa.int32()),  # null where there is none
        ("height", pa.int32()),  # after EXIF rotation, as width
        ("width", pa.int32()),
        ("crc32c", pa.uint32()),  # of the image bytes
        ("path", pa.string()),  # in the source, or the name of a member of a tar made elsewhere
    ]
)
DUPLICATES_SCHEMA = pa.schema([("id", pa.int64()), ("first_id", pa.int64())])  # rows of the manifest
_ROWS_PER_GROUP = 65_536


@dataclass(frozen=True)
class Shard:
    """One tar, as dataset.json lists it: name, samples, size of the tar in bytes, its SHA-256.

    `name` is relative to the folder of the data set or, for a tar made elsewhere, an absolute path or a URL.
    """

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Options:
    """What decides a build's output besides its source."""

    samples_per_shard: int
    resize: int | None
    max_pixels: int
    seed: int
    check: Check = "decode"  # data sets made before there was a choice do not say


@dataclass(frozen=True)
class Dataset:
    """The contents of dataset.json. `bytes` counts image bytes only; `fingerprint` is the build's input.

    `options` are None where the tars were made elsewhere.
    """

    samples: int
    bytes: int
    classes: list[str]
    shards: list[Shard]
    manifest_sha256: str
    rejects: int
    ignored: int
    options: Options | None
    fingerprint: str

    def dump(self) -> str:
        """The text of dataset.json."""
        return json.dumps({"format": FORMAT, "version": VERSION} | asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, root: str | Path) -> "Dataset":
        """Reads dataset.json in a folder or URL. Raises ShardError for all but a finished build of this version."""
        path = join(root, DATASET)
        if has_query(str(root)):
            raise ShardError(
                f"{printable_url(str(root))}: has a query, which is none of its files'; leave it out, credentials come "
                "from the environment"
            )
        try:
            text = read(path)
            refuse_without_ranges(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise _unreadable(path, error) from None
            if not is_url(str(root)) and not Path(root).is_dir():
                raise ShardError(f"{root}: no such folder") from None
            raise ShardError(
                f"{printable_url(str(root))}: has no {DATASET}, so it is no finished data set; correct the name, or "
                "run its `maskfeat-shards build` or `index` again"
            ) from None
        try:
            fields: dict[str, Any] = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            version = fields.pop("version")
            if version != VERSION:
                raise ShardError(f"{path}: has version {version}, not {VERSION}; update maskfeat-pipeline")
            fields["shards"] = [Shard(**shard) for shard in fields["shards"]]
            for shard in fields["shards"]:
                why = why_refused(shard.name) if is_url(shard.name) else None
                if why is not None:
                    raise ShardError(f"{path}: names the shard {printable_url(shard.name)}, which is not opened: {why}")
            fields["options"] = Options(**fields["options"]) if fields["options"] else None
            return cls(**fields)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ShardError(f"{path}: is not a {FORMAT} description; build the data set again") from None


@dataclass(frozen=True, eq=False)
class Manifest:
    """Every sample of a data set, in memory: a sample's id is its row number.

    Rows follow the shards and, within a shard, the tar. Columns are arrays of shape (samples,): `shard`
    indexes `shard_names`, each relative to `root`, an absolute path or a URL; `offset` and `size`, in bytes,
    frame the image in its tar; `label` is -1 where there is none; `height` and `width` are pixels after EXIF
    rotation; `crc32c` is that of the image bytes. `counts` and `shard_bytes`, of shape (shards,), are the samples
    and the bytes of each shard's tar. `identity`, the SHA-256 of manifest.parquet, names the data set.
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
    classes: list[str]
    identity: str

    @classmethod
    def load(cls, root: str | Path) -> "Manifest":
        """Reads the manifest of a finished build from a folder or a URL.

        Raises ShardError when the folder or its dataset.json is missing, of another version, or when
        manifest.parquet is not the one that the build wrote.
        """
        dataset = Dataset.load(root)
        numeric = [name for name in MANIFEST_SCHEMA.names if name not in ("key", "path")]
        with local_copy(root, MANIFEST) as path:
            if sha256_of(path) != dataset.manifest_sha256:
                raise ShardError(
                    f"{join(root, MANIFEST)}: does not match {DATASET}; copy both from one build or build again"
                )
            table = pq.read_table(arrow_file(path), columns=numeric)
        counts, shard = np.array([shard.samples for shard in dataset.shards], np.int64), table["shard"].to_numpy()
        if not np.array_equal(np.repeat(np.arange(len(counts)), counts), shard):
            raise ShardError(
                f"{root}: {DATASET} and {MANIFEST} disagree on the samples of shards; copy both from one build or "
                "build again"
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
            classes=dataset.classes,
            identity=dataset.manifest_sha256,
        )

    def __len__(self) -> int:
        return len(self.size)

    @property
    def remote(self) -> bool:
        """Whether any shard lies behind a URL."""
        return any(is_url(join(self.root, name)) for name in self.shard_names)

    def shard_location(self, shard: int) -> str:
        """The path or URL of a shard, given its position."""
        return join(self.root, self.shard_names[shard])

    def key(self, sample: int) -> str:
        """The sample's key in its tar, read from disk."""
        return self.names(sample, sample + 1)[0][0]

    def path(self, sample: int) -> str:
        """The sample's path in the source it was built from, read from disk."""
        return self.names(sample, sample + 1)[0][1]

    def names(self, start: int, stop: int) -> list[tuple[str, str]]:
        """(key, path) of the samples `start` to `stop` - 1, read from disk or store: slow, meant for messages.

        Raises ShardError where the manifest cannot be read any more.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"samples {start} to {stop} of {len(self)}")
        names: list[tuple[str, str]] = []
        first = 0
        location = join(self.root, MANIFEST)
        with _readable(location), opened(location) as raw, pq.ParquetFile(raw) as file:
            for group in range(file.num_row_groups):
                end = first + file.metadata.row_group(group).num_rows
                if first < stop and start < end:
                    table = file.read_row_group(group, columns=["key", "path"])
                    table = table.slice(max(start - first, 0), min(stop, end) - max(start, first))
                    names += zip(table["key"].to_pylist(), table["path"].to_pylist(), strict=True)
                first = end
        return names


def write_manifest(path: Path, shards: Iterable[dict[str, list[Any]]]) -> None:
    """Writes manifest.parquet from each shard's columns (all but `shard`, which is the shard's position)."""
    with arrow_file(path, "wb") as file, pq.ParquetWriter(file, MANIFEST_SCHEMA, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for position, columns in enumerate(shards):
            waiting.append(pa.table({**columns, "shard": [position] * len(columns["key"])}, MANIFEST_SCHEMA))
            # A row group per shard would make the footer of a large data set as big as its data.
            if sum(table.num_rows for table in waiting) >= _ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


@contextmanager
def local_copy(root: str | Path, name: str) -> Iterator[Path]:
    """Yields a path of one of a data set's own files. Raises ShardError where it is missing or cannot be read."""
    file = join(root, name)
    with _readable(file), as_local(file) as path:
        path.stat()  # Arrow's error for a missing file has no number
        yield path


@contextmanager
def _readable(file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: str, error: OSError) -> ShardError:
    if error.errno == errno.ENOENT:
        return ShardError(f"{printable_url(file)}: is missing; copy it from the original data set or build it again")
    return ShardError(f"{printable_url(file)}: cannot be read: {error.strerror or error}; mend it and try again")

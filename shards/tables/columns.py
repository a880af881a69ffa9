"""The columns of manifest.parquet in every version, and the writer of the file."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.files import arrow_file

MANIFEST = "manifest.parquet"
MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),  # index into the shard list of dataset.json
        ("offset", pa.int64()),  # of the sample's file in the tar
        ("size", pa.int64()),  # of that file
        ("label", pa.int32()),  # null where there is none
        ("height", pa.int32()),  # after EXIF rotation, as width
        ("width", pa.int32()),
        ("crc32c", pa.uint32()),  # of the file
        ("path", pa.string()),  # in the source, or the name of a member of a tar made elsewhere
        # Version 1 lacks all of the following, which, except `media`, are null for images
        ("media", pa.string()),  # a key of shards.media.registry.MEDIA
        ("frames", pa.int32()),
        ("fps_num", pa.int32()),  # frames per second, as a fraction
        ("fps_den", pa.int32()),
        ("duration", pa.float64()),  # seconds
        ("codec", pa.string()),
        ("pix_fmt", pa.string()),
        ("time_base_num", pa.int32()),  # seconds per unit of time stamps, as a fraction
        ("time_base_den", pa.int32()),
        ("pts_start", pa.int64()),  # frame i has the time stamp pts_start + i * pts_step,
        ("pts_step", pa.int64()),
        ("pts", pa.list_(pa.int64())),  # unless it is given here
        ("key_frames", pa.list_(pa.int32())),  # their numbers
        ("key_offsets", pa.list_(pa.int64())),  # of key frames in the file
        # Only where videos are stored as JPEGs of their frames, which follow each other in the file
        ("jpeg_offset", pa.int64()),  # of the first one in the file
        ("jpeg_sizes", pa.list_(pa.int32())),  # bytes of each
        ("jpeg_crc32c", pa.list_(pa.uint32())),  # of each
    ]
)
JPEG_COLUMNS = frozenset(name for name in MANIFEST_SCHEMA.names if name.startswith("jpeg_"))
_MEDIA_OF_VERSION_1 = "image"
OPTIONAL = frozenset(MANIFEST_SCHEMA.names[MANIFEST_SCHEMA.names.index("media") + 1 :])  # null where not known
SINCE_VERSION_2 = OPTIONAL | {"media"}
NULLABLE = OPTIONAL | {"label"}
_ROWS_PER_GROUP = 65_536


def write_manifest(path: Path, shards: Iterable[dict[str, list[Any]]], jpegs: bool = False) -> None:
    """Write manifest.parquet from each shard's columns: all but `shard`, which is the shard's position.

    Columns that version 1 lacks may be missing, as from records of a build that it began. `JPEG_COLUMNS` are written
    only with `jpegs`, so that the manifests of all other data sets keep the bytes that they had before these columns.
    """
    written = pa.schema([field for field in MANIFEST_SCHEMA if jpegs or field.name not in JPEG_COLUMNS])
    with arrow_file(path, "wb") as file, pq.ParquetWriter(file, written, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for position, columns in enumerate(shards):
            columns = columns | {"shard": [position] * len(columns["key"])}
            schema = pa.schema([field for field in written if field.name in columns])
            waiting.append(completed(pa.table(columns, schema), written.names))
            # A row group per shard would make the footer of a large data set as large as its data.
            if sum(table.num_rows for table in waiting) >= _ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def completed(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return `columns` of rows of any version; where they are missing, `media` is image and all others are null."""
    wanted = pa.schema([MANIFEST_SCHEMA.field(name) for name in columns])
    for field in wanted:
        if field.name in SINCE_VERSION_2 and field.name not in table.column_names:
            value = pa.scalar(_MEDIA_OF_VERSION_1 if field.name == "media" else None, field.type)
            table = table.append_column(field, pa.repeat(value, len(table)))
    return table.select(wanted.names).cast(wanted)


def media_in(path: Path) -> frozenset[str]:
    """Return the kinds of samples in a manifest, in constant memory. Raises ValueError for a null."""
    found = set[str | None]()
    with arrow_file(path) as raw:
        if "media" not in pq.read_schema(raw).names:
            return frozenset({_MEDIA_OF_VERSION_1})
        with pq.ParquetFile(raw, read_dictionary=["media"]) as file:
            for part in file.iter_batches(_ROWS_PER_GROUP, columns=["media"]):
                found.update(part["media"].unique().to_pylist())
    if None in found:
        raise ValueError("column media has nulls")
    return frozenset(map(str, found))

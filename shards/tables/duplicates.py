"""Find exact duplicates: images whose stored bytes are those of an earlier one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.files import arrow_file
from shards.storage import join, read
from shards.tables.reading import local_copy, read_columns, unusable

DUPLICATES = "duplicates.parquet"
_SCHEMA = pa.schema([("id", pa.int64()), ("first_id", pa.int64())])  # rows of the manifest


def find_duplicates(manifest_path: Path, files: Sequence[str]) -> pa.Table:
    """Compare the images whose size and checksum agree; `files` are the shards. Rows are sorted by id."""
    table = pq.read_table(arrow_file(manifest_path), columns=["shard", "offset", "size", "crc32c"])
    shard, offset, size, crc32c = (column.to_numpy() for column in table.columns)
    order = np.lexsort((crc32c, size))  # stable, so ids ascend among equals
    differs = (np.diff(size[order]) != 0) | (np.diff(crc32c[order]) != 0)
    edges = np.concatenate([[0], np.flatnonzero(differs) + 1, [len(order)]])
    found: list[tuple[int, int]] = []
    for group in np.flatnonzero(np.diff(edges) > 1):
        firsts: dict[bytes, int] = {}
        for sample in order[edges[group] : edges[group + 1]].tolist():
            data = read(files[shard[sample]], int(offset[sample]), int(size[sample]))
            first = firsts.setdefault(data, sample)
            if first != sample:
                found.append((sample, first))
    found.sort()
    columns = {"id": [sample for sample, _ in found], "first_id": [first for _, first in found]}
    return pa.table(columns, _SCHEMA)


def load_duplicates(root: str | Path, samples: int) -> list[tuple[int, int]]:
    """Return (id, first id) of every duplicate among this many samples. Raises ShardError without such a table."""
    with local_copy(root, DUPLICATES) as path:
        table = read_columns(path, _SCHEMA)
    duplicate, first = (column.to_numpy() for column in table.columns)
    if not ((first >= 0) & (first < duplicate) & (duplicate < samples)).all():
        raise unusable(
            join(root, DUPLICATES), f"its ids are not those of two of {samples} samples, the first one first"
        )
    return list(zip(duplicate.tolist(), first.tolist(), strict=True))

"""The images that a build left out, and why: rejects.parquet."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.files import arrow_file
from shards.manifest import REJECTS, local_copy

REJECTS_SCHEMA = pa.schema(
    [("path", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("size", pa.int64())]
)


def write_rejects(path: Path, rejects: Iterable[dict[str, Any]]) -> None:
    """Writes rejects.parquet, sorted by path."""
    rows = sorted(rejects, key=lambda reject: str(reject["path"]))
    with arrow_file(path, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, REJECTS_SCHEMA), file, compression="zstd")


def count_rejects(root: str | Path) -> Counter[str]:
    """How many images of the source were rejected, by reason. Raises ShardError without a rejects.parquet."""
    with local_copy(root, REJECTS) as path:
        return Counter(pq.read_table(arrow_file(path), columns=["reason"])["reason"].to_pylist())

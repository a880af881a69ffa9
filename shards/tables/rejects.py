"""Read and write rejects.parquet: the images that a build left out, with reasons."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.files import arrow_file
from shards.tables.reading import local_copy, read_columns
from shards.text import one_line

REJECTS = "rejects.parquet"
UNREADABLE_TAR = "unreadable tar"  # the reason of a reject that stands for a whole tar
HELD_OUT = "held out"  # the reason of a sample whose bytes the validation set has

REJECTS_SCHEMA = pa.schema(
    [("path", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("size", pa.int64())]
)


def write_rejects(path: Path, rejects: Iterable[dict[str, Any]]) -> None:
    """Write rejects.parquet, sorted by path."""
    rows = sorted(rejects, key=lambda reject: str(reject["path"]))
    with arrow_file(path, "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows, REJECTS_SCHEMA), file, compression="zstd")


def load_rejects(root: str | Path) -> list[tuple[str, str, str]]:
    """Return (path, reason, detail) of every rejected image. Raises ShardError without a rejects.parquet."""
    with local_copy(root, REJECTS) as path:
        table = read_columns(path, REJECTS_SCHEMA, ["path", "reason", "detail"])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def count_rejects(root: str | Path) -> Counter[str]:
    """Return how many images of the source were rejected, by reason. Raises as `load_rejects` does."""
    with local_copy(root, REJECTS) as path:
        return Counter(read_columns(path, REJECTS_SCHEMA, ["reason"])["reason"].to_pylist())


def example(root: str | Path) -> str:
    """Describe one of the rejects, of which there is at least one, in a line: a tar or else an image."""
    rejects = [reject for reject in load_rejects(root) if reject[1] != HELD_OUT]
    path, reason, detail = next((reject for reject in rejects if reject[1] == UNREADABLE_TAR), rejects[0])
    return one_line(f"{path}: {reason}, {detail}")

"""The images that a build left out, and why: rejects.parquet."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.files import arrow_file
from shards.manifest import REJECTS, local_copy
from shards.text import one_line

UNREADABLE_TAR = "unreadable tar"  # the reason of a reject that stands for all that is in a tar

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


def example(root: str | Path) -> str:
    """One of the rejects, of which there are some, as a line for people: a tar or else an image."""
    with local_copy(root, REJECTS) as path:
        table = pq.read_table(arrow_file(path))
    first = max(0, pc.index(table["reason"], UNREADABLE_TAR).as_py())  # -1 where there is none
    return one_line("{path}: {reason}, {detail}".format(**table.slice(first, 1).to_pylist()[0]))

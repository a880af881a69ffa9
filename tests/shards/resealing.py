"""Data sets that are changed, with checksums that are right again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Change = Callable[[dict[str, Any]], Any]


def describe(root: Path, **fields: Any) -> None:
    """Give dataset.json other fields."""
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def seal(root: Path, content: bytes) -> None:
    """Make these the bytes of the manifest, by right of its checksum."""
    (root / "manifest.parquet").write_bytes(content)
    describe(root, manifest_sha256=hashlib.sha256(content).hexdigest())


def rewrite(root: Path, change: Change, name: str = "manifest.parquet", **options: Any) -> None:
    """Change a table, given as column name to list or array, and seal it."""
    columns = {column.removesuffix("!"): values for column, values in pq.read_table(root / name).to_pydict().items()}
    schema = pq.read_schema(root / name)
    arrays = {column: pa.array(values, schema.field(column).type) for column, values in columns.items()}
    changed = change(arrays) or arrays
    pq.write_table(pa.table(changed), root / name, **options)
    if name == "manifest.parquet":
        seal(root, (root / name).read_bytes())


def put(column: str, row: int, value: Any, kind: pa.DataType | None = None) -> Change:
    """A change of one value, and of the type of its column."""

    def change(arrays: dict[str, Any]) -> None:
        values = arrays[column].to_pylist()
        values[row] = value
        arrays[column] = pa.array(values, kind or arrays[column].type)

    return change


def retype(column: str, kind: pa.DataType) -> Change:
    return lambda arrays: arrays.update({column: arrays[column].cast(kind)})

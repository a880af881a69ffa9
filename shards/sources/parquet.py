"""Parquet files that hold images or videos themselves, as data sets on Hugging Face do: columns of {bytes, path}.

A row cannot be read without its row group, so rows of a group stay together: a shard is made of whole groups, which the
seed puts in order, and each is read once.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.files import AT_MOST, ShardError, arrow_file, parse_json
from shards.labels import NAMES, label_name
from shards.media.media import Rejected, out_of_memory
from shards.sources.listing import Row
from shards.sources.table_columns import PATH_NAMES, as_group, group_column
from shards.text import excerpt, native

# How a column of files is called where there are several, the most explicit first. Case does not matter.
_FILE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "video", "mp4", "bytes")
_NO_LABEL = -1  # of a class, in test sets of Hugging Face
_PART_OF = re.compile(r"(.*?)-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class Embedded:
    """What a table of files says: the place, the name and the group of each, None where it has none, and its label.

    `labels` is None without a column of them, `label` its name; `names` are those of the classes, by label, where the
    table has them. `notes` are what the user should know.
    """

    rows: list[Row]
    file_names: list[str | None]
    groups: list[str | None]
    label: str
    labels: list[Any] | None
    names: list[str] | None
    notes: list[str]


def read_embedded(root: Path, table: str, group_by: str | None = None) -> Embedded | None:
    """Read all of a table but its files; None where it does not hold files, or lists files that lie beside it.

    Raises ShardError where it cannot be read, or cannot be read by row groups.
    """
    source = root / table
    try:
        with arrow_file(source) as file, pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            column = _file_column(source, schema)
            if column is None or _lists_files(root, parquet):
                return None
            rows = [
                Row(table, group, position)
                for group, count in enumerate(_counts(source, parquet, column))
                for position in range(count)
            ]
            names = _file_names(parquet, column)
            label = label_name(schema.names)
            labels = None if label is None else parquet.read(columns=[label])[label].to_pylist()
            groups: list[str | None] = [None] * len(rows)
            if (place := group_column(source, schema.names, group_by)) is not None:
                group = schema.names[place]
                groups = [as_group(value) for value in parquet.read(columns=[group])[group].to_pylist()]
    except OSError as error:
        if error.errno is not None:
            raise ShardError(f"{source}: {error.strerror}; make it readable") from None
        raise _damaged(source, error) from None
    except (pa.ArrowException, ValueError) as error:
        raise _damaged(source, error) from None
    classes = None if label is None else _class_names(schema, label)
    if classes is not None and labels is not None:
        labels = [None if value == _NO_LABEL else value for value in labels]
        if all(value is None for value in labels):
            labels = None
    notes = list(_notes(source, schema, column, label, labels))
    return Embedded(rows, names, groups, label or "", labels, classes, notes)


def read_row(file: str, row: Row) -> bytes:
    """Return the bytes of a file in the table `file`. Raises Rejected where they cannot be had."""
    try:
        value = _column_of(file, row.group)[row.position].as_py()
    except (OSError, pa.ArrowException, IndexError) as error:
        raise Rejected("unreadable", (str(error).splitlines() or [type(error).__name__])[0]) from None
    except MemoryError:
        raise out_of_memory() from None
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise Rejected("empty", "its row has no bytes")
    return bytes(data)


def missing_parts(tables: Sequence[str]) -> str | None:
    """Return a line on files that the names of others, as `train-00000-of-00005.parquet`, tell of; None for none."""
    found: dict[tuple[str, int], set[int]] = {}
    for table in tables:
        if part := _PART_OF.fullmatch(Path(table).stem):
            place = str(Path(table).parent / part[1])
            found.setdefault((place, int(part[3])), set()).add(int(part[2]))
    for (name, count), numbers in found.items():
        if len(numbers) < count:
            return f"{name}: {len(numbers)} of its {count} files are there"
    return None


@lru_cache(maxsize=1)  # rows follow each other
def _column_of(file: str, group: int) -> pa.ChunkedArray:
    """Return the column of files of a row group."""
    with arrow_file(Path(file)) as raw, pq.ParquetFile(raw) as parquet:
        column = _file_column(Path(file), parquet.schema_arrow)
        return parquet.read_row_group(group, columns=[column])[column]


def _file_column(source: Path, schema: pa.Schema) -> str | None:
    """Return the name of the column of files, None without one. Raises ShardError where two may be meant."""
    found = _columns_of_files(schema)
    if not found:
        return None
    known = [name for wanted in _FILE_NAMES for name in found if _plain(name) == wanted]
    if len(found) > 1 and not known:
        shown = " and ".join(excerpt(name) for name in found)
        raise ShardError(f"{source}: its columns {shown} may both hold the files; call the right one image")
    return (known or found)[0]


def _columns_of_files(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _holds_files(field.type) and _plain(field.name) not in NAMES]


def _lists_files(root: Path, parquet: pq.ParquetFile) -> bool:
    """Whether a table that holds files is read for those that it lists: in a column `path`, or files that are here."""
    for field in parquet.schema_arrow:
        name = _plain(field.name)
        if name in PATH_NAMES and not _holds_files(field.type):
            first = next(parquet.iter_batches(1, columns=[field.name]), [[None]])[0][0]
            if name == PATH_NAMES[0] or (root / str(first)).is_file():
                return True
    return False


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        places = kind.get_all_field_indices("bytes")
        return len(places) == 1 and _holds_files(kind.field(places[0]).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _counts(source: Path, parquet: pq.ParquetFile, column: str) -> Iterator[int]:
    """Yield the rows of each row group. Raises ShardError for a group of more bytes than are read at once."""
    for number in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(number)
        chunks = [group.column(place) for place in range(group.num_columns)]
        size = sum(
            chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")
        )
        if size > AT_MOST:
            raise ShardError(
                f"{source}: its row group {number} has {size / 1e9:,.1f} GB of files, and {AT_MOST / 1e9:,.1f} GB are "
                "read at once; write it again in smaller ones (pyarrow.parquet.write_table(..., row_group_size=100))"
            )
        yield group.num_rows


def _file_names(parquet: pq.ParquetFile, column: str) -> list[str | None]:
    """Return the name that each file had, without its folders; None where the table does not tell."""
    kind = parquet.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or "path" not in kind.names or "." in column:
        return [None] * parquet.metadata.num_rows
    paths = [value and value["path"] for value in parquet.read(columns=[f"{column}.path"])[column].to_pylist()]
    return [native(path.rpartition("/")[2]) if isinstance(path, str) else None for path in paths]


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Return the names of the classes by number, as `datasets` writes them into the schema; None without them."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        return None
    return names if len(set(names)) == len(names) else None


def _notes(source: Path, schema: pa.Schema, column: str, label: str | None, labels: list[Any] | None) -> Iterator[str]:
    if others := [name for name in _columns_of_files(schema) if name != column]:
        yield f"{source}: files are those of the column {column}, not of {', '.join(map(excerpt, others))}"
    if label is None:
        yield f"{source}: no classes: no column is called {', '.join(NAMES[:-1])} or {NAMES[-1]}"
    elif labels is None:
        yield f"{source}: no classes: every {label} is {_NO_LABEL}"


def _plain(name: str) -> str:
    return name.strip().casefold()


def _damaged(source: Path, error: Exception) -> ShardError:
    why = excerpt((str(error).splitlines() or [type(error).__name__])[0])
    return ShardError(f"{source}: not a readable .parquet table ({why}); download or write it again")

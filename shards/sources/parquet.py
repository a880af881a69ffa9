"""Read Parquet files that hold images or videos themselves, as data sets on Hugging Face do: columns of {bytes, path}.

A row cannot be read without its row group, so the rows of a group stay together: a shard consists of whole groups, in
an order that depends on the seed, and each group is read once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
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

# Names of the column of files where there are several, the preferred one first. Case does not matter.
_FILE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "video", "mp4", "bytes")
_NO_LABEL = -1  # in test sets on Hugging Face
_PART_OF = re.compile(r"(.*?)-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class Embedded:
    """The content of a table of files, without the files.

    `rows`, `file_names` and `groups` have an entry for each file, None for a file without a name or a group. `label` is
    the name of the column of labels, and `labels` its values, None without labels. `names` are the names of the
    classes, by label, None where the table does not have them. `notes` are lines for the user.
    """

    rows: list[Row]
    file_names: list[str | None]
    groups: list[str | None]
    label: str
    labels: list[Any] | None
    names: list[str] | None
    notes: list[str]


def read_embedded(root: Path, table: str, group_by: str | None = None) -> Embedded | None:
    """Read a table except for its files. Return None where it does not hold files, or lists files that lie beside it.

    Raises ShardError for a table that cannot be read, or whose row groups are too large.
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
            features = _features(schema)
            label = label_name(schema.names) or _class_column(features)
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
    classes = None if label is None else _class_names(features, label)
    if classes is not None and labels is not None:
        labels = [None if value == _NO_LABEL else value for value in labels]
        if all(value is None for value in labels):
            labels = None
    notes = list(_notes(source, schema, column, label, labels))
    return Embedded(rows, names, groups, label or "", labels, classes, notes)


def read_row(file: str, row: Row) -> bytes:
    """Return the bytes of a file in the table `file`. Raises Rejected where they cannot be read."""
    try:
        status = Path(file).stat()
        value = _column_of(file, row.group, status.st_mtime_ns)[row.position].as_py()
    except (OSError, pa.ArrowException, IndexError) as error:
        raise Rejected("unreadable", (str(error).splitlines() or [type(error).__name__])[0]) from None
    except MemoryError:
        raise out_of_memory() from None
    data: bytes | None = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        raise Rejected("empty", "its row has no bytes")
    return data


def missing_parts(tables: Sequence[str]) -> str | None:
    """Return a line on missing files of a series such as `train-00000-of-00005.parquet`, None where all are there."""
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
def _column_of(file: str, group: int, changed: int) -> pa.ChunkedArray:
    """Return the column of files of a row group in a table that was last changed at a time."""
    with arrow_file(Path(file)) as raw, pq.ParquetFile(raw) as parquet:
        column = _file_column(Path(file), parquet.schema_arrow)
        return parquet.read_row_group(group, columns=[column])[column]


def _file_column(source: Path, schema: pa.Schema) -> str | None:
    """Return the name of the column of files, None without one. Raises ShardError where the choice is ambiguous."""
    found = _columns_of_files(schema)
    if not found:
        return None
    known = [name for wanted in _FILE_NAMES for name in found if _plain(name) == wanted]
    if len(found) > 1 and not known:
        shown = " and ".join(excerpt(name) for name in found)
        raise ShardError(f"{source}: its columns {shown} may both contain the files; rename the right one to image")
    return (known or found)[0]


def _columns_of_files(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _holds_files(field.type) and _plain(field.name) not in NAMES]


def _lists_files(root: Path, parquet: pq.ParquetFile) -> bool:
    """Return whether a table that holds files is read as a list: of a column `path`, or of files that lie beside it."""
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
        kind = kind.field(places[0]).type if len(places) == 1 else pa.null()
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _counts(source: Path, parquet: pq.ParquetFile, column: str) -> Iterator[int]:
    """Yield the number of rows of each row group. Raises ShardError for a group that is too large to be read."""
    for number in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(number)
        chunks = [group.column(place) for place in range(group.num_columns)]
        size = sum(
            chunk.total_uncompressed_size for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")
        )
        if size > AT_MOST:
            raise ShardError(
                f"{source}: its row group {number} has {size / 1e9:,.1f} GB of files, and at most "
                f"{AT_MOST / 1e9:,.1f} GB are read at once; write it again with smaller ones "
                "(pyarrow.parquet.write_table(..., row_group_size=100))"
            )
        yield group.num_rows


def _file_names(parquet: pq.ParquetFile, column: str) -> list[str | None]:
    """Return the original name of each file, without its folders, None for a file without one."""
    kind = parquet.schema_arrow.field(column).type
    if not pa.types.is_struct(kind) or "path" not in kind.names or "." in column:
        return [None] * parquet.metadata.num_rows
    paths = [value and value["path"] for value in parquet.read(columns=[f"{column}.path"])[column].to_pylist()]
    return [native(path.rpartition("/")[2]) if isinstance(path, str) else None for path in paths]


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return the kinds of the columns by their names, which `datasets` writes into the schema; empty without them."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: kind for name, kind in features.items() if name in schema.names and isinstance(kind, dict)}


def _class_column(features: Mapping[str, Any]) -> str | None:
    """Return the only column of classes by its kind, whatever its name; None where there are several."""
    found = [name for name, kind in features.items() if kind.get("_type") == "ClassLabel"]
    return found[0] if len(found) == 1 else None


def _class_names(features: Mapping[str, Any], label: str) -> list[str] | None:
    """Return the names of the classes by number, None where the schema does not have them."""
    names = features.get(label, {}).get("names")
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

"""Read a data set's own files, which another program may have written; any defect raises one ShardError."""

import errno
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards.files import ShardError, arrow_file
from shards.storage import as_local, join, printable_url
from shards.text import one_line

FORMAT = "maskfeat-shards"
AGAIN = "build or index the data set again"


@contextmanager
def local_copy(root: str | Path, name: str) -> Iterator[Path]:
    """Yield a local path of one of a data set's own files. Raises ShardError where it is missing or unreadable."""
    file = join(root, name)
    with readable(file), as_local(file) as path:
        path.stat()  # Arrow's error for a missing file does not have a number
        yield path


@contextmanager
def readable(file: str) -> Iterator[None]:
    """Turn errors of reading the file or URL into a ShardError."""
    try:
        yield
    except OSError as error:
        raise unreadable(file, error) from None
    except (pa.ArrowException, MemoryError, ValueError, KeyError) as error:
        raise unusable(file, error) from None


def unreadable(file: str, error: OSError) -> ShardError:
    """Return the error for a file that is missing or unreadable."""
    if error.errno == errno.ENOENT:
        return ShardError(f"{printable_url(file)}: is missing; copy it from the original data set or build it again")
    if error.errno is None:  # Arrow's own errors
        return unusable(file, error)
    return ShardError(f"{printable_url(file)}: cannot be read: {error.strerror or error}; fix it and try again")


def unusable(file: str, error: Exception | str) -> ShardError:
    """Return the error for a file whose content violates docs/reference/data-format.md."""
    kind = "description" if file.endswith(".json") else "table"
    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ShardError(f"{printable_url(file)}: is not a {FORMAT} {kind} ({one_line(why)}); {AGAIN}")


def read_columns(
    path: Path,
    schema: pa.Schema,
    columns: Collection[str] | None = None,
    nullable: Collection[str] = (),
    may_lack: Collection[str] = (),
) -> pa.Table:
    """Read a Parquet file with the columns of `schema`, of these types or of others of integers or text.

    Args:
        path: that of the file.
        schema: the required columns, and the types of the result.
        columns: the columns to read, by default all of `schema`.
        nullable: the columns that may hold nulls.
        may_lack: the columns that may be missing from the file, and are then missing from the table.

    Raises ValueError or pa.ArrowException, which `readable` explains, where the file is invalid.
    """
    with arrow_file(path) as raw, pq.ParquetFile(raw) as file:
        for field in schema:
            places = file.schema_arrow.get_all_field_indices(field.name)
            if not places and field.name in may_lack:
                continue
            if len(places) != 1:
                raise ValueError(f"{len(places)} columns are named {field.name}")
            kind = file.schema_arrow.field(places[0]).type
            if _kind(kind) != _kind(field.type):
                raise ValueError(f"column {field.name} is of type {kind} instead of {field.type}")
        there = [field for field in schema if field.name in file.schema_arrow.names]
        wanted = pa.schema([field for field in there if columns is None or field.name in columns])
        table = file.read(wanted.names).select(wanted.names).cast(wanted)
    table.validate(full=True)
    for name in wanted.names:
        if name not in nullable and table[name].null_count:
            raise ValueError(f"column {name} has nulls")
    return table


def _kind(of: pa.DataType) -> str:
    if pa.types.is_integer(of):
        return "integer"
    if pa.types.is_list(of) or pa.types.is_large_list(of):
        return f"list of {_kind(of.value_type)}"
    return "text" if pa.types.is_string(of) or pa.types.is_large_string(of) else str(of)

"""Read the two relevant columns of a `.csv` or `.parquet` table: the files, and their classes."""

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from shards.files import ShardError, arrow_file
from shards.labels import NAMES, label_name
from shards.media.registry import suffixes
from shards.sources.video_lists import KINETICS, is_plain_list, kinetics_path, plain_list
from shards.text import excerpt

# Names of a column of paths or URLs, the most explicit first. Case and surrounding spaces do not matter.
PATH_NAMES = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image_path",
    "img_path",
    "video_path",
    "image",
    "url",
)

_DELIMITERS = ",;\t|"
_SHOWN = 10  # columns in a message


class Columns(NamedTuple):
    """All rows of a table, unchanged.

    `labels` is None without a column of labels; `label` is the name of that column, and `others` are other candidates.
    `groups` is None without a column of groups.
    """

    paths: list[Any]
    labels: list[Any] | None
    label: str
    others: list[str]
    groups: list[Any] | None = None


def read_path_and_label(source: Path, group_by: str | None = None) -> Columns:
    """Read a table; `group_by` is its column of groups, by default one called `group`.

    Raises ShardError for a file that is not a table, for a column that is missing, and where the choice of a column is
    ambiguous.
    """
    kind = source.suffix.lower()
    why: Exception
    try:
        return (_read_parquet if kind == ".parquet" else _read_csv)(source, group_by)
    except UnicodeDecodeError as error:
        raise _not_utf_8(source, f"{error.reason} at byte {error.start:,}") from None
    except OSError as error:
        if error.errno is not None:
            raise ShardError(f"{source}: {error.strerror}; make it readable") from None
        why = error  # Arrow's own error, for a damaged file
    except (csv.Error, pa.ArrowException) as error:
        why = error
    raise ShardError(f"{source}: not a readable UTF-8 {kind} table ({excerpt(str(why).strip())}); write it again")


def _read_csv(source: Path, group_by: str | None) -> Columns:
    with source.open("rb") as raw:
        utf_16 = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    with source.open(encoding="utf-16" if utf_16 else "utf-8-sig", newline="") as file:
        delimiter, padded, header = _header(file)
        if is_plain_list(delimiter.join(header)):
            file.seek(0)
            return Columns(*plain_list(source, file.read().splitlines()), "label", [])
        path, label = _path_column(source, header), _label_column(source, header)
        group = group_column(source, header, group_by)
        named = [_plain(name) for name in header]
        kinetics = path is None and set(named) >= KINETICS
        if any("\0" in name for name in header):
            raise _not_utf_8(source, "it contains zero bytes, as UTF-16 does")
        if path is None and not kinetics:
            if any(f".{suffix}" in name.lower() for name in header for suffix in suffixes()):
                raise ShardError(
                    f"{source}: has no header: its first line begins with {excerpt(header[0])}; put a line with the "
                    "names of the columns above it, such as path,label"
                )
            raise _no_path(source, header)
        paths, labels, groups = [], [], []
        file.seek(0)
        for number, row in enumerate(_rows(file, delimiter, padded, strict=True)):
            if len(row) != len(header):
                raise ShardError(f"{source}: row {number} has more or fewer fields than the header; quote its commas")
            if number:
                if path is None:
                    columns = dict(zip(named, map(str.strip, row), strict=True))
                    paths.append(kinetics_path(source, number, columns))
                else:
                    paths.append(row[path])
                labels.append("" if label is None else row[label])
                groups.append("" if group is None else row[group])
    return _columns(header, label, paths, labels)._replace(groups=None if group is None else groups)


def _header(file: IO[str]) -> tuple[str, bool, list[str]]:
    """Return the delimiter with which a column of paths is found, else a comma; whether spaces follow; the columns."""
    first: tuple[str, bool, list[str]] | None = None
    for delimiter in _DELIMITERS:
        file.seek(0)
        padded = any(name.startswith(" ") for name in next(_rows(file, delimiter, False), []))
        file.seek(0)
        names = next(_rows(file, delimiter, padded), [])
        first = first or (delimiter, padded, names)
        if not set(PATH_NAMES).isdisjoint(map(_plain, names)):
            return delimiter, padded, names
    assert first
    return first


def _rows(file: IO[str], delimiter: str, padded: bool, strict: bool = False) -> Iterator[list[str]]:
    """Yield all rows but blank lines, the header first. With `padded`, a quote after a space is a quote."""
    return filter(None, csv.reader(file, strict=strict, delimiter=delimiter, skipinitialspace=padded))


def _read_parquet(source: Path, group_by: str | None) -> Columns:
    with arrow_file(source) as file:
        table = pq.ParquetFile(file)
        schema = table.schema_arrow
        embedded = [field.name for field in schema if _holds_bytes(field.type)]
        path = _path_column(source, ["" if name in embedded else name for name in schema.names])
        label = _label_column(source, schema.names)
        if path is None:
            raise _embeds(source, embedded[0]) if embedded else _no_path(source, schema.names)
        group = group_column(source, schema.names, group_by)
        paths, labels, groups = (
            [] if column is None else table.read(columns=[name := schema.names[column]])[name].to_pylist()
            for column in (path, label, group)
        )
    return _columns(schema.names, label, paths, labels)._replace(groups=None if group is None else groups)


def _columns(names: Sequence[str], label: int | None, paths: list[Any], labels: Sequence[Any] = ()) -> Columns:
    if label is None:
        return Columns(paths, None, "", [])
    others = [name.strip() for name in names if _plain(name) in NAMES and name != names[label]]
    return Columns(paths, list(labels), names[label].strip(), others)


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether a column holds encoded images or pixels: bytes, alone or beside a path, or lists of numbers."""
    if pa.types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.types.is_integer(kind.value_type) or _holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _plain(name: str) -> str:
    return name.strip().casefold()


def _path_column(source: Path, names: Sequence[str]) -> int | None:
    """Return the position of the column of paths, None if there is none."""
    known = [_plain(name) for name in names]
    found = [name for name in PATH_NAMES if name in known]
    if len(found) > 1 and found[0] != PATH_NAMES[0]:
        raise ShardError(
            f"{source}: its columns {' and '.join(found)} may both list the files; rename the right one to path"
        )
    return _position(source, names, found[0]) if found else None


def _label_column(source: Path, names: Sequence[str]) -> int | None:
    """Return the position of the column of labels, None if there is none."""
    name = label_name(names)
    return None if name is None else _position(source, names, name)


def group_column(source: Path, names: Sequence[str], group_by: str | None) -> int | None:
    """Return the position of the column by which rows are grouped: `group_by`, or else `group`, None without that.

    Raises ShardError where there is no column `group_by`, or two.
    """
    wanted = _plain(group_by or "group")
    if wanted in map(_plain, names):
        return _position(source, names, wanted)
    if group_by is None:
        return None
    raise no_group(source, group_by)


def as_group(value: object) -> str | None:
    """Return the name of the group that a value stands for; None for null, NaN and empty text: no group."""
    name = "" if value is None or value != value else str(value).strip()
    return name or None


def no_group(source: Path, group_by: str) -> ShardError:
    """Return the error for a source without the column by which it is to be grouped."""
    return ShardError(f"{source}: has no column {excerpt(group_by)} for --group-by; name one of a table")


def _position(source: Path, names: Sequence[str], name: str) -> int:
    known = [_plain(each) for each in names]
    if known.count(_plain(name)) > 1:
        raise ShardError(f"{source}: has two columns {_plain(name)}; rename or leave out one of them")
    return known.index(_plain(name))


def _not_utf_8(source: Path, why: str) -> ShardError:
    return ShardError(
        f"{source}: is not UTF-8 ({why}): write it again as UTF-8, or convert it as in `iconv -f LATIN1 -t UTF-8`"
    )


def _embeds(source: Path, column: str) -> ShardError:
    return ShardError(
        f"{source}: has images in its column {excerpt(column)}, but not one file per row, as bytes or {{bytes, path}}; "
        "write them in that form, or write them to files and list the paths or URLs in a column `path`"
    )


def _no_path(source: Path, names: Sequence[str]) -> ShardError:
    if not names:
        return ShardError(f"{source}: is empty; its first line has to name the columns, such as path,label")
    shown = [excerpt(name) for name in names[:_SHOWN]] + ["..."] * (len(names) > _SHOWN)
    return ShardError(f"{source}: has no column `path` among {', '.join(shown)}; rename the one that lists the files")

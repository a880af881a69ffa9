"""List the images of a `.csv` or `.parquet` table: a column of paths, and one of labels if there are classes."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shards.files import ShardError
from shards.labels import NAMES, Label, as_label, number_classes, on_mixture
from shards.remote.urls import is_url
from shards.sources.listing import Listing
from shards.sources.parquet import Embedded, missing_parts, read_embedded
from shards.sources.table_columns import Columns, as_group, read_path_and_label
from shards.storage import printable_url, shows_credentials, why_refused, why_unsupported
from shards.text import excerpt, native


def list_table(source: Path, group_by: str | None = None) -> Listing:
    """List the rows of a table. Relative paths start at its folder; integer labels do not change, names are sorted.

    Rows with the same value in the column `group_by`, by default `group` where there is one, form a group.
    Raises ShardError for a file that is not such a table, and for a bad row, by its number, which is 1 for the first
    row below the header. A missing file is found when it is read, and only that image is lost.
    """
    columns = read_path_and_label(source, group_by)
    if not columns.paths:
        raise ShardError(f"{source}: has no rows; list at least one file")
    paths = [_path(source, number, value) for number, value in enumerate(columns.paths, 1)]
    sizes = list(_sizes(source, paths))
    numbers, classes = ([], []) if columns.labels is None else _classes(source, columns.label, columns.labels)
    order = sorted(range(len(paths)), key=lambda row: os.fsencode(paths[row]))
    return Listing(
        root=source.parent,
        paths=[paths[row] for row in order],
        sizes=[sizes[row] for row in order],
        offsets=[],
        labels=[numbers[row] for row in order] if numbers else [],
        classes=classes,
        ignored=0,
        notes=tuple(_notes(source, columns, classes)),
        groups=[as_group(columns.groups[row]) for row in order] if columns.groups else (),
    )


def list_parquet(root: Path, tables: Sequence[str], group_by: str | None = None) -> Listing:
    """List the files that Parquet tables hold, or those that a single one lists, as `list_table` does.

    Args:
        root: the folder of the tables.
        tables: their paths in it.
        group_by: the column by which rows are grouped, by default `group` if it is there.

    Raises ShardError for a table that is not readable or does not fit the others, and for a bad label by its row.
    """
    parts: list[Embedded] = []
    for table in tables:
        part = read_embedded(root, table, group_by)
        if part is None and len(tables) == 1:
            return list_table(root / table, group_by)
        if part is None:
            raise ShardError(f"{root / table}: does not contain files, unlike those beside it; build it by itself")
        if parts and (part.names != parts[0].names or (part.labels is None) != (parts[0].labels is None)):
            raise ShardError(f"{root / table}: has other classes than {tables[0]}; build each by itself")
        parts.append(part)
    names = parts[0].names
    labels: list[Label] = []
    for table, part in zip(tables, parts, strict=True):
        labels += _labels(root / table, part.label, part.labels or [], names)
    numbers, classes = number_classes(set(labels))
    if not any(part.rows for part in parts):
        raise ShardError(f"{root}: {', '.join(tables)} has no rows; download or write it again")
    notes = [note for part in parts for note in part.notes]
    if mixture := on_mixture(classes):
        notes.append(f"{root}: {mixture}")
    if missing := missing_parts(tables):
        notes.append(f"{root}: {missing}")
    rows = [row for part in parts for row in part.rows]
    return Listing(
        root=root,
        paths=[path for table, part in zip(tables, parts, strict=True) for path in _names_of_rows(table, part)],
        sizes=[None] * len(rows),
        offsets=[],
        labels=[numbers[label] for label in labels],
        classes=names if names and labels else [native(name) for name in classes],
        ignored=0,
        notes=tuple(dict.fromkeys(notes)),
        rows=rows,
        groups=[group for part in parts for group in part.groups] if any(part.groups for part in parts) else (),
        tables={table: (root / table).stat().st_size for table in tables},
    )


def _names_of_rows(table: str, part: Embedded) -> Iterator[str]:
    for number, name in enumerate(part.file_names):
        yield f"{table}/{number:06d}/{name}" if name else f"{table}/{number:06d}"


def _notes(source: Path, columns: Columns, classes: Sequence[str]) -> Iterator[str]:
    if columns.labels is None:
        yield f"{source}: no classes: no column is called {', '.join(NAMES[:-1])} or {NAMES[-1]}"
    elif columns.others:
        yield f"{source}: labels are those of the column {columns.label}, not of {', '.join(columns.others)}"
    if mixture := on_mixture(classes):
        yield f"{source}: {mixture}"


def _path(source: Path, number: int, value: Any) -> str:
    """Return the path in a row. Spaces around it are kept only where a file has such a name."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ShardError(
            f"{source}: row {number} has no usable path ({excerpt(repr(value))}); correct it or leave it out"
        )
    path, bare = native(value), native(value.strip())
    try:
        return path if path == bare or (source.parent / path).exists() else bare
    except OSError:  # a name that is too long, or an inaccessible folder
        return bare


def _sizes(source: Path, paths: Sequence[str]) -> Iterator[int | None]:
    """Yield the size of each file, 0 for a missing one, None for a URL; raises ShardError for a bad path."""
    rows: dict[str, int] = {}
    protocols: set[str] = set()
    for number, path in enumerate(paths, 1):
        if rows.setdefault(path, number) != number:
            raise _bad(source, number, path, f"is in row {rows[path]} already; leave one of them out")
        if is_url(path):
            if shows_credentials(path):
                why = "contains credentials, which a data set reveals; leave them out: they come from the environment"
                raise _bad(source, number, path, why)
            protocol = path.partition("://")[0]
            refused = why_refused(path) if protocol in protocols else why_unsupported(path)
            if refused is not None:
                raise _bad(source, number, path, f"cannot be read: {excerpt(refused)}")
            protocols.add(protocol)
            yield None
            continue
        try:
            status = (source.parent / path).stat()
        except OSError:
            yield 0
            continue
        if not stat.S_ISREG(status.st_mode):
            raise _bad(source, number, path, "is not a file; correct it or leave it out")
        yield status.st_size


def _bad(source: Path, number: int, path: str, why: str) -> ShardError:
    return ShardError(f"{source}: row {number}: {excerpt(printable_url(path))} {why}")


def _classes(source: Path, column: str, values: Sequence[Any]) -> tuple[list[int], list[str]]:
    """Return labels as integers, and the names of all classes."""
    labels = _labels(source, column, values)
    numbers, classes = number_classes(set(labels))
    return [numbers[label] for label in labels], [native(name) for name in classes]


def _labels(source: Path, column: str, values: Sequence[Any], names: Sequence[str] | None = None) -> list[Label]:
    """Return the label of each row. Where the classes have `names`, labels are their numbers."""
    labels: list[Label] = []
    for number, value in enumerate(values, 1):
        try:
            label = as_label(value)
        except ValueError as error:
            raise ShardError(
                f"{source}: row {number}: {column} {error}; correct it, or leave out the whole column"
            ) from None
        if label is None:
            raise ShardError(f"{source}: row {number} has no {column}; fill it in, or leave out the whole column")
        if names is not None and not (isinstance(label, int) and label < len(names)):
            raise ShardError(f"{source}: row {number}: {column} {excerpt(label)} is none of its {len(names)} classes")
        labels.append(label)
    return labels

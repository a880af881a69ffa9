"""List the images of a `.csv` or `.parquet` table: a column of paths, and one of labels if there are classes."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shards.files import ShardError
from shards.labels import NAMES, as_label, number_classes, on_mixture
from shards.remote.urls import is_url
from shards.sources.listing import Listing
from shards.sources.table_columns import Columns, read_path_and_label
from shards.storage import printable_url, shows_credentials, why_refused, why_unsupported
from shards.text import excerpt, native


def list_table(source: Path) -> Listing:
    """List the rows of a table. Relative paths start at its folder; integer labels do not change, names are sorted.

    Raises ShardError for a file that is not such a table, and for a bad row, by its number, which is 1 for the first
    row below the header. A missing file is found when it is read, and only that image is lost.
    """
    columns = read_path_and_label(source)
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
    )


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
                why = "holds credentials, which the data set would show; leave them out, they come from the environment"
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
    labels = []
    for number, value in enumerate(values, 1):
        try:
            label = as_label(value)
        except ValueError as error:
            raise ShardError(
                f"{source}: row {number}: {column} {error}; correct it, or leave out the whole column"
            ) from None
        if label is None:
            raise ShardError(f"{source}: row {number} has no {column}; fill it in, or leave out the whole column")
        labels.append(label)
    numbers, classes = number_classes(set(labels))
    return [numbers[label] for label in labels], [native(name) for name in classes]

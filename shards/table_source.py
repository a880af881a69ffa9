"""The images that a `.csv` or `.parquet` table lists: a column `path`, and `label` if they have classes."""

import csv
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.files import ShardError
from shards.labels import MAX_LABEL
from shards.listing import Listing, is_url
from shards.storage import printable_url, shows_credentials, why_refused, why_unsupported

_INTEGER = re.compile(r"0|-?[1-9]\d*")


def list_table(source: Path) -> Listing:
    """Lists the rows of a table. Relative paths start at its folder; integer labels are kept, names are sorted.

    Raises ShardError for a file that is not such a table, and for a bad row, by its number: 1 is the first
    below the header. That a file is missing shows when it is read, and costs only that image.
    """
    try:
        paths, labels = _read_csv(source) if source.suffix == ".csv" else _read_parquet(source)
    except (csv.Error, UnicodeDecodeError, pa.ArrowException) as error:
        raise ShardError(f"{source}: not a readable UTF-8 {source.suffix} table ({error}); write it again") from None
    except OSError as error:
        raise ShardError(f"{source}: {error.strerror}; make it readable") from None
    if not paths:
        raise ShardError(f"{source}: has no rows; list at least one image")
    sizes = list(_sizes(source, paths))
    numbers, classes = ([], []) if labels is None else _classes(source, labels)
    order = sorted(range(len(paths)), key=lambda row: os.fsencode(paths[row]))
    return Listing(
        root=source.parent,
        paths=[paths[row] for row in order],
        sizes=[sizes[row] for row in order],
        offsets=[],
        labels=[numbers[row] for row in order] if numbers else [],
        classes=classes,
        ignored=0,
    )


def _read_csv(source: Path) -> tuple[list[Any], list[Any] | None]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns = _known_columns(source, list(reader.fieldnames or []))
        rows = []
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise ShardError(f"{source}: row {number} has more or fewer fields than the header; quote its commas")
            rows.append([row[name] for name in columns])
    return [row[0] for row in rows], [row[1] for row in rows] if len(columns) == 2 else None


def _read_parquet(source: Path) -> tuple[list[Any], list[Any] | None]:
    columns = _known_columns(source, pq.read_schema(source).names)
    table = pq.read_table(source, columns=columns)
    return table["path"].to_pylist(), table["label"].to_pylist() if len(columns) == 2 else None


def _known_columns(source: Path, names: list[str]) -> list[str]:
    if "path" not in names:
        raise ShardError(f"{source}: has no column `path` among {', '.join(names) or 'none'}; name it so")
    return ["path", "label"] if "label" in names else ["path"]


def _sizes(source: Path, paths: list[Any]) -> Iterator[int | None]:
    """The size of each file, 0 for a missing one, None for a URL; raises ShardError for a bad path."""
    rows: dict[str, int] = {}
    protocols: set[str] = set()
    for number, path in enumerate(paths, 1):
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise ShardError(f"{source}: row {number} has no usable path ({path!r}); correct it or leave it out")
        if rows.setdefault(path, number) != number:
            raise ShardError(
                f"{source}: row {number}: {printable_url(path)} is in row {rows[path]} already; leave one of them out"
            )
        if is_url(path):
            if shows_credentials(path):
                raise ShardError(
                    f"{source}: row {number}: {printable_url(path)} holds credentials, which the data set would show; "
                    "leave them out, they come from the environment"
                )
            protocol = path.partition("://")[0]
            why = why_refused(path) if protocol in protocols else why_unsupported(path)
            if why is not None:
                raise ShardError(f"{source}: row {number}: {printable_url(path)} cannot be read: {why}")
            protocols.add(protocol)
            yield None
            continue
        try:
            status = (source.parent / path).stat()
        except OSError:
            yield 0
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ShardError(f"{source}: row {number}: {path} is not a file; correct it or leave it out")
        yield status.st_size


def _classes(source: Path, labels: list[Any]) -> tuple[list[int], list[str]]:
    """Labels as integers, and the names of all classes."""
    for number, label in enumerate(labels, 1):
        if label is None or label == "":
            raise ShardError(f"{source}: row {number} has no label; fill it in, or leave out the whole column")
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise ShardError(f"{source}: row {number}: label {label!r} is neither a name nor an integer; correct it")
    texts = [str(label) for label in labels]
    if not all(_INTEGER.fullmatch(text) for text in texts):
        names = sorted(set(texts), key=os.fsencode)
        index = {name: label for label, name in enumerate(names)}
        return [index[text] for text in texts], names
    numbers = [int(text) for text in texts]
    for row, label in enumerate(numbers, 1):
        if not 0 <= label <= MAX_LABEL:
            raise ShardError(f"{source}: row {row}: label {label} is not in 0 to {MAX_LABEL}; give names instead")
    return numbers, [str(label) for label in range(max(numbers) + 1)]

"""The error that users see, and operations on whole files."""

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

_DEEPEST = 20  # nested lists and objects that JSON may have
AT_MOST = 2**30  # bytes read at once; far more than any image has


class ShardError(Exception):
    """An input or a data set cannot be used; the message is one line that names it and the remedy."""


def real(path: str | Path) -> Path:
    """Return an absolute path without links. A circular link is kept; opening it raises the error."""
    return Path(os.path.realpath(path))


def open_regular(path: str | Path) -> io.FileIO:
    """Open a regular file for reading, unbuffered.

    Raises OSError for anything else: a FIFO would block its reader, and a device may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return io.FileIO(descriptor)


def read_at(file: io.FileIO, offset: int, size: int) -> bytes:
    """Read `size` bytes at `offset`, or fewer where the file ends earlier.

    Raises OSError (EFBIG) for more than `AT_MOST`.
    """
    size = min(size, os.fstat(file.fileno()).st_size - offset)
    if size > AT_MOST or offset < 0:
        raise OSError(errno.EFBIG, f"cannot be read at once: {size:,} bytes at {offset:,}")
    return os.pread(file.fileno(), max(0, size), offset)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a regular file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:  # this also avoids files of /proc, whose reads may block
            return hashlib.sha256().hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def arrow_file(path: Path, mode: str = "rb") -> pa.NativeFile:
    """Open a regular file for Arrow, to read or to write it. A writer has to close it.

    Arrow would read a name as UTF-8 whatever the locale, and must not read a Python file: one of its threads that
    releases the file while the interpreter ends aborts the process (https://github.com/apache/arrow/issues/34314).

    Raises OSError as `open_regular` does.
    """
    if mode == "rb":
        open_regular(path).close()
    return pa.OSFile(os.fsencode(path), mode)


def fsync(path: Path) -> None:
    """Make a file, or the entries of a folder, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text that is unambiguous.

    Raises ValueError for invalid JSON, for too deep nesting, and for an object with a duplicate name.
    """
    try:
        found = json.loads(text, object_pairs_hook=_named_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [found]
    for _ in range(_DEEPEST):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _values(outer)]
    if level:  # otherwise code that walks through it would exceed Python's recursion limit later
        raise ValueError("it is nested too deeply")
    return found


def _values(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("an object has a name twice")
    return named

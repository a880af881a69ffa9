"""The error that users see, and what is done with whole files."""

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

_DEEPEST = 20  # lists and objects in each other that JSON may have
AT_MOST = 2**30  # bytes that are read at once, which is far more than any image has


class ShardError(Exception):
    """An input or a data set cannot be used; the message is one line that names it and the remedy."""


def real(path: str | Path) -> Path:
    """An absolute path without links, but for one that leads in a circle: whoever opens that says so."""
    return Path(os.path.realpath(path))


def open_regular(path: str | Path) -> io.FileIO:
    """Open a regular file to read, without a buffer.

    Raises OSError for anything else: a FIFO would hang whoever reads it, and a device may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return io.FileIO(descriptor)


def read_at(file: io.FileIO, offset: int, size: int) -> bytes:
    """Read `size` bytes at `offset`, or those of them that the file has, of which there may be any number.

    Raises OSError (EFBIG) for more than `AT_MOST`.
    """
    size = min(size, os.fstat(file.fileno()).st_size - offset)
    if size > AT_MOST or offset < 0:
        raise OSError(errno.EFBIG, f"cannot be read at once: {size:,} bytes at {offset:,}")
    return os.pread(file.fileno(), max(0, size), offset)


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:  # nor is anything read of /proc, where files may hang
            return hashlib.sha256().hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def arrow_file(path: Path, mode: str = "rb") -> pa.NativeFile:
    """A file for Arrow, which would take the name for UTF-8 whatever the locale. Whoever writes to it closes it."""
    return pa.OSFile(os.fsencode(path), mode)


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says, where it says one thing only.

    Raises ValueError for what is not JSON or nested too deep, and for an object that has a name twice.
    """
    try:
        found = json.loads(text, object_pairs_hook=_named_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level = [found]
    for _ in range(_DEEPEST):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _values(outer)]
    if level:  # whoever walks through it would meet Python's limit later
        raise ValueError("it is nested too deep")
    return found


def _values(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("an object has a name twice")
    return named

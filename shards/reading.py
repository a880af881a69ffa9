"""Reads bytes from files and, through fsspec, from URLs. fsspec is imported late, since most data needs none."""

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from shards.listing import is_url

Result = TypeVar("Result")

_PAUSES = (0.5, 2.0, 8.0)  # seconds before each further attempt at a URL
_PASSING = (408, 425, 429)  # HTTP statuses of the 4xx range that may be others later


def read(file: str, offset: int | None = None, size: int | None = None) -> bytes:
    """All of a file or URL, or the `size` bytes at `offset`. Raises OSError, for a URL after a few attempts."""
    if offset is None or size is None:
        return _retried(file, lambda: _cat(file)) if is_url(file) else Path(file).read_bytes()
    if is_url(file):
        data = _retried(file, lambda: _cat(file, start=offset, end=offset + size))
    else:
        with Path(file).open("rb") as opened:
            data = os.pread(opened.fileno(), size, offset)
    if len(data) != size:  # a file cut short, or a server that sends all of it where a part is asked for
        raise OSError(errno.EIO, f"{len(data)} bytes came instead of {size}", file)
    return data


@contextmanager
def as_local(file: str, scratch: Path) -> Iterator[Path]:
    """Yields a path of the same bytes: `file` itself or, of a URL, a copy in the folder `scratch` for the while."""
    if not is_url(file):
        yield Path(file)
        return
    with tempfile.NamedTemporaryFile(dir=scratch) as copy:
        _retried(file, lambda: _download(file, copy.name))
        yield Path(copy.name)


def why_unsupported(url: str) -> str | None:
    """Why no URL of this protocol can be read, for lack of a package for instance; None if it can."""
    from fsspec.core import url_to_fs

    try:
        url_to_fs(url)
    except (ImportError, ValueError) as error:
        return str(error)
    return None


def _download(url: str, path: str) -> None:
    from fsspec.core import url_to_fs

    filesystem, remote = url_to_fs(url)
    filesystem.get_file(remote, path)


def _cat(url: str, **part: int) -> bytes:
    from fsspec.core import url_to_fs

    filesystem, remote = url_to_fs(url)
    return bytes(filesystem.cat_file(remote, **part))


def _retried(url: str, attempt: Callable[[], Result]) -> Result:
    for pause in (*_PAUSES, None):
        try:
            return attempt()
        except Exception as error:  # every protocol has its own, of which few are OSErrors
            status = getattr(error, "status", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING
            if pause is None or refused or isinstance(error, FileNotFoundError | PermissionError):
                what = "not found" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
                raise OSError(errno.EIO, what, url) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")

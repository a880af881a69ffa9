"""Read and write bytes of files and URLs.

Requests to URLs are retried, see shards.remote.request.
"""

import errno
import io
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from shards.files import AT_MOST, fsync, open_regular, read_at
from shards.remote.request import DEADLINE, StorageError, Traffic, locate, request
from shards.remote.urls import has_query, is_on_web, is_url, printable_url, shows_credentials, why_refused
from shards.text import native, portable

__all__ = [
    "DEADLINE",
    "StorageError",
    "Traffic",
    "as_local",
    "delete",
    "download",
    "has_query",
    "is_on_web",
    "join",
    "listing",
    "opened",
    "printable_url",
    "read",
    "refuse_without_ranges",
    "replacing",
    "shows_credentials",
    "size_of",
    "upload",
    "why_refused",
    "why_unsupported",
]

SCRATCH = ".writing-"  # prefix of the names of unfinished files
_CHUNK = 8 * 2**20  # bytes per request of a download
_AT_MOST_FROM_WEB = 2**26  # bytes of a whole file from a web server, whose stated size is not trusted
_SLOWEST = 1e6  # bytes per second, the least speed of an upload


def join(root: str | Path, name: str) -> str:
    """Return the path or URL of `name` relative to `root`, a folder or URL: `name` itself if it is a URL or absolute.

    Names are UTF-8, as `portable` makes them; paths are those of this locale.
    """
    root = str(root)
    if is_url(name):
        return name
    if is_url(root) and not name.startswith("/"):  # in web addresses, `%`, `?` and `#` are not part of a name
        return posixpath.join(root, quote(name, errors="surrogateescape") if is_on_web(root) else name)
    return posixpath.join(root, native(name))


def read(
    file: str,
    offset: int | None = None,
    size: int | None = None,
    *,
    at_most: int | None = None,
    traffic: Traffic | None = None,
    deadline: float = DEADLINE,
) -> bytes:
    """Return all of a file or URL, or the `size` bytes at `offset`.

    At most `at_most` bytes are held in memory, by default `AT_MOST`, or 64 MiB of a whole file of a web server. After
    `deadline` seconds, a request to a URL is not retried; `traffic` counts the attempts. Raises OSError for a file that
    cannot be read or is not regular; StorageError for a URL, where there is more (EFBIG), and where the number of bytes
    is not `size`.
    """
    whole = offset is None or size is None
    web = is_on_web(file)
    at_most = at_most or (_AT_MOST_FROM_WEB if web and whole else AT_MOST)
    if offset is None or size is None:
        offset, size = 0, at_most + 1
    elif size > at_most or min(offset, size) < 0:
        raise StorageError(errno.EFBIG, f"cannot be read at once: {size:,} bytes at {offset:,}", printable_url(file))
    if not is_url(file):
        with open_regular(file) as part:
            data = read_at(part, offset, size)
    elif not size:
        data = b""  # HTTP does not have empty ranges
    elif web and whole:
        data = request(file, "cat_file", traffic, deadline, at_most=at_most)
    else:
        try:
            data = request(file, "cat_file", traffic, deadline, start=offset, end=offset + size)
        except StorageError as error:
            if not whole or error.errno != errno.ERANGE:
                raise
            data = b""  # an empty file does not have ranges
    if whole and len(data) > at_most:
        raise StorageError(errno.EFBIG, f"has more than {at_most:,} bytes", printable_url(file))
    if not whole and len(data) != size:
        raise StorageError(errno.EIO, f"{len(data)} bytes were received instead of {size}", printable_url(file))
    return data


def refuse_without_ranges(url: str, *, traffic: Traffic | None = None, deadline: float = DEADLINE) -> None:
    """Raise StorageError (EOPNOTSUPP) where a web server ignores ranges and sends whole files.

    One byte of the URL is requested. Other stores support ranges.
    """
    if is_on_web(url):
        read(url, 0, 1, traffic=traffic, deadline=deadline)


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    traffic: Traffic | None = None,
    deadline: float = DEADLINE,
) -> None:
    """Copy a URL to the file `path`, a range at a time, so that a failure repeats one range and memory stays small.

    The deadline applies to each range. Raises StorageError, also when the size of the URL is not `size`, and OSError
    when the file cannot be written; a part of the file may then be left.
    """
    with path.open("wb") as file, opened(url, traffic=traffic, deadline=deadline) as source:
        if size is not None and source.seek(0, os.SEEK_END) != size:
            raise StorageError(errno.EIO, f"has {source.tell()} bytes instead of {size}", printable_url(url))
        if source.seek(0, os.SEEK_END) > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        source.seek(0)
        shutil.copyfileobj(source, file, _CHUNK)


def opened(file: str, *, traffic: Traffic | None = None, deadline: float = DEADLINE) -> io.RawIOBase:
    """Open a file or URL for reading, unbuffered: a URL is read in ranges. Raises as `read` does."""
    if not is_url(file):
        return open_regular(file)
    size = request(file, "info", traffic, deadline)["size"]
    if size is None:
        raise StorageError(errno.EIO, "its server does not report its size; use one that does", printable_url(file))
    return _Remote(file, int(size), traffic, deadline)


@contextmanager
def as_local(file: str, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a path with these bytes: `file` itself or, for a URL, a temporary copy in a folder for scratch files.

    Raises StorageError as `download` does, and OSError for a file that is not regular.
    """
    if not is_url(file):
        open_regular(file).close()
        yield Path(file)
        return
    with tempfile.NamedTemporaryFile(dir=scratch, prefix=SCRATCH) as copy:
        download(file, Path(copy.name))
        yield Path(copy.name)


def upload(path: Path, url: str, *, deadline: float = DEADLINE) -> None:
    """Copy a file to a URL, where it appears atomically. Raises StorageError."""
    request(url, "put_file", None, deadline, str(path), extra=path.stat().st_size / _SLOWEST)


@contextmanager
def replacing(file: str | Path, staging: Path) -> Iterator[Path]:
    """Yield a scratch path in `staging`; the file that the block writes there becomes `file`, durably and atomically.

    `file` is a URL, or on the file system of `staging`. The scratch path is in a new private folder with an
    unpredictable name. It is removed when the block fails; a block that leaves no scratch file publishes nothing.
    Raises OSError, for a URL StorageError.
    """
    with tempfile.TemporaryDirectory(dir=staging, prefix=SCRATCH, ignore_cleanup_errors=True) as folder:
        scratch = Path(folder, PurePosixPath(file).name)
        yield scratch
        if not scratch.exists():
            return
        if is_url(str(file)):
            upload(scratch, str(file))
            return
        fsync(scratch)
        scratch.replace(file)
    fsync(Path(file).parent)


def size_of(file: str) -> int | None:
    """Return the bytes of a file or URL, None where there is no such file. Raises as `read` does."""
    try:
        if is_url(file):
            return int(request(file, "info", None, DEADLINE)["size"])
        with open_regular(file) as there:
            return os.fstat(there.fileno()).st_size
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def listing(folder: str) -> dict[str, int]:
    """Return names and sizes in bytes of the files directly in a folder or below a URL; empty where there is none.

    Names are those that `join` takes.

    Raises OSError, for a URL StorageError.
    """
    if not is_url(folder):
        files = Path(folder).iterdir() if Path(folder).is_dir() else ()
        return {portable(file.name): file.stat().st_size for file in files if file.is_file()}
    try:
        locate(folder)[0].invalidate_cache()
        found = request(folder, "ls", None, DEADLINE, detail=True)
    except StorageError as error:
        if error.errno == errno.ENOENT:
            return {}
        raise
    return {entry["name"].rpartition("/")[2]: entry["size"] for entry in found if entry["type"] == "file"}


def delete(folder: str) -> None:
    """Delete a folder, or everything below a URL, if it exists. Raises OSError, for a URL StorageError."""
    try:
        if is_url(folder):
            request(folder, "rm", None, DEADLINE, recursive=True)
        else:
            shutil.rmtree(folder)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def why_unsupported(url: str) -> str | None:
    """Return why no such URL can be read, for instance for lack of a package; None if it can."""
    try:
        locate(url)
    except StorageError as error:
        return error.strerror
    return None


class _Remote(io.RawIOBase):
    """A URL as an unbuffered file."""

    def __init__(self, url: str, size: int, traffic: Traffic | None, deadline: float) -> None:
        self._url, self._size, self._traffic, self._deadline = url, size, traffic, deadline
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._at))
        buffer[:size] = read(self._url, self._at, size, traffic=self._traffic, deadline=self._deadline)
        self._at += size
        return size

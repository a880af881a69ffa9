"""Write a run's files other than checkpoints, and lock files. A full or failing disk does not end the training."""

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from shards.storage import replacing
from shards.terminal import say
from shards.text import one_line

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LONGEST = 2**24  # longest line in bytes


class OutputError(OSError):
    """The output of a command cannot be written; the message is one line that names it and the remedy."""


@contextmanager
def output(place: Path) -> Iterator[None]:
    """Explain a failure to write the output of a command.

    Args:
        place: the file or folder that is written in the block.

    Raises:
        OutputError: an OSError in the block, unless it was that nobody reads stdout.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        remedy = "free space there" if error.errno in _FULL else "choose a place where you may write"
        name = one_line(str(error.filename or place))
        raise OutputError(f"{name} cannot be written ({error.strerror or error}): {remedy}") from error


class Writing:
    """Tolerates failed writes: they are counted, and reported once until writing works again.

    Attributes:
        failures: number of failed writes.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._failing: set[Path] = set()

    @contextmanager
    def __call__(self, path: Path) -> Iterator[None]:
        """Tolerate a failed write of `path` in the block, the rest of which is then skipped."""
        try:
            yield
        except OSError as error:
            self.failures += 1
            if path not in self._failing:
                self._failing.add(path)
                remedy = "free space there" if error.errno in _FULL else "fix it, or move it away"
                tell(f"warning: {path} cannot be written ({error.strerror or error}), training continues: {remedy}")
        else:
            if path in self._failing:
                self._failing.remove(path)
                tell(f"note: {path} can be written again")


class AppendedFile:
    """A file to which data are appended atomically; data that could not be written are kept, and written next time.

    It is opened each time, so that no error persists, and nothing is in a buffer when the process dies.
    """

    def __init__(self, path: Path, writing: Writing) -> None:
        self._path, self._writing = path, writing
        self._waiting = b""

    def append(self, data: bytes) -> None:
        """Append data, after pending data."""
        self._waiting += data
        self.flush()

    def flush(self) -> None:
        """Write pending data."""
        if self._waiting:
            with self._writing(self._path):
                self._append()

    def _append(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_others(self._path)
        with self._path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(self._waiting)
                while left:
                    left = left[file.write(left) :]  # as much as there was space for
            except OSError:
                file.truncate(end)
                raise
        self._waiting = b""


def json_lines(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """Return one line of JSON per entry."""
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def entry(line: bytes) -> dict[str, Any] | None:
    """Parse a line of one of a run's files; None if it is torn, or not an object with a step."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and type(found.get("step")) is int else None


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of one of a run's files, without foreign lines. Raises OSError."""
    _refuse_special(path)
    with path.open("rb") as file:
        yield from filter(None, map(entry, _lines(file)))


def keep_lines(path: Path, step: int) -> None:
    """Truncate a file of JSON lines to the whole lines up to `step`, for a run that resumes there.

    Foreign lines are kept where an entry follows. Raises OSError.
    """
    if not path.exists():
        return
    _refuse_others(path)
    with path.open("rb+") as file:
        end = at = 0
        for line in _lines(file):
            at += len(line)
            found = entry(line)
            if found and found["step"] > step:
                break
            end = at if found else end
        file.truncate(end)  # which needs no space


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; overlong lines come in pieces, so that memory is bounded."""
    return iter(lambda: file.readline(_LONGEST), b"")


def _refuse_others(path: Path) -> None:
    """Raise OSError for a link, since a run's folder may come from others, and as `_refuse_special` does."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, and its target may be anybody's file")
    _refuse_special(path)


def _refuse_special(path: Path) -> None:
    """Raise OSError for a pipe, which would block, or a device."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")


def replace(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically, also in case of a power failure."""
    with replacing(path, path.parent) as scratch:
        scratch.write_bytes(content)


def tell(text: str) -> None:
    """Print a line for the operator."""
    with suppress(OSError):  # the output may be on the same disk
        say(text)


def flock(lock: Path) -> int | None:
    """Return a descriptor that holds a lock until it is closed; None if another process holds it.

    Raises:
        OSError: the file cannot be opened, or is a link.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor

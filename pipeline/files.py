"""Files that a run writes beside its checkpoints, and locks. A disk that fills or fails does not end the training."""

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

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LONGEST = 2**24  # bytes of a line


class Writing:
    """Tries to write. What fails is counted, and told once until it works again.

    Attributes:
        failures: so many.
    """

    def __init__(self) -> None:
        self.failures = 0
        self._failing: set[Path] = set()

    @contextmanager
    def __call__(self, path: Path) -> Iterator[None]:
        """What happens inside writes there; when it fails, the rest of it is left out."""
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
    """A file that is appended to, each time all or nothing; what fails waits in memory, and goes first next time.

    It is opened anew each time: so nothing lasts that has failed, and nothing waits in a buffer when the process dies.
    """

    def __init__(self, path: Path, writing: Writing) -> None:
        self._path, self._writing = path, writing
        self._waiting = b""

    def append(self, data: bytes) -> None:
        """Write it, after what waits."""
        self._waiting += data
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
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
                    left = left[file.write(left) :]  # as much as there was room for
            except OSError:
                file.truncate(end)
                raise
        self._waiting = b""


def json_lines(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """One line of JSON each."""
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def entry(line: bytes) -> dict[str, Any] | None:
    """What a line of one of a run's files says; None if it is torn, or not an object with a step: not the run's."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and type(found.get("step")) is int else None


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of one of a run's files, without those that are not the run's. Raises OSError."""
    _refuse_special(path)
    with path.open("rb") as file:
        yield from filter(None, map(entry, _lines(file)))


def keep_lines(path: Path, step: int) -> None:
    """Cut a file of JSON lines, by step, down to the whole ones up to `step`, as a run that resumes there has to.

    What is not the run's is left alone where an entry follows. Raises OSError.
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
        file.truncate(end)  # which takes no room


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; a longer one than the run writes comes in pieces, as a file may be all one."""
    return iter(lambda: file.readline(_LONGEST), b"")


def _refuse_others(path: Path) -> None:
    """Raise OSError for a link, as a run's folder may come from others, and as `_refuse_special`."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, and its target may be anybody's file")
    _refuse_special(path)


def _refuse_special(path: Path) -> None:
    """Raise OSError for a pipe, which would be waited for, or a device."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a plain file")


def replace(path: Path, content: bytes) -> None:
    """Give a file a new content, all or nothing, after a power cut too."""
    with replacing(path, path.parent) as scratch:
        scratch.write_bytes(content)


def tell(text: str) -> None:
    """A line for the operator."""
    with suppress(OSError):  # where what is said goes may be the same disk
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

"""Read the output of a shell command as a file, for `pipe:COMMAND` in data.shards."""

import errno
import io
import os
import select
import signal
import subprocess
from contextlib import suppress

from shards.secrets import PIPE, masked
from shards.storage import StorageError

_CHUNK = 2**20  # bytes
_MOST_LEFT = 2**20  # bytes that may follow the end of a tar: padding
_ENDING = 10.0  # seconds to wait for the command to end


class Pipe(io.BufferedIOBase):
    """The standard output of a command.

    Its standard error is discarded, since messages may contain a password. It cannot read from the terminal, and is
    ended when this file is closed.

    Args:
        command: the command, prefixed with "pipe:".
        deadline: seconds that it may be silent.

    Raises:
        StorageError: by `read`, at the end, or by `close`: the command ended with a status other than
            0; by `read`: it missed the deadline.
    """

    def __init__(self, command: str, deadline: float) -> None:
        self._name, self._deadline = masked(command), deadline
        self._process = subprocess.Popen(
            command.removeprefix(PIPE),
            shell=True,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals that stop the run must not reach it
        )
        assert self._process.stdout
        self._output = self._process.stdout
        self._coming = select.poll()
        self._coming.register(self._output)
        self._failed = False  # an error was raised

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Return this many bytes, or all; fewer at the end."""
        data = bytearray()
        most = float("inf") if size is None or size < 0 else size
        while len(data) < most and (more := self._read(int(min(_CHUNK, most - len(data))))):
            data += more
        if most and not data:
            self._check()
        return bytes(data)

    def close(self) -> None:
        """End the command. Its status after the end of the tar counts only if it ends by itself."""
        if self.closed:
            return
        try:
            if not self._failed and self._ends():
                self._check()
        finally:
            super().close()
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._output.close()

    def _read(self, most: int) -> bytes:
        if not self._coming.poll(self._deadline * 1000):
            self._fail(errno.ETIMEDOUT, f"wrote nothing for {self._deadline:g} s")
        return self._output.read(most)

    def _ends(self) -> bool:
        left = 0
        while left < _MOST_LEFT and self._coming.poll(_ENDING * 1000):
            if not (more := self._output.read(_CHUNK)):
                return True
            left += len(more)
        return False

    def _check(self) -> None:
        status = self._process.wait()
        if status and not self._failed:
            self._fail(errno.EIO, ended(status))

    def _fail(self, number: int, what: str) -> None:
        self._failed = True
        raise StorageError(number, f"its command {what}; run it separately to see why", self._name)


def ended(status: int) -> str:
    """Describe how a program ended, from a status of `Popen`, or of a shell that ran it."""
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-status if status < 0 else status - 128).name}"
    return f"ended with status {status}" + (" (no such program)" if status == 127 else "")

"""Write tars whose bytes depend on their members alone, in one pass over the data."""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_BLOCK, _RECORD = 512, 10_240  # bytes: a member fills whole blocks, and a tar whole records
_BUFFER = 2**20
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)  # the other fields of the header of a plain file
_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum counts itself as spaces
_MAX_NAME = 100  # bytes; longer ones would need an extension of the format


class TarWriter:
    """A POSIX tar (ustar) of plain files with mode 0644, owner 0 and time 0, which is hashed while it is written.

    Python's `tarfile` gives the same bytes, and takes several times as long for the headers of small images. A
    thread hashes and writes, so that the next images are read and checked meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._waiting: list[bytes] = []
        self._written = 0  # bytes written or being written
        self.size = 0  # bytes so far

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()
        self._file.close()

    def add(self, name: str, data: bytes) -> int:
        """Append a file and return the offset of its bytes. `name` has 1 to 100 ASCII characters."""
        offset = self.size + _BLOCK
        self._append(_header(name, len(data)), data, bytes(-len(data) % _BLOCK))
        if self.size - self._written >= _BUFFER:
            self._flush()
        return offset

    def finish(self) -> str:
        """Write the end of the tar and return the SHA-256 of the whole, in hexadecimal."""
        end = self.size + 2 * _BLOCK
        self._append(bytes(2 * _BLOCK + -end % _RECORD))
        self._flush()
        self._flush()
        return self._digest.hexdigest()

    def _append(self, *parts: bytes) -> None:
        self._waiting += parts
        self.size += sum(map(len, parts))

    def _flush(self) -> None:
        """Wait for the write in progress and start to write the data added since. Raises OSError."""
        if self._writing is not None:
            self._writing.result()
        self._writing = self._thread.submit(self._write, self._waiting)
        self._waiting, self._written = [], self.size

    def _write(self, parts: list[bytes]) -> None:
        data = memoryview(b"".join(parts))
        self._digest.update(data)
        while data:
            data = data[self._file.write(data) :]


def _header(name: str, size: int) -> bytes:
    """Return a ustar header: pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html#tag_20_92_13_06."""
    encoded = name.encode("ascii")
    assert 0 < len(encoded) <= _MAX_NAME, name
    before = b"%b0000644\x000000000\x000000000\x00%011o\x0000000000000\x00" % (encoded.ljust(_MAX_NAME, b"\0"), size)
    return before + b"%06o\0 " % (sum(before) + _REST_SUM) + _REST

"""The error that users see, and what is done with whole files."""

import hashlib
import os
from pathlib import Path

import pyarrow as pa


class ShardError(Exception):
    """An input or a data set cannot be used; the message is one line that names it and the remedy."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
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

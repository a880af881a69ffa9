"""Files that are either complete under their name or absent, and the error that users see."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ShardError(Exception):
    """An input or a data set cannot be used; the message is one line that names it and the remedy."""


@contextmanager
def replacing(path: Path, staging: Path) -> Iterator[Path]:
    """Yields a scratch path in `staging`; what the block writes there becomes `path`, durably, or not at all.

    `staging` must be on the file system of `path`. Nothing of the scratch file is left when the block fails;
    a block that leaves no scratch file publishes nothing.
    """
    scratch = staging / f"{path.name}.tmp"
    try:
        yield scratch
        if not scratch.exists():
            return
        fsync(scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

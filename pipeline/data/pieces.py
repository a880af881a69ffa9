"""Read a sample as one or more pieces of a file, each with its checksum; neighbours are read together."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

Encoded = NDArray[np.uint8]
Sample = Encoded | str  # the bytes of a sample, or why they cannot be read


class Piece(NamedTuple):
    """A piece: its offset and size in bytes, its CRC-32C, and its name in messages."""

    offset: int
    size: int
    crc32c: int
    name: str = "the sample"


def gather(read: Callable[[int, int], bytes], pieces: Sequence[Piece], gap: int, location: str) -> Sample:
    """Read the pieces of a sample and return their concatenated bytes, or what is wrong with one of them.

    Args:
        read: returns the bytes at an offset, of a size; fewer where the file ends. Its errors are passed on.
        pieces: in the order of their offsets, one or more.
        gap: pieces at most this many bytes apart are read together, and the bytes between them are dropped.
        location: that of the file, for messages.
    """
    found: list[bytes] = []
    for together in _runs(pieces, gap):
        start = together[0].offset
        data = read(start, together[-1].offset + together[-1].size - start)
        for piece in together:
            place = piece.offset - start
            part = data[place : place + piece.size]
            if len(part) != piece.size:
                return f"{location}: ends inside {piece.name}"
            if google_crc32c.value(part) != piece.crc32c:
                return f"{location}: {piece.name} does not match its checksum"
            found.append(part)
    return np.frombuffer(found[0] if len(found) == 1 else b"".join(found), dtype=np.uint8)


def _runs(pieces: Sequence[Piece], gap: int) -> Iterator[list[Piece]]:
    """Yield the pieces in groups that are read at once."""
    run = [pieces[0]]
    for piece in pieces[1:]:
        if piece.offset - (run[-1].offset + run[-1].size) > gap:
            yield run
            run = []
        run.append(piece)
    yield run

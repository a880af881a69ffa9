"""Samples that are read in pieces: the requested bytes, and the errors of single pieces."""

from collections.abc import Callable

import google_crc32c
import numpy as np
import pytest

from pipeline.data.pieces import Piece, gather

FILE = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8).tobytes()


def piece(offset: int, size: int, name: str = "the sample") -> Piece:
    return Piece(offset, size, google_crc32c.value(FILE[offset : offset + size]), name)


def reading(file: bytes, asked: list[tuple[int, int]]) -> Callable[[int, int], bytes]:
    def read(offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return file[offset : offset + size]

    return read


@pytest.mark.parametrize(
    ("gap", "requests"),
    [
        (0, [(10, 30), (50, 10), (200, 100), (320, 5)]),
        (9, [(10, 30), (50, 10), (200, 100), (320, 5)]),
        (10, [(10, 50), (200, 100), (320, 5)]),
        (20, [(10, 50), (200, 125)]),
        (1000, [(10, 315)]),
    ],
)
def test_neighbours_are_read_at_once(gap: int, requests: list[tuple[int, int]]) -> None:
    pieces = [piece(*place) for place in ((10, 20), (30, 10), (50, 10), (200, 100), (320, 5))]
    asked: list[tuple[int, int]] = []
    found = gather(reading(FILE, asked), pieces, gap, "a.tar")
    assert asked == requests
    assert not isinstance(found, str) and found.dtype == np.uint8
    assert found.tobytes() == FILE[10:40] + FILE[50:60] + FILE[200:300] + FILE[320:325]


@pytest.mark.parametrize("gap", [0, 1000])
def test_the_piece_that_is_wrong_is_named(gap: int) -> None:
    pieces = [piece(10, 20, "frame 3"), piece(50, 10, "frame 7")]
    for place, why in ((9, None), (12, "frame 3"), (40, None), (59, "frame 7"), (60, None)):
        hurt = bytearray(FILE)
        hurt[place] ^= 1
        found = gather(reading(bytes(hurt), []), pieces, gap, "a.tar")
        assert isinstance(found, str) == bool(why)
        assert why is None or found == f"a.tar: {why} does not match its checksum"
    assert gather(reading(FILE[:55], []), pieces, gap, "a.tar") == "a.tar: ends inside frame 7"
    assert gather(reading(FILE[:15], []), pieces, gap, "a.tar") == "a.tar: ends inside frame 3"

"""Detect truncated video files by the sizes in their containers; FFmpeg does not report such files."""

import struct

_BOXES = frozenset(
    b"ftyp styp pdin moov moof mdat mfra sidx ssix prft emsg meta udta uuid free skip wide pnot".split()
)  # the outermost ones of MP4 and QuickTime
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80\x67"


def missing_bytes(data: bytes) -> int:
    """Return how many bytes an MP4, QuickTime, Matroska, WebM or AVI file lacks at its end, by its own sizes.

    A file that was written as a stream, without sizes, gives 0, and so do extra bytes behind the end of a whole file.
    """
    if data.startswith(_EBML):
        end = _matroska_end(data)
    elif data[:4] == b"RIFF":
        end = _riff_end(data)
    else:
        end = _boxes_end(data)
    return max(0, end - len(data))


def _boxes_end(data: bytes) -> int:
    place = 0
    while data[place + 4 : place + 8] in _BOXES:
        (size,) = struct.unpack_from(">I", data, place)
        if size == 1 and len(data) >= place + 16:
            (size,) = struct.unpack_from(">Q", data, place + 8)
        if size < 8:  # 0: up to the end of the file
            break
        place += size
    return place


def _riff_end(data: bytes) -> int:
    place = 0
    while data[place : place + 4] == b"RIFF" and len(data) >= place + 8:  # a large AVI file has several of these
        (size,) = struct.unpack_from("<I", data, place + 4)
        place += 8 + size + size % 2
    return place - 1 if place == len(data) + 1 else place  # some omit the byte that pads the last one


def _matroska_end(data: bytes) -> int:
    size, place = _ebml_size(data, len(_EBML))
    if size is None or data[place + size : place + size + 4] != _SEGMENT:
        return 0
    size, place = _ebml_size(data, place + size + len(_SEGMENT))
    return 0 if size is None else place + size


def _ebml_size(data: bytes, place: int) -> tuple[int | None, int]:
    """Return an EBML size, None for an unknown one, and the position behind it."""
    first = data[place] if place < len(data) else 0
    length = 9 - first.bit_length()  # the leading zero bits give the number of bytes
    value = int.from_bytes(data[place : place + length], "big") & ((1 << 7 * length) - 1)
    return (None if length > 8 or value == (1 << 7 * length) - 1 else value), place + length

"""Parse the chunks of a PNG file, and check its pixels as libpng and DALI do; Pillow is more lenient."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from shards.media.exif import orientation
from shards.media.media import Rejected

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # required for the pixels
_LAST_FILTER = 4
_MAX_CHUNKS = 200_000  # more 8 KiB chunks, the size that libpng writes, than fit in `MAX_BYTES`
_NOT_PLAIN = {b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
# For interlaced images: x and y of each pass, and the steps
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")


_ONE_PIXEL = SIGNATURE + _chunk(b"IHDR", bytes((0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0)))
_ONE_PIXEL += _chunk(b"IDAT", zlib.compress(bytes(2)))


@dataclass(frozen=True)
class Png:
    """The contents of the chunks: the size as stored, bits per channel, frames, and orientation (1 to 8).

    `plain` is 8-bit grey or RGB that depends on nothing else and that DALI reads; `stripped` is a file of only those
    chunks that the pixels depend on, and `metadata` a file of a single pixel with all others.
    """

    height: int
    width: int
    bits: int
    frames: int
    orientation: int
    plain: bool
    stripped: bytes
    metadata: bytes
    _rows: list[tuple[int, int]]  # for each pass, the number of lines and the bytes per line, including its filter byte
    _pixels: bytes

    def is_whole(self) -> bool:
        """Return whether there are exactly as many pixels as there should be, and libpng finds no error in them."""
        size = sum(count * length for count, length in self._rows)
        # Some encoders use a larger window than they declare, which libpng refuses and zlib alone does not notice
        window = 2 ** ((self._pixels[0] >> 4) + 8) if self._pixels else 0
        if window < min(2**15, size):
            return False
        inflating = zlib.decompressobj()
        try:
            lines = inflating.decompress(self._pixels, size + 1)
        except zlib.error:
            return False
        if len(lines) != size or not inflating.eof:
            return False
        at = 0
        for count, length in self._rows:
            if max(lines[at : at + count * length : length]) > _LAST_FILTER:
                return False
            at += count * length
        return True


def read(data: bytes, whole: bool = True) -> Png:
    """Read all chunks of a PNG, or those before its pixels.

    Raises:
        Rejected: a chunk is damaged, out of order, or critical and unknown.
    """
    header, exif, pixels, needed, others = b"", b"", [], [SIGNATURE], []
    frames, plain = 1, True
    kind, begun, ended = b"", False, False  # the last two concern the pixels
    for kind, begin, end in _chunks(data):
        name = kind.decode("latin-1")
        if not (kind.isalpha() and kind.isascii() and kind[2:3].isupper()):
            raise _corrupt(f"a chunk has the impossible name {name!a}")
        if kind[:1].isupper() and kind not in _NEEDED:
            raise Rejected("unknown chunk", f"its pixels depend on a chunk {name}, which is not in the PNG standard")
        if (kind == b"IHDR") == bool(header) or (kind == b"IDAT" and ended):
            raise _corrupt(f"its chunk {name} is out of place")
        if kind == b"IDAT" and not whole:
            begun = True
            break
        if end + 4 > len(data):
            raise _corrupt(f"it is cut off in a chunk {name}")
        body = data[begin:end]
        intact = zlib.crc32(body, zlib.crc32(kind)) == int.from_bytes(data[end : end + 4], "big")
        if kind in _NEEDED and not intact and kind != b"IEND":
            raise _corrupt(f"its chunk {name} has a wrong checksum")
        if kind == b"IHDR":
            header = body
            if len(body) != 13 or body[8] not in _DEPTHS.get(body[9], ()) or any(body[10:12]) or body[12] > 1:
                raise _corrupt("its header is damaged")
        elif kind == b"IDAT":
            begun = True
            pixels.append(body)
        elif kind == b"acTL" and intact and len(body) == 8 and not begun:
            frames = int.from_bytes(body[:4], "big")
        elif kind == b"eXIf":
            exif = exif or body
        ended = begun and kind != b"IDAT"
        if kind not in _NEEDED:
            others.append(_chunk(kind, body))
        elif kind == b"IEND" or not ended:
            needed.append(_chunk(kind, body))
        # DALI rotates by EXIF, and fails on some animations and on too short a background
        bad_background = kind == b"bKGD" and len(body) != 2 * _channels(header)
        plain = plain and intact and kind not in _NOT_PLAIN and not bad_background
        if kind == b"IEND":
            break
    if whole and kind != b"IEND":
        raise _corrupt("it is cut off: it has no end chunk")
    if not begun:
        raise _corrupt("it has no pixels")
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    if not 0 < height * width < 2**62:
        raise _corrupt(f"its header says {width} x {height} pixels")
    bits, data = header[8], b"".join(pixels)
    rows = list(_rows(header, height, width))
    plain = plain and bits == 8 and header[9] in (0, 2)
    return Png(
        height,
        width,
        bits,
        frames,
        orientation(exif),
        plain,
        b"".join(needed),
        _ONE_PIXEL + b"".join(others) + _chunk(b"IEND", b""),
        rows,
        data,
    )


def _rows(header: bytes, height: int, width: int) -> Iterator[tuple[int, int]]:
    for x, y, across, down in _PASSES if header[12] else [(0, 0, 1, 1)]:
        count, pixels = -((y - height) // down), -((x - width) // across)
        if count > 0 and pixels > 0:
            yield count, 1 + (pixels * header[8] * _channels(header) + 7) // 8


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk, and the begin and end of its contents, which may exceed the file."""
    at = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at + 8, end
        at = end + 4
    raise _corrupt(f"it has more than {_MAX_CHUNKS} chunks")


def _channels(header: bytes) -> int:
    return _CHANNELS[header[9]]


def _corrupt(detail: str) -> Rejected:
    return Rejected("corrupt", detail)

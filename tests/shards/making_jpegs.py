"""JPEG files of any build, in a few lines: every block of a component has one colour."""

import math
import re
import struct
from collections.abc import Sequence

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
# Two DC codes, 0: as the block before, 10: seven bits of difference follow; one AC code, 0: all others are zero
_TABLES = b"\x00" + bytes([1, 1, *[0] * 14]) + b"\x00\x07" + b"\x10" + bytes([1, *[0] * 15]) + b"\x00"


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def exif(turn: int, *, tag: int = 0x0112, kind: int = 3, order: str = "<", mark: bytes | None = None) -> bytes:
    """An APP1 segment whose one entry is an orientation, or the same number under another tag."""
    value = struct.pack(f"{order}I", turn) if kind == 4 else struct.pack(f"{order}HH", turn, 0)
    entry = struct.pack(f"{order}HHI", tag, kind, 1) + value
    begin = mark or {"<": b"II", ">": b"MM"}[order]
    return segment(0xE1, b"Exif\0\0" + begin + struct.pack(f"{order}HIH", 42, 8, 1) + entry + bytes(4))


def inserted(jpeg: bytes, more: bytes) -> bytes:
    """A JPEG with more bytes right behind its start marker."""
    return jpeg[:2] + more + jpeg[2:]


def scans(jpeg: bytes) -> list[int]:
    """Return the offsets of its scans. Their markers occur in nothing else that these tests make."""
    return [found.start() for found in re.finditer(rb"\xff\xda", jpeg)]


def lossless_jpeg(count: int, ids: bytes = b"\1\2\3\4", *, bits: int = 8, header: bytes = b"") -> bytes:
    """A JPEG without loss (SOF3) of 40 x 56 pixels, all in the middle of the range, with so many components."""
    components = b"".join(bytes([ids[i], 0x11, 0]) for i in range(count))
    table = b"\0" + bytes([1, *[0] * 15]) + b"\0"  # 0: as predicted
    scan = bytes([count]) + b"".join(bytes([ids[i], 0]) for i in range(count)) + b"\1\0\0"
    frame = struct.pack(">BHHB", bits, 40, 56, count) + components
    data = SOI + header + segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, scan)
    return data + bytes(40 * 56 * count // 8) + EOI


def flat_jpeg(
    height: int = 40,
    width: int = 56,
    sampling: Sequence[tuple[int, int]] = ((2, 2), (1, 1), (1, 1)),
    *,
    process: int = 0xC0,
    bits: int = 8,
    ids: bytes = b"\1\2\3\4\5",
    header: bytes = b"",
    interleaved: bool = True,
) -> bytes:
    """A Huffman-coded JPEG of one colour, with components of these horizontal and vertical sampling factors."""
    count = len(sampling)
    components = b"".join(bytes([ids[i], h << 4 | v, 0]) for i, (h, v) in enumerate(sampling))
    frame = struct.pack(">BHHB", bits, height, width, count) + components
    data = SOI + header + segment(0xDB, b"\0" + b"\1" * 64) + segment(process, frame) + segment(0xC4, _TABLES)
    across, down = (max(factors) for factors in zip(*sampling, strict=True))
    for scan in [range(count)] if interleaved else [[i] for i in range(count)]:
        if len(scan) > 1:
            blocks = [sampling[i][0] * sampling[i][1] for i in scan]
            mcus = math.ceil(width / (8 * across)) * math.ceil(height / (8 * down))
        else:
            h, v = sampling[scan[0]]
            blocks = [1]
            mcus = math.ceil(math.ceil(width * h / across) / 8) * math.ceil(math.ceil(height * v / down) / 8)
        first = "".join("10" + f"{100 - 20 * i:07b}" + "0" + "00" * (n - 1) for i, n in zip(scan, blocks, strict=True))
        coded = first + "00" * sum(blocks) * (mcus - 1)
        coded += "1" * (-len(coded) % 8)
        body = bytes([len(scan)]) + b"".join(bytes([ids[i], 0]) for i in scan) + b"\0\x3f\0"
        data += segment(0xDA, body) + int(coded, 2).to_bytes(len(coded) // 8, "big").replace(b"\xff", b"\xff\0")
    return data + EOI
